"""What the evaluations share: what they open before their first image, and the files their results go to.

A result knows what it was measured on: the data set, split and images, the checkpoint, its epoch and the SHA-256 of its
weights, the settings and the versions. Its file's name tells apart results of other weights and of other images.
"""
import hashlib
import json
import platform
import subprocess
import sys
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from munch import Munch
from torch import nn

import config
import processes
import util
import weights
import whole_files
from data_loaders import DataSet, find_dataset, make_loader
from dataset import open_dataset
from image_files import eval_transform
from map_sources import ContrastMaps, FolderMaps, NetworkMaps, ObjectMasks
from util import UserError
from wsol._torchvision import torchvision
from wsol.compiled import compile_backbone
from wsol.contrast import CONTRASTS, check_contrast
from wsol.folding import fold_batchnorm
from wsol.heads import CALM
from wsol.networks import check_image_size
from wsol.query import PROCESSES, SamplingSettings, check_process


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
        if 'superclass' in args.score_map_process:
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
        compiled = ['compiled'] if self.args.compile and self.model and self.script in config.EVALUATIONS else []
        return ', '.join([f'maps: {self.maps_name()}', *chosen, self.args.precision, *compiled])

    def maps_name(self):
        """<method>_<process>; for maps made elsewhere their folder's name, and a number that tells two apart."""
        if self.args.scoremap_root is not None:
            folder = Path(self.args.scoremap_root).resolve()
            return f'maps-{folder.name}-{zlib.crc32(bytes(folder)):08x}'
        return f'{self.args.attribution_method}_{self.contrast_method() or self.args.score_map_process}'

    def contrast_method(self):
        """Of config's table, where a contrast method takes the place of an attribution method; else None."""
        return contrast_in_place(self.args, self.script)

    def title(self):
        """Of figures: the experiment, the maps, the data set."""
        return f'{self.results_folder().name}: {self.maps_name()}, {self.data.label}'

    def result_file(self, metric, images, split='test', *more):
        """The ResultFile of a metric. images: what it was measured on. more: further parts of its name."""
        settings = config.recorded_settings(self.args, self.script)
        about = identity(metric, self.data, split, images, self.checkpoint, settings)
        key = hashlib.sha256(f'{about["images_sha256"]} {about["weights_sha256"]}'.encode()).hexdigest()[:8]
        return ResultFile(self.results_folder() / ('_'.join([metric, self.data.label, *more]) + f'.{key}.json'), about,
                          self.device)

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


def identity(metric, data, split, images, checkpoint, settings):
    """What a result says of itself: what was measured, on which images, of which network, how."""
    return {'metric': metric, 'dataset': data.label, 'split': split, 'images': len(images),
            'images_sha256': images.fingerprint(), **checkpoint_identity(checkpoint), 'settings': settings}


def checkpoint_identity(checkpoint):
    """What a result says of its network."""
    if checkpoint is None:
        return {'checkpoint': None, 'epoch': None, 'weights_sha256': None}
    return {'checkpoint': str(checkpoint.path), 'epoch': checkpoint.epoch, 'weights_sha256': checkpoint.sha256}


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
        if args.compile:
            compile_backbone(model)
    elif model is not None and args.compile and script in config.EVALUATIONS:
        method = contrast_in_place(args, script) or args.score_map_process
        raise UserError(f'--compile is for evaluations that run forwards alone, and {method} needs more; leave it out')
    if script in config.RUNS:
        args.precision = util.pick_precision(args.precision, device)
        args.workers = util.pick_workers(args.workers, 'workers' in args.given)
        args.seed = args.seed or 0
        util.seed_everything(args.seed)
    run = Evaluation(script, args, device, data, checkpoint, model)
    if script in config.MAPS:
        util.say(run.describe())
    return run


def _find_network(args, script):
    """The Checkpoint that the flags name. Pictures and exports of a --architecture without any checkpoint are those of
    torchvision's or timm's trained classifier."""
    names_own = {'load_checkpoint', 'experiment_name'} & set(args.given)
    if script in ('inference', 'export') and 'architecture' in args.given and not names_own:
        return weights.TrainedClassifier.of(args.architecture, args.pretrained)
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
    # None: maps that no network makes, or that are read off the activations
    maps = PROCESSES.get(contrast.removesuffix('-difference') if contrast else args.score_map_process)
    return script == 'main' or script in config.EVALUATIONS and (
        args.scoremap_root is not None or maps is None or maps.one_forward)


def _choose_maps(args, model, data, script):
    """The flags with the attribution method and its scale. Raises UserError where the network or the data has none."""
    args = _with_defaults(args, model, script)
    if contrast_in_place(args, script):
        check_contrast(args.contrast_method, type(model))
    elif args.score_map_process == config.OBJECT_MASK:
        data.annotations()
    elif args.scoremap_root is None:
        check_process(args.score_map_process, type(model))
    return args


def _with_defaults(args, model, script):
    """The attribution method and how its maps are normalised and binned, where the flags are silent: the paper's.
    Raises UserError where --score_map_method contradicts the process."""
    args = Munch(args)
    gradients = args.score_map_method == 'backprop'  # how the published command line asks for them
    contrast = CONTRASTS.get(contrast_in_place(args, script))
    if contrast and (args.score_map_process or args.scoremap_root or gradients):
        raise UserError('--contrast_method makes one map of two classes, --score_map_process one of each; leave one of '
                        'them out')
    if args.scoremap_root is None and args.score_map_process is None and contrast is None:
        args.score_map_process = 'backprop' if gradients else model.own_maps
    if gradients and args.score_map_process == 'vanilla':
        args.score_map_process = 'backprop'
    process = PROCESSES.get(args.score_map_process)
    if gradients and process and process.one_forward:
        raise UserError(f'--score_map_method=backprop contradicts --score_map_process={args.score_map_process}, which '
                        'is read off the activations; leave one of them out')
    norm_type, threshold_type = own_scale(args.score_map_process, contrast_in_place(args, script), script)
    args.norm_type, args.threshold_type = args.norm_type or norm_type, args.threshold_type or threshold_type
    return args


def own_scale(process, contrast, script):
    """(norm, thresholds) of the maps of an attribution method or, in its place, of a contrast method.

    CALM's own maps are probabilities: taken as they are, on a logarithmic scale. All others are scaled to 0..1 one by
    one; so are all maps in the WSOL evaluation, whose thresholds are shares of a map's range.
    """
    if contrast:
        probabilities = CONTRASTS[contrast].unit == 'probability'
    else:
        probabilities = process in PROCESSES and PROCESSES[process].head is CALM
    return 'clipping' if probabilities and script != 'eval_wsol' else 'minmax', 'log' if probabilities else 'even'


# --- results ----------------------------------------------------------------------------------------


def versions():
    """What a result depends on beyond its settings."""
    return {'python': platform.python_version(), 'torch': torch.__version__, 'torchvision': torchvision.__version__,
            'numpy': np.__version__, 'commit': commit()}


@lru_cache
def commit():
    """The git commit of this code, with -dirty where files differ from it; None where there is none."""
    describe = ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine(device):
    """What computed. The number of threads can move the last digits: sums are taken in another order."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else _processor()
    return {'device': f'{device.type}: {name}', 'threads': torch.get_num_threads()}


def _processor():
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):  # macOS, and processors that give no name there
        return platform.processor() or platform.machine()


@dataclass(frozen=True)
class ResultFile:
    """One JSON file of results; figures go beside it under the same name."""
    path: Path
    identity: dict
    device: torch.device

    def figure(self):
        """The path of its figure."""
        return self.path.with_suffix('.png')

    def unfinished(self):
        """The path of what is measured so far."""
        return self.path.with_name(f'{self.path.name}.unfinished')

    def write_unfinished(self, measured):
        """Keep what is measured so far, for whoever interrupts the rest. An earlier result of this name stays."""
        whole_files.write_json(self.unfinished(), self._content(measured))

    def write(self, measured):
        """Write what was measured with what it was measured on. An earlier result of this name is of the same weights
        and images: what differs in its settings is said."""
        content = self._content(measured)
        before = read_result(self.path)['settings']
        now = json.loads(json.dumps(self.identity['settings']))  # as a file has them: lists, no tuples
        earlier = {name: flag.default for name, flag in config.ALL_FLAGS.items()} | before  # it may know fewer flags
        changed = [f'{name} was {earlier.get(name)}, is {value}' for name, value in now.items()
                   if before and earlier.get(name) != value]
        whole_files.write_json(self.path, content)
        self.unfinished().unlink(missing_ok=True)
        replaced = f' replaces an earlier result ({"; ".join(changed)})' if changed else ''
        util.say(f'{self.path}{replaced}')

    def _content(self, measured):
        return {**self.identity, **measured, 'versions': versions(), 'machine': machine(self.device),
                'command': command_line()}


def command_line():
    """The command that this process was started by."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def digits(outcomes):
    """(N,) bool -> '0110...': how a result holds an outcome of every image, in their order."""
    return ''.join(map(str, np.asarray(outcomes, int)))


def from_digits(text):
    """'0110...' -> (N,) float."""
    return np.array(list(text), float)


def read_result(path):
    """A result's content, with its settings; both {} where there is nothing that can be read."""
    content = whole_files.read_json(path)
    content = content if isinstance(content, dict) else {}
    settings = content.get('settings')
    return content | {'settings': settings if isinstance(settings, dict) else {}}


def find_result(folder, metric, process, weights_sha256, **settings):
    """The latest result of a metric and an attribution method for these weights, in an experiment's folder. process:
    None where contrast_method is among the settings. settings: those that a command line states; all others are as
    they are where it is silent, so that a result of another threshold step, say, is none. Raises UserError."""
    script = f'eval_{metric}'
    usual = config.usual_settings(script)
    expected = usual | dict(zip(('norm_type', 'threshold_type'), own_scale(
        process, settings.get('contrast_method'), script), strict=True))
    expected = {name: value for name, value in expected.items() if name in usual} | {'score_map_process': process}
    expected = _as_compared(expected | settings)
    for path in sorted(Path(folder).glob(f'{metric}_*.json'), key=lambda path: -path.stat().st_mtime_ns):
        content = read_result(path)
        own = _as_compared(usual | content['settings'])  # an earlier version knew fewer flags
        if content.get('weights_sha256') == weights_sha256 and all(
                own.get(name) == value for name, value in expected.items()):
            return content
    stated = ' '.join(f'--{name}={value}' for name, value in ({'score_map_process': process} | settings).items()
                      if value is not None)
    raise UserError(f'{folder} holds no result of {metric} with {stated} for these weights')


def _as_compared(settings):
    """Settings as a file has them, in one form where two mean the same."""
    settings = {name: value for name, value in json.loads(json.dumps(settings)).items() if name != 'score_map_method'}
    if settings.get('contrast_method') == 'difference':
        settings['contrast_method'] = None
    roots = {name: str(Path(settings[name]).resolve()) for name in ('data_root', 'metadata_root') if name in settings}
    return settings | roots
