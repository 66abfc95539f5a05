"""What the evaluations open before their first image: a network, its data, and the maps that are evaluated.

    network = session.open_network(config.parse(make_parser()))
    data = session.open_data(network)
    maps = session.choose_maps(network, data, 'wsol')
    images = network.open_split(data, 'test')
    source = maps.source(images)
"""
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from munch import Munch
from torch import nn

import config
import util
from data_loaders import make_loader
from dataset import open_dataset
from dataset.fingerprints import combined
from dataset.registry import DataSet, find_dataset
from dataset.transforms import eval_transform
from evaluation.map_sources import ContrastMaps, FolderMaps, NetworkMaps, ObjectMasks, folder_name
from experiment import result_files, weights
from experiment.settings import adopt, network_settings, recorded_settings
from runtime import processes, screen, whole_files
from wsol.attribution.contrast import find_contrast
from wsol.attribution.registry import Method, find_method
from wsol.errors import UserError
from wsol.heads import SCORES
from wsol.networks import build_model, check_image_size, options_taken, redrawn

FITS = {'crop': 'the shorter side has', 'squash': 'both sides have', 'pad': 'the longer side has'}

# --- the network --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A trained network on its device. checkpoint and model are None where maps made elsewhere need no network."""
    args: Munch            # the flags, completed by what the checkpoint knows
    device: torch.device
    checkpoint: weights.Checkpoint | None
    model: nn.Module | None

    def transform(self):
        """The Transform of evaluation images: PIL image -> (3,S,S)."""
        if self.checkpoint is None:
            return eval_transform(self.args.crop_size)
        is_published = self.args.fit == 'squash' and not self.checkpoint.is_foreign
        return eval_transform(self.args.crop_size, self.checkpoint.normalisation,
                              None if is_published else self.preprocessing)

    @property
    def preprocessing(self):
        """How photos become the network's input: as wsol.preprocessing says it, with the flags."""
        args, (mean, deviation) = self.args, self.checkpoint.normalisation
        interpolation = self.checkpoint.content.get('preprocessing', {}).get('interpolation', 'bilinear')
        return {'input_size': args.crop_size, 'fit': args.fit, 'resize_size': args.resize_size,
                'interpolation': interpolation, 'mean': mean, 'deviation': deviation}

    @cached_property
    def untrained(self):
        """The network with random weights, a control (Adebayo et al. 2018). They depend on the seed, and on the trained
        weights, so that no training started from them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(util.seed_of(self.args.seed, int(self.checkpoint.sha256[:16], 16)))
            untrained = redrawn(self.model) if self.checkpoint.is_foreign else build_model(
                **network_settings(self.args), num_classes=self.model.conv_last.out_channels)
        untrained.scores = self.model.scores
        return untrained.eval().to(self.device)

    def open_split(self, data, split):
        """The ImageDataset of a split, as --skip_broken and --cache ask for it. Raises UserError if its classes are not
        the network's."""
        images = data.open_split(split, self.transform(), False, self.args.skip_broken,
                                 Path(self.args.save_root) / 'cache', self.args.cache)
        if self.checkpoint is not None:
            self.checkpoint.check_classes(data, split, images)
        return images

    def loader(self, images, folder=None):
        """Batches of images, in order. Raises UserError at once if the folder of the results is not writable.
        folder: of the results (default: results_folder)."""
        if processes.is_first():
            whole_files.check_writable(folder or self.results_folder())
        return make_loader(images, self.args.batch_size, self.args.workers, self.device)

    def results_folder(self):
        """The folder of --experiment_name; without this flag that of the checkpoint's experiment, or a folder named
        after the published weight."""
        args, checkpoint = self.args, self.checkpoint
        if checkpoint is not None and 'experiment_name' not in args.given:
            if checkpoint.name:
                return Path(args.save_root) / checkpoint.name
            folder, root = checkpoint.path.parent.resolve(), Path(args.save_root).resolve()
            if folder.is_relative_to(root):
                return Path(args.save_root) / folder.relative_to(root)
        return weights.experiment_folder(args.save_root, args.experiment_name)

    def result_file(self, metric, data, images, *names, args=None, **about):
        """The ResultFile of a metric on test images. All processes of a run call it.

        names: further parts of its name. args: the flags (default: the network's). about: truth and maps of
        result_files.identity.
        """
        settings = recorded_settings(args or self.args)
        about = result_files.identity(metric, data, 'test', images, self.checkpoint, settings, **about)
        known = self.checkpoint.known if self.checkpoint else {}
        usual = {name: known.get(name, config.ALL_FLAGS[name].default) for name in ('crop_size', 'resize_size')}
        if self.checkpoint and not self.checkpoint.network:  # weights only: the flags decide which network it is
            usual |= {name: config.ALL_FLAGS[name].default for name in config.NETWORK}
        name = '_'.join([metric, data.label, *names]) + f'.{result_files.key(about, **usual)}.json'
        return result_files.ResultFile(self.results_folder() / name, about, self.device)


def open_network(args, needed=True, or_classifier=False, whole=False):
    """The Network that the flags name. Raises UserError if there is none, or if its weights do not fit the flags.

    needed: False for maps made elsewhere, which take a network only if --load_checkpoint names one.
    or_classifier: accept --architecture alone as a trained classifier of torchvision or timm.
    whole: the evaluation compares maps with annotations, which belong to whole photos.
    """
    args, device, checkpoint, model = Munch(args), util.pick_device(args.device), None, None
    processes.join(device)
    if needed or args.load_checkpoint is not None:
        checkpoint = _find_network(args, or_classifier)
        if not checkpoint.network and 'large_feature_map' not in args.given and 'large_feature_map' in options_taken(
                args.architecture, args.attribution_method):  # weights of either size fit
            screen.say(f'{checkpoint.path} holds weights alone, which do not tell the size of their maps: 14x14 is '
                       'assumed. If the network was trained for 28x28, as the published ones were, add '
                       '--large_feature_map')
        args = adopt(args, checkpoint.path, checkpoint.known, checkpoint.network)
        num_classes = checkpoint.num_classes or _named_data(find_dataset, args, checkpoint).num_classes
        model = checkpoint.build(network_settings(args), num_classes, device)
        check_image_size(model, args.crop_size)
        _settle_scores(args, checkpoint, model)
    settle_fit(args, checkpoint, whole)
    if 'seed' in args:  # otherwise the script sends no image through the network
        args.precision = util.pick_precision(args.precision, device)
        args.workers = util.pick_workers(args.workers, 'workers' in args.given)
        args.seed = args.seed or 0
        util.seed_everything(args.seed)
    return Network(args, device, checkpoint, model)


def settle_fit(args, checkpoint, whole):
    """Complete --fit and --resize_size, and say how photos become squares where this is not as published.

    whole: as in open_network. Raises UserError.
    """
    made_elsewhere = args.get('scoremap_root') or args.get('score_map_process') == config.OBJECT_MASK
    if whole or made_elsewhere or checkpoint is None:
        if args.fit not in (None, 'squash'):
            reason = 'boxes, masks, parts and score maps belong to whole photos'
            if 'fit' in args.given:
                raise UserError(f'--fit={args.fit}: {reason}; leave the flag out here')
            screen.say(f'photos: squashed to {args.crop_size} x {args.crop_size}, since {reason} (this classifier was '
                       f'made for {args.fit})')
        args.fit, args.resize_size = 'squash', args.crop_size
        return
    is_usual, stated = checkpoint.is_foreign and args.fit == checkpoint.known['fit'], 'resize_size' in args.given
    args.fit = args.fit or 'squash'
    if args.fit != 'crop' and not is_usual:
        args.resize_size = args.crop_size
    elif not stated:
        usual_size = checkpoint.known.get('crop_size', config.ALL_FLAGS['crop_size'].default)
        args.resize_size = round(args.resize_size * args.crop_size / usual_size)
    if args.resize_size < args.crop_size and (stated or not is_usual):
        raise UserError(f'--fit={args.fit}: --crop_size={args.crop_size} is larger than '
                        f'--resize_size={args.resize_size}; state a larger --resize_size')
    if checkpoint.is_foreign or args.fit != 'squash':
        screen.say(f'photos: fit {args.fit}, {FITS[args.fit]} {args.resize_size} pixels, the input {args.crop_size} x '
                   f'{args.crop_size} of their centre')


def _settle_scores(args, checkpoint, model):
    """Take --scores, and say what is taken where the classifier's file does not tell. Raises UserError."""
    stated = 'scores' in args.given
    if stated and args.scores != model.scores:
        model.use_scores(args.scores)
        if checkpoint.network and not checkpoint.is_foreign:
            raise UserError(f'{checkpoint.path} was trained with softmax, so --scores={args.scores} does not suit it')
    args.scores = model.scores
    if checkpoint.is_foreign and (stated or 'dataset' not in checkpoint.known):
        hint = '; --scores=sigmoid is for a network of several labels' * (not stated and model.scores == 'softmax')
        screen.say(f'scores of {model.conv_last.out_channels} classes: {SCORES[model.scores]}{hint}')


def _find_network(args, or_classifier):
    """The Checkpoint that the flags name; with or_classifier also a trained classifier of torchvision or timm."""
    names_checkpoint = {'load_checkpoint', 'experiment_name'} & set(args.given)
    if or_classifier and 'architecture' in args.given and not names_checkpoint:
        return weights.trained_classifier(args.architecture, weights.pretrained(args))
    experiment = weights.experiment_folder(args.save_root, args.experiment_name)
    try:
        path = weights.find_checkpoint(args.load_checkpoint, args.save_root, experiment)
    except UserError as error:
        if or_classifier and not names_checkpoint:
            raise UserError(f'{error}. Without any training: --architecture=resnet50') from error
        raise
    return weights.read_checkpoint(path, args.weights_key, args.architecture)


# --- its data -----------------------------------------------------------------------------------------


def _named_data(find, args, checkpoint, mask_root=None):
    """The DataSet that the flags name. find: open_dataset, or find_dataset, which paints nothing."""
    return find(args.dataset, args.data_root, args.metadata_root, mask_root, checkpoint and checkpoint.class_names)


def open_data(network, mask_root=None):
    """The DataSet that the flags name. mask_root: the folder above OpenImages' masks. Raises UserError if the network
    has another number of classes."""
    data = _named_data(open_dataset, network.args, network.checkpoint, mask_root)
    if network.model is not None and (classes := network.model.conv_last.out_channels) != data.num_classes:
        raise UserError(f'{network.checkpoint.path} has {classes} classes, the data set {data.num_classes}; '
                        '--dataset names the data that it was trained on')
    return data


# --- the maps -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChosenMaps:
    """Which maps a metric evaluates, a network's or maps made elsewhere, and how it scales them."""
    network: Network
    data: DataSet | None
    metric: str | None
    args: Munch           # the network's, completed by the method and the scale
    contrast: str | None  # a key of CONTRASTS, instead of an attribution method
    entry: Method | None  # the attribution method or contrast method; None for maps that no network makes
    model: nn.Module | None  # whose maps these are: the network's model, or its control

    @property
    def folder(self):
        """The folder of maps made elsewhere, or None."""
        return self.args.get('scoremap_root')

    @property
    def method(self):
        """The name of the attribution method or contrast method in results."""
        return result_files.contrast_name(self.contrast) if self.contrast else self.args.score_map_process

    @property
    def name(self):
        """<head>_<method>, or folder_name; and the control."""
        maps = (self.args.attribution_method, self.method) if self.folder is None else (folder_name(self.folder),)
        return '_'.join(filter(None, (*maps, self.args.get('control'))))

    def scale(self):
        """[norm, thresholds], as far as the metric has them."""
        return [self.args[flag] for flag in result_files.SCALES.get(self.metric, ())]

    def describe(self):
        """One line for the screen."""
        words = [f'{word} {value}' for word, value in zip(('norm', 'thresholds'), self.scale(), strict=False)]
        return ', '.join([f'maps: {self.name}', *words, self.args.precision])

    def title(self):
        """The title for figures."""
        return f'{self.network.results_folder().name}: {self.name}, {self.data.label}'

    def source(self, images, split='test', classes_of=None, rows=None):
        """The MapSource of images. classes_of, rows: of FolderMaps."""
        args, options = self.args, {'model': self.model, 'precision': self.args.precision}
        of_network = {'seed': args.seed, 'settings': config.sampling_settings(args), 'classifier': self.network.model}
        if self.folder is not None:
            source = FolderMaps(self.folder, split, images, classes_of, rows, **options)
        elif args.score_map_process == config.OBJECT_MASK:
            source = ObjectMasks(images, self.data.annotations(), **options)
        elif self.contrast:
            source = ContrastMaps(images, method=self.contrast, **options, **of_network)
        else:
            superclasses = self._superclasses(images) if self.entry.needs_superclasses else None
            source = NetworkMaps(images, method=self.method, superclasses=superclasses, **options, **of_network)
        source.is_blurred = args.get('control') == 'blurred'
        return source

    def _superclasses(self, images):
        """(C,C) bool, of the network's classes. Raises UserError if nothing says which classes these are."""
        args, checkpoint, data = self.args, self.network.checkpoint, self.data
        if data is None and args.superclass_file is None and 'dataset' not in {*args.given, *checkpoint.known}:
            raise UserError(f'{checkpoint.path} does not say what its classes are, so their superclasses are '
                            'unknown: name the data set by --dataset, or list them in --superclass_file (YAML, "label: '
                            '[labels]")')
        data = data or _named_data(find_dataset, args, checkpoint)
        return data.superclasses(images.class_names, args.superclass_file, self.network.model.conv_last.out_channels)

    def result_file(self, images, sources=(), truth=None):
        """The ResultFile of the metric on images. All processes of a run call it before the first image.

        sources: the MapSources. truth: SHA-256 of what the metric compares their maps with.
        """
        dropped = self.args.get('drop_lowest')
        names = [self.name, *self.scale(), *([f'lowest{dropped:.10g}dropped'] if dropped else [])]
        maps = [source.fingerprint() for source in sources]
        return self.network.result_file(self.metric, self.data, images, *names, args=self.args, truth=truth,
                                        maps=combined(maps) if any(maps) else None)


def choose_maps(network, data, metric=None, contrast=None, **flags):
    """The ChosenMaps that the flags ask for; the paper's method by default. Raises UserError if the network or the data
    has no such maps, or if flags contradict each other.

    data: None for photos that belong to no data set. metric: a key of result_files.SCALES, or one without a scale.
    contrast: a contrast method, instead of an attribution method. flags: these replace the network's.
    """
    args = Munch(network.args, **flags)
    gradients = args.score_map_method == 'backprop'  # how the published command line asks for them
    stated = next((name for name in ('score_map_process', 'scoremap_root') if args.get(name)), None)
    if contrast and (stated or gradients):
        raise UserError('--contrast_method makes one map for two classes, '
                        f'--{stated or "score_map_method=backprop"} one map for each; leave one of them out')
    if gradients and (not stated or args.score_map_process == 'vanilla'):
        args.score_map_process = 'backprop'
    elif not (contrast or stated):
        args.score_map_process = network.model.default_method
    entry = None
    if contrast:
        entry = find_contrast(contrast, type(network.model))
    elif not args.get('scoremap_root') and args.score_map_process != config.OBJECT_MASK:
        entry = find_method(args.score_map_process, type(network.model))
    if gradients and entry and entry.one_forward:
        raise UserError(f'--score_map_method=backprop contradicts --score_map_process={args.score_map_process}, which '
                        'uses no gradient; leave one of them out')
    for flag, usual in result_files.usual_scale(metric, args.score_map_process, contrast).items():
        args[flag] = args[flag] or usual
    is_random = args.get('control') == 'random_weights'
    if is_random and entry is None:
        raise UserError(f'--control=random_weights draws the weights of a network anew, and --{stated}={args[stated]} '
                        'takes maps that no network makes; leave one of them out')
    return ChosenMaps(network, data, metric, args, contrast, entry, network.untrained if is_random else network.model)
