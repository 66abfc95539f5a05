"""Superclasses: groups of classes, for aggregated maps.

Source: the aggregated attribution of Kim et al., ICCV 2021; WordNet's is-a relation for ImageNet.
Result: a (C,C) bool tensor whose row c marks the classes in the superclass of c, c included.
"""
import json
from pathlib import Path

import torch

from wsol.annotations import each_once, whole_number
from wsol.errors import UserError


def membership(groups, num_classes):
    """groups: {class: classes of its superclass}; a class without a group stands alone. Returns (C,C) bool."""
    members = torch.eye(num_classes, dtype=torch.bool)
    for label, group in groups.items():
        members[label, list(group)] = True
    return members


def by_prefix(class_names):
    """Classes whose names differ only in a number at the end, such as ToyBirds' families. Returns (C,C) bool."""
    if not class_names:
        raise UserError('superclasses by name need class names, and this checkpoint has none; list the superclasses in '
                        'a superclass_file')
    stems = [name.split('.')[-1].rstrip('0123456789') for name in class_names]
    return torch.tensor([[first == second for second in stems] for first in stems])


def wordnet(folder, num_classes=1000):
    """For each ImageNet class, the classes under its nearest WordNet ancestor that has at least two.

    This is not a partition: if that ancestor of c is above that of d, then d is in c's superclass, but c is not in d's.

    folder: with wordnet.is_a.txt (lines "parent child", synset ids) and imagenet_class_index.json
    ({"0": ["n01440764", "tench"], ...}). Returns (C,C) bool.
    """
    relation, index = Path(folder) / 'wordnet.is_a.txt', Path(folder) / 'imagenet_class_index.json'
    try:
        pairs = [line.split() for line in relation.read_text('utf-8-sig').splitlines() if line.strip()]
        classes = json.loads(index.read_text('utf-8-sig'), object_pairs_hook=each_once)
        synsets = each_once([(value[0], whole_number(label)) for label, value in classes.items()])
        parents = {}
        for parent, child in pairs:
            parents.setdefault(child, []).append(parent)
        if not all(0 <= label < num_classes for label in synsets.values()):
            raise ValueError(f'classes are 0 to {num_classes - 1}')
    except OSError as error:
        raise UserError(f"ImageNet's superclasses need {relation} and {index} ({error.strerror}: {error.filename}); "
                        'or list them in a superclass_file') from error
    except (UserError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f'{relation} or {index} does not parse: {error}') from error
    below = {}  # ancestor -> classes
    for synset, label in synsets.items():
        for ancestor in _ancestors(synset, parents):
            below.setdefault(ancestor, set()).add(label)
    groups = {}
    for synset, label in synsets.items():
        shared = (below[ancestor] for ancestor in _ancestors(synset, parents) if len(below[ancestor]) > 1)
        groups[label] = next(shared, {label})
    return membership(groups, num_classes)


def _ancestors(synset, parents):
    """A synset's ancestors, the nearest first."""
    seen, queue = [], list(parents.get(synset, ()))
    while queue:
        ancestor = queue.pop(0)
        if ancestor not in seen:
            seen.append(ancestor)
            queue += parents.get(ancestor, ())
    return seen
