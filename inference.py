"""Pictures of your own images: attribution maps of a trained network.

Result, in --output: per image an overlay PNG with its colour bar in the map's own units, the raw map as .npy, and one
manifest.json with classes, probabilities, settings and versions.

    python inference.py photo.jpg folder/ --load_checkpoint=calm_em
    python inference.py photo.jpg --load_checkpoint=CALM_EM-CUB --contrast
"""
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

import config
import evaluation
import figures
import processes
import util
from image_files import SUFFIXES, broken_images, open_upright, opening_images
from util import UserError

UNITS = {'vanilla': 'logit', 'jointll': 'p(class, z | x) per cell', 'saliency': 'p(z | x) per cell',
         'gtcond': 'p(z | x, class) per cell'}
RUNNER_UP = 'runner-up'
LONGEST = 1600  # pixels of a picture's longer side


class OwnImages(Dataset):
    """The user's image files, upright, of any size and mode. Item -> (image (3,S,S), whether it opens, index)."""

    def __init__(self, paths, transform, class_names=()):
        self.paths, self.transform, self.class_names = paths, transform, class_names

    def __len__(self):
        return len(self.paths)

    def image_id(self, index):
        return str(self.paths[index])

    def __getitem__(self, index):
        try:
            return self.transform(open_upright(self.paths[index])), True, index
        except UserError:  # the others are explained all the same; main() says what is wrong with this one
            return self.transform(Image.new('RGB', (8, 8))), False, index


def find_images(inputs, output):
    """{output name: path} of image files and of all images below folders, but for those in the output folder. Names
    keep the suffix, so that a.jpg and a.png do not meet; files of one name from different folders carry the folder's
    name too."""
    found, output = [], Path(output).resolve()
    if '' in inputs:
        raise UserError('"" is no image and no folder; the folder you are in is .')
    for given in map(Path, inputs):
        if given.is_dir():
            below = sorted(path for path in given.rglob('*') if path.suffix.lower() in SUFFIXES
                           and not path.resolve().is_relative_to(output))
            if not below:
                raise UserError(f'{given} holds no images (looked for {", ".join(sorted(SUFFIXES))})')
            found += [(path.relative_to(given), path) for path in below]
        elif given.is_file():
            found.append((Path(given.name), given))
        else:
            raise UserError(f'{given}: no such image or folder')
    names = {}
    for name, path in found:
        if path in names.values():
            continue
        while str(name) in names:
            name = Path(f'{path.resolve().parent.name}_{name}')
        names[str(name)] = path
    return names


def resolve_class(text, names, num_classes):
    """A class by its exact name, by its number (from 0), or by a part of its name that no other has."""
    exact = [label for label, name in enumerate(names) if name == text]
    if text.isdecimal() and not exact:
        if len(text) > 9 or int(text) >= num_classes:
            raise UserError(f'class {text} is out of range, classes are 0 to {num_classes - 1}')
        return int(text)
    hits = exact or [label for label, name in enumerate(names) if text.lower() in name.lower()]
    if len(hits) != 1:
        found = ', '.join(names[hit] for hit in hits[:5])
        hint = f'or a name such as {names[0]}' if names else 'since this checkpoint has no class names'
        problem = f'names {len(hits)} classes: {found}' if hits else 'names no class'
        raise UserError(f'"{text}" {problem}; give a number from 0 to {num_classes - 1}, {hint}')
    return hits[0]


def class_chooser(target, contrast):
    """A function of the probabilities (B,C) that gives the classes to be explained: (B,1), or (B,2) with a contrast.

    target: a class, or None for the predicted one. contrast: a class, RUNNER_UP (the likeliest class that is not the
    target), or None.
    """
    def choose(probs):
        classes = probs.argmax(1) if target is None else torch.full_like(probs.argmax(1), target)
        if contrast is None:
            return classes[:, None]
        if contrast == RUNNER_UP:
            others = probs.scatter(1, classes[:, None], -1).argmax(1)
        else:
            others = torch.full_like(classes, contrast)
        return torch.stack([classes, others], 1)
    return choose


class Album:
    """The pictures and raw maps of a folder. names: of the classes; unit: of the maps."""

    def __init__(self, folder, process, names):
        self.folder, self.process, self.names = Path(folder), process, names
        self.unit = UNITS.get(process, process)

    def class_name(self, label):
        """A class's name, or its number where the checkpoint knows no names."""
        return self.names[label] if self.names and self.names[label] else f'class {label}'

    def _draw(self, stem, values, picture, title, signed=False):
        """One raw map and its overlay. Returns their file names."""
        files = f'{stem}.npy', f'{stem}.png'
        util.write_atomically(self.folder / files[0], lambda file: util.save_array(file, values))
        figures.save(figures.overlay(picture, values, title, self.unit, signed), self.folder / files[1])
        return files

    def add(self, name, path, probs, classes, maps):
        """The files of one image. probs: (C,); classes, maps: of the target, then perhaps of its contrast. Returns the
        image's entry in the manifest."""
        picture = np.asarray(open_upright(path, LONGEST), np.float32) / 255
        titles = [f'{self.class_name(label)} (p = {probs[label]:.3f})' for label in classes]
        stem = f'{name}.{self.process}'
        raw, overlay = self._draw(stem, maps[0], picture, titles[0])
        entry = {'image': str(path), 'class': classes[0], 'class_name': self.class_name(classes[0]),
                 'probability': float(probs[classes[0]]), 'predicted': int(probs.argmax()), 'map': raw,
                 'overlay': overlay}
        if len(classes) > 1:
            other, title = classes[1], ', not\n'.join(titles)
            raw, overlay = self._draw(f'{stem}.contrast', maps[0] - maps[1], picture, title, signed=True)
            entry |= {'contrast_class': other, 'contrast_class_name': self.class_name(other),
                      'contrast_probability': float(probs[other]), 'contrast_map': raw, 'contrast_overlay': overlay}
        return entry


def refuse_what_would_be_ignored(args):
    """Raise UserError for flags that mean something else here than the user may think."""
    if args.contrast is not None and Path(args.contrast).is_file():
        raise UserError(f'--contrast={args.contrast} is taken for a class; put --contrast after the images')
    if args.scoremap_root is not None or args.score_map_process == config.OBJECT_MASK:
        raise UserError(f'--scoremap_root and --score_map_process={config.OBJECT_MASK} are for the evaluations; here a '
                        'network gives the maps')


def draw_all(run, images, names, album, choose):
    """Explain every image and fill the album, batch by batch. Returns {index: its entry in the manifest} of those that
    open, whichever process has explained them."""
    source, entries = run.map_source(images, 'test'), {}
    with util.progress(None, album.process, 'image', total=len(images)) as bar:
        for batch, opens, indices in run.loader(images):
            probs, classes, maps = source(util.to_device(batch, run.device), indices, choose)
            for row, index in enumerate(indices.tolist()):
                if opens[row]:
                    entries[index] = album.add(names[index], images.paths[index], probs[row].cpu(),
                                               classes[row].tolist(), maps[row].cpu().numpy())
                bar.update()
            if processes.is_first() and entries:
                write_manifest(run, album, entries)
    of_all = {index: entry for own in processes.gather(entries) for index, entry in own.items()}
    return dict(sorted(of_all.items()))


def write_manifest(run, album, entries):
    """What was explained, and how. entries: of draw_all."""
    util.write_json(album.folder / 'manifest.json', {
        **evaluation.checkpoint_identity(run.checkpoint), 'process': album.process, 'unit': album.unit,
        'images': list(entries.values()), 'settings': config.recorded_settings(run.args, 'inference'),
        'versions': evaluation.versions(), 'machine': evaluation.machine(run.device)})


def report(album, entries, paths):
    """What was explained, on the screen. Raises UserError, when all else is done, for images that do not open."""
    for entry in list(entries.values())[:20]:
        util.say(f'{entry["image"]}: {entry["class_name"]}, p = {entry["probability"]:.3f}, '
                 f'{album.folder / entry["overlay"]}')
    if entries:
        util.say(f'{len(entries)} images: {album.folder / "manifest.json"}')
    broken = [index for index in range(len(paths)) if index not in entries]
    if broken:
        reason = next(iter(broken_images([paths[broken[0]]]).values()), f'{paths[broken[0]]} did not open')
        raise UserError(f'{reason} ({len(broken)} of {len(paths)} images do not open; the others are explained)')


def main():
    parser = config.make_parser('inference', __doc__)
    parser.add_argument('images', nargs='+', help='image files, or folders of images')
    args = config.parse('inference', parser=parser)
    refuse_what_would_be_ignored(args)
    args.output = args.output or 'maps'
    found = find_images(args.images, args.output)
    names, paths = list(found), list(found.values())
    run = evaluation.open_evaluation(args, 'inference', needs_data=False)
    if args.skip_broken:
        kept = opening_images(paths, 'yours')
        names, paths = [names[row] for row in kept], [paths[row] for row in kept]
    class_names, num_classes = run.checkpoint.class_names or [], run.model.conv_last.out_channels
    target, contrast = (value if value in (None, RUNNER_UP) else resolve_class(value, class_names, num_classes)
                        for value in (args.target, args.contrast))
    if target is not None and target == contrast:
        raise UserError(f'"why {args.target} and not {args.contrast}" is zero everywhere: they are one class')
    album = Album(args.output, run.args.score_map_process, class_names)
    images = OwnImages(paths, run.transform(), class_names)
    entries = draw_all(run, images, names, album, class_chooser(target, contrast))
    if processes.is_first():
        if entries:
            write_manifest(run, album, entries)
        report(album, entries, paths)


if __name__ == '__main__':
    util.run(main)
