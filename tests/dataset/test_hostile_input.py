"""Whatever becomes of a file, its parser returns or says in one line what is wrong: hypothesis, over 2,000 files."""
import json
import os
import re
import shutil
import tarfile
import zipfile
import zlib

import hostile
import pytest
from conftest import files_below, refused, roots_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import config
import main
from dataset import archives, image_files, image_folders
from experiment.settings import problem_of
from wsol.errors import UserError

EACH = 84  # files for each parser
RELAXED = {'deadline': None, 'derandomize': True, 'suppress_health_check': list(HealthCheck)}


@pytest.mark.parametrize('name', hostile.PARSERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(name, tmp_path):
    path, read = hostile.setting_up(name, tmp_path)
    whole = path.read_bytes()
    assert hostile.outcome(read) is None  # as it is, it is read
    refusals = []

    @settings(max_examples=EACH, **RELAXED)
    @given(st.randoms(use_true_random=False))
    def damage(random):
        path.write_bytes(hostile.mutate(random, whole))
        refusals.append(hostile.outcome(read))
    damage()
    assert len(refusals) >= EACH and any(refusals) or name == 'checked_lists'


def test_there_are_over_2000_of_them():
    assert len(hostile.PARSERS) * EACH >= 2000


@pytest.mark.parametrize('flag', config.ALL_FLAGS)
@settings(max_examples=8, **RELAXED)
@given(text=st.one_of(st.text(), st.integers().map(str), st.floats().map(str), st.sampled_from([
    '9' * 5000, '1' * 400 + '.5', '1e999', '²', '½', '\0', '--', 'nan', '-0', '1_0', ' 1', '٣'])))
def test_any_text_is_a_flags_value_or_refused(flag, text):
    """And what is taken is taken for itself when a checkpoint carries it."""
    try:
        value = config.ALL_FLAGS[flag].parse(text)
    except UserError as error:
        assert str(error)
        return
    assert problem_of(flag, value) is None


@settings(max_examples=200, **RELAXED)
@given(st.sampled_from(sorted(config.ALL_FLAGS)), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner), max_leaves=4))
def test_any_setting_of_a_checkpoint_is_looked_at(flag, value):
    problem = problem_of(flag, value)
    assert problem or not isinstance(value, (list, dict, bytes))  # of which no flag has a value


# --- cases by name --------------------------------------------------------------------------------------


def put(name, text):
    """A change of the lists that hostile.ids writes."""
    return lambda folder: (folder / name).write_bytes(text)


@pytest.mark.parametrize('change, words', [
    (put('image_ids.txt', b'../x.jpg\n'), 'line 1: a path leads out of its folder in "../x.jpg"'), (put('image_ids.txt', b'a.jpg\n/x.jpg\n'), 'line 2: a path leads out of its folder in "/x.jpg"'),
    (put('image_ids.txt', b'a.jpg\nb.jpg\na.jpg\n'), 'line 3: a.jpg stands there twice'),
    (put('image_ids.txt', b'\xff.jpg\n'), 'line 1: expected'), (put('image_ids.txt', b'x\0.jpg\n'), 'line 1: expected'),
    (put('class_labels.txt', b'birds/0.jpg,%d\n' % 2**64), 'line 1: expected'),
    (put('class_labels.txt', b'birds/0.jpg,1\nbirds/0.jpg,2\n'), 'lines 1 and 2 contradict each other')])
def test_lists_that_lead_out_repeat_or_contradict(tmp_path, change, words):
    _, read = hostile.setting_up('ids', tmp_path)
    change(tmp_path / 'ids')
    assert words in hostile.outcome(read)


def test_dots_in_a_name_lead_nowhere(tmp_path):
    path, read = hostile.setting_up('ids', tmp_path)
    for name in ('image_ids', 'class_labels'):
        file = path.with_name(f'{name}.txt')
        file.write_text(file.read_text().replace('birds/1.jpg', 'birds/1...jpg'))
    assert hostile.outcome(read) is None


def test_a_map_whose_header_lies_takes_no_memory(tmp_path):
    path, read = hostile.setting_up('score_map', tmp_path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'(7, 7), }' + b' ' * 10, b'(99999999, 7), }   '))
    assert path.stat().st_size == len(content)
    assert 'map.npy is no score map: mmap length is greater than file size' in hostile.outcome(read)


def zip_of(path, members):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, size in members.items():
            archive.writestr(zipfile.ZipInfo(name), bytes(size), zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize('members, words', [
    ({'top/a': 10, 'top/b': 3 << 20}, 'unpacks to more than 2,097,152; if that is right, say --unpack_limit'), ({'': 3}, 'no whole archive'),
    ({'../a': 3}, 'leads outside'), ({'C:\\a': 3}, 'leads outside'), ({'other/a': 3}, 'holds no file of this data set')])
def test_archives_that_grow_or_lead_out(tmp_path, members, words):
    path = zip_of(tmp_path / 'x.zip', members)
    with pytest.raises(UserError, match=re.escape(words)):
        archives.unpack(path, tmp_path / 'out', 'top/(.*)', limit=2 << 20)
    assert sum(map(len, files_below(tmp_path / 'out').values())) <= 2 << 20


def test_the_header_of_a_tar_that_wants_gigabytes_is_refused(tmp_path):
    info = tarfile.TarInfo('x')
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    (tmp_path / 'x.tar').write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(UserError, match='no whole archive'):
        archives.unpack(tmp_path / 'x.tar', tmp_path / 'out', '(.*)')


def test_pipes_bombs_and_names_that_are_no_text_among_images(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    with pytest.raises(UserError, match='no regular file'):
        image_files.open_image(tmp_path / 'pipe.jpg')
    header = b'\x89PNG\r\n\x1a\n' + b'\0\0\0\rIHDR' + (20_000).to_bytes(4, 'big') * 2 + b'\x08\2\0\0\0'
    (tmp_path / 'bomb.png').write_bytes(header + zlib.crc32(header[12:]).to_bytes(4, 'big') + b'\0\0\0\0IDAT' + bytes(4))
    with pytest.raises(UserError, match='does not open .*DecompressionBomb'):
        image_files.open_upright(tmp_path / 'bomb.png', 100)
    (tmp_path / os.fsdecode(b'\xff.jpg')).touch()
    with pytest.raises(UserError, match='is not UTF-8; rename it'):
        image_folders.images_below(tmp_path)


def test_a_broken_photo_does_not_cost_the_others(script, trained, tiny_birds, tmp_path):
    photos = sorted((roots_of(tiny_birds)[0] / 'ToyBirds/images').rglob('*_test_*.jpg'))[:3]
    (tmp_path / 'own').mkdir()
    for photo in photos:
        shutil.copy(photo, tmp_path / 'own')
    (tmp_path / 'own/broken.jpg').write_bytes(photos[0].read_bytes()[:700])
    flags = ['own', f'--load_checkpoint={trained / "CAM"}', '--workers=0', '--device=cpu', '--batch_size=2', '--picture_size=64']
    refused(script('inference', *flags), 'own/broken.jpg does not open', '--skip_broken', '(1 of 4 images do not open; the others')
    entries = json.loads((tmp_path / 'maps/manifest.json').read_text())['images']
    assert [entry['image'] for entry in entries] == sorted(f'own/{photo.name}' for photo in photos)
    assert all((tmp_path / 'maps' / entry['picture']).exists() for entry in entries)
    assert script('inference', *flags, '--skip_broken')[0] == 0
    refused(script('inference', '', *flags[1:]), 'no images: name image files')


@pytest.mark.parametrize('reason, words', [
    ('DataLoader worker (pid 7) is killed by signal: Killed. ', 'because memory ran out: lower --workers'),
    ('DataLoader worker (pid(s) 7) exited unexpectedly', 'because memory ran out: lower --workers'),
    ('DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that', '--shm-size=1g'),
    ('unable to allocate shared memory(shm) for file </torch_7_8>: No space left on device (28)', '--shm-size=1g'),
    ('CUDA out of memory. Tried to allocate 2 GiB', 'not enough memory: lower --workers')])
def test_what_torch_says_of_memory_is_said_in_one_line(script, monkeypatch, reason, words):
    def fail():
        raise RuntimeError(reason)
    monkeypatch.setattr(main, 'main', fail)
    refused(script('main'), words)


def test_an_error_is_one_line_whatever_the_input_holds(script, monkeypatch):
    def fail():
        raise UserError('"a\nb\r\nc" is no class')
    monkeypatch.setattr(main, 'main', fail)
    assert script('main') == (2, '', 'error: "a b c" is no class\n')


def test_an_error_that_no_user_can_mend_is_not_hidden(script, monkeypatch):
    monkeypatch.setattr(main, 'main', lambda: [][0])
    code, _, err = script('main')
    assert code == 1 and 'Traceback' in err and err.endswith('IndexError: list index out of range\n')
