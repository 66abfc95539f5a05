"""The tables and plots of docs/findings.md, protocols.md and performance.md, from the measurements in docs/data/*.csv.

docs/measurements.md says what the columns of these files are. The text between the tables is written by hand and stays
as it is. Result: these pages with their tables made anew; docs/forest.png, abstention.png and worth.png.

    python -m research.findings
"""
import csv
import re
from pathlib import Path

from matplotlib.figure import Figure

from reports import figures
from research import worth
from runtime import command_line, screen, whole_files

DOCS = Path(__file__).resolve().parents[1] / 'docs'
PAGES = (DOCS / 'findings.md', DOCS / 'performance.md', DOCS / 'protocols.md')
HEADS = ('CALM_EM, relu', 'CALM_ML, relu', 'CALM_EM, softplus', 'CALM_ML, softplus')
SPREAD = 'CALM_EM, softplus, entropy -1'
TRAININGS = {  # title: {network: run}
    'as a whole, 14x14': {**dict.fromkeys(('CAM', *HEADS), 'whole12'), SPREAD: 'whole14'},
    'as a whole, 28x28': dict.fromkeys(('CAM', *HEADS, SPREAD), 'whole28'),
    'frozen backbone, 14x14': dict.fromkeys(('CAM', HEADS[0], HEADS[2], SPREAD), 'frozen')}
PAIRS = {'as a whole, 14x14, two networks each': dict.fromkeys(HEADS, 'whole12_pairs')}
COUNTS = ('published', 'published, all pixels')
OVER = {'pairs and trainings': '', 'trainings': ' †', 'pairs': ' ‡'}  # what an interval is over: its mark in the plot
PAINTED = ('PxAP', 'rank corr.', 'mass on cue', 'deletion corr.', 'on distractors')
CONTROLS = {'object_mask': "control: the bird's mask", 'random': 'control: random maps'}
DPI = 240  # so that plots are at least 1,200 dots wide


def read(name, **wanted):
    """The rows of docs/data/<name>.csv with these values: [{column: text}]."""
    with open(DOCS / 'data' / f'{name}.csv', newline='') as file:
        return [row for row in csv.DictReader(file) if all(row[column] == value for column, value in wanted.items())]


def cell(data, **wanted):
    """The text of one measurement, "42.4 ± 0.8"; empty where there is none. Raises ValueError for several."""
    row, = [row for row in data if all(row[column] == value for column, value in wanted.items())] or [None]
    return row['value'] + (f' ± {row["deviation"]}' if row['deviation'] else '') if row else ''


def table(header, rows):
    return ''.join(f'| {" | ".join(row)} |\n' for row in [header, ['---'] * len(header), *rows])


def trainings_table():
    """Real birds: accuracy, dropped pixels, and PxAP of each network's map and of its prior."""
    rows = []
    for title, networks in TRAININGS.items():
        for network, run in networks.items():
            data = read('real_birds', run=run, network=network, minus='', drop_lowest='')
            seeds = max((row['seeds'] for row in data), key=len)
            data = [row for row in data if row['seeds'] == seeds and row['scores'] != 'by rank']
            shown = {'map': 'log-odds' if network == 'CAM' else 'joint-difference'}
            rows.append([title, network + (' (one network)' if seeds == '0' else ''), cell(data, figure='accuracy'),
                         *(cell(data, figure=f'dropped {kind}', **shown) for kind in ('true', 'false')),
                         *(cell(data, map=name, figure='PxAP', count=count, parts='mean')
                           for name in (shown['map'], 'prior') for count in COUNTS)])
    return table(['training', 'network', 'accuracy', 'dropped: true', 'false', *COUNTS,
                  *(f'its prior: {count}' for count in COUNTS)], rows)


def painted_table():
    """Eight maps of "why A and not B" on painted birds."""
    data = read('painted_birds', run='deletion', minus='')
    maps = [('CAM', 'log-odds'), ('CAM', 'input_x_gradient'),
            *((HEADS[0], name) for name in ('joint-difference', 'log-odds', 'prior-log-odds', 'prior')),
            ('CAM', 'object_mask'), ('CAM', 'random')]
    return table(['map', *PAINTED], [
        [CONTROLS.get(name, f'{network}: `{name}`'), *(cell(data, network=network, map=name, figure=figure)
                                                       for figure in PAINTED)] for network, name in maps])


def speed_table():
    """Times faster than the plain way, and memory; and times faster on two other processors."""
    columns = {'the plain way, ms': ('bench_cpu', 'plain way, ms an image'),
               'times faster': ('bench_cpu', 'times faster'), 'over the floor': ('bench_cpu', 'over the floor'),
               'MiB, the plain way': ('bench_cpu', 'plain way, peak memory, MiB'),
               'MiB, ours': ('bench_cpu', 'peak memory, MiB'),
               'times faster: AVX-512': ('bench_cpu_avx512', 'times faster'),
               'AMX, bfloat16': ('bench_cpu_bfloat16', 'times faster')}

    def shown(item, run, figure):
        row, = read('performance', run=run, item=item, figure=figure) or [None]
        return row['value'] + (f' ({row["low"]} .. {row["high"]})' if row['low'] else '') if row else ''
    items = [row['item'] for row in read('performance', run='bench_cpu', figure='plain way, ms an image')]
    return table(['per image', *columns], [[item, *(shown(item, *column) for column in columns.values())]
                                           for item in items])


def difference(network, run, count):
    """The measurement of CALM's joint difference less CAM's map; if there are several, that with the widest scope."""
    rows = [row for row in read('real_birds', run=run, network=network, map='joint-difference', count=count)
            if row['scores'] == 'as is' and row['minus'].startswith('CAM') and row['over'] in OVER]
    return min(rows, key=lambda row: list(OVER).index(row['over']))


def forest():
    """A Figure: CALM less CAM in both counts, with 95 % intervals."""
    figure = Figure(figsize=(5.8, 6), layout='constrained')
    axes, lines, series = figure.subplots(), [], {count: {} for count in COUNTS}
    for title, networks in (TRAININGS | PAIRS).items():
        lines.append(title)
        for network, run in networks.items():
            if network != 'CAM':
                for count in COUNTS:
                    series[count][len(lines)] = row = difference(network, run, count)
                lines.append(network + OVER[row['over']])
    figures.intervals(axes, lines, series)
    axes.axvline(0, color='0.6', linewidth=1)
    for label in axes.get_yticklabels():
        label.set_fontweight('bold' if label.get_text() in TRAININGS | PAIRS else 'normal')
    axes.set_xlabel('PxAP of CALM less that of CAM, points\n← CAM ahead · CALM ahead →')
    figure.legend(fontsize=8, loc='outside upper center', ncols=2)
    return figure


def dropping():
    """A Figure: PxAP over the share of dropped pixels, a point for each measurement (seed 2)."""
    curves = {}
    for row in read('real_birds', run='abstention_whole12'):
        if row['seeds'] in ('2', '') and row['map'] != 'prior':
            name = CONTROLS.get(row['map'], row['network'])
            curves.setdefault(name, {}).setdefault(row['count'], []).append(float(row['value']))
    return figures.abstention_curves('What dropping pixels does to PxAP', {
        name: tuple(by_count.values()) for name, by_count in curves.items()})


def agreements():
    """A Figure: how far each common figure agrees with the exact masks, and with the effects on one class."""
    rows, figure = read('worth', run='worth_painted'), Figure(figsize=(5.8, 4.5), layout='constrained')
    axes, names = figure.subplots(), [name for name in worth.FIGURES if any(row[name] for row in rows)]
    figures.intervals(axes, [''] * len(names), {truth: {place: worth.agreement(rows, name, truth) for place, name in
                                                        enumerate(names)} for truth in worth.TRUTHS[::3]})
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.axvline(0, color='0.6', linewidth=1)
    axes.set_xlabel('rank correlation with the truth, over the attribution methods')
    figure.legend(fontsize=8, loc='outside upper center', ncols=2)
    return figure


TABLES = {'trainings': trainings_table, 'painted': painted_table, 'speed': speed_table,
          'worth': lambda: table(*worth.table(read('worth', run='worth_painted'))),
          'photos': lambda: table(*worth.table(read('worth', run='worth_real')))}


def filled(page):
    """The text of a page with its tables made anew."""
    return re.sub(r'(<!-- table: (\w+) -->\n).*?(<!-- end -->)',
                  lambda match: f'{match[1]}\n{TABLES[match[2]]()}\n{match[3]}', page, flags=re.S)


def make_parser():
    return command_line.plain_parser(__doc__)


def make_all():
    """Make the tables of the pages, and the plots, anew."""
    for page in PAGES:
        whole_files.write_lines(page, filled(page.read_text()).splitlines())
    for name, draw in {'forest': forest, 'abstention': dropping, 'worth': agreements}.items():
        figures.save(draw(), DOCS / f'{name}.png', DPI)
    screen.say(f'the tables and plots in {DOCS} are made anew')


def main():
    make_parser().parse_args()
    make_all()


if __name__ == '__main__':
    screen.run(main)
