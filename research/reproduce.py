"""The paper's cue localization, remove-and-classify, WSOL and accuracies, run again beside the published figures.

Prints a plan: each training and evaluation, what is missing for it, and the command that gets what is missing. Then it
runs every unfinished step whose data and weights are there, and prints the tables of each data set: those of compare.py
with the paper's rows, and two that say in words whether the paper's figures and ours agree. The paper's figures of WSOL
are not at hand. The user study is not run. Flags of main.py, such as --device, may follow.
--dataset=ToyBirds does all of it on painted birds, without any download.
Source: Kim et al., ICCV 2021 (reports/paper.py). Networks of CUB, ImageNet and OpenImages are ResNet-50 with 28x28
maps, published or trained by the released defaults; those of ToyBirds are trained as in research/ablation.py. CAM's
are not published: CAM is trained on each data set, after all steps of the published networks.
Result: <save_root>/reproduce/<data set>/tables.md, tables.csv, tables.tex, ratios.png and precision_recall.png.

    python -m research.reproduce --plan
    python -m research.reproduce --dataset=ToyBirds --seeds=3
"""
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

import config
from dataset.registry import ALIASES, DATASETS, find_dataset
from experiment import result_files, weights
from reports import columns, comparison, paper, table_files
from reports.intervals import mean_interval
from reports.rows import paper_rows, read_experiments
from reports.table_files import Cell, Table
from research import commands
from runtime import command_line, screen
from wsol.errors import UserError

CHOSEN = ('dataset', 'experiment_name', 'save_root', 'seed', 'attribution_method', 'load_checkpoint',
          'score_map_process', 'override_cache')
CAM, PUBLISHED = ('CAM', 'vanilla'), 'published: mean'
START = 'start'  # the experiment from which the networks of ToyBirds start
NAMES = {'cue_location': 'cue localization', 'pixel_perturb': 'remove-and-classify', 'wsol': 'WSOL'}


# --- networks and steps -------------------------------------------------------------------------------


class PlannedNetwork(NamedTuple):
    """A network that main.py trains with these flags, or a published one."""
    dataset: str
    name: str                # of its experiment: its head, or START
    folder: Path             # above its experiment's
    training: tuple = ()     # flags of main.py; none for published weights
    published: str | None = None
    flags: tuple = ()        # the user's, which all steps get

    def trained(self):
        """The result of its training, or what stands for it with published weights; no `weights_sha256` in it, or {},
        if there are no weights."""
        if not self.published:
            return result_files.read_result(self.folder / self.name / 'results.json')
        path, usual = weights.published_file(self.published), config.ALL_FLAGS['crop_size'].default
        return {'weights_sha256': _sha256(path), 'settings': {'crop_size': usual}} if path.is_file() else {}


@cache
def _sha256(path):
    return weights.read_checkpoint(path).sha256


class Step(NamedTuple):
    """A training of a network or, if metric is given, an evaluation of it."""
    network: PlannedNetwork
    metric: str | None = None
    method: str | None = None

    def title(self):
        name = paper.name_of(self.network.name, self.method)
        return f'{NAMES[self.metric]}: {name}' if self.metric else f'train {self.network.name}'

    def is_done(self):
        network, trained = self.network, self.network.trained()
        folder = network.folder / network.name
        if not self.metric:
            return (folder / 'results.json').is_file()
        with suppress(UserError):
            return bool(trained.get('weights_sha256') and commands.result(folder, self.metric, self.method,
                                                                          *network.flags, trained=trained))
        return False

    def run(self):
        network = self.network
        if not self.metric:
            commands.train(network.folder, network.name, *network.training, *network.flags)
            return
        source = [f'--load_checkpoint={network.published}'] if network.published else []
        commands.run(network.folder, f'eval_{self.metric}', f'--experiment_name={network.name}', *source,
                     f'--score_map_process={self.method}', *network.flags)


def networks_of(dataset, seeds, root, trains_all, flags):
    """The PlannedNetworks of a data set. trains_all: train CALM even where its weights are published.
    flags: the user's."""
    networks = []
    for seed in range(seeds):
        folder, common = root / dataset / f'seed{seed}', [f'--seed={seed}', f'--dataset={dataset}']
        if dataset == 'ToyBirds':
            common = [*commands.TRAIN, *commands.SIZES, '--last_stage=layer2', f'--seed={seed}']
            start = (*common, '--attribution_method=CAM', *commands.FROM_RANDOM)
            networks.append(PlannedNetwork(dataset, START, folder, start, flags=flags))
            common += [f'--load_checkpoint={START}', *commands.FINE_TUNE]
        else:
            common += ['--architecture=resnet50', '--use_bn=True', '--large_feature_map=True']
        for head in dict.fromkeys(head for head, _ in methods_of(dataset, 'pixel_perturb')):
            published = None if trains_all else weights.published_name(f'{head}-{dataset}')
            training = () if published else (*common, f'--attribution_method={head}')
            if training or seed == 0:  # published weights exist once
                networks.append(PlannedNetwork(dataset, head, folder, training, published, flags))
    return networks


def methods_of(dataset, metric):
    """[(head, method)] that a metric measures on a data set: those of the paper's table on CUB and ToyBirds, else CAM's
    and CALM's maps. WSOL takes these everywhere, and CALM's of superclasses if the data set has such."""
    data, plain = DATASETS[dataset], [key for key in paper.METHODS if key[1] in ('vanilla', 'jointll')]
    if metric == 'wsol':
        return plain + [(head, 'jointll-superclass') for head, method in plain if method == 'jointll' and data.groups]
    return list(paper.METHODS) if data.cue_pairs else plain if metric == 'pixel_perturb' else []


def steps_of(networks):
    """The Steps, network by network."""
    steps = []
    for network in networks:
        if network.training:
            steps.append(Step(network))
        steps += [Step(network, metric, method) for metric in NAMES
                  for head, method in methods_of(network.dataset, metric) if head == network.name]
    return steps


def lacks(step, flags):
    """[(what a step needs and does not have, the command that gets it)]. flags: of main.py, parsed."""
    network, metric, method = step
    if network.dataset == 'ToyBirds':  # painted when it is opened
        return []
    name, data = network.dataset, find_dataset(network.dataset, flags.data_root, flags.metadata_root)
    splits = {None: ('train', 'val', 'test'), 'wsol': ('val', 'test')}.get(metric, ('test',))
    missing = [(f'{name} {split}', data.prepare[split]) for split in splits
               if not ((data.list_folders[split] / 'image_ids.txt').is_file() and data.image_folders[split].is_dir())]
    if metric == 'cue_location' and not all(
            (data.cub_root / folder).is_dir() for folder in ('attributes', 'parts', 'segmentations')):
        missing.append((f'{name} parts, attributes and segmentations', data.prepare['test']))
    if metric == 'wsol' and data.has_masks and not all(
            any((data.mask_folder / split).rglob('*.png')) for split in splits):
        missing.append((f'masks of {name}', data.prepare['test']))
    helper = data.list_folders['train'].parent / 'helper'
    if name == 'ILSVRC' and method == 'jointll-superclass' and not helper.is_dir():
        missing.append(('superclasses of ILSVRC', f'put what metadata/README.md names into {helper}'))
    if network.published and not weights.published_file(network.published).is_file():
        missing.append((f'weights {network.published}',
                        f'python main.py --is_train=False --load_checkpoint={network.published}'))
    if flags.pretrained is True and 'architecture' not in flags.given and not metric:
        from torchvision.models import ResNet50_Weights
        url, folder = ResNet50_Weights.IMAGENET1K_V1.url, Path(torch.hub.get_dir()) / 'checkpoints'
        if not (folder / Path(url).name).is_file():
            missing.append(("ImageNet's weights of ResNet-50", f'download {url} to {folder}'))
    return missing


# --- the plan -----------------------------------------------------------------------------------------


def print_plan(steps_by_dataset, args):
    """Every step with its state, the seeds together; what is missing, and how to get it."""
    missing = {}
    for dataset, steps in steps_by_dataset.items():
        rows = {}
        for step in steps:
            rows.setdefault(step.title(), []).append(step)
        lines = []
        for title, alike in rows.items():
            done, needs = sum(step.is_done() for step in alike), [] if alike[0].is_done() else lacks(alike[0], args)
            for what, command in needs:
                missing.setdefault(command, {})[what] = None
            state = f'missing: {", ".join(dict(needs))}' if needs and not done else f'{done} of {len(alike)} done'
            lines.append([title, len(alike), state])
        screen.say('\n' + table_files.as_text([Table(f'The plan: {dataset}', ['step', 'networks', 'state'], lines)]))
    for command, what in missing.items():
        screen.say(f'missing: {", ".join(what)}. To get it: {command}')


# --- the results --------------------------------------------------------------------------------------


def verdict(method, reference, difference):
    """Words: whether a method (head, attribution method) scores above or below CAM, as in the paper. reference: CAM's
    rows, if there are any. difference: the Cell of the method's difference from CAM, or None."""
    if method == CAM:
        return 'the reference'
    if difference is None:
        return 'CAM has no figure on the same images and truth' if reference else 'no CAM to compare with'
    if difference.low is None:
        return 'undecided: the difference has no interval'
    if difference.low <= 0 <= difference.high:
        return 'undecided: CAM lies within the interval'
    is_above = difference.value > 0
    agrees = is_above == (paper.PXAP[method][-1] > paper.PXAP[CAM][-1])
    return f'{"as in" if agrees else "contrary to"} the paper: {"above" if is_above else "below"} CAM'


def verdicts(dataset, rows):
    """[Table]: the paper's accuracies and cue localization beside ours, and whether they agree. rows: those of all
    networks."""
    ours, accuracies, cues = {}, [], []
    for row in rows:
        ours.setdefault(row.plain_method, {}).setdefault(row.experiment, row)  # the usual settings come first
    ours = {name: list(networks.values()) for name, networks in ours.items()}
    for method, name in paper.METHODS.items():
        result_files.check_alike([result for row in ours.get(name, ()) for result in row.results.values()])
        accuracy, mean = (comparison.estimates_of(ours.get(name, ()), column) for column in ('accuracy', PUBLISHED))
        if accuracy and method[1] in ('vanilla', 'jointll'):
            published = paper.ACCURACY.get((method[0], dataset))
            cell = columns.cell('accuracy', *mean_interval(accuracy))
            inside = None not in (published, cell.low) and cell.low <= published <= cell.high
            accuracies.append([name, Cell(published), cell, 'not published' if published is None else
                               'as published, within the interval' if inside else f'{cell.value - published:+.1f}'])
        if mean:
            published, cell = paper.PXAP[method][-1], columns.cell(PUBLISHED, *mean_interval(mean))
            reference = ours.get(paper.METHODS[CAM]) if method != CAM else None
            difference = reference and comparison.difference_cell(ours[name], reference, comparison.COMPARED)
            away = Cell(cell.value - published, sign='+') if dataset == 'CUB' else None
            cues.append([name, Cell(published), cell, away, difference, verdict(method, reference, difference)])
    note = '' if dataset == 'CUB' else '; the paper has figures for CUB: compare only the order of the methods'
    return [table for table in (
        Table(f'Accuracy on {dataset}, %', ['', 'paper', 'ours', 'verdict'], accuracies),
        Table(f'Cue localization on {dataset}, PxAP in %{note}', ['', f'paper: {PUBLISHED}', f'ours: {PUBLISHED}',
              'from the paper', 'above CAM', 'verdict'], cues)) if table.rows]


def report(dataset, networks, root):
    """Print and write the tables of a data set, as far as there are results."""
    folders = [network.folder / network.name for network in networks if network.name != START]
    folders = [folder for folder in folders if any(folder.glob('*_*.json'))]
    if folders:
        rows = read_experiments(folders)
        tables = comparison.make_tables(rows, paper_rows()) + verdicts(dataset, rows)
        comparison.publish(rows, tables, root / dataset / 'tables')


# --- the command --------------------------------------------------------------------------------------


def run_all(steps, args):
    """Run the steps that are not done. Returns two lists of titles: steps that wait for something, and failed steps."""
    waiting, failed = [], []
    for step in sorted(steps, key=lambda step: bool(step.network.training)):  # no training delays published networks
        if step.is_done():
            continue
        if lacks(step, args) or step.metric and not step.network.trained().get('weights_sha256'):
            waiting.append(step.title())
            continue
        try:
            step.run()
        except (UserError, OSError, MemoryError, RuntimeError) as error:  # torch's errors are RuntimeErrors
            failed.append(f'{step.title()} ({error})')
            screen.warn(failed[-1])
    return waiting, failed


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('--dataset', default='all', metavar='NAME',
                        type=command_line.choice((*DATASETS, 'all'), ALIASES),
                        help="CUB, ILSVRC, OpenImages, ToyBirds, or all: the paper's three (default: all)")
    parser.add_argument('--seeds', type=command_line.COUNT, default=None, metavar='N',
                        help='trainings of each network (default: 3 on ToyBirds, else 1)')
    parser.add_argument('--train', action='store_true', help='train CALM even where its weights are published')
    parser.add_argument('--plan', action='store_true', help='only print the plan')
    parser.add_argument('--save_root', default='save', metavar='FOLDER', help='results go to <save_root>/reproduce')
    return parser


def main():
    args, flags = make_parser().parse_known_args()
    more = commands.parse('main', flags)
    commands.refuse_chosen(more, CHOSEN, 'reproduce')
    datasets = ('CUB', 'ILSVRC', 'OpenImages') if args.dataset == 'all' else (args.dataset,)
    root = Path(args.save_root) / 'reproduce'
    networks = {dataset: networks_of(dataset, args.seeds or (3 if dataset == 'ToyBirds' else 1), root, args.train,
                                     tuple(flags)) for dataset in datasets}
    steps = {dataset: steps_of(planned) for dataset, planned in networks.items()}
    for network in (step.network for step in sum(steps.values(), []) if not step.metric and step.is_done()):
        commands.check_unchanged(network.folder, network.name, network.training, flags,
                                 'State these again, or choose another --save_root')
    print_plan(steps, more)
    if args.plan:
        return
    waiting, failed = run_all(sum(steps.values(), []), more)
    for dataset, planned in networks.items():
        try:
            report(dataset, planned, root)
        except UserError as error:
            failed.append(f'tables of {dataset} ({error})')
            screen.warn(failed[-1])
    if waiting:
        screen.say(f'\n{len(waiting)} steps wait for what is missing; run the same command again once it is there')
    if failed:
        raise UserError(f'{len(failed)} steps failed: {"; ".join(failed)}')


if __name__ == '__main__':
    screen.run(main)
