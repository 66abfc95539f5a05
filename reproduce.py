"""The paper's cue localization, remove-and-classify and accuracies, run again and set beside the paper.

Prints the plan: each step, the data and weights that it needs, what of them is missing, the command that gets it, and
estimated hours. Then it runs what can be run, which is not run again where it is done, and prints the published figure,
ours under the published protocol, ours corrected (each pair alone, all pixels counted) with its interval, the shares
of the pixels that the published protocol drops, and a verdict. Flags of main.py, such as --device, go behind its own.
Source: Kim et al., ICCV 2021 (paper.py). --dataset=ToyBirds does all of it on painted birds, without any download.
Result: <save_root>/reproduce/<data set>/tables.md, tables.csv, tables.tex and ratios.png.

    python reproduce.py --plan
    python reproduce.py --dataset=ToyBirds --seeds=3
"""
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import config
import evaluation
import experiments
import figures
import paper
import reports
import util
import weights
from data_loaders import find_dataset
from reports import Cell, Table
from util import UserError
from wsol import build_model
from wsol._torchvision import torchvision
from wsol.shapes import shapes_only

IMAGES = {'CUB': (5994, 1000, 5794), 'ILSVRC': (1_281_167, 10_000, 50_000), 'OpenImages': (29_819, 2_500, 5_000),
          'ToyBirds': (720, 144, 360)}  # train, val, test
CUES = {'CUB': (2579, 11_039), 'ToyBirds': (360, 1280)}  # images of cue localization, their class pairs all together
COST = {'backprop': (1, 1), 'integrated_grad': (51, 51), 'smooth_grad': (50, 50), 'var_grad': (50, 50),
        'vanilla': (1, 0), 'jointll': (1, 0)}  # forwards for an image, backwards for an image and a class
SPEEDS = {'GPU': 20e12, 'CPU': 0.2e12}  # operations a second that the estimates assume
NAMES = {'cue_location': 'cue localization', 'pixel_perturb': 'remove-and-classify'}
OWN = ('dataset', 'experiment_name', 'save_root', 'seed', 'attribution_method', 'load_checkpoint', 'score_map_process')


@dataclass(frozen=True)
class Network:
    """A network of the plan: trained by main.py with these flags, or published."""
    dataset: str
    head: str
    name: str                # of its experiment
    folder: Path             # above its experiment's
    training: tuple = ()     # flags of main.py; none for published weights
    published: str | None = None

    def weights_sha256(self):
        """Of the weights that are there; None where there are none."""
        path = self.published and weights.published_file(self.published)
        if path:
            return _sha256(path) if path.is_file() else None
        return evaluation.read_result(self.folder / self.name / 'results.json').get('weights_sha256')

    def result(self, metric, process):
        """What was measured of it; None where that is not done."""
        sha256 = self.weights_sha256()
        try:
            return sha256 and evaluation.find_result(self.folder / self.name, metric, process, sha256)
        except UserError:
            return None


@cache
def _sha256(path):
    return weights.read_checkpoint(path).sha256


class Step(NamedTuple):
    """A training, or where metric is given a measurement, of a network."""
    network: Network
    metric: str | None = None
    process: str | None = None

    def title(self):
        method = paper.METHODS.get((self.network.head, self.process))
        return f'{NAMES[self.metric]}: {method}' if self.metric else f'train {self.network.name}'

    def is_done(self):
        if self.metric:
            return self.network.result(self.metric, self.process) is not None
        return experiments.is_trained(self.network.folder, self.network.name)

    def run(self, flags):
        network = self.network
        if not self.metric:
            experiments.train(network.folder, network.name, *network.training, *flags)
            return
        source = [f'--load_checkpoint={network.published}'] if network.published else []
        experiments.run(network.folder, f'eval_{self.metric}.py', f'--experiment_name={network.name}', *source,
                        f'--score_map_process={self.process}', *flags)


# --- the plan -----------------------------------------------------------------------------------------


def networks_of(dataset, seeds, root, trains_all):
    """The Networks of a data set. trains_all: CALM's too, where the authors publish its weights."""
    found = []
    for seed in range(seeds):
        folder, common = root / dataset / f'seed{seed}', [f'--seed={seed}', f'--dataset={dataset}']
        if dataset == 'ToyBirds':
            common = [*experiments.TRAIN, '--last_stage=layer2', f'--seed={seed}']
            found.append(Network(dataset, 'CAM', 'start', folder, (
                *common, '--attribution_method=CAM', *experiments.FROM_RANDOM)))
            common += ['--load_checkpoint=start', *experiments.FINE_TUNE]
        else:
            common += ['--architecture=resnet50', '--use_bn=True', '--large_feature_map=True']
        for head in dict.fromkeys(head for head, _ in methods_of(dataset)):
            published = weights.published_name(f'{head}-{dataset}')
            if published and not trains_all:
                found += [Network(dataset, head, head, folder, published=published)] if seed == 0 else []
            else:
                found.append(Network(dataset, head, head, folder, (*common, f'--attribution_method={head}')))
    return found


def methods_of(dataset):
    """The (head, process) of a data set's tables: of CUB and ToyBirds the paper's table, of others CALM's own maps."""
    return [method for method in paper.METHODS if dataset in CUES or (method[0], dataset) in paper.ACCURACY]


def steps_of(networks):
    """The Steps, network by network."""
    steps = []
    for network in networks:
        if network.training:
            steps.append(Step(network))
        metrics_of = ('pixel_perturb', 'cue_location') if network.dataset in CUES else ('pixel_perturb',)
        steps += [Step(network, metric, process) for head, process in methods_of(network.dataset)
                  if head == network.head == network.name for metric in metrics_of]
    return steps


def lacks(step, flags):
    """[(what a step needs and is not there, the command that gets it)]. flags: config.parse's."""
    network, missing = step.network, []
    data = find_dataset(network.dataset, flags.data_root, flags.metadata_root)
    if network.dataset != 'ToyBirds':  # which is painted when it is opened
        for split in ('test',) if step.metric else ('train', 'val', 'test'):
            if not ((data.list_folders[split] / 'image_ids.txt').is_file() and data.image_folders[split].is_dir()):
                missing.append((f'{network.dataset} {split}', data.prepare[split]))
        folders = [data.cub_root / name for name in ('attributes', 'parts', 'segmentations')] if data.cub_root else []
        if step.metric == 'cue_location' and not all(folder.is_dir() for folder in folders):
            missing.append((f'{network.dataset} parts, attributes and segmentations', data.prepare['test']))
    if network.published and not weights.published_file(network.published).is_file():
        missing.append((f'weights {network.published}',
                        f'python main.py --is_train=False --load_checkpoint={network.published}'))
    if '--pretrained=False' not in network.training and not step.metric and not _backbone().is_file():
        missing.append(("ImageNet's weights of ResNet-50", f'download {_backbone_url()} to {_backbone().parent}'))
    return missing


def _backbone_url():
    return torchvision.models.get_model_weights('resnet50').IMAGENET1K_V1.url


def _backbone():
    return Path(torch.hub.get_dir()) / 'checkpoints' / Path(_backbone_url()).name


@cache
def forward_operations(training):
    """(multiplications and additions of one forward of a network, counted on shapes alone; epochs). training: flags of
    main.py."""
    args = config.parse('main', argv=list(training))
    counter = FlopCounterMode(display=False)
    model = build_model(**config.network_settings(args), num_classes=200).eval()
    with shapes_only(), counter:
        model(torch.zeros(1, 3, args.crop_size, args.crop_size))
    return counter.get_total_flops(), args.epochs


def operations(step, flags):
    """What a step costs: a backward counts as two forwards. flags: those that go behind the step's own."""
    network = step.network
    published = ('--large_feature_map', f'--attribution_method={network.head}')
    forward, epochs = forward_operations((*(network.training or published), *flags))
    train, val, test = IMAGES[network.dataset]
    if not step.metric:
        return forward * (epochs * (3 * train + val) + val + test)
    forwards, backwards = COST[step.process]
    if step.metric == 'pixel_perturb':
        return forward * test * (forwards + 2 * backwards + 2 * len(reports.ERASED))
    images, pairs = CUES[network.dataset]
    return forward * (images * forwards + 2 * backwards * (images + pairs))


def plan_table(dataset, steps, args, flags):
    """The plan of a data set as a Table, the seeds together."""
    rows = {}
    for step in steps:
        rows.setdefault(step.title(), []).append(step)
    lines = []
    for title, own in rows.items():
        done, missing = sum(step.is_done() for step in own), dict(lacks(own[0], args))
        left = sum(operations(step, flags) for step in own if not step.is_done())
        state = f'{done} of {len(own)} done' if done or not missing else f'missing: {", ".join(missing)}'
        lines.append([title, len(own), state, *(Cell(left / speed / 3600, decimals=2) for speed in SPEEDS.values())])
    return Table(f'The plan: {dataset}', ['step', 'networks', 'state', *(f'hours left, {kind}' for kind in SPEEDS)],
                 lines)


def print_plan(steps_by_dataset, args, flags):
    """The plan, what is missing, and how to get it."""
    tables = [plan_table(dataset, steps, args, flags) for dataset, steps in steps_by_dataset.items()]
    util.say('\n' + reports.as_text(tables))
    util.say(f'Hours are estimated from operation counts, for a GPU at {SPEEDS["GPU"] / 1e12:g} and a CPU at '
          f'{SPEEDS["CPU"] / 1e12:g} tera-operations a second, both round figures; loading is not counted.')
    missing = {}
    for step in (step for steps in steps_by_dataset.values() for step in steps if not step.is_done()):
        for what, command in lacks(step, args):
            missing.setdefault(command, {})[what] = None
    for command, what in missing.items():
        util.say(f'missing: {", ".join(what)}. To get it: {command}')


# --- the results --------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What was measured of a method on a data set, over its networks: {column: [Measured of each]}."""
    method: tuple
    columns: dict

    def cell(self, column):
        """Of all networks together: with its interval where there is a sample, else the mean."""
        own, decimals = self.columns.get(column, ()), reports.DECIMALS.get(column, 1)
        if own and own[0].sample:
            return Cell(self.sample(column).value(), *self.sample(column).interval(), decimals)
        return Cell(float(np.mean([one.value for one in own])), decimals=decimals) if own and None not in [
            one.value for one in own] else None

    def deviation(self, column):
        """The standard deviation over the networks, of several."""
        values = [one.value for one in self.columns.get(column, ())]
        return Cell(float(np.std(values, ddof=1))) if len(values) > 1 and None not in values else None

    def sample(self, column):
        """The pooled Sample of all networks."""
        return reports.pooled([one.sample for one in self.columns[column]])


def find_results(networks):
    """[Found] of the methods that were measured."""
    found = []
    for head, process in methods_of(networks[0].dataset):
        columns = {}
        for network in (network for network in networks if network.name == head):
            for metric in NAMES:
                for column, measured in reports.measured(network.result(metric, process) or {}).items():
                    columns.setdefault(column, []).append(measured)
        if columns:
            found.append(Found((head, process), columns))
    return found


def verdict(dataset, found, reference):
    """In words: on the paper's own data how far the published protocol's mean is from the paper's, then the order."""
    order = order_verdict(found, reference, 'corrected mean') if reference else 'CAM is not measured'
    away = np.mean([one.value for one in found.columns['published mean']]) - paper.PXAP[found.method][-1]
    return f'{away:+.1f} from the paper; {order}' if dataset == 'CUB' else order


def order_verdict(found, reference, column):
    """Does a method lie on the side of CAM on which it is in the paper? In words."""
    if found.method == reference.method:
        return 'the reference'
    value, low, high = found.sample(column).difference(reference.sample(column))
    expected = paper.PXAP[found.method][-1] > paper.PXAP[reference.method][-1]
    if low <= 0 <= high:
        return 'undecided: CAM lies within the interval'
    side = 'above' if value > 0 else 'below'
    return f'as in the paper: {side} CAM' if (value > 0) == expected else f'contrary to the paper: {side} CAM'


def cue_table(dataset, found):
    """The paper's table of cue localization, with ours."""
    found = [own for own in found if 'corrected mean' in own.columns]
    reference = next((own for own in found if own.method == ('CAM', 'vanilla')), None)
    header = ['PxAP, %', *(f'paper {key}' for key in paper.KEYS), *(f'published {key}' for key in paper.KEYS),
              *(f'corrected {key}' for key in paper.KEYS), 'over seeds ±', 'exact mean', 'dropped true',
              'dropped false', 'verdict']
    rows = []
    for own in found:
        corrected = [own.cell(f'corrected {key}') for key in paper.KEYS]
        rows.append([paper.METHODS[own.method], *map(Cell, paper.PXAP[own.method]),
                     *(own.cell(f'published {key}') for key in paper.KEYS),
                     *(cell and Cell(cell.value) for cell in corrected[:3]), corrected[3],
                     own.deviation('corrected mean'), own.cell('exact mean'), own.cell('dropped true'),
                     own.cell('dropped false'), verdict(dataset, own, reference)])
    note = '' if dataset == 'CUB' else '; the paper is of CUB: its order of the methods alone can be compared'
    return Table(f'Cue localization on {dataset}, by differing parts{note}', header, rows)


def ratio_table(dataset, found):
    """R_k of every method. The paper draws it and prints no numbers."""
    columns = [f'R_{percent}' for percent in reports.ERASED]
    return Table(f'Remove-and-classify on {dataset}, R_k, lower is better; the paper has curves without numbers',
                 ['', *columns], [[paper.METHODS[own.method], *map(own.cell, columns)] for own in found])


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
        cells = [own.cell(f'R_{percent}') for percent in reports.ERASED]
        if None not in cells:
            curves[paper.METHODS[own.method]] = [
                {'erased_percent': int(percent), 'R': cell.value, 'R_low': cell.low, 'R_high': cell.high}
                for percent, cell in zip(reports.ERASED, cells, strict=True)]
    figures.save(figures.ratio_curve(f'Remove-and-classify, {dataset}', curves), path)


def report(dataset, networks, root):
    """Print and write what is there of a data set."""
    found = find_results(networks)
    if not found:
        return
    tables = [table for table in (cue_table(dataset, found), ratio_table(dataset, found),
                                  accuracy_table(dataset, found)) if table.rows]
    written = reports.write_tables(root / dataset / 'tables', tables, reports.FORMATS)
    draw_ratios(dataset, found, root / dataset / 'ratios.png')
    util.say(f'\n{reports.as_text(tables)}\n{", ".join(map(str, [*written, root / dataset / "ratios.png"]))}')


# --- the command --------------------------------------------------------------------------------------


def make_parser():
    def names(text):
        return text if text == 'all' else config.choice(tuple(IMAGES))(config.dataset_name(text))
    parser = config.plain_parser(__doc__)
    parser.add_argument('--dataset', type=names, default='all', metavar='NAME',
                        help="CUB, ILSVRC, OpenImages, ToyBirds, or all: the paper's three (default: all)")
    parser.add_argument('--seeds', type=config.COUNT, default=None, metavar='N',
                        help='trainings of each network (default: 3 on ToyBirds, else 1)')
    parser.add_argument('--train', action='store_true', help='train CALM too, where the authors publish its weights')
    parser.add_argument('--plan', action='store_true', help='print the plan alone')
    parser.add_argument('--save_root', default='save', metavar='FOLDER', help='results go to <save_root>/reproduce')
    return parser


def main():
    args, flags = make_parser().parse_known_args()
    more = config.parse('main', argv=flags)
    taken = sorted(set(OWN) & set(more.given))
    if taken:
        raise UserError(f'--{taken[0]} is what reproduce.py chooses itself: leave it out')
    datasets = ('CUB', 'ILSVRC', 'OpenImages') if args.dataset == 'all' else (args.dataset,)
    root = Path(args.save_root) / 'reproduce'
    networks = {dataset: networks_of(dataset, args.seeds or (3 if dataset == 'ToyBirds' else 1), root, args.train)
                for dataset in datasets}
    steps = {dataset: steps_of(own) for dataset, own in networks.items()}
    print_plan(steps, more, flags)
    if args.plan:
        return
    failed, left = [], []
    for step in (step for own in steps.values() for step in own if not step.is_done()):
        if lacks(step, more) or step.metric and not step.network.published and not step.network.weights_sha256():
            left.append(step.title())
            continue
        try:
            step.run(flags)
        except UserError as error:
            failed.append(f'{step.title()} ({error})')
            util.warn(failed[-1])
    for dataset, own in networks.items():
        report(dataset, own, root)
    if left:
        util.say(f'\n{len(left)} steps wait for what is missing; the same command goes on with them')
    if failed:
        raise UserError(f'{len(failed)} steps failed: {"; ".join(failed)}')


if __name__ == '__main__':
    util.run(main)
