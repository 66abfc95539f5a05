"""What a call asks of a GPU: the operations it starts, the waits of the host, copies, idle time, memory.

On a CPU the first two are counted as they would be on a GPU: about one launch for each operation that computes.
"""
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

HEADER = ['started', 'waits', 'copies', 'GPU idle, %', 'peak, MiB']
STARTS, WAITS, COPIES = ('cudaLaunch', 'cuLaunch'), ('cudaStreamSync', 'cudaEventSync'), 'cudaMemcpy'
READS = 'nonzero', 'bincount', 'masked_select'  # operations whose results the host waits for
OF_TENSORS = 'tolist', 'cpu', 'item', '__bool__', '__int__', '__float__', '__index__'


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


def profile(call, milliseconds, device):
    """The figures of HEADER for a call that takes so many milliseconds; on a CPU, None for those that need a GPU. The
    peak counts the memory beyond what was in use before."""
    if device.type != 'cuda':
        with Reads() as reads, Operations() as operations:
            call()
        return [operations.started, operations.waits + reads.waits, None, None, None]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.profiler.profile() as profiler:  # it covers the CPU and CUDA
        call()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() or [] if not event.is_user_annotation]
    counts = [sum(event.name.startswith(names) for event in events) for names in (STARTS, WAITS, COPIES)]
    busy = sum(event.device_time_total for event in events if event.device_type.name == 'CUDA')  # microseconds
    return [*counts, max(0.0, 100 - busy / (10 * milliseconds)), (torch.cuda.max_memory_allocated() - before) >> 20]
