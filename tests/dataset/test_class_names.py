"""dataset.class_names: files of names as people keep them, and the names in checkpoints."""
import json

import pytest

from dataset.class_names import imagenet_names, names_in, read_class_names
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
    'YAML': 'nc: 7\nnames:\n' + ''.join(f'  {index}: {json.dumps(name)}\n' for index, name in NUMBERED),
    'JSON list': json.dumps(NAMES), 'JSON': json.dumps(dict(NUMBERED)), 'JSON, indented': json.dumps(dict(NUMBERED), indent=1),
    'JSON of torchvision': json.dumps({index: [SYNSETS[index], name] for index, name in NUMBERED}),
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
    ('a\nb\nc\n\n', 'names 3 classes, the network has 7'), ('', 'names 0 classes'), ('{"a": 0, "b": 2}', 'the network has 7'),
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
    assert imagenet_names()[0] == 'tench' and len(imagenet_names()) == 1000
