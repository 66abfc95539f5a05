"""Files of weights, as people store them: read without executing anything. A file becomes names and tensors.

A file is known by its content, whatever its suffix: torch.save (zip or legacy) or safetensors; anything else is refused
by name. A zip is refused if it would unpack to more bytes than it has, or if its content does not match its checksums.
This project's checkpoints end in SEAL and the SHA-256 of everything before it; they are refused if a single bit has
changed.
"""
import _compat_pickle
import hashlib
import itertools
import pickletools
import re
import warnings
import zipfile

import numpy as np
import torch

from wsol.errors import UserError

SEAL = b'sha256 of the above: '  # 64 hexadecimal digits follow; readers of zips ignore what is after the zip's end


# --- which kind of file -----------------------------------------------------------------------------------

STATE_DICT = 'save the state dict where the network was made: torch.save(model.state_dict(), FILE)'
ONLY_TORCH = f'only weights of PyTorch can be read: {STATE_DICT}'
NOT_WEIGHTS = (  # (how a file begins, what it is and the remedy)
    (rb'$', 'it is damaged: it is empty'),
    (rb'\s*<(!doctype|html|head|\?xml)', 'it is a web page; its download needs a login, or has another address'),
    (rb'version https://git-lfs', 'it is a pointer of Git LFS in place of the file: run git lfs pull'),
    (rb'\x89HDF', f'it is a file of HDF5, as Keras writes; {ONLY_TORCH}'),
    (rb'\x08[\x01-\x14][\x12\x1a"2:B]', f'it is a network in ONNX; {ONLY_TORCH}'),
    (rb'GGUF|.{4}TFL3', f'it is a network of another framework; {ONLY_TORCH}'),
    (rb'\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!|.{257}ustar', 'it is an archive: unpack it first'),
    (rb'\s*[{\[]', 'it is text (JSON), as the index of a model in several files: put all weights into one file'),
    (rb'\x80[\2-\5](?!\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19)', 'it is a plain pickle, which torch.save has not written: '
     'open it in Python if you trust it, and write the state dict by torch.save'))
NOT_WEIGHTS_ZIPS = (  # (the name of a member, what the zip is)
    (r'(^|/)(constants\.pkl$|code/)', f'it is a program of TorchScript: {STATE_DICT}, or of torch.jit.load(FILE)'),
    (r'(^|/)(archive_format|serialized_exported_program\.json)$', f'it is a program of torch.export: {STATE_DICT}'),
    (r'\.weights\.h5$', f'it is a network of Keras; {ONLY_TORCH}'),
    (r'\.npy$', 'it holds arrays of NumPy: make tensors of them by torch.from_numpy, then write them by torch.save'))
RUNS = re.compile(r'(os|posix|nt|sys|subprocess|shutil|runpy|pty|socket)\.|'
                  r'builtins\.(eval|exec|compile|open|__import__)$')


def check_whole(file):
    """Raise ValueError if an open file of torch.save has changed since it was written.

    Legacy files, which are not zips, cannot be checked.
    """
    size, sealed = file.seek(0, 2), len(SEAL) + 64
    file.seek(max(0, size - sealed))
    seal = file.read()
    if seal.startswith(SEAL):
        file.seek(0)
        if hashlib.sha256(file.read(size - sealed)).hexdigest().encode() != seal[len(SEAL):]:
            raise ValueError('it is damaged: its content and its SHA-256 differ')
        return
    file.seek(0)
    if file.read(2) == b'PK':
        if seal[-22:-18] != b'PK\5\6':  # the mark of a zip's end; if it is missing, a seal was damaged
            raise ValueError('it is damaged: its end is not the end of a zip')
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            for pattern, problem in NOT_WEIGHTS_ZIPS:
                if any(re.search(pattern, name) for name in names):
                    raise ValueError(problem)
            if sum(info.file_size for info in archive.infolist()) > size:
                raise ValueError('it would take more memory than it has bytes')
            if archive.testzip() is not None:
                raise ValueError('it is damaged: its content and its sums differ')


# --- what is in it ------------------------------------------------------------------------------------------


class _Kind(type):
    """The type of Foreign. torch's reader fills nothing but a dict, and compares types by ==."""
    def __eq__(cls, kind):
        return cls is kind or kind is dict
    __hash__ = type.__hash__


class Foreign(dict, metaclass=_Kind):
    """A stand-in for an object of an unknown class. It keeps the items of a dict, and executes nothing."""
    def __init__(self, *arguments, **_):
        super().__init__()
        self.arguments = arguments

    def __setstate__(self, state):
        self.state = state  # the attributes; only those of numpy.dtype are read


def _number(kind, content=b''):
    """A NumPy number as a Python number; None if it is not a number. kind: the Foreign of its numpy.dtype."""
    code = f'{kind.state[1]}{kind.arguments[0]}'.replace('|', '<')  # the order of the bytes, the type and its size
    return np.frombuffer(content, code)[0].item() if re.fullmatch('[<>=][bfiu][1248]', code) else None


HARMLESS = {'numpy.core.multiarray.scalar': _number, 'numpy._core.multiarray.scalar': _number,
            'collections.deque': lambda *_: []}


def _foreign_names(file):
    """The dotted names of all classes and functions that a file of torch.save asks for. Raises ValueError."""
    names, pickles = set(), [file] * 4  # the legacy format: a magic number, the version, the system, the content
    if zipfile.is_zipfile(file):
        archive = zipfile.ZipFile(file)
        pickles = [archive.open(name) for name in archive.namelist() if name.endswith('data.pkl')]
        if not pickles:
            raise ValueError('it is an archive: unpack it first')
    file.seek(0)
    for operation, value, _ in itertools.chain.from_iterable(map(pickletools.genops, pickles)):
        if operation.name == 'PROTO' and (value or 0) > 2:
            raise ValueError(f'it is written with pickle_protocol={value}: leave this option of torch.save out')
        if operation.name == 'GLOBAL':
            module, _, name = str(value).partition(' ')
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))  # names of Python 2
            names.add(f'{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}')
    asked = next(filter(RUNS.match, sorted(names)), None)
    if asked:
        raise ValueError(f'it asks to run {asked}; nothing was run, and you should not trust this file')
    return names


def _load(file):
    """The content of an open file of torch.save; a Foreign for each object of an unknown class."""
    check_whole(file)
    stand_ins = [(HARMLESS.get(name) or _Kind(name, (Foreign,), {}), name) for name in _foreign_names(file)]
    file.seek(0)
    # names that torch allows come first, before these
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch's of quantised weights, which are refused
        return torch.load(file, map_location='cpu', weights_only=True)


def load(path):
    """The content of a file of torch.save or safetensors, tensors on the CPU. Nothing in the file is executed.

    Numbers of NumPy become Python's; an object of an unknown class becomes a Foreign. Raises UserError.
    """
    try:
        with open(path, 'rb') as file:
            start, size = file.read(512), file.seek(0, 2)
            if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') <= size - 8:  # how long the header in JSON is
                from safetensors.torch import load_file  # comes with timm
                return load_file(path)
            problem = next((why for begin, why in NOT_WEIGHTS if re.match(begin, start, re.DOTALL | re.I)), None)
            if problem:
                raise ValueError(problem)
            return _load(file)
    except ImportError as error:
        raise UserError(f'{path} needs the package safetensors: pip install safetensors') from error
    except Exception as error:  # torch, zipfile and safetensors raise many kinds
        reason = str(error) if str(error).startswith('it ') else getattr(error, 'strerror', None) or (
            f'it holds a whole module: {STATE_DICT}' if 'persistent_load' in str(error) else
            f'{type(error).__name__}: it is damaged, or no file of torch.save or safetensors, or holds more than '
            'weights and plain values')
        raise UserError(f'{path} cannot be read as weights ({reason})') from error
