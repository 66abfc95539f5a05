"""The state dict of a network among what a file of weights holds: names and tensors."""
import logging
import re
from typing import NamedTuple

import torch

from wsol.errors import UserError
from wsol.weights.files import STATE_DICT, Foreign, load

PLAIN = ('state_dict', 'model_state_dict', 'model', 'net', 'network', 'weights', 'model_state', 'params', 'module', '')
AVERAGED = re.compile(r'ema|teacher|averag|momentum|swa|shadow|target', re.I)  # copies that follow the network
WRAPPERS = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_forward_module', 'module')  # in names
DEPTH = 4  # how deep state dicts are looked for in nested dicts
LOG = logging.getLogger('wsol')


class Weights(NamedTuple):
    """The state dict of a file, {name: tensor}, and where it comes from, for messages."""
    path: object
    state: dict
    beside: object = None  # the file's whole content


def _dicts(content):
    """{place: dict} of a content and of all dicts in it, each once. place: the keys that lead there."""
    if isinstance(content, (tuple, list)):  # such as (state_dict, epoch)
        content = {str(place): part for place, part in enumerate(content)}
    dicts, left, seen = {}, [((), content)], set()
    while left:
        keys, value = left.pop(0)
        if isinstance(value, dict) and id(value) not in seen and len(keys) < DEPTH:
            seen.add(id(value))
            dicts['.'.join(keys)] = value
            left += [((*keys, key), inner) for key, inner in value.items() if isinstance(key, str)]
    return dicts


def _state_dicts(content):
    """{place: state dict} of all state dicts in a content, except those of optimisers and of numbers of a metric."""
    def largest(state):
        return max((value.ndim for value in state.values() if isinstance(value, torch.Tensor)), default=0)
    states = {place: part for place, part in _dicts(content).items() if largest(part) and 'optim' not in place.lower()}
    return {place: state for place, state in states.items() if largest(state) > 1} or states


def _is_plain(value):
    """Whether a value is a tensor of real numbers that needs no more memory than the file has stored for it."""
    return (isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == 'cpu'
            and not value.is_complex() and not value.is_quantized
            and value.numel() * value.element_size() <= value.untyped_storage().nbytes())


def short(value):
    """A value as an error message shows it."""
    if isinstance(value, torch.Tensor):
        form = f'{value.device.type} ' * (value.device.type != 'cpu') + f'{value.layout} ' * (
            value.layout != torch.strided)
        return f'a {form}{value.dtype} tensor of shape {tuple(value.shape)}'
    text = repr(value)
    return f'a {type(value).__name__}, {text if len(text) < 60 else text[:57] + "..."}'


def problem_of_weights(state):
    """Why a value is not a state dict, in words; None if it is one."""
    if not isinstance(state, dict):
        return f'its state_dict is a {type(state).__name__}'
    for name, value in state.items():
        if not isinstance(name, str):
            return f'{name!r} is no name of a weight'
        if not _is_plain(value):
            return f'{name} is no weight but {short(value)}; save dense tensors of real numbers, not quantised'
    return None


def pick_state_dict(path, content, key=None):
    """The state dict {name: tensor} in the content of a file. Raises UserError if there is none, or none to prefer.

    key: where it stands, such as "state_dict_ema", or how the names of its weights begin, such as "encoder_q". By
    default the weights of the network are taken, not those of its average.
    """
    states = _state_dicts(content)
    if not states:
        raise UserError(f'{path} {_without_weights(content)}')
    asked = [place for place in states if key in (place, place.rpartition('.')[2])]
    state = states[asked[0] if asked else _preferred(path, states)]
    if key is not None and not asked:
        below = re.compile(rf'(?:(?:{"|".join(WRAPPERS)})\.)*{re.escape(key)}\.(.+)')
        state = {match[1]: value for name, value in state.items() if (match := below.fullmatch(name))}
        if not state:
            raise UserError(f'{path} has no weights under weights_key={key}; it has {", ".join(map(repr, states))}')
    state = {name: value for name, value in state.items()  # without numbers and texts among the weights
             if isinstance(value, torch.Tensor) or type(value).__name__.startswith('torch.')}
    problem = problem_of_weights(state)
    if problem:
        raise UserError(f'{path} cannot be read as weights: {problem}')
    return state


def _preferred(path, states):
    """The place of the network among state dicts. Raises UserError if several may be the one."""
    plain = [place for place in states if not AVERAGED.search(place)] or list(states)
    ranked = [place for key in PLAIN for place in plain if place.rpartition('.')[2] == key] or plain
    if len(ranked) > 1 and ranked is plain:
        raise UserError(f'{path} holds several state dicts; choose one: weights_key={" or weights_key=".join(plain)}')
    rest = [f'weights_key={place}' if place else 'the outermost names' for place in states if place != ranked[0]]
    if rest:
        LOG.warning(f'{path}: the weights under {ranked[0]} are taken, not those of {", ".join(rest)}')
    return ranked[0]


def _without_weights(content):
    """What a content without a state dict is, and the remedy."""
    dicts = _dicts(content)
    empty, keys = [part for part in dicts.values() if not part], dicts.get('', {})
    classes = [type(part).__name__ for part in empty if isinstance(part, Foreign)]
    if any(name.startswith('numpy.') for name in classes):
        return 'holds arrays of NumPy: make tensors of them by torch.from_numpy, then write them by torch.save'
    if any('optim' in str(key).lower() or key == 'param_groups' for key in keys) and not keys.keys() & {*PLAIN}:
        return 'holds the state of an optimizer and no weights: name the file of the network'
    if classes:
        return f'holds a whole object of the class {classes[0]}, whose reading would run code: {STATE_DICT}'
    if empty:
        return 'holds an empty state dict: it was written before the network had weights'
    return f'holds no state dict, that is, names and tensors: {STATE_DICT}'


def read_weights(source, key=None):
    """The Weights in a file of torch.save or safetensors, tensors on the CPU. Raises UserError.

    source: a path, or Weights, which are returned. key: as in pick_state_dict.
    """
    if isinstance(source, Weights):
        return source
    content = load(source)
    return Weights(source, pick_state_dict(source, content, key), content)
