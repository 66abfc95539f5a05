"""--dataset=path/to/folder: training, remove-and-classify and pictures without metadata; broken images."""
import json
import shutil

import numpy as np
import pytest
from conftest import OWN_FLAGS, accepted, paint_folder, read_result, refused
from PIL import Image

from dataset.check import check_dataset
from dataset.registry import find_dataset
from wsol.errors import UserError


def found_in(folder):
    return check_dataset(find_dataset(str(folder)))


@pytest.fixture
def folder(tmp_path):
    """train/, val/, test/ of three classes, four images each."""
    return paint_folder(tmp_path / 'pets')


def list_objects(folder, split, line):
    """Write a split's localization.txt, line(image id) for each image, the .png first. Returns the ids and the folder."""
    ids = sorted((str(path.relative_to(folder / split)) for path in (folder / split).rglob('*.*g')),
                 key=lambda name: not name.endswith('.png'))  # a photo that is a .png first: no mask
    lists = folder / 'metadata' / split
    lists.mkdir(parents=True)
    (lists / 'localization.txt').write_text(''.join(f'{line(name)}\n' for name in ids))
    return ids, lists


def test_a_folder_trains_evaluates_and_gives_pictures(script, folder, tmp_path):
    base = [*OWN_FLAGS, f'--dataset={folder}', '--attribution_method=CALM_EM']
    accepted(script('main', *base))
    accepted(script('eval_pixel_perturb', '--workers=0'))
    result = read_result(tmp_path / 'save/result', 'pixel_perturb')
    assert result['images'] == 12 and result['dataset'].startswith('pets-')
    shutil.rmtree(folder / 'train')  # the checkpoint keeps the class names
    accepted(script('inference', folder / 'test' / 'dog', '--target=eel', '--output=out'))
    entries = json.loads((tmp_path / 'out/manifest.json').read_text())['images']
    assert [(entry['class_name'], entry['class']) for entry in entries] == [('eel', 2)] * 4
    assert script('eval_pixel_perturb', '--workers=0')[0] == 0
    assert read_result(tmp_path / 'save/result', 'pixel_perturb')['ratios'] == result['ratios']
    refused(script('eval_cue_location'), "CUB's layout")
    refused(script('eval_wsol', '--workers=0'), 'localization.txt')
    refused(script('eval_pixel_perturb', '--score_map_process=jointll-superclass'), 'no built-in superclasses', '--superclass_file')
    refused(script('eval_pixel_perturb', '--score_map_process=object_mask'), "CUB's layout")
    check_superclass_file(script, folder / 'test/dog/0.jpg', tmp_path)


def check_superclass_file(script, photo, tmp_path):
    """With all classes in one superclass, p(y in the superclass, z|x) is the prior p(z|x)."""
    (tmp_path / 'all.yaml').write_text(''.join(f'{label}: [0, 1, 2]\n' for label in range(3)))
    maps = []
    for process, flags in (('saliency', []), ('jointll-superclass', ['--superclass_file=all.yaml'])):
        accepted(script('inference', photo, f'--score_map_process={process}', *flags, '--output=one'))
        maps.append(np.load(tmp_path / f'one/0_{process}.npy'))
    np.testing.assert_allclose(*maps, rtol=1e-5)
    assert maps[0].sum() == pytest.approx(1, rel=1e-5)


def test_without_boxes_wsol_says_what_they_are_and_asks_for_no_images(folder):
    with pytest.raises(UserError, match='image_sizes.txt') as error:
        find_dataset(str(folder)).boxes('val', [])
    assert 'put images' not in str(error.value)


def test_boxes_or_masks_enable_wsol(script, folder, tmp_path):
    """A box around the whole photo holds half of every map at least at threshold 0: found at IoU 50 %."""
    for split in ('val', 'test'):
        ids, lists = list_objects(folder, split, lambda name: f'{name},0,0,29,39')
        (lists / 'image_sizes.txt').write_text(''.join(f'{name},30,40\n' for name in ids))
    (folder / 'metadata' / 'train').mkdir()
    (folder / 'metadata' / 'train' / 'localization.txt').write_text('')
    assert script('main', *OWN_FLAGS, f'--dataset={folder}')[0] == 0
    accepted(script('eval_wsol', '--workers=0'))
    result = read_result(tmp_path / 'save/result', 'wsol')
    assert result['images_by_split'] == {'val': 12, 'test': 12} and result['images'] == 12
    assert result['results']['MaxBoxAccV2@30']['oracle'] == 100
    assert not any(found_in(folder).values())

    shutil.rmtree(folder / 'metadata')
    next((tmp_path / 'save/result').glob('wsol_*.json')).unlink()  # of other truth: it would stay beside the next
    for split in ('val', 'test'):
        list_objects(folder, split, lambda name, split=split: f'{name},{split}_mask.png,{split}_ignore.png')
        Image.fromarray(np.pad(np.full((10, 10), 255, np.uint8), 10)).save(folder / f'{split}_mask.png')
        Image.fromarray(np.zeros((30, 30), np.uint8)).save(folder / f'{split}_ignore.png')
    accepted(script('eval_wsol', '--workers=0'))
    assert 0 < read_result(tmp_path / 'save/result', 'wsol')['results']['mask PxAP']['test'] < 100
    assert not any(found_in(folder).values())
    lists = folder / 'metadata/val/localization.txt'
    lists.write_text(lists.read_text().replace(',val_ignore.png', ''))  # two columns: no ignore masks
    masks = find_dataset(f'{folder}/')
    assert masks.has_masks and masks.mask_paths('val', np.array([b'cat/0.jpg'])) == [([folder / 'val_mask.png'], None)]
    assert not any(found_in(folder).values())
    Image.new('L', (40, 30)).save(folder / 'val_mask.png')  # the photo stands
    with pytest.raises(UserError, match=r'val_mask.png is 40 x 30 pixels, and .*0.jpg 30 x 40 .12 such masks.: a mask belongs to the photo turned'):
        masks.mask_paths('val', masks.list_images('val')[0])
    assert found_in(folder)['broken masks'][0].startswith(f'{folder}/val_mask.png is 40 x 30 pixels')


def test_a_class_that_training_did_not_have_is_named(script, folder, tmp_path):
    (folder / 'test' / 'cow').mkdir()
    shutil.copy(folder / 'test/cat/0.jpg', folder / 'test/cow/0.jpg')
    refused(script('main', *OWN_FLAGS, f'--dataset={folder}'), 'cow is no class of the training set', 'cat, dog, eel')
    assert not (tmp_path / 'save').exists()  # known before the first epoch
    assert found_in(folder)['unlabelled images'] == [str(folder / 'test/cow/0.jpg')]


def test_a_class_that_is_spelled_in_another_form_of_unicode_is_named(folder):
    (folder / 'train/cat').rename(folder / 'train/caf\u00e9')
    (folder / 'test/cat').rename(folder / 'test/cafe\u0301')
    with pytest.raises(UserError, match='another form of Unicode'):
        find_dataset(str(folder)).list_images('test')


def test_what_file_managers_leave_is_no_class(script, folder):
    for name in ('train/.ipynb_checkpoints/0.jpg', 'train/cat/._0.jpg', 'val/__MACOSX/0.jpg'):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b'x')
    (folder / 'train' / 'fox').mkdir()
    code, _, err = script('main', *OWN_FLAGS, f'--dataset={folder}')
    assert code == 0 and 'no images of 1 classes: fox' in err, err
    shutil.copy(folder / 'train/cat/0.jpg', folder / 'train/0.jpg')
    refused(script('main', *OWN_FLAGS, f'--dataset={folder}', '--override_cache'), 'train/0.jpg lies in no class folder')


def test_class_folders_that_are_links_hold_images(folder):
    """As where splits are made with ln -s; a link to a folder that holds it is not followed."""
    def listed():
        ids, labels = find_dataset(str(folder)).list_images('train')
        return ids.tolist(), labels.tolist()
    before = listed()
    assert before[0] == sorted(before[0]) and len(before[0]) == 12
    for name in ('cat', 'eel'):
        (folder / 'train' / name).rename(folder.parent / name)
        (folder / 'train' / name).symlink_to(folder.parent / name)
    for name, target in (('up', folder / 'train'), ('higher', folder.parent), ('self', folder / 'train/dog'), ('nowhere', 'gone')):
        (folder / 'train/dog' / name).symlink_to(target)
    (folder.parent / 'cat/back').symlink_to(folder.parent / 'cat')
    assert listed() == before and not any(found_in(folder).values())
    (folder / 'train/dog/more').symlink_to(folder.parent / 'cat')  # in a linked folder, a linked folder
    more = [name.replace(b'cat/', b'dog/more/') for name in before[0][:4]]
    assert listed()[0][4:12] == sorted([*before[0][4:8], *more])


@pytest.mark.parametrize('name, words', [('./nowhere', ['./nowhere' [2:], 'train']), ('nowhere', ['written with a slash'])])
def test_a_folder_that_is_not_there(script, name, words, tmp_path):
    code, _, err = script('main', *OWN_FLAGS, f'--dataset={name}')
    assert code == 2 and all(word in err for word in words), err


def test_a_broken_image_is_left_out_where_that_is_asked_for(script, folder):
    (folder / 'train/cat/0.jpg').write_bytes(b'broken')
    code, _, err = script('main', *OWN_FLAGS, f'--dataset={folder}', '--skip_broken')
    assert code == 0 and '1 of 12 images of train do not open and are left out' in err and 'cat/0.jpg' in err
