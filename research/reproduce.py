"""The paper's cue localization, remove-and-classify and accuracies, run again and set beside the paper.

Prints the plan: each step, the data and weights that it needs, what of them is missing, the command that gets it, and
estimated hours. Then it runs what can be run, which is not run again where it is done, and prints the published figure,
ours under the published protocol, ours per pair with all pixels, with their intervals, the
shares of the pixels that the published protocol drops, and a verdict. Flags of main.py, such as --device, go behind its
own.
Source: Kim et al., ICCV 2021 (paper.py). --dataset=ToyBirds does all of it on painted birds, without any download.
Result: <save_root>/reproduce/<data set>/tables.md, tables.csv, tables.tex and ratios.png.

    python -m research.reproduce --plan
    python -m research.reproduce --dataset=ToyBirds --seeds=3
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np

import config
from dataset.registry import DATASETS
from reports import columns, figures, intervals, paper, table_files
from reports.columns import COMPARED
from reports.table_files import Cell, Table
from research import commands, plan
from runtime import command_line, screen
from wsol.errors import UserError

OWN = ('dataset', 'experiment_name', 'save_root', 'seed', 'attribution_method', 'load_checkpoint', 'score_map_process')


# --- the plan -----------------------------------------------------------------------------------------


def plan_table(dataset, steps, args, flags):
    """The plan of a data set as a Table, the seeds together."""
    rows = {}
    for step in steps:
        rows.setdefault(step.title(), []).append(step)
    lines = []
    for title, own in rows.items():
        done, missing = sum(step.is_done() for step in own), dict(plan.lacks(own[0], args))
        left = sum(plan.operations(step, flags) for step in own if not step.is_done())
        state = f'{done} of {len(own)} done' if done or not missing else f'missing: {", ".join(missing)}'
        hours = [Cell(left / speed / 3600, decimals=2) for speed in plan.SPEEDS.values()]
        memory = '-' if own[0].metric else Cell(plan.training_memory((*own[0].network.training, *flags)) / 1e9)
        lines.append([title, len(own), state, *hours, memory])
    header = ['step', 'networks', 'state', *(f'hours left, {kind}' for kind in plan.SPEEDS), 'memory, GB']
    return Table(f'The plan: {dataset}', header, lines)


def print_plan(steps_by_dataset, args, flags):
    """The plan, what is missing, and how to get it."""
    tables = [plan_table(dataset, steps, args, flags) for dataset, steps in steps_by_dataset.items()]
    screen.say('\n' + table_files.as_text(tables))
    screen.say(f'Hours are estimated from operation counts, for a GPU at {plan.SPEEDS["GPU"] / 1e12:g} and a CPU at '
             f'{plan.SPEEDS["CPU"] / 1e12:g} tera-operations a second, both round figures; loading is not counted. '
             'Memory is what a training in bfloat16 keeps: of a batch, the weights, and their momenta.')
    missing = {}
    for step in (step for steps in steps_by_dataset.values() for step in steps if not step.is_done()):
        for what, command in plan.lacks(step, args):
            missing.setdefault(command, {})[what] = None
    for command, what in missing.items():
        screen.say(f'missing: {", ".join(what)}. To get it: {command}')


# --- the results --------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What was measured of a method on a data set: {column: [Estimate of each network]}."""
    method: tuple
    estimates: dict

    def cell(self, column):
        """The mean over the networks, with its interval over images or class pairs where they have the same."""
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


def find_results(networks):
    """[Found] of the methods that were measured."""
    found = []
    for head, process in plan.methods_of(networks[0].dataset):
        estimates = {}
        for network in (network for network in networks if network.name == head):
            for metric in plan.NAMES:
                for column, estimate in columns.read_estimates(network.result(metric, process) or {}).items():
                    estimates.setdefault(column, []).append(estimate)
        if estimates:
            found.append(Found((head, process), estimates))
    return found


def verdict(dataset, found, reference):
    """In words: on the paper's own data how far the published protocol's mean is from the paper's, then the order."""
    order = order_verdict(found, reference, f'{COMPARED}: mean') if reference else 'CAM is not measured'
    away = np.mean([one.value for one in found.estimates['published: mean']]) - paper.PXAP[found.method][-1]
    return f'{away:+.1f} from the paper; {order}' if dataset == 'CUB' else order


def order_verdict(found, reference, column):
    """Does a method lie on the side of CAM on which it is in the paper? In words."""
    if found.method == reference.method:
        return 'the reference'
    value, low, high = intervals.mean_interval(found.estimates[column], reference.estimates[column])
    expected = paper.PXAP[found.method][-1] > paper.PXAP[reference.method][-1]
    if low <= 0 <= high:
        return 'undecided: CAM lies within the interval'
    side = 'above' if value > 0 else 'below'
    return f'as in the paper: {side} CAM' if (value > 0) == expected else f'contrary to the paper: {side} CAM'


def cue_table(dataset, found):
    """The paper's table of cue localization, with ours."""
    found = [own for own in found if f'{COMPARED}: mean' in own.estimates]
    reference = next((own for own in found if own.method == ('CAM', 'vanilla')), None)
    header = ['PxAP, %', *(f'paper: {key}' for key in paper.KEYS), *(f'published: {key}' for key in paper.KEYS),
              'published, all pixels: mean', *(f'{COMPARED}: {key}' for key in paper.KEYS), 'over seeds ±',
              f'{columns.EXACT}: mean',
              'dropped true', 'dropped false', 'verdict']
    rows = []
    for own in found:
        published, compared = ([own.cell(f'{count}: {key}') for key in paper.KEYS] for count in ('published', COMPARED))
        rows.append([paper.METHODS[own.method], *map(Cell, paper.PXAP[own.method]),
                     *(cell and Cell(cell.value) for cell in published[:3]), published[3],
                     own.cell('published, all pixels: mean'),
                     *(cell and Cell(cell.value) for cell in compared[:3]), compared[3],
                     own.deviation(f'{COMPARED}: mean'), own.cell(f'{columns.EXACT}: mean'),
                     own.cell('dropped true'), own.cell('dropped false'), verdict(dataset, own, reference)])
    note = '' if dataset == 'CUB' else '; the paper is of CUB: its order of the methods alone can be compared'
    return Table(f'Cue localization on {dataset}, by differing parts{note}', header, rows)


def ratio_table(dataset, found):
    """R_k of every method. The paper draws it and prints no numbers."""
    ratios = [f'R_{percent}' for percent in columns.PERCENTS]
    return Table(f'Remove-and-classify on {dataset}, R_k, lower is better; the paper has curves without numbers',
                 ['', *ratios], [[paper.METHODS[own.method], *map(own.cell, ratios)] for own in found])


def accuracy_table(dataset, found):
    """Accuracies beside the published ones."""
    rows = []
    for own in (own for own in found if own.method[1] in ('vanilla', 'jointll')):
        published, ours = paper.ACCURACY.get((own.method[0], dataset)), own.cell('accuracy')
        verdict = 'not published'
        if published is not None and ours is not None:
            inside = ours.low is not None and ours.low <= published <= ours.high
            verdict = 'as published, within the interval' if inside else f'{ours.value - published:+.1f}'
        rows.append([own.method[0], Cell(published), ours, own.deviation('accuracy'), verdict])
    return Table(f'Accuracy on {dataset}, %', ['', 'paper', 'ours', 'over seeds ±', 'verdict'], rows)


def draw_ratios(dataset, found, path):
    """The remove-and-classify figure of all methods."""
    curves = {}
    for own in found:
        cells = [own.cell(f'R_{percent}') for percent in columns.PERCENTS]
        if None not in cells:
            curves[paper.METHODS[own.method]] = [
                {'erased_percent': int(percent), 'R': cell.value, 'R_low': cell.low, 'R_high': cell.high}
                for percent, cell in zip(columns.PERCENTS, cells, strict=True)]
    figures.save(figures.ratio_curve(f'Remove-and-classify, {dataset}', curves), path)


def report(dataset, networks, root):
    """Print and write what is there of a data set."""
    found = find_results(networks)
    if not found:
        return
    tables = [table for table in (cue_table(dataset, found), ratio_table(dataset, found),
                                  accuracy_table(dataset, found)) if table.rows]
    written = table_files.write_tables(root / dataset / 'tables', tables, table_files.FORMATS)
    draw_ratios(dataset, found, root / dataset / 'ratios.png')
    screen.say(f'\n{table_files.as_text(tables)}\n{", ".join(map(str, [*written, root / dataset / "ratios.png"]))}')


def refuse_other_settings(steps, flags):
    """Raise UserError where a training is done that had other settings than these flags: its figures would pass for
    those that are asked for."""
    for step in steps:
        changed = step.changed_settings(flags) if not step.metric and step.is_done() else []
        if changed:
            raise UserError(f'{step.network.folder / step.network.name} was trained with other settings '
                            f'({"; ".join(changed)}). State these again, or choose another --save_root')


# --- the command --------------------------------------------------------------------------------------


def make_parser():
    def names(text):
        return text if text == 'all' else command_line.choice(tuple(DATASETS))(config.DATASET(text))
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('--dataset', type=names, default='all', metavar='NAME',
                        help="CUB, ILSVRC, OpenImages, ToyBirds, or all: the paper's three (default: all)")
    parser.add_argument('--seeds', type=command_line.COUNT, default=None, metavar='N',
                        help='trainings of each network (default: 3 on ToyBirds, else 1)')
    parser.add_argument('--train', action='store_true', help='train CALM too, where the authors publish its weights')
    parser.add_argument('--plan', action='store_true', help='print the plan alone')
    parser.add_argument('--save_root', default='save', metavar='FOLDER', help='results go to <save_root>/reproduce')
    return parser


def main():
    args, flags = make_parser().parse_known_args()
    more = commands.parse('main', flags)
    taken = sorted(set(OWN) & set(more.given))
    if taken:
        raise UserError(f'--{taken[0]} is what reproduce.py chooses itself: leave it out')
    if more.override_cache:
        raise UserError('--override_cache: reproduce.py does nothing again that is done; choose another --save_root')
    datasets = ('CUB', 'ILSVRC', 'OpenImages') if args.dataset == 'all' else (args.dataset,)
    root = Path(args.save_root) / 'reproduce'
    networks = {dataset: plan.networks_of(dataset, args.seeds or (3 if dataset == 'ToyBirds' else 1), root, args.train,
                                          flags) for dataset in datasets}
    steps = {dataset: plan.steps_of(own) for dataset, own in networks.items()}
    refuse_other_settings(sum(steps.values(), []), flags)
    print_plan(steps, more, flags)
    if args.plan:
        return
    failed, left = [], []
    for step in (step for own in steps.values() for step in own if not step.is_done()):
        if plan.lacks(step, more) or step.metric and not step.network.published and not step.network.weights_sha256():
            left.append(step.title())
            continue
        try:
            step.run(flags)
        except UserError as error:
            failed.append(f'{step.title()} ({error})')
            screen.warn(failed[-1])
    for dataset, own in networks.items():
        report(dataset, own, root)
    if left:
        screen.say(f'\n{len(left)} steps wait for what is missing; the same command goes on with them')
    if failed:
        raise UserError(f'{len(failed)} steps failed: {"; ".join(failed)}')


if __name__ == '__main__':
    screen.run(main)
