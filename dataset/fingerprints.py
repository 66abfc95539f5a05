"""The SHA-256 of files: computed once for each file, and looked up as long as the file has not changed.

A store in a folder keeps the SHA-256 beside the file's size, inode and times. A user can set the time of writing
(mtime), but not the time of the last change (ctime): a file that was replaced never looks unchanged. Without a folder
that can be written, everything is computed anew.
"""
import hashlib
import os
import sqlite3
import stat
import time
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

from dataset.image_files import refuse_unreadable
from dataset.image_folders import in_threads
from runtime import processes
from runtime.screen import progress, warn

FILE = 'fingerprints.sqlite'
SETTLED = 2 * 10**9  # ns: a file that was changed later may change again within one tick of the file system's clock
PATIENCE = 2         # s: how long a command waits for another that writes to the store
CHUNK = 4096         # files in one write to the store: an interrupted command loses the SHA-256 of at most so many
TABLE = 'CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, state TEXT, sha256 TEXT) WITHOUT ROWID'
FIND, KEEP = 'SELECT state, sha256 FROM files WHERE path = ?', 'REPLACE INTO files VALUES (?, ?, ?)'


def combined(*parts):
    """One SHA-256 of several parts: texts, arrays, or lists of texts. Their order counts."""
    digest = hashlib.sha256()
    for part in parts:
        if hasattr(part, 'tobytes'):
            digest.update(f'{part.dtype.str}{part.shape}'.encode() + part.tobytes())
        else:
            digest.update(f'{part!r}\n'.encode())
    return digest.hexdigest()


def _state(path):
    """A file's size, inode and times in one text, ctime last: it changes whenever the file does. None if the path is
    not a regular file."""
    with suppress(OSError):
        status = path.stat()
        if stat.S_ISREG(status.st_mode):  # to read a pipe would wait for ever
            return f'{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}'
    return None


def _read(path):
    """(SHA-256 of a file, its state). The state is None where the next command has to read the file again."""
    before, digest = _state(path), hashlib.sha256()
    try:
        if before is None:
            return '', None
        with open(path, 'rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:  # an error says what is wrong with the file when it is needed
        refuse_unreadable(path, error)
        return '', None
    is_settled = int(before.split()[-1]) < time.time_ns() - SETTLED and _state(path) == before
    return digest.hexdigest(), before if is_settled else None


class Contents:
    """The SHA-256 of files. folder: where the store is; None: nothing is kept for the next command."""

    def __init__(self, folder=None):
        self.store = folder and Path(folder) / FILE

    def of(self, paths):
        """[SHA-256 of each file; '' if it cannot be read]. Shows a progress bar if this takes long.

        Several processes of a run share the files, as in processes.share.
        """
        return processes.share([Path(path).absolute() for path in paths], self._of_share)

    def _of_share(self, paths):
        known = (self.store and self.store.is_file()
                 and self._with_store(lambda store: _look_up(store, dict.fromkeys(paths)))) or {}
        unknown = [path for path in dict.fromkeys(paths) if path not in known]
        read = zip(unknown, in_threads(_read, unknown, 'fingerprints', delay=3), strict=True)
        while chunk := list(islice(read, CHUNK)):
            known |= {path: sha256 for path, (sha256, _) in chunk}
            fresh = [(os.fsencode(path), state, sha256) for path, (sha256, state) in chunk if state is not None]
            if self.store and fresh:
                self._with_store(lambda store, rows=fresh: store.executemany(KEEP, rows))
        return [known[path] for path in paths]

    def _with_store(self, use):
        """The result of use(connection to the store); None if the store cannot be used."""
        try:
            self.store.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.store, timeout=PATIENCE)) as store, store:
                store.execute(TABLE)
                return use(store)
        except (OSError, sqlite3.OperationalError):  # the folder is read-only or full
            return None
        except sqlite3.DatabaseError as error:
            warn(f'{self.store} is damaged ({error}): remove it, so that it is made anew')
            return None


def _look_up(store, paths):
    """{path: SHA-256} of the files that are in the store, and that have not changed since."""
    rows = ((path, store.execute(FIND, (os.fsencode(path),)).fetchone())
            for path in progress(paths, 'fingerprints', 'file', delay=3))
    return {path: row[1] for path, row in rows if row and row[0] == _state(path)}
