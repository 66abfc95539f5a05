"""The tables of reproduce.py: the figures of our networks beside those of the paper, and whether they agree."""
from typing import NamedTuple

import numpy as np

from reports import columns, figures, intervals, paper
from reports.columns import COMPARED
from reports.table_files import Cell, Table


class MethodResult(NamedTuple):
    """The results of a method on a data set. method: (head, attribution method). estimates: {column: [Estimate of each
    network]}."""
    method: tuple
    estimates: dict

    def cell(self, column):
        """The mean over the networks, with its interval if all networks have the same images or class pairs."""
        estimates = self.estimates.get(column, ())
        values = [one.value for one in estimates]
        if not values or None in values:
            return None
        bounds = intervals.mean_interval(estimates)[1:] if intervals.are_paired(estimates) else ()
        return columns.cell(column, float(np.mean(values)), *bounds)

    def deviation(self, column):
        """The standard deviation over the networks, if there are several."""
        values = [one.value for one in self.estimates.get(column, ())]
        return Cell(float(np.std(values, ddof=1))) if len(values) > 1 and None not in values else None

    def difference(self, reference, column):
        """How far it is above a reference, with its interval if all networks have the same images. None for the
        reference itself, and where one of the two has no figure."""
        ours, theirs = self.cell(column), reference and reference.cell(column)
        if reference is self or ours is None or theirs is None:
            return None
        sides = self.estimates[column], reference.estimates[column]
        paired = intervals.are_paired(sum(sides, []))
        figures = intervals.mean_interval(*sides) if paired else (ours.value - theirs.value,)
        return columns.cell(column, *figures, sign='+')

    def name(self):
        return paper.name_of(*self.method)


def cam_of(results):
    """The MethodResult of CAM, with which the others are compared; None if it has none."""
    return next((row for row in results if row.method == ('CAM', 'vanilla')), None)


def verdict(row, reference, column=f'{COMPARED}: mean'):
    """Words: whether a method scores above or below CAM, as in the paper. row, reference: the MethodResults of the
    method and of CAM; None if CAM has no result."""
    if reference is None:
        return 'CAM has no result'
    if row.method == reference.method:
        return 'the reference'
    value, low, high = intervals.mean_interval(row.estimates[column], reference.estimates[column])
    expected = paper.PXAP[row.method][-1] > paper.PXAP[reference.method][-1]
    if low <= 0 <= high:
        return 'undecided: CAM lies within the interval'
    side = 'above' if value > 0 else 'below'
    return f'as in the paper: {side} CAM' if (value > 0) == expected else f'contrary to the paper: {side} CAM'


def cue_table(dataset, results):
    """The paper's table of cue localization, with ours. results: MethodResults."""
    results = [row for row in results if f'{COMPARED}: mean' in row.estimates]
    reference = cam_of(results)
    header = ['PxAP, %', *(f'paper: {key}' for key in paper.KEYS), *(f'published: {key}' for key in paper.KEYS),
              'published, all pixels: mean', *(f'{COMPARED}: {key}' for key in paper.KEYS), 'over seeds ±',
              f'{columns.EXACT}: mean', 'dropped true', 'dropped false', 'verdict']
    rows = []
    for row in results:
        words = verdict(row, reference)
        if dataset == 'CUB':
            away = np.mean([one.value for one in row.estimates['published: mean']]) - paper.PXAP[row.method][-1]
            words = f'{away:+.1f} from the paper; {words}'
        published, compared = ([row.cell(f'{count}: {key}') for key in paper.KEYS] for count in ('published', COMPARED))
        rows.append([row.name(), *map(Cell, paper.PXAP[row.method]),
                     *(cell and Cell(cell.value) for cell in published[:3]), published[3],
                     row.cell('published, all pixels: mean'),
                     *(cell and Cell(cell.value) for cell in compared[:3]), compared[3],
                     row.deviation(f'{COMPARED}: mean'), row.cell(f'{columns.EXACT}: mean'),
                     row.cell('dropped true'), row.cell('dropped false'), words])
    note = '' if dataset == 'CUB' else '; the paper has figures for CUB: compare only the order of the methods'
    return Table(f'Cue localization on {dataset}, by differing parts{note}', header, rows)


def ratio_table(dataset, results):
    """R_k of every method. The paper draws it and prints no numbers."""
    ratios = [f'R_{percent}' for percent in columns.PERCENTS]
    return Table(f'Remove-and-classify on {dataset}, R_k, lower is better; the paper has curves without numbers',
                 ['', *ratios], [[row.name(), *map(row.cell, ratios)]
                                 for row in results if ratios[0] in row.estimates])


def wsol_table(dataset, results):
    """Localization by CAM and CALM: MaxBoxAccV2, or PxAP where the truth is masks."""
    names = [name for name in columns.WSOL if any(name in row.estimates for row in results)]
    rows = [[row.name(), *map(row.cell, names), row.deviation(names[0]), row.difference(cam_of(results), names[0])]
            for row in results if row.estimates.keys() & names]
    header = ['', *names, 'over seeds ±', 'minus CAM']
    return Table(f"WSOL on {dataset}, %; the paper's figures are not at hand", header, rows)


def accuracy_table(dataset, results):
    """Accuracies beside the published ones."""
    rows = []
    for row in (row for row in results if row.method[1] in ('vanilla', 'jointll')):
        published, ours = paper.ACCURACY.get((row.method[0], dataset)), row.cell('accuracy')
        verdict = 'not published'
        if published is not None and ours is not None:
            inside = ours.low is not None and ours.low <= published <= ours.high
            verdict = 'as published, within the interval' if inside else f'{ours.value - published:+.1f}'
        rows.append([row.method[0], Cell(published), ours, row.deviation('accuracy'), verdict])
    return Table(f'Accuracy on {dataset}, %', ['', 'paper', 'ours', 'over seeds ±', 'verdict'], rows)


def draw_ratios(dataset, results, path):
    """The remove-and-classify figure of all methods."""
    curves = {}
    for row in results:
        cells = [row.cell(f'R_{percent}') for percent in columns.PERCENTS]
        if None not in cells:
            curves[row.name()] = [
                {'erased_percent': int(percent), 'R': cell.value, 'R_low': cell.low, 'R_high': cell.high}
                for percent, cell in zip(columns.PERCENTS, cells, strict=True)]
    figures.save(figures.ratio_curve(f'Remove-and-classify, {dataset}', curves), path)
