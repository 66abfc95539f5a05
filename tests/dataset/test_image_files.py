"""Image files of every kind: which of them count, and that all ways of reading one see the same pixels."""
import builtins
import errno
import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import OWN_FLAGS, paint_folder, refused, roots_of, shared
from PIL import Image
from torch.utils.data import DataLoader

from data_loaders import Bytes
from dataset import image_files, image_folders, prepare
from dataset.check import check_dataset
from dataset.fingerprints import Contents
from dataset.image_files import open_image, open_upright, upright_size
from dataset.image_folders import images_below
from dataset.registry import find_dataset
from dataset.transforms import eval_transform
from reports.photos import Photos, find_images
from runtime import screen, whole_files
from wsol.errors import UserError

RAMP = np.linspace(0, 1, 40 * 30).reshape(30, 40)  # black to white
GREY = np.round(RAMP * 255).astype(np.uint8)
COLOURS = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])


@pytest.fixture(autouse=True)
def nothing_said():
    screen._said[:] = bytes(256)


def turned(orientation):
    exif = Image.Exif()
    exif[image_files.ORIENTATION] = orientation
    return exif


def with_chunk(path, chunk):
    """Put a chunk, its name and its content, after a PNG's header."""
    content = path.read_bytes()
    whole = struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
    path.write_bytes(content[:33] + whole + content[33:])


def deep(top, kind=np.uint16):
    return Image.fromarray((RAMP * top).astype(kind))


def colours_of_16_bits(folder, name, top):
    cv2.imwrite(str(folder / name), (COLOURS[..., ::-1] * (top / 255)).astype(np.uint16))


PALETTE = Image.fromarray(COLOURS).quantize(16)
ALPHA = np.array([0, 128] + 14 * [255])[np.asarray(PALETTE)][..., None] / 255
OPAQUE = GREY[..., None] / 255
ODD = {  # name of a file that PIL opens -> what writes it
    'deep.png': lambda path: deep(65535).save(path),
    'twelve.tif': lambda path: deep(4095).save(path),
    'real.tiff': lambda path: deep(1, np.float32).save(path),
    'colours.png': lambda path: colours_of_16_bits(path.parent, path.name, 4095),
    'clear.png': lambda path: Image.fromarray(np.dstack([COLOURS, GREY])).save(path),
    'palette.png': lambda path: PALETTE.save(path, transparency=bytes([0, 128] + 14 * [255])),
    'clear_deep.png': lambda path: cv2.imwrite(str(path), np.dstack([COLOURS[..., ::-1] * (4095 / 255), 257.0 * GREY]).astype(np.uint16)),
    'turned.webp': lambda path: Image.fromarray(COLOURS).save(path, exif=turned(3), lossless=True),
    'palette.gif': lambda path: Image.fromarray(GREY // 16).convert('P').save(path, transparency=3),
    'one.png': lambda path: Image.fromarray(GREY).convert('1').save(path),
    'cmyk.jpg': lambda path: Image.fromarray(COLOURS).convert('CMYK').save(path),
    'lab.tif': lambda path: Image.merge('LAB', Image.fromarray(COLOURS).split()).save(path),
    'turned.jpg': lambda path: Image.fromarray(COLOURS).save(path, exif=turned(6)),
    'turned_deep.png': lambda path: deep(4095).save(path, exif=turned(8)),
    'turned.tif': lambda path: Image.fromarray(COLOURS).save(path, tiffinfo={image_files.ORIENTATION: 5}),
    'turned_grey.tif': lambda path: Image.fromarray(GREY).save(path, tiffinfo={image_files.ORIENTATION: 6}),
    'photo.jfif': lambda path: Image.fromarray(COLOURS).save(path, 'JPEG'),
    'photo.avif': lambda path: Image.fromarray(COLOURS).save(path),
    'photo.jp2': lambda path: Image.fromarray(COLOURS).save(path),
    'photo.tga': lambda path: Image.fromarray(COLOURS).save(path),
    'photo.ico': lambda path: Image.fromarray(COLOURS).save(path, sizes=[(40, 30)]),
    'PHOTO.JPG': lambda path: Image.fromarray(COLOURS).save(path, 'JPEG'),
    'photo': lambda path: Image.fromarray(COLOURS).save(path, 'PNG'),
    'photo.txt': lambda path: Image.fromarray(COLOURS).save(path, 'WEBP'),
}


@pytest.fixture
def folder(tmp_path):
    """train/, val/ and test/ with two classes; all that is odd lies in test/a."""
    root = paint_folder(tmp_path / 'own', names=('a', 'b'), counts=(1, 1, 1))
    for name, write in ODD.items():
        write(root / 'test/a' / name)
    return root


def test_every_way_sees_the_same_pixels_of_every_kind_of_file(folder, tmp_path):
    """Training, evaluations and --freeze read an ImageDataset through a loader, --cache keeps what it gives, and
    inference.py reads Photos."""
    transform, data = eval_transform(24), find_dataset(str(folder))
    images, kept = (data.open_split('test', transform, folder=tmp_path / 'cache', cached=cached) for cached in (False, True))
    assert {Path(images.image_id(index)).name for index in range(len(images))} >= ODD.keys()
    photos = Photos([images.path(index) for index in range(len(images))], transform)
    for index, (loaded, *_) in enumerate(DataLoader(Bytes(images), batch_size=None)):
        expected = transform.resize(open_upright(images.path(index)))
        for pixels in (loaded, kept.resized(index), photos.read(index)[0]):
            assert (pixels == expected).all(), images.path(index)
    assert not any(check_dataset(data).values())


EXACT = {'deep.png': GREY, 'twelve.tif': GREY, 'real.tiff': GREY, 'colours.png': COLOURS, 'photo.tga': COLOURS, 'photo': COLOURS,
         'photo.ico': COLOURS, 'clear.png': COLOURS * OPAQUE + 255 * (1 - OPAQUE),
         'clear_deep.png': COLOURS * OPAQUE + 255 * (1 - OPAQUE), 'turned.webp': np.rot90(COLOURS, 2),
         'palette.png': np.asarray(PALETTE.convert('RGB')) * ALPHA + 255 * (1 - ALPHA),
         'turned.tif': COLOURS.transpose(1, 0, 2), 'turned_deep.png': np.rot90(GREY),
         'turned_grey.tif': np.rot90(GREY, -1)}
LOSSY = {'turned.jpg': np.rot90(COLOURS, -1)} | dict.fromkeys(
    ('photo.jfif', 'photo.avif', 'photo.jp2', 'PHOTO.JPG', 'photo.txt'), COLOURS)


@pytest.mark.parametrize('name', [*EXACT, *LOSSY])
def test_the_pixels_of_odd_files_are_those_that_viewers_show(name, tmp_path):
    ODD[name](tmp_path / name)
    expected = (EXACT | LOSSY)[name]
    expected = np.dstack([expected] * 3) if expected.ndim == 2 else expected
    difference = np.abs(np.asarray(open_upright(tmp_path / name)) - expected.astype(float))
    assert difference.max() <= 1.5 if name in EXACT else difference.mean() < 9
    assert upright_size(tmp_path / name) == expected.shape[1::-1]
    if name in ('photo.jfif', 'photo.avif', 'photo.tga'):  # nothing odd but the name
        np.testing.assert_array_equal(open_upright(tmp_path / name), open_image(tmp_path / name))


@pytest.mark.parametrize('values, white', [
    (deep(65535), 65535), (deep(40000), 65535), (deep(16383), 16383), (deep(12000), 16383), (deep(4095), 4095), (deep(2100), 4095),
    (deep(1023), 1023), (deep(255), 255), (deep(99), 255), (deep(1e6, np.int32), 2**20 - 1), (deep(65535, np.int32), 65535),
    (deep(0.5, np.float32), 1), (deep(1, np.float32), 1), (deep(1.5, np.float32), 3), (deep(200.5, np.float32), 255)])
def test_white_is_the_next_depth_that_holds_the_values(values, white, tmp_path, capsys):
    """Truncated, as 16 bits always were. Said unless the values fill their range."""
    values.save(tmp_path / 'a.tif')
    expected = (np.asarray(values).astype(np.float64) * (255 / white)).astype(np.uint8)
    for _ in 'ab':
        np.testing.assert_array_equal(open_upright(tmp_path / 'a.tif'), np.dstack([expected] * 3))
    said = capsys.readouterr().err
    assert said.count('a.tif') == said.count(f'to {white} (white)') == (white not in (1, 65535))


def test_what_a_file_states_of_its_range_counts_before_its_values(tmp_path):
    def largest(name, **options):
        deep(1000).save(tmp_path / name, **options)
        return np.asarray(open_upright(tmp_path / name)).max()
    for tag in (281, 341):  # MaxSampleValue, SMaxSampleValue
        assert largest('a.tif', tiffinfo={tag: 4095}) == 1000 * 255 // 4095
        assert largest('a.tif', tiffinfo={tag: 500}) == 1000 * 255 // 1023  # the values go beyond
    assert largest('a.png') == 1000 * 255 // 1023
    with_chunk(tmp_path / 'a.png', b'sBIT\x0c')
    assert np.asarray(open_upright(tmp_path / 'a.png')).max() == 1000 * 255 // 4095
    assert largest('white_is_0.tif', tiffinfo={262: 0}) == 255 - 0 and np.asarray(open_upright(tmp_path / 'white_is_0.tif')).min() == 6
    Image.fromarray((RAMP * 3000 - 1000).astype(np.int32)).save(tmp_path / 'signed.tif')  # from -1000 to 2000
    np.testing.assert_allclose(np.asarray(open_upright(tmp_path / 'signed.tif'))[..., 0], RAMP * 255, atol=2)
    values = np.array([[np.nan, np.inf, 0.5, 1]], np.float32)
    Image.fromarray(values).save(tmp_path / 'nan.tif')
    assert np.asarray(open_upright(tmp_path / 'nan.tif'))[0, :, 0].tolist() == [0, 0, 127, 255]
    deep(65535).save(tmp_path / 'clear.png', transparency=0)  # black is transparent
    assert np.asarray(open_upright(tmp_path / 'clear.png'))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize('name', ['clear.png', 'turned_deep.png', 'turned.jpg', 'colours.png'])
def test_photos_larger_than_the_limit_are_turned_whatever_their_mode(name, tmp_path):
    ODD[name](tmp_path / name)
    if not name.startswith('turned'):
        with_chunk(tmp_path / name, b'eXIf' + turned(6).tobytes()[6:])
    assert open_upright(tmp_path / name, 20).size == (15, 20)


def test_named_data_sets_are_read_as_published(tiny_birds):
    """Plain convert('RGB') of the pixels in the file: CUB's boxes and masks belong to these."""
    data = find_dataset('ToyBirds', *roots_of(tiny_birds))
    images = data.open_split('test', eval_transform(24))
    path = images.path(0)
    before = path.read_bytes()
    try:
        ODD['turned.jpg'](path)
        assert (images.read(0)[0] == images.transform.resize(Image.open(path).convert('RGB'))).all()
        assert images.open_photo(path).size == (40, 30) and open_upright(path).size == (30, 40)
    finally:
        path.write_bytes(before)


def test_boxes_and_sizes_of_an_own_folder_are_those_of_the_upright_photo(folder):
    lists, photo = folder / 'metadata/test', 'a/turned.jpg'  # 40 x 30 in the file, 30 x 40 upright
    lists.mkdir(parents=True)
    (lists / 'localization.txt').write_text(f'{photo},0,0,29,39\n')
    (lists / 'image_sizes.txt').write_text(f'{photo},30,40\n')
    data, ids = find_dataset(str(folder)), np.array([photo.encode()])
    assert data.boxes('test', ids).sizes.tolist() == [[30, 40]]
    (lists / 'image_sizes.txt').write_text(f'{photo},40,30\n')
    with pytest.raises(UserError, match=r'turned.jpg is 30 x 40 pixels, and 40 x 30 by .*/image_sizes.txt, line 1 .1 such images.*EXIF'):
        data.boxes('test', ids)
    photos = images_below(folder / 'test')
    (lists / 'localization.txt').write_text(''.join(f'{name},0,0,9,9\n' for name in photos))
    (lists / 'image_sizes.txt').write_text(''.join(f'{name},40,30\n' for name in photos))
    problem, = check_dataset(data)['bad boxes']
    assert 'is 30 x 40' in problem


# --- found ------------------------------------------------------------------------------------------------


def test_files_that_are_no_images_are_counted_by_kind(folder, capsys):
    inside = folder / 'test/a'
    for name in ('notes.txt', 'more.txt', 'Thumbs.db', 'labels.json', '.hidden.jpg', 'README', 'empty', 'code.h', 'print.eps'):
        (inside / name).write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n' if name == 'print.eps' else '#define x_width 3\n' * 9)
    np.save(inside / 'map.npy', RAMP)
    (inside / 'phone.HEIC').write_bytes(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic')
    deep(65535).save(inside / 'camera.nef', 'TIFF')  # such a file begins with a small preview
    os.mkfifo(inside / 'pipe.x')
    ids = images_below(folder / 'test')
    assert {Path(name).name for name in ids} == {*ODD, *(path.name for path in (folder / 'train/a').iterdir()),
                                                 *(path.name for path in (folder / 'train/b').iterdir())}
    line = capsys.readouterr().err
    assert line.startswith(f'warning: left out of {folder / "test"}: 2 ') and line.count('\n') == 1
    for words in ('2 .txt', '2 without a suffix', '1 .db', '1 .json', '1 .npy', '1 .h', '1 .eps', '1 .x', '1 hidden',
                  '1 .heic (pip install pillow-heif opens these)', '1 .nef (develop them into TIFF or JPEG)'):
        assert words in line
    for name, words in (('phone.HEIC', 'pillow-heif'), ('camera.nef', 'develop')):
        with pytest.raises(UserError, match=f'does not open .*{words}'):
            open_upright(inside / name)


def test_known_suffixes_are_not_looked_into(folder, monkeypatch):
    (folder / 'train/a/broken.jpg').write_bytes(b'no image')
    monkeypatch.setattr(Image, 'open', None)
    assert 'a/broken.jpg' in images_below(folder / 'train')


def test_the_folder_of_the_results_is_not_looked_into(tmp_path, capsys):
    ODD['photo.jfif'](tmp_path / 'photo.jfif')
    (tmp_path / 'maps').mkdir()
    (tmp_path / 'maps/manifest.json').write_text('{}')
    assert list(find_images([str(tmp_path)], tmp_path / 'maps')) == ['photo'] and capsys.readouterr().err == ''


def test_the_check_and_the_training_say_what_is_left_out(script, folder, capsys, monkeypatch):
    (folder / 'train/a/notes.txt').write_text('no image')
    line = f'warning: left out of {folder / "train"}: 1 .txt'
    code, _, err = script('main', *OWN_FLAGS, f'--dataset={folder}')
    assert code == 0 and err.splitlines().count(line) == 1, err
    monkeypatch.setattr('sys.argv', ['prepare.py', 'check', str(folder), f'--data_root={folder.parent}'])
    with pytest.raises(SystemExit) as stop:
        prepare.main()
    assert stop.value.code == 0 and capsys.readouterr().err.splitlines().count(line) == 1


@pytest.mark.parametrize('case', ['03-grey-16-bit', '04-turned-by-exif', '06-suffixes'])
def test_painted_cases(case):
    images = find_dataset(str(shared('cases', case, 'data'))).open_split('test', eval_transform(24))
    assert len(images) == 8 and images.open_photo(images.path(0)).size == (64, 48)
    if case.startswith('03'):
        assert np.asarray(images.open_photo(images.path(0))).mean() == pytest.approx(140, abs=1)


def test_several_frames_and_empty_images_are_said_once(tmp_path, capsys):
    frames = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    for name in ('a.gif', 'b.png', 'c.tif', 'd.webp'):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.abs(np.asarray(open_upright(tmp_path / name)).astype(int) - COLOURS).mean() < 9
    Image.new('RGBA', (4, 4), (9, 9, 9, 0)).save(tmp_path / 'clear.png')
    assert (np.asarray(open_upright(tmp_path / 'clear.png')) == 255).all()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and 'a.gif holds several images' in lines[0] and 'clear.png is transparent everywhere' in lines[1]


def test_what_a_forked_process_has_said_is_not_repeated(capsys):
    child = os.fork()
    if not child:
        screen.warn_once('kind', 'in a loader process')
        os._exit(0)
    os.waitpid(child, 0)
    screen.warn_once('kind', 'again')
    screen.warn_once('another', 'once')
    assert 'again' not in (said := capsys.readouterr().err) and said.endswith('warning: once\n')


# --- what the system cannot read --------------------------------------------------------------------------


def fail_for(monkeypatch, owner, name, path, number=errno.EIO):
    """Let a function of the system fail for one path."""
    function = getattr(owner, name)

    def call(given, *args, **options):
        if not isinstance(given, int) and Path(given) == path:
            raise OSError(number, os.strerror(number), str(given))
        return function(given, *args, **options)
    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize('below', ['test', 'test/a', 'test/a/deeper'])
def test_a_folder_that_cannot_be_read_is_an_error(folder, number, below, monkeypatch):
    (folder / 'test/a/deeper').mkdir()
    fail_for(monkeypatch, os, 'scandir', folder / below, number)
    with pytest.raises(UserError, match=f'{below} cannot be read .{os.strerror(number)}'):
        find_dataset(str(folder)).list_images('test')
    with pytest.raises(UserError, match='cannot be read'):
        find_images([str(folder / 'test')], folder / 'maps')


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_photo_that_cannot_be_read_is_not_broken(folder, number, monkeypatch, script):
    photo = folder / 'test/a/photo.jfif'
    fail_for(monkeypatch, builtins, 'open', photo, number)
    words = f'test/a/photo.jfif cannot be read .{os.strerror(number)}'
    with pytest.raises(UserError, match=words):
        open_upright(photo)
    with pytest.raises(UserError, match=words):
        image_folders.opening_images([photo, folder / 'test/a/photo.tga'], 'yours')
    with pytest.raises(UserError, match=words):
        check_dataset(find_dataset(str(folder)))
    with pytest.raises(UserError, match=words):
        Contents().of([photo])
    refused(script('main', *OWN_FLAGS, f'--dataset={folder}', '--skip_broken', '--batch_size=2'), 'photo.jfif cannot be read')


def test_an_error_while_pixels_are_read_is_the_systems(tmp_path, monkeypatch):
    ODD['photo.jfif'](tmp_path / 'a.jpg')

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(Image.Image, 'convert', fail)
    with pytest.raises(UserError, match='a.jpg cannot be read .Input/output error'):
        open_image(tmp_path / 'a.jpg')


def test_a_list_that_cannot_be_read_is_named(folder, monkeypatch):
    lists = folder / 'metadata/test'
    lists.mkdir(parents=True)
    (lists / 'localization.txt').write_text('x,1,1,2,2\n')
    data = find_dataset(str(folder))
    fail_for(monkeypatch, builtins, 'open', lists / 'localization.txt', errno.ESTALE)
    with pytest.raises(UserError, match=f'localization.txt: {os.strerror(errno.ESTALE)}'):
        data.boxes('test', np.array([b'x']))


def test_a_result_that_cannot_be_read_is_no_missing_one(tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    assert whole_files.read_json(path) is None
    path.write_text('{}\n')
    assert whole_files.read_json(path) == {}
    fail_for(monkeypatch, io, 'open', path)
    with pytest.raises(OSError, match='Input/output error.*a.json'):
        whole_files.read_json(path)


def test_photos_beyond_the_limit_are_halved_for_every_script(tmp_path, monkeypatch):
    Image.fromarray(COLOURS).save(tmp_path / 'a.png')
    for limit, size in ((40, (40, 30)), (39, (19, 14)), (30, (15, 11))):
        monkeypatch.setattr(image_files, 'LARGEST', limit)
        assert open_upright(tmp_path / 'a.png').size == size
