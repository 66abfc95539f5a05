"""What the evaluations share: their settings, where their results go, and where their maps come from.

Maps come from a network, from files made elsewhere (--scoremap_root), or are the object's segmentation, a control.
"""
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

import config
import data_loaders
import util
from checkpoints.loading import load_model
from util import UserError
from wsol import METHODS, attribution, superclasses
from wsol.attribution import PROCESSES
from wsol.cub import CueAnnotations

TRAINING = {name for name, *_ in config.FLAGS['training']} - {'batch_size'}


def recorded_settings(args):
    """The settings that a result file records."""
    return {key: args[key] for key in sorted(args) if key not in TRAINING | {'given', 'class_names'}}


def results_folder(args, checkpoint_path):
    """Where an evaluation's results go: --experiment_name's folder; where that is not said, the
    folder of the checkpoint if it is an experiment's."""
    if checkpoint_path is not None and 'experiment_name' not in args.given:
        folder, root = checkpoint_path.parent.resolve(), Path(args.save_root).resolve()
        if folder.is_relative_to(root):
            return Path(args.save_root) / folder.relative_to(root)
    return util.experiment_folder(args)


def results_name(args):
    """<method>_<process>_<norm> of a result file; for maps made elsewhere their folder's name, and a number that
    tells two folders of one name apart, instead."""
    if args.scoremap_root is not None:
        folder = Path(args.scoremap_root).resolve()
        return f'maps-{folder.name}-{zlib.crc32(bytes(folder)):08x}_{args.norm_type}'
    return '_'.join([args.attribution_method, args.score_map_process, args.norm_type])


def is_per_class(args):
    """Whether the maps of two classes can differ."""
    if args.scoremap_root is not None:
        return True
    process = args.score_map_process
    return process != config.OBJECT_MASK and PROCESSES[process].per_class


def check_process(args):
    """Raise UserError, before any work, where --score_map_process is not defined."""
    if args.scoremap_root is not None:
        if not Path(args.scoremap_root).is_dir():
            raise UserError(f'--scoremap_root={args.scoremap_root}: no such folder')
        return
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


def open_evaluation(args, needs_model=True):
    """What every evaluation does before its first image. Returns (model, its checkpoint's path, args, device).

    Without needs_model, maps made elsewhere are evaluated without a network, unless --load_checkpoint names one;
    model and path are then None.
    """
    device, model, path = util.pick_device(args.device), None, None
    if needs_model or args.scoremap_root is None or args.load_checkpoint is not None:
        model, path, args = load_model(args, device)
    check_process(args)
    args.seed = util.seed_everything(args.seed)
    return model, path, args, device


def map_source(args, model, dataset, split='test'):
    """A function (images (B,3,S,S), classes (B,) or (B,K), indices (B,)) -> maps, as attribution_maps gives them.

    Where the maps come from: the model, --scoremap_root, or the object's segmentation. Maps of different sizes, which
    only --scoremap_root can hold, come as a list.
    """
    if args.scoremap_root is not None:
        return _maps_from_files(Path(args.scoremap_root), dataset, split)
    process = args.score_map_process
    if process == config.OBJECT_MASK:
        annotations = CueAnnotations(data_loaders.cub_root(args))

        def masks(images, classes, indices):
            found = [annotations.object_mask(dataset.image_id(index), images.shape[-1]) for index in indices.tolist()]
            found = torch.from_numpy(np.stack(found)).float().to(images.device)
            return found if classes.ndim == 1 else found[:, None].expand(-1, classes.shape[1], -1, -1)
        return masks

    settings = attribution.Settings(args.smooth_grad_nr_iter, args.smooth_grad_sigma, args.integrated_grad_nr_iter)
    members = find_superclasses(args, lambda: data_loaders.class_names(dataset, args))

    def maps(images, classes, indices):
        seeds = util.image_seeds(args.seed, indices)
        with util.autocast(args, images.device):
            return attribution.attribution_maps(model, images, classes, process, seeds=seeds, superclasses=members,
                                                settings=settings)
    return maps


def _read_map(places):
    """The first of these .npy files that is there: (h,w) float32."""
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f'no score map: looked for {", ".join(map(str, places))}')
    try:
        with open(path, 'rb') as file:
            values = np.load(file, allow_pickle=False)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f'{path} is no score map: {error}') from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in 'biuf' or values.ndim != 2 or not values.size:
        what = f'{values.dtype} of shape {values.shape}' if isinstance(values, np.ndarray) else type(values).__name__
        raise UserError(f'{path} is no score map: it should be a two-dimensional array of real numbers, it is {what}')
    with np.errstate(over='ignore'):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f'{path} is no score map: it holds values that are infinite or no number in float32')
    return torch.from_numpy(values)


def _maps_from_files(root, dataset, split):
    """One map per image, <root>/<split>/<image_id>.npy or <root>/<image_id>.npy; where several classes are asked for,
    one per image and class, <root>/<split>/<label>/<image_id>.npy."""
    def maps(images, classes, indices):
        names = [f'{dataset.image_id(index)}.npy' for index in indices.tolist()]
        if classes.ndim == 1:
            found = [_read_map([root / split / name, root / name]) for name in names]
        else:
            found = [_stack([_read_map([root / split / str(label) / name]) for label in labels], name)
                     for name, labels in zip(names, classes.tolist(), strict=True)]
        same = len({one.shape for one in found}) == 1
        return torch.stack(found).to(images.device) if same else [one.to(images.device) for one in found]
    return maps


def _stack(maps, name):
    if len({one.shape for one in maps}) > 1:
        raise UserError(f'the score maps of {name} have different sizes for different classes')
    return torch.stack(maps)


def find_superclasses(args, class_names):
    """(C,C) bool: --superclass_file, or the data set's own: all birds of CUB, ToyBirds' families, WordNet. None for
    the methods that need none. class_names: a function () -> names."""
    if 'superclass' not in args.score_map_process:
        return None
    count = data_loaders.dataset_spec(args).num_classes
    if args.superclass_file is not None:
        return superclasses.read_superclass_file(args.superclass_file, count)
    builtin = {'CUB': lambda: torch.ones(count, count, dtype=torch.bool),
               'ToyBirds': lambda: superclasses.by_prefix(class_names()),
               'ILSVRC': lambda: superclasses.wordnet(Path(args.metadata_root) / 'ILSVRC' / 'helper', count)}
    if args.dataset not in builtin:
        raise UserError(f'{args.dataset} has no superclasses of its own; list them in --superclass_file (YAML, '
                        '"label: [labels]")')
    return builtin[args.dataset]()
