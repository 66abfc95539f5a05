"""Reports: what results say, each metric with its interval, and tables of means over networks.

Intervals are 95 % percentile bootstraps: over the test images for accuracy and R_k, over the class pairs for PxAP.
Differences are paired: both networks are measured on the same images (by a SHA-256 of their names, labels and
file sizes), drawn again together.
"""
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiment.result_files import from_digits, from_text
from reports import paper, table_files
from reports.table_files import Cell, Table
from wsol import metrics

SEED = 0  # of the bootstraps
ERASED = [str(round(100 * ratio)) for ratio in metrics.ERASE_RATIOS]
PXAP = {  # topic -> truth, count: where a result has its figures
    'published': ('parts', 'published'), 'published counted': ('parts', 'published, all pixels'),
    'alone dropped': ('parts', 'per pair'), 'corrected': ('parts', 'per pair, all pixels'),
    'exact': ('exact', 'per pair, all pixels')}
WSOL = {'MaxBoxAccV2': 'MaxBoxAccV2', 'MaxBoxAcc': 'MaxBoxAcc', 'Top-1 Loc': 'Top-1 Loc', 'mask PxAP': 'PxAP'}
INTERVENTIONS = {'PxAP exact': 'pxap', 'rank corr.': 'rank', 'mass on cue': 'share', 'sign': 'sign', 'slope': 'slope',
                 'error': 'error', 'deletion corr.': 'deletion', 'on distractors': 'distractors'}
TOPICS = {  # title -> {column: its name within the table}
    'Accuracy, %': {'accuracy': 'accuracy'},
    **{title: {f'{topic} {key}': key for key in paper.KEYS} for topic, title in (
        ('published', 'Cue localization, published protocol: PxAP, %, by differing parts'),
        ('published counted', 'Cue localization, published, but all pixels counted: PxAP, %, by differing parts'),
        ('alone dropped', 'Cue localization, each pair alone, lowest pixels dropped: PxAP, %, by differing parts'),
        ('corrected', 'Cue localization, corrected: PxAP, %, by differing parts'),
        ('exact', 'Cue localization, exact part masks: PxAP, %, by differing parts'))},
    'Pixels that the published protocol drops, %': {'dropped true': 'true', 'dropped false': 'false'},
    'Remove-and-classify: R_k, lower is better': {f'R_{percent}': f'R_{percent}' for percent in ERASED},
    'Localization (WSOL), %': {name: name for name in WSOL},
    'Interventions': {name: name for name in (*INTERVENTIONS, 'turns', 'distractors', 'questions')},
}
DECIMALS = dict.fromkeys([*(f'R_{percent}' for percent in ERASED), 'rank corr.', 'slope', 'error',
                          'deletion corr.', 'on distractors'], 2)
DECIMALS['questions'] = 0
# of a difference of means: what its interval is over -> what the line says
INTERVALS = {'units': '', 'both': ', other trainings too', 'trainings': ', trainings alone'}
SUMMARY = ('accuracy', 'published mean', 'published counted mean', 'dropped true', 'dropped false',
           'alone dropped mean', 'corrected 1', 'corrected 2', 'corrected 3', 'corrected mean')
SUMMARISED = 'corrected mean'  # what the summary compares with the first row's


# --- samples ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A metric as a ratio of two sums over units, images or class pairs: above (U,) and below (U,).

    units: what they are; samples of equal units can be paired. A unit without a value is NaN above.
    """
    units: tuple
    above: np.ndarray
    below: np.ndarray

    def value(self):
        return float(metrics.ratio(np.nansum(self.above), self.below[np.isfinite(self.above)].sum()))

    def interval(self):
        """(low, high) over the units drawn again; None, None of one alone."""
        there = np.isfinite(self.above)
        if there.sum() < 2:
            return None, None
        above, below = metrics.bootstrap_sums(np.stack([self.above, self.below], 1)[there], SEED).T
        return metrics.interval(metrics.ratio(above, below))

    def difference(self, other):
        """(value, low, high) of this less the other, over the same units drawn again for both."""
        return mean_difference([self], [other])


@dataclass(frozen=True)
class Drawn:
    """A metric that is no ratio of sums over units: its value, and its values over the units drawn again, (draws,).

    units: what they are, and which of them were drawn; those of equal units can be paired. number: of the units that
    have a part in it.
    """
    units: tuple
    number: int
    of_all: float
    draws: np.ndarray

    def value(self):
        return self.of_all

    def interval(self):
        """(low, high) over the units drawn again; None, None of one alone."""
        return metrics.interval(self.draws) if self.number > 1 else (None, None)

    def difference(self, other):
        """(value, low, high) of this less the other, over the same units drawn again for both."""
        return mean_difference([self], [other])


def mean_difference(samples, others):
    """(value, low, high) of the mean of several values less that of others', all Samples or all Drawn, of the same
    units, which are drawn again for all together. One unit alone has no interval. Raises ValueError for other units."""
    value, draws, units = _difference_of_draws(samples, others)
    return value, *(metrics.interval(draws) if units > 1 else (None, None))


def _difference_of_draws(samples, others):
    """The difference of mean_difference, that of every draw, (draws,), and the number of units that all have."""
    if len({own.units for own in (*samples, *others)}) > 1:
        raise ValueError('samples of different units are not paired')
    if isinstance(samples[0], Drawn):
        own, less = pooled(samples), pooled(others)
        return own.of_all - less.of_all, own.draws - less.draws, own.number
    columns = np.stack([side for own in (*samples, *others) for side in (own.above, own.below)], 1)  # (U,2S)
    columns = columns[np.isfinite(columns).all(1)]

    def difference(sums):
        ratios = metrics.ratio(sums[..., 0::2], sums[..., 1::2])
        return ratios[..., :len(samples)].mean(-1) - ratios[..., len(samples):].mean(-1)
    return float(difference(columns.sum(0))), difference(metrics.bootstrap_sums(columns, SEED)), len(columns)


def difference_with_trainings(own, others):
    """(value, low, high) of the mean of several networks' figures less that of others', with an interval that is meant
    to cover other trainings and, where the figures have samples, other units. own, others: two or more Measured each.

    Its variance is the sum of that over the units, drawn again, and that of either mean over its networks, all of
    which are taken as independent. What units and networks vary together is counted twice, which widens it. Of two
    networks it may be too narrow. One unit alone has none, nor have figures that do not vary.
    """
    sides = [[figure.value for figure in side] for side in (own, others)]
    variances = [(np.var(values, ddof=1) / len(values), len(values) - 1) for values in sides]
    value = float(np.subtract(*map(np.mean, sides)))
    if own[0].sample:
        value, draws, units = _difference_of_draws(*([figure.sample for figure in side] for side in (own, others)))
        if units < 2 or not np.isfinite(draws).any():
            return value, None, None
        variances.append((np.nanvar(draws) * units / (units - 1), units - 1))
    half = metrics.half_width(variances)
    return (value, None, None) if half is None else (value, value - half, value + half)


def pooled(samples):
    """One Sample, or Drawn, of several of the same units, as of networks trained with several seeds."""
    if isinstance(samples[0], Drawn):
        return Drawn(samples[0].units, samples[0].number, float(np.mean([own.of_all for own in samples])),
                     np.mean([own.draws for own in samples], 0))
    above, below = (np.mean([getattr(own, side) for own in samples], 0) for side in ('above', 'below'))
    return Sample(samples[0].units, above, below)


class Measured(NamedTuple):
    """A figure, what its interval is drawn from, or the interval that the result has."""
    value: float | None
    sample: Sample | Drawn | None = None
    bounds: tuple = (None, None)

    def cell(self, column):
        return Cell(self.value, *(self.sample.interval() if self.sample else self.bounds), DECIMALS.get(column, 1))


def measured(result):
    """{column: Measured} of a result's content."""
    read = {'cue_location': _cue_location, 'pixel_perturb': _pixel_perturb, 'wsol': _wsol, 'accuracy': _accuracy}
    return read.get(result.get('metric'), lambda _: {})(result)


def intervened(result):
    """{contrast: {column: Measured}} of a result of interventions."""
    def figure(value, *bounds):
        return Measured(value, bounds=bounds)
    network = {'turns': figure(*result['network']['turns'])}  # of the network, whatever the contrast
    if 'shapes_that_distract' in result['network']:
        network['distractors'] = figure(result['network']['shapes_that_distract'])
    return {name: {column: figure(*own[key]) for column, key in INTERVENTIONS.items() if key in own}
            | network | {'questions': Measured(own['questions'])} for name, own in result['methods'].items()}


def _cue_location(result):
    columns = {}
    for topic, (truth, count) in PXAP.items():
        if truth not in result['pxap']:
            continue
        for key in paper.KEYS:
            pairs = [pair for pair in result['pairs'] if key in ('mean', str(len(pair['parts'])))]
            values = [pair['pxap'][truth][count] for pair in pairs]
            values = np.array([np.nan if value is None else value for value in values])
            value = result['pxap'][truth][count][key]
            if count.startswith('per pair'):
                units = (result['images_sha256'], *(tuple(pair['classes']) for pair in pairs))
                sample = Sample(units, values, np.ones(len(values))) if len(values) else None
            else:
                sample = _drawn(result, value, count, key, int(np.isfinite(values).sum()))
            columns[f'{topic} {key}'] = Measured(value, sample)
    dropped = result.get('dropped', {}).get('parts', {})
    return columns | {f'dropped {side}': Measured(dropped[side]) for side in ('true', 'false') if side in dropped}


def _drawn(result, value, count, key, number):
    """The Drawn of a figure of the published protocol, of so many pairs; None where it has no value, or the result no
    draws."""
    drawn = result.get('published_draws')
    if value is None or not drawn:
        return None
    units = (result['images_sha256'], *(tuple(pair['classes']) for pair in result['pairs']), drawn['pairs_sha256'])
    draws = from_text(drawn[count][key])
    # pairs drawn again are fewer different ones, whose running sums mix less: the draws lie to one side of the value
    return Drawn(units, number, value, draws - np.nanmean(draws) + value)


def _pixel_perturb(result):
    units, outcomes = (result['images_sha256'],), result.get('outcomes')
    columns = {f'R_{record["erased_percent"]}': Measured(record['R'], bounds=(record['R_low'], record['R_high']))
               for record in result['ratios']} | _accuracy(result)
    if outcomes:
        intact = from_digits(outcomes['intact'])
        columns['accuracy'] = Measured(result['accuracy'], Sample(units, 100 * intact, np.ones(len(intact))))
        for percent in ERASED:
            top, random = (from_digits(outcomes[name][percent]) for name in ('top', 'random'))
            columns[f'R_{percent}'] = Measured(columns[f'R_{percent}'].value, Sample(units, top, random))
    return columns


def _wsol(result):
    columns = {column: Measured(result['results'][name]['test']) for column, name in WSOL.items()
               if name in result['results']}
    outcomes = {name: from_digits(text) for name, text in result.get('outcomes', {}).items()}
    groups = {'MaxBoxAccV2': [own for name, own in outcomes.items() if '@' in name],
              'MaxBoxAcc': [own for name, own in outcomes.items() if '@' not in name]}
    for column, rows in groups.items():
        if rows:
            sample = Sample((result['images_sha256'],), 100 * np.mean(rows, 0), np.ones(len(rows[0])))
            columns[column] = Measured(columns[column].value, sample)
    return columns


def _accuracy(result):
    return {'accuracy': Measured(result.get('test_accuracy', result.get('accuracy')))}


# --- means over networks ------------------------------------------------------------------------------


def over_networks(rows):
    """[Table], topic by topic, of mean and standard deviation over networks of one name, as trained with several seeds,
    and measured on the same images; [] where no two have one. Below them how the mean differs from that of the first
    row's name, with its intervals. rows: compare.py's; of an experiment's several checkpoints the first."""
    (groups, first), tables = _by_name(rows), []
    groups = {name: own for name, own in groups.items() if len(own) > 1}
    for title, columns in TOPICS.items():
        lines = [[name, str(len(own)), *(_mean(own, column) for column in columns)] for name, own in groups.items()]
        others = [(name, own) for name, own in groups.items() if first in groups and name != first]
        lines += [[f'{name} − {first}{said}', '', *(_less(own, groups[first], column, kind) for column in columns)]
                  for name, own in others for kind, said in INTERVALS.items()]
        lines = [line for line in lines if any(line[2:])]
        if lines:
            tables.append(Table(f'{title}; mean ± standard deviation', ['', 'networks', *columns.values()], lines))
    return tables


def summary(rows):
    """[Table] of cue localization, a line for each name, that of the first row before the others: every count, as the
    mean over its networks, and how the corrected mean differs from the first. [] where it was not measured."""
    groups, first = _by_name(rows)
    groups = {name: groups[name] for name in dict.fromkeys([first, *groups])}
    lines = [[name, str(len(own)), *(_mean(own, column) for column in SUMMARY),
              *((None, None) if name == first else
                (_less(own, groups[first], SUMMARISED, 'units'), _less(own, groups[first], SUMMARISED, 'both')))]
             for name, own in groups.items() if _mean(own, SUMMARISED) is not None]
    title = f'Summary of cue localization: PxAP, %; the last two columns are {SUMMARISED} − that of {first}'
    header = ['', 'networks', *SUMMARY, 'difference', INTERVALS['both'].strip(', ')]
    return [Table(title, header, lines)] if lines else []


def _by_name(rows):
    """{name: rows of its networks}, and the name of the first row's."""
    by_key = {}
    for row in rows:
        key = f'{Path(row.experiment).name}: {row.method}', row.about.get('dataset'), row.about.get('images_sha256')
        by_key.setdefault(key, {}).setdefault(row.experiment, row)
    many = Counter(name for name, *_ in by_key)
    groups = {name if many[name] == 1 else f'{name}, {dataset}, images {str(images):.8}': list(own.values())
              for (name, dataset, images), own in by_key.items()}
    return groups, next(name for name, own in groups.items() if any(row is rows[0] for row in own))


def _mean(own, column):
    """The text of a mean over networks, of one its figure; None where one has none."""
    values = [row.columns[column].value if column in row.columns else None for row in own]
    return None if None in values else table_files.mean_and_deviation(values, DECIMALS.get(column, 1))


def _less(own, reference, column, kind):
    """The Cell of a difference of means with one of INTERVALS; None where there is none of that kind."""
    measured = [[row.columns.get(column) for row in part] for part in (own, reference)]
    if kind != 'units' and (min(len(own), len(reference)) < 2
                            or any(figure is None or figure.value is None for figure in sum(measured, []))):
        return None
    samples = [[figure and figure.sample for figure in part] for part in measured]
    units = {sample and sample.units for sample in sum(samples, [])}
    if kind == 'trainings':
        images = {(row.about.get('dataset'), row.about.get('images_sha256')) for row in (own[0], reference[0])}
        if len(units) == 1 and None not in units or len(images) > 1:
            return None
        measured = [[figure._replace(sample=None) for figure in part] for part in measured]  # some may have one
    elif len(units) > 1 or None in units:
        return None
    found = mean_difference(*samples) if kind == 'units' else difference_with_trainings(*measured)
    return None if kind != 'units' and found[1] is None else Cell(*found, DECIMALS.get(column, 1), '+')


# --- curves -------------------------------------------------------------------------------------------


def precision_band(result):
    """(recalls, mean precision, low, high), in percent and (R,) each, over the class pairs of a cue_location result."""
    values = np.array([from_text(pair['precision']) for pair in result['pairs']])  # (P,R)
    values = values[np.isfinite(values).all(1)]
    draws = metrics.bootstrap_sums(values, SEED) / len(values)  # (draws,R)
    return from_text(result['recalls']), values.mean(0), *np.array(
        [metrics.interval(column) for column in draws.T]).T
