"""Superclasses from the user's YAML file."""
import re
from pathlib import Path

import yaml

from wsol.annotations import superclasses
from wsol.errors import UserError, words_of


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
