"""Damaged and hostile files: every parser of the project, a valid file for it, and what can happen to that file.

PARSERS[name](folder) makes a valid file in an empty folder; it returns its path and a function that reads it. Whatever
mutate() makes of the file, that function should return, or raise UserError with one line.
"""
import io
import json
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset import archives, image_files, lists, toybirds
from dataset.class_names import read_superclass_file
from dataset.download import Lock
from evaluation.map_sources import open_map
from experiment import checkpoint_files
from runtime import whole_files
from wsol.annotations import cub, superclasses
from wsol.errors import UserError
from wsol.weights.state_dicts import read_weights

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


# --- lists and texts --------------------------------------------------------------------------------------


IDS = [f'birds/{number}.jpg' for number in range(5)]
AS_BYTES = np.array([name.encode() for name in IDS])
LISTS = {'image_ids.txt': IDS, 'class_labels.txt': [f'{name},{number % 3}' for number, name in enumerate(IDS)],
         'image_sizes.txt': [f'{name},40,30' for name in IDS],
         'localization.txt': [f'{name},1,2,{10 + number},20' for number, name in enumerate(IDS)]}
WORDNET = {'wordnet.is_a.txt': ['n1 n2', 'n1 n3', 'n2 n4'],
           'imagenet_class_index.json': ['{"0": ["n2", "x"], "1": ["n3", "x"], "2": ["n4", "x"]}']}
TEXTS = {  # parser: (the files that it needs, the one that is damaged, what reads it in a folder)
    'ids': (LISTS, 'image_ids.txt', lambda folder: lists.read_labels(folder, 3)),
    'labels': (LISTS, 'class_labels.txt', lambda folder: lists.read_labels(folder, 3)),
    'boxes': (LISTS, 'localization.txt', lambda folder: lists.read_boxes(folder, AS_BYTES)),
    'sizes': (LISTS, 'image_sizes.txt', lambda folder: lists.read_boxes(folder, AS_BYTES)),
    'masks': (LISTS | {'localization.txt': [f'{name},a/m.png,a/i.png' for name in IDS]}, 'localization.txt',
              lambda folder: lists.read_mask_paths(folder, AS_BYTES)),
    'checked_lists': (LISTS, 'localization.txt', lambda folder: list(lists.read_rows(folder / 'localization.txt', lists.BOXES, []))),
    'superclass_file': ({'super.yaml': ['0: [1, 2]', '3: [4]', '5: 6']}, 'super.yaml',
                        lambda folder: read_superclass_file(folder / 'super.yaml', 8)),
    'wordnet_relation': (WORDNET, 'wordnet.is_a.txt', lambda folder: superclasses.wordnet(folder, 3)),
    'wordnet_index': (WORDNET, 'imagenet_class_index.json', lambda folder: superclasses.wordnet(folder, 3)),
    'cub_names': ({'images.txt': [f'{number} birds/{number}.jpg' for number in range(1, 6)]}, 'images.txt',
                  lambda folder: cub.read_by_id(folder / 'images.txt')),
    'cub_numbers': ({'part_locs.txt': [f'{number} 1 10.5 20.0 1' for number in range(1, 6)]}, 'part_locs.txt',
                    lambda folder: cub._numbers(folder / 'part_locs.txt', 5, 'image, part, x, y, visible')),
    'hashes': ({'lock.json': ['{"a.tar": {"size": 3, "sha256": "ab"}}']}, 'lock.json',
               lambda folder: Lock(folder / 'lock.json').entries())}


def _text(files, damaged, read):
    def make(folder):
        for name, rows in files.items():
            whole_files.write_lines(folder / name, rows)
        return folder / damaged, lambda: read(folder)
    return make


PARSERS.update({name: _text(*parts) for name, parts in TEXTS.items()})


@parser
def stamp(folder):
    for half in ('data', 'meta'):
        (folder / half / 'ToyBirds').mkdir(parents=True)
        whole_files.write_json(folder / half / 'ToyBirds' / toybirds.STAMP, toybirds._stamp({'train': 1, 'val': 1, 'test': 1}, 0))
    halves = folder / 'data/ToyBirds', folder / 'meta/ToyBirds'
    return halves[0] / toybirds.STAMP, lambda: toybirds._is_whole(halves) or toybirds.Repainter(halves[0])


# --- maps, pictures, archives ----------------------------------------------------------------------------------


@parser
def score_map(folder):
    np.save(folder / 'map.npy', np.random.default_rng(0).random((7, 7), np.float32))
    return folder / 'map.npy', lambda: np.array(open_map(folder / 'map.npy'))


def _picture(folder, name, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name, lambda: image_files.open_upright(folder / name, 16)


@parser
def jpeg(folder):
    turned = Image.Exif()
    turned[image_files.ORIENTATION] = 6
    return _picture(folder, 'photo.jpg', exif=turned)


PARSERS.update(png=lambda folder: _picture(folder, 'photo.png'), tiff=lambda folder: _picture(folder, 'photo.tif'))


def _members():
    return {f'top/{name}': f'content of {name}'.encode() * 20 for name in ('a.txt', 'b/c.txt', 'b/d.txt')}


def _unpack(folder, path):
    def read():
        archives.unpack(path, folder / 'out' / 'below', 'top/(.*)', limit=1 << 20)
        outside = [file for file in folder.rglob('*') if file.is_file() and file != path and folder / 'out/below' not in file.parents]
        assert not outside
    return path, read


def _tar(folder, mode, name):
    with tarfile.open(folder / name, mode) as archive:
        for member, content in _members().items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return _unpack(folder, folder / name)


PARSERS.update(tar=lambda folder: _tar(folder, 'w', 'x.tar'), tar_gz=lambda folder: _tar(folder, 'w:gz', 'x.tar.gz'))


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
    checkpoint_files.write(folder / 'whole.pth.tar', checkpoint_content())
    whole = json.dumps(checkpoint_files.read(folder / 'whole.pth.tar'), default=torch.Tensor.tolist)

    def read():
        assert json.dumps(checkpoint_files.read(folder / 'whole.pth.tar'), default=torch.Tensor.tolist) == whole
    return folder / 'whole.pth.tar', read


def _foreign(folder, **options):
    torch.save(checkpoint_content(), folder / 'foreign.pth', **options)
    return folder / 'foreign.pth', lambda: checkpoint_files.read(folder / 'foreign.pth')


PARSERS.update(foreign_checkpoint=_foreign, legacy_checkpoint=partial(_foreign, _use_new_zipfile_serialization=False))


@parser
def safetensors(folder):
    from safetensors.torch import save_file
    save_file(checkpoint_content()['state_dict'], folder / 'whole.safetensors')
    return folder / 'whole.safetensors', lambda: read_weights(folder / 'whole.safetensors')


def setting_up(name, folder):
    """A parser's file and function, in a folder of its own."""
    folder = Path(folder) / name
    folder.mkdir(parents=True)
    return PARSERS[name](folder)
