"""Unpack an archive safely and whole: nothing outside its folder, nothing half in place."""
import contextlib
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from util import UserError, progress


@contextlib.contextmanager
def staged(target):
    """A new folder to fill, put at the path `target` when it is complete, removed if that fails."""
    partial = target.with_name(f'.{target.name}.{os.getpid()}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(target)
    except OSError as error:
        raise UserError(f'{target} could not be written: {error}') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unpack(archive, folder, place):
    """Extract a .tar, .tar.gz, .tgz or .zip file below `folder`, with a bar.

    place: a function (member's name) -> path below folder, or None to leave it out. An archive with an absolute
    path, a `..`, a link or a device is refused. Returns the number of files written.
    """
    try:
        if zipfile.is_zipfile(archive):
            return _unpack_zip(archive, folder, place)
        with open(archive, 'rb') as raw, _bar(archive) as bar, tarfile.open(fileobj=raw, mode='r|*') as tar:
            return _unpack_tar(tar, folder, place, archive, lambda: bar.update(raw.tell() - bar.n))
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f'{archive} is no whole archive ({type(error).__name__}: {error}); remove it and fetch it '
                        'again') from error


def unpack_nested(archive, folder):
    """A tar of tars, as ImageNet's training set: <name>.tar becomes the folder <name>/. Returns the number of files."""
    count = 0
    try:
        with open(archive, 'rb') as raw, _bar(archive) as bar, tarfile.open(fileobj=raw, mode='r|*') as outer:
            for member in outer:
                _check(member.name, archive, plain=member.isfile() or member.isdir())
                if member.isfile() and member.name.endswith('.tar'):
                    inner_folder = folder / PurePosixPath(member.name).stem
                    with tarfile.open(fileobj=outer.extractfile(member), mode='r|') as inner:
                        count += _unpack_tar(inner, inner_folder, lambda name: PurePosixPath(name).name, archive,
                                             lambda: bar.update(raw.tell() - bar.n))
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise UserError(f'{archive} is no whole archive ({type(error).__name__}: {error})') from error
    return count


def _bar(archive):
    return progress(None, f'unpacking {archive.name}', 'B', total=archive.stat().st_size, unit_scale=True)


def _check(name, archive, plain):
    """Raise UserError for what has no place in a data set's archive."""
    path = PurePosixPath(name.replace('\\', '/'))
    if path.is_absolute() or '..' in path.parts or (path.parts and ':' in path.parts[0]):
        raise UserError(f'{archive} would write outside its folder ({name}); it is not the archive it should be')
    if not plain:
        raise UserError(f'{archive} holds a link or a device ({name}); it is not the archive it should be')


def _write(source, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'wb') as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _target(name, folder, place, archive):
    where = place(name)
    if where is not None:
        _check(str(where), archive, plain=True)
        where = Path(folder) / where
    return where


def _unpack_tar(tar, folder, place, archive, advance):
    count = 0
    for member in tar:
        _check(member.name, archive, plain=member.isfile() or member.isdir())
        path = _target(member.name, folder, place, archive) if member.isfile() else None
        if path is not None:
            _write(tar.extractfile(member), path)
            count += 1
        advance()
    return count


def _unpack_zip(archive, folder, place):
    count = 0
    with zipfile.ZipFile(archive) as zipped:
        for member in progress(zipped.infolist(), f'unpacking {archive.name}', 'file'):
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check(member.filename, archive, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
            path = None if member.is_dir() else _target(member.filename, folder, place, archive)
            if path is not None:
                with zipped.open(member) as source:
                    _write(source, path)
                count += 1
    return count
