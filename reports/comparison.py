"""The tables and the curves of a comparison. Rows are those of reports.rows; a group is the rows of one name."""
from collections import Counter, defaultdict
from pathlib import Path

from experiment import result_files
from reports import columns, figures, intervals
from reports.table_files import FORMATS, Table, as_text, mean_and_deviation
from runtime import screen, whole_files

COMPARED = f'{columns.COMPARED}: mean'
MOST_CURVES = len(figures.COLOURS) * len(figures.LINES)  # of more curves some would look alike


# --- cells: rows are networks of one name, several or one ------------------------------------------------


def estimates_of(rows, column):
    """The Estimates of rows in a column; None if a row has no value, or if the rows used different truths."""
    estimates = [row.estimates.get(column) for row in rows]
    missing = any(one is None or one.value is None for one in estimates)
    return None if missing or len({one.truth for one in estimates}) > 1 else estimates


def figure_cell(rows, column):
    """The figure of a single network with its interval; '92.0 ± 1.4', mean and deviation, over several."""
    estimates = estimates_of(rows, column)
    if estimates and len(rows) == 1:
        return columns.cell(column, estimates[0].value, *estimates[0].interval())
    return estimates and mean_and_deviation([one.value for one in estimates], columns.DECIMALS.get(column, 1))


def difference_cell(rows, reference, column, interval=intervals.mean_interval):
    """How much higher the mean of rows is, with an interval; None unless both sides have the figure, of the same images
    and truth. interval: a function of intervals."""
    estimates = estimates_of([*rows, *reference], column)
    if estimates is None or not result_files.are_alike([rows[0].about, reference[0].about], 'images'):
        return None
    return columns.cell(column, *interval(estimates[:len(rows)], estimates[len(rows):]), '+')


# end of a line's name -> the interval of its differences
DIFFERENCES = {'': intervals.mean_interval, ', other trainings too': intervals.interval_over_trainings}


# --- tables: groups are [(name, rows)] -------------------------------------------------------------------


def make_tables(rows, published=()):
    """The tables: of everything; topic by topic with intervals and differences; of means over networks of one name.
    published: the paper's rows."""
    everything = [column for names in columns.TABLES.values() for column in names
                  if any(column in row.estimates for row in rows)]
    single = [(row.name, [row]) for row in (*rows, *published)]
    lines = [[row.name, *((one := row.estimates.get(column)) and columns.cell(column, one.value)
                          for column in everything)] for _, (row,) in single]
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
                for end, interval in DIFFERENCES.items():
                    cells = [difference_cell(rows, reference[1], column, interval) for column in names]
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


def refusals(rows):
    """Lines that name the rows not compared with the first, why, and their files."""
    first, problems = rows[0], defaultdict(list)  # why there is no difference -> the row's name and the files
    for row in rows[1:]:
        if not result_files.are_alike([row.about, first.about], 'images'):
            files = [next((result['path'] for result in one.results.values()), one.experiment) for one in (row, first)]
            problems[f'measured on other images than {first.name}'].append((row.name, files))
            continue
        for metric in row.results.keys() & first.results.keys():
            results = row.results[metric], first.results[metric]
            if not result_files.are_alike(results, 'truth'):
                files = [result['path'] for result in results]
                problems[f'{metric} was compared with other truth than for {first.name}'].append((row.name, files))
    lines = []
    for problem, ((name, files), *more) in problems.items():
        others = f' and {len(more)} more' if more else ''
        lines.append(f'{name} ({", ".join(files)}){others}: {problem}, so no difference is given')
    return lines


# --- tables and curves on the screen and in files --------------------------------------------------------


def publish(rows, tables, path, formats=tuple(FORMATS)):
    """Print the tables of topics, and which rows are not compared with the first; write all tables under a path without
    its suffix, and the curves beside them; print the files' paths. tables: the first is that of everything,
    which is written and not printed. formats: keys of FORMATS."""
    screen.say('\n' + as_text(tables[1:]))
    screen.say('Square brackets hold 95 % intervals. docs/comparing.md explains every column.')
    for line in refusals(rows):
        screen.say(line)
    files = []
    for suffix, make in map(FORMATS.get, formats):
        files.append(path.with_suffix(suffix))
        whole_files.write_lines(files[-1], [make(tables).rstrip('\n')])
    screen.say('\n' + ', '.join(map(str, files + draw(rows, path.parent))))


def draw(rows, folder):
    """Draw the curves of all rows that have them. Returns the paths."""
    title, paths = ' and '.join(dict.fromkeys(row.experiment for row in rows)), []
    ratios = {row.name: row.results['pixel_perturb']['ratios'] for row in rows if 'pixel_perturb' in row.results}
    bands = {row.name: intervals.precision_band(row.results['cue_location']) for row in rows
             if 'recalls' in row.results.get('cue_location', {}) and estimates_of([row], COMPARED)}
    for name, what, curves, draw_curves in (
            ('ratios.png', 'remove-and-classify', ratios, figures.ratio_curve),
            ('precision_recall.png', 'cue localization', bands, figures.precision_curves)):
        if len(curves) > MOST_CURVES:
            screen.say(f'{name} shows {MOST_CURVES} of {len(curves)} rows: more could not be told apart')
        if curves:
            shown = dict(list(curves.items())[:MOST_CURVES])
            figures.save(draw_curves(f'{title}: {what}', shown), folder / name)
            paths.append(folder / name)
    return paths
