"""What the evaluations share: the network, data and maps that they open before their first image."""
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from munch import Munch
from torch import nn

import config
import util
from data_loaders import make_loader
from dataset import open_dataset
from dataset.image_files import eval_transform
from dataset.registry import DataSet, find_dataset
from evaluation.map_sources import ContrastMaps, FolderMaps, NetworkMaps, ObjectMasks
from experiment import result_files, weights
from runtime import processes, screen, whole_files
from wsol.attribution.contrast import CONTRASTS, default_scale, find_contrast
from wsol.attribution.registry import METHODS, SamplingSettings, find_method
from wsol.errors import UserError
from wsol.networks import check_image_size
from wsol.speed.folding import fold_batchnorm


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation works with. checkpoint and model are None where maps made elsewhere need no network."""
    script: str
    args: Munch            # the flags, completed by what the checkpoint knows, and by the defaults of the head
    device: torch.device
    data: DataSet
    checkpoint: weights.Checkpoint | None
    model: nn.Module | None

    def transform(self):
        """PIL image -> (3,S,S), as the network takes it."""
        normalisation = {'normalisation': self.checkpoint.normalisation} if self.checkpoint else {}
        return eval_transform(self.args.crop_size, **normalisation)

    def open_split(self, split):
        """The ImageDataset of a split, as evaluations see it."""
        images = self.data.open_split(split, self.transform())
        images = images.without_broken(split) if self.args.skip_broken else images
        if self.args.cache:
            images = images.cached(Path(self.args.save_root) / 'cache', f'{self.data.label}_{split}')
        return images

    def loader(self, images):
        """Batches of a data set of images, in order; looks first whether what is measured on them can be written."""
        if processes.is_first():
            whole_files.check_writable(self.results_folder())
        return make_loader(images, self.args.batch_size, self.args.workers, self.device)

    def map_source(self, images, split, classes_of=None, rows=None):
        """Where the maps of images come from. classes_of, rows: of FolderMaps."""
        args, options = self.args, {'model': self.model, 'precision': self.args.precision}
        if args.scoremap_root is not None:
            return FolderMaps(args.scoremap_root, split, images, classes_of, rows, **options)
        if self.contrast_method():
            return ContrastMaps(images, self.model, self.contrast_method(), args.precision, args.seed,
                                sampling_settings(args))
        if args.score_map_process == config.OBJECT_MASK:
            return ObjectMasks(images, self.data.annotations(), **options)
        members = None
        if METHODS[args.score_map_process].needs_superclasses:
            members = self._superclasses(images)
        return NetworkMaps(images, process=args.score_map_process, seed=args.seed, superclasses=members,
                           settings=sampling_settings(args), **options)

    def _superclasses(self, images):
        """(C,C) bool, of the network's classes. Raises UserError where nothing says what classes these are."""
        file = self.args.superclass_file
        if file is None and self.script == 'inference' and 'dataset' not in {*self.args.given, *self.checkpoint.known}:
            raise UserError(f'{self.checkpoint.path} does not say what its classes are, so that their superclasses are '
                            'unknown: name the data set by --dataset, or list them in --superclass_file (YAML, "label: '
                            '[labels]")')
        return self.data.superclasses(images.class_names, file, self.model.conv_last.out_channels)

    def with_maps(self, **chosen):
        """The same network and data, asked for the maps of other flags. Raises UserError where it has none such."""
        return replace(self, args=_choose_maps(Munch(self.args, **chosen), self.model, self.data, self.script))

    def describe(self):
        """One line: which maps, and how they are made comparable."""
        chosen = [f'{word} {self.args[flag]}' for word, flag in
                  (('norm', 'norm_type'), ('thresholds', 'threshold_type'))
                  if self.script in config.ALL_FLAGS[flag].readers]
        return ', '.join([f'maps: {self.maps_name()}', *chosen, self.args.precision])

    def maps_name(self):
        """<method>_<process>; for maps made elsewhere their folder's name, and a number that tells two apart."""
        if self.args.scoremap_root is not None:
            folder = Path(self.args.scoremap_root).resolve()
            return f'maps-{folder.name}-{zlib.crc32(bytes(folder)):08x}'
        contrast = self.contrast_method()
        process = result_files.contrast_name(contrast) if contrast else self.args.score_map_process
        return f'{self.args.attribution_method}_{process}'

    def contrast_method(self):
        """Of config's table, where a contrast method takes the place of an attribution method; else None."""
        return contrast_in_place(self.args, self.script)

    def title(self):
        """Of figures: the experiment, the maps, the data set."""
        return f'{self.results_folder().name}: {self.maps_name()}, {self.data.label}'

    def result_file(self, metric, images, split='test', *more):
        """The ResultFile of a metric. images: what it was measured on. more: further parts of its name."""
        settings = config.recorded_settings(self.args, self.script)
        about = result_files.identity(metric, self.data, split, images, self.checkpoint, settings)
        known = self.checkpoint.known if self.checkpoint else {}
        usual = {'crop_size': known.get('crop_size', config.ALL_FLAGS['crop_size'].default)}
        if self.checkpoint and not self.checkpoint.network:  # of weights alone the flags make different networks
            usual |= {name: flag.default for name, flag in config.ALL_FLAGS.items() if flag.network}
        key = result_files.key(about, self.script, **usual)
        name = '_'.join([metric, self.data.label, *more]) + f'.{key}.json'
        return result_files.ResultFile(self.results_folder() / name, about, self.device)

    def results_folder(self):
        """--output of pictures, else --experiment_name's folder; where that is not said, the checkpoint's experiment,
        or a folder named like the published weight."""
        args, checkpoint = self.args, self.checkpoint
        if self.script == 'inference':
            return Path(args.output)
        if checkpoint is not None and 'experiment_name' not in args.given:
            if checkpoint.name:
                return Path(args.save_root) / checkpoint.name
            folder, root = checkpoint.path.parent.resolve(), Path(args.save_root).resolve()
            if folder.is_relative_to(root):
                return Path(args.save_root) / folder.relative_to(root)
        return weights.experiment_folder(args.save_root, args.experiment_name)


def contrast_in_place(args, script):
    """The contrast method that cue localization measures in place of differences of maps; None where none is."""
    asked = args.contrast_method if script == 'eval_cue_location' else None
    return None if asked == 'difference' else asked


def sampling_settings(args):
    """The SamplingSettings that the flags state."""
    return SamplingSettings(args.smooth_grad_nr_iter, args.smooth_grad_sigma, args.integrated_grad_nr_iter)


def open_evaluation(args, script, needs_model=True, needs_data=True):
    """The Evaluation that the flags ask for. Raises UserError, before any work, for what cannot be done.

    needs_model: else maps made elsewhere are evaluated without a network, unless --load_checkpoint names one.
    needs_data: else the data set only gives names and superclasses, as for a user's own photos.
    """
    device, checkpoint, model = util.pick_device(args.device), None, None
    processes.join(device)
    if script == 'main' or script in config.EVALUATIONS:
        util.try_algorithms(device)
    if needs_model or args.scoremap_root is None or args.load_checkpoint is not None:
        checkpoint = _find_network(args, script)
        args = config.adopt(args, checkpoint.path, checkpoint.known, checkpoint.network)
    open_data = open_dataset if needs_data else find_dataset  # which paints nothing
    data = open_data(args.dataset, args.data_root, args.metadata_root, args.mask_root,
                     checkpoint and checkpoint.class_names)
    if checkpoint is not None:
        num_classes = data.num_classes if needs_data else checkpoint.num_classes or data.num_classes
        model = checkpoint.build(config.network_settings(args), num_classes, device)
        check_image_size(model, args.crop_size)
    if script in config.MAPS:
        args = _choose_maps(args, model, data, script)
    if model is not None and only_runs_forward(args, script):
        fold_batchnorm(model, args.crop_size)
    if script in config.RUNS:
        args.precision = util.pick_precision(args.precision, device)
        args.workers = util.pick_workers(args.workers, 'workers' in args.given)
        args.seed = args.seed or 0
        util.seed_everything(args.seed)
    run = Evaluation(script, args, device, data, checkpoint, model)
    if script in config.MAPS:
        screen.say(run.describe())
    return run


def _find_network(args, script):
    """The Checkpoint that the flags name. Pictures and exports of a --architecture without any checkpoint are those of
    torchvision's or timm's trained classifier."""
    names_own = {'load_checkpoint', 'experiment_name'} & set(args.given)
    if script in ('inference', 'export') and 'architecture' in args.given and not names_own:
        return weights.trained_classifier(args.architecture, args.pretrained)
    own = weights.experiment_folder(args.save_root, args.experiment_name)
    try:
        path = weights.find_checkpoint(args.load_checkpoint, args.save_root, own)
    except UserError as error:
        if script == 'inference' and not names_own:
            raise UserError(f'{error}. Without any training: --architecture=resnet50') from error
        raise
    return weights.open_network(path, args.architecture)


def only_runs_forward(args, script):
    """Whether a script asks its network for forwards alone: no gradient, no other network made of it."""
    contrast = contrast_in_place(args, script)
    maps = CONTRASTS[contrast] if contrast else METHODS.get(args.score_map_process)  # None: no network makes them
    return script == 'main' or script in config.EVALUATIONS and (
        args.scoremap_root is not None or maps is None or maps.one_forward)


def _choose_maps(args, model, data, script):
    """The flags with the attribution method and its scale. Raises UserError where the network or the data has none."""
    args = _with_defaults(args, model, script)
    if contrast_in_place(args, script):
        find_contrast(args.contrast_method, type(model))
    elif args.score_map_process == config.OBJECT_MASK:
        data.annotations()
    elif args.scoremap_root is None:
        find_method(args.score_map_process, type(model))
    return args


def _with_defaults(args, model, script):
    """The attribution method and how its maps are normalised and binned, where the flags are silent: the paper's.
    Raises UserError where --score_map_method contradicts the process."""
    args = Munch(args)
    gradients = args.score_map_method == 'backprop'  # how the published command line asks for them
    contrast = CONTRASTS.get(contrast_in_place(args, script))
    other = next((name for name in ('score_map_process', 'scoremap_root') if args[name]), None)
    if contrast and (other or gradients):
        raise UserError('--contrast_method makes one map of two classes, '
                        f'--{other or "score_map_method=backprop"} one of each; leave one of them out')
    if args.scoremap_root is None and args.score_map_process is None and contrast is None:
        args.score_map_process = 'backprop' if gradients else model.default_method
    if gradients and args.score_map_process == 'vanilla':
        args.score_map_process = 'backprop'
    process = METHODS.get(args.score_map_process)
    if gradients and process and process.one_forward:
        raise UserError(f'--score_map_method=backprop contradicts --score_map_process={args.score_map_process}, which '
                        'is read off the activations; leave one of them out')
    norm_type, threshold_type = default_scale(args.score_map_process, contrast_in_place(args, script),
                                              by_range=script == 'eval_wsol')
    args.norm_type, args.threshold_type = args.norm_type or norm_type, args.threshold_type or threshold_type
    return args
