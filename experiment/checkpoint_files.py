"""Checkpoint files: written whole, sealed and verified, the generation before them kept; read as what they should be.

An experiment has the LAST checkpoint, the PREVIOUS one, and the BEST by accuracy on val. Each ends in the SHA-256 of
all before it (wsol.pretrained), so that one changed bit is noticed; torch.load reads it like any other. What is read is
looked at in one place, here: types, shapes, and settings, by the parsers that the flags have.
"""
import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import torch

import config
from runtime import whole_files
from wsol.backbones import state_dicts as pretrained
from wsol.errors import UserError

LAST, PREVIOUS, BEST = (f'{name}_checkpoint.pth.tar' for name in ('last', 'previous', 'best'))
# an accuracy stored as a numpy number, by numpy 1 or 2, is as harmless as a float; plain weights_only refuses it
NUMPY_SCALARS = [(np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'), np._core.multiarray.scalar, np.dtype,
                 *(type(np.dtype(kind)) for kind in ('f4', 'f8', 'i4', 'i8'))]

# --- written --------------------------------------------------------------------------------------------


class _Hashed:
    """A file to write to that knows the SHA-256 of what was written, and why it could not be."""

    def __init__(self, file):
        self.file, self.sha256, self.error = file, hashlib.sha256(), None

    def write(self, data):
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self):
        self.file.flush()


def _write_sealed(path, content):
    with open(path, 'wb') as file:
        hashed = _Hashed(file)
        try:
            torch.save(content, hashed)
        except RuntimeError as error:  # what torch's writer of zips makes of an OSError
            if hashed.error is None:
                raise
            raise hashed.error from error
        file.write(pretrained.SEAL + hashed.sha256.hexdigest().encode())
    whole_files.flush_to_disk(path)
    with open(path, 'rb') as file:
        pretrained.check_whole(file)


def write(path, content, before_it_counts=lambda partial: None):
    """Write one checkpoint, whole or not at all. before_it_counts: what to do when it is written and verified, and has
    not taken its name yet."""
    def write_and_verify(partial):
        try:
            _write_sealed(partial, content)
        except ValueError as error:
            raise UserError(f'{path} was written, and reads otherwise; the disk fails. What was there stays') from error
        before_it_counts(partial)
    whole_files.write_atomically(path, write_and_verify, durable=True)


def save(folder, content, is_best=False, is_first=False):
    """Write an experiment's checkpoint; the one before it becomes PREVIOUS when this one is verified.

    is_best: it becomes BEST too. is_first: of a training that replaces another, whose files go then.
    """
    last, previous, best = (folder / name for name in (LAST, PREVIOUS, BEST))

    def rotate(partial):
        if is_first:
            for path in (previous, best):
                path.unlink(missing_ok=True)
        elif last.is_file():
            _keep(last, previous)
        if is_best:
            whole_files.write_atomically(best, lambda copy: shutil.copyfile(partial, copy), durable=True)
        (folder / 'results.json').unlink(missing_ok=True)  # of the network before
    write(last, content, rotate)


def _keep(last, previous):
    """Give a file a second name, so that at no time it has none; where links are unknown, another name."""
    spare = whole_files.temporary(previous)
    try:
        os.link(last, spare)
    except OSError:
        spare = last
    spare.replace(previous)


def remove_abandoned(folder):
    """Remove the files that killed trainings of an experiment left half written. The caller holds its lock."""
    for name in (LAST, PREVIOUS, BEST, 'log.jsonl', 'results.json'):
        whole_files.remove_unfinished(folder / name)


# --- read -----------------------------------------------------------------------------------------------


def latest(folder):
    """The checkpoint to go on from: the last; the previous one where that was removed, or a crash came between."""
    return next((folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()), None)


def read(path):
    """The content of a checkpoint file, tensors on the CPU. Raises UserError, which offers the generation before."""
    path = Path(path)
    try:
        return _read(path)
    except UserError as error:
        spare = path.with_name(PREVIOUS)
        if path.name not in (LAST, BEST) or not spare.is_file():
            raise
        try:
            epoch = _read(spare).get('epoch')
        except UserError:
            raise error from None
        use = f'remove {path.name} and it is taken in its place, or' if path.name == LAST else 'to use it,'
        raise UserError(f'{error}. {spare} is whole (after epoch {epoch}): {use} name it by '
                        '--load_checkpoint') from error


def _read(path):
    with torch.serialization.safe_globals(NUMPY_SCALARS):
        content = pretrained.load(path)
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, not a checkpoint')
    content = _without_retired_settings(path, content)
    problem = _problem_of_weights(content.get('state_dict', content)) or _problem_of_record(content)
    if problem:
        raise UserError(f'{path} is no checkpoint: {problem}')
    return content


# settings that checkpoints of earlier versions carry -> whether a value asks for what this version no longer has
RETIRED = {'no_cue': lambda value: value is True, 'pointwise_from': lambda value: value is not None,
           'last_stage': lambda value: ',' in str(value),  # the features of several stages
           'prior_training': lambda value: 'drop' in str(value) or 'top' in str(value)}


def _without_retired_settings(path, content):
    """A checkpoint's content without the settings that later versions dropped. Raises UserError if one was in use."""
    if not all(isinstance(content.get(key, {}), dict) for key in ('model', 'args')):
        return content  # which is refused elsewhere
    for name, value in [*content.get('model', {}).items(), *content.get('args', {}).items()]:
        if name in RETIRED and RETIRED[name](value):
            raise UserError(f'{path} was trained with {name}={_short(value)}, which this version no longer has; the '
                            'commit 8897cf4 of this project can read it')
    if 'model' not in content:
        return content
    gone = RETIRED.keys() - config.ALL_FLAGS.keys()
    return content | {'model': {name: value for name, value in content['model'].items() if name not in gone}}


def _problem_of_weights(state):
    """What keeps a value from being a state dict, in words; None if nothing does."""
    if not isinstance(state, dict):
        return f'its state_dict is a {type(state).__name__}'
    for name, value in state.items():
        if not isinstance(name, str):
            return f'{name!r} is no name of a weight'
        if not _is_plain(value):
            return f'{name} is no weight but {_short(value)}'
    return None


def _is_plain(value):
    """Whether a value is a tensor of real numbers that takes no more memory than is stored of it."""
    return (isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == 'cpu'
            and not value.is_complex() and not value.is_quantized
            and value.numel() * value.element_size() <= value.untyped_storage().nbytes())


def _short(value):
    """A value in an error's line."""
    if isinstance(value, torch.Tensor):
        return f'a {value.dtype} tensor of shape {tuple(value.shape)}'
    text = repr(value)
    return f'a {type(value).__name__}, {text if len(text) < 60 else text[:57] + "..."}'


def _is_natural(value):
    return type(value) is int and value >= 0


def _is_normalisation(value):
    return _are(tuple)(value) and len(value) == 2 and all(map(_are_finite(3), value)) and min(value[1]) > 0


def _are(kind):
    return lambda values: isinstance(values, (list, tuple)) and all(isinstance(value, kind) for value in values)


def _are_finite(count):
    return lambda values: _are((int, float))(values) and len(values) == count and all(map(math.isfinite, values))


def _is_log(lines):
    return _are(dict)(lines) and all(isinstance(line.get('val_accuracy'), float) for line in lines) and _is_json(lines)


def _is_json(value):
    try:
        return bool(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return False


# what main.py records beside the weights -> whether a value can be that
RECORD = {'epoch': _is_natural, 'step': _is_natural, 'architecture': lambda value: isinstance(value, str),
          'class_names': lambda value: value is None or _are(str)(value), 'normalisation': _is_normalisation,
          'command': _are(str), 'optimizer': lambda value: isinstance(value, dict), 'log': _is_log,
          'sums': lambda rows: _are(tuple)(rows) and all(map(_are_finite(4), rows)) and bool(rows)}


def _problem_of_record(content):
    """What is wrong with what a checkpoint says of itself; None of files that say nothing, whatever else they hold."""
    if 'model' not in content:
        return None
    for key in ('model', 'args'):
        if not isinstance(content.get(key, {}), dict):
            return f'its {key} is {_short(content[key])}'
    model = dict(content['model'])
    classes = model.pop('num_classes', None)
    weight = content.get('state_dict', {}).get('conv_last.weight')
    fits = weight is None or list(weight.shape[:1]) == [classes]
    if classes is not None and not (_is_natural(classes) and fits):
        return f'its num_classes is {_short(classes)}, its classifier {_short(weight)}'
    known = {name: value for name, value in content.get('args', {}).items() if name in config.ALL_FLAGS}
    for name, value in [*model.items(), *known.items()]:
        problem = config.problem_of(name, value)
        if problem:
            return f'its setting {name}: {problem}'
    wrong = next((key for key, fits in RECORD.items() if key in content and not fits(content[key])), None)
    if wrong:
        return f'its {wrong} is {_short(content[wrong])}'
    names = content.get('class_names')
    if names is not None and classes is not None and len(names) != classes:
        return f'it names {len(names)} classes, and tells {classes} apart'
    return None
