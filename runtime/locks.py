"""Locks that let one process at a time work on a path. The system releases them when their holder ends or is killed.

A lock is the file `.<name>.lock` beside the path that it protects, held by filelock. The file names its holder. Neither
its age nor any clock matters. Processes on several machines see one another's locks only if they share a file system
that shares locks, as NFS does.

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

WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # the errors of file systems without locks


@contextmanager
def hold(place, what, wait=False):
    """A context in which this process holds the lock of a path.

    what: what the holder does, for the message of a process that finds the lock taken. wait: such a process waits;
    without it, it raises UserError.
    """
    path = place.with_name(f'.{place.name}.lock')
    with whole_files.folder_at_hand(path.parent):
        lock = filelock.FileLock(path, fallback_to_soft=False)
        try:
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                holder = ''
                with suppress(OSError):
                    holder = path.read_text(errors='replace')[:200].strip()
                message = f'{what} by {holder or "another process"}'
                if not wait:
                    raise UserError(f'{message}. Wait for its end, or choose another --experiment_name') from None
                screen.say(f'{message}: waiting for it')
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
            with suppress(OSError):  # before the release, so that a process that waits sees that the file is gone
                path.unlink()
            lock.release()
