"""What every script needs: clear errors, seeds, devices, progress bars, files written whole."""
import json
import os
import platform
import random
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from wsol.errors import UserError


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


# --- seeds ------------------------------------------------------------------------------------------


def draw_seed():
    """A new seed, to be recorded."""
    return random.SystemRandom().randrange(2**31)


def seed_everything(seed):
    """Seed python, numpy and torch (its generators on every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  for libraries that draw from the global state
    torch.manual_seed(seed)


def image_seeds(seed, indices):
    """(B,) int64: a seed of its own for each image, whatever the batch it comes in."""
    return seed * 1_000_003 + indices


# --- devices ----------------------------------------------------------------------------------------


def pick_device(name='auto'):
    """'auto' -> CUDA, else Apple's MPS, else the CPU. 'cuda:1' -> the second GPU."""
    usable = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    name = next(kind for kind, there in usable.items() if there) if name == 'auto' else name
    kind, _, number = name.partition(':')
    if not usable[kind]:
        raise UserError(f'--device={name}: this machine or this build of torch has none; use --device=auto')
    if number and int(number) >= torch.cuda.device_count():
        raise UserError(f'--device={name}: torch sees {torch.cuda.device_count()} GPUs here, numbered from cuda:0')
    return torch.device(name)


def computes_in_bfloat16(device):
    """Whether a device multiplies in bfloat16 itself: one that only emulates it is slower than in float32."""
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == 'cpu' and torch.backends.mkldnn.is_available():
        # what oneDNN calls supported includes processors of AVX-512 alone, on which it emulates
        emulates = platform.machine() in ('x86_64', 'AMD64') and not (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not emulates
    return False


def pick_precision(name, device, auto='float32'):
    """'float32' or 'bfloat16'. auto: what 'auto' means where the device computes in bfloat16; elsewhere it is float32.

    A bfloat16 that a GPU does not compute in becomes float32, with a warning; a CPU emulates it.
    """
    if name == 'auto':
        return auto if computes_in_bfloat16(device) else 'float32'
    usable = {'cuda': lambda: computes_in_bfloat16(device), 'mps': lambda: torch.backends.mps.is_macos_or_newer(14, 0),
              'cpu': lambda: True}
    if name == 'bfloat16' and not usable[device.type]():
        warn(f'--precision=bfloat16: this {device.type} device does not compute in bfloat16; float32 is used')
        return 'float32'
    return name


def autocast(precision, device):
    """The context in which the backbone computes in a precision, 'float32' or 'bfloat16'."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == 'bfloat16')


def memory_format(device):
    """Channels last is what CUDA's and the CPU's convolutions are fastest in."""
    return torch.contiguous_format if device.type == 'mps' else torch.channels_last


def to_device(tensor, device):
    """A tensor on the device; images (B,3,H,W) in the memory format its convolutions want.

    The copy may run beside the next work only from pinned memory to CUDA: elsewhere torch neither waits for it nor
    keeps the source (on MPS, silently wrong numbers: pytorch issue 189690).
    """
    layout = memory_format(device) if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(device, non_blocking=device.type == 'cuda' and tensor.is_pinned(), memory_format=layout)


def look_at(tensor):
    """A tensor's values as Python's numbers: in training the one place where the host waits for the device."""
    return tensor.tolist()


def usable_cores():
    """The cores that this process may use. (torch.get_num_threads() obeys OMP_NUM_THREADS, which is another matter.)"""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def pick_workers(asked, said):
    """How many loader processes to start: as many as asked, and at most one for each usable core. said: whether the
    user asked, who is then told of fewer."""
    if asked > usable_cores() and said:
        warn(f'--workers={asked}: this process may use {usable_cores()} cores, so {usable_cores()} workers are started')
    return min(asked, usable_cores())


# --- the screen -------------------------------------------------------------------------------------


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


def write_lines(path, rows):
    """Text lines, written whole."""
    write_atomically(path, lambda file: file.write_text(''.join(f'{row}\n' for row in rows)))


def write_json(path, content):
    write_atomically(path, lambda file: file.write_text(json.dumps(content, indent=1) + '\n'))


def write_json_lines(path, lines):
    write_lines(path, map(json.dumps, lines))


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
