"""wsol.superclasses: a YAML file's, ToyBirds' families, WordNet's; and what their mistakes are answered with."""
import json

import numpy as np
import pytest
import torch
import torchvision
from conftest import accepted, refused, shared
from PIL import Image

from dataset.class_names import read_superclass_file
from dataset.toybirds import class_colours
from wsol.annotations import superclasses
from wsol.errors import UserError


def members(matrix, label):
    return matrix[label].nonzero().flatten().tolist()


def test_a_file_lists_the_superclass_of_each_class(tmp_path):
    path = tmp_path / 'groups.yaml'
    path.write_text('0: [0, 2]\n2: [0, 2]\n3: 1\n')
    matrix = read_superclass_file(path, 5)
    assert [members(matrix, label) for label in range(5)] == [[0, 2], [1], [0, 2], [1, 3], [4]]


@pytest.mark.parametrize('text, words', [
    ('- 1\n', 'expected lines "label'), ('0: [5]\n', "line 1: '5' is not a class"), ('\n7: [1]\n', "line 2: '7'"),
    ('0: true\n', "'true' is not a class"), ('true: [1]\n', "'true' is not a class"), ('0: [a]\n', "'a' is not a class"),
    ('0: [1]\n1: [2]\n0: [3]\n', 'lines 1 and 3 both state the superclass of 0'), ('', 'expected lines "label'),
    *((f'0: [{number}]\n', 'line 1: .* is not a class') for number in (
        '1_0', '010', '0x1', '1:3', '1e0', '1.0', '+1', '-1', '"1"', '!!str 1', '[1]', '{1: 2}', '~', '٣', '0b1', '01', '<<')),
    ('0: &a [*a]\n', 'line 1: .* is not a class|cannot be read'), ('? [0]\n: 1\n', "'a sequence' is not a class"), ('0: []\n--- 1', 'YAML'),
    ('0: [1\n', 'cannot be read as YAML')])
def test_mistakes_in_a_file(tmp_path, text, words):
    (tmp_path / 'groups.yaml').write_text(text)
    with pytest.raises(UserError, match=words):
        read_superclass_file(tmp_path / 'groups.yaml', 5)
    with pytest.raises(UserError, match='nowhere.yaml'):
        read_superclass_file(tmp_path / 'nowhere.yaml', 5)


def test_toybirds_families():
    names = [name for name, _ in class_colours()]
    matrix = superclasses.by_prefix(names)
    for label, name in enumerate(names):
        assert [names[index][4:9] for index in members(matrix, label)] == [name[4:9]] * int(matrix[label].sum())
    assert sorted(set(matrix.sum(1).tolist())) == [4, 5]  # two families of four classes, two of five
    with pytest.raises(UserError, match='class names'):
        superclasses.by_prefix(None)


def test_wordnet_gives_the_nearest_ancestor_with_another_class_below():
    folder = shared('metadata', 'ILSVRC', 'helper')
    matrix = superclasses.wordnet(folder)
    assert members(matrix, 0) == [0, 1]  # tench and goldfish are the two cyprinids
    synsets = [json.loads((folder / 'imagenet_class_index.json').read_text())[str(label)][0] for label in range(1000)]
    children, parents = {}, {}
    for parent, child in (line.split() for line in (folder / 'wordnet.is_a.txt').read_text().splitlines()):
        children.setdefault(parent, set()).add(child)
        parents.setdefault(child, set()).add(parent)

    def leaves(synset):
        level_below, descendants = {synset}, set()
        while level_below:
            descendants |= level_below
            level_below = set().union(*(children.get(one, set()) for one in level_below)) - descendants
        return {label for label, name in enumerate(synsets) if name in descendants and name != synset}
    for label in range(0, 1000, 199):
        level, candidates = {synsets[label]}, []
        while not candidates:  # a level of ancestors at a time; a level may have several with other classes
            level = set().union(*(parents[one] for one in level))
            candidates = [classes for classes in map(leaves, level) if len(classes) > 1]
        assert set(members(matrix, label)) in candidates


def test_wordnet_without_its_files_says_which(tmp_path):
    with pytest.raises(UserError, match='wordnet.is_a.txt.*superclass_file'):
        superclasses.wordnet(tmp_path)


@pytest.mark.parametrize('index, words', [
    ('{"0": ["n0", "a"], "1": ["n1", "b"], "0": ["n2", "c"]}', '"0" is stated twice'),
    ('{"0": ["n0", "a"], "1": ["n0", "b"]}', '"n0" is stated twice'), ('{"0_0": ["n0", "a"]}', '"0_0" is no whole number')])
def test_wordnets_classes_are_stated_once(tmp_path, index, words):
    (tmp_path / 'wordnet.is_a.txt').write_text('n9 n0\nn9 n1\n')
    (tmp_path / 'imagenet_class_index.json').write_text(index)
    with pytest.raises(UserError, match=words):
        superclasses.wordnet(tmp_path, 3)


def test_a_class_without_a_group_is_alone():
    assert torch.equal(superclasses.membership({}, 2), torch.eye(2, dtype=torch.bool))
    # one is asked about the group of its own label: 0 counts 1 to its group, 1 does not count 0
    assert superclasses.membership({0: [1]}, 2).tolist() == [[True, True], [False, True]]


def test_superclasses_of_other_classes_than_the_networks_are_refused(script, tmp_path, monkeypatch):
    """A classifier of one's own beside the default data set, CUB, whose 200 classes are all birds."""
    monkeypatch.chdir(tmp_path)
    for classes in (13, 200):
        network = torchvision.models.resnet18(num_classes=classes)
        torch.save(network.state_dict(), f'of{classes}.pth')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)).save('photo.png')
    common = ['photo.png', '--architecture=resnet18', '--workers=0', '--score_map_process=vanilla-superclass']
    refused(script('inference', *common, '--load_checkpoint=of200.pth'), 'of200.pth does not say what its classes are',
            '--superclass_file')
    refused(script('inference', *common, '--load_checkpoint=of13.pth', '--dataset=CUB'), 'CUB has no built-in superclasses for',
            'of 13 classes')
    (tmp_path / 'own.yaml').write_text('3: [12]\n')
    accepted(script('inference', *common, '--load_checkpoint=of13.pth', '--superclass_file=own.yaml'))
    (tmp_path / 'own.yaml').write_text('3: [13]\n')
    refused(script('inference', *common, '--load_checkpoint=of13.pth', '--superclass_file=own.yaml'), '0 to 12')
