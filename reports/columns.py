"""The columns of a comparison: their names, the tables that they stand in, and how results are read into them."""
from functools import reduce
from operator import getitem

import numpy as np

from evaluation.pxap import COUNTS, KEYS
from experiment.result_files import FORMATS, from_digits, from_text
from reports.intervals import Estimate, mean_terms
from reports.table_files import Cell
from wsol import metrics

COMPARED = 'per pair, all pixels'  # the count of PxAP by which methods are compared
EXACT = f'exact part masks, {COMPARED}'
PXAP = {count: ('parts', count) for count in COUNTS} | {EXACT: ('exact', COMPARED)}  # where results have them
PERCENTS = [str(round(100 * ratio)) for ratio in metrics.ERASE_RATIOS]
AREAS = ('deletion', 'insertion', 'random pixels', 'coarse noise')
ERASURES = {  # (fill, what is erased, or area) -> {column: its name within the table}
    (fill, kind): {': '.join(filter(None, [', '.join(filter(None, [fill * (fill != 'zeros'), kind])), key])): key
                   for key in (AREAS if kind == 'area' else [f'R_{percent}' for percent in PERCENTS])}
    for fill in metrics.FILLS for kind in ('', 'coarse noise', 'area')}
MASSES = ('mass in box', 'mass in mask')
CUE_MASSES = {'parts': 'mass on parts', 'exact': 'mass on exact part masks'}  # truth -> the beginning of its columns
WSOL = ('MaxBoxAccV2', 'MaxBoxAcc', 'Top-1 Loc', 'mask PxAP', *MASSES)
GRID = 'grid pointing'
INTERVENTIONS = ('PxAP exact', 'rank corr.', 'mass on cue', 'sign', 'slope', 'error', 'deletion corr.',
                 'on distractors')  # the names in results too
CALIBRATION = 'calibration error'
TABLES = {  # title -> {column: its name within the table}
    'Accuracy, %': {'accuracy': 'accuracy', CALIBRATION: CALIBRATION},
    **{f'Cue localization, PxAP in %, by the number of differing parts: {count}': {f'{count}: {key}': key
                                                                                   for key in KEYS} for count in PXAP},
    **{f'Mass of the map on differing parts, %: {words}': {f'{words}: {key}': key for key in KEYS}
       for words in CUE_MASSES.values()},
    'Pixels that the published protocol drops, %': {'dropped true': 'true', 'dropped false': 'false'},
    **{', '.join(filter(None, ['Remove-and-classify', kind, f'fill {fill}' * (fill != 'zeros')])) + (
        ': the area under p(true class) over the erased share' if kind == 'area' else ': R_k, lower is better'): names
       for (fill, kind), names in ERASURES.items()},
    'Localization (WSOL), %': {name: name for name in WSOL},
    'Grid pointing game, %': {GRID: 'mass on its photo'},
    'Interventions': {name: name for name in (*INTERVENTIONS, 'turns', 'shapes that distract', 'questions')},
}
DECIMALS = dict.fromkeys([*(name for names in ERASURES.values() for name in names), 'rank corr.', 'slope', 'error',
                          'deletion corr.', 'on distractors'], 2) | {'questions': 0}  # other columns have 1


def cell(column, value, low=None, high=None, sign=''):
    """A Cell with a column's decimals; None for no value."""
    return None if value is None else Cell(value, low, high, DECIMALS.get(column, 1), sign)


def read_estimates(result):
    """{column: Estimate} of a result of an evaluation; {} for another metric."""
    readers = {'cue_location': _cue_location, 'pixel_perturb': _pixel_perturb, 'wsol': _wsol, 'grid': _grid,
               'accuracy': _accuracy}
    estimates = readers.get(result.get('metric'), lambda _: {})(result)
    return {column: one._replace(truth=result.get('truth_sha256')) for column, one in estimates.items()}


def read_interventions(result):
    """{contrast method: {column: Estimate}} of a result of interventions."""
    def stated(value, low=None, high=None):
        return Estimate(value, bounds=(low, high), truth=result.get('truth_sha256'))
    network = {'turns': stated(*result['network']['turns']),  # the same for every contrast
               'shapes that distract': stated(result['network']['shapes_that_distract'])}
    if result.get('format', 1) != FORMATS['interventions']:
        raise ValueError('the figures have other names')
    return {name: {column: stated(*figures[column]) for column in INTERVENTIONS if column in figures}
            | network | {'questions': stated(figures['questions'])} for name, figures in result['methods'].items()}


def _accuracy(result):
    error, *bounds = (result['calibration'][key] for key in ('error', 'low', 'high'))
    return {'accuracy': Estimate(result['test_accuracy']), CALIBRATION: Estimate(error, bounds=tuple(bounds))}


def _cue_location(result):
    columns = {}
    for name, (truth, count) in PXAP.items():
        for key in KEYS if truth in result['pxap'] else ():
            estimate = _over_pairs(result, key, 'pxap', truth, count)
            columns[f'{name}: {key}'] = _with_draws(estimate, result, count, key) if 'published' in count else estimate
    for truth in result['mass']:
        columns |= {f'{CUE_MASSES[truth]}: {key}': _over_pairs(result, key, 'mass', truth) for key in KEYS}
    return columns | {f'dropped {side}': Estimate(result['dropped']['parts'][side]) for side in ('true', 'false')}


def _over_pairs(result, key, *names):
    """An Estimate of a mean over class pairs. key: one of KEYS. names: the keys that lead to the figure."""
    pairs = [pair for pair in result['pairs'] if key in ('mean', str(len(pair['parts'])))]
    value, *values = (reduce(getitem, names, holder) for holder in (result, *pairs))
    units = (result['images_sha256'], *(tuple(pair['classes']) for pair in pairs)) if pairs else None
    return Estimate(value[key], units, mean_terms(np.array(values, float)))  # None as NaN


def _with_draws(estimate, result, count, key):
    """An Estimate of the published protocol with the draws of its result; none for very many thresholds."""
    drawn = result['published_draws']
    if estimate.value is None or not drawn:
        return Estimate(estimate.value)
    units = (result['images_sha256'], *(tuple(pair['classes']) for pair in result['pairs']), drawn['pairs_sha256'])
    draws, number = from_text(drawn[count][key]), int(np.isfinite(estimate.terms[:, 0]).sum())
    # a draw has fewer different pairs, whose running sums mix less: the draws lie to one side of the value
    return Estimate(estimate.value, units, draws=draws - np.nanmean(draws) + estimate.value, number=number)


def _pixel_perturb(result):
    units, outcomes = (result['images_sha256'],), result['outcomes']
    fill = result['settings'].get('fill', 'zeros')
    columns = {'accuracy': Estimate(result['accuracy'], units, mean_terms(100 * from_digits(outcomes['intact'])))}
    for kind, side, key in (('', 'top', 'ratios'), ('coarse noise', 'coarse', 'coarse')):
        for name, record, percent in zip(ERASURES[fill, kind], result[key], PERCENTS, strict=True):
            terms = np.stack([from_digits(outcomes[order][percent]) for order in (side, 'random')], 1)
            columns[name] = Estimate(record['R'], units, terms)
    for name, key in ERASURES[fill, 'area'].items():
        terms = mean_terms(from_text(result['areas_by_image'][key]))
        columns[name] = Estimate(result['areas'][key][0], units, terms)
    return columns


def _grid(result):
    units = (result['images_sha256'], result['grids_sha256'])  # the same grids of the same images
    return {GRID: Estimate(result['share'][0], units, mean_terms(from_text(result['share_by_grid'])))}


def _wsol(result):
    figures = result['results']
    columns = {name: Estimate(figures[name]['test']) for name in WSOL if name in figures}
    outcomes = {name: from_digits(text) for name, text in result.get('outcomes', {}).items()}
    by_metric = {'MaxBoxAccV2': [hits for name, hits in outcomes.items() if '@' in name],  # one for each overlap
                 'MaxBoxAcc': [hits for name, hits in outcomes.items() if '@' not in name]}
    by_image = {column: 100 * np.mean(hits, 0) for column, hits in by_metric.items() if hits}
    by_image |= {column: from_text(result['mass_by_image']) for column in columns.keys() & MASSES}
    for column, values in by_image.items():
        columns[column] = columns[column]._replace(units=(result['images_sha256'],), terms=mean_terms(values))
    return columns
