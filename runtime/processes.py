"""One process or several: how torchrun's processes find one another, exchange values, and end.

A process that was started alone never touches torch.distributed. Processes that torchrun starts have a rank each.
Rank 0, the first, prints and writes. The others print nothing, except that the first process to fail says why.

    torchrun --nproc_per_node=4 main.py --experiment_name=calm_em --attribution_method=CALM_EM
"""
import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from wsol.errors import UserError

PATIENCE = timedelta(days=1)  # for a slow process; the end of a process is noticed at once, as its connection closes
_store = None  # a key-value store that all processes of a run read and write


def size():
    """The number of processes of this run."""
    return int(os.environ['WORLD_SIZE']) if {'RANK', 'WORLD_SIZE', 'MASTER_ADDR'} <= os.environ.keys() else 1


def rank():
    """This process's number among all, from 0."""
    return int(os.environ['RANK']) if size() > 1 else 0


def is_first():
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def meet():
    """Find the other processes. From here on, only the first process that fails says why."""
    global _store
    if size() > 1 and _store is None:
        _store, *_ = next(dist.rendezvous('env://', timeout=PATIENCE))


def join(device):
    """Make the group of processes that sums gradients and gathers results, once. device: this process's."""
    if size() == 1 or dist.is_initialized():
        return
    meet()
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    backend = 'cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo'
    dist.init_process_group(backend, store=_store, rank=rank(), world_size=size(), timeout=PATIENCE)


def gather(value):
    """[the value of every process], in the order of their ranks. value: anything that pickles."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def share(items, compute):
    """[a result for each item], of which each process computes its share. All processes of a run call it with the same
    items. compute: a sequence of items -> their results. Raises UserError if the processes have different numbers."""
    parts, results = gather(list(compute(items[rank()::size()]))), [None] * len(items)
    if sum(map(len, parts)) != len(items):
        raise UserError('the processes of this run see different numbers of files: the folders of the data should be '
                        'the same for all of them')
    for number, part in enumerate(parts):
        results[number::len(parts)] = part
    return results


def check_same(text, problem):
    """Raise UserError in all processes of the run unless they have the same text. problem: what differs, the remedy."""
    texts = dict.fromkeys(gather(text))
    if len(texts) > 1:
        wait_for_all()  # so that each of them ends for this reason, not because another has ended
        raise UserError(f'the processes of this run {problem} ({"; ".join(texts)})')


def agree(numbers):
    """For each number, the largest over all processes. numbers: integers."""
    if size() == 1:
        return numbers
    largest = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def share_buffers(model):
    """Give all processes the running means of the first: each process has seen other images."""
    if size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def is_first_to_fail():
    """Whether this process, which fails, is the first of the run to fail. Then it says why."""
    if size() == 1:
        return True
    try:
        return _store.add('failed', 1) == 1
    except (RuntimeError, AttributeError):  # the process with the store has ended, or there was no store yet
        return is_first()


def another_has_failed():
    """Whether some process of the run has failed."""
    try:
        return _store is not None and _store.check(['failed'])
    except RuntimeError:
        return True


def is_end_of_another(error):
    """Whether a RuntimeError says that another process of the run has ended."""
    words = ('gloo', 'nccl', 'connection closed', 'connection reset', 'broken pipe', 'socket')
    return size() > 1 and (another_has_failed() or isinstance(error, dist.DistError)
                           or any(word in str(error).lower() for word in words))


def wait_for_all():
    """Wait, before this process ends, until all processes are here or one has ended.

    gather alone is not enough: a process that ends right after it closes its connections to processes that have not yet
    finished it, and they fail.
    """
    def wait_until_all_add(key):
        while _store.add(key, 0) < size() and not another_has_failed():
            time.sleep(0.02)

    if size() > 1:
        with suppress(RuntimeError):  # another process has ended
            gather(None)
            _store.add('arrived', 1)
            wait_until_all_add('arrived')
            _store.add('left', 1)
            if is_first():  # it may hold the store
                wait_until_all_add('left')


def end_loaders():
    """End the loader processes that an error has left waiting. Otherwise Python sends each of them one SIGTERM, which
    they outlive, and waits for them for ever."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take their end for a fault
    for loader in multiprocessing.active_children():
        loader.kill()
        loader.join()
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)  # None: not set by Python


def leave(code):
    """End this process with an exit code. If it fails and is one of several, it ends at once: its threads would wait
    for the others."""
    end_loaders()
    if size() > 1 and code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if dist.is_initialized():
        wait_for_all()
        dist.destroy_process_group()
    if code:
        sys.exit(code)


class Stopped(BaseException):
    """A signal has asked this process to end. message: how to resume."""

    def __init__(self, number):
        super().__init__(number)
        self.name, self.code = signal.Signals(number).name, 128 + number
        self.message = f'stopped by {self.name} between two steps; what was saved is kept, and the same command goes on'


class Stop:
    """A context in which a scheduler's signal to end raises Stopped: at once, or inside `deferred` at its end.

    number: the signal that has come, else 0.
    """

    def __init__(self):
        self.number, self._is_deferred = 0, False

    def __enter__(self):
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        if self.number:
            return
        if another_has_failed():  # torchrun sends this signal to end the remaining processes
            os._exit(1)
        self.number = number
        if not self._is_deferred:
            raise Stopped(number)

    @contextmanager
    def deferred(self):
        """A context that a signal does not interrupt: Stopped is raised at its end."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.number:
            raise Stopped(self.number)
