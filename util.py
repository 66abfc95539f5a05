"""Seeds, devices, precision, and the number of cores."""
import os
import platform
import random

import numpy as np
import torch

from runtime import processes
from runtime.screen import warn
from wsol.errors import UserError

FEWEST_IN_BFLOAT16 = 16  # images of a step: on a GPU, 8 were slower than in float32, and 32 were faster

# --- seeds ------------------------------------------------------------------------------------------


def seed_everything(seed):
    """Seed python, numpy and torch (its generators on every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  for libraries that draw from the global state
    torch.manual_seed(seed)


def seed_of(*numbers):
    """A seed that depends on all these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def image_seeds(seed, indices):
    """(B,) int64: a seed for each image, which does not depend on its batch."""
    return seed * 1_000_003 + indices


# --- devices ----------------------------------------------------------------------------------------


def pick_device(name='auto'):
    """'auto' -> CUDA, else Apple's MPS, else the CPU. 'cuda:1' -> the second GPU. Raises UserError."""
    usable = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    name = next(kind for kind in usable if usable[kind]) if name == 'auto' else name
    kind, _, number = name.partition(':')
    if not usable[kind]:
        raise UserError(f'--device={name}: this machine or this build of torch has none; use --device=auto')
    if number and (int(number) >= torch.cuda.device_count() or processes.size() > 1):
        raise UserError(f'--device={name}: torch sees {torch.cuda.device_count()} GPUs here, numbered from cuda:0; '
                        'with --device=cuda each of several processes takes its own')
    if name == 'mps' and processes.size() > 1:
        raise UserError('MPS computes in one process: start the script without torchrun, or say --device=cpu')
    if name != 'cuda' or processes.size() == 1:
        return torch.device(name)
    rank = torch.distributed.get_node_local_rank(0)
    if rank >= torch.cuda.device_count():
        raise UserError(f'this machine has {torch.cuda.device_count()} GPUs, and more processes than that were started '
                        'on it: lower --nproc_per_node')
    return torch.device(name, rank)


def try_algorithms(device):
    """Let cuDNN try its algorithms for each new image size and keep the fastest.

    This pays when all images have one size. The choice, and with it the last digits, can differ from run to run.
    """
    torch.backends.cudnn.benchmark = device.type == 'cuda'


def computes_in_bfloat16(device):
    """Whether a device multiplies in bfloat16. A device that only emulates it is slower than in float32."""
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == 'cpu' and torch.backends.mkldnn.is_available():
        # oneDNN also says yes for processors with AVX-512 alone, on which it emulates bfloat16. With AVX512_BF16 it
        # does not, but without AMX it still takes longer than float32 (docs/performance.md)
        is_slow = platform.machine() in ('x86_64', 'AMD64') and not torch.cpu._is_amx_tile_supported()
        return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not is_slow
    return False


def pick_precision(name, device, step=0):
    """'float32', 'tf32' or 'bfloat16'. step: the images of a training's step in each process; 0 for an evaluation.

    'auto' is bfloat16 for a training where the device computes in it, but float32 for small steps on a GPU.
    A precision that the device does not support becomes float32, with a warning. A CPU emulates bfloat16.
    """
    if name == 'auto':
        is_small = device.type == 'cuda' and step < FEWEST_IN_BFLOAT16
        return 'bfloat16' if step and not is_small and computes_in_bfloat16(device) else 'float32'
    usable = {'cuda': lambda: computes_in_bfloat16(device), 'mps': lambda: torch.backends.mps.is_macos_or_newer(14, 0),
              'cpu': lambda: True}
    if name == 'tf32':
        usable = {'cuda': torch.cuda.is_tf32_supported, 'mps': lambda: False, 'cpu': lambda: False}
    if name != 'float32' and not usable[device.type]():
        warn(f'--precision={name}: this {device.type} device does not compute in {name}; float32 is used')
        return 'float32'
    return name


def autocast(precision, device):
    """The context in which the backbone computes in 'float32', 'tf32' or 'bfloat16'.

    In tf32, cuDNN's convolutions round their inputs to 10 bits; in float32 they keep all 23, although torch
    rounds by default on CUDA. The setting stays until the next call, so it covers the backward too.
    """
    torch.backends.cudnn.allow_tf32 = precision == 'tf32'
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == 'bfloat16')


def memory_format(device):
    """The layout in which a device's convolutions are fastest."""
    return torch.contiguous_format if device.type == 'mps' else torch.channels_last


def to_device(tensor, device):
    """A tensor on the device; images (B,3,H,W) in the layout in which its convolutions are fastest.

    Only a copy from pinned memory to CUDA runs in the background. Elsewhere torch neither waits for such a copy nor
    keeps its source, which gives silently wrong numbers on MPS (pytorch issue 189690).
    """
    layout = memory_format(device) if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(device, non_blocking=device.type == 'cuda' and tensor.is_pinned(), memory_format=layout)


def send(values, device):
    """A list of integers as a tensor on the device. The host does not wait for what the device still computes."""
    tensor = torch.tensor(values)
    return to_device(tensor.pin_memory() if device.type == 'cuda' else tensor, device)


def usable_cores():
    """The number of cores that this process may use. torch.get_num_threads() would give OMP_NUM_THREADS instead."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def pick_workers(asked, by_user):
    """The number of loader processes: at most one for each usable core.

    asked: the number wanted. by_user: the user has given it, so a smaller number is announced.
    """
    if asked > usable_cores() and by_user:
        warn(f'--workers={asked}: this process may use {usable_cores()} cores, so {usable_cores()} workers are started')
    return min(asked, usable_cores())
