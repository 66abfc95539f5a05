"""dataset/prepare.py: archives of the real structure from a local server, and mistakes on the command line."""
import functools
import hashlib
import http.server
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import files_below as tree
from conftest import roots_of
from made_archives import jpeg, tar_of, zip_of

from dataset import download, prepare, registry
from dataset.lists import read_boxes, read_labels
from wsol.errors import UserError


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
    unpacked = tree(workspace.data_root / 'ImageNetV2')
    assert sorted(unpacked) == sorted(OLD)
    assert all(unpacked[name] == jpeg(OLD[name][0], index) for index, name in enumerate(OLD))


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
        prepare.follow_all(prepare.RECIPES, workspace)


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


@pytest.mark.parametrize('flags, words', [
    (['cubs'], ['invalid choice']), (['check'], ['check which data set']), (['cub', 'CUB'], ['unexpected "CUB"']),
    (['cub', '--archive=nowhere.tgz'], ['nowhere.tgz', 'no such file']), (['cub', f'--archive={__file__}'], ['known by its name', 'CUB_200_2011.tgz']), (['check', 'CUBS'], ['CUBS']),
    (['imagenet'], ['own account'])])
def test_mistakes_on_the_command_line(script, flags, words):
    code, _, err = script('dataset.prepare', *flags)
    assert code == 2 and all(word in err for word in words), err


