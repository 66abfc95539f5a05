"""Unpack an archive safely and whole: nothing outside its folder, nothing half in place."""
import contextlib
import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from util import UserError, progress

UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError,
              RuntimeError)  # the last: zipfile's, of a password or of a compression it does not know
CHUNK = 1 << 20  # bytes


class StrictTarInfo(tarfile.TarInfo):
    """A damaged header is an error: tarfile would take it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not buf.strip(b'\0'):
                raise  # the block of zeros that does end an archive
            raise tarfile.ReadError(f'cut off or damaged: {error}') from error


@contextlib.contextmanager
def staged(target):
    """A new folder to fill, put at the path `target` when it is complete, removed if that fails."""
    partial = target.with_name(f'.{target.name}.{os.getpid()}.partial')
    try:
        remove_abandoned(target)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(target)
    except OSError as error:
        raise UserError(f'{target} could not be written: {error}') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_abandoned(target):
    """Remove what a killed process left of `target`: its folder is named by the process."""
    for path in target.parent.glob(f'.{target.name}.*.partial'):
        process = path.name.split('.')[-2]
        try:
            os.kill(int(process), 0)  # signal 0 asks whether it lives
        except (ProcessLookupError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass  # it lives, and is somebody else's


def unpack(archive, folder, place):
    """Extract a .tar, .tar.gz, .tgz or .zip file below `folder`, with a bar.

    place: a function (member's name) -> path below folder, or None to leave it out. An archive with an absolute
    path, a `..`, a link or a device is refused, and so is a damaged one, or one with nothing for the folder.
    Returns the number of files written.
    """
    with _readable(archive):
        if zipfile.is_zipfile(archive):
            count = _unpack_zip(archive, folder, place)
        else:
            with _open_tar(archive) as (tar, advance):
                count = _unpack_tar(tar, folder, place, archive, advance)
    return _some(count, archive)


def _some(count, archive):
    if not count:
        raise UserError(f'{archive} holds none of the files it should; is it the right archive?')
    return count


def base_name(name):
    """A place for unpack(): the file's name, whatever folders stand before."""
    return PurePosixPath(name).name


def unpack_nested(archive, folder):
    """A tar of tars, as ImageNet's training set: <name>.tar becomes the folder <name>/. Returns the number of files."""
    count = 0
    with _readable(archive), _open_tar(archive) as (outer, advance):
        for member in outer:
            _check(member.name, archive, plain=member.isfile() or member.isdir())
            if member.isfile() and member.name.endswith('.tar'):
                inner_folder = _target(member.name[:-len('.tar')], folder, base_name, archive)
                with _tar(outer.extractfile(member)) as inner:
                    count += _unpack_tar(inner, inner_folder, base_name, archive, advance)
        _check_end(outer)
    return _some(count, archive)


@contextlib.contextmanager
def _readable(archive):
    try:
        yield
    except UNREADABLE as error:
        raise UserError(f'{archive} is no whole archive ({type(error).__name__}: {error}); remove it and fetch it '
                        'again') from error


def _tar(stream):
    return tarfile.open(fileobj=stream, mode='r|', tarinfo=StrictTarInfo)


@contextlib.contextmanager
def _open_tar(archive):
    """A .tar or .tar.gz, read from its beginning to its end. Yields (tar, a function that moves the bar on)."""
    with open(archive, 'rb') as raw, _bar(archive) as bar:
        packed = raw.read(2) == b'\x1f\x8b'
        raw.seek(0)
        # gzip checks the whole file's sum, which tarfile's own decompression does not
        with gzip.GzipFile(fileobj=raw) if packed else contextlib.nullcontext(raw) as stream, _tar(stream) as tar:
            yield tar, lambda: bar.update(raw.tell() - bar.n)


def _check_end(tar):
    """Raise ReadError unless nothing but zeros follows the last member."""
    while chunk := tar.fileobj.read(CHUNK):
        if chunk.strip(b'\0'):
            raise tarfile.ReadError('a hole of zeros in the middle')


def _bar(archive):
    return progress(None, f'unpacking {archive.name}', 'B', total=archive.stat().st_size, unit_scale=True)


def _check(name, archive, plain):
    """Raise UserError for what has no place in a data set's archive."""
    path = PurePosixPath(name.replace('\\', '/'))
    if path.is_absolute() or '..' in path.parts or (path.parts and ':' in path.parts[0]) or '\0' in name:
        raise UserError(f'{archive} would write outside its folder ({name}); it is not the archive it should be')
    if not plain:
        raise UserError(f'{archive} holds a link or a device ({name}); it is not the archive it should be')


def _write(source, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'wb') as file:
        shutil.copyfileobj(source, file, CHUNK)


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
    _check_end(tar)
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
