"""A result knows by content what it was measured on: a change of the truth, the images or the maps is another result."""
import csv
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SIZE, open_birds, result_paths, roots_of
from PIL import Image

import eval_cue_location
import eval_wsol
from dataset.fingerprints import Contents
from evaluation.map_sources import FolderMaps, NetworkMaps, ObjectMasks
from experiment import result_files
from reports import columns
from wsol.errors import UserError


def replace(path, change):
    """Put change(its bytes) into a file: of the same size if need be, and with the times of before."""
    before = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def inverted(content):
    """Another picture in a PNG file of the same size."""
    return content[:-20] + bytes(255 - value for value in content[-20:])


# --- what is compared with ----------------------------------------------------------------------------------------

def cue_truth(flags):
    images, data = open_birds(flags)
    return eval_cue_location.open_cues(data, images).fingerprint()



@pytest.mark.parametrize('files, change', [
    ('parts/part_locs.txt', None), ('segmentations/*/*_test_0000.png', inverted), ('part_masks/*/*_test_0001.png', inverted),
    ('attributes/class_attribute_labels_continuous.txt', lambda text: b'\n'.join(text.split(b'\n')[i] for i in (1, 1, *range(2, 18))))])
def test_cue_localization_sees_each_of_its_annotations(own_birds, tiny_birds, files, change):
    root, known = roots_of(own_birds)[0] / 'ToyBirds', cue_truth(tiny_birds)
    assert cue_truth(own_birds) == known  # a copy elsewhere
    for path in root.glob(files):
        if change is None:  # the points of test images are not the first in the file
            numbers = [line.split()[0] for line in (root / 'images.txt').read_text().splitlines() if '_test_' in line]
            text = path.read_text()
            path.write_text('\n'.join(' '.join([*line.split()[:2], '1.0', *line.split()[3:]]) if line.split()[0] in numbers
                                      else line for line in text.splitlines()))
        else:
            replace(path, change)
    assert cue_truth(own_birds) != known


def test_cue_localization_does_not_see_what_it_does_not_use(own_birds, tiny_birds):
    root = roots_of(own_birds)[0] / 'ToyBirds'
    (root / 'bounding_boxes.txt').write_text('1 0 0 1 1\n')
    for path in root.glob('segmentations/*/*_train_*.png'):
        replace(path, inverted)
    assert cue_truth(own_birds) == cue_truth(tiny_birds)


def box_truth(flags):
    images, data = open_birds(flags)
    args = SimpleNamespace(crop_size=SIZE, norm_type='minmax', cam_curve_interval=0.1, iou_thresholds=(50,))
    return eval_wsol.open_counts(data, 'test', images, args).fingerprint(images.contents)


def test_localization_sees_the_boxes_of_its_images_alone(own_birds, tiny_birds):
    path, known = roots_of(own_birds)[1] / 'ToyBirds/test/localization.txt', box_truth(tiny_birds)
    lines = path.read_text().splitlines()
    path.write_text('\n'.join(['nobody.jpg,' + lines[0].split(',', 1)[1], *lines]))
    assert box_truth(own_birds) == known
    path.write_text('\n'.join([*lines[:-1], f'{lines[-1].split(",")[0]},0,0,1,1']))
    assert box_truth(own_birds) != known


@pytest.mark.parametrize('change', [lambda w, h: (h + 1, w), lambda w, h: (w // 2, h // 2), lambda w, h: (w, h - 1)])
def test_sizes_that_are_not_the_photos_are_refused(own_birds, change):
    path = roots_of(own_birds)[1] / 'ToyBirds/test/image_sizes.txt'
    rows = [line.split(',') for line in path.read_text().splitlines()]
    path.write_text('\n'.join(','.join([name, *map(str, change(int(width), int(height)))]) for name, width, height in rows))
    with pytest.raises(UserError, match=f'{rows[0][0]} is {rows[0][1]} x {rows[0][2]} pixels, and .* by {path}, line 1 .36 such images'):
        box_truth(own_birds)


@pytest.mark.parametrize('resize', [lambda w, h: (100, 100), lambda w, h: (round(w / 3), round(h / 3)), lambda w, h: (128, round(128 * h / w))])
def test_photos_may_be_smaller_copies_of_those_that_boxes_were_drawn_in(own_birds, tiny_birds, resize, capsys):
    """As CUB at 227 x 227. But for one photo that is none."""
    known, paths = box_truth(tiny_birds), sorted((roots_of(own_birds)[0] / 'ToyBirds/images').glob('*/*_test_*.jpg'))
    for path in paths:
        with Image.open(path) as image:
            image.resize(resize(*image.size)).save(path)
    assert box_truth(own_birds) == known and 'before they were resized' in capsys.readouterr().err
    Image.new('RGB', (50, 90)).save(paths[3])
    with pytest.raises(UserError, match='such images'):
        box_truth(own_birds)


def test_one_photo_of_another_size_is_no_smaller_copy(own_birds):
    path = next((roots_of(own_birds)[0] / 'ToyBirds/images').glob('*/*_test_*.jpg'))
    with Image.open(path) as image:
        image.resize((image.width // 2, image.height // 2)).save(path)
    with pytest.raises(UserError, match=f'{path.name} is .* .1 such images'):
        box_truth(own_birds)


def test_localization_sees_the_content_of_masks(tmp_path):
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / 'a.png')
    Image.new('L', (8, 8)).save(tmp_path / 'b.png')

    def truth(*paths):
        return eval_wsol.MaskCounts(list(paths), 8, 'minmax', 0.1).fingerprint(Contents())
    a, b = tmp_path / 'a.png', tmp_path / 'b.png'
    pairs = [([a], b)], [([b], a)], [([a, b], None)], [([a, a], b)], [([a], b), ([a], b)]
    known = [truth(*paths) for paths in pairs]
    assert len(set(known)) == len(known)
    replace(a, inverted)
    assert truth(*pairs[0]) not in known


# --- what maps come from ------------------------------------------------------------------------------------------

def test_maps_made_elsewhere_are_known_by_content(tiny_birds, tmp_path):
    images, _ = open_birds(tiny_birds)
    for index in range(len(images)):
        path = tmp_path / f'{images.image_id(index)}.npy'
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.full((2, 2), float(index)))
    known = FolderMaps(tmp_path, 'test', images).fingerprint()
    shutil.copytree(tmp_path, tmp_path / 'copy')
    assert FolderMaps(tmp_path / 'copy', 'test', images).fingerprint() == known
    replace(path, lambda content: content[:-1] + b'\1')
    assert FolderMaps(tmp_path, 'test', images).fingerprint() != known
    assert FolderMaps(tmp_path, 'test', images, rows=range(3)).fingerprint() != known


def test_superclasses_and_segmentations_are_known_by_content(own_birds, tiny_birds):
    model = SimpleNamespace()

    def of(members):
        return NetworkMaps(None, model, 'vanilla-superclass', superclasses=members).fingerprint()
    assert of(None) is None and of(torch.eye(3) > 0) == of(torch.eye(3) > 0) != of(torch.ones(3, 3) > 0)
    known = [ObjectMasks(images, data.annotations()).fingerprint() for images, data in map(open_birds, (own_birds, tiny_birds))]
    assert known[0] == known[1]
    replace(next((roots_of(own_birds)[0] / 'ToyBirds').glob('segmentations/*/*_test_*.png')), inverted)
    images, data = open_birds(own_birds)
    assert ObjectMasks(images, data.annotations()).fingerprint() != known[0]


# --- results ------------------------------------------------------------------------------------------------------

def differences(folder):
    """The columns of a comparison's differences, of accuracy and localization."""
    with open(Path(folder) / 'table.csv') as file:
        return {line['column'] for line in csv.DictReader(file) if '−' in line['row']} & {'accuracy', *columns.WSOL}


def test_other_boxes_make_another_result_which_is_not_compared_with_the_first(script, own_birds, save):
    """From end to end: the file of the first stays, and no difference is given."""
    flags = [*own_birds, '--score_map_process=random', '--cam_curve_interval=0.1']
    assert script('eval_wsol', *flags, '--experiment_name=CAM')[0] == 0
    assert script('eval_wsol', *flags, '--experiment_name=CALM_EM')[0] == 0
    code, out, _ = script('compare', 'save/CAM', 'save/CALM_EM', '--format=csv')
    assert code == 0 and 'no difference' not in out
    assert differences('comparison') == {'accuracy', 'MaxBoxAcc', 'MaxBoxAccV2', 'Top-1 Loc', 'mass in box'}
    path = roots_of(own_birds)[1] / 'ToyBirds/val/localization.txt'  # which chooses the thresholds
    path.write_text('\n'.join(','.join([line.split(',')[0], '0', '0', '1', '1']) for line in path.read_text().splitlines()))
    result_paths(save / 'CALM_EM', 'wsol')[0].unlink()
    assert script('eval_wsol', *flags, '--experiment_name=CALM_EM')[0] == 0
    code, out, _ = script('compare', 'save/CAM', 'save/CALM_EM', '--format=csv', '--output=other')
    first, second = (str(result_paths(save / name, 'wsol')[0].relative_to(save.parent)) for name in ('CALM_EM', 'CAM'))
    line, = (line for line in out.splitlines() if 'no difference is given' in line)
    assert code == 0 and 'wsol was compared with other truth' in line and first in line and second in line
    assert differences('other') == {'accuracy'}
    assert script('eval_wsol', *flags, '--experiment_name=CAM')[0] == 0
    assert len(result_paths(save / 'CAM', 'wsol')) == 2
    code, out, _ = script('compare', 'save/CAM', '--format=csv')
    assert out.count(', truth ') >= 2  # the two rows are told apart


def result(**about):
    return {'metric': 'wsol', 'images_sha256': 'by content', 'truth_sha256': 'truth', 'path': 'a.json'} | about


def test_results_are_compared_with_what_they_record():
    new = result()
    result_files.check_alike([new, result(path='b.json', maps_sha256='x')])
    for what in ('images', 'truth'):
        other = result(**{f'{what}_sha256': 'other'}, path='b.json')
        assert not result_files.are_alike([new, other], what)
        with pytest.raises(UserError, match=f'a.json and b.json were measured on different {what}'):
            result_files.check_alike([new, other])
    result_files.check_alike([new, other | {'metric': 'cue_location'}])
    result_files.check_alike([])
