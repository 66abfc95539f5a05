"""One table of all that was measured of several experiments, with what differs from the first of them.

Source of the figures: the JSON files that the evaluations leave in an experiment's folder. Intervals are 95 %
bootstraps over the test images (accuracy, R_k) or the class pairs (PxAP); differences are paired, and given where both
rows were measured on the same images, by a SHA-256 of their names, labels and file sizes. docs/comparing.md explains
every column.
Result: <output>/table.md, table.csv, table.tex, and the curves ratios.png and precision_recall.png.

    python compare.py save/demo/CAM save/demo/CALM_EM
    python compare.py save/demo/CALM_EM --reference=saliency
"""
from dataclasses import dataclass, field
from pathlib import Path

import config
from experiment import result_files
from reports import figures, intervals, paper, table_files
from reports.intervals import Measured
from reports.table_files import Cell, Table
from runtime import command_line, screen
from wsol.attribution.contrast import CONTRASTS, default_scale
from wsol.errors import UserError

NAMED_BY = {'norm_type': 'norm', 'threshold_type': 'thresholds', 'cam_curve_interval': 'step', 'seed': 'seed',
            'smooth_grad_nr_iter': 'copies', 'smooth_grad_sigma': 'noise', 'integrated_grad_nr_iter': 'points',
            'precision': 'precision', 'crop_size': 'size', 'superclass_file': 'superclasses of',
            'iou_thresholds': 'IoU', 'slow_questions': 'slow methods asked', 'prior': 'prior',
            'large_feature_map': 'large map'}
MOST_CURVES = len(figures.COLOURS) * len(figures.LINES)  # more look alike


@dataclass
class Row:
    """A network's maps by one attribution method, and what was measured of them."""
    experiment: str
    method: str
    about: dict                    # what the results have in common: dataset, images, images_sha256, epoch
    columns: dict[str, Measured] = field(default_factory=dict)
    results: dict[str, dict] = field(default_factory=dict)  # metric -> the result
    name: str = ''                 # in the tables

    def add(self, result):
        self.results[result['metric']] = result
        self.columns |= intervals.measured(result)


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help="an experiment's folder, as save/calm_em; the "
                        'others are compared with the first one')
    parser.add_argument('--reference', metavar='METHOD', help='compare with this row of the first folder, such as '
                        'saliency or log-odds (default: its first row)')
    parser.add_argument('--summary', action='store_true', help='print the summary of cue localization alone: a line '
                        'for each name and method, with every count, and means over networks of one name')
    parser.add_argument('--paper', action='store_true', help="add the paper's rows (CUB, ResNet-50)")
    parser.add_argument('--output', default='comparison', metavar='FOLDER', help='where to (default: comparison)')
    parser.add_argument('--format', default=tuple(table_files.FORMATS), metavar='NAME,...',
                        type=command_line.several(command_line.choice(tuple(table_files.FORMATS))),
                        help=f'{", ".join(table_files.FORMATS)}; several, separated by commas (default: all)')
    return parser


def has_own_scale(result):
    """Whether maps were normalised and binned as their method asks for: such a result needs no further name."""
    settings = result['settings']
    return all(settings.get(flag) in (None, value) for flag, value in usual_scale(result).items())


def usual_scale(result):
    """{flag: value} of how the maps of a result are normalised and binned where a command line does not say it."""
    settings, script = result['settings'], f'eval_{result["metric"]}'
    if script not in config.ALL_FLAGS['norm_type'].readers:
        return {}
    contrast = settings.get('contrast_method') if settings.get('contrast_method') in CONTRASTS else None
    norm_type, threshold_type = default_scale(settings.get('score_map_process'), contrast, script == 'eval_wsol')
    return {'norm_type': norm_type, 'threshold_type': threshold_type,
            'cam_curve_interval': config.ALL_FLAGS['cam_curve_interval'].default}


def read_results(folder):
    """The results in an experiment's folder: those of their method's own scale, then the others; the latest first.
    Raises UserError where there are none."""
    if not folder.is_dir():
        raise UserError(f'{folder} is no folder; name experiments as they lie, such as save/calm_em')
    results = []
    for path in sorted(folder.glob('*.json'), key=lambda path: (-path.stat().st_mtime_ns, path.name)):
        content = result_files.read_result(path)
        if {'metric', 'settings'} <= content.keys():
            try:
                (intervals.intervened if content['metric'] == 'interventions' else intervals.measured)(content)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f'{path} is not as the evaluations of this version write it ({error!r}): measure '
                                'again, or move it away') from error
            results.append(content)
    if not results:
        raise UserError(f'{folder} holds no results; measure the experiment first: python eval_cue_location.py '
                        f'--experiment_name={folder.name}, likewise eval_pixel_perturb.py and eval_wsol.py')
    return sorted(results, key=lambda result: not has_own_scale(result))


def plain_method(settings):
    """How a user calls an attribution method: by the paper's name, else by the head and the process or the contrast."""
    if settings.get('scoremap_root'):
        return f'maps of {settings["scoremap_root"]}'
    contrast = settings.get('contrast_method')
    process = result_files.contrast_name(contrast) if contrast in CONTRASTS else settings.get('score_map_process')
    key = settings.get('attribution_method'), process
    dropped = settings.get('drop_lowest')  # never in the place of the method itself, however late it was measured
    return paper.METHODS.get(key, ', '.join(filter(None, key))) + (f', lowest {dropped:g} % dropped' if dropped else '')


def rows_of(folder, experiment):
    """The Rows of an experiment's folder: one for each network, test set and attribution method, and one more for each
    result that has the same of these and other settings."""
    rows, networks, intervened, settings = [], [], {}, {}
    for result in read_results(folder):
        about = {key: result.get(key) for key in ('dataset', 'images_sha256', 'weights_sha256', 'images', 'epoch')}
        if result['metric'] == 'accuracy':
            networks.append((about, result))
        elif result['metric'] == 'interventions':
            said = _difference(result, settings.setdefault(about['weights_sha256'], result['settings']))
            for name, columns in intervals.intervened(result).items():
                twins = intervened.setdefault((name, *about.values()), [])
                if columns not in twins:  # a result of fewer contrasts has the same controls, to the last digit
                    rows.append(Row(experiment, name + said * bool(twins), about, columns))
                    twins.append(columns)
        else:
            method = plain_method(result['settings'])
            twins = [row for row in rows if (row.method, row.about) == (method, about)]
            before = [row.results[result['metric']]['settings'] for row in twins if result['metric'] in row.results]
            name = method + _difference(result, *before[:1])
            row = next((row for row in rows if (row.method, row.about) == (name, about)
                        and result['metric'] not in row.results), None)
            if row is None:
                row = Row(experiment, name, about)
                rows.append(row)
            row.add(result)
    bare = []
    for about, result in networks:
        own = [row for row in rows if row.about == about and row.results] or [row for row in bare if row.about == about]
        if not own:
            own = [Row(experiment, result['settings'].get('attribution_method', ''), about)]
            bare += own
        for row in own:
            row.columns = intervals.measured(result) | row.columns
    return sorted(rows + bare, key=lambda row: (not row.results, row.method))


def _difference(result, before=None):
    """What tells a result from one on its method's own scale, and from the one before it of the same network, images
    and method: ', norm minmax'. before: the settings of that one."""
    settings = result['settings']
    before = settings if before is None else before
    own = {flag: settings.get(flag) for flag in NAMED_BY} | usual_scale(result)
    return ''.join(f', {word} {settings[flag]}' for flag, word in NAMED_BY.items() if settings.get(flag) is not None
                   and not settings[flag] == own[flag] == before.get(flag, own[flag]))


def name_rows(rows):
    """Give each row its name: the experiment, the method, and of the rest what is needed to tell rows apart."""
    for row in rows:
        row.name = row.method if row.method == row.experiment else f'{row.experiment}: {row.method}'
    for key, words in (('dataset', '{}'), ('images', '{} images'), ('epoch', 'epoch {}'),
                       ('weights_sha256', 'weights {:.8}'), ('images_sha256', 'images {:.8}')):
        by_name = {}
        for row in rows:
            by_name.setdefault(row.name, []).append(row)
        for twins in by_name.values():
            if len({row.about[key] for row in twins}) > 1:
                for row in twins:
                    row.name += ', ' + words.format(str(row.about[key]))


def difference(row, reference, column):
    """A Cell of how a row differs from the first; None where they cannot be compared."""
    first, second = reference.columns.get(column), row.columns.get(column)
    same_images = row.about['images_sha256'] == reference.about['images_sha256']
    if first is None or second is None or None in (first.value, second.value) or not same_images:
        return None
    values = (second.value - first.value,)
    if first.sample and second.sample and first.sample.units == second.sample.units:
        values = second.sample.difference(first.sample)
    return Cell(*values, *(None,) * (3 - len(values)), intervals.DECIMALS.get(column, 1), '+')


def put_first(rows, reference):
    """The rows, that of the first experiment first whose method is called `reference`. Raises UserError."""
    own = [row for row in rows if row.experiment == rows[0].experiment]
    for name in (lambda row: row.method, lambda row: row.method.split(', ', 1)[-1]):  # the whole name comes first
        for row in own:
            if reference == name(row):
                return [row, *(other for other in rows if other is not row)]
    raise UserError(f'--reference={reference}: {own[0].experiment} has no such row; it has '
                    + '; '.join(row.method for row in own))


def paper_rows():
    """The paper's figures as Rows."""
    rows = []
    for method, name in paper.METHODS.items():
        figures_of = dict(zip([f'published {key}' for key in paper.KEYS], paper.PXAP[method], strict=True))
        if method[1] == 'jointll':
            figures_of['accuracy'] = paper.ACCURACY[method[0], 'CUB']
        rows.append(Row('the paper', name, {}, {column: Measured(value) for column, value in figures_of.items()},
                        name=f'the paper (CUB): {name}'))
    return rows


def make_tables(rows, published):
    """[Table]: all values, methods by metrics; then, topic by topic, the intervals and the differences to the first."""
    everything = [column for columns in intervals.TOPICS.values() for column in columns
                  if any(column in row.columns for row in rows)]
    shown = [*rows, *published]
    tables = [Table('All that was measured', ['', *everything], [
        [row.name, *(_cell(row, column, plain=True) for column in everything)] for row in shown])]
    for title, columns in intervals.TOPICS.items():
        own = {column: name for column, name in columns.items() if column in everything}
        lines = [[row.name, *(_cell(row, column) for column in own)] for row in shown
                 if own.keys() & row.columns.keys()]
        for row in rows[1:]:
            cells = [difference(row, rows[0], column) for column in own]
            if any(cells):
                lines.append([f'{row.name} − {rows[0].name}', *cells])
        if own:
            tables.append(Table(title, ['', *own.values()], lines))
    return tables + intervals.over_networks(rows)


def _cell(row, column, plain=False):
    own = row.columns.get(column)
    if own is None:
        return None
    return Cell(own.value, decimals=intervals.DECIMALS.get(column, 1)) if plain else own.cell(column)


def notes(rows):
    """What a reader should know of the differences, in sentences."""
    first, said = rows[0], []
    others = [row.name for row in rows[1:] if row.about['images_sha256'] != first.about['images_sha256']]
    if others:
        more = f' and {len(others) - 1} more' if others[1:] else ''
        said.append(f'{others[0]}{more}, measured on other images than {first.name}: no difference is given.')
    for row in rows:
        if 'pixel_perturb' in row.results and 'outcomes' not in row.results['pixel_perturb']:
            said.append(f'{row.name} was measured before outcomes by image were kept: run eval_pixel_perturb.py again '
                        'for intervals of its accuracy and of the differences.')
    older = [row.name for row in rows if 'cue_location' in row.results
             and 'published_draws' not in row.results['cue_location']]
    if older:
        many = f' and {len(older) - 1} more were' if older[1:] else ' was'
        said.append(f'{older[0]}{many} measured before the published protocol had intervals over the class pairs: run '
                    'eval_cue_location.py again for them.')
    return said


def draw(rows, folder):
    """The curves of all rows that have them. Returns the paths."""
    title, paths = ' and '.join(dict.fromkeys(row.experiment for row in rows)), []
    ratios = {row.name: row.results['pixel_perturb']['ratios'] for row in rows if 'pixel_perturb' in row.results}
    bands = {row.name: intervals.precision_band(row.results['cue_location']) for row in rows
             if 'recalls' in row.results.get('cue_location', {}) and row.columns['corrected mean'].value is not None}
    for name, what, curves, draw_curves in (
            ('ratios.png', 'remove-and-classify', ratios, figures.ratio_curve),
            ('precision_recall.png', 'cue localization', bands, figures.precision_bands)):
        if len(curves) > MOST_CURVES:
            screen.say(f'{name} shows {MOST_CURVES} of {len(curves)} rows: more could not be told apart')
        curves = dict(list(curves.items())[:MOST_CURVES])
        if curves:
            figures.save(draw_curves(f'{title}: {what}', curves), folder / name)
            paths.append(folder / name)
    return paths


def main():
    args = make_parser().parse_args()
    folders = list(dict.fromkeys(map(Path, args.folders)))
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = folders
    rows = [row for folder, name in zip(folders, names, strict=True) for row in rows_of(folder, str(name))]
    if args.reference:
        rows = put_first(rows, args.reference)
    name_rows(rows)
    folder, summary = Path(args.output), intervals.summary(rows)
    tables = make_tables(rows, paper_rows() if args.paper else []) + summary
    if args.summary and not summary:
        raise UserError('no experiment that is named has cue localization, which --summary is of; measure it with '
                        'eval_cue_location.py, or leave --summary out')
    shown = summary if args.summary else tables[1:]
    screen.say(f'\n{table_files.as_text(shown)}\nSquare brackets hold 95 % intervals. docs/comparing.md explains every '
             'column.')
    for sentence in notes(rows):
        screen.say(sentence)
    written = table_files.write_tables(folder / 'table', tables, args.format)
    screen.say('\n' + ', '.join(map(str, [*written, *draw(rows, folder)])))


if __name__ == '__main__':
    screen.run(main)
