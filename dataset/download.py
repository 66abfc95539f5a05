"""Download a file once, whole: resumed where it broke off, checked, never half in place.

Source of the Google Drive address: drive.usercontent.google.com gives the file itself with confirm=t. Where it gives a
page instead (virus scan, quota), the error says so. pooch, the usual library for this, cannot resume a download.
"""
import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request

from runtime import locks
from runtime.screen import progress, warn
from runtime.whole_files import write_json
from wsol.errors import UserError

DRIVE = 'https://drive.usercontent.google.com/download'
TRIES, TIMEOUT, PAUSE, CHUNK = 5, 30, 1.0, 1 << 20  # tries, seconds, seconds, bytes


def drive_urls(file_id):
    """The addresses of a public file on Google Drive, for fetch and for a browser."""
    return f'{DRIVE}?id={file_id}&export=download&confirm=t', f'https://drive.google.com/file/d/{file_id}/view'


def digest(path, algorithm):
    """The file's hash in hexadecimal."""
    content, size = hashlib.new(algorithm), path.stat().st_size
    with open(path, 'rb') as file, progress(None, f'{algorithm.upper()} of {path.name}', 'B', total=size, leave=False,
                                            unit_scale=True) as bar:
        while chunk := file.read(CHUNK):
            content.update(chunk)
            bar.update(len(chunk))
    return content.hexdigest()


def verify(path, size=None, md5=None, sha256=None, remedy='remove it and fetch it again'):
    """Raise UserError, with the remedy, unless the file has the given size and hashes. None is not checked."""
    actual = path.stat().st_size
    if size is not None and actual != size:
        raise UserError(f'{path} has {actual:,} bytes, not {size:,}; {remedy}')
    for algorithm, expected in (('md5', md5), ('sha256', sha256)):
        if expected is not None and (actual := digest(path, algorithm)) != expected:
            raise UserError(f'{path}: {algorithm.upper()} is {actual}, not {expected}; {remedy}')


class Lock:
    """The file that records sizes and SHA-256 where no source publishes them: written at first use, then checked."""

    def __init__(self, path):
        self.path = path

    def entries(self):
        """{name: {'size': bytes, 'sha256': hexadecimal}}."""
        try:
            entries = json.loads(self.path.read_text()) if self.path.exists() else {}
            return {name: {'size': entry['size'], 'sha256': entry['sha256']} for name, entry in entries.items()}
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f'{self.path} does not parse ({error!r}); remove it: hashes are recorded anew') from error

    def expected(self, name):
        """The arguments of verify() for a file; {} before its first use."""
        remedy = (f'the expected size and SHA-256 are as recorded in {self.path} when it was first used. Remove the '
                  f'file and fetch it again; if its source has a new version, remove "{name}" from the record too')
        recorded = self.entries().get(name)
        return recorded | {'remedy': remedy} if recorded else {}

    def record(self, name, path):
        """Record a file that proved to be the right one, if the folder can be written. An existing record stays."""
        entries = self.entries()
        if name not in entries:
            try:
                write_json(self.path, entries | {name: {'size': path.stat().st_size, 'sha256': digest(path, 'sha256')}})
            except UserError as error:
                warn(f'{error}: the next use cannot check that {path} is the same')


def fetch(url, target, by_hand=None, **expected):
    """Download url to the path `target`, unless it is there, and verify it in both cases.

    A download that breaks off is resumed, now or by the next call, from <target>.partial.
    by_hand: the address to name where the file must be fetched by hand (default url). expected: arguments of verify().
    """
    if target.exists():
        verify(target, **expected)
        return
    with locks.hold(target, f'{target} is being downloaded', wait=True):
        if target.exists():  # another process has downloaded it meanwhile
            return
        partial = target.with_name(target.name + '.partial')
        advice = f'Fetch it by hand from {by_hand or url} and put it at {target}'
        _download(url, partial, expected.get('size'), advice)
        try:
            verify(partial, **expected)
        except UserError:
            partial.unlink()
            raise
        partial.rename(target)


def _download(url, partial, size, advice):
    """Receive a file in as many tries as it takes. advice: what an error tells the user to do."""
    reason = 'the connection broke off'
    for attempt in range(TRIES):
        time.sleep(PAUSE * attempt)
        try:
            if _receive(url, partial, size, advice):
                return
        except urllib.error.HTTPError as error:
            error.close()
            reason = f'HTTP {error.code} {error.reason}'
            if error.code == 416:  # the server has no more than what is there: begin anew
                partial.unlink()
            elif error.code < 500:  # the same request will get the same answer
                break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = getattr(error, 'reason', error)
        except OSError as error:  # the disk's: the network's are subclasses, caught above
            raise UserError(f'{partial} cannot be written: {error.strerror}') from error
    raise UserError(f'{url} could not be downloaded ({reason}). A later call goes on from what has arrived. {advice}')


def _receive(url, partial, size, advice):
    """Ask for what is missing and append it. Returns whether the file is complete."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={have}-'} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:  # the server starts from the beginning
            have = 0
        length = response.headers.get('Content-Length')
        total = None if length is None else have + int(length)
        chunk = response.read(512)
        page = chunk.lstrip()[:9].lower().startswith((b'<!doctype', b'<html'))
        if page or response.headers.get_content_type() == 'text/html':
            raise UserError(f'{url} gives a page, not the file (a virus-scan notice, a quota that is used up, or a '
                            f'dead link). {advice}')
        if size is not None and total not in (None, size):
            raise UserError(f'{url} offers {total:,} bytes, expected {size:,}. {advice}')
        with open(partial, 'ab' if have else 'wb') as file, progress(
                None, partial.name.removesuffix('.partial'), 'B', total=total, initial=have, unit_scale=True) as bar:
            while chunk:
                file.write(chunk)
                bar.update(len(chunk))
                chunk = response.read(CHUNK)
    return total is None or partial.stat().st_size == total
