"""Weights of whole networks from files: a state dict put into a network, whose classifier may be another one."""
from pathlib import Path

import torch

from .errors import UserError


def read_state_dict(path):
    """The state dict in a file of torch.save or of safetensors, tensors on the CPU. Raises UserError.

    Nothing in the file is executed. A dict with `state_dict` or `model` inside is taken for what most training scripts
    write; the prefix `module.` of DataParallel is left out.
    """
    try:
        if Path(path).suffix == '.safetensors':
            from safetensors.torch import load_file  # comes with timm
            content = load_file(path)
        else:
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds; all mean that this is no file of weights
        raise UserError(f'{path} cannot be read as weights ({type(error).__name__}): it is damaged, or no state dict '
                        'of torch.save or safetensors') from error
    for key in ('state_dict', 'model'):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(name, str) and isinstance(value, torch.Tensor)
                                                for name, value in content.items()):
        raise UserError(f'{path} holds no state dict: names and tensors')
    return {name.removeprefix('module.'): value for name, value in content.items()}


def load_backbone(network, path, classifiers):
    """Put the state dict of a file into a network: all of it, strictly, but for its classifiers.

    classifiers: the names, or beginnings of names, of the modules that tell classes apart. Raises UserError.
    """
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    state, expected = read_state_dict(path), network.state_dict()

    def is_classifier(name):
        return bool(classifiers) and name.startswith(classifiers)

    missing = [name for name in expected if name not in state and not is_classifier(name)]
    surplus = [name for name in state if name not in expected and not is_classifier(name)]
    other = [name for name, value in state.items()
             if name in expected and value.shape != expected[name].shape and not is_classifier(name)]
    for names, problem in ((missing, 'lacks'), (surplus, 'has, and the network has not,'),
                           (other, 'has another shape of')):
        if names:
            raise UserError(f'{path} does not fit the network: it {problem} {names[0]} ({len(names)} such weights)')
    for name, value in state.items():
        if name in expected and value.shape == expected[name].shape:
            expected[name] = value  # into the network's own state dict, which knows the versions of its modules
    network.load_state_dict(expected)
