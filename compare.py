"""One table with all results of several experiments, and the differences from the first of them.

Reads the JSON files that the evaluations leave in an experiment's folder. Intervals are 95 % bootstraps over the test
images (accuracy, R_k) or the class pairs (PxAP). Differences are paired, and given where both rows were measured on the
same images and compared with the same truth, by SHA-256 of their content. docs/comparing.md explains every column.
Result: <output>/table.md, table.csv, table.tex, and the curves ratios.png and precision_recall.png.

    python compare.py save/demo/CAM save/demo/CALM_EM
    python compare.py save/demo/CALM_EM --reference=saliency
"""
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave it out

from experiment import result_files
from reports import columns, figures, intervals, table_files
from reports.rows import paper_rows, read_experiments
from reports.table_files import Table, mean_and_deviation
from runtime import command_line, screen
from wsol.errors import UserError

COMPARED = f'{columns.COMPARED}: mean'
SUMMARY = ('accuracy', 'published: mean', 'published, all pixels: mean', 'dropped true', 'dropped false',
           'per pair: mean', *(f'{columns.COMPARED}: {key}' for key in columns.KEYS))
MOST_CURVES = len(figures.COLOURS) * len(figures.LINES)  # of more curves some would look alike


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help="an experiment's folder, such as save/calm_em; "
                        'the others are compared with the first')
    parser.add_argument('--reference', metavar='METHOD', help='compare with this row of the first folder, such as '
                        'saliency or log-odds (default: its first row)')
    parser.add_argument('--summary', action='store_true', help='print only the summary of cue localization: a line for '
                        'each name and method, with every count, and means over networks of one name')
    parser.add_argument('--paper', action='store_true', help="add the paper's rows (CUB, ResNet-50)")
    parser.add_argument('--output', default='comparison', metavar='FOLDER',
                        help='the folder of the tables (default: comparison)')
    parser.add_argument('--format', default=tuple(table_files.FORMATS), metavar='NAME,...',
                        type=command_line.several(command_line.choice(tuple(table_files.FORMATS))),
                        help=f'{", ".join(table_files.FORMATS)}; several, separated by commas (default: all)')
    return parser


# --- cells: rows are networks of one name, several or one ------------------------------------------------


def _estimates(rows, column):
    """The Estimates of rows in a column; None if a row has no value, or if the rows used different truths."""
    estimates = [row.estimates.get(column) for row in rows]
    missing = any(one is None or one.value is None for one in estimates)
    return None if missing or not same_truth(rows, column) else estimates


def value_cell(rows, column):
    """The figure of the first network, without its interval."""
    estimate = rows[0].estimates.get(column)
    return estimate and columns.cell(column, estimate.value)


def mean_cell(rows, column):
    """'92.0 ± 1.4': mean and deviation over networks; the value of a single one."""
    estimates = _estimates(rows, column)
    return estimates and mean_and_deviation([one.value for one in estimates], columns.DECIMALS.get(column, 1))


def figure_cell(rows, column):
    """The figure of a single network with its interval; mean and deviation over several."""
    estimates = _estimates(rows, column)
    if estimates is None or len(rows) > 1:
        return mean_cell(rows, column)
    return columns.cell(column, estimates[0].value, *estimates[0].interval())


def _comparable(rows, reference, column):
    """The Estimates of both sides in a column, if all have a value and the same images and truth; else None."""
    sides = _estimates(rows, column), _estimates(reference, column)
    same_images = result_files.are_alike([rows[0].about, reference[0].about], 'images')
    return sides if all(sides) and same_images and same_truth([*rows, *reference], column) else None


def same_truth(rows, column):
    metric = columns.OF_METRIC.get(column)
    return result_files.are_alike([row.results[metric] for row in rows if metric in row.results], 'truth')


def difference_cell(rows, reference, column):
    """How much higher the mean of rows is, with its interval over images or class pairs where it is paired."""
    sides = _comparable(rows, reference, column)
    if sides is None:
        return None
    if intervals.are_paired(sum(sides, [])):
        return columns.cell(column, *intervals.mean_interval(*sides), sign='+')
    mean, reference_mean = (float(np.mean([one.value for one in side])) for side in sides)
    return columns.cell(column, mean - reference_mean, sign='+')


def trainings_cell(rows, reference, column):
    """The same with an interval that covers other trainings too; None unless both sides have several networks."""
    sides = _comparable(rows, reference, column)
    if sides is None or min(map(len, sides)) < 2:
        return None
    value, low, high = intervals.interval_over_trainings(*sides)
    return None if low is None else columns.cell(column, value, low, high, '+')


DIFFERENCES = {'': difference_cell, ', other trainings too': trainings_cell}  # end of a line's name -> its cells


# --- tables: groups are [(name, rows)] -------------------------------------------------------------------


def make_tables(rows, published=()):
    """The tables: of everything; topic by topic with intervals and differences; of means over networks of one name.
    published: the paper's rows."""
    everything = [column for names in columns.TABLES.values() for column in names
                  if any(column in row.estimates for row in rows)]
    single = [(row.name, [row]) for row in (*rows, *published)]
    lines = [[name, *(value_cell(networks, column) for column in everything)] for name, networks in single]
    groups = networks_of_one_name(rows)
    several = [group for group in groups if len(group[1]) > 1]
    reference = groups[0] if groups[0] in several else None
    return [Table('All results', ['', *everything], lines), *topic_tables(single, single[0]),
            *topic_tables(several, reference, '; mean ± standard deviation')]


def topic_tables(groups, reference, more=''):
    """A Table for each topic: a line for each group, then their differences from the reference. reference: one of the
    groups, or None. more: the end of the titles."""
    tables, several = [], any(len(rows) > 1 for _, rows in groups)
    for title, names in columns.TABLES.items():
        lines = [[name, len(rows) if several else None, *(figure_cell(rows, column) for column in names)]
                 for name, rows in groups]
        for name, rows in groups:
            if reference and rows is not reference[1]:
                for end, cell in DIFFERENCES.items():
                    cells = [cell(rows, reference[1], column) for column in names]
                    lines.append([f'{name} − {reference[0]}{end}', None, *cells])
        table = Table(title + more, ['', 'networks', *names.values()],
                      [line for line in lines if any(cell is not None for cell in line[2:])])
        if table.rows:
            tables.append(table.without_empty_columns())
    return tables


def networks_of_one_name(rows):
    """The groups of networks of one name, as trained with several seeds, and measured on the same images; that of the
    first row comes first. If an experiment has several checkpoints, its first row counts."""
    by_key = {}
    for row in rows:
        key = f'{Path(row.experiment).name}: {row.method}', row.about.get('dataset'), row.about.get('images_sha256')
        by_key.setdefault(key, {}).setdefault(row.experiment, row)
    many = Counter(name for name, *_ in by_key)
    return [(name if many[name] == 1 else f'{name}, {dataset}, images {str(images):.8}', list(networks.values()))
            for (name, dataset, images), networks in by_key.items()]


def summary(rows):
    """[Table] of cue localization, a line for each name: every count, as the mean over its networks, and how much
    higher its COMPARED is than that of the first name. [] where cue localization was not measured."""
    groups = networks_of_one_name(rows)
    first, reference = groups[0]
    lines = []
    for name, networks in groups:
        if mean_cell(networks, COMPARED) is not None:
            differences = [None if networks is reference else cell(networks, reference, COMPARED)
                           for cell in DIFFERENCES.values()]
            lines.append([name, len(networks), *(mean_cell(networks, column) for column in SUMMARY), *differences])
    title = f'Summary of cue localization, PxAP in %; the last two columns are {COMPARED} − that of {first}'
    return [Table(title, ['', 'networks', *SUMMARY, 'difference', 'other trainings too'], lines)] if lines else []


def refusals(rows):
    """Lines that name the rows not compared with the first, why, and their files."""
    first, problems = rows[0], {}
    for row in rows[1:]:
        if not result_files.are_alike([row.about, first.about], 'images'):
            files = [next((result['path'] for result in one.results.values()), one.experiment) for one in (row, first)]
            problems.setdefault(f'measured on other images than {first.name}, so no difference is given', []).append(
                f'{row.name} ({", ".join(files)})')
            continue
        for metric in row.results.keys() & first.results.keys():
            results = row.results[metric], first.results[metric]
            if not result_files.are_alike(results, 'truth'):
                problems.setdefault(f'{metric} was compared with other truth than for {first.name}, so no difference '
                                    'is given', []).append(
                    f'{row.name} ({", ".join(result["path"] for result in results)})')
    return [f'{names[0]}{f" and {len(names) - 1} more" if names[1:] else ""}: {problem}'
            for problem, names in problems.items()]


# --- curves ----------------------------------------------------------------------------------------------


def draw(rows, folder):
    """Draw the curves of all rows that have them. Returns the paths."""
    title, paths = ' and '.join(dict.fromkeys(row.experiment for row in rows)), []
    ratios = {row.name: row.results['pixel_perturb']['ratios'] for row in rows if 'pixel_perturb' in row.results}
    bands = {row.name: intervals.precision_band(row.results['cue_location']) for row in rows
             if 'recalls' in row.results.get('cue_location', {}) and _estimates([row], COMPARED)}
    for name, what, curves, draw_curves in (
            ('ratios.png', 'remove-and-classify', ratios, figures.ratio_curve),
            ('precision_recall.png', 'cue localization', bands, figures.precision_bands)):
        if len(curves) > MOST_CURVES:
            screen.say(f'{name} shows {MOST_CURVES} of {len(curves)} rows: more could not be told apart')
        if curves:
            shown = dict(list(curves.items())[:MOST_CURVES])
            figures.save(draw_curves(f'{title}: {what}', shown), folder / name)
            paths.append(folder / name)
    return paths


def main():
    args = make_parser().parse_args()
    rows = read_experiments(args.folders, args.reference)
    tables, summed = make_tables(rows, paper_rows() if args.paper else []), summary(rows)
    if args.summary and not summed:
        raise UserError('no experiment that is named has results of cue localization, which --summary needs; run '
                        'eval_cue_location.py, or leave --summary out')
    screen.say(f'\n{table_files.as_text(summed if args.summary else tables[1:] + summed)}\nSquare brackets hold 95 % '
               'intervals. docs/comparing.md explains every column.')
    for line in refusals(rows):
        screen.say(line)
    folder = Path(args.output)
    paths = table_files.write_tables(folder / 'table', tables + summed, args.format) + draw(rows, folder)
    screen.say('\n' + ', '.join(map(str, paths)))


if __name__ == '__main__':
    screen.run(main)
