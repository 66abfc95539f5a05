"""One process or many: what torchrun starts, what they tell one another, and what makes them end.

A process that was started alone is the first of one, and asks nothing of torch.distributed. Those that torchrun starts
have a rank each. The first, rank 0, prints and writes; the others are silent, but for the error of one that fails.

    torchrun --nproc_per_node=4 main.py --experiment_name=calm_em --attribution_method=CALM_EM
"""
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from wsol.errors import UserError

PARENT = 'CALM_PARENT'   # the variable by which a script tells its child whose end is the child's end too
PATIENCE = timedelta(days=1)  # for one that is slower; one that has ended closes its connection and is noticed at once
_store = None            # what all processes of a run can read and write, from the start of each

# --- who am I -------------------------------------------------------------------------------------------


def size():
    """How many processes share this run."""
    return int(os.environ['WORLD_SIZE']) if {'RANK', 'WORLD_SIZE', 'MASTER_ADDR'} <= os.environ.keys() else 1


def rank():
    """Which of them this one is, from 0."""
    return int(os.environ['RANK']) if size() > 1 else 0


def local_rank():
    """Which of those on this machine."""
    return int(os.environ.get('LOCAL_RANK', 0)) if size() > 1 else 0


def is_first():
    """Whether this is the one that prints and writes."""
    return rank() == 0


# --- together -------------------------------------------------------------------------------------------


def meet():
    """Find the others; from here on, of several that fail, the first alone speaks."""
    global _store
    if size() > 1 and _store is None:
        _store, *_ = next(dist.rendezvous('env://', timeout=PATIENCE))


def join(device):
    """Make the group that sums gradients and gathers what was measured, unless it is there. device: where this process
    computes."""
    if size() == 1 or dist.is_initialized():
        return
    meet()
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    backend = 'cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo'
    dist.init_process_group(backend, store=_store, rank=rank(), world_size=size(), timeout=PATIENCE)


def gather(value):
    """What every process has under this name, in the order of their ranks. value: anything that pickles."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def agree(numbers):
    """The largest that any process says, number by number. numbers: integers."""
    if size() == 1:
        return numbers
    largest = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def share_buffers(model):
    """Give all processes the first one's running means: each has seen other images."""
    if size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


# --- the end ----------------------------------------------------------------------------------------------


def speaks_for_all():
    """Whether this process, which fails, is the first of the run to fail: the one that says why."""
    if size() == 1:
        return True
    try:
        return _store.add('failed', 1) == 1
    except (RuntimeError, AttributeError):  # the store has gone with the others, or was never found
        return is_first()


def another_has_failed():
    """Whether some process of the run has said that it fails."""
    try:
        return _store is not None and _store.check(['failed'])
    except RuntimeError:
        return True


def is_anothers_end(error):
    """Whether a RuntimeError says that another process of the run has ended."""
    words = ('gloo', 'nccl', 'connection closed', 'connection reset', 'broken pipe', 'socket')
    return size() > 1 and (another_has_failed() or isinstance(error, dist.DistError)
                           or any(word in str(error).lower() for word in words))


def leave(code):
    """End this process with an exit code; of several, at once: their threads would wait for those that have ended."""
    if size() > 1 and code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if dist.is_initialized():
        dist.destroy_process_group()
    if code:
        sys.exit(code)


class Stopped(BaseException):
    """A signal has asked for the end. message: how to go on."""

    def __init__(self, number):
        super().__init__(number)
        self.code = 128 + number
        self.message = (f'stopped by {signal.Signals(number).name} between two steps; what was saved is kept, and the '
                        'same command goes on')


class Stop:
    """The signals by which a scheduler announces the end: raised as Stopped at once, or after what must not be torn.

    A context: outside it the signals have their usual effect.
    """

    def __init__(self, signals=(signal.SIGTERM, signal.SIGUSR1)):
        self.signals, self.number, self._is_deferred = signals, 0, False

    def __enter__(self):
        self._before = {number: signal.signal(number, self._receive) for number in self.signals}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        if self.number:
            return
        if another_has_failed():  # the signal is torchrun's, which ends those that are left
            os._exit(1)
        self.number = number
        if not self._is_deferred:
            raise Stopped(number)

    @contextmanager
    def deferred(self):
        """A context in which nothing is raised; it is at the end of it."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.number:
            raise Stopped(self.number)


def call(command):
    """Run one of the project's scripts as a child, which ends when this script does, however that ends. command: after
    python. Returns its exit code."""
    if size() > 1:
        raise UserError('this script starts others itself: start it without torchrun')
    ours = os.environ | {PARENT: str(os.getpid())}
    return subprocess.run([sys.executable, *command], check=False, env=ours).returncode


def end_with_parent():
    """End this process when the script that started it ends, however it does; it has said who it is."""
    parent = int(os.environ.get(PARENT, 0))

    def watch():
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent:
        threading.Thread(target=watch, daemon=True).start()
