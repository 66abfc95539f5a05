"""Weights from files: read without executing anything in them, and put into a network whose classifier may differ.

A file of torch.save is checked before it is read. A zip is refused if it would unpack to more bytes than it has, or if
its content does not match its checksums. A file that ends in SEAL and the SHA-256 of everything before it, as this
project's checkpoints do, is refused if a single bit has changed.
"""
import hashlib
import zipfile
from pathlib import Path

import torch

from wsol.errors import UserError

SEAL = b'sha256 of the above: '  # then 64 hexadecimal digits; readers of zips ignore what follows a zip's end
CHUNK = 1 << 20  # bytes


def digest(file, size):
    """The SHA-256 of the first `size` bytes of an open file, in hexadecimal, read in pieces."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while size > 0 and (chunk := file.read(min(size, CHUNK))):
        sha256.update(chunk)
        size -= len(chunk)
    return sha256.hexdigest()


def check_whole(file):
    """Raise ValueError unless an open file of torch.save is as it was written. Legacy files, which are no zip, hold
    nothing to check."""
    size, sealed = file.seek(0, 2), len(SEAL) + 64
    file.seek(max(0, size - sealed))
    seal = file.read()
    if seal.startswith(SEAL):
        if digest(file, size - sealed) != seal[len(SEAL):].decode(errors='replace'):
            raise ValueError('it is damaged: its content and its SHA-256 differ')
        return
    file.seek(0)
    if file.read(2) == b'PK':
        if seal[-22:-18] != b'PK\5\6':  # the mark of a zip's end: without it, a seal has been damaged
            raise ValueError('it is damaged: its end is not the end of a zip')
        with zipfile.ZipFile(file) as archive:
            if sum(info.file_size for info in archive.infolist()) > size:
                raise ValueError('it would take more memory than it has bytes')
            if archive.testzip() is not None:
                raise ValueError('it is damaged: its content and its sums differ')


def load(path):
    """The content of a file of torch.save, tensors on the CPU. Nothing in the file is executed. Raises UserError."""
    try:
        with open(path, 'rb') as file:
            check_whole(file)
            file.seek(0)
            return torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # torch and zipfile raise many kinds; all mean that this is not such a file
        reason = str(error) if type(error) is ValueError else getattr(error, 'strerror', None) or (
            f'{type(error).__name__}: it is damaged, or no file of torch.save, or holds more than weights and plain '
            'values')
        raise UserError(f'{path} cannot be read as weights ({reason})') from error


def _load_safetensors(path):
    try:
        from safetensors.torch import load_file  # comes with timm
    except ImportError as error:
        raise UserError(f'{path} needs the package safetensors: pip install safetensors') from error
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises many kinds
        raise UserError(f'{path} cannot be read as weights ({type(error).__name__}): it is damaged, or no file of '
                        'safetensors') from error


def read_state_dict(path):
    """The state dict in a file of torch.save or of safetensors, tensors on the CPU. Raises UserError.

    A dict with `state_dict` or `model` inside is what most training scripts write; that part of it is taken. The prefix
    `module.` of DataParallel is removed.
    """
    content = _load_safetensors(path) if Path(path).suffix == '.safetensors' else load(path)
    for key in ('state_dict', 'model'):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(name, str) and isinstance(value, torch.Tensor)
                                                for name, value in content.items()):
        raise UserError(f'{path} holds no state dict: names and tensors')
    return {name.removeprefix('module.'): value for name, value in content.items()}


def load_backbone(network, path, classifiers):
    """Put the state dict of a file into a network. All weights have to fit, except those of its classifiers.

    classifiers: the modules that depend on the number of classes, by the beginnings of their names. Raises UserError.
    """
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    state, expected = read_state_dict(path), network.state_dict()
    fitting = {name for name in expected if name in state and state[name].shape == expected[name].shape}
    problems = (('lacks', [name for name in expected if name not in state]),
                ('has, and the network has not,', [name for name in state if name not in expected]),
                ('has another shape of', [name for name in expected if name in state and name not in fitting]))
    for problem, names in problems:
        names = [name for name in names if not (classifiers and name.startswith(classifiers))]
        if names:
            raise UserError(f'{path} does not fit the network: it {problem} {names[0]} ({len(names)} such weights)')
    expected.update((name, state[name]) for name in fitting)  # the network's own dict knows its modules' versions
    network.load_state_dict(expected)
