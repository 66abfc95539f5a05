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
from conftest import files_below as tree
from conftest import paint_folder, roots_of, shared
from PIL import Image

from dataset import archives, check, download, official_lists, prepare, registry
from dataset.lists import read_boxes, read_labels, write_split
from dataset.official_lists import write_cub_lists
from wsol.errors import UserError


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
    monkeypatch.setitem(registry.DATASETS, 'ILSVRC', replace(registry.DATASETS['ILSVRC'], num_classes=3))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A local web site in the place of all others: site.put(path, bytes); prepare's sources point there."""
    root = tmp_path / 'site'
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()

    class Site:
        url = f'http://127.0.0.1:{server.server_address[1]}'

        def put(self, path, content):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)

        def source(self, file, content, **changes):
            """Serve an archive under its own name, with the size and hash it really has."""
            (name, archive), = ((name, archive) for name, recipe in prepare.RECIPES.items()
                                for archive in recipe.archives if archive.file == file)
            url = None if archive.url is None else f'{self.url}/{file}'
            known = {'size': len(content), 'md5': hashlib.md5(content).hexdigest()} if archive.md5 else {}
            served = replace(archive, url=url, **(known | changes))
            recipe = prepare.RECIPES[name]
            monkeypatch.setitem(prepare.RECIPES, name, replace(recipe, archives=tuple(
                served if other is archive else other for other in recipe.archives)))
            self.put(file, content)

        def lists(self, name, split, files, commit=prepare.LISTS_COMMIT):
            for file, lines in files.items():
                self.put(f'{commit}/metadata/{name}/{split}/{file}', '\n'.join(lines).encode() + b'\n')

    monkeypatch.setattr(prepare, 'REPOSITORY', Site.url)
    yield Site()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def workspace(tmp_path):
    return prepare.Workspace(tmp_path / 'data', tmp_path / 'meta')


def named(workspace, archives):
    """The same folders, and archives that the user has named."""
    return prepare.Workspace(workspace.data_root, workspace.metadata_root, archives)


def follow(name, workspace):
    prepare.follow(prepare.RECIPES[name], workspace)


# --- CUB ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def cub_archives(site, tiny_birds):
    """CUB_200_2011.tgz and segmentations.tgz in their real structure, with painted birds in them."""
    root = roots_of(tiny_birds)[0] / 'ToyBirds'
    files = tree(root)
    images = {f'CUB_200_2011/{name}': content for name, content in files.items()
              if not name.startswith(('segmentations', 'part_masks', 'attributes/attributes.txt'))}
    images['attributes.txt'] = files['attributes/attributes.txt']  # one level up, as in the official archive
    masks = {name: content for name, content in files.items() if name.startswith('segmentations')}
    masks['segmentations/001.Toy_A1/stray_rgb.jpg'] = jpeg()
    site.source('CUB_200_2011.tgz', tar_of(images))
    site.source('segmentations.tgz', tar_of(masks))
    return root


def test_cub_is_downloaded_unpacked_listed_and_usable(site, workspace, cub_archives, capsys):
    from wsol.annotations.cub import CueAnnotations
    follow('cub', workspace)
    root = workspace.data_root / 'CUB'
    assert not list(root.rglob('*_rgb.jpg')) and len(CueAnnotations(root).pairs) == 32
    ids, labels = read_labels(workspace.metadata_root / 'CUB' / 'test', 200)
    boxes = read_boxes(workspace.metadata_root / 'CUB' / 'test', ids)
    assert len(ids) == 36 and labels.max() == 17 and len(boxes.corners) == 36
    out = capsys.readouterr().out
    assert '108 of 108 listed images are there' in out and 'val: not prepared' in out
    assert 'next: python dataset/prepare.py cubv2; python main.py --dataset=CUB' in out
    before = tree(workspace.data_root), tree(workspace.metadata_root)
    follow('cub', workspace)  # again: nothing to do
    assert (tree(workspace.data_root), tree(workspace.metadata_root)) == before
    photos = sorted((root / 'images').rglob('*.jpg'))
    photos[0].rename(photos[0].with_name('other.jpg'))
    capsys.readouterr()
    follow('cub', workspace)
    out, err = capsys.readouterr()
    assert 'check CUB, which lists them all' in out and 'main.py' not in out
    assert '1 images are missing, the first 001.Toy_A1/' in err and '1 images are in no list, the first 001.Toy_A1/other.jpg' in out


def test_an_archive_that_the_user_has_is_taken(site, workspace, cub_archives, tmp_path):
    for name in ('CUB_200_2011.tgz', 'segmentations.tgz'):
        shutil.move(tmp_path / 'site' / name, tmp_path / name)
    follow('cub', named(workspace, [tmp_path / 'CUB_200_2011.tgz', tmp_path / 'segmentations.tgz']))
    assert (workspace.data_root / 'CUB' / 'images.txt').is_file() and not (workspace.data_root / 'CUB_200_2011.tgz').exists()


@pytest.mark.parametrize('damage', ['cut off', 'other bytes'])
def test_a_damaged_archive_leaves_nothing_behind(site, workspace, cub_archives, tmp_path, damage):
    content = (tmp_path / 'site' / 'segmentations.tgz').read_bytes()
    damaged = content[:len(content) // 2] if damage == 'cut off' else b'x' * len(content)
    site.source('segmentations.tgz', damaged)  # the hash is that of the damaged file: only unpacking can tell
    with pytest.raises(UserError, match='no whole archive'):
        follow('cub', workspace)
    assert not (workspace.data_root / 'CUB').exists() and not list(workspace.data_root.glob('.*'))
    site.source('segmentations.tgz', content)
    (workspace.data_root / 'segmentations.tgz').unlink()
    follow('cub', workspace)
    assert (workspace.data_root / 'CUB' / 'segmentations').is_dir()


def test_a_wrong_size_or_hash_is_refused(site, workspace, cub_archives):
    site.source('CUB_200_2011.tgz', b'short', size=7)
    with pytest.raises(UserError, match='offers 5 bytes, expected 7'):
        follow('cub', workspace)


def test_cubs_lists_equal_the_wsol_evaluations(tmp_path):
    """All 11,788 images: ids, labels, splits and boxes, to the pixel."""
    metadata = shared('metadata', 'CUB')
    sizes = {}
    for split in ('train', 'test'):
        for line in (metadata / split / 'image_sizes.txt').read_text().splitlines():
            name, width, height = line.rsplit(',', 2)
            sizes[name] = int(width), int(height)
    data = replace(registry.find_dataset('CUB', tmp_path, tmp_path), cub_root=shared('cub'))
    write_cub_lists(data, lambda paths: [sizes['/'.join(path.parts[-2:])] for path in paths])
    for split in ('train', 'test'):
        for file in ('image_ids.txt', 'class_labels.txt', 'image_sizes.txt', 'localization.txt'):
            ours, theirs = (root / split / file for root in (tmp_path / 'CUB', metadata))
            assert ours.read_text().split() == theirs.read_text().split(), (split, file)


FIVE = {'images.txt': ['1 a/1.jpg', '2 a/2.jpg', '3 b/3.jpg', '4 b/4.jpg', '5 b/5.jpg'],
        'image_class_labels.txt': ['1 1', '2 1', '3 2', '4 2', '5 2'],
        'train_test_split.txt': ['1 1', '2 0', '3 1', '4 0', '5 0'],
        'bounding_boxes.txt': [f'{n} {n}.0 1.0 5.0 5.0' for n in range(1, 6)]}


def lists_of_five(tmp_path, **changed):
    """What write_cub_lists makes of CUB's annotations of five images, some files changed: {split: {id: (label, box)}}."""
    data = registry.find_dataset('CUB', tmp_path / 'data', tmp_path / 'meta')
    data.cub_root.mkdir(parents=True)
    for file, lines in (FIVE | {f'{name}.txt': lines for name, lines in changed.items()}).items():
        (data.cub_root / file).write_text('\n'.join(lines) + '\n')
    write_cub_lists(data, lambda paths: [(100, 100)] * len(paths))
    found = {}
    for split in ('train', 'test'):
        ids, labels = read_labels(data.list_folders[split], 200)
        boxes = read_boxes(data.list_folders[split], ids)
        found[split] = {image_id.decode(): (label, boxes.of(index).tolist()) for index, (image_id, label)
                        in enumerate(zip(ids, labels.tolist(), strict=True))}
    return found


@pytest.mark.parametrize('file', FIVE)
def test_cubs_files_are_joined_by_their_ids(tmp_path, file):
    """In whatever order the lines of a file stand."""
    expected = {'train': {'a/1.jpg': (0, [[1, 1, 6, 6]]), 'b/3.jpg': (1, [[3, 1, 8, 6]])},
                'test': {'a/2.jpg': (0, [[2, 1, 7, 6]]), 'b/4.jpg': (1, [[4, 1, 9, 6]]), 'b/5.jpg': (1, [[5, 1, 10, 6]])}}
    order = [3, 0, 4, 1, 2]
    assert lists_of_five(tmp_path, **{file.removesuffix('.txt'): [FIVE[file][index] for index in order]}) == expected


def ids_that_do_not_fit(file):
    lines = FIVE[file]
    return [(file, lines[:1] + lines[2:], ['no line with the id 2']),
            (file, [*lines[:2], lines[1], *lines[2:]], ['line 3', 'id 2 is listed twice']),
            (file, [*lines, '77' + lines[1][1:]], ['line 6', 'id 77']), (file, [*lines[:4], '5'], ['line 5'])]


def a_value(file, value):
    return file, [*FIVE[file][:4], f'5 {value}'], [f'{file}: expected ', f' for the id 5, found "{value}"']


@pytest.mark.parametrize('file, lines, words', [
    ('images.txt', [*FIVE['images.txt'], '1 a/1.jpg'], ['line 6: the id 1 is listed twice']),
    *(case for file in FIVE if file != 'images.txt' for case in ids_that_do_not_fit(file)),
    *(a_value('image_class_labels.txt', value) for value in ('x y', '201', '0')),
    *(a_value('train_test_split.txt', value) for value in ('x y', '2')),
    *(a_value('bounding_boxes.txt', value) for value in (
        'x y', '1.0 1.0 5.0', 'nan 1.0 5.0 5.0', '1.0 1.0 inf 5.0', '-1.0 1.0 5.0 5.0'))])
def test_cubs_files_that_do_not_fit_are_named(tmp_path, file, lines, words):
    with pytest.raises(UserError) as error:
        lists_of_five(tmp_path, **{file.removesuffix('.txt'): lines})
    assert all(word in str(error.value) for word in [str(tmp_path / 'data' / 'CUB' / file), *words]), error.value
    assert not (tmp_path / 'meta').exists()


def test_cubv2_lands_beside_cub(site, workspace):
    names = ['001.Black_footed_Albatross/30107316117.jpg', '002.Laysan_Albatross/1.jpg']
    site.source('CUBV2.tar', tar_of({f'CUBV2/{name}': jpeg() for name in names} | {'CUBV2/README': b'x'}, 'w'))
    site.lists('CUB', 'val', {'image_ids.txt': names, 'class_labels.txt': [f'{name},{i}' for i, name in enumerate(names)],
                              'image_sizes.txt': [f'{name},12,8' for name in names],
                              'localization.txt': [f'{name},0,0,5,5' for name in names]})
    follow('cubv2', workspace)
    assert sorted(tree(workspace.data_root / 'CUBV2')) == names


# --- ImageNet ------------------------------------------------------------------------------------------------------

SYNSETS = ['n01440764', 'n01443537', 'n01484850']


def test_imagenet_comes_from_the_users_archives(site, workspace, tmp_path, capsys):
    """Each archive alone is prepared as far as it goes; of the other the error tells where it comes from."""
    train = {f'{synset}.tar': tar_of({f'{synset}_{n}.JPEG': jpeg() for n in (10, 2)}, 'w') for synset in SYNSETS}
    names = [f'val/ILSVRC2012_val_0000000{n}.JPEG' for n in (1, 2)]
    site.source('ILSVRC2012_img_train.tar', tar_of(train, 'w'))
    site.source('ILSVRC2012_img_val.tar', tar_of({Path(name).name: jpeg() for name in names}, 'w'))
    site.lists('ILSVRC', 'test', {'image_ids.txt': names, 'class_labels.txt': [f'{name},1' for name in names],
                                  'image_sizes.txt': [f'{name},12,8' for name in names],
                                  'localization.txt': [f'{name},0,0,5,5' for name in names]})
    with pytest.raises(UserError, match='own account.*image-net.org'):
        follow('imagenet', workspace)
    for split, other in (('val', 'train'), ('train', 'val')):
        alone = prepare.Workspace(tmp_path / f'only_{split}', tmp_path / f'meta_{split}', [tmp_path / f'site/ILSVRC2012_img_{split}.tar'])
        with pytest.raises(UserError, match=f'^ILSVRC2012_img_{other}.tar needs your own account'):
            follow('imagenet', alone)
        assert [path.name for path in (alone.data_root / 'ILSVRC').iterdir()] == [split]
    assert '2 of 2 listed images are there' in capsys.readouterr().out
    follow('imagenet', named(workspace, [tmp_path / f'site/ILSVRC2012_img_{split}.tar' for split in ('train', 'val')]))
    ids, labels = read_labels(workspace.metadata_root / 'ILSVRC' / 'train', 3)
    assert ids[0] == b'train/n01440764/n01440764_10.JPEG' and labels.tolist() == [0, 0, 1, 1, 2, 2]
    ids, labels = read_labels(workspace.metadata_root / 'ILSVRC' / 'test', 3)
    assert all((workspace.data_root / 'ILSVRC' / image_id.decode()).is_file() for image_id in ids)


@pytest.fixture
def imagenet_data(tmp_path):
    """The DataSet of three empty class folders, made in another order than that of their names."""
    for synset in reversed(SYNSETS):
        (tmp_path / 'ILSVRC' / 'train' / synset).mkdir(parents=True)
        (tmp_path / 'ILSVRC' / 'train' / synset / 'x.JPEG').write_bytes(b'')
    return registry.find_dataset('ILSVRC', tmp_path, tmp_path / 'meta')


def test_some_synsets_are_not_imagenet(imagenet_data):
    with pytest.raises(UserError, match='3 class folders, not 4'):
        official_lists.write_train_lists(replace(imagenet_data, num_classes=4))


def test_training_lists_follow_the_sorted_synsets(imagenet_data):
    official_lists.write_train_lists(imagenet_data)
    ids, labels = read_labels(imagenet_data.list_folders['train'], 3)
    assert [image_id.decode() for image_id in ids] == [f'train/{synset}/x.JPEG' for synset in SYNSETS]
    assert labels.tolist() == [0, 1, 2]


OLD = {'val2/0/0.jpeg': ((12, 8), (0, 0, 5, 5)), 'val2/0/1.jpeg': ((13, 8), (0, 0, 5, 5)), 'val2/1/0.jpeg': ((12, 8), (1, 1, 2, 2)),
       'val2/1/1.jpeg': ((12, 8), (1, 1, 2, 2)), 'val2/2/0.jpeg': ((12, 8), (1, 1, 2, 2)), 'val2/2/1.jpeg': ((12, 8), (3, 3, 4, 4))}
NEW = {name: f'{name.rsplit("/", 1)[0]}/{hashlib.sha1(name.encode()).hexdigest()}.jpeg' for name in OLD}


@pytest.fixture
def imagenetv2(site):
    """The archive under its files' new names, and the lists that speak of the old ones."""
    site.source('imagenetv2-threshold0.7.tar.gz', tar_of({NEW[name].replace('val2', 'imagenetv2-threshold0.7-format-val'): jpeg(size, index)
                                      for index, (name, (size, _)) in enumerate(OLD.items())}))
    site.lists('ILSVRC', 'val', {
        'image_ids.txt': OLD, 'class_labels.txt': [f'{name},{name.split("/")[1]}' for name in OLD],
        'image_sizes.txt': [f'{name},{size[0]},{size[1]}' for name, (size, _) in OLD.items()],
        'localization.txt': [','.join(map(str, (name, *box))) for name, (_, box) in OLD.items()]})


def test_imagenetv2_gets_its_old_names_back_by_the_published_mapping(site, workspace, imagenetv2):
    site.lists('ILSVRC', 'val', {'mapping.txt': [f'{old[5:]}, {NEW[old][5:]}' for old in OLD]}, prepare.MAPPING_COMMIT)
    follow('imagenetv2', workspace)
    found = tree(workspace.data_root / 'ImageNetV2')
    assert sorted(found) == sorted(OLD)
    assert all(found[name] == jpeg(OLD[name][0], index) for index, name in enumerate(OLD))


def test_without_the_mapping_nothing_is_unpacked_and_the_error_says_what_to_do(site, workspace, imagenetv2):
    mapping = workspace.metadata_root / 'ILSVRC' / 'val' / 'mapping.txt'
    with pytest.raises(UserError, match=f'by hand from {site.url}/.*/mapping.txt and put it at {mapping}'):
        follow('imagenetv2', workspace)
    assert not workspace.data_root.exists()
    mapping.write_text(''.join(f'{old[5:]}, {NEW[old][5:]}\n' for old in OLD))  # as the error says
    follow('imagenetv2', workspace)
    assert sorted(tree(workspace.data_root / 'ImageNetV2')) == sorted(OLD)


def test_a_line_of_the_mapping_that_names_no_two_files_is_named(site, workspace, imagenetv2):
    site.lists('ILSVRC', 'val', {'mapping.txt': ['0/0.jpeg, 0/a.jpeg', '0/1.jpeg']}, prepare.MAPPING_COMMIT)
    with pytest.raises(UserError, match='mapping.txt, line 2: expected "old name, new name", found "0/1.jpeg"'):
        follow('imagenetv2', workspace)
    assert not (workspace.data_root / 'ImageNetV2').exists()


def test_another_archive_changes_neither_folder_nor_lists(site, workspace, imagenetv2):
    site.lists('ILSVRC', 'val', {'mapping.txt': [f'{old[5:]}, {NEW[old][5:]}' for old in OLD]}, prepare.MAPPING_COMMIT)
    site.source('imagenetv2-threshold0.7.tar.gz', tar_of({f'x/{n}/a.jpeg': jpeg((50, 50)) for n in range(3)}))
    with pytest.raises(UserError, match='6 of the 6 images'):
        follow('imagenetv2', workspace)
    assert not (workspace.data_root / 'ImageNetV2').exists()
    assert not (workspace.data_root / 'archives.lock.json').exists()  # the wrong archive is not recorded as the right one
    assert len(read_labels(workspace.metadata_root / 'ILSVRC' / 'val', 1000)[0]) == 6


def test_old_names_are_left_as_they_are(tmp_path):
    data = registry.find_dataset('ILSVRC', tmp_path, tmp_path / 'meta')
    write_split(data.list_folders['val'], [('val2/0/0.jpeg', 0)])
    (data.list_folders['val'] / 'mapping.txt').write_text('0/0.jpeg, 0/a.jpeg\n')
    (tmp_path / 'val2/0').mkdir(parents=True)
    (tmp_path / 'val2/0/0.jpeg').write_bytes(jpeg())
    official_lists.rename(data, tmp_path)
    assert list(tree(tmp_path / 'val2')) == ['0/0.jpeg']


# --- OpenImages and all ----------------------------------------------------------------------------------------------

def test_openimages_images_and_masks_lie_together(site, workspace, capsys):
    ids = {split: f'{split}/01226z/{split}a.jpg' for split in ('train', 'val', 'test')}
    site.source('OpenImages_images.zip', zip_of({f'OpenImages/{name}': jpeg() for name in ids.values()}))
    site.source('OpenImages_annotations.zip', zip_of({'val/01226z/vala_m.png': b'x', 'val/01226z/vala_ignore.png': b'x',
                                            '__MACOSX/._x': b'x'}))
    for split, name in ids.items():
        files = {'image_ids.txt': [name], 'class_labels.txt': [f'{name},3']}
        if split != 'train':
            files['localization.txt'] = [f'{name},{name[:-4]}_m.png,{name[:-4]}_ignore.png']
        site.lists('OpenImages', split, files)
    follow('openimages', workspace)
    assert sorted(tree(workspace.data_root / 'OpenImages')) == sorted([*ids.values(), 'val/01226z/vala_ignore.png', 'val/01226z/vala_m.png'])
    assert '3 of 3 listed images are there' in capsys.readouterr().out


def test_all_prepares_what_it_can_and_names_the_rest(workspace, monkeypatch, site):
    monkeypatch.setattr(prepare, 'open_dataset', registry.find_dataset)  # which does not paint ToyBirds
    monkeypatch.setattr(prepare, 'RECIPES', {name: prepare.RECIPES[name] for name in ('toybirds', 'imagenet')})
    with pytest.raises(UserError, match=r'not prepared: imagenet \(ILSVRC2012_img_val.tar needs your own account'):
        prepare.follow_all(workspace)


# --- archives of which nobody publishes the sums ------------------------------------------------------------------------

def test_an_archive_is_recorded_when_it_is_unpacked_and_checked_at_each_use(site, workspace):
    names = ['001.A/1.jpg', '002.B/2.jpg']
    site.lists('CUB', 'val', {'image_ids.txt': names, 'class_labels.txt': [f'{name},{i}' for i, name in enumerate(names)],
                              'image_sizes.txt': [], 'localization.txt': []})
    archive, lock = workspace.data_root / 'CUBV2.tar', workspace.data_root / 'archives.lock.json'
    content = tar_of({name: jpeg() for name in names}, 'w')
    site.source('CUBV2.tar', content[:2000])
    with pytest.raises(UserError, match='no whole archive'):
        follow('cubv2', workspace)
    assert not lock.exists()  # a damaged archive is not recorded as the right one
    archive.write_bytes(content)
    follow('cubv2', workspace)
    assert json.loads(lock.read_text()) == {'CUBV2.tar': {'size': len(content), 'sha256': hashlib.sha256(content).hexdigest()}}
    shutil.rmtree(workspace.data_root / 'CUBV2')
    follow('cubv2', workspace)  # the same archive again
    shutil.rmtree(workspace.data_root / 'CUBV2')
    another = tar_of({name: jpeg(seed=1) for name in names}, 'w')
    archive.write_bytes(another)
    with pytest.raises(UserError, match=f'(SHA256|bytes).*as recorded in {lock}.*remove "CUBV2.tar" from the record'):
        follow('cubv2', workspace)
    assert not (workspace.data_root / 'CUBV2').exists()
    lock.write_text('{}')  # as the error says
    follow('cubv2', workspace)
    assert json.loads(lock.read_text())['CUBV2.tar']['sha256'] == hashlib.sha256(another).hexdigest()


def test_published_sums_are_not_recorded(site, workspace, cub_archives):
    follow('cub', workspace)
    assert not (workspace.data_root / 'archives.lock.json').exists()


@pytest.mark.parametrize('content', ['{', '[]', '{"CUBV2.tar": 3}', '{"CUBV2.tar": {"size": 3}}'])
def test_a_lock_that_does_not_parse_is_one_line(tmp_path, content):
    (tmp_path / 'lock.json').write_text(content)
    with pytest.raises(UserError, match='lock.json does not parse .*; remove it') as error:
        download.Lock(tmp_path / 'lock.json').expected('CUBV2.tar')
    assert '\n' not in str(error.value)


# --- archives that should not be ----------------------------------------------------------------------------------------

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
    with pytest.raises(UserError, match='no whole archive|none of the files'), archives.staged(tmp_path / 'out') as partial:
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
    data, meta = roots_of(tiny_birds)
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


def test_check_of_the_users_own_folder(tmp_path):
    pets = paint_folder(tmp_path / 'pets', ('cat', 'dog'), (2, 0, 2))
    (pets / 'test' / '.ipynb_checkpoints').mkdir()
    (pets / 'test' / '.ipynb_checkpoints' / '0.jpg').write_bytes(b'x')
    assert not any(check.check_dataset(registry.find_dataset(f'{pets}/')).values())
    (pets / 'test' / 'cow').mkdir()
    shutil.copy(pets / 'test/cat/0.jpg', pets / 'test/cow/0.jpg')
    (pets / 'test' / 'dog' / '0.jpg').write_bytes(b'x')
    found = check.check_dataset(registry.find_dataset(f'{pets}/'))
    assert found.pop('unlabelled images') == [str(pets / 'test/cow/0.jpg')]
    assert len(found['broken images']) == 1 and str(pets / 'test/dog/0.jpg') in found.pop('broken images')[0]
    assert not any(found.values())
    lists = pets / 'metadata' / 'test'
    lists.mkdir(parents=True)
    (lists / 'localization.txt').write_text('cat/0.jpg,m.png,i.png\ncat/1.png,m.png,gone.png\ndog/0.jpg,m.png,\n')
    (pets / 'm.png').write_bytes(b'x')
    shutil.copy(pets / 'test/cat/1.png', pets / 'i.png')
    found = check.check_dataset(registry.find_dataset(f'{pets}/'))
    assert found['missing masks'] == [str(pets / 'gone.png')] and str(pets / 'm.png') in found['broken masks'][0]
    assert found['images without a place'] == [
        *(f'{lists / "localization.txt"} names no mask of {name}' for name in ('cow/0.jpg', 'dog/1.png')),
        f'{lists / "localization.txt"} names no ignore mask of dog/0.jpg']


def test_files_and_lists_are_compared(tmp_path):
    """Across the splits of one folder; a linked folder is there; masks beside the photos are no surplus."""
    folder, elsewhere = tmp_path / 'OpenImages', tmp_path / 'elsewhere'
    for name in ('train/1.jpg', 'test/2.jpg', 'test/2_mask.png', 'test/3.jpg', 'test/._2.jpg'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'')
    elsewhere.mkdir()
    (elsewhere / '4.jpg').write_bytes(b'')
    (folder / 'val').symlink_to(elsewhere)
    listed = {'train': ['train/1.jpg'], 'val': ['val/4.jpg', 'val/5.jpg'], 'test': ['test/2.jpg']}
    data = registry.find_dataset('OpenImages', tmp_path, tmp_path / 'meta')
    assert check.compare(data, listed) == {folder: (sorted(sum(listed.values(), [])), ['val/5.jpg'], ['test/3.jpg'])}


def test_check_of_masks_names_every_line(tmp_path):
    ids = ['a.jpg', 'b.jpg', 'c.jpg', 'd.jpg']
    (tmp_path / 'localization.txt').write_text('a.jpg,a1.png,ai.png\na.jpg,a2.png,\nb.jpg,b.png,\nd.jpg,oops\n')
    problems = []
    masks = check.check_masks(tmp_path / 'localization.txt', ids, tmp_path, problems)
    assert sorted(path.name for path in masks) == ['a1.png', 'a2.png', 'ai.png', 'b.png']
    text = ' '.join(problems)
    assert all(words in text for words in ('line 4: expected', 'no mask of c.jpg', 'no mask of d.jpg', 'no ignore mask of b.jpg'))

