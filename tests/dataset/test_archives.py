"""dataset.archives: evil, damaged and whole archives; a folder is filled whole or not at all."""
import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_archives import tar_of, zip_of

from dataset import archives
from wsol.errors import UserError


def evil_tar(kind):
    info = tarfile.TarInfo({'absolute': '/tmp/calm_evil', 'upwards': 'a/../../evil', 'windows': 'C:\\evil'}.get(kind, 'link'))
    info.type = {'symbolic link': tarfile.SYMTYPE, 'hard link': tarfile.LNKTYPE, 'device': tarfile.CHRTYPE}.get(kind, tarfile.REGTYPE)
    info.linkname = '/etc/passwd'
    return info.tobuf() + bytes(1024)


def evil_zip(name):
    buffer, info = io.BytesIO(), zipfile.ZipInfo(name)
    if name == 'link':
        info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(buffer, 'w') as zipped:
        zipped.writestr(info, '/etc/passwd')
    return buffer.getvalue()


EVIL = {f'tar, {kind}': evil_tar(kind) for kind in ('absolute', 'upwards', 'windows', 'symbolic link', 'hard link', 'device')}
EVIL |= {f'tar in {name}': tar_of({'n01440764.tar': content}, 'w') for name, content in EVIL.items()}
EVIL |= {f'zip, {name}': evil_zip(name) for name in ('../evil', '/evil', 'link')}
EVIL['a tar named dots in a tar'] = tar_of({'...tar': tar_of({'evil.txt': b'x'}, 'w')}, 'w')  # without its suffix: the folder above


@pytest.mark.parametrize('kind', EVIL)
def test_evil_archives_are_refused(tmp_path, kind):
    (tmp_path / 'evil').write_bytes(EVIL[kind])
    with pytest.raises(UserError, match='not the archive it should be'), archives.staged(tmp_path / 'out') as partial:
        archives.unpack(tmp_path / 'evil', partial, '(.+)')
    assert [path.name for path in tmp_path.iterdir()] == ['evil'] and not Path('/tmp/calm_evil').exists()


WHOLE = tar_of({f'{n}.jpg': bytes([n]) * 1000 for n in range(1, 7)}, 'w')  # a member: 512 bytes header, 1024 content
PACKED = gzip.compress(tar_of({f'{n}.jpg': np.random.default_rng(n).bytes(1000) for n in range(6)}, 'w'))
DAMAGED = {
    'cut at a member': WHOLE[:3 * 1536], 'cut in the end': WHOLE[:6 * 1536 + 100], 'cut in a header': WHOLE[:3 * 1536 + 100], 'cut in a file': WHOLE[:3 * 1536 + 700],
    'a header of other bytes': WHOLE[:4628] + b'\xff' * 100 + WHOLE[4728:],
    'a hole of zeros': WHOLE[:3 * 1536] + bytes(1536) + WHOLE[4 * 1536:], 'zeros': bytes(10240), 'empty': b'',
    'gz cut': PACKED[:len(PACKED) // 2], 'gz without its sum': PACKED[:-8], 'gz with a wrong sum': PACKED[:-8] + bytes(8)}


@pytest.mark.parametrize('damage, nested', [*((damage, False) for damage in DAMAGED),
                                            *((damage, True) for damage in DAMAGED if not damage.startswith('gz'))])
def test_a_damaged_tar_is_no_whole_archive(tmp_path, damage, nested):
    content = DAMAGED[damage]
    (tmp_path / 'x.tar').write_bytes(tar_of({'a.tar': content}, 'w') if nested else content)
    with pytest.raises(UserError, match='no whole archive|holds no file'), archives.staged(tmp_path / 'out') as partial:
        archives.unpack(tmp_path / 'x.tar', partial, '(.+)')
    assert [path.name for path in tmp_path.iterdir()] == ['x.tar']


def test_the_undamaged_tars_unpack(tmp_path):
    for index, content in enumerate((WHOLE, PACKED)):
        (tmp_path / 'x.tar').write_bytes(content)
        assert archives.unpack(tmp_path / 'x.tar', tmp_path / f'out{index}', '(.+)') == 6
    (tmp_path / 'x.tar').write_bytes(tar_of({'a.tar': WHOLE, 'b.tar': WHOLE}, 'w'))
    assert archives.unpack(tmp_path / 'x.tar', tmp_path / 'nested', '(.+)') == 12


def locked_zip():
    content = bytearray(zip_of({'x': b'hello'}))
    for signature, offset in ((b'PK\x01\x02', 8), (b'PK\x03\x04', 6)):
        content[content.find(signature) + offset] |= 1  # the flag of an encrypted member
    return bytes(content)


@pytest.mark.parametrize('content, words', [(locked_zip(), 'encrypted'), (b'<html>sorry</html>', 'no whole archive')], ids=['zip', 'page'])
def test_a_zip_with_a_password_and_a_page_are_refused(tmp_path, content, words):
    (tmp_path / 'x').write_bytes(content)
    with pytest.raises(UserError, match=words):
        archives.unpack(tmp_path / 'x', tmp_path / 'out', '(.+)')


def test_what_a_killed_process_left_is_removed(tmp_path):
    left, foreign = tmp_path / '.out.0123456789ab.partial', tmp_path / '.other.0123456789ab.partial'
    left.mkdir()
    foreign.mkdir()
    with archives.staged(tmp_path / 'out') as partial:
        (partial / 'x').write_bytes(b'x')
    assert not left.exists() and foreign.exists() and (tmp_path / 'out' / 'x').exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(UserError, match='cannot make the folder'), archives.staged(tmp_path / 'file' / 'out'):
        pass
