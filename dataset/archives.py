"""Unpack an archive safely and whole: nothing outside its folder, nothing half in place.

Only the content of plain files is written; links, devices and permissions never are.
"""
import contextlib
import errno
import gzip
import re
import shutil
import stat
import tarfile
import zipfile
from functools import partial
from pathlib import PureWindowsPath

from runtime import locks
from runtime.screen import progress
from runtime.whole_files import remove_unfinished, temporary
from wsol.errors import UserError, words_of

CHUNK = 1 << 20          # bytes
LARGEST_READ = 64 << 20  # bytes: no header of a tar is larger
GROWTH, SMALL = 10, 1 << 30  # an archive of photos unpacks to little more than its size, one of text to a GB at most


@contextlib.contextmanager
def staged(target):
    """A new folder to fill, put at the path `target` when the context ends well, removed otherwise.

    One process at a time fills a folder for a target: another waits, finds the target made, and uses it.
    """
    with locks.hold(target, f'{target} is being made', wait=True):
        remove_unfinished(target)
        unfinished = temporary(target)
        try:
            unfinished.mkdir()
            yield unfinished
            if not target.exists():
                unfinished.rename(target)
        except OSError as error:
            raise UserError(f'{target} could not be written: {error}') from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def unpack(archive, folder, wanted, limit=None):
    """Extract a .tar, .tar.gz, .tgz or .zip file below `folder`, with a bar. Returns the number of files.

    wanted: the pattern of the files to extract; its first group is their path below `folder`. A tar within a tar is
    unpacked too: the member x.jpg of n1.tar matches as n1/x.jpg. limit: the bytes that all files may take together
    (default: GROWTH times the archive's size, plus SMALL).
    Raises UserError if the archive is damaged, holds a link, a device or a path that leads outside, holds no wanted
    file, or exceeds the limit.
    """
    size, count, taken = archive.stat().st_size, 0, 0
    limit = GROWTH * size + SMALL if limit is None else limit
    try:
        with open(archive, 'rb') as file, progress(None, f'unpacking {archive.name}', 'B', total=size,
                                                   unit_scale=True) as bar:
            for member, is_plain, size_of_file, open_file in _members(file):
                match = re.fullmatch(wanted, _harmless(member, is_plain, archive).as_posix())
                if match and open_file:
                    taken += size_of_file
                    if taken > limit:
                        raise UserError(f'{archive}, of {size:,} bytes, unpacks to more than {limit:,}; if that is '
                                        'right, say --unpack_limit')
                    path = folder / match[1]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with open_file() as content, open(path, 'wb') as target:
                        shutil.copyfileobj(content, target, CHUNK)
                    count += 1
                bar.update(file.tell() - bar.n)
    except UserError:
        raise
    except Exception as error:  # damaged archives make tarfile, zipfile and zlib raise many kinds
        # an OSError is the disk's, unless gzip raised it, or a damaged zip had its reader seek to where no file is
        if getattr(error, 'errno', None) not in (None, errno.EINVAL) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise UserError(f'{archive} is no whole archive ({type(error).__name__}: {words_of(error)}); remove it and '
                        'fetch it again') from error
    if not count:
        raise UserError(f'{archive} holds no file of this data set; is it the right archive?')
    return count


def _harmless(member, is_plain, archive):
    """The path of a member. Raises UserError for one that leads outside, has no name, or is a link or a device."""
    path = PureWindowsPath(member)  # it knows both slashes, and C:
    if path.anchor or '..' in path.parts or '\0' in str(path) or not path.name or not is_plain:
        raise UserError(f'{archive} holds {path}, a link, a device or a path that leads outside or nowhere; it is not '
                        'the archive it should be')
    return path


def _members(file):
    """(path, whether it is a file or a folder, declared size, function that opens a file) of each member of an open
    archive, of either kind, in order. A file gives no more bytes than it declares; a folder has no function."""
    if zipfile.is_zipfile(file):
        return _zip_members(file)
    file.seek(0)
    is_gzip = file.peek(2)[:2] == b'\x1f\x8b'
    # GzipFile checks the sum of the whole file when it is read to the end
    return _tar_members(_Bounded(gzip.GzipFile(fileobj=file) if is_gzip else file))


def _zip_members(file):
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            # the type is 0 where the archive was not made on Unix
            is_plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            yield info.filename, is_plain, info.file_size, None if info.is_dir() else partial(archive.open, info)


class _Bounded:
    """A stream that refuses a huge read: tarfile reads as many bytes as a header says that it is long."""

    def __init__(self, stream):
        self.stream = stream

    def read(self, size):
        if size > LARGEST_READ:
            raise tarfile.ReadError(f'a header of {size:,} bytes')
        return self.stream.read(size)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def _tar_members(stream, above=''):
    with tarfile.open(fileobj=stream, mode='r:') as archive:
        for info in archive:
            if info.isfile() and info.name.endswith('.tar'):
                inner = PureWindowsPath(above, info.name.removesuffix('.tar'))
                yield from _tar_members(_Bounded(archive.extractfile(info)), inner)
            else:
                open_file = partial(archive.extractfile, info) if info.isfile() else None
                yield PureWindowsPath(above, info.name), info.isfile() or info.isdir(), info.size, open_file
        # tarfile takes any damage for the end; the true end is a block of zeros, and only zeros follow it
        stream.seek(archive.offset)
        is_whole = stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        while is_whole and (rest := stream.read(CHUNK)):
            is_whole = not rest.strip(b'\0')
        if not is_whole:
            raise tarfile.ReadError('it is damaged or cut off')
