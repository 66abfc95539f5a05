"""Files in which users name classes, in whatever form they have the names, or group them into superclasses, in YAML."""
import ast
import codecs
import json
import re
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import yaml

from wsol.annotations import each_once, superclasses
from wsol.errors import UserError, words_of

KEYS = ('class_names', 'classes', 'names', 'class_to_idx', 'idx_to_class', 'id2label', 'label2id', 'labels',
        'categories', 'hyper_parameters', 'config', 'args', 'meta')  # where JSON, YAML and checkpoints have names
NUMBER_FIRST = re.compile(r'''[{\s]*["']?(\d{1,9})["').]?\s*[:,;=\t ]\s*(\S.*)''', re.ASCII)  # 0 tench  0. tench
NUMBER_LAST = re.compile(r'''[{\s]*(\S.*?)\s*[:,;=\t]\s*(\d{1,9})[\s,}]*''', re.ASCII)      # 'tench': 0,
SYNSET = re.compile(r'n\d{8}[\s,;:]+(\S.*)', re.ASCII)                                      # n01440764 tench
HEADER = re.compile(r'(.*[,;\t])?"?(name|class|class_?name|label|category)s?"?([,;\t].*)?', re.IGNORECASE)
QUOTED = re.compile(r'''(["'])(.*)\1[\s,}\]]*''')


def imagenet_names():
    """ImageNet's 1,000 names, in the order of torchvision's weights."""
    from torchvision.models import ResNet50_Weights
    return list(ResNet50_Weights.DEFAULT.meta['categories'])


def unique_class_names(names):
    """Names made unique by the numbers of the classes: "crane" and "crane" become "crane (134)" and "crane (517)"."""
    counts = Counter(names)
    return [f'{name} ({number})' if name and counts[name] > 1 else name for number, name in enumerate(names)]


def read_class_names(path, num_classes):
    """The names in a file, in the order of the classes. Raises UserError unless there are num_classes of them."""
    try:
        names = _names_in_text(_decoded(Path(path).read_bytes()), num_classes)
    except (OSError, UserError) as error:
        raise UserError(f'--class_names={path}: {getattr(error, "strerror", None) or error}') from error
    if len(names) != num_classes:
        raise UserError(f'--class_names={path} holds {len(names)} names, and the network has {num_classes} classes: '
                        'write one name a line for each class, or a JSON list of them')
    return names


def names_in(value, depth=2):
    """The names in a value of JSON or of a checkpoint, in the order of the classes; [] if none are in its first levels.

    ['tench', ...], {'0': 'tench'}, {'0': ['n01440764', 'tench']}, {'tench': 0}, [{'id': 0, 'name': 'tench'}], or a dict
    with one of these in KEYS.
    """
    if isinstance(value, dict):
        return (_by_number(value.items()) or _by_number((number, name) for name, number in value.items())
                or next((names for key in KEYS if depth and (names := names_in(value.get(key), depth - 1))), []))
    names = [_last(name) for name in value] if isinstance(value, (list, tuple)) else []
    if names and all(isinstance(name, dict) for name in names):
        names = _by_number((name.get('id'), name.get('name')) for name in names) or [name.get('name') for name in names]
    return names if all(isinstance(name, str) for name in names) else []


def _last(name):
    return name[-1] if isinstance(name, (list, tuple)) and name else name


def _by_number(pairs):
    """The names of pairs (number, name), by number; [] unless the numbers count from 0 or 1 without gaps."""
    pairs = [(f'{number}' if isinstance(number, (int, str)) else '', _last(name)) for number, name in pairs]
    if not all(re.fullmatch(r'\d{1,9}', number, re.ASCII) and isinstance(name, str) for number, name in pairs):
        return []
    pairs = sorted((int(number), name) for number, name in pairs)
    numbers = [number for number, _ in pairs]
    return [name for _, name in pairs] if numbers in (list(range(len(pairs))), list(range(1, len(pairs) + 1))) else []


def _decoded(content):
    """The text of a file: Unicode with or without a byte order mark, else Latin-1."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode('utf-16', 'replace')
    with suppress(UnicodeDecodeError):
        return content.decode('utf-8-sig')
    return content.decode('latin-1')


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        each_once((key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode))
        return super().construct_mapping(node, deep)


def _read_python(text):
    tree = ast.parse(text.strip(), mode='eval')
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            each_once((ast.literal_eval(key), None) for key in node.keys if key)
    return ast.literal_eval(tree)


def _names_in_text(text, num_classes):
    if text.lstrip()[:1] in ('{', '[') or re.search(r'^\s*(names|classes)\s*:', text, re.MULTILINE):
        read_json, read_yaml = partial(json.loads, object_pairs_hook=each_once), partial(yaml.load, Loader=_Loader)
        for read in (read_json, _read_python, read_yaml):  # YAML keeps the backslashes of Python's text
            try:
                names = names_in(read(text))
            except UserError:
                raise
            except Exception:  # deep nesting makes them raise errors of many kinds
                continue
            if names:
                return names
    lines = [line.strip() for line in re.split(r'\r\n|\r|\n', text)]
    lines = [line for line in lines if line.strip('{}[] ')]
    if len(lines) == num_classes + 1 and HEADER.fullmatch(lines[0]):
        lines = lines[1:]
    for pattern in (NUMBER_FIRST, SYNSET, NUMBER_FIRST, NUMBER_LAST):
        groups = [match.groups() for line in lines if (match := pattern.fullmatch(line))]
        if len(groups) == len(lines):
            pairs = groups if pattern is NUMBER_FIRST else [pair[::-1] for pair in groups]
            lines = [name for name, in groups] if pattern is SYNSET else _by_number(pairs) or lines
    return [match[2] if (match := QUOTED.fullmatch(line)) else line for line in lines]


def read_superclass_file(path, num_classes):
    """A YAML file of `label: [labels]`, numbers from 0; labels left out stay alone. Returns (C,C) bool.

    Raises UserError with the line. YAML's other integers, such as 2_0, 010 (which is 8) and 1:30 (which is 90), are
    refused. So is a label that is stated twice, since YAML would take the last.
    """
    try:
        content = yaml.compose(Path(path).read_text('utf-8-sig'), yaml.SafeLoader)
    except Exception as error:  # tags and nesting make PyYAML raise errors of many kinds
        raise UserError(f'{path} cannot be read as YAML: {type(error).__name__} {words_of(error)}') from error
    if not isinstance(content, yaml.MappingNode):
        raise UserError(f'{path}: expected lines "label: [labels]"')
    groups, lines = {}, {}
    for name, value in content.value:
        label, *group = [_label(path, node, num_classes)
                         for node in (name, *(value.value if isinstance(value, yaml.SequenceNode) else [value]))]
        line = name.start_mark.line + 1
        if label in groups:
            raise UserError(f'{path}, lines {lines[label]} and {line} both state the superclass of {label}')
        groups[label], lines[label] = group, line
    return superclasses.membership(groups, num_classes)


def _label(path, node, num_classes):
    """The class that a node of YAML's tree names."""
    is_plain = isinstance(node, yaml.ScalarNode) and node.tag == 'tag:yaml.org,2002:int' and not node.style
    if not (is_plain and re.fullmatch('0|[1-9][0-9]{0,8}', node.value) and int(node.value) < num_classes):
        text = node.value if isinstance(node, yaml.ScalarNode) else f'a {node.id}'
        raise UserError(f'{path}, line {node.start_mark.line + 1}: {text[:200]!r} is not a class, they are 0 to '
                        f'{num_classes - 1}')
    return int(node.value)
