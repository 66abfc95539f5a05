"""Weights under a network's names: prefixes removed, heads recognised, and every weight that is not used named."""
import re
from collections import Counter

import torch
from torch import nn

from wsol.backbones.weight_files import AVERAGED, LOG
from wsol.errors import UserError

WRAPPERS = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_forward_module')  # of torch, Lightning
OLD_DENSENET = re.compile(r'(\.denselayer\d+\.(?:norm|conv))\.(\d\.)')  # torchvision's files have names of before 2018
COUNTER = 'num_batches_tracked'  # it has no effect on what a network computes
AUXILIARY = ('aux1', 'aux2', 'AuxLogits')  # heads of GoogLeNet and Inception, which are used in training only
REMEDY = 'load the weights into your network in Python, and explain it by wsol.from_module'
RESNETS = {(2, 2, 2, 2): ('resnet18', None), (3, 4, 6, 3): ('resnet34', 'resnet50'), (3, 4, 23, 3): (None, 'resnet101'),
           (3, 8, 36, 3): (None, 'resnet152')}  # blocks of each layer -> without, with bottlenecks
SHOWN = 4  # names in a message


def named(names):
    """Names for a message: the first few, and how many more."""
    names = list(names)
    return ', '.join(names[:SHOWN]) + (f' and {len(names) - SHOWN} more' if len(names) > SHOWN else '')


def under_names(path, state, expected):
    """(the weights that stand under the network's names, those beside the network). Raises UserError.

    state: {name: tensor} of the file at `path`. Wrappers such as DataParallel, torch.compile and Lightning's modules
    put a prefix before the network's names. The prefix taken is the one with the most expected names, if it has half of
    them or more. Batch counts that older files lack are those of a new network.
    """
    usual = any('.module.' in name for name in expected)  # otherwise '.module.' comes from DataParallel around a part
    wrappers = WRAPPERS if usual else (*WRAPPERS, 'module')
    state = {'.'.join(part for part in OLD_DENSENET.sub(r'\1\2', name).split('.') if part not in wrappers): value
             for name, value in state.items()}
    counts = Counter('.'.join([*parts[:start], '']) for parts in (name.split('.') for name in state)
                     for start in range(len(parts)) if '.'.join(parts[start:]) in expected)
    most = max([*counts.values(), len(expected) // 2])
    best = [prefix for prefix, count in counts.items() if count == most]
    plain = [prefix for prefix in best if not AVERAGED.search(prefix)] or best or ['']
    if len(plain) > 1 and '' not in plain:
        keys = ' or weights_key='.join(prefix[:-1] for prefix in plain)
        raise UserError(f'{path} holds several networks; choose one: weights_key={keys}')
    prefix = '' if '' in plain else plain[0]
    outside = {name: value for name, value in state.items() if not name.startswith(prefix)}
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    untracked = (name for name in expected if name.endswith(COUNTER) and name not in inside)
    return inside | {name: expected[name] for name in untracked}, outside


def check_fit(path, state, expected, remedy='', whole=None):
    """Raise UserError unless a state dict has the names and shapes that are expected, and finite values.

    whole: the state dict of the file, if `state` is a part of it.
    """
    problems = [[f'{name} is missing' for name in expected if name not in state],
                [f'{name} is not a part of the network' for name in state if name not in expected],
                [f'{name} is {_form(state[name])}, the network has {_form(value)}' for name, value in expected.items()
                 if name in state and _form(state[name]) != _form(value)]]
    if any(problems):
        shown = sum((kind[:SHOWN // 2] for kind in problems), [])
        more, alike = sum(map(len, problems)) - len(shown), _resembling(whole or state)
        raise UserError(f'{path} does not fit the network: {"; ".join(shown)}' + f'; and {more} more' * (more > 0)
                        + f'. Its weights look like those of {alike}' * bool(alike) + remedy)
    broken = [name for name, value in state.items() if not value.to(expected[name].dtype).isfinite().all()]
    if broken:
        raise UserError(f'{path} holds a network that has diverged: {broken[0]} is not finite, NaN or infinite '
                        f'({len(broken)} such weights); take an earlier checkpoint')


def _form(value):
    """The shape of a weight, and whether it is a whole number, as quantised weights are."""
    return f'{tuple(value.shape)}{"" if value.is_floating_point() else " of integers"}'


def _resembling(state):
    """The ResNet of torchvision whose blocks a state dict has; None if there is none."""
    blocks = [sum(name.startswith(f'layer{layer}.') and name.endswith('.bn1.weight') for name in state)
              for layer in range(1, 5)]
    plain, bottleneck = RESNETS.get(tuple(blocks), (None, None))
    usual = state.get('layer1.0.conv1.weight', torch.empty(0)).shape[:1] == (64,)
    return (bottleneck if 'layer1.0.conv3.weight' in state else plain) if usual else None


def say_left_out(path, names, reason):
    """Say which weights of a file are not used, and why."""
    names = [name for name in names if not name.endswith(COUNTER)]
    if names:
        LOG.warning(f'{path}: {named(names)}: left out, {reason}')


def load_backbone(network, weights, classifiers):
    """Load Weights into a network whose classifier is not used. All other weights must fit; a line names unused ones.

    classifiers: the modules that depend on the number of classes, by the beginnings of their names. Raises UserError.
    """
    path, complete, children = weights.path, network.state_dict(), dict(network.named_children())
    heads = tuple(f'{name}.' for name in ([classifiers] if isinstance(classifiers, str) else classifiers))
    expected = {name: value for name, value in complete.items() if not name.startswith(heads)}
    state, outside = under_names(path, weights.state, expected)
    linear = {_top(name) for name, value in state.items() if value.ndim == 2} - {
        _top(name) for name, value in state.items() if value.ndim > 2} - children.keys()  # heads of other names
    left_out = [name for name in state if name not in expected and (name.startswith(heads) or _top(name) in linear)]
    state = {name: value for name, value in state.items() if name not in left_out}
    check_fit(path, state, expected)
    say_left_out(path, [*left_out, *outside], 'since only the backbone is taken')
    complete.update(state)  # this dict keeps the version numbers of the network's modules
    network.load_state_dict(complete)


def load_classifier(network, weights, slot, root):
    """Load Weights into a classifier, strictly. Their last layer may have another number of classes, or another name.

    slot: the name of the network's last layer. root: the outermost module around it that may have been replaced.
    Dropout, Flatten and the like have no weights and do nothing in evaluation, so that a linear layer which stands
    alone is the classifier, whatever its name. Raises UserError for every other head.
    """
    path, expected = weights.path, network.state_dict()
    body = {name for name in expected if not _is_in(name, slot)}
    state, outside = under_names(path, weights.state, expected)
    children = {name for name, _ in network.named_children()} - {root}
    check_fit(path, {name: value for name, value in state.items()
                     if (name in expected or _top(name) in children) and not _is_in(name, root)},
              {name: value for name, value in expected.items() if not _is_in(name, root)}, whole=state)
    head = {name: value for name, value in state.items() if name not in body and _top(name) not in AUXILIARY}
    if not any(map(_is_matrix, head.values())):  # the classifier stands beside a backbone that has a prefix
        head, outside = head | outside, {}
    layer = _linear_layer(path, head, slot)
    head_names = {f'{layer}.weight', f'{layer}.bias'} & head.keys()
    left_out = {name: value for name, value in (state | head | outside).items() if name not in body | head_names}
    _check_left_out(path, layer, head, left_out)
    missing = [name for name in body if name not in state]
    parts = slot.split('.')
    places = ['.'.join(parts[:count]) for count in range(len(parts), root.count('.'), -1)]  # outwards
    place = next((place for place in places if all(_is_in(name, place) for name in missing)), slot)
    linear = _put_linear(path, network, slot, place, head[f'{layer}.weight'], f'{layer}.bias' in head)
    complete = network.state_dict()
    state = {name: value for name, value in state.items() if name in body and name in complete}
    state |= {f'{linear}.{name.rpartition(".")[2]}': head[name] for name in head_names}
    state[f'{linear}.weight'] = state[f'{linear}.weight'].flatten(1)  # of a 1x1 convolution
    check_fit(path, state, complete)
    if layer != slot or len(head_names) < 2:
        LOG.warning(f'{path}: {layer} is taken as the classifier, a linear layer'
                    + ' without bias' * (len(head_names) < 2) + '; what else its head may compute has no weights, and '
                    'is taken to do nothing in evaluation, as Dropout')
    say_left_out(path, left_out, 'since the classifier does not need them')
    complete.update(state)
    network.load_state_dict(complete)


def _top(name):
    return name.partition('.')[0]


def _is_in(name, module):
    return name.startswith(f'{module}.')


def _is_matrix(value):
    """Whether a weight is that of a linear layer or of a 1x1 convolution."""
    return value.is_floating_point() and (value.ndim == 2 or value.ndim == 4 and value.shape[2:] == (1, 1))


def _linear_layer(path, head, slot):
    """The name of the one linear layer among the weights of a head. Raises UserError if there is none or more."""
    matrices = [name for name, value in head.items() if _is_matrix(value)]
    if not matrices:
        raise UserError(f'{path} holds no classifier: no weight {slot}.weight, and no linear layer of another name')
    layer = matrices[0].removesuffix('.weight')
    parts = [name for name in head if _top(name) == _top(layer)]
    if len(matrices) > 1 or not {*parts} <= {f'{layer}.weight', f'{layer}.bias'}:
        names = [name for name in head if name in {*matrices, *parts} and not name.endswith(COUNTER)]
        raise UserError(f'{path}: the classifier is not one linear layer, it has {named(names)}; {REMEDY}')
    return layer


def _check_left_out(path, layer, head, left_out):
    """Raise UserError if weights beside the classifier may belong to it: another linear layer, a norm, a scale."""
    classes, features = head[f'{layer}.weight'].shape[:2]
    for name, value in left_out.items():
        is_copy = AVERAGED.search(_top(name)) or _top(name) in AUXILIARY
        may_follow = _is_matrix(value) and value.shape[1] in (classes, features)
        is_norm = value.is_floating_point() and value.shape == (features,)
        is_scale = value.is_floating_point() and value.numel() == 1 and f'{layer}.bias' not in head
        if not is_copy and (may_follow or is_norm or is_scale):
            raise UserError(f'{path}: it is not clear whether {name} belongs to the classifier, beside {layer}; '
                            f'{REMEDY}, or choose the names of the classifier by weights_key=PREFIX')


def _put_linear(path, network, slot, place, weight, has_bias):
    """Give a network a last layer for these weights, in place of its module `place`. Returns the layer's name."""
    inputs = next(value for name, value in network.state_dict().items() if _is_in(name, place))
    width = inputs.shape[inputs.ndim > 1]
    if inputs.ndim > 2 or width != weight.shape[1]:
        gives = f'{width} features' if inputs.ndim < 3 else 'a map'
        raise UserError(f'{path}: the classifier takes {weight.shape[1]} features, and the network gives {gives}; '
                        + REMEDY)
    linear = nn.Linear(weight.shape[1], len(weight), bias=has_bias)
    parent, _, leaf = place.rpartition('.')
    setattr(network.get_submodule(parent), leaf, linear if place == slot else nn.Sequential(nn.Flatten(1), linear))
    return slot if place == slot else f'{place}.1'
