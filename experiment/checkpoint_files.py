"""Checkpoint files: written whole, verified, and checked when they are read.

An experiment has the LAST checkpoint, the PREVIOUS one, and the BEST by accuracy on val. Each ends in the SHA-256 of
its content (wsol.weights.files), so that a single changed bit is noticed. torch.load reads it like any other
checkpoint.
"""
import hashlib
import io
import json
import math
import os
import shutil
from pathlib import Path

import torch

import config
from dataset.class_names import names_in
from experiment import training_images
from experiment.settings import problem_of
from runtime import whole_files
from wsol.errors import UserError
from wsol.weights import files, state_dicts
from wsol.weights.state_dicts import short

LAST, PREVIOUS, BEST = (f'{name}_checkpoint.pth.tar' for name in ('last', 'previous', 'best'))

# --- writing --------------------------------------------------------------------------------------------


def write(path, content, before_rename=lambda partial: None):
    """Write a checkpoint, whole or not at all.

    before_rename: called with the temporary path of the verified file, before it gets its name. Raises UserError.
    """
    def write_and_verify(partial):
        buffer = io.BytesIO()  # torch's own writer does not say why it could not write
        torch.save(content, buffer)
        with open(partial, 'w+b') as file:
            file.write(buffer.getbuffer())
            file.write(files.SEAL + hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
            file.flush()
            try:
                files.check_whole(file)
            except ValueError as error:
                raise UserError(f'{path} could not be verified after writing; the disk may be failing. The previous '
                                'file is kept') from error
        before_rename(partial)
    whole_files.write_atomically(path, write_and_verify, durable=True)


def save(folder, content, is_best=False, is_first=False):
    """Write an experiment's checkpoint. Once it is verified, the one before it becomes PREVIOUS.

    is_best: it becomes BEST too. is_first: it begins a new training; the files of an earlier training are removed.
    """
    last, previous, best = (folder / name for name in (LAST, PREVIOUS, BEST))

    def rotate(partial):
        if is_first:
            for path in (previous, best):
                path.unlink(missing_ok=True)
        elif last.is_file():
            spare = whole_files.temporary(previous)
            try:
                os.link(last, spare)  # a second name, so that the file always has one
            except OSError:  # a file system without links
                spare = last
            spare.replace(previous)
        if is_best:
            whole_files.write_atomically(best, lambda copy: shutil.copyfile(partial, copy), durable=True)
        (folder / 'results.json').unlink(missing_ok=True)  # it belongs to the earlier network
    write(last, content, rotate)


def remove_abandoned(folder):
    """Remove the half-written files of killed trainings of an experiment. The caller holds its lock."""
    for name in (LAST, PREVIOUS, BEST, 'log.jsonl', 'results.json'):
        whole_files.remove_unfinished(folder / name)


# --- reading --------------------------------------------------------------------------------------------


def latest(folder):
    """The path of the checkpoint to resume from: LAST, or PREVIOUS if LAST was removed; None if there is neither."""
    return next((folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()), None)


def read(path, key=None):
    """The content of a checkpoint file, tensors on the CPU. Raises UserError, which offers PREVIOUS.

    The weights of a file from elsewhere get the key `state_dict`. key: as in state_dicts.pick_state_dict.
    """
    path = Path(path)
    try:
        return _read(path, key)
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


def _read(path, key=None):
    content = files.load(path)
    keys = content if isinstance(content, dict) else {}
    model = keys.get('model')
    if model is None or not (isinstance(model, dict) and 'architecture' in model or 'command' in keys):
        known = {name: keys[name] for name in ('epoch', 'normalisation') if name in keys and RECORD[name](keys[name])}
        return known | {'class_names': names_in(keys) or None,
                        'state_dict': state_dicts.pick_state_dict(path, content, key)}
    if key is not None:
        raise UserError(f'{path} is a checkpoint of main.py, which holds one state dict: leave --weights_key out')
    problem = (state_dicts.problem_of_weights(content.get('state_dict', content))
               or next(_problems_of_record(content), None))
    if problem:
        raise UserError(f'{path} is no checkpoint of this version: {problem}')
    return content


def _is_natural(value):
    return type(value) is int and value >= 0


def _are(kind, values, count=None):
    """Whether `values` is a list or tuple of `count` values of this kind; numbers must be finite."""
    return (isinstance(values, (list, tuple)) and count in (None, len(values))
            and all(isinstance(value, kind) and (kind is not REAL or math.isfinite(value)) for value in values))


def _is_log(lines):
    try:
        is_one = _are(dict, lines) and all(isinstance(line['val_accuracy'], float) for line in lines)
        return is_one and bool(json.dumps(lines))
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


REAL = (int, float)
RECORD = {  # what main.py records beside the weights -> whether a value is valid
    'model': lambda value: isinstance(value, dict), 'args': lambda value: isinstance(value, dict),
    'epoch': _is_natural, 'step': _is_natural, 'architecture': lambda value: isinstance(value, str),
    'class_names': lambda value: value is None or _are(str, value), 'command': lambda value: _are(str, value),
    'normalisation': lambda value: (_are(tuple, value, 2) and all(_are(REAL, row, 3) for row in value)
                                    and min(value[1]) > 0),
    'optimizer': lambda value: isinstance(value, dict), 'log': _is_log,
    'training_images': training_images.is_record, 'torch': lambda value: isinstance(value, str),
    'sums': lambda rows: _are(tuple, rows) and all(_are(REAL, row, 4) for row in rows) and bool(rows)}


def _problems_of_record(content):
    """Yields what is wrong with the record beside the weights, in words."""
    for key, fits in RECORD.items():
        if key in content and not fits(content[key]):
            yield f'its {key} is {short(content[key])}'
    model, args, names = content['model'], content.get('args', {}), content.get('class_names')
    for name, value in [*model.items(), *args.items()]:
        if name in config.ALL_FLAGS or name in model and name != 'num_classes':
            problem = problem_of(name, value)
            if problem:
                yield f'its setting {name}: {problem}'
    classes, weight = model.get('num_classes'), content.get('state_dict', {}).get('conv_last.weight')
    if classes is not None and not (_is_natural(classes) and list(getattr(weight, 'shape', ()))[:1] == [classes]):
        yield f'its num_classes is {short(classes)}, its classifier {short(weight)}'
    if None not in (names, classes) and len(names) != classes:
        yield f'it names {len(names)} classes, and its network has {classes}'
