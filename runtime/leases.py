"""A lease: one process at a time works on a thing, whichever host, container or user it belongs to.

It is a file beside the thing, `.<name>.lease.<token>`, that says who works on it and since when; a thread touches it
every few seconds. Nobody asks whether a process lives, since its number means nothing elsewhere. On one kernel a lock
on the file tells at once whether its holder is gone. Elsewhere a lease is dead when its file has not been touched for
PERIOD, by the clock of the file system that holds it. Who wants the thing makes a file of its own, under a name that
never comes again, and looks once more: who sees another's steps back, and of two at least one sees the other.

    with leases.hold(folder / 'training', f'{folder} is being trained'):
        ...
"""
import contextlib
import errno
import fcntl
import json
import os
import random
import socket
import threading
import time
import uuid
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from runtime import screen, whole_files
from wsol.errors import UserError

PERIOD = 60.0  # seconds without a touch after which a lease is nobody's
BOOT = Path('/proc/sys/kernel/random/boot_id')  # tells kernels apart: containers of one host share it


@contextmanager
def hold(place, what, wait=False):
    """Hold the lease of a path while the context lasts. Yields the Lease.

    what: what its holder does, told to those who find it taken. wait: for as long as another holds it; else that is a
    UserError.
    """
    with whole_files.folder_at_hand(place.parent):
        try:
            lease = _acquire(place, what, wait)
        except OSError as error:
            raise UserError(f'cannot write in {place.parent}: {error.strerror}') from error
        try:
            yield lease
        finally:
            lease.release()


class Lease:
    """A lease that this process holds."""

    def __init__(self, path, descriptor):
        self.path, self._descriptor, self._end = path, descriptor, threading.Event()
        threading.Thread(target=self._renew, daemon=True).start()

    def _renew(self):
        while not self._end.wait(PERIOD / 6):
            with contextlib.suppress(OSError):  # a network drive that is away for a moment
                if self._is_ours():
                    os.utime(self.path)

    def _is_ours(self):
        """Whether the file of this name is still the one that this process made."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise

    def check(self):
        """Raise UserError if another process has taken over: this one was asleep for longer than PERIOD."""
        if not self._is_ours():
            raise UserError(f'this process was silent for so long that another has taken over ({self.path} is gone); '
                            'it ends here, and nothing that the other writes is touched')

    def release(self):
        """Let others have it."""
        self._end.set()
        with contextlib.suppress(OSError):
            if self._is_ours():
                self.path.unlink()
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def _acquire(place, what, wait):
    dead, is_told = set(), False
    while True:
        found = _files(place)
        holder = next(filter(None, map(_holder, found - dead)), None)
        if holder is not None:
            who = f'{what} by process {holder["process"]} on {holder["host"]}, since {holder["since"]}'
            if not wait:
                raise UserError(f'{who}. Wait for its end, or choose another --experiment_name')
            if not is_told:
                screen.say(f'{who}: waiting for it')
            is_told = True
            time.sleep(0.5)
            continue
        dead |= found
        # a name that came again could be another's by the time that it is taken for dead
        path = place.with_name(f'.{place.name}.lease.{uuid.uuid4().hex}')
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        _sign(descriptor)
        if _files(place) - dead != {path}:  # another has come at the same time: both step back
            os.close(descriptor)
            path.unlink(missing_ok=True)
            time.sleep(random.random())
            continue
        for old in dead:
            old.unlink(missing_ok=True)
        return Lease(path, descriptor)


def _files(place):
    return set(place.parent.glob(f'.{place.name}.lease.*'))


def _sign(descriptor):
    """Lock the file where the file system can, then say who holds it: what is signed is locked."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a fork does not inherit it, as it would flock's
        is_locked = True
    except OSError:
        is_locked = False
    os.write(descriptor, json.dumps({
        'host': socket.gethostname(), 'process': os.getpid(), 'kernel': _kernel() if is_locked else None,
        'since': f'{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}'}).encode())


def _kernel():
    """What tells this kernel from others; None where nothing does."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return None


def _holder(path):
    """What a lease says of its holder; None if nobody holds it any more. Takes up to PERIOD where that must be seen by
    the touches."""
    touched = None
    while True:
        try:
            with open(path, 'rb') as file:  # opening asks a network drive for the file's present state
                before, touched = touched, os.fstat(file.fileno()).st_mtime_ns
                said = _parse(file.read(4096))
                if said and said['kernel'] is not None and said['kernel'] == _kernel():
                    return said if _is_locked(file) else None
        except FileNotFoundError:
            return None
        if said and before not in (None, touched):
            return said
        quiet = (_now(path) - touched) / 1e9
        if quiet >= PERIOD:
            return None
        time.sleep(min(PERIOD / 20, 0.05 + PERIOD - quiet) if said else 0.05)  # unsigned: it is being made


def _parse(content):
    try:
        said = json.loads(content)
        return {key: said[key] for key in ('host', 'process', 'kernel', 'since')}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _is_locked(file):
    """Whether a living process holds the lock of an open file."""
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.lockf(file, fcntl.LOCK_UN)
    return False


def _now(path):
    """The present time by the clock of the file system that holds a path, in nanoseconds."""
    probe = whole_files.temporary(path)
    try:
        probe.touch()
        return probe.stat().st_mtime_ns
    finally:
        probe.unlink(missing_ok=True)
