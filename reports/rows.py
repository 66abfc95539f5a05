"""The rows of a comparison: a network's maps by one attribution method, with all their results.

Read from the JSON files that the evaluations leave in an experiment's folder.
"""
from dataclasses import dataclass, field
from pathlib import Path

import config
from experiment import result_files
from reports import columns, paper
from reports.intervals import Estimate
from wsol.attribution.contrast import CONTRASTS
from wsol.errors import UserError

CONTROL = 'control: '  # begins the names of controls
ABOUT = ('dataset', 'images_sha256', 'weights_sha256', 'images', 'epoch')  # what a row says of itself
NAMED_BY = {'norm_type': 'norm', 'threshold_type': 'thresholds', 'cam_curve_interval': 'step', 'seed': 'seed',
            'smooth_grad_nr_iter': 'copies', 'smooth_grad_sigma': 'noise', 'integrated_grad_nr_iter': 'points',
            'finer_cam_alpha': 'alpha', 'finer_cam_references': 'similar classes', 'rise_nr_masks': 'masks',
            'precision': 'precision', 'crop_size': 'size', 'resize_size': 'resized to',
            'superclass_file': 'superclasses of', 'iou_thresholds': 'IoU', 'scores': 'p by',
            'slow_questions': 'slow methods asked', 'prior': 'prior',
            'large_feature_map': 'large map'}  # setting -> its word in the name of a row


@dataclass
class Row:
    """A network's maps by one attribution method."""
    experiment: str
    method: str              # with the settings that tell it from other rows: 'CAM, norm rank'
    about: dict              # the keys of ABOUT, and the fit of the photos
    estimates: dict[str, Estimate] = field(default_factory=dict)  # column -> what was measured
    results: dict[str, dict] = field(default_factory=dict)        # metric -> the result
    plain_method: str = ''
    name: str = ''           # in the tables


def read_experiments(folders, reference=None):
    """The named Rows of the folders of several experiments; the reference, a method of the first, comes first. Raises
    UserError."""
    folders = list(dict.fromkeys(map(Path, folders)))
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = map(str, folders)
    rows = [row for folder, name in zip(folders, names, strict=True) for row in make_rows(read_results(folder), name)]
    rows = put_first(rows, reference) if reference else rows
    name_rows(rows)
    return rows


def make_rows(results, experiment):
    """The Rows of an experiment's results: one for each network, test set and attribution method, and one more for each
    result of the same metric with other settings or another truth. experiment: its name."""
    rows, accuracies = [], []
    for result in results:
        about = {key: result.get(key) for key in ABOUT} | {'fit': result['settings'].get('fit') or 'squash'}
        if result['metric'] == 'accuracy':
            accuracies.append((about, columns.read_estimates(result), result))
            continue
        fill = result['settings'].get('fill', 'zeros')  # a row holds a result of remove-and-classify for each fill
        part = result['metric'] if fill == 'zeros' else f'{result["metric"]}, {fill}'
        for method, estimates in _estimates_by_method(result).items():
            _add(rows, Row(experiment, method, about, estimates, {part: result}, method))
    for about, estimates, result in accuracies:  # an accuracy is the network's: all its rows have it
        of_network = [row for row in rows if row.about == about and 'interventions' not in row.results]
        if not of_network:
            of_network = [Row(experiment, result['settings'].get('attribution_method', ''), about)]
            rows += of_network
        for row in of_network:
            row.estimates = estimates | row.estimates
    return sorted(rows, key=lambda row: (not row.results or 'interventions' in row.results,
                                         row.method.startswith(CONTROL), row.method))


def _estimates_by_method(result):
    """{method: {column: Estimate}} of a result; a result of interventions holds several methods."""
    if result['metric'] == 'interventions':
        return columns.read_interventions(result)
    return {plain_method(result['settings']): columns.read_estimates(result)}


def _add(rows, new):
    """Add a Row of one result to rows: to the row of the same method and settings, or as one more."""
    (metric, result), = new.results.items()
    same_method = [row for row in rows if (row.plain_method, row.about) == (new.plain_method, new.about)]
    if metric == 'interventions' and any(row.estimates == new.estimates for row in same_method):
        return  # a result of fewer contrasts has the same controls, to the last digit
    earlier = [row.results[metric]['settings'] for row in same_method
               if row.method == new.method and metric in row.results]
    new.method += _settings_words(result, *earlier[:1])
    row = next((row for row in same_method if row.method == new.method and metric not in row.results), None)
    if row is None:
        rows.append(new)
    else:
        row.results |= new.results
        row.estimates |= new.estimates


def _settings_words(result, earlier=None):
    """', norm minmax': the settings that differ from the method's defaults, or from an earlier result of the same
    network, images and method."""
    settings, earlier = result['settings'], earlier or {}
    usual = {flag: settings.get(flag) for flag in NAMED_BY} | usual_scale(result)
    return ''.join(f', {word} {settings[flag]}' for flag, word in NAMED_BY.items() if settings.get(flag) is not None
                   and not settings[flag] == usual[flag] == earlier.get(flag, usual[flag]))


def usual_scale(result):
    """{flag: value} of the default norm, thresholds and step for a result's method; {} for a metric without a scale."""
    settings = result['settings']
    scale = result_files.usual_scale(result['metric'], settings.get('score_map_process'),
                                     settings.get('contrast_method'))
    return scale and scale | {'cam_curve_interval': config.ALL_FLAGS['cam_curve_interval'].default}


def read_results(folder):
    """The results in an experiment's folder: first those with the default scale, then the others; the newest come first
    in both. Raises UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f'{folder} is no folder; name the folders of experiments, such as save/calm_em')
    results = []
    paths = [path for path in folder.iterdir() if path.suffix == '.json']  # glob is silent where it cannot read
    for path in sorted(paths, key=lambda path: (-path.stat().st_mtime_ns, path.name)):
        content = result_files.read_result(path)
        if {'metric', 'settings'} <= content.keys():
            try:
                _estimates_by_method(content)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f'{path} is not as the evaluations of this version write it ({error!r}): evaluate '
                                'again, or move it away') from error
            results.append(content)
    if not results:
        raise UserError(f'{folder} holds no results; evaluate the experiment first: python eval_cue_location.py '
                        f'--experiment_name={folder.name}, or eval_pixel_perturb.py or eval_wsol.py')
    return sorted(results, key=lambda result: any(result['settings'].get(flag) not in (None, value)
                                                  for flag, value in usual_scale(result).items()))


def plain_method(settings):
    """What a user calls an attribution method: the paper's name, else the head and the method or the contrast."""
    contrast, root = settings.get('contrast_method'), settings.get('scoremap_root')
    method = result_files.contrast_name(contrast) if contrast in CONTRASTS else settings.get('score_map_process')
    name = f'maps of {root}' if root else paper.name_of(settings.get('attribution_method'), method)
    control, dropped = settings.get('control'), settings.get('drop_lowest')  # such a row never stands for the method
    return (f'{CONTROL}{control.replace("_", " ")}, ' if control else '') + name + (
        f', lowest {dropped:g} % dropped' if dropped else '')


def name_rows(rows):
    """Give each row its name: the experiment, the method, and what else is needed to tell rows apart."""
    for row in rows:
        row.name = row.method if row.method == row.experiment else f'{row.experiment}: {row.method}'
    for key, words in (('dataset', '{}'), ('images', '{} images'), ('epoch', 'epoch {}'), ('fit', 'fit {}'),
                       ('weights_sha256', 'weights {:.8}'), ('images_sha256', 'images {:.8}'),
                       ('truth_sha256', 'truth {}'), ('maps_sha256', 'maps {}')):
        by_name = {}
        for row in rows:
            by_name.setdefault(row.name, []).append(row)
        for twins in by_name.values():
            values = [row.about[key] if key in row.about else _hashes(row.results, key) for row in twins]
            if len(set(values)) > 1:
                for row, value in zip(twins, values, strict=True):
                    row.name += f', {words.format(str(value))}' if value != '' else ''


def _hashes(results, key):
    """A SHA-256 of each of a row's results, shortened; '' if none has one."""
    hashes = [result.get(key) for _, result in sorted(results.items())]
    return ' '.join(dict.fromkeys(value[:8] for value in hashes if value))


def put_first(rows, reference):
    """The rows, the reference first: the row of the first experiment whose method is called so. Raises UserError."""
    candidates = [row for row in rows if row.experiment == rows[0].experiment]
    for name in (lambda row: row.method, lambda row: row.method.split(', ', 1)[-1]):  # the whole name comes first
        for row in candidates:
            if reference == name(row):
                return [row, *(one for one in rows if one is not row)]
    raise UserError(f'--reference={reference}: {rows[0].experiment} has no such row; it has '
                    + '; '.join(row.method for row in candidates))


def paper_rows():
    """The paper's figures as Rows."""
    rows = []
    for method, name in paper.METHODS.items():
        figures = {f'published: {key}': value for key, value in zip(paper.KEYS, paper.PXAP[method], strict=True)}
        figures['accuracy'] = paper.ACCURACY.get((method[0], 'CUB'))  # None if the paper gives none
        rows.append(Row('the paper', name, {'images_sha256': 'of the paper'}, name=f'the paper (CUB): {name}',
                        estimates={column: Estimate(value) for column, value in figures.items()}))
    return rows
