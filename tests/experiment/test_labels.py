"""Labels mean the classes that the network was trained on: what says otherwise is refused, on named data sets too."""
from dataclasses import replace

import numpy as np
import pytest
from conftest import OWN_FLAGS, SMALL, accepted, change_checkpoint, content_of, paint_folder, refused, roots_of

from dataset.images import ImageDataset
from dataset.registry import find_dataset, names_of_folders
from experiment import weights
from wsol.errors import UserError


def images_of(*pairs):
    """Images of (folder, label) pairs."""
    ids = np.array([f'{folder}/{number}.jpg'.encode() for number, (folder, _) in enumerate(pairs)])
    return ImageDataset(ids, np.array([label for _, label in pairs]), 'nowhere', None)


def named(num_classes=3):
    return replace(find_dataset('CUB'), num_classes=num_classes)


@pytest.mark.parametrize('pairs, names', [
    ([('a', 0), ('b', 1), ('c', 2)], ('a', 'b', 'c')), ([('train/a', 0), ('c', 2), ('c', 2)], ('a', '', 'c')),
    ([('a', 0), ('b', 1), ('a', 1), ('b', 1)], ('a', 'b', '')),  # a wrong label among others
    ([('val', 0), ('val', 1), ('val', 2)], ()), ([('a', 0), ('a', 1), ('a', 0)], ())])
def test_a_class_is_called_as_the_folder_of_its_images_unless_classes_share_a_folder(pairs, names):
    assert names_of_folders(images_of(*pairs), 3) == names


SAME, UNKNOWN = True, False


@pytest.mark.parametrize('split, pairs, names, outcome', [
    ('test', [('a', 0), ('b', 1), ('c', 2)], ('a', 'b', 'c'), SAME),
    ('test', [('test/a', 0), ('test/c', 2)], ('a', 'b', 'c'), SAME),  # as in OpenImages; a class without images
    ('test', [('b', 0), ('c', 1), ('a', 2)], ('a', 'b', 'c'), '3 of 3 classes are others than in last.pth'),
    ('test', [('a', 0), ('a', 0), ('b', 0), ('b', 1), ('c', 2)], ('a', 'b', 'c'), 'class 0 is "a" there, and "b" here'),
    ('train', [('a', 0), ('a', 0), ('b', 0), ('b', 1), ('c', 2)], ('a', 'b', 'c'), SAME),  # wrong on purpose, perhaps
    ('train', [('b', 0), ('a', 1), ('c', 2)], ('a', 'b', 'c'), '2 of 3 classes are others than in last.pth'),
    ('test', [('a', 0), ('b', 1), ('z', 2)], ('a', 'b', 'c'), 'class 2 is "c" there, and "z" here'),
    ('test', [('a', 0), ('b', 2)], ('a', 'b', ''), 'class 2 is "" there, and "b" here'),
    ('test', [('val', 0), ('val', 1), ('val', 2)], ('n01', 'n02', 'n03'), UNKNOWN),  # as in ImageNet
    ('test', [('a', 0), ('b', 1), ('c', 2)], None, UNKNOWN), ('test', [('a', 0), ('b', 1), ('c', 2)], ('x', 'y', 'z'), UNKNOWN),
    ('val', [('val2/0', 0), ('val2/1', 1), ('val2/2', 2)], ('n01', 'n02', 'n03'), SAME),  # as in ImageNetV2
    ('val', [('val2/0', 1), ('val2/1', 0), ('val2/2', 2)], ('n01', 'n02', 'n03'), 'class 0 is "0" there, and "1" here'),
    ('val', [('1', 0), ('2', 1), ('3', 2)], ('n01', 'n02', 'n03'), UNKNOWN)])  # numbers of another count
def test_labels_are_held_against_the_folders(split, pairs, names, outcome):
    images = images_of(*pairs)
    images.class_names = names_of_folders(images, 3)
    if isinstance(outcome, bool):
        assert named().check_classes(split, images, names, 'last.pth') == outcome
    else:
        with pytest.raises(UserError, match=f'metadata/CUB/{split}/class_labels.txt: .*{outcome}'):
            named().check_classes(split, images, names, 'last.pth')


def rotate(birds, split):
    """Give each class of a split the number of the next one."""
    path = roots_of(birds)[1] / 'ToyBirds' / split / 'class_labels.txt'
    pairs = [line.split(',') for line in path.read_text().splitlines()]
    path.write_text('\n'.join(f'{name},{(int(label) + 1) % 18}' for name, label in pairs))


@pytest.mark.parametrize('name, flags', [('eval_pixel_perturb', []), ('eval_cue_location', []), ('eval_wsol', []), ('main', ['--is_train=False'])])
def test_no_evaluation_takes_rotated_labels(script, own_birds, save, name, flags):
    rotate(own_birds, 'test')
    refused(script(name, *own_birds, '--experiment_name=CAM', *flags), 'test/class_labels.txt', '18 of 18', 'class 0 is "001.Toy_A1"', weights.FILE)


def test_no_training_goes_on_with_rotated_labels(script, own_birds, save):
    """Resumed, begun from a checkpoint, or with features; a new label set is another matter."""
    flags = [*own_birds, *SMALL, '--attribution_method=CAM']
    for split in ('train', 'val', 'test'):
        rotate(own_birds, split)
    before = content_of(save / 'CAM')
    refused(script('main', *flags, '--experiment_name=CAM', '--epochs=4'), 'train/class_labels.txt', '18 of 18', weights.FILE)
    for more in ([], ['--freeze']):
        refused(script('main', *flags, '--experiment_name=new', '--load_checkpoint=CAM', '--epochs=1', *more), '18 of 18')
    assert content_of(save / 'CAM')['class_names'] == before['class_names'] and not (save / 'new' / weights.FILE).exists()
    accepted(script('main', *flags, '--experiment_name=new', '--load_checkpoint=CAM', '--epochs=1', '--is_different_checkpoint'))
    assert content_of(save / 'new')['class_names'] == before['class_names'][-1:] + before['class_names'][:-1]


def test_lists_of_one_data_set_that_contradict_each_other_train_nothing(script, own_birds):
    rotate(own_birds, 'val')
    refused(script('main', *own_birds, *SMALL, '--epochs=1'), 'val/class_labels.txt', '18 of 18', 'than in train')


def test_a_checkpoint_without_names_goes_by_number_and_says_so_once(script, own_birds, save):
    change_checkpoint(save / 'CAM' / weights.FILE, lambda content: content | {'class_names': None})
    code, _, err = script('main', *own_birds, '--experiment_name=CAM', '--is_train=False')
    assert code == 0 and err.count('do not name the same classes: each label is taken') == 1


def test_other_class_folders_are_refused_when_a_training_starts_from_a_checkpoint(script, tmp_path):
    folders = [paint_folder(tmp_path / name, names, (1, 1, 1)) for name, names in (('pets', ('cat', 'dog', 'eel')), ('more', ('cat', 'cow', 'dog')))]
    assert script('main', *OWN_FLAGS, f'--dataset={folders[0]}', '--experiment_name=pets')[0] == 0
    flags = [*OWN_FLAGS, f'--dataset={folders[1]}', '--experiment_name=more', '--load_checkpoint=pets']
    refused(script('main', *flags), '2 of 3', 'class 1 is "dog" there, and "cow" here', str(folders[1] / 'train'))
    assert script('main', *flags, '--is_different_checkpoint')[0] == 0
