"""What every script needs: clear errors, seeds, devices, a screen that may be gone, bars and tables."""
import contextlib
import os
import platform
import random
import re
import sys

import numpy as np
import torch
from tqdm import tqdm

import processes
from wsol.errors import UserError

MEMORY = 'lower --workers, whose processes each hold batches, or --batch_size'
EXPLAINED = (  # what torch says in many words -> what it means, and the remedy
    (r'killed by signal: Bus error|shared memory|/torch_\S+.*(No space|Cannot allocate)|/shm', 'the shared memory '
     'through which loader processes hand images over is full: give it more (docker run --shm-size=1g), or say '
     '--workers=0'),
    (r'DataLoader worker .*(killed by signal|exited unexpectedly)', 'a loader process was killed, most likely for want '
     f'of memory: {MEMORY}'),
    (r'out of memory|not enough memory|Cannot allocate memory|MemoryError', f'there is not enough memory: {MEMORY}'),
)


def run(main):
    """Run a script's main(); what the user can mend becomes one line on stderr and exit code 2."""
    open_streams()
    processes.end_with_parent()
    code = 0
    try:
        processes.meet()
        main()
    except SystemExit as stop:  # argparse's, after --help
        code = stop.code or 0
    except KeyboardInterrupt:
        code = _last_words('interrupted; what was finished is kept', 130)
    except processes.Stopped as stop:
        code = stop.code
        if processes.is_first():
            _print(stop.message, sys.stderr)
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        code = _explain(error)
    say()
    processes.leave(code)


def _explain(error):
    """Say in one line what went wrong. Returns the exit code. An error that no user can mend is raised again."""
    text = str(error) or type(error).__name__
    advice = next((advice for pattern, advice in EXPLAINED if re.search(pattern, text)), None)
    if isinstance(error, UserError):
        # a loader's worker hands its error on wrapped in a traceback: the last line is ours
        return _last_words('error: ' + ' '.join(text.rsplit('UserError: ', 1)[-1].strip().splitlines()), 2)
    reason = text.strip().splitlines()[-1 if 'Traceback' in text else 0][:300]
    if advice is not None:
        return _last_words(f'error: {advice} ({reason})', 2)
    if processes.is_anothers_end(error):
        return _last_words('error: another process of this run has ended; what was saved is kept', 1)
    if not isinstance(error, (OSError, MemoryError)):
        raise error
    return _last_words(f'error: {reason}', 2)


def _last_words(message, code):
    """Print a message on stderr, unless another process of the run has said why it ends. Returns the code."""
    if processes.speaks_for_all():
        _print(message, sys.stderr)
    return code


# --- the screen, which may be closed or full: no work is lost for that --------------------------------------


def open_streams():
    """See to it that the numbers of stdin, stdout and stderr are taken: else the next file opened would get one, and
    what a library prints would land in it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115  until the end
        with contextlib.suppress(AttributeError):  # a test's own stream
            getattr(sys, name).reconfigure(errors='backslashreplace')  # names of files need not be text


def _print(text, stream):
    try:
        print(text, end='\n' if text else '', file=stream, flush=True)
    except (OSError, ValueError):
        _give_up(stream)


def _give_up(stream):
    """From here on what is printed goes nowhere: neither the next line nor the end of Python fails."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def say(text=''):
    """Print on stdout, if this is the first process of the run."""
    if processes.is_first():
        _print(str(text), sys.stdout)


def warn(message):
    """Print a warning on stderr, likewise."""
    if processes.is_first():
        _print('warning: ' + message, sys.stderr)


class _Stderr:
    """What a progress bar writes to."""

    def write(self, text):
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            _give_up(sys.stderr)

    def flush(self):
        """Each write is flushed."""

    def __getattr__(self, name):
        return getattr(sys.stderr, name)


# --- seeds ------------------------------------------------------------------------------------------


def draw_seed():
    """A new seed, to be recorded."""
    return random.SystemRandom().randrange(2**31)


def seed_everything(seed):
    """Seed python, numpy and torch (its generators on every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  for libraries that draw from the global state
    torch.manual_seed(seed)


def seed_of(*numbers):
    """A seed that depends on all of these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


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
    if number and (int(number) >= torch.cuda.device_count() or processes.size() > 1):
        raise UserError(f'--device={name}: torch sees {torch.cuda.device_count()} GPUs here, numbered from cuda:0; of '
                        'several processes each takes its own by --device=cuda')
    if processes.size() == 1:
        return torch.device(name)
    if name == 'mps':
        raise UserError('MPS computes in one process: start the script without torchrun, or say --device=cpu')
    if name == 'cuda' and processes.local_rank() >= torch.cuda.device_count():
        raise UserError(f'this machine has {torch.cuda.device_count()} GPUs, and more processes than that were started '
                        'on it: lower --nproc_per_node')
    return torch.device(name, processes.local_rank()) if name == 'cuda' else torch.device(name)


def try_algorithms(device):
    """Have cuDNN try its algorithms for each new size and keep the fastest: for work on images of one size. Which one
    that is may change from run to run, and with it the last digits."""
    torch.backends.cudnn.benchmark = device.type == 'cuda'


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


# --- bars and tables ----------------------------------------------------------------------------------


def progress(iterable, description, unit, **options):
    """A tqdm bar: smooth on a terminal; in a log a line now and then, none for bars that would vanish; of several
    processes the first has it."""
    terminal = sys.stderr.isatty()
    hidden = not processes.is_first() or (not terminal and not options.get('leave', True))
    return tqdm(iterable, description, unit=unit, dynamic_ncols=True, mininterval=0.2 if terminal else 15,
                file=_Stderr(), disable=hidden, **options)


def mean_and_deviation(values, decimals=1, sign=''):
    """'92.0 ± 1.4': the mean and the standard deviation over networks; of one network its value alone; '-' where one
    of them has none. values: (N,). sign: '+' of a difference."""
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        return '-'
    deviation = f' ± {values.std(ddof=1):.{decimals}f}' if len(values) > 1 else ''
    return f'{values.mean():{sign}.{decimals}f}{deviation}'


def table(header, rows):
    """Text in columns: the first flush left, the others right. Numbers with one decimal."""
    def show(cell):
        return '-' if cell is None else f'{cell:.1f}' if isinstance(cell, float) else str(cell)

    cells = [[show(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ['  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])
