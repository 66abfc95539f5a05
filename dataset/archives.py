"""Unpack an archive safely and whole: nothing outside its folder, nothing half in place."""
import contextlib
import functools
import gzip
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PureWindowsPath
from typing import NamedTuple

from util import UserError, progress

UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError,
              RuntimeError)  # the last: zipfile's, of a password or of a compression it does not know
CHUNK = 1 << 20  # bytes


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
        try:
            os.kill(int(path.name.split('.')[-2]), 0)  # signal 0 asks whether the process lives
        except (ProcessLookupError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass  # it lives, and is somebody else's


class Member(NamedTuple):
    """What an archive holds: a file, a folder (with nothing to extract), or something that is refused."""
    path: PureWindowsPath     # in the archive; this kind of path knows both slashes, and C:
    is_plain: bool            # a file or a folder: no link, no device
    extract: Callable | None  # (path below the folder, folder): writes the file


def unpack(archive, folder, wanted):
    """Extract a .tar, .tar.gz, .tgz or .zip file below `folder`, with a bar. Returns the number of files.

    wanted: the pattern of the files to extract; its first group is their path below `folder`. A tar within a tar is
    unpacked too: the member x.jpg of n1.tar matches as n1/x.jpg.
    Raises UserError for an archive that is damaged, that holds a path which leads outside, a link or a device, or that
    holds no file that is wanted.
    """
    if not hasattr(tarfile, 'data_filter'):
        raise UserError('the tarfile of this Python has no data_filter, which unpacking needs: use Python 3.10.12, '
                        '3.11.4, 3.12 or newer')
    count, size = 0, archive.stat().st_size
    try:
        with open(archive, 'rb') as file, progress(None, f'unpacking {archive.name}', 'B', total=size,
                                                   unit_scale=True) as bar:
            for path, is_plain, extract in _members(file):
                # refused for every member: the data filter would mend an absolute path and keep some links
                if path.anchor or '..' in path.parts or '\0' in str(path) or not is_plain:
                    raise UserError(f'{archive} holds {path}, a link, a device or a path that leads outside; it is not '
                                    'the archive it should be')
                match = re.fullmatch(wanted, path.as_posix())
                if match and extract:
                    extract(match[1], folder)
                    count += 1
                bar.update(file.tell() - bar.n)
    except UNREADABLE as error:
        raise UserError(f'{archive} is no whole archive ({type(error).__name__}: {error}); remove it and fetch it '
                        'again') from error
    if not count:
        raise UserError(f'{archive} holds none of the files it should; is it the right archive?')
    return count


def _members(file):
    """The Members of an open archive, of either kind, in order."""
    if zipfile.is_zipfile(file):
        return _zip_members(file)
    file.seek(0)
    is_gzip = file.peek(2)[:2] == b'\x1f\x8b'
    # GzipFile checks the sum of the whole file when it is read to the end
    return _tar_members(gzip.GzipFile(fileobj=file) if is_gzip else file)


def _zip_members(file):
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            # the type is 0 where the archive was not made on Unix
            is_plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            extract = None if info.is_dir() else functools.partial(_extract_zip, archive, info)
            yield Member(PureWindowsPath(info.filename), is_plain, extract)


def _extract_zip(archive, info, path, folder):
    info.filename = path
    archive.extract(info, folder)


def _tar_members(stream, above=''):
    with tarfile.open(fileobj=stream, mode='r:') as archive:
        for info in archive:
            if info.isfile() and info.name.endswith('.tar'):
                inner = PureWindowsPath(above, info.name.removesuffix('.tar'))
                yield from _tar_members(archive.extractfile(info), inner)
            else:
                extract = functools.partial(_extract_tar, archive, info) if info.isfile() else None
                yield Member(PureWindowsPath(above, info.name), info.isfile() or info.isdir(), extract)
        # tarfile takes any damage for the end; the true end is a block of zeros, and only zeros follow it
        stream.seek(archive.offset)
        is_whole = stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        while is_whole and (rest := stream.read(CHUNK)):
            is_whole = not rest.strip(b'\0')
        if not is_whole:
            raise tarfile.ReadError('it is damaged or cut off')


def _extract_tar(archive, info, path, folder):
    archive.extract(info.replace(name=path, deep=False), folder, set_attrs=False, filter='data')
