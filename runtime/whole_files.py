"""Files that are written whole or not at all, and their folders."""
import errno
import json
import math
import os
import re
import shutil
import sys
import tempfile
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime import screen
from wsol.errors import UserError


@contextmanager
def folder_at_hand(path):
    """A context in which a folder exists. Folders that it made, and that are empty at its end, are removed. Raises
    UserError."""
    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot make the folder {path}: {error.strerror}') from error
    try:
        yield path
    finally:
        with suppress(OSError):  # it is not empty
            for folder in made:
                folder.rmdir()


def check_writable(folder, size=1 << 20):
    """Raise UserError unless a file of `size` bytes can be written in the folder."""
    with folder_at_hand(folder) as path:
        try:
            with tempfile.TemporaryFile(dir=path) as file:
                if hasattr(os, 'posix_fallocate'):  # it reserves space on the disk, if the file system can
                    os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise UserError(f'cannot write {size / 1e6:,.0f} MB in {folder}: {error.strerror}') from error


def temporary(path, token=None):
    """A new name beside `path`: `.<name>.<12 hexadecimal digits>.partial`."""
    start = os.fsencode(path.name)[:100].decode(sys.getfilesystemencoding(), 'ignore')  # a name has 255 bytes at most
    return path.with_name(f'.{start}.{token or uuid.uuid4().hex[:12]}.partial')


def remove_unfinished(path, before=math.inf):
    """Remove the temporary files and folders of `path` that killed writers left, if last changed before this time."""
    form = re.compile(re.escape(temporary(path, '\0').name).replace('\0', '[0-9a-f]{12}'))
    for left in path.parent.iterdir():
        with suppress(OSError):  # another process has removed it
            if form.fullmatch(left.name) and left.stat().st_mtime < before:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def remove_superseded(path):
    """Remove the caches of images that have changed since, and say so.

    A cache's name has a dot, the images' fingerprint of 16 hexadecimal digits, perhaps a second one, and a suffix.
    """
    form = re.compile(r'(.+?)\.([0-9a-f]{16})(?:\.[0-9a-f]{16})?(\.\w+)')
    start, fingerprint, suffix = form.fullmatch(path.name).groups()
    for old in path.parent.glob('*'):
        parts = form.fullmatch(old.name)
        if parts and (parts[1], parts[3]) == (start, suffix) and parts[2] != fingerprint:
            with suppress(OSError):  # it is a folder, or in use where open files cannot be removed
                old.unlink()
                screen.say(f'{old} is removed: it is of images that have changed since')


def write_atomically(path, write, durable=False):
    """Call write(temporary path), then rename that file to `path`: an interrupted write leaves the old file.

    durable: flush the content to the disk before the renaming, so that it survives a power cut. Raises UserError.
    """
    path = Path(path)
    partial = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            if durable:
                # an hour by the clock of the file system, which may be that of a server
                remove_unfinished(path, partial.stat().st_mtime - 3600)
                flush_to_disk(partial)
            partial.replace(path)
            if durable:
                flush_to_disk(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}') from error


def flush_to_disk(path):
    """Wait until a file or a folder is on the disk, not only in the system's cache."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_bytes(path, content, durable=False):
    write_atomically(path, lambda file: file.write_bytes(content), durable)


def write_lines(path, rows, durable=False):
    write_bytes(path, ''.join(f'{row}\n' for row in rows).encode(), durable)


def write_json(path, content):
    write_lines(path, [json.dumps(content, indent=1)], durable=True)


def read_json(path):
    """The content of a JSON file; None if there is no file or no JSON in it. Raises OSError if the disk fails."""
    try:
        return json.loads(Path(path).read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
