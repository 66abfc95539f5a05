"""One table of all that was measured of several experiments, with the differences from the first of them.

Reads the JSON files that the evaluations leave in an experiment's folder. Intervals are 95 % bootstraps over the test
images (accuracy, R_k) or the class pairs (PxAP). Differences are paired, and given where both rows were measured on the
same images, by a SHA-256 of their names, labels and file sizes. docs/comparing.md explains every column.
Result: <output>/table.md, table.csv, table.tex, and the curves ratios.png and precision_recall.png.

    python compare.py save/demo/CAM save/demo/CALM_EM
    python compare.py save/demo/CALM_EM --reference=saliency
"""
from collections import Counter
from pathlib import Path

import numpy as np

from reports import columns, figures, intervals, table_files
from reports.rows import name_rows, paper_rows, put_first, read_rows
from reports.table_files import Table, mean_and_deviation
from runtime import command_line, screen
from wsol.errors import UserError

COMPARED = f'{columns.COMPARED}: mean'
SUMMARY = ('accuracy', 'published: mean', 'published, all pixels: mean', 'dropped true', 'dropped false',
           'per pair: mean', *(f'{columns.COMPARED}: {key}' for key in columns.KEYS))
MOST_CURVES = len(figures.COLOURS) * len(figures.LINES)  # more look alike


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help="an experiment's folder, such as save/calm_em; "
                        'the others are compared with the first')
    parser.add_argument('--reference', metavar='METHOD', help='compare with this row of the first folder, such as '
                        'saliency or log-odds (default: its first row)')
    parser.add_argument('--summary', action='store_true', help='print only the summary of cue localization: a line for '
                        'each name and method, with every count, and means over networks of one name')
    parser.add_argument('--paper', action='store_true', help="add the paper's rows (CUB, ResNet-50)")
    parser.add_argument('--output', default='comparison', metavar='FOLDER', help='where to (default: comparison)')
    parser.add_argument('--format', default=tuple(table_files.FORMATS), metavar='NAME,...',
                        type=command_line.several(command_line.choice(tuple(table_files.FORMATS))),
                        help=f'{", ".join(table_files.FORMATS)}; several, separated by commas (default: all)')
    return parser


# --- cells: each of the networks of one name, rows, in one column ----------------------------------------


def _estimates(rows, column):
    """The Estimates of rows in a column; None where one of them has no value."""
    estimates = [row.estimates.get(column) for row in rows]
    return None if any(one is None or one.value is None for one in estimates) else estimates


def figure_cell(rows, column):
    """The figure of one network with its interval; of several networks mean and deviation."""
    estimates = _estimates(rows, column)
    if estimates is None or len(rows) > 1:
        return mean_cell(rows, column)
    return columns.cell(column, estimates[0].value, *estimates[0].interval())


def mean_cell(rows, column):
    """'92.0 ± 1.4': mean and deviation over networks, of one network its value."""
    estimates = _estimates(rows, column)
    return estimates and mean_and_deviation([one.value for one in estimates], columns.DECIMALS.get(column, 1))


def difference_cell(rows, reference, column):
    """How much higher the mean of rows is, with its interval over images or class pairs where it is paired."""
    estimates, less = _estimates(rows, column), _estimates(reference, column)
    if not (estimates and less and same_images(rows[0], reference[0])):
        return None
    if intervals.are_paired([*estimates, *less]):
        return columns.cell(column, *intervals.mean_interval(estimates, less), sign='+')
    means = [float(np.mean([one.value for one in side])) for side in (estimates, less)]
    return columns.cell(column, means[0] - means[1], sign='+')


def trainings_cell(rows, reference, column):
    """The same with an interval that covers other trainings too; None where a side has one network."""
    estimates, less = _estimates(rows, column), _estimates(reference, column)
    if not (estimates and less and same_images(rows[0], reference[0])) or min(len(rows), len(reference)) < 2:
        return None
    value, low, high = intervals.interval_over_trainings(estimates, less)
    return None if low is None else columns.cell(column, value, low, high, '+')


def same_images(row, reference):
    return row.about.get('images_sha256') == reference.about.get('images_sha256')


DIFFERENCES = {'': difference_cell, ', other trainings too': trainings_cell}  # what a line's name says -> its cells


# --- tables ----------------------------------------------------------------------------------------------


def make_tables(rows, published=()):
    """The tables: of everything; topic by topic with intervals and differences; of means over networks of one name.
    published: the paper's rows."""
    everything = [column for names in columns.TABLES.values() for column in names
                  if any(column in row.estimates for row in rows)]
    single = [(row.name, [row]) for row in (*rows, *published)]
    groups = networks_of_one_name(rows)
    several = [group for group in groups if len(group[1]) > 1]
    return [Table('All that was measured', ['', *everything], [
        [name, *((estimates := _estimates(own, column)) and columns.cell(column, estimates[0].value)
                 for column in everything)] for name, own in single]),
            *topic_tables(single, single[0]),
            *topic_tables(several, groups[0] if groups[0] in several else None, '; mean ± standard deviation')]


def topic_tables(groups, reference, more=''):
    """A Table for each topic: a line for each name, then its differences from the reference. groups: [(name, rows of
    its networks)], of which the reference is one, or None. more: for the titles."""
    tables = []
    for title, names in columns.TABLES.items():
        lines = [[name, len(rows), *(figure_cell(rows, column) for column in names)] for name, rows in groups]
        for name, rows in groups if reference else ():
            lines += [[f'{name} − {reference[0]}{said}', None, *(cell(rows, reference[1], column) for column in names)]
                      for said, cell in DIFFERENCES.items() if rows is not reference[1]]
        lines = [line for line in lines if any(cell is not None for cell in line[2:])]
        header = ['', 'networks', *names.values()]
        kept = [index for index in range(len(header)) if any(line[index] is not None for line in lines)]
        if max((len(rows) for _, rows in groups), default=1) == 1:
            kept = [index for index in kept if index != 1]
        if lines:
            tables.append(Table(title + more, [header[index] for index in kept],
                                [[line[index] for index in kept] for line in lines]))
    return tables


def networks_of_one_name(rows):
    """[(name, rows)]: networks of one name, as trained with several seeds, measured on the same images; the first row's
    name comes first. Of an experiment's several checkpoints the first counts."""
    by_key = {}
    for row in rows:
        key = f'{Path(row.experiment).name}: {row.method}', row.about.get('dataset'), row.about.get('images_sha256')
        by_key.setdefault(key, {}).setdefault(row.experiment, row)
    many = Counter(name for name, *_ in by_key)
    return [(name if many[name] == 1 else f'{name}, {dataset}, images {str(images):.8}', list(own.values()))
            for (name, dataset, images), own in by_key.items()]


def summary(rows):
    """[Table] of cue localization, a line for each name: every count, as the mean over its networks, and how much
    higher its COMPARED is than that of the first name. [] where cue localization was not measured."""
    groups = networks_of_one_name(rows)
    first, reference = groups[0]
    lines = [[name, str(len(own)), *(mean_cell(own, column) for column in SUMMARY),
              *(None if own is reference else cell(own, reference, COMPARED) for cell in DIFFERENCES.values())]
             for name, own in groups if mean_cell(own, COMPARED) is not None]
    title = f'Summary of cue localization, PxAP in %; the last two columns are {COMPARED} − that of {first}'
    return [Table(title, ['', 'networks', *SUMMARY, 'difference', 'other trainings too'], lines)] if lines else []


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
    folders = list(dict.fromkeys(map(Path, args.folders)))
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = folders
    rows = [row for folder, name in zip(folders, names, strict=True) for row in read_rows(folder, str(name))]
    if args.reference:
        rows = put_first(rows, args.reference)
    name_rows(rows)
    summed, tables = summary(rows), make_tables(rows, paper_rows() if args.paper else [])
    if args.summary and not summed:
        raise UserError('no experiment that is named has results of cue localization, which --summary needs; run '
                        'eval_cue_location.py, or leave --summary out')
    screen.say(f'\n{table_files.as_text(summed if args.summary else tables[1:] + summed)}\nSquare brackets hold 95 % '
             'intervals. docs/comparing.md explains every column.')
    others = [row.name for row in rows if not same_images(row, rows[0])]
    if others:
        more = f' and {len(others) - 1} more' if others[1:] else ''
        screen.say(f'{others[0]}{more}: measured on other images than {rows[0].name}, so no difference is given')
    folder = Path(args.output)
    written = table_files.write_tables(folder / 'table', tables + summed, args.format)
    screen.say('\n' + ', '.join(map(str, [*written, *draw(rows, folder)])))


if __name__ == '__main__':
    screen.run(main)
