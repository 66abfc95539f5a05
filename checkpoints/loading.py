"""Which checkpoint --load_checkpoint means, and the network in it."""
from pathlib import Path

from munch import Munch

import data_loaders
import util
from checkpoints import published
from util import UserError
from wsol import build_model, check_image_size

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
    args.class_names = checkpoint.get('class_names')
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
    check_image_size(model, args.crop_size, device)
    return model, path, args
