"""dataset/prepare.py: archives of the real structure from a local server, evil archives, the lists it writes, checks."""
import functools
import gzip
import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from PIL import Image

from dataset import archives, check, download, imagenet, prepare
from dataset.imagenet import match_renamed, rename, test_lists, train_lists
from dataset.metadata import read_boxes, read_labels
from util import UserError

test_lists.__test__ = False  # a function of the project, not a test


def jpeg(size=(12, 8), seed=0):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, 'JPEG')
    return buffer.getvalue()


def tar_of(files, mode='w:gz'):
    """{name: bytes} -> a tar archive's bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def three_synsets(monkeypatch):
    """ImageNet's training set has 1000 classes; that of these tests three."""
    monkeypatch.setattr(imagenet, 'NUM_CLASSES', 3)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A local web site in the place of all others: site.put(path, bytes); prepare's sources point there."""
    root = tmp_path / 'site'
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    class Site:
        url = f'http://127.0.0.1:{server.server_address[1]}'

        def put(self, path, content):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)

        def source(self, name, content, **changes):
            """Serve an archive under its own name, with the size and hash it really has."""
            source = getattr(prepare, name)
            url = None if source.url is None else f'{self.url}/{source.file}'
            known = {'size': len(content), 'md5': hashlib.md5(content).hexdigest()} if source.md5 else {}
            monkeypatch.setattr(prepare, name, replace(source, url=url, **(known | changes)))
            self.put(source.file, content)

        def lists(self, name, split, files, commit=prepare.LISTS_COMMIT):
            for file, lines in files.items():
                self.put(f'{commit}/metadata/{name}/{split}/{file}', '\n'.join(lines).encode() + b'\n')

    monkeypatch.setattr(prepare, 'REPOSITORY', Site.url)
    yield Site()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def place(tmp_path):
    return prepare.Place(tmp_path / 'data', tmp_path / 'meta')


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


# --- CUB ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def cub_archives(site, tiny_birds):
    """CUB_200_2011.tgz and segmentations.tgz in their real structure, with painted birds in them."""
    root = Path(next(flag.split('=')[1] for flag in tiny_birds if 'data_root' in flag)) / 'ToyBirds'
    files = tree(root)
    images = {f'CUB_200_2011/{name}': content for name, content in files.items()
              if not name.startswith(('segmentations', 'part_masks', 'attributes/attributes.txt'))}
    images['attributes.txt'] = files['attributes/attributes.txt']  # one level up, as in the official archive
    masks = {name: content for name, content in files.items() if name.startswith('segmentations')}
    masks['segmentations/001.Toy_A1/stray_rgb.jpg'] = jpeg()
    site.source('CUB_IMAGES', tar_of(images))
    site.source('CUB_MASKS', tar_of(masks))
    return root


def test_cub_is_downloaded_unpacked_listed_and_usable(site, place, cub_archives, capsys):
    from wsol.cub import CueAnnotations
    prepare.prepare_cub(place)
    root = place.data / 'CUB'
    assert not list(root.rglob('*_rgb.jpg')) and len(CueAnnotations(root).pairs) == 32
    ids, labels = read_labels(place.metadata / 'CUB' / 'test', 200)
    boxes = read_boxes(place.metadata / 'CUB' / 'test', ids)
    assert len(ids) == 36 and labels.max() == 17 and len(boxes.corners) == 36
    out = capsys.readouterr().out
    assert '108 of 126 listed' not in out and '108 of 108 listed images are there' in out and 'val: not prepared' in out
    assert 'next: python dataset/prepare.py cubv2; python main.py --dataset=CUB' in out
    before = tree(place.data), tree(place.metadata)
    prepare.prepare_cub(place)  # again: nothing to do
    assert (tree(place.data), tree(place.metadata)) == before
    photos = sorted((root / 'images').rglob('*.jpg'))
    photos[0].rename(photos[0].with_name('other.jpg'))
    capsys.readouterr()
    prepare.prepare_cub(place)
    out, err = capsys.readouterr()
    assert 'check CUB, which lists them all' in out and 'main.py' not in out
    assert '1 images are missing, the first 001.Toy_A1/' in err and '1 images are in no list, the first 001.Toy_A1/other.jpg' in out


def test_an_archive_that_the_user_has_is_taken(site, place, cub_archives, tmp_path):
    for name in ('CUB_200_2011.tgz', 'segmentations.tgz'):
        shutil.move(tmp_path / 'site' / name, tmp_path / name)
    own = prepare.Place(place.data, place.metadata, [tmp_path / 'CUB_200_2011.tgz', tmp_path / 'segmentations.tgz'])
    prepare.prepare_cub(own)
    assert (place.data / 'CUB' / 'images.txt').is_file() and not (place.data / 'CUB_200_2011.tgz').exists()


@pytest.mark.parametrize('damage', ['cut off', 'other bytes'])
def test_a_damaged_archive_leaves_nothing_behind(site, place, cub_archives, tmp_path, damage):
    content = (tmp_path / 'site' / 'segmentations.tgz').read_bytes()
    damaged = content[:len(content) // 2] if damage == 'cut off' else b'x' * len(content)
    site.source('CUB_MASKS', damaged)  # the hash is that of the damaged file: only unpacking can tell
    with pytest.raises(UserError, match='no whole archive'):
        prepare.prepare_cub(place)
    assert not (place.data / 'CUB').exists() and not list(place.data.glob('.*'))
    site.source('CUB_MASKS', content)
    (place.data / 'segmentations.tgz').unlink()
    prepare.prepare_cub(place)
    assert (place.data / 'CUB' / 'segmentations').is_dir()


def test_a_wrong_size_or_hash_is_refused(site, place, cub_archives):
    site.source('CUB_IMAGES', b'short', size=7)
    with pytest.raises(UserError, match='offers 5 bytes, expected 7'):
        prepare.prepare_cub(place)


def test_cubs_lists_equal_the_wsol_evaluations(tmp_path):
    """All 11,788 images: ids, labels, splits and boxes, to the pixel."""
    metadata = shared('metadata', 'CUB')
    sizes = {}
    for split in ('train', 'test'):
        for line in (metadata / split / 'image_sizes.txt').read_text().splitlines():
            name, width, height = line.rsplit(',', 2)
            sizes[name] = int(width), int(height)
    prepare.cub_metadata(shared('cub'), tmp_path, sizes.__getitem__)
    for split in ('train', 'test'):
        for file in ('image_ids.txt', 'class_labels.txt', 'image_sizes.txt', 'localization.txt'):
            ours, theirs = (root / split / file for root in (tmp_path / 'CUB', metadata))
            assert ours.read_text().split() == theirs.read_text().split(), (split, file)


def test_cubv2_lands_beside_cub(site, place):
    names = ['001.Black_footed_Albatross/30107316117.jpg', '002.Laysan_Albatross/1.jpg']
    site.source('CUBV2', tar_of({f'CUBV2/{name}': jpeg() for name in names} | {'CUBV2/README': b'x'}, 'w'))
    site.lists('CUB', 'val', {'image_ids.txt': names, 'class_labels.txt': [f'{name},{i}' for i, name in enumerate(names)],
                              'image_sizes.txt': [f'{name},12,8' for name in names],
                              'localization.txt': [f'{name},0,0,5,5' for name in names]})
    prepare.prepare_cubv2(place)
    assert sorted(tree(place.data / 'CUBV2')) == names


# --- ImageNet ------------------------------------------------------------------------------------------------------

SYNSETS = ['n01440764', 'n01443537', 'n01484850']


def annotation(name, label, boxes):
    objects = ''.join(f'<object><name>{SYNSETS[label]}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>'
                      f'<ymax>{y1}</ymax></bndbox></object>' for x0, y0, x1, y1 in boxes)
    return (f'<annotation><filename>{name}</filename><size><width>12</width><height>8</height></size>{objects}'
            '</annotation>').encode()


def test_imagenet_comes_from_the_users_archives(site, place, tmp_path):
    train = {f'{synset}.tar': tar_of({f'{synset}_{n}.JPEG': jpeg() for n in (10, 2)}, 'w') for synset in SYNSETS}
    val = {f'ILSVRC2012_val_0000000{n}.JPEG': jpeg() for n in (1, 2)}
    boxes = {'val/ILSVRC2012_val_00000001.xml': annotation('1', 2, [(1, 2, 11, 7), (0, 0, 12, 8)]),
             'val/ILSVRC2012_val_00000002.xml': annotation('2', 0, [(3, 3, 4, 4)])}
    own = []
    for name, content in (('IMAGENET_TRAIN', tar_of(train, 'w')), ('IMAGENET_VAL', tar_of(val, 'w')),
                          ('IMAGENET_BOXES', tar_of(boxes))):
        site.source(name, content)
        own.append(tmp_path / 'site' / getattr(prepare, name).file)
    with pytest.raises(UserError, match='own account.*image-net.org'):
        prepare.prepare_imagenet(place)
    with pytest.raises(UserError, match='ILSVRC2012_img_val.tar needs'):  # what is there is prepared all the same
        prepare.prepare_imagenet(prepare.Place(place.data, place.metadata, own[:1]))
    assert (place.data / 'ILSVRC' / 'train').is_dir() and not (place.data / 'ILSVRC' / 'val').exists()
    prepare.prepare_imagenet(prepare.Place(place.data, place.metadata, own))
    ids, labels = read_labels(place.metadata / 'ILSVRC' / 'train', 3)
    assert ids[0] == b'train/n01440764/n01440764_10.JPEG' and labels.tolist() == [0, 0, 1, 1, 2, 2]
    ids, labels = read_labels(place.metadata / 'ILSVRC' / 'test', 3)
    found = read_boxes(place.metadata / 'ILSVRC' / 'test', ids)
    assert labels.tolist() == [2, 0] and found.of(0).tolist() == [[1, 2, 11, 7], [0, 0, 11, 7]]
    assert all((place.data / 'ILSVRC' / image_id.decode()).is_file() for image_id in ids)


def test_the_test_images_alone_are_enough_to_evaluate(site, place, tmp_path, capsys):
    names = [f'val/ILSVRC2012_val_0000000{n}.JPEG' for n in (1, 2)]
    site.source('IMAGENET_VAL', tar_of({Path(name).name: jpeg() for name in names}, 'w'))
    site.lists('ILSVRC', 'test', {'image_ids.txt': names, 'class_labels.txt': [f'{name},1' for name in names],
                                  'image_sizes.txt': [f'{name},12,8' for name in names],
                                  'localization.txt': [f'{name},0,0,5,5' for name in names]})
    own = prepare.Place(place.data, place.metadata, [tmp_path / 'site' / 'ILSVRC2012_img_val.tar'])
    with pytest.raises(UserError, match='^ILSVRC2012_img_train.tar needs your own account'):
        prepare.prepare_imagenet(own)
    assert '2 of 2 listed images are there' in capsys.readouterr().out


def test_some_synsets_are_not_imagenet(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, 'NUM_CLASSES', 4)
    for synset in SYNSETS:
        (tmp_path / 'train' / synset).mkdir(parents=True)
    with pytest.raises(UserError, match='3 class folders, not 4'):
        train_lists(tmp_path, tmp_path / 'meta')


def test_a_broken_annotation_is_named(tmp_path):
    (tmp_path / 'a.xml').write_text('<annotation>')
    with pytest.raises(UserError, match='a.xml does not parse'):
        test_lists(tmp_path, tmp_path, SYNSETS)


def test_training_lists_follow_the_sorted_synsets(tmp_path):
    for synset in reversed(SYNSETS):
        (tmp_path / 'train' / synset).mkdir(parents=True)
        (tmp_path / 'train' / synset / 'x.JPEG').write_bytes(b'')
    assert train_lists(tmp_path, tmp_path / 'meta') == SYNSETS


OLD = {'val2/0/0.jpeg': ((12, 8), (0, 0, 5, 5)), 'val2/0/1.jpeg': ((13, 8), (0, 0, 5, 5)), 'val2/1/0.jpeg': ((12, 8), (1, 1, 2, 2)),
       'val2/1/1.jpeg': ((12, 8), (1, 1, 2, 2)), 'val2/2/0.jpeg': ((12, 8), (1, 1, 2, 2)), 'val2/2/1.jpeg': ((12, 8), (3, 3, 4, 4))}
NEW = {name: f'{name.rsplit("/", 1)[0]}/{hashlib.sha1(name.encode()).hexdigest()}.jpeg' for name in OLD}


@pytest.fixture
def imagenetv2(site):
    """The archive under its files' new names, and the lists that speak of the old ones."""
    site.source('IMAGENETV2', tar_of({NEW[name].replace('val2', 'imagenetv2-threshold0.7-format-val'): jpeg(size, index)
                                      for index, (name, (size, _)) in enumerate(OLD.items())}))
    site.lists('ILSVRC', 'val', {
        'image_ids.txt': OLD, 'class_labels.txt': [f'{name},{name.split("/")[1]}' for name in OLD],
        'image_sizes.txt': [f'{name},{size[0]},{size[1]}' for name, (size, _) in OLD.items()],
        'localization.txt': [','.join(map(str, (name, *box))) for name, (_, box) in OLD.items()]})


def test_imagenetv2_gets_its_old_names_back_by_the_published_mapping(site, place, imagenetv2):
    site.lists('ILSVRC', 'val', {'mapping.txt': [f'{old[5:]}, {NEW[old][5:]}' for old in OLD]}, prepare.MAPPING_COMMIT)
    prepare.prepare_imagenetv2(place)
    found = tree(place.data / 'ImageNetV2')
    assert sorted(found) == sorted(OLD)
    assert all(found[name] == jpeg(OLD[name][0], index) for index, name in enumerate(OLD))


def test_without_the_mapping_size_and_boxes_tell_what_they_can(site, place, imagenetv2, capsys):
    prepare.prepare_imagenetv2(place)
    err = capsys.readouterr().err
    # class 0: sizes differ. class 1: one size, but the same boxes. class 2: one size, different boxes: nobody can tell
    assert '2 of the 6 images of ImageNetV2 could not be told apart' in err and 'val2/2/0.jpeg' in err
    ids, _ = read_labels(place.metadata / 'ILSVRC' / 'val', 1000)
    assert [image_id.decode() for image_id in ids] == [name for name in OLD if '/2/' not in name]
    assert tree(place.data / 'ImageNetV2')['val2/0/1.jpeg'] == jpeg((13, 8), 1)
    # the mapping turns up: nothing was lost
    site.lists('ILSVRC', 'val', {'mapping.txt': [f'{old[5:]}, {NEW[old][5:]}' for old in OLD]}, prepare.MAPPING_COMMIT)
    shutil.rmtree(place.data / 'ImageNetV2')
    prepare.prepare_imagenetv2(place)
    ids, _ = read_labels(place.metadata / 'ILSVRC' / 'val', 1000)
    assert sorted(image_id.decode() for image_id in ids) == sorted(tree(place.data / 'ImageNetV2')) == sorted(OLD)


@pytest.mark.parametrize('mapped', [True, False])
def test_another_archive_changes_neither_folder_nor_lists(site, place, imagenetv2, mapped):
    if mapped:
        site.lists('ILSVRC', 'val', {'mapping.txt': [f'{old[5:]}, {NEW[old][5:]}' for old in OLD]}, prepare.MAPPING_COMMIT)
    site.source('IMAGENETV2', tar_of({f'x/{n}/a.jpeg': jpeg((50, 50)) for n in range(3)}))
    with pytest.raises(UserError, match='6 of the 6 images'):
        prepare.prepare_imagenetv2(place)
    assert not (place.data / 'ImageNetV2').exists()
    assert len(read_labels(place.metadata / 'ILSVRC' / 'val', 1000)[0]) == 6


def test_a_server_out_of_order_is_not_a_missing_mapping(site, place, imagenetv2, monkeypatch):
    def fetch(url, *rest, **options):
        if 'mapping' in url:
            raise UserError('HTTP 503')
        return download.fetch(url, *rest, **options)
    monkeypatch.setattr(prepare, 'fetch', fetch)
    with pytest.raises(UserError, match='503'):
        prepare.prepare_imagenetv2(place)
    assert not (place.data / 'ImageNetV2').exists()


def test_matching_needs_as_many_files_as_names():
    assert match_renamed({'a': ((1, 1), [0])}, {'x': (1, 1), 'y': (1, 1)}) == {}
    assert match_renamed({'a': ((1, 1), [0]), 'b': ((2, 1), [0])}, {'x': (2, 1), 'y': (1, 1)}) == {'y': 'a', 'x': 'b'}


def test_old_names_are_left_as_they_are(tmp_path):
    from dataset.metadata import write_split
    write_split(tmp_path / 'lists', ['val2/0/0.jpeg'], [0])
    (tmp_path / 'val2/0').mkdir(parents=True)
    (tmp_path / 'val2/0/0.jpeg').write_bytes(jpeg())
    assert rename(tmp_path, tmp_path / 'lists') == (1, [])


# --- OpenImages and all ----------------------------------------------------------------------------------------------

def test_openimages_images_and_masks_lie_together(site, place, capsys):
    ids = {split: f'{split}/01226z/{split}a.jpg' for split in ('train', 'val', 'test')}
    site.source('OPENIMAGES', zip_of({f'OpenImages/{name}': jpeg() for name in ids.values()}))
    site.source('OPENIMAGES_MASKS', zip_of({'val/01226z/vala_m.png': b'x', 'val/01226z/vala_ignore.png': b'x',
                                            '__MACOSX/._x': b'x'}))
    for split, name in ids.items():
        files = {'image_ids.txt': [name], 'class_labels.txt': [f'{name},3']}
        if split != 'train':
            files['localization.txt'] = [f'{name},{name[:-4]}_m.png,{name[:-4]}_ignore.png']
        site.lists('OpenImages', split, files)
    prepare.prepare_openimages(place)
    assert sorted(tree(place.data / 'OpenImages')) == sorted([*ids.values(), 'val/01226z/vala_ignore.png', 'val/01226z/vala_m.png'])
    assert '3 of 3 listed images are there' in capsys.readouterr().out


def test_all_prepares_what_it_can_and_names_the_rest(place, monkeypatch, site):
    monkeypatch.setattr(prepare, 'RECIPES', {'toybirds': lambda _: None, 'imagenet': prepare.prepare_imagenet})
    with pytest.raises(UserError, match=r'not prepared: imagenet \(ILSVRC2012_img_val.tar needs your own account'):
        prepare.prepare_all(place)


# --- archives that should not be ----------------------------------------------------------------------------------------

def evil_tar(kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        info = tarfile.TarInfo({'absolute': '/tmp/calm_evil', 'upwards': 'a/../../evil', 'windows': 'C:\\evil'}.get(kind, 'link'))
        if kind in ('symbolic link', 'hard link', 'device'):
            info.type = {'symbolic link': tarfile.SYMTYPE, 'hard link': tarfile.LNKTYPE, 'device': tarfile.CHRTYPE}[kind]
            info.linkname = '/etc/passwd'
        tar.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize('kind', ['absolute', 'upwards', 'windows', 'symbolic link', 'hard link', 'device'])
def test_evil_tars_are_refused(tmp_path, kind):
    (tmp_path / 'evil.tar').write_bytes(evil_tar(kind))
    with pytest.raises(UserError, match='not the archive it should be'), archives.staged(tmp_path / 'out') as partial:
        archives.unpack(tmp_path / 'evil.tar', partial, lambda name: name)
    assert [path.name for path in tmp_path.iterdir()] == ['evil.tar'] and not Path('/tmp/calm_evil').exists()


@pytest.mark.parametrize('name', ['../evil', '/evil', 'link'])
def test_evil_zips_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / 'evil.zip', 'w') as zipped:
        info = zipfile.ZipInfo(name)
        if name == 'link':
            info.external_attr = 0o120777 << 16
        zipped.writestr(info, '/etc/passwd')
    with pytest.raises(UserError, match='not the archive it should be'):
        archives.unpack(tmp_path / 'evil.zip', tmp_path / 'out', lambda name: name)


def test_evil_tars_within_a_tar_are_refused(tmp_path):
    (tmp_path / 'evil.tar').write_bytes(tar_of({'n01440764.tar': evil_tar('upwards')}, 'w'))
    with pytest.raises(UserError, match='not the archive it should be'):
        archives.unpack_nested(tmp_path / 'evil.tar', tmp_path / 'out')


def test_a_tar_named_dots_within_a_tar_is_refused(tmp_path):
    """`...tar` without its suffix is the folder above."""
    (tmp_path / 'evil.tar').write_bytes(tar_of({'...tar': tar_of({'evil.txt': b'x'}, 'w')}, 'w'))
    with pytest.raises(UserError, match='not the archive it should be'), archives.staged(tmp_path / 'out') as partial:
        archives.unpack_nested(tmp_path / 'evil.tar', partial)
    assert [path.name for path in tmp_path.iterdir()] == ['evil.tar']


WHOLE = tar_of({f'{n}.jpg': bytes([n]) * 1000 for n in range(1, 7)}, 'w')  # a member: 512 bytes header, 1024 content
PACKED = gzip.compress(tar_of({f'{n}.jpg': np.random.default_rng(n).bytes(1000) for n in range(6)}, 'w'))
DAMAGED = {
    'cut at a member': WHOLE[:3 * 1536], 'cut in a header': WHOLE[:3 * 1536 + 100], 'cut in a file': WHOLE[:3 * 1536 + 700],
    'a header of other bytes': WHOLE[:4628] + b'\xff' * 100 + WHOLE[4728:],
    'a hole of zeros': WHOLE[:3 * 1536] + bytes(1536) + WHOLE[4 * 1536:], 'zeros': bytes(10240), 'empty': b'',
    'gz cut': PACKED[:len(PACKED) // 2], 'gz without its sum': PACKED[:-8], 'gz with a wrong sum': PACKED[:-8] + bytes(8)}


@pytest.mark.parametrize('damage, nested', [*((damage, False) for damage in DAMAGED),
                                            *((damage, True) for damage in DAMAGED if not damage.startswith('gz'))])
def test_a_damaged_tar_is_no_whole_archive(tmp_path, damage, nested):
    content = DAMAGED[damage]
    (tmp_path / 'x.tar').write_bytes(tar_of({'a.tar': content}, 'w') if nested else content)
    with pytest.raises(UserError, match='no whole archive|none of the files'), archives.staged(tmp_path / 'out') as partial:
        if nested:
            archives.unpack_nested(tmp_path / 'x.tar', partial)
        else:
            archives.unpack(tmp_path / 'x.tar', partial, lambda name: name)
    assert [path.name for path in tmp_path.iterdir()] == ['x.tar']


def test_the_undamaged_tars_unpack(tmp_path):
    for index, content in enumerate((WHOLE, PACKED)):
        (tmp_path / 'x.tar').write_bytes(content)
        assert archives.unpack(tmp_path / 'x.tar', tmp_path / f'out{index}', lambda name: name) == 6
    (tmp_path / 'x.tar').write_bytes(tar_of({'a.tar': WHOLE, 'b.tar': WHOLE}, 'w'))
    assert archives.unpack_nested(tmp_path / 'x.tar', tmp_path / 'nested') == 12


def test_a_zip_with_a_password_is_refused(tmp_path):
    content = bytearray(zip_of({'x': b'hello'}))
    for signature, offset in ((b'PK\x01\x02', 8), (b'PK\x03\x04', 6)):
        content[content.find(signature) + offset] |= 1  # the flag of an encrypted member
    (tmp_path / 'x.zip').write_bytes(content)
    with pytest.raises(UserError, match='encrypted'):
        archives.unpack(tmp_path / 'x.zip', tmp_path / 'out', lambda name: name)


def test_what_a_killed_process_left_is_removed(tmp_path):
    left, living = tmp_path / f'.out.{2**22 + 7}.partial', tmp_path / '.out.1.partial'  # no process has so high a number
    left.mkdir()
    living.mkdir()
    with archives.staged(tmp_path / 'out') as partial:
        (partial / 'x').write_bytes(b'x')
    assert not left.exists() and living.exists() and (tmp_path / 'out' / 'x').exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(UserError, match='could not be written'), archives.staged(tmp_path / 'file' / 'out'):
        pass


def test_a_page_in_an_archives_place_is_refused(tmp_path):
    (tmp_path / 'x.tgz').write_bytes(b'<html>sorry</html>')
    with pytest.raises(UserError, match='no whole archive'):
        archives.unpack(tmp_path / 'x.tgz', tmp_path / 'out', lambda name: name)


# --- the command, and check ---------------------------------------------------------------------------------------------

def call(script, *flags):
    import sys
    sys.modules.setdefault('dataset_prepare', prepare)
    return script('dataset_prepare', *flags)


@pytest.mark.parametrize('flags, words', [
    (['cubs'], ['invalid choice']), (['check'], ['check which data set']), (['cub', 'CUB'], ['unexpected "CUB"']),
    (['cub', '--archive=nowhere.tgz'], ['nowhere.tgz', 'no such file']), (['cub', f'--archive={__file__}'], ['known by its name', 'CUB_200_2011.tgz']), (['check', 'CUBS'], ['CUBS']),
    (['imagenet'], ['own account'])])
def test_mistakes_on_the_command_line(script, flags, words):
    code, _, err = call(script, *flags)
    assert code == 2 and all(word in err for word in words), err


def test_check_finds_what_is_wrong(script, tiny_birds, tmp_path):
    data, meta = (Path(flag.split('=')[1]) for flag in tiny_birds if '_root' in flag)
    shutil.copytree(data, tmp_path / 'data')
    shutil.copytree(meta, tmp_path / 'meta')
    roots = [f'--data_root={tmp_path / "data"}', f'--metadata_root={tmp_path / "meta"}']
    code, out, _ = call(script, 'check', 'ToyBirds', *roots)
    assert code == 0 and not any(json.loads(out).values())

    images = sorted((tmp_path / 'data/ToyBirds/images').rglob('*.jpg'))
    images[0].write_bytes(b'broken')
    images[1].unlink()
    images[2].with_name('surplus.jpg').write_bytes(images[3].read_bytes())
    folder = tmp_path / 'meta/ToyBirds/train'
    lines = (folder / 'class_labels.txt').read_text().splitlines()
    (folder / 'class_labels.txt').write_text('\n'.join([*lines[:-2], lines[-2].rsplit(',', 1)[0] + ',99']) + '\n')
    boxes = (folder / 'localization.txt').read_text().splitlines()
    name = [line.rsplit(',', 4)[0] for line in boxes]
    boxes[:4] = [f'{name[0]},0,0,500,500', f'{name[1]},-1,0,5,5', f'{name[2]},9,0,5,5', f'{name[3]},1,2,3']  # and name[4]: none
    (folder / 'localization.txt').write_text('\n'.join(boxes[:4] + boxes[5:]) + '\n')
    segmentations = sorted((tmp_path / 'data/ToyBirds/segmentations').rglob('*.png'))
    segmentations[0].write_bytes(b'x')
    segmentations[1].unlink()
    code, out, _ = call(script, 'check', 'ToyBirds', *roots)
    found = {what: entry and entry['count'] for what, entry in json.loads(out).items()}
    assert code == 1
    # the line without four integers is no place of name[3]
    assert found == {'broken images': 1, 'missing images': 1, 'unlabelled images': 2, 'surplus images': 1, 'bad boxes': 4,
                     'missing masks': 1, 'broken masks': 1, 'images without a place': 2}
    whole = json.loads((tmp_path / 'data/check_ToyBirds.json').read_text())
    assert whole['missing images'] == [str(images[1])] and f"['{name[4]}" not in whole['bad boxes']
    assert whole['images without a place'][1].startswith(f'{name[4]} has no line')


def test_check_of_masks_names_every_line(tmp_path):
    ids = ['a.jpg', 'b.jpg', 'c.jpg', 'd.jpg']
    (tmp_path / 'localization.txt').write_text('a.jpg,a1.png,ai.png\na.jpg,a2.png,\nb.jpg,b.png,\nd.jpg,oops\n')
    found = {kind: [] for kind in check.KINDS}
    masks = check._check_masks(tmp_path / 'localization.txt', ids, tmp_path, found)
    assert sorted(path.name for path in masks) == ['a1.png', 'a2.png', 'ai.png', 'b.png']
    text = ' '.join(found['images without a place'])
    assert all(words in text for words in ('line 4: expected', 'no mask of c.jpg', 'no mask of d.jpg', 'no ignore mask of b.jpg'))

