"""dataset.class_names: files of names as people keep them, and the names in checkpoints."""
import json
from pathlib import Path

import pytest
from munch import Munch

from dataset.class_names import imagenet_names, names_in, read_class_names
from experiment import weights
from wsol.errors import UserError

NAMES = ['tench', 'great white shark', 'crane', "bird's nest", 'Mönch', 'crane', 'cock, hen']
SYNSETS = [f'n0144076{index}' for index in range(len(NAMES))]
NUMBERED = list(enumerate(NAMES))
LINES = {
    'a line each': '\n'.join(NAMES) + '\n',
    'numbers': ''.join(f'{index} {name}\n' for index, name in NUMBERED),
    'numbers in another order': ''.join(f'{index}\t{name}\n' for index, name in NUMBERED[::-1]),
    'numbers from 1': ''.join(f'{index + 1}: {name}\n' for index, name in NUMBERED),
    'lines of a dict': ''.join(f"{index}: {name!r},\n" for index, name in NUMBERED),
    'synsets': ''.join(f'{synset} {name}\n' for synset, name in zip(SYNSETS, NAMES, strict=True)),
    'synsets and numbers': ''.join(f'{SYNSETS[index]} {index + 1} {name}\n' for index, name in NUMBERED[::-1]),
    'numbers and synsets': ''.join(f'{index},{SYNSETS[index]},{name}\n' for index, name in NUMBERED),
    'table': 'id,name\n' + ''.join(f'{index},"{name}"\n' for index, name in NUMBERED),
    'table by name': 'class;index\n' + ''.join(f'{name};{index}\n' for index, name in NUMBERED[::-1]),
    'header': 'class_name\n' + '\n'.join(NAMES),
    'Python dict': '{' + ',\n '.join(f'{index}: {name!r}' for index, name in NUMBERED) + '}',
    'Python list': '[' + ', '.join(f'u{ascii(name)}' for name in NAMES) + ']',
    'YAML': 'nc: 7\nnames:\n' + ''.join(f'  {index}: {json.dumps(name)}\n' for index, name in NUMBERED),
    'JSON list': json.dumps(NAMES), 'JSON': json.dumps(dict(NUMBERED)), 'JSON, indented': json.dumps(dict(NUMBERED), indent=1),
    'JSON of torchvision': json.dumps({index: [SYNSETS[index], name] for index, name in NUMBERED}),
    'numbered list': ''.join(f'{index + 1}. {name}\n' for index, name in NUMBERED),
    'JSON of COCO': json.dumps({'categories': [{'id': index + 1, 'name': name} for index, name in NUMBERED[::-1]]}),
    'JSON of COCO with gaps': json.dumps({'categories': [{'id': 3 * index, 'name': name} for index, name in NUMBERED]}),
    'JSON of Hugging Face': json.dumps({'model_type': 'vit', 'id2label': dict(NUMBERED)})}


@pytest.mark.parametrize('how', LINES)
def test_names_are_read_in_the_order_of_the_classes(tmp_path, how):
    path = tmp_path / 'names'
    for encoding in ('utf-8', 'utf-8-sig', 'latin-1', 'utf-16'):
        for text in (LINES[how], LINES[how].replace('\n', '\r\n') + '\r\n \r\n'):
            path.write_bytes(text.encode(encoding))
            assert read_class_names(path, len(NAMES)) == NAMES, encoding


def test_names_that_only_look_numbered_stay_whole(tmp_path):
    for names in (['001.Albatross', '002.Auklet'], ['7', '1'], ['3 wheeler', '4 by 4'], ['class: 7', 'class: 9'], ['n01440764', 'n01443537']):
        (tmp_path / 'names').write_text('\n'.join(names))
        assert read_class_names(tmp_path / 'names', 2) == names


@pytest.mark.parametrize('text, words', [
    ('a\nb\nc\n\n', 'holds 3 names, and the network has 7 classes'), ('', 'holds 0 names'), ('{"a": 0, "b": 2}', 'the network has 7'),
    *((text, "(--class_names=.*: \"?'?0'?\"? is stated twice)") for text in (
        '{"0": "a", "1": "b", "0": "c"}', "{'0': 'a', '1': 'b', '0': 'c'}", 'names:\n  0: a\n  1: b\n  0: c\n', '{0: "a", 0: "c",}')),
    ('[' * 100_000, 'the network has 7'), ('\0' * 99, 'the network has 7'), (None, 'No such file')])
def test_another_number_of_names_is_refused_in_one_line(tmp_path, text, words):
    if text is not None:
        (tmp_path / 'names').write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_class_names(tmp_path / 'names', 7)
    assert '\n' not in str(error.value) and '--class_names=' in str(error.value)


def test_names_in_checkpoints():
    for content in ({'state_dict': {}, 'classes': NAMES}, {'epoch': 3, 'class_to_idx': {name: index for index, name in enumerate('ab')}},
                    {'hyper_parameters': {'lr': 0.1, 'class_names': ('a', 'b')}}, {'idx_to_class': {0: 'a', 1: 'b'}}):
        assert names_in(content) == (NAMES if 'classes' in content else ['a', 'b'])
    for content in ({'classes': 5}, {'labels': [1, 2]}, {'class_to_idx': {'a': 0, 'b': 3}}, {}, None, {'args': {'names': {}}}, {'state_dict': {'w': 1.0}}):
        assert names_in(content) == []
    content = {}
    content['args'] = content['classes'] = content  # as a pickle may hold
    assert names_in(content) == []
    assert imagenet_names()[0] == 'tench' and len(imagenet_names()) == 1000


# --- which names a network gets ---------------------------------------------------------------------------


def names_of(count, given=(), scores='softmax', names=None, known=True, **flags):
    """weights.class_names of a foreign classifier. known: whether its weights are ImageNet's."""
    model = Munch(conv_last=Munch(out_channels=count), scores=scores)
    content = {'model': {'architecture': 'x'}, 'preprocessing': {'input_size': 8}, 'class_names': names}
    args = Munch(class_names=None, given=given, dataset='ILSVRC' if known else 'CUB', data_root='d', metadata_root='m') | flags
    return weights.class_names(Munch(args), weights.Checkpoint(Path('net.pth'), content, model=model), model)


def test_imagenets_names_are_for_imagenets_classifiers_and_for_others_with_a_word(capsys):
    names = names_of(1000)
    assert names[:2] == ['tench', 'goldfish'] and len(set(names)) == 1000
    assert not capsys.readouterr().out
    assert names_of(1000, known=False) == names and "so they get ImageNet's names" in capsys.readouterr().out
    assert names_of(1000, names=[f'x{number}' for number in range(1000)], known=False)[7] == 'x7'
    assert names_of(200) == names_of(200, known=False) == [] and names_of(2, scores='one_logit') == ['no', 'yes']


def test_names_come_from_the_file_then_the_checkpoint_then_the_folder(tmp_path):
    for name in 'ab':
        (tmp_path / 'pets/train' / name).mkdir(parents=True)
    (tmp_path / 'names').write_text('x\nx\n')
    folder = {'given': ['dataset'], 'dataset': f'{tmp_path}/pets', 'known': False}
    assert names_of(2, class_names=tmp_path / 'names', names=['p', 'q'], **folder) == ['x (0)', 'x (1)']
    assert names_of(2, names=['p', 'q'], **folder) == ['p', 'q']
    assert names_of(2, names=['p', 'q', 'r'], **folder) == names_of(2, scores='one_logit', **folder) == ['a', 'b']
    with pytest.raises(UserError, match='has 2 class folders, the network 3 classes'):
        names_of(3, **folder)
