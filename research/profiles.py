"""What a call asks of a device: the operations it starts, waits of the host, copies, busy time, memory.

On a CPU the first two are counted as they would be on a GPU: about one launch for each operation that computes.
"""
import os
from itertools import accumulate
from typing import NamedTuple

import torch
from torch.autograd import profiler as autograd_profiler
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

STARTS, WAITS, COPIES = ('cudaLaunch', 'cuLaunch'), ('cudaStreamSync', 'cudaEventSync'), 'cudaMemcpy'
READS = 'nonzero', 'bincount', 'masked_select'  # operations whose results the host waits for
OF_TENSORS = 'tolist', 'cpu', 'item', '__bool__', '__int__', '__float__', '__index__'


class Profile(NamedTuple):
    """What one call asked of a device. copies and busy are None on a CPU."""
    started: int
    waits: int
    copies: int | None
    busy: float | None  # milliseconds in which the GPU computes or copies
    peak: int           # MiB, the most that tensors took at once beyond what was in use before


class Operations(TorchDispatchMode):
    """Counts the operations that compute, and those for which the host waits."""
    started = waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.waits += name in READS
        self.started += not (func.is_view or name.startswith(('empty', 'detach', '_unsafe_view', '_local_scalar')))
        return func(*args, **kwargs or {})


class Reads(TorchFunctionMode):
    """Counts the reads of tensors by the host. It cannot tell the host's tensors from a GPU's, and counts both."""
    waits = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.waits += getattr(func, '__name__', '') in OF_TENSORS
        return func(*args, **kwargs or {})


def profile(call, device):
    """The Profile of a call."""
    os.environ.setdefault('KINETO_LOG_LEVEL', '9')  # otherwise the profiler writes lines of its own on the screen
    if device.type != 'cuda':
        recorder = autograd_profiler.profile(profile_memory=True)
        with Reads() as reads, Operations() as operations, recorder:
            call()
        events = [event for event in recorder.kineto_results.events() if event.name() == '[memory]']
        in_use = accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
        return Profile(operations.started, operations.waits + reads.waits, None, None, max(in_use, default=0) >> 20)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.profiler.profile() as profiler:  # it covers the CPU and CUDA
        call()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() or [] if not event.is_user_annotation]
    counts = [sum(event.name.startswith(names) for event in events) for names in (STARTS, WAITS, COPIES)]
    busy = sum(event.device_time_total for event in events if event.device_type.name == 'CUDA') / 1000
    return Profile(*counts, busy, (torch.cuda.max_memory_allocated() - before) >> 20)
