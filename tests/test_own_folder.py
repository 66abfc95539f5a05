"""--dataset=path/to/folder: training, remove-and-classify and pictures without metadata; broken images."""
import json
import shutil

import numpy as np
import pytest
from conftest import SMALL
from munch import Munch
from PIL import Image

import util
from dataset.check import check_dataset


def own_args(folder):
    return Munch(dataset=str(folder), data_root=str(folder.parent), metadata_root='metadata')


FLAGS = [*SMALL, '--epochs=1', '--crop_size=32', '--resize_size=36', '--workers=0', '--device=cpu', '--seed=0']


@pytest.fixture
def folder(tmp_path):
    """train/, val/, test/ of three classes, four images each."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for number, name in enumerate(('cat', 'dog', 'eel')):
            for index in range(4):
                path = tmp_path / 'pets' / split / name / f'{index}.{"png" if index % 2 else "jpg"}'
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 100, (40, 30, 3), dtype=np.uint8)
                pixels[..., number] += 120
                Image.fromarray(pixels).save(path)
    return tmp_path / 'pets'


def test_a_folder_trains_evaluates_and_gives_pictures(script, folder, tmp_path):
    base = [*FLAGS, f'--dataset={folder}', '--attribution_method=CALM_EM']
    code, out, err = script('main', *base)
    assert code == 0, err
    code, _, err = script('eval_pixel_perturb', '--score_map_process=jointll', '--workers=0')
    assert code == 0, err
    assert json.loads((tmp_path / 'save/result/pixel_perturb_CALM_EM_jointll_minmax.json').read_text())['images'] == 12
    shutil.rmtree(folder / 'train')  # the checkpoint keeps the class names
    code, _, err = script('inference', folder / 'test' / 'dog', '--score_map_process=jointll', '--target=eel', '--output=out')
    assert code == 0, err
    entry = json.loads((tmp_path / 'out/manifest.json').read_text())['images'][0]
    assert entry['class_name'] == 'eel'
    assert script('eval_pixel_perturb', '--score_map_process=jointll', '--workers=0')[0] == 0
    code, _, err = script('eval_cue_location', '--score_map_process=jointll')
    assert code == 2 and "CUB's layout" in err
    code, _, err = script('eval_wsol', '--score_map_process=jointll', '--workers=0')
    assert code == 2 and 'localization.txt' in err


def test_boxes_enable_wsol(script, folder, tmp_path):
    for split in ('val', 'test'):
        ids = sorted((str(path.relative_to(folder / split)) for path in (folder / split).rglob('*.*g')),
                     key=lambda name: not name.endswith('.png'))  # a photo that is a .png first: no mask
        lists = folder / 'metadata' / split
        lists.mkdir(parents=True)
        (lists / 'image_sizes.txt').write_text(''.join(f'{name},30,40\n' for name in ids))
        (lists / 'localization.txt').write_text(''.join(f'{name},0,0,29,39\n' for name in ids))
    (folder / 'metadata' / 'train').mkdir()
    (folder / 'metadata' / 'train' / 'localization.txt').write_text('')
    script('main', *FLAGS, f'--dataset={folder}')
    code, out, err = script('eval_wsol', '--workers=0')
    assert code == 0, err
    assert json.loads((tmp_path / 'save/result/wsol_CAM_vanilla_minmax.json').read_text())['images'] == {'val': 12, 'test': 12}
    assert not any(check_dataset(own_args(folder)).values())


def test_masks_enable_wsol(script, folder, tmp_path):
    for split in ('val', 'test'):
        ids = sorted(str(path.relative_to(folder / split)) for path in (folder / split).rglob('*.*g'))
        lists = folder / 'metadata' / split
        lists.mkdir(parents=True)
        Image.fromarray(np.pad(np.full((10, 10), 255, np.uint8), 10)).save(folder / f'{split}_mask.png')
        Image.fromarray(np.zeros((30, 30), np.uint8)).save(folder / f'{split}_ignore.png')
        (lists / 'localization.txt').write_text(''.join(f'{name},{split}_mask.png,{split}_ignore.png\n' for name in ids))
    script('main', *FLAGS, f'--dataset={folder}')
    code, out, err = script('eval_wsol', '--workers=0')
    assert code == 0, err
    assert not any(check_dataset(own_args(folder)).values())
    (folder / 'val_mask.png').write_bytes(b'x')
    (folder / 'test_ignore.png').unlink()
    found = check_dataset(own_args(folder))
    assert len(found['broken masks']) == 1 and 'val_mask.png' in found['broken masks'][0]
    assert found['missing masks'] == [str(folder / 'test_ignore.png')]
    assert 0 < json.loads((tmp_path / 'save/result/wsol_CAM_vanilla_minmax.json').read_text())['results']['PxAP']['test'] < 100


def test_a_class_that_training_did_not_have_is_named(script, folder, tmp_path):
    (folder / 'test' / 'cow').mkdir()
    shutil.copy(folder / 'test/cat/0.jpg', folder / 'test/cow/0.jpg')
    code, _, err = script('main', *FLAGS, f'--dataset={folder}')
    assert code == 2 and 'cow is no class of the training set' in err and 'cat, dog, eel' in err
    assert not (tmp_path / 'save').exists()  # known before the first epoch
    assert check_dataset(own_args(folder))['unlabelled images'] == [str(folder / 'test/cow/0.jpg')]


def test_what_file_managers_leave_is_no_class(script, folder):
    for name in ('train/.ipynb_checkpoints/0.jpg', 'train/cat/._0.jpg', 'val/__MACOSX/0.jpg'):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b'x')
    (folder / 'train' / 'fox').mkdir()
    code, _, err = script('main', *FLAGS, f'--dataset={folder}')
    assert code == 0 and 'no images of 1 classes: fox' in err, err
    shutil.copy(folder / 'train/cat/0.jpg', folder / 'train/0.jpg')
    code, _, err = script('main', *FLAGS, f'--dataset={folder}', '--override_cache')
    assert code == 2 and 'train/0.jpg lies in no class folder' in err


@pytest.mark.parametrize('name, words', [('./nowhere', ['./nowhere' [2:], 'train']), ('nowhere', ['written with a slash'])])
def test_a_folder_that_is_not_there(script, name, words, tmp_path):
    code, _, err = script('main', *FLAGS, f'--dataset={name}')
    assert code == 2 and all(word in err for word in words), err


def test_a_broken_image_stops_training_or_is_left_out(script, folder, tmp_path):
    (folder / 'train/cat/0.jpg').write_bytes(b'broken')
    code, _, err = script('main', *FLAGS, f'--dataset={folder}')
    assert code == 2 and 'train/cat/0.jpg does not open' in err
    assert not (tmp_path / 'save/result' / util.CHECKPOINT).exists()
    code, _, err = script('main', *FLAGS, f'--dataset={folder}', '--skip_broken')
    assert code == 0 and '1 of 12 images of train do not open and are left out' in err and 'cat/0.jpg' in err
