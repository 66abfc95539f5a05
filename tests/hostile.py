"""Damaged and hostile files: every parser of the project, a valid file for it, and what can happen to that file.

PARSERS[name](folder) makes a valid file in an empty folder; it returns its path and a function that reads it. Whatever
mutate() makes of the file, that function should return, or raise UserError with one line.
"""
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset import archives, image_files, lists, toybirds
from dataset.download import Lock
from dataset.registry import read_superclass_file
from evaluation.map_sources import open_map
from experiment import checkpoint_files
from runtime import whole_files
from wsol.annotations import cub, superclasses
from wsol.backbones.state_dicts import read_state_dict
from wsol.errors import UserError

PARSERS = {}
# what breaks parsers: numbers beyond 64 bits, what is no number, paths that lead out, bytes that are no text, nesting
TOKENS = [str(2**64).encode(), b'-1', b'9' * 5000, b'nan', b'1e999', b'..', b'/etc/passwd', b'../../x', b'\0', b'\xff\xfe',
          b'\n', b',', b' ', b':', b'"', b'[' * 1100, b'{' * 1100, b'!!python/object:os.system ', b'!!timestamp x', b'!!int x',
          b'&a [*a]', b'null', b'[]', b'{}', b'\xe2\x80\xae', '²'.encode(), b'0x10', b'1_0']


def parser(make):
    """Register a function that makes a valid file."""
    PARSERS[make.__name__] = make
    return make


def mutate(random, content):
    """Bytes -> other bytes: bits turned, pieces left out, doubled, moved, replaced, cut off at the end."""
    content = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 4, 16])):
        start = random.randrange(len(content) + 1)
        stop = min(len(content), start + random.choice([1, 2, 4, 16, 256]))
        kind = random.randrange(6)
        if kind == 0 and start < len(content):
            content[start] ^= 1 << random.randrange(8)
        elif kind == 1:
            content[start:stop] = random.choice(TOKENS)
        elif kind == 2:
            content[start:start] = random.choice(TOKENS)
        elif kind == 3:
            del content[start:stop]
        elif kind == 4:
            content[start:start] = content[start:stop]
        else:
            content[start:stop] = bytes(random.randrange(256) for _ in range(stop - start))
    return bytes(content[:random.randrange(len(content) + 1)] if random.randrange(8) == 0 else content)


def outcome(read):
    """None where read() returns, else the line of its UserError."""
    try:
        read()
    except UserError as error:
        line = str(error)
        assert line.strip() and 'Traceback' not in line and len(line) < 20_000, line[:2000]
        return line
    return None


# --- lists ------------------------------------------------------------------------------------------------


def _write_lists(folder):
    ids = [f'birds/{number}.jpg' for number in range(5)]
    for name, rows in {'image_ids': ids, 'class_labels': [f'{own},{number % 3}' for number, own in enumerate(ids)],
                       'image_sizes': [f'{own},40,30' for own in ids],
                       'localization': [f'{own},1,2,{10 + number},20' for number, own in enumerate(ids)]}.items():
        whole_files.write_lines(folder / f'{name}.txt', rows)
    return np.array([own.encode() for own in ids])


@parser
def ids(folder):
    _write_lists(folder)
    return folder / 'image_ids.txt', lambda: lists.read_labels(folder, 3)


@parser
def labels(folder):
    _write_lists(folder)
    return folder / 'class_labels.txt', lambda: lists.read_labels(folder, 3)


@parser
def boxes(folder):
    own = _write_lists(folder)
    return folder / 'localization.txt', lambda: lists.read_boxes(folder, own)


@parser
def sizes(folder):
    own = _write_lists(folder)
    return folder / 'image_sizes.txt', lambda: lists.read_boxes(folder, own)


@parser
def masks(folder):
    own = _write_lists(folder)
    whole_files.write_lines(folder / 'localization.txt', [f'{name.decode()},a/m.png,a/i.png' for name in own])
    return folder / 'localization.txt', lambda: lists.read_mask_paths(folder, own)


@parser
def checked_lists(folder):
    _write_lists(folder)
    return folder / 'localization.txt', lambda: list(lists.read_rows(folder / 'localization.txt', lists.BOXES, []))


# --- texts --------------------------------------------------------------------------------------------------


@parser
def superclass_file(folder):
    whole_files.write_lines(folder / 'super.yaml', ['0: [1, 2]', '3: [4]', '5: 6'])
    return folder / 'super.yaml', lambda: read_superclass_file(folder / 'super.yaml', 8)


@parser
def wordnet_relation(folder):
    whole_files.write_lines(folder / 'wordnet.is_a.txt', ['n1 n2', 'n1 n3', 'n2 n4'])
    whole_files.write_json(folder / 'imagenet_class_index.json', {str(row): [f'n{row + 2}', 'x'] for row in range(3)})
    return folder / 'wordnet.is_a.txt', lambda: superclasses.wordnet(folder, 3)


@parser
def wordnet_index(folder):
    wordnet_relation(folder)
    return folder / 'imagenet_class_index.json', lambda: superclasses.wordnet(folder, 3)


@parser
def cub_names(folder):
    whole_files.write_lines(folder / 'images.txt', [f'{number} birds/{number}.jpg' for number in range(1, 6)])
    return folder / 'images.txt', lambda: cub.read_by_id(folder / 'images.txt')


@parser
def cub_numbers(folder):
    whole_files.write_lines(folder / 'part_locs.txt', [f'{number} 1 10.5 20.0 1' for number in range(1, 6)])
    return folder / 'part_locs.txt', lambda: cub._numbers(folder / 'part_locs.txt')


@parser
def hashes(folder):
    whole_files.write_json(folder / 'lock.json', {'a.tar': {'size': 3, 'sha256': 'ab'}})
    return folder / 'lock.json', Lock(folder / 'lock.json').entries


@parser
def stamp(folder):
    for half in ('data', 'meta'):
        (folder / half / 'ToyBirds').mkdir(parents=True)
        whole_files.write_json(folder / half / 'ToyBirds' / toybirds.STAMP, toybirds._stamp({'train': 1, 'val': 1, 'test': 1}, 0))
    halves = folder / 'data/ToyBirds', folder / 'meta/ToyBirds'
    return halves[0] / toybirds.STAMP, lambda: toybirds._is_whole(halves) or toybirds.Repainter(halves[0])


@parser
def log_lines(folder):
    whole_files.write_json_lines(folder / 'log.jsonl', [{'epoch': 1, 'val_accuracy': 2.5}, {'epoch': 2, 'val_accuracy': 5.0}])
    return folder / 'log.jsonl', lambda: whole_files.read_json_lines(folder / 'log.jsonl')


# --- maps, pictures, archives ----------------------------------------------------------------------------------


@parser
def score_map(folder):
    whole_files.save_array(folder / 'map.npy', np.random.default_rng(0).random((7, 7), np.float32))
    return folder / 'map.npy', lambda: open_map(folder / 'map.npy')


def _picture(folder, name, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name, lambda: image_files.open_upright(folder / name, 16)


@parser
def jpeg(folder):
    turned = Image.Exif()
    turned[image_files.ORIENTATION] = 6
    return _picture(folder, 'photo.jpg', exif=turned)


@parser
def png(folder):
    return _picture(folder, 'photo.png')


@parser
def tiff(folder):
    return _picture(folder, 'photo.tif')


def _members():
    return {f'top/{name}': f'content of {name}'.encode() * 20 for name in ('a.txt', 'b/c.txt', 'b/d.txt')}


def _unpack(folder, path):
    def read():
        archives.unpack(path, folder / 'out' / 'below', 'top/(.*)', limit=1 << 20)
        outside = [own for own in folder.rglob('*') if own.is_file() and own != path and folder / 'out/below' not in own.parents]
        assert not outside
    return path, read


def _tar(folder, mode, name):
    with tarfile.open(folder / name, mode) as archive:
        for member, content in _members().items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return _unpack(folder, folder / name)


@parser
def tar(folder):
    return _tar(folder, 'w', 'x.tar')


@parser
def tar_gz(folder):
    return _tar(folder, 'w:gz', 'x.tar.gz')


@parser
def zip_file(folder):
    with zipfile.ZipFile(folder / 'x.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for member, content in _members().items():
            archive.writestr(member, content)
    return _unpack(folder, folder / 'x.zip')


# --- checkpoints --------------------------------------------------------------------------------------------------


def checkpoint_content():
    """What main.py writes, of a network that is all but nothing."""
    return {'architecture': 'resnet18', 'epoch': 2, 'step': 1, 'sums': [(1.5, 2, 3, 0.25)], 'class_names': ['a', 'b', 'c'],
            'normalisation': ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), 'command': ['main.py'],
            'log': [{'epoch': 1, 'val_accuracy': 1.0}, {'epoch': 2, 'val_accuracy': 3.0}],
            'model': {'architecture': 'resnet18', 'attribution_method': 'CALM_EM', 'large_feature_map': False,
                      'use_bn': False, 'prior': 'relu', 'last_stage': 'layer1', 'num_classes': 3},
            'args': {'dataset': 'CUB', 'resize_size': 64, 'crop_size': 56, 'iou_thresholds': (30, 50, 70), 'lr': 0.01},
            'state_dict': {'conv_last.weight': torch.arange(24.).view(3, 8, 1, 1), 'conv_last.bias': torch.zeros(3)},
            'optimizer': {'state': {0: {'momentum_buffer': torch.ones(3)}}, 'param_groups': []}}


@parser
def checkpoint(folder):
    """A sealed one: whatever changes, it is refused, or it reads as it was."""
    checkpoint_files.write(folder / 'own.pth.tar', checkpoint_content())
    whole = json.dumps(checkpoint_files.read(folder / 'own.pth.tar'), default=torch.Tensor.tolist)

    def read():
        assert json.dumps(checkpoint_files.read(folder / 'own.pth.tar'), default=torch.Tensor.tolist) == whole
    return folder / 'own.pth.tar', read


@parser
def foreign_checkpoint(folder):
    torch.save(checkpoint_content(), folder / 'foreign.pth')
    return folder / 'foreign.pth', lambda: checkpoint_files.read(folder / 'foreign.pth')


@parser
def legacy_checkpoint(folder):
    torch.save(checkpoint_content(), folder / 'legacy.pth', _use_new_zipfile_serialization=False)
    return folder / 'legacy.pth', lambda: checkpoint_files.read(folder / 'legacy.pth')


@parser
def safetensors(folder):
    from safetensors.torch import save_file
    save_file(checkpoint_content()['state_dict'], folder / 'own.safetensors')
    return folder / 'own.safetensors', lambda: read_state_dict(folder / 'own.safetensors')


def setting_up(name, folder):
    """A parser's file and function, in a folder of its own."""
    folder = Path(folder) / name
    folder.mkdir(parents=True)
    return PARSERS[name](folder)
