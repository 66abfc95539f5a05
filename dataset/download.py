"""Download a file once, whole: resumed where it broke off, checked, never half in place.

Source of the Google Drive address: drive.usercontent.google.com gives the file itself with
confirm=t; where it gives a page instead (virus scan, quota), that is recognised.
"""
import hashlib
import http.client
import time
import urllib.error
import urllib.request

from util import UserError, progress

DRIVE = 'https://drive.usercontent.google.com/download'
TRIES, TIMEOUT, PAUSE, CHUNK = 5, 30, 1.0, 1 << 20  # tries, seconds, seconds, bytes


class Gone(UserError):
    """The address has no such file: asking again will not help."""


def drive_url(file_id):
    """The address of a public file on Google Drive."""
    return f'{DRIVE}?id={file_id}&export=download&confirm=t'


def digest(path, algorithm):
    """The file's hash in hexadecimal, read in pieces."""
    found, size = hashlib.new(algorithm), path.stat().st_size
    with open(path, 'rb') as file, progress(None, f'{algorithm.upper()} of {path.name}', 'B', total=size, leave=False,
                                            unit_scale=True) as bar:
        while chunk := file.read(CHUNK):
            found.update(chunk)
            bar.update(len(chunk))
    return found.hexdigest()


def verify(path, size=None, md5=None, sha256=None):
    """Raise UserError unless the file has this size and these hashes (those that are given)."""
    actual = path.stat().st_size
    if size is not None and actual != size:
        raise UserError(f'{path} has {actual:,} bytes, not {size:,}; remove it and fetch it again')
    for algorithm, expected in (('md5', md5), ('sha256', sha256)):
        if expected is not None and (found := digest(path, algorithm)) != expected:
            raise UserError(f'{path}: {algorithm.upper()} is {found}, not {expected}; remove it and fetch it again')


def fetch(url, target, size=None, md5=None, sha256=None, by_hand=None):
    """Download url to the path `target`, unless it is there; verified either way.

    A download that breaks off is resumed, now or by the next call, from <target>.partial.
    by_hand: the address to name where the file must be fetched by hand (default url).
    """
    if target.exists():
        return verify(target, size, md5, sha256)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{target.parent} cannot be made ({error.strerror}): it is to hold {target.name}') from error
    partial = target.with_name(target.name + '.partial')
    remedy = f'Fetch it by hand from {by_hand or url} and put it at {target}'
    for attempt in range(TRIES):
        try:
            if _receive(url, partial, size, remedy):
                break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            status = getattr(error, 'code', None)
            if attempt == TRIES - 1 or (status is not None and status < 500):
                reason = f'HTTP {status} {error.reason}' if status else getattr(error, 'reason', error)
                if status in (404, 410):
                    raise Gone(f'{url} is not there ({reason}). {remedy}') from error
                raise UserError(f'{url} could not be downloaded ({reason}); call again to go on where it broke off. '
                                f'{remedy}') from error
        except OSError as error:  # after the network's, which are its subclasses: the disk's
            raise UserError(f'{partial} cannot be written: {error.strerror}') from error
        time.sleep(PAUSE * attempt)
    else:
        raise UserError(f'{url} broke off {TRIES} times; call again to go on where it broke off. {remedy}')
    try:
        verify(partial, size, md5, sha256)
    except UserError:
        partial.unlink()
        raise
    partial.rename(target)
    return None


def _receive(url, partial, size, remedy):
    """Ask for what is missing and append it. Returns whether the file is complete."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={have}-'} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing is missing, or the file there has changed
            whole = error.headers.get('Content-Range', '').rpartition('/')[2]  # bytes */<size>
            if str(have) in (str(size), whole):
                return True
            partial.unlink()
            return False
        raise
    with response:
        if response.status != 206:  # the server starts from the beginning
            have = 0
        length = response.headers.get('Content-Length')
        total = None if length is None else have + int(length)
        head = response.read(512)
        page = head.lstrip()[:9].lower().startswith((b'<!doctype', b'<html'))
        if page or response.headers.get_content_type() == 'text/html':
            raise UserError(f'{url} gives a page, not the file (a virus-scan notice, a quota that is used up, or a '
                            f'dead link). {remedy}')
        if size is not None and total not in (None, size):
            raise UserError(f'{url} offers {total:,} bytes, expected {size:,}. {remedy}')
        with open(partial, 'ab' if have else 'wb') as file, progress(
                None, partial.name.removesuffix('.partial'), 'B', total=total, initial=have, unit_scale=True) as bar:
            while head:
                file.write(head)
                bar.update(len(head))
                head = response.read(CHUNK)
    return total is None or partial.stat().st_size == total
