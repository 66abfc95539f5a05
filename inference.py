"""From a checkpoint to attribution maps: of a loader, as a library; of your own images, as a script.

Result of the script: in --output, per image an overlay PNG with its colour bar in the map's own units,
the raw map as .npy, and one manifest.json with classes, probabilities, settings and versions.

    python inference.py photo.jpg folder/ --load_checkpoint=calm_em --score_map_process=jointll
    python inference.py photo.jpg --load_checkpoint=CALM_EM-CUB --score_map_process=jointll --contrast
"""
import platform
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import config
import data_loaders
import evaluation
import figures
import util
from util import UserError
from wsol import attribution
from wsol._torchvision import torchvision

# --- the library: maps of a whole loader ------------------------------------------------------------


class Maps(NamedTuple):
    """One batch of maps."""
    indices: torch.Tensor            # (B,) into the data set
    probs: torch.Tensor              # (B,C), p(y|x)
    classes: torch.Tensor            # (B,), whose maps
    contrast: torch.Tensor | None    # (B,), "and not this class"
    maps: torch.Tensor               # (B,h,w) of the classes, in the method's units
    differences: torch.Tensor | None  # (B,h,w), signed: map(class) - map(contrast)


def loader_maps(model, loader, process, device, choose=None, seed=0, **options):
    """Attribution maps of a whole loader, one forward per image for the activation methods.

    loader: batches (images (B,3,S,S), labels (B,), indices (B,)). choose: a function (probs (B,C), labels (B,)) ->
    classes (B,) and contrast (B,) or None; by default the predicted class and no contrast. options: of
    attribution_maps (superclasses, settings). Yields Maps, batch by batch.
    """
    choose = choose or (lambda probs, labels: (probs.argmax(1), None))
    for images, labels, indices in loader:
        images = util.to_device(images, device)
        with torch.no_grad():
            activations = model.activations(images)
            probs = model.class_scores(activations).softmax(1)
        classes, contrast = choose(probs, labels.to(device))
        asked = classes[:, None] if contrast is None else torch.stack([classes, contrast], 1)  # (B,K)
        maps = attribution.attribution_maps(model, images, asked, process, seeds=util.image_seeds(seed, indices),
                                            activations=activations, **options)
        yield Maps(indices, probs, classes, contrast, maps[:, 0], None if contrast is None else maps[:, 0] - maps[:, 1])


# --- the script: pictures of images ---------------------------------------------------------------

UNITS = {'vanilla': 'logit', 'jointll': 'p(class, z | x) per cell', 'saliency': 'p(z | x) per cell',
         'gtcond': 'p(z | x, class) per cell'}


class OwnImages(Dataset):
    """The user's image files, upright, of any size and mode. Item -> (image (3,S,S), -1, index)."""

    def __init__(self, paths, crop_size):
        self.paths, self.transform = paths, data_loaders.eval_transform(crop_size)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(data_loaders.open_upright(self.paths[index])), -1, index


def find_images(inputs, output):
    """{output name: path} of image files and of all images below folders, but for those in the output folder. Names
    keep the suffix, so that a.jpg and a.png do not meet; files of one name from different folders carry the folder's
    name too."""
    found, output = [], Path(output).resolve()
    for given in map(Path, inputs):
        if given.is_dir():
            below = sorted(path for path in given.rglob('*') if path.suffix.lower() in data_loaders.SUFFIXES
                           and not path.resolve().is_relative_to(output))
            if not below:
                raise UserError(f'{given} holds no images (looked for {", ".join(sorted(data_loaders.SUFFIXES))})')
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


def without_broken(images):
    """Those that open; says how many do not."""
    paths = list(images.values())
    broken = data_loaders.broken_images(paths)
    if len(broken) == len(paths):
        raise UserError(f'none of the {len(paths)} images opens; the first: {broken[0]}')
    if broken:
        util.warn(f'{len(broken)} of {len(paths)} images do not open and are left out; the first: '
                  f'{next(iter(broken.values()))}')
    return {name: path for index, (name, path) in enumerate(images.items()) if index not in broken}


def resolve_class(text, names, count):
    """A class by number (from 0), by name, or by a part of its name that no other has."""
    if text.isdecimal():
        if int(text) >= count:
            raise UserError(f'class {text} is out of range, classes are 0 to {count - 1}')
        return int(text)
    names = names or []
    hits = [label for label, name in enumerate(names) if name == text] or [
        label for label, name in enumerate(names) if text.lower() in name.lower()]
    if len(hits) != 1:
        reason = f'names {len(hits)} classes: {", ".join(names[hit] for hit in hits[:5])}' if hits else 'names no class'
        raise UserError(f'"{text}" {reason}; give a number from 0 to {count - 1}' + (
            f' or a name such as {names[0]}' if names else ', since this checkpoint has no class names'))
    return hits[0]


def chooser(target, contrast):
    """The function `choose` of loader_maps. target: a class or None, the predicted one. contrast: a class,
    'runner-up' (the likeliest class that is not the target), or None."""
    def choose(probs, _):
        classes = probs.argmax(1) if target is None else torch.full_like(probs.argmax(1), target)
        if contrast != 'runner-up':
            return classes, None if contrast is None else torch.full_like(classes, contrast)
        others = probs.scatter(1, classes[:, None], -1)
        return classes, others.argmax(1)
    return choose


def write_maps(folder, name, path, batch, row, labels_of, process):
    """Overlays and raw maps of one image. Returns its entry in the manifest."""
    picture = np.asarray(data_loaders.open_upright(path), np.float32) / 255
    label, probs = int(batch.classes[row]), batch.probs[row]

    def caption(label):
        return f'{labels_of(label)} (p = {probs[label]:.3f})'
    entry = {'image': str(path), 'class': label, 'class_name': labels_of(label), 'probability': float(probs[label]),
             'predicted': int(probs.argmax()), 'map': f'{name}.{process}.npy', 'overlay': f'{name}.{process}.png'}
    values = batch.maps[row].cpu().numpy()
    util.write_atomically(folder / entry['map'], lambda file: util.save_array(file, values))
    figures.overlay(folder / entry['overlay'], picture, values, caption(label), UNITS.get(process, process))
    if batch.contrast is not None:
        other = int(batch.contrast[row])
        entry |= {'contrast_class': other, 'contrast_class_name': labels_of(other),
                  'contrast_probability': float(probs[other]), 'contrast_map': f'{name}.{process}.contrast.npy',
                  'contrast_overlay': f'{name}.{process}.contrast.png'}
        values = batch.differences[row].cpu().numpy()
        util.write_atomically(folder / entry['contrast_map'], lambda file: util.save_array(file, values))
        figures.overlay(folder / entry['contrast_overlay'], picture, values,
                        f'{caption(label)}, not\n{caption(other)}', UNITS.get(process, process), signed=True)
    return entry


def refuse_what_would_be_ignored(args):
    """Raise UserError for flags that mean something else here than the user may think."""
    if args.contrast is not None and Path(args.contrast).is_file():
        raise UserError(f'--contrast={args.contrast} is taken for a class; put --contrast after the images')
    if args.scoremap_root is not None or args.score_map_process == config.OBJECT_MASK:
        raise UserError(f'--scoremap_root and --score_map_process={config.OBJECT_MASK} are for the evaluations; here a '
                        'network gives the maps')


def main():
    parser = config.make_parser(__doc__)
    parser.add_argument('images', nargs='+', help='image files, or folders of images')
    parser.add_argument('--output', default='maps', metavar='', help='folder of the results (default: maps)')
    parser.add_argument('--target', metavar='',
                        help='class whose map is shown, number or name (default: the predicted one)')
    parser.add_argument('--contrast', nargs='?', const='runner-up', metavar='',
                        help='add "why the target and not this class", number or name (default: the runner-up)')
    args = config.parse(__doc__, parser=parser)
    refuse_what_would_be_ignored(args)
    images = find_images(args.images, args.output)
    if args.skip_broken:
        images = without_broken(images)
    model, checkpoint, args, device = evaluation.open_evaluation(args)
    count = model.conv_last.out_channels
    target, contrast = (value if value in (None, 'runner-up') else resolve_class(value, args.class_names, count)
                        for value in (args.target, args.contrast))
    if target is not None and target == contrast:
        raise UserError(f'"why {args.target} and not {args.contrast}" is zero everywhere: they are one class')
    folder, process = Path(args.output), args.score_map_process
    names, paths = zip(*images.items(), strict=True)
    loader = DataLoader(OwnImages(paths, args.crop_size), args.batch_size)
    settings = attribution.Settings(args.smooth_grad_nr_iter, args.smooth_grad_sigma, args.integrated_grad_nr_iter)
    members = evaluation.find_superclasses(args, lambda: args.class_names)
    manifest = {'checkpoint': str(checkpoint), 'process': process, 'unit': UNITS.get(process, process), 'images': [],
                'settings': evaluation.recorded_settings(args),
                'versions': {'python': platform.python_version(), 'torch': torch.__version__,
                             'torchvision': torchvision.__version__, 'numpy': np.__version__}}
    with util.progress(None, process, 'image', total=len(paths)) as bar, util.autocast(args, device):
        for batch in loader_maps(model, loader, process, device, chooser(target, contrast), args.seed,
                                 superclasses=members, settings=settings):
            for row, index in enumerate(batch.indices.tolist()):
                manifest['images'].append(write_maps(folder, names[index], paths[index], batch, row,
                                                     lambda label: class_label(label, args.class_names), process))
                bar.update()
            util.write_json(folder / 'manifest.json', manifest)
    for entry in manifest['images'][:20]:
        print(f'{entry["image"]}: {entry["class_name"]}, p = {entry["probability"]:.3f}, {folder / entry["overlay"]}')
    print(f'{len(paths)} images: {folder / "manifest.json"}')


def class_label(label, names):
    """What a class is called in a picture: its name, or its number where the checkpoint knows no names."""
    return names[label] if names and names[label] else f'class {label}'


if __name__ == '__main__':
    util.run(main)
