"""The SHA-256 of files: that of their content, computed once, and never trusted when a file may have changed."""
import hashlib
import os
import sqlite3

import numpy as np
import pytest

from dataset import fingerprints
from dataset.fingerprints import FILE, Contents, combined
from dataset.images import ImageDataset, warn_of_shared
from runtime import processes
from wsol.errors import UserError


def written(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def sha256s(*contents):
    return [hashlib.sha256(content).hexdigest() for content in contents]


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read. Every file counts as unchanged for long enough."""
    names, read = [], fingerprints._read

    def read_and_note(path):
        names.append(path.name)
        return read(path)
    monkeypatch.setattr(fingerprints, '_read', read_and_note)
    monkeypatch.setattr(fingerprints, 'SETTLED', -10**12)
    return names


def test_each_file_is_read_once_and_again_once_it_has_changed(tmp_path, reads):
    """Also when size and mtime are those of before."""
    paths, contents = written(tmp_path / 'data', a=b'1', b=b'2', c=b'3'), Contents(tmp_path / 'cache')
    assert contents.of(paths) == sha256s(b'1', b'2', b'3') and sorted(reads) == ['a', 'b', 'c']
    assert Contents(tmp_path / 'cache').of(paths[::-1]) == sha256s(b'3', b'2', b'1') and len(reads) == 3
    before = paths[1].stat()
    paths[1].write_bytes(b'x')
    os.utime(paths[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert paths[1].stat().st_mtime_ns == before.st_mtime_ns
    assert contents.of(paths) == sha256s(b'1', b'x', b'3') and reads[3:] == ['b']
    assert contents.of(paths) == sha256s(b'1', b'x', b'3') and len(reads) == 4
    written(tmp_path / 'new', b=b'y')
    (tmp_path / 'new/b').replace(paths[1])
    assert contents.of([paths[1], paths[1]]) == sha256s(b'y', b'y')


def test_a_file_that_changed_just_now_is_read_again(tmp_path, reads, monkeypatch):
    """It may change once more within one tick of the file system's clock."""
    monkeypatch.setattr(fingerprints, 'SETTLED', 10**12)
    paths = written(tmp_path / 'data', a=b'1')
    for _ in range(2):
        Contents(tmp_path / 'cache').of(paths)
    assert reads == ['a', 'a']


def test_what_is_no_readable_file_has_no_sha256(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    assert Contents(tmp_path).of([tmp_path / 'pipe', tmp_path / 'absent', tmp_path]) == ['', '', '']
    assert Contents(tmp_path).of([]) == []


@pytest.mark.parametrize('spoil', ['not a store', 'locked', 'a folder', 'another table', 'its folder is a file'])
def test_without_a_usable_store_the_numbers_are_the_same(tmp_path, spoil, reads, capsys, monkeypatch):
    paths, cache = written(tmp_path / 'data', a=b'1', b=b'2'), tmp_path / 'cache'
    monkeypatch.setattr(fingerprints, 'PATIENCE', 0.01)
    other = None
    if spoil == 'its folder is a file':
        cache.write_bytes(b'')
    elif spoil == 'a folder':
        (cache / FILE).mkdir(parents=True)
    elif spoil == 'not a store':
        written(cache, **{FILE: b'no database at all' * 100})
    else:
        cache.mkdir()
        other = sqlite3.connect(cache / FILE)
        other.execute('CREATE TABLE files (name TEXT)')
        if spoil == 'locked':
            other.execute('BEGIN EXCLUSIVE')
    for _ in range(2):
        assert Contents(cache).of(paths) == sha256s(b'1', b'2')
    assert len(reads) == 4
    assert ('is damaged' in capsys.readouterr().err) == (spoil == 'not a store')
    if other:
        other.close()


def test_a_store_that_can_only_be_read_is_read(tmp_path, reads, monkeypatch):
    paths = written(tmp_path / 'data', a=b'1', b=b'2')
    Contents(tmp_path / 'cache').of(paths[:1])
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, 'connect', lambda path, **_: connect(f'file:{path}?mode=ro', uri=True))
    for _ in range(2):
        assert Contents(tmp_path / 'cache').of(paths) == sha256s(b'1', b'2')
    assert reads == ['a', 'b', 'b']


def test_several_processes_share_the_files(tmp_path, reads, monkeypatch):
    paths, shares = written(tmp_path / 'data', **{name: name.encode() for name in 'abcde'}), []
    monkeypatch.setattr(processes, 'size', lambda: 3)
    for gather in (lambda share: shares.append(share) or [share], lambda _: shares):
        monkeypatch.setattr(processes, 'gather', gather)
        for rank in range(3):
            monkeypatch.setattr(processes, 'rank', lambda rank=rank: rank)
            if gather(['']) is shares:
                assert Contents(tmp_path / 'cache').of(paths) == sha256s(*map(str.encode, 'abcde'))
            else:
                shares.pop()
                with pytest.raises(UserError, match='different numbers of files'):
                    Contents(tmp_path / 'cache').of(paths)
    assert sorted(reads) == list('abcde')


def photos(folder, ids=(b'a', b'b'), labels=(0, 1)):
    return ImageDataset(np.array(ids), np.array(labels), folder, None)


def test_images_are_known_by_content_ids_labels_and_order_wherever_they_are(tmp_path):
    for place, content in (('1', b'22'), ('2', b'22'), ('3', b'23')):
        written(tmp_path / place, a=b'11', b=content)
    known = photos(tmp_path / '1').fingerprint()
    assert known == photos(tmp_path / '2').fingerprint() != photos(tmp_path / '3').fingerprint()
    others = [photos(tmp_path / '1', *change).fingerprint() for change in (
        ((b'b', b'a'), (1, 0)), ((b'a', b'b'), (1, 1)), ((b'a',), (0,)), ((b'a', b'c'), (0, 1)))]
    assert len({known, *others}) == 5


def test_a_combination_tells_its_parts_apart():
    array = np.arange(4)
    parts = [('a', 'b'), ('ab',), ('b', 'a'), (['a', 'b'],), (array,), (array.reshape(2, 2),), (array.astype(float),)]
    assert len({combined(*of_one) for of_one in parts}) == len(parts)


# --- photos in two splits -----------------------------------------------------------------------------------------

def two_splits(tmp_path, second, **first):
    written(tmp_path / 'train', **first)
    written(tmp_path / 'test', **second)
    return [photos(tmp_path / split, [name.encode() for name in names], range(len(names)))
            for split, names in (('train', list(first)), ('test', list(second)))]


def test_photos_of_two_splits_are_found_by_content_under_any_name(tmp_path, reads, capsys):
    """And each is read once."""
    train, test = two_splits(tmp_path, {'x': b'22', 'y': b'333', 'b': b'11', 'z': b'4444'}, a=b'11', b=b'22', c=b'55555', d=b'333')
    warn_of_shared({'train': train, 'test': test})
    err = capsys.readouterr().err
    assert f'3 images of test are images of train, too; the first: {tmp_path / "test/x"} is {tmp_path / "train/b"}' in err
    warn_of_shared({'train': photos(tmp_path / 'train', [b'a'], [0]), 'test': photos(tmp_path / 'test', [b'x'], [0])})
    assert capsys.readouterr().err == '' and sorted(reads) == sorted('abcdxybzax')


def test_absent_files_are_no_shared_photos(tmp_path, capsys):
    warn_of_shared({'train': photos(tmp_path / 'train', [b'a'], [0]), 'test': photos(tmp_path / 'test', [b'x'], [0])})
    assert capsys.readouterr().err == ''
