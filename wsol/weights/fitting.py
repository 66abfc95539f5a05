"""Weights under a network's names: prefixes removed, heads recognised, and every weight that is not used named."""
import re
from collections import Counter

import torch
from torch import nn

from wsol.errors import UserError
from wsol.weights.state_dicts import AVERAGED, LOG, WRAPPERS, Weights

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of each colour, in 0..1
OLD_DENSENET = re.compile(r'(\.denselayer\d+\.(?:norm|conv))\.(\d\.)')  # torchvision's files have names of before 2018
COUNTER = 'num_batches_tracked', 'n_averaged', 'total_ops', 'total_params'  # no network computes with these
STATISTICS = re.compile(r'((?:.*[._])?)(mean|std)')  # of colours, in networks that normalise their images themselves
AUXILIARY = ('aux1', 'aux2', 'AuxLogits')  # heads of GoogLeNet and Inception, which are used in training only
OTHER_FORMS = (  # (the name of a weight or of the file, what it shows and the remedy)
    (r'-\d{5}-of-(?!00001)\d{5}', 'it is one of several files of a network: put the weights of all into one file'),
    (r'zero_point$|\.SCB$|activation_post_process|fake_quant|of integers, the network has \([\d, ]*\)$',
     'it is quantised: take the weights that it was made from'),
    (r'weight_(g|v|orig)$|\.parametrizations\.', 'a weight is stored in parts: call remove_weight_norm, '
     'remove_parametrizations or prune.remove before you save'),
    (r'\blora_', 'it has an adapter: merge it before you save (merge_and_unload)'))
REMEDY = 'load the weights into your network in Python, and explain it by wsol.from_module'
SHOWN = 4  # names in a message


def named(names):
    """Names for a message: the first few, and how many more."""
    names = list(names)
    return ', '.join(names[:SHOWN]) + (f' and {len(names) - SHOWN} more' if len(names) > SHOWN else '')


def under_names(path, state, expected):
    """(the weights that stand under the network's names, those beside the network). Raises UserError.

    state: {name: tensor} of the file at `path`. Wrappers such as DataParallel, torch.compile and Lightning's modules
    put a prefix before the network's names. The prefix taken is the one with the most expected names, if it has half of
    them or more. A line names other copies of the network, which are left out. Batch counts that older files lack, or
    that are stored as other numbers, are those of a new network.
    """
    usual = any('.module.' in name for name in expected)  # otherwise '.module.' comes from DataParallel around a part
    wrappers = {*WRAPPERS} - ({'module'} if usual else set())
    state = {'.'.join(part for part in OLD_DENSENET.sub(r'\1\2', name).split('.') if part not in wrappers): value
             for name, value in state.items()}
    state = {name: value for name, value in state.items() if name in expected or not name.endswith(COUNTER[1:])}
    counts = Counter('.'.join([*parts[:start], '']) for parts in (name.split('.') for name in state)
                     for start in range(len(parts)) if '.'.join(parts[start:]) in expected)
    most = max([*counts.values(), len(expected) // 2])
    best = [prefix for prefix, count in counts.items() if count == most]
    plain = [prefix for prefix in best if not AVERAGED.search(prefix)] or best or ['']
    if len(plain) > 1 and '' not in plain:
        keys = ' or weights_key='.join(prefix[:-1] for prefix in plain)
        raise UserError(f'{path} holds several networks; choose one: weights_key={keys}')
    prefix = '' if '' in plain else plain[0]
    copies = tuple(other for other, count in counts.items() if other not in ('', prefix) and count > len(expected) // 2)
    if copies:
        LOG.warning(f'{path}: the weights under {prefix[:-1] or "the outermost names"} are taken, not those of '
                    + ', '.join(f'weights_key={copy[:-1]}' for copy in copies))
        state = {name: value for name, value in state.items() if not name.startswith(copies)}
    outside = {name: value for name, value in state.items() if not name.startswith(prefix)}
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    untracked = (name for name, value in expected.items() if name.endswith(COUNTER)
                 and (name not in inside or _form(inside[name]) != _form(value)))
    return inside | {name: expected[name] for name in untracked}, outside


def check_fit(path, state, expected, remedy='; check that the architecture is the same'):
    """Raise UserError unless a state dict has the names and shapes that are expected, and finite values."""
    problems = [[f'{name} is missing' for name in expected if name not in state],
                [f'{name} is not a part of the network' for name in state if name not in expected],
                [f'{name} is {_form(state[name])}, the network has {_form(value)}' for name, value in expected.items()
                 if name in state and _form(state[name]) != _form(value)]]
    if any(problems):
        shown = sum((kind[:SHOWN // 2] for kind in problems), [])
        more = sum(map(len, problems)) - len(shown)
        channels = next((state[name].shape[1] for name, value in expected.items() if name in state and value.ndim == 4
                         and state[name].ndim == 4 and value.shape[1] == 3 != state[name].shape[1]), None)
        raise UserError(f'{path} does not fit the network: {"; ".join(shown)}' + f'; and {more} more' * (more > 0)
                        + (_other_form(path, [*shown, *state.keys() - expected], remedy) if channels is None else
                           f'; its images have {channels} channel' + 's' * (channels > 1)
                           + f', and photos have 3: {REMEDY}'))
    broken = [name for name, value in state.items() if not value.to(expected[name].dtype).isfinite().all()]
    if broken:
        raise UserError(f'{path} holds a network that has diverged: {broken[0]} is not finite, NaN or infinite '
                        f'({len(broken)} such weights); take an earlier checkpoint')


def _other_form(path, names, remedy):
    """The remedy for weights that are stored in another form; another remedy if nothing shows such a form."""
    text = '\n'.join([str(path), *names])
    return next((f'; {why}' for pattern, why in OTHER_FORMS if re.search(pattern, text, re.M)), remedy)


def _form(value):
    """The shape of a weight, and whether it is a whole number, as quantised weights are."""
    return f'{tuple(value.shape)}{"" if value.is_floating_point() else " of integers"}'


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


def load_classifier(network, weights, slot, root, normalisation=IMAGENET):
    """Load Weights into a classifier, strictly. Their last layer may have another number of classes, or another name.

    slot: the name of the network's last layer. root: the outermost module around it that may have been replaced.
    normalisation: (mean, deviation) per colour of its images. Dropout, Flatten and the like have no weights and do
    nothing in evaluation, so that a linear layer which stands alone is the classifier, whatever its name. Raises
    UserError for every other head.
    """
    path, complete = weights.path, network.state_dict()
    state, outside = under_names(path, weights.state, complete)
    place = slot if all(name in state for name in complete if not _is_in(name, slot)) else root  # what was replaced
    body = {name: value for name, value in complete.items() if not _is_in(name, place)}
    children = {name for name, _ in network.named_children()} - {root}
    known = {name: value for name, value in state.items()
             if name in body or _top(name) in children and not _is_in(name, place)}
    check_fit(path, known, body)
    beside = {name: value for name, value in state.items() if name not in body}
    rest = _without_statistics(path, beside | outside | beside, normalisation)  # of equal names those beside the body
    layer = _linear_layer(path, rest, outside, slot)
    weight, bias = rest.pop(f'{layer}.weight').flatten(1), rest.pop(f'{layer}.bias', None)  # flat: of a 1x1 convolution
    linear = _put_linear(path, network, slot, place, weight, bias is not None)
    head = {f'{linear}.weight': weight} | ({} if bias is None else {f'{linear}.bias': bias})
    load_backbone(network, Weights(path, known | head), ())  # nothing is left out: the names are the network's
    if layer != slot or bias is None:
        LOG.warning(f'{path}: {layer} is taken as the classifier, a linear layer' + ' without bias' * (bias is None)
                    + '; what else its head may compute has no weights, and is taken to do nothing in evaluation, as '
                    'Dropout')
    say_left_out(path, [*rest, *(name for name in outside if name in beside)],  # equal names
                 'since the classifier does not need them')


def _top(name):
    return name.partition('.')[0]


def _is_in(name, module):
    return name.startswith(f'{module}.')


def _is_matrix(value):
    """Whether a weight is that of a linear layer or of a 1x1 convolution."""
    is_matrix = value.ndim == 2 or value.ndim == 4 and value.shape[2:] == (1, 1)
    return is_matrix and value.is_floating_point() and value.numel() > 0


def _without_statistics(path, rest, normalisation):
    """Weights beside a network's body without the mean and deviation of images, where these are its images' own anyway.
    Raises UserError where a network has normalised its images in another way."""
    found = {name: match[2] for name, value in rest.items() if (match := STATISTICS.fullmatch(name))
             and value.numel() in (1, 3) and {f'{match[1]}mean', f'{match[1]}std'} <= rest.keys()}
    for name, kind in found.items():
        stated, usual = rest[name].double().flatten(), torch.tensor(normalisation[kind == 'std']).double()
        if min((stated - usual * scale).abs().max() / scale for scale in (1, 255)) > 2e-3:
            raise UserError(f'{path}: the network normalises its images itself, by {name} = '
                            f'{[round(number, 3) for number in stated.tolist()]}, which is not how photos go in here; '
                            f'{REMEDY}')
    say_left_out(path, found, 'since photos are normalised so already')
    return {name: value for name, value in rest.items() if name not in found}


def _linear_layer(path, rest, outside, slot):
    """The name of the one linear layer among the weights beside a network's body. Raises UserError if there is none, or
    if others may belong to the classifier: in its module, another linear layer, a norm, a scale.

    outside: those of them that have not the prefix of the body; the classifier is there if it is nowhere else.
    """
    rest = {name: value for name, value in rest.items() if _top(name) not in AUXILIARY}
    matrices = [name for name in rest if _is_matrix(rest[name])]
    near = [name for name in matrices if name not in outside] or matrices
    if not near:
        raise UserError(f'{path} holds no classifier: no weight {slot}.weight, and no linear layer of another name'
                        + _other_form(path, rest, '; train one on it, from pretrained=FILE'))
    layer = near[0].removesuffix('.weight')
    own = f'{layer}.weight', f'{layer}.bias'
    classes, features = rest[near[0]].shape[:2]
    without_bias = own[1] not in rest

    def may_belong(name, value):
        return (_top(name) == _top(layer) and (name in outside) == (near[0] in outside) or name in near
                or _is_matrix(value) and value.shape[1] in (classes, features) or value.is_floating_point()
                and (value.shape == (features,) or without_bias and value.numel() == 1))
    others = [name for name, value in rest.items()
              if name not in own and not AVERAGED.search(_top(name)) and may_belong(name, value)]
    if others:
        raise UserError(f'{path}: the classifier is not one linear layer, it may have '
                        f'{named(name for name in rest if name in {*own, *others} and not name.endswith(COUNTER))}'
                        + _other_form(path, others, f'; {REMEDY}, or choose the names of the classifier by '
                                      'weights_key=PREFIX'))
    return layer


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
