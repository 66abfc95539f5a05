"""Weights from files: read without executing anything, and loaded into a network whose classifier may differ.

A file of torch.save is checked before it is read. A zip is refused if it would unpack to more bytes than it has, or if
its content does not match its checksums. This project's checkpoints end in SEAL and the SHA-256 of everything before
it; they are refused if a single bit has changed.
"""
import hashlib
import zipfile
from pathlib import Path

import torch

from wsol.errors import UserError

SEAL = b'sha256 of the above: '  # 64 hexadecimal digits follow; readers of zips ignore what is after the zip's end
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
    """Raise ValueError if an open file of torch.save has changed since it was written.

    Legacy files, which are not zips, cannot be checked.
    """
    size, sealed = file.seek(0, 2), len(SEAL) + 64
    file.seek(max(0, size - sealed))
    seal = file.read()
    if seal.startswith(SEAL):
        if digest(file, size - sealed) != seal[len(SEAL):].decode(errors='replace'):
            raise ValueError('it is damaged: its content and its SHA-256 differ')
        return
    file.seek(0)
    if file.read(2) == b'PK':
        if seal[-22:-18] != b'PK\5\6':  # the mark of a zip's end; if it is missing, a seal was damaged
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

    Most training scripts write a dict that has the state dict under `state_dict` or `model`. DataParallel's prefix
    `module.` is removed.
    """
    content = _load_safetensors(path) if Path(path).suffix == '.safetensors' else load(path)
    for key in ('state_dict', 'model'):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(name, str) and isinstance(value, torch.Tensor)
                                                for name, value in content.items()):
        raise UserError(f'{path} holds no state dict, that is, names and tensors')
    return {name.removeprefix('module.'): value for name, value in content.items()}


def load_backbone(network, path, classifiers):
    """Load the state dict of a file into a network. All weights must fit, except those of the classifiers.

    classifiers: how the names of the modules begin that depend on the number of classes. Raises UserError.
    """
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    state, expected = read_state_dict(path), network.state_dict()
    fitting = {name for name in expected if name in state and state[name].shape == expected[name].shape}
    problems = (('is missing', [name for name in expected if name not in state]),
                ('is not a part of the network', [name for name in state if name not in expected]),
                ('has another shape', [name for name in expected if name in state and name not in fitting]))
    for problem, names in problems:
        names = [name for name in names if not (classifiers and name.startswith(classifiers))]
        if names:
            raise UserError(f'{path} does not fit the network: {names[0]} {problem} ({len(names)} such weights)')
    expected.update((name, state[name]) for name in fitting)  # this dict has the versions of the network's modules
    network.load_state_dict(expected)
