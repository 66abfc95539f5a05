"""Files that are written whole or not at all, and folders."""
import contextlib
import errno
import json
import os
import re
import uuid
from pathlib import Path

import numpy as np

from wsol.errors import UserError


def make_folder(path):
    """Make a folder, and those above it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot make the folder {path}: {error.strerror}') from error


@contextlib.contextmanager
def folder_at_hand(path):
    """A context in which a folder is there; where it was not, and nothing has come into it, it is gone afterwards."""
    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # it has come to hold something
            for folder in made:
                folder.rmdir()


def check_writable(folder, size=1 << 20):
    """Raise UserError unless a file of so many bytes can be written in the folder. The bytes are asked for, not
    written: quotas and limits answer too."""
    with folder_at_hand(folder) as path:
        probe = temporary(path / 'space')
        try:
            with open(probe, 'wb') as file:
                reserve(file, size)
        except OSError as error:
            raise UserError(f'cannot write {size / 1e6:,.0f} MB in {folder}: {error.strerror}') from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()


def reserve(file, size):
    """Have room for so many bytes of an open file, where the file system can promise it. What is written to a mapped
    file without it ends the process on a full disk, without a word. Raises OSError."""
    try:
        if hasattr(os, 'posix_fallocate'):
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def temporary(path):
    """A name beside `path` that no other process uses."""
    start = os.fsencode(path.name)[:100].decode(errors='ignore')  # a name of 255 bytes leaves no room for more
    return path.with_name(f'.{start}.{uuid.uuid4().hex[:12]}.partial')


def write_atomically(path, write, durable=False):
    """write(temporary path), then put it in place: an interrupted write leaves the old file. durable: on the disk
    before it takes the old file's name, for what should outlive a power cut."""
    path = Path(path)
    partial = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            if durable:
                _remove_abandoned(path, partial.stat().st_mtime)
                flush_to_disk(partial)
            partial.replace(path)
            if durable:
                flush_to_disk(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}') from error


def left_unfinished(path):
    """The temporary files of this very file: those whose names have the exact form that `temporary` gives them."""
    start = temporary(path).name.removesuffix('.partial')[:-12]
    form = re.compile(re.escape(start) + r'[0-9a-f]{12}\.partial')
    return [found for found in path.parent.iterdir() if form.fullmatch(found.name)]


def _remove_abandoned(path, now):
    """Remove what killed writers of this file left more than an hour ago. now: by the clock that gave the new file its
    time, which may be a server's."""
    for left in left_unfinished(path):
        with contextlib.suppress(OSError):  # a folder, or another process removes it too
            if now - left.stat().st_mtime > 3600:
                left.unlink()


def flush_to_disk(path):
    """Have a file or a folder on the disk, not in the system's memory alone."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def save_array(path, values):
    """np.save to exactly this path: it would add .npy to a temporary name."""
    with open(path, 'wb') as file:
        np.save(file, values)


def write_lines(path, rows, durable=False):
    """Text lines, written whole."""
    write_atomically(path, lambda file: file.write_text(''.join(f'{row}\n' for row in rows)), durable)


def write_json(path, content):
    write_lines(path, [json.dumps(content, indent=1)], durable=True)


def write_json_lines(path, lines):
    write_lines(path, map(json.dumps, lines), durable=True)


def read_json_lines(path):
    """The dicts of a file of JSON lines, up to the first line that is none; [] where there is no file."""
    lines = []
    with contextlib.suppress(OSError, ValueError, RecursionError):
        for text in Path(path).read_text(errors='replace').splitlines():
            line = json.loads(text)
            if not isinstance(line, dict):
                break
            lines.append(line)
    return lines


def read_json(path):
    """What a JSON file holds; None where there is none that can be read."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError):
        return None
