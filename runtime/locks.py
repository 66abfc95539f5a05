"""One process at a time on a machine: locks, which the system itself releases when their holder ends or is killed.

A lock is the file `.<name>.lock` beside the thing that it protects, held by filelock. The file says who holds it.
Neither its age nor any clock matters. Processes on several machines do not see one another's locks unless they share
a file system that passes locks on, as NFS does.

    with locks.hold(folder / 'training', f'{folder} is being trained'):
        ...
"""
import errno
import os
import socket
from contextlib import contextmanager, suppress
from datetime import datetime

import filelock

from runtime import screen, whole_files
from wsol.errors import UserError

WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # the answers of file systems that know no locks


@contextmanager
def hold(place, what, wait=False):
    """Hold the lock of a path while the context lasts.

    what: what the holder does; a process that finds the lock taken says so. wait: whether it then waits, or raises
    UserError.
    """
    path = place.with_name(f'.{place.name}.lock')
    with whole_files.folder_at_hand(path.parent):
        lock = filelock.FileLock(path, fallback_to_soft=False)
        try:
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                said = f'{what} by {_holder(path)}'
                if not wait:
                    raise UserError(f'{said}. Wait for its end, or choose another --experiment_name') from None
                screen.say(f'{said}: waiting for it')
                lock.acquire(poll_interval=0.2)
            now = f'{datetime.now():%Y-%m-%d %H:%M:%S}'
            path.write_text(f'process {os.getpid()} on {socket.gethostname()}, since {now}')
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                hint = f'. If no process uses {path}, remove it' if os.path.lexists(path) else ''
                raise UserError(f'cannot lock {place}: {error.strerror}{hint}') from error
            screen.warn(f'the file system of {path.parent} has no locks: let one process at a time write there')
        try:
            yield
        finally:
            with suppress(OSError):  # before the release: who has opened this file sees that it is gone
                path.unlink()
            lock.release()


def _holder(path):
    try:
        return path.read_text(errors='replace')[:200].strip() or 'another process'
    except OSError:
        return 'another process'
