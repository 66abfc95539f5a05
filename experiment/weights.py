"""Checkpoints: how --load_checkpoint finds one, how its network is built, and the authors' published weights.

Source of the published weights: the links of the published README (Google Drive), ResNet-50 with 28x28 maps. They are
downloaded once to checkpoints/, or put there by hand as checkpoints/<name>.pth.tar. The first use records size and
SHA-256 in checkpoints/published.lock.json; every later use verifies them.

    model, checkpoint = weights.load_model('CALM_EM-CUB')
"""
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

import config
import util
from dataset import download
from dataset.class_names import imagenet_names, names_in, read_class_names, unique_class_names
from dataset.registry import ALIASES, DATASETS, find_dataset
from experiment import checkpoint_files
from runtime.screen import say, warn, warn_once
from wsol import build_model, from_classifier, preprocessing
from wsol.contexts import initial_weights
from wsol.errors import UserError
from wsol.networks import normalisation
from wsol.weights import fitting
from wsol.weights.state_dicts import Weights, read_weights

FILE = checkpoint_files.LAST
PLACEHOLDER = 'checkpoint_name'  # in the published commands; it stands for the checkpoint of --experiment_name
FOLDER = Path('checkpoints')
PUBLISHED = {
    'CALM_EM-CUB': '1XfBEc1Lh24WqJZP1aLLrwGSlj_INMVef', 'CALM_EM-OpenImages': '11250uUiRNafuTbnx2h4kryiVI-7218mW',
    'CALM_EM-ImageNet': '17451YI9KANnkmmn2ix0N-uHYZljsq4Lc', 'CALM_ML-CUB': '1JgupGC2EoIX8wqpYgKPS-3kSLF-29Z8g',
    'CALM_ML-OpenImages': '1QHhiRjO_Oz_yIl64PJqMeCJzK1KUlffA', 'CALM_ML-ImageNet': '1w4L4_R9o_Sp-9_Mt5IdEJs5DZuqaCfyp',
}


@dataclass(frozen=True)
class Checkpoint:
    """A network's weights, and what their file records about the network."""
    path: Path
    content: dict            # as saved; for a published file, also what is known about it
    name: str | None = None  # the key in PUBLISHED
    model: nn.Module | None = None  # the network, if it is built already

    @property
    def network(self):
        """The arguments of build_model, without num_classes; {} if the file does not record them."""
        return {key: value for key, value in self.content.get('model', {}).items() if key != 'num_classes'}

    @property
    def num_classes(self):
        return self.content.get('model', {}).get('num_classes')

    @property
    def known(self):
        """{flag: value} of the data set and the sizes of its images; {} for a file from elsewhere."""
        args = self.content.get('args', {}) if self.network else {}
        return {key: args[key] for key in ('dataset', 'resize_size', 'crop_size', 'fit') if key in args}

    @property
    def class_names(self):
        return self.content.get('class_names')

    def check_classes(self, data, split, images):
        """Raise UserError if a label means another class in a split of a DataSet than in the network. Warns where
        nothing tells the classes."""
        if not data.check_classes(split, images, self.class_names, self.path):
            warn_once('labels', f'{self.path} and the folders of {data.name} do not name the same classes: each label '
                                "is taken for the network's class of this number")

    @property
    def epoch(self):
        """The number of finished epochs; None if the file does not record it."""
        return self.content.get('epoch')

    @property
    def normalisation(self):
        """(mean, deviation) per colour, by which the network's images are normalised."""
        return self.content.get('normalisation') or normalisation(self.network.get('architecture', ''))

    @property
    def is_foreign(self):
        """Whether main.py did not train the network: it is a classifier of torchvision or timm."""
        return 'preprocessing' in self.content

    @cached_property
    def weights(self):
        """{name: tensor}, without DataParallel's prefix."""
        state = self.content.get('state_dict', self.content)
        return {name.removeprefix('module.'): value for name, value in state.items()}

    @cached_property
    def sha256(self):
        """The SHA-256 of the weights, which does not depend on the rest of the file."""
        return weights_sha256(self.weights)

    def build(self, network, num_classes, device, but_classifier=False):
        """The network with these weights, in eval mode on the device. Raises UserError if they do not fit.

        network: arguments of build_model. but_classifier: make a new classifier, for another label set.
        """
        if self.num_classes not in (None, num_classes) and not but_classifier:
            raise UserError(f'{self.path} has {self.num_classes} classes, the data set has {num_classes}; main.py '
                            'trains a new classifier with --is_different_checkpoint')
        model = self.model
        if model is None:
            with initial_weights(drawn=but_classifier):
                model = build_model(**network, num_classes=num_classes)
            load_weights(model, self, but_classifier)
        return model.to(device, memory_format=util.memory_format(device)).eval()


def pretrained(args):
    """--pretrained as True, False, or the Weights of its file. Raises UserError."""
    return args.pretrained if isinstance(args.pretrained, bool) else read_weights(args.pretrained, args.weights_key)


def trained_classifier(architecture, source):
    """The Checkpoint of a trained classifier of torchvision or timm, as CAM.

    source: True for ImageNet's weights, or Weights. Raises UserError unless the classifier ends in average pooling and
    a linear layer.
    """
    if not source:
        raise UserError('--pretrained=False leaves nothing to explain: name the weights by --pretrained=FILE, or a '
                        'trained network by --load_checkpoint')
    model = from_classifier(architecture, source)
    classes = model.conv_last.out_channels
    usual = {name: flag.default for name, flag in config.ALL_FLAGS.items() if flag.network}
    network = usual | {'architecture': architecture, 'attribution_method': 'CAM', 'num_classes': classes}
    fitted = preprocessing(architecture, source if source is True else source.path)
    names = [] if source is True else names_in(source.beside)
    content = {'model': network, 'state_dict': model.state_dict(), 'preprocessing': fitted,
               'normalisation': (fitted['mean'], fitted['deviation']),
               'class_names': names if len(names) == classes else None,
               'args': {'crop_size': fitted['input_size'], 'resize_size': fitted['resize_size'], 'fit': fitted['fit']}
               | ({'dataset': 'ILSVRC'} if source is True else {})}
    path = Path(f'{architecture} with ImageNet weights' if source is True else source.path)
    return Checkpoint(path, content, model=model)


def class_names(args, checkpoint, model):
    """The names of a network's classes, all different; [] if nothing tells them. Raises UserError for a wrong number
    of names. The first of these that exists: the names of --class_names; the checkpoint's; the folders of the user's
    --dataset; no and yes for one logit; ImageNet's.
    """
    count, names = model.conv_last.out_channels, checkpoint.class_names or ()
    if args.class_names:
        names = read_class_names(args.class_names, count)
    elif len(names) != count and 'dataset' in args.given:
        names = find_dataset(args.dataset, args.data_root, args.metadata_root).class_names or ()
        if names and len(names) != count:
            raise UserError(f'--dataset={args.dataset} has {len(names)} class folders, the network {count} classes; '
                            '--class_names=FILE names them')
    if len(names) == count:
        return unique_class_names(names)
    if model.scores == 'one_logit':
        return ['no', 'yes']
    if count != DATASETS['ILSVRC'].num_classes or not (checkpoint.is_foreign or args.dataset == 'ILSVRC'):
        return []
    if args.dataset != 'ILSVRC':
        say(f"{checkpoint.path} does not name its {count} classes, so they get ImageNet's names; --class_names=FILE "
            'gives them others')
    return unique_class_names(imagenet_names())


def weights_sha256(state):
    """The SHA-256 of a state dict: names, types, shapes and values in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}\n'.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# --- from names to networks -----------------------------------------------------------------------------


def experiment_folder(save_root, name):
    """The folder of an experiment. Raises UserError for a name that leads out of save_root."""
    folder = Path(save_root) / name
    if not folder.resolve().is_relative_to(Path(save_root).resolve()):
        raise UserError(f'--experiment_name={name} leads out of --save_root={save_root}')
    return folder


def find_checkpoint(name, save_root, folder):
    """The path of a checkpoint. Raises UserError.

    name: a file, a folder, an experiment or a key of PUBLISHED. folder: the experiment's; its checkpoint is taken if
    the name is None or PLACEHOLDER.
    """
    default = Path(folder) / FILE
    places = [default] if name is None else [Path(name), Path(name) / FILE, Path(save_root) / name / FILE]
    if name is not None and Path(name).name == PLACEHOLDER:
        places.append(default)
    for place in places:
        path = checkpoint_files.latest(place.parent) if place.name == FILE and not place.is_file() else place
        if path is not None and path.is_file():
            return path
    if published_name(name):
        return fetch_published(published_name(name))
    raise UserError(f'no checkpoint: looked for {", ".join(map(str, places))}. Train one with main.py '
                    f'--experiment_name={default.parent.name}, or name one with --load_checkpoint: a file, a folder, '
                    f'an experiment, or one of {", ".join(PUBLISHED)}')


def read_checkpoint(path, key=None, architecture=None):
    """The Checkpoint in a file, tensors on the CPU. Nothing in the file is executed. Raises UserError.

    key: which of several state dicts of a file from elsewhere, as in state_dicts.pick_state_dict. architecture: the
    file may also hold a trained classifier of torchvision or timm by this name.
    """
    path = Path(path)
    content, name = checkpoint_files.read(path, key), path.name.removesuffix('.pth.tar')
    if name in PUBLISHED and path.resolve() == published_file(name).resolve():
        return Checkpoint(path, content | _published_record(name), name)
    checkpoint = Checkpoint(path, content)
    is_ours = checkpoint.network or any(name.endswith('conv_last.weight') for name in checkpoint.weights)
    if is_ours or architecture is None:
        return checkpoint
    return trained_classifier(architecture, Weights(path, content['state_dict'], content))


def load_weights(model, checkpoint, but_classifier=False):
    """Put a Checkpoint's weights into the model, all or none. Raises UserError if they do not fit.

    but_classifier: keep the model's conv_last (to fine-tune on another label set), and its attention if only one of the
    two networks has one.
    """
    expected = model.state_dict()
    weights, outside = fitting.under_names(checkpoint.path, checkpoint.weights, expected)
    kinds = tuple(any('.attention.' in f'.{name}' for name in names) for names in (weights, expected))  # CALM's has it
    is_unrecorded_calm = not checkpoint.network and kinds == (True, False)
    left_out = ('conv_last.',) if but_classifier else ()
    if is_unrecorded_calm or but_classifier and kinds[0] != kinds[1]:
        left_out += ('attention.',)
    if is_unrecorded_calm:
        warn(f'{checkpoint.path} has an attention layer, as the published networks have, and CAM does not use it; if '
             'it was trained with CALM, say --attribution_method=CALM_EM or CALM_ML')
    hint = '; for another label set add --is_different_checkpoint' * (not but_classifier) if (
        'conv_last.weight' in weights) else ('; a classifier that this project has not trained starts a training by '
                                             '--pretrained=FILE')
    weights = {name: value for name, value in weights.items() if not name.startswith(left_out)}
    weights |= {name: value for name, value in expected.items() if name.startswith(left_out)}
    fitting.check_fit(checkpoint.path, weights | outside if checkpoint.network else weights, expected,
                          f'. Check --architecture, --attribution_method, --dataset and --use_bn{hint}')
    fitting.say_left_out(checkpoint.path, outside, 'since the network does not have them')
    model.load_state_dict(weights)


def load_model(name, device='cpu', save_root='save'):
    """(network in eval mode, Checkpoint). Raises UserError.

    name: a file, a folder, an experiment below save_root, or a key of PUBLISHED.
    """
    checkpoint = read_checkpoint(find_checkpoint(name, save_root, save_root))
    if not checkpoint.network:
        raise UserError(f'{checkpoint.path} holds only weights, which weights.load_weights puts into a network')
    return checkpoint.build(checkpoint.network, checkpoint.num_classes, torch.device(device)), checkpoint


# --- the published weights ------------------------------------------------------------------------------


def published_name(name):
    """CALM-EM-CUB, CALM_EM-ILSVRC, ... -> a key of PUBLISHED; None for any other name."""
    name = str(name).rstrip('/').replace('CALM-', 'CALM_').replace('ILSVRC', 'ImageNet')
    return name if name in PUBLISHED else None


def published_file(name):
    """The path of published weights, whether or not they are downloaded."""
    return FOLDER / f'{name}.pth.tar'


def fetch_published(name):
    """The path of published weights, which are downloaded and verified. Raises UserError."""
    path, lock = published_file(name), download.Lock(FOLDER / 'published.lock.json')
    url, by_hand = download.drive_urls(PUBLISHED[name])
    download.fetch(url, path, by_hand, **lock.expected(name))
    if name not in lock.entries():
        read_checkpoint(path)  # record only a valid checkpoint
        lock.record(name, path)
    return path


def _published_record(name):
    """The record that main.py would have written into a published file, which has none."""
    method, dataset = name.split('-')
    dataset = ALIASES.get(dataset, dataset)
    return {'args': {'dataset': dataset, 'resize_size': 256, 'crop_size': 224},
            'model': {'architecture': 'resnet50', 'attribution_method': method, 'large_feature_map': True,
                      'use_bn': True, 'prior': 'relu', 'last_stage': 'layer4',
                      'num_classes': DATASETS[dataset].num_classes}}
