"""From a checkpoint to attribution maps: load a model, run a loader through it once."""
from pathlib import Path

import numpy as np
import torch
from munch import Munch

import config
import data_loaders
import util
from checkpoints import published
from util import UserError
from wsol import METHODS, attribution, build_model, superclasses
from wsol.attribution import PROCESSES
from wsol.cub import CueAnnotations

TRAINING = {name for name, *_ in config.FLAGS['training']} - {'batch_size'}
# what a checkpoint says of itself, beyond its network: taken over where the command line is silent
RECORDED = ('dataset', 'resize_size', 'crop_size')
PLACEHOLDER = 'checkpoint_name'  # as written in the published commands: the experiment's own


def network_settings(args, num_classes):
    """The arguments of build_model, as the flags have them; a checkpoint carries the same dict."""
    return {'architecture': args.architecture, 'attribution_method': args.attribution_method,
            'num_classes': num_classes, 'large_feature_map': args.large_feature_map, 'use_bn': args.use_bn,
            'prior': args.prior, 'last_stage': args.last_stage}


def wants_checkpoint(args):
    """Whether main.py is to start from a checkpoint: --use_load_checkpoint, or a named one."""
    return args.use_load_checkpoint if 'use_load_checkpoint' in args.given else args.load_checkpoint is not None


def find_checkpoint(args):
    """The file that --load_checkpoint names: a file, a folder, an experiment, a published weight; by default
    this experiment's own."""
    own = util.experiment_folder(args) / util.CHECKPOINT
    name = args.load_checkpoint
    if name is None:
        places = [own]
    else:
        places = [Path(name), Path(name) / util.CHECKPOINT, Path(args.save_root) / name / util.CHECKPOINT]
        if Path(name).name == PLACEHOLDER:
            places.append(own)
    found = next((place for place in places if place.is_file()), None)
    if found is None and published.canonical(name):
        return published.ensure(published.canonical(name))
    if found is None:
        raise UserError(f'no checkpoint: looked for {", ".join(map(str, places))}. Train one with main.py '
                        f'--experiment_name={args.experiment_name}, or name one with --load_checkpoint: a file, a '
                        f'folder, an experiment, or one of {", ".join(published.DRIVE_IDS)}')
    return found


def open_checkpoint(args):
    """The checkpoint that --load_checkpoint names. Returns (path, dict)."""
    path = find_checkpoint(args)
    return path, published.record(path) | util.read_checkpoint(path)


def load_model(args, device):
    """The network of --load_checkpoint (default: the experiment's own), in eval mode on the device.

    Returns (model, path, args) where args also has what the checkpoint knows and the command line
    does not say. Raises UserError where flags and checkpoint disagree.
    """
    args = Munch(args)
    path, checkpoint = open_checkpoint(args)
    settings = checkpoint.get('model', {})
    known = {key: checkpoint['args'][key] for key in RECORDED if key in checkpoint.get('args', {})}
    known |= {key: value for key, value in settings.items() if key != 'num_classes'}
    for key, value in known.items():
        if key in settings and key in args.given and args[key] != value:
            raise UserError(f'{path} was trained with --{key}={value}, not --{key}={args[key]}; leave the flag out '
                            'or name another checkpoint')
        if key not in args.given:
            args[key] = value
    num_classes = data_loaders.dataset_spec(args).num_classes
    if settings.get('num_classes', num_classes) != num_classes:
        raise UserError(f'{path} tells {settings["num_classes"]} classes apart, {args.dataset} has {num_classes}')
    model = build_model(**network_settings(args, num_classes), pretrained=False)
    util.load_weights(model, checkpoint, path)
    model = model.to(device, memory_format=util.memory_format(device)).eval()
    return model, path, args


def evaluation_settings(args):
    """The settings that a result file records."""
    return {key: args[key] for key in sorted(args) if key not in TRAINING and key != 'given'}


def results_folder(args, checkpoint_path):
    """Where an evaluation's results go: --experiment_name's folder; where that is not said, the
    folder of the checkpoint if it is an experiment's."""
    folder = checkpoint_path.parent
    if 'experiment_name' not in args.given and folder.is_relative_to(args.save_root):
        return folder
    return util.experiment_folder(args)



def is_per_class(process):
    """Whether the maps of two classes can differ."""
    return process != config.OBJECT_MASK and PROCESSES[process].per_class


def check_process(args):
    """Raise UserError, before any work, where --score_map_process is not defined."""
    if args.score_map_method == 'backprop' and args.score_map_process == 'vanilla':
        args.score_map_process = 'backprop'  # how the published command line asks for it
    if args.score_map_method == 'backprop' and args.score_map_process in attribution.ACTIVATION_METHODS:
        raise UserError(f'--score_map_method=backprop contradicts --score_map_process={args.score_map_process}, which '
                        'is read off the activations; leave one of them out')
    if args.score_map_process == config.OBJECT_MASK:
        if data_loaders.dataset_spec(args).cub_folder is None:
            raise UserError(f'--score_map_process={config.OBJECT_MASK} needs segmentations in CUB\'s layout; '
                            f'{args.dataset} has none')
    else:
        attribution.check_process(args.score_map_process, METHODS[args.attribution_method])


def map_source(args, model, dataset):
    """A function (images (B,3,S,S), classes (B,) or (B,K), indices (B,)) -> maps, as attribution_maps gives them."""
    process = args.score_map_process
    if process == config.OBJECT_MASK:
        annotations = CueAnnotations(data_loaders.cub_root(args))

        def masks(images, classes, indices):
            found = [annotations.object_mask(dataset.image_id(index), images.shape[-1]) for index in indices.tolist()]
            found = torch.from_numpy(np.stack(found)).float().to(images.device)
            return found if classes.ndim == 1 else found[:, None].expand(-1, classes.shape[1], -1, -1)
        return masks

    settings = attribution.Settings(args.smooth_grad_nr_iter, args.smooth_grad_sigma, args.integrated_grad_nr_iter)
    members = find_superclasses(args, dataset) if 'superclass' in process else None

    def maps(images, classes, indices):
        seeds = util.image_seeds(args.seed, indices)
        with util.autocast(args, images.device):
            return attribution.attribution_maps(model, images, classes, process, seeds=seeds, superclasses=members,
                                                settings=settings)
    return maps


def find_superclasses(args, dataset):
    """(C,C) bool: --superclass_file, or the data set's own: all birds of CUB, ToyBirds' families, WordNet."""
    count = data_loaders.dataset_spec(args).num_classes
    if args.superclass_file is not None:
        return superclasses.read_superclass_file(args.superclass_file, count)
    builtin = {'CUB': lambda: torch.ones(count, count, dtype=torch.bool),
               'ToyBirds': lambda: superclasses.by_prefix(data_loaders.class_names(dataset, count)),
               'ILSVRC': lambda: superclasses.wordnet(Path(args.metadata_root) / 'ILSVRC' / 'helper', count)}
    if args.dataset not in builtin:
        raise UserError(f'{args.dataset} has no superclasses of its own; list them in --superclass_file (YAML, '
                        '"label: [labels]")')
    return builtin[args.dataset]()
