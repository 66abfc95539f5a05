"""The plan of reproduce.py: the networks and measurements that the paper's tables need, what each lacks, what it costs.

Source: Kim et al., ICCV 2021 (paper.py). Networks of CUB, ImageNet and OpenImages are ResNet-50 with 28x28 maps,
trained by the released defaults, or published; those of ToyBirds are trained as the demo's are.
"""
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

import config
from dataset.registry import DATASETS, find_dataset
from experiment import result_files, weights
from reports import columns, paper
from research import commands
from wsol import build_model
from wsol.attribution.registry import METHODS
from wsol.backbones._torchvision import import_torchvision
from wsol.contexts import shapes_only
from wsol.errors import UserError

SPEEDS = {'GPU': 20e12, 'CPU': 0.2e12}  # operations a second that the estimates assume
NAMES = {'cue_location': 'cue localization', 'pixel_perturb': 'remove-and-classify'}


@dataclass(frozen=True)
class Network:
    """A network of the plan: trained by main.py with these flags, or published."""
    dataset: str
    head: str
    name: str                # of its experiment
    folder: Path             # above its experiment's
    training: tuple = ()     # flags of main.py; none for published weights
    published: str | None = None
    flags: tuple = ()        # the user's, which all steps get

    def weights_sha256(self):
        """Of the weights that are there; None where there are none."""
        path = self.published and weights.published_file(self.published)
        if path:
            return _sha256(path) if path.is_file() else None
        return result_files.read_result(self.folder / self.name / 'results.json').get('weights_sha256')

    def result(self, metric, process):
        """What was measured of it; None where that is not done."""
        folder, sha256 = self.folder / self.name, self.weights_sha256()
        if not sha256:
            return None
        try:
            size = config.ALL_FLAGS['crop_size'].default
            trained = {'weights_sha256': sha256, 'settings': {'crop_size': size}} if self.published else None
            return commands.result(folder, metric, process, *self.flags, trained=trained)
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
        return commands.is_trained(self.network.folder, self.network.name)

    def changed_settings(self, flags):
        """What a finished training had otherwise than it would have with these flags: ['epochs was 1, is 40']."""
        own = (flag for flag in self.network.training if flag != commands.PRECISION)  # the machine's, and no wish
        return commands.changed_settings(self.network.folder, self.network.name, *own, *flags)

    def run(self, flags):
        network = self.network
        if not self.metric:
            commands.train(network.folder, network.name, *network.training, *flags)
            return
        source = [f'--load_checkpoint={network.published}'] if network.published else []
        commands.run(network.folder, f'eval_{self.metric}.py', f'--experiment_name={network.name}', *source,
                        f'--score_map_process={self.process}', *flags)


def networks_of(dataset, seeds, root, trains_all, flags=()):
    """The Networks of a data set. trains_all: CALM's too, where the authors publish its weights. flags: the user's."""
    found = []
    for seed in range(seeds):
        folder, common = root / dataset / f'seed{seed}', [f'--seed={seed}', f'--dataset={dataset}']
        if dataset == 'ToyBirds':
            common = [*commands.TRAIN, '--last_stage=layer2', f'--seed={seed}']
            found.append(Network(dataset, 'CAM', 'start', folder, (
                *common, '--attribution_method=CAM', *commands.FROM_RANDOM), flags=tuple(flags)))
            common += ['--load_checkpoint=start', *commands.FINE_TUNE]
        else:
            common += ['--architecture=resnet50', '--use_bn=True', '--large_feature_map=True']
        for head in dict.fromkeys(head for head, _ in methods_of(dataset)):
            published = weights.published_name(f'{head}-{dataset}')
            if published and not trains_all:
                found += [Network(dataset, head, head, folder, (), published, tuple(flags))] if seed == 0 else []
            else:
                found.append(Network(dataset, head, head, folder, (*common, f'--attribution_method={head}'),
                                     flags=tuple(flags)))
    return found


def methods_of(dataset):
    """The (head, process) of a data set's tables: of CUB and ToyBirds the paper's table, of others CALM's own maps."""
    return [method for method in paper.METHODS if DATASETS[dataset].cues or (method[0], dataset) in paper.ACCURACY]


def steps_of(networks):
    """The Steps, network by network."""
    steps = []
    for network in networks:
        if network.training:
            steps.append(Step(network))
        metrics_of = ('pixel_perturb', 'cue_location') if DATASETS[network.dataset].cues else ('pixel_perturb',)
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
    downloads = flags.pretrained is True and 'architecture' not in flags.given
    if downloads and '--pretrained=False' not in network.training and not step.metric and not _backbone().is_file():
        missing.append(("ImageNet's weights of ResNet-50", f'download {_backbone_url()} to {_backbone().parent}'))
    return missing


def _backbone_url():
    return import_torchvision().models.get_model_weights('resnet50').IMAGENET1K_V1.url


def _backbone():
    return Path(torch.hub.get_dir()) / 'checkpoints' / Path(_backbone_url()).name


@cache
def forward_operations(training):
    """(multiplications and additions of one forward of a network, counted on shapes alone; epochs). training: flags of
    main.py."""
    args = commands.parse('main', training)
    counter = FlopCounterMode(display=False)
    model = build_model(**config.network_settings(args), num_classes=200).eval()
    with shapes_only(), counter:
        model(torch.zeros(1, 3, args.crop_size, args.crop_size))
    return counter.get_total_flops(), args.epochs


@cache
def training_memory(training):
    """About how many bytes a training takes on a device in bfloat16: weights, gradients, momenta, and what the forward
    of a batch keeps for the backward, counted on shapes alone. training: flags of main.py."""
    args, kept = commands.parse('main', training), {}

    def keep(tensor):
        kept[id(tensor.untyped_storage())] = tensor  # alive, so that its number is no other's
        return tensor
    model, images = build_model(**config.network_settings(args), num_classes=200), 2
    state = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    with shapes_only(), torch.enable_grad(), torch.autocast('cpu', torch.bfloat16), \
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(torch.zeros(images, 3, args.crop_size, args.crop_size), torch.zeros(images, dtype=torch.int64))
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()
                      if not isinstance(tensor, torch.nn.Parameter))
    return 3 * state + activations * args.batch_size // images


def operations(step, flags):
    """What a step costs: a backward counts as two forwards. flags: those that go behind the step's own."""
    network = step.network
    published = ('--large_feature_map', f'--attribution_method={network.head}')
    forward, epochs = forward_operations((*(network.training or published), *flags))
    train, val, test = DATASETS[network.dataset].images
    if not step.metric:
        return forward * (epochs * (3 * train + val) + val + test)
    forwards, backwards = METHODS[step.process].cost_of()  # for an image; for an image and a class
    if step.metric == 'pixel_perturb':
        return forward * test * (forwards + 2 * backwards + 2 * len(columns.PERCENTS))
    images, pairs, _ = DATASETS[network.dataset].cues
    return forward * (images * forwards + 2 * backwards * (images + pairs))
