"""What every script needs: clear errors, seeds, devices, files written whole, checkpoints."""
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

CHECKPOINT = 'last_checkpoint.pth.tar'
# an accuracy stored as a numpy number, by numpy 1 or 2, is as harmless as a float; plain weights_only refuses it
NUMPY_SCALARS = [(np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'), np._core.multiarray.scalar, np.dtype,
                 *(type(np.dtype(kind)) for kind in ('f4', 'f8', 'i4', 'i8'))]


class UserError(Exception):
    """What the user can mend: one line saying what, where, how. Scripts print it and exit with 2."""


def run(main):
    """Run a script's main(); a UserError becomes one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        # a loader's worker hands its error on wrapped in a traceback: the last line is ours
        print('error: ' + str(error).rsplit('UserError: ', 1)[-1].strip(), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('interrupted; what was finished is kept', file=sys.stderr)
        sys.exit(130)


def warn(message):
    print('warning: ' + message, file=sys.stderr)


def seed_everything(seed):
    """Seed python, numpy and torch; None draws a seed. Returns the seed, to be recorded."""
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  for libraries that draw from the global state
    torch.manual_seed(seed)
    return seed


def image_seeds(seed, indices):
    """(B,) int64: a seed of its own for each image, whatever the batch it comes in."""
    return seed * 1_000_003 + indices


def pick_device(name='auto'):
    """'auto' -> CUDA, else Apple's MPS, else the CPU."""
    usable = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    name = next(kind for kind, there in usable.items() if there) if name == 'auto' else name
    if not usable[name]:
        raise UserError(f'--device={name}: this machine or this build of torch has none; use --device=auto')
    return torch.device(name)


def memory_format(device):
    """Channels last is what CUDA's and the CPU's convolutions are fastest in."""
    return torch.contiguous_format if device.type == 'mps' else torch.channels_last


def to_device(images, device):
    """A batch of images (B,3,H,W) where and how the network wants them."""
    return images.to(device, non_blocking=True, memory_format=memory_format(device))


def autocast(args, device):
    """The context in which --precision holds."""
    return torch.autocast(device.type, torch.bfloat16, enabled=args.precision == 'bfloat16')


def progress(iterable, description, unit, **options):
    """A tqdm bar: smooth on a terminal; in a log a line now and then, none for bars that would vanish."""
    terminal = sys.stderr.isatty()
    return tqdm(iterable, description, unit=unit, dynamic_ncols=True, mininterval=0.2 if terminal else 15,
                disable=not terminal and not options.get('leave', True), **options)


def table(header, rows):
    """Text in columns: the first flush left, the others right. Numbers with one decimal."""
    def show(cell):
        return '-' if cell is None else f'{cell:.1f}' if isinstance(cell, float) else str(cell)

    cells = [[show(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ['  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])


# --- files: written whole or not at all ---------------------------------------------------------


def make_folder(path):
    """Make a folder, and those above it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot make the folder {path}: {error.strerror}') from error


def write_atomically(path, write):
    """write(temporary path), then put it in place: an interrupted write leaves the old file."""
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}') from error


def save_array(path, values):
    """np.save to exactly this path: it would add .npy to a temporary name."""
    with open(path, 'wb') as file:
        np.save(file, values)


def write_json(path, content):
    write_atomically(path, lambda file: file.write_text(json.dumps(content, indent=1) + '\n'))


def write_json_lines(path, lines):
    write_atomically(path, lambda file: file.write_text(''.join(json.dumps(line) + '\n' for line in lines)))


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


# --- checkpoints ------------------------------------------------------------------------------------


def experiment_folder(args):
    folder = Path(args.save_root) / args.experiment_name
    if not folder.resolve().is_relative_to(Path(args.save_root).resolve()):
        raise UserError(f'--experiment_name={args.experiment_name} leads out of --save_root={args.save_root}')
    return folder


def read_checkpoint(path):
    """The dict in a checkpoint file, tensors on the CPU. Nothing in the file is executed."""
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds; all mean that this file is not one of ours
        raise UserError(f'{path} cannot be read as a checkpoint ({type(error).__name__}): it is damaged, or no file of '
                        'torch.save, or holds more than weights and plain values') from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint')
    for key in ('state_dict', 'model', 'args', 'optimizer'):
        if not isinstance(checkpoint.get(key, {}), dict):
            raise UserError(f'{path} is no checkpoint: its {key} is a {type(checkpoint[key]).__name__}')
    odd = [name for name in checkpoint.get('state_dict', checkpoint) if not isinstance(name, str)]
    if odd:
        raise UserError(f'{path} is no checkpoint: {odd[0]!r} is no name of a weight')
    return checkpoint


def save_checkpoint(path, **content):
    write_atomically(path, lambda file: torch.save(content, file))


def load_weights(model, checkpoint, source, but_classifier=False):
    """Put a checkpoint's weights into the model, all of them or none.

    checkpoint: a dict with `state_dict`, or a state dict. but_classifier: leave conv_last as it is
    (fine-tuning on another label set), and the attention where one of the two is a CAM network.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    weights = {name.removeprefix('module.'): value for name, value in weights.items()}
    expected = model.state_dict()

    def has_attention(names):
        return any(name.startswith('attention.') for name in names)

    if 'model' not in checkpoint and not has_attention(expected):
        # the published CAM networks carry an attention layer that CAM never uses
        if has_attention(weights):
            warn(f'{source} has an attention layer, which CAM leaves out; if CALM trained it, say '
                 '--attribution_method=CALM_EM or CALM_ML')
        weights = {name: value for name, value in weights.items() if not name.startswith('attention.')}
    if but_classifier:
        kept = ('conv_last.',) if has_attention(weights) == has_attention(expected) else ('conv_last.', 'attention.')
        weights = {name: value for name, value in weights.items() if not name.startswith(kept)}
        weights.update({name: value for name, value in expected.items() if name.startswith(kept)})
    problems = [f'{name} is missing' for name in expected if name not in weights]
    problems += [f'{name} is not part of this network' for name in weights if name not in expected]
    problems += [f'{name} is {tuple(weights[name].shape)}, the network has {tuple(value.shape)}'
                 for name, value in expected.items()
                 if name in weights and getattr(weights[name], 'shape', None) != value.shape]
    if problems:
        shown = '; '.join(problems[:4]) + (f'; and {len(problems) - 4} more' if len(problems) > 4 else '')
        raise UserError(f'{source} does not fit the network: {shown}. Check --architecture, --attribution_method, '
                        '--dataset and --use_bn; for another label set add --is_different_checkpoint.')
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f'{source} holds a network that has diverged: {broken[0]} is not finite')
    model.load_state_dict(weights)
