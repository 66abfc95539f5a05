"""Pictures of your photos: attribution maps of a trained network.

Result, in --output: for each photo a PNG of it beside its maps, or one HTML page for all (--format); the raw maps as
.npy; and one manifest.json with classes, probabilities, settings and versions.

    python inference.py photo.jpg folder/ --load_checkpoint=calm_em
    python inference.py photo.jpg --load_checkpoint=CALM_EM-CUB --contrast
    python inference.py folder/ --load_checkpoint=calm_em --score_map_process=jointll,grad_cam --format=html
"""
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave it out

import config
import util
from dataset.image_files import open_upright, upright_size
from dataset.image_folders import opening_images, problems_of
from evaluation import session
from evaluation.erasing import check_maps, compare_with_noise
from experiment import result_files, weights
from experiment.settings import recorded_settings
from reports.album import DIFFERENCE, MANIFEST, PAGE, Album, Explanation, contrast_key
from reports.photos import Photos, find_images
from runtime import processes, screen
from wsol.attribution.registry import METHODS
from wsol.errors import UserError
from wsol.metrics import CAVEAT

RUNNER_UP = 'runner-up'
NUMBER = '(class )?(0|[1-9][0-9]*)'  # a class, on the command line
NEARLY = 0.02  # two probabilities that differ by no more are nearly the same


# --- classes ------------------------------------------------------------------------------------------


def resolve_class(text, names, num_classes):
    """A class by its exact name, by its number (from 0), or by a part of its name that no other name has.

    If names are numbers themselves, such as the folders 0, 1, 10, 2, a number always means the name, and "class 3"
    means the number. 02 is not a number.
    """
    hits, number = [label for label, name in enumerate(names) if name == text], re.fullmatch(NUMBER, text)
    numbered = not any(name.isdecimal() for name in names)
    if not hits and number and (numbered or number[1]):
        if len(number[2]) > 9 or int(number[2]) >= num_classes:
            raise UserError(f'class {number[2]} is out of range, classes are 0 to {num_classes - 1}')
        return int(number[2])
    if not hits and (numbered or not text.isdecimal()):
        hits = [label for label, name in enumerate(names) if text.lower() in name.lower()]
    if len(hits) != 1:
        examples = ', '.join(names[hit] for hit in hits[:5])
        hint = f'or a name such as {names[0]}' if names else 'since this checkpoint has no class names'
        problem = f'names {len(hits)} classes: {examples}' if hits else 'names no class'
        raise UserError(f'"{text}" {problem}; give {"a number" if numbered else "class N with N"} from 0 to '
                        f'{num_classes - 1}, {hint}')
    return hits[0]


def chosen_classes(args, names, num_classes):
    """(target, contrast) of --target and --contrast: classes, None, or RUNNER_UP."""
    target = None if args.target is None else resolve_class(args.target, names, num_classes)
    contrast = args.contrast
    if contrast not in (None, RUNNER_UP):
        contrast = resolve_class(contrast, names, num_classes)
    if target is not None and target == contrast:
        raise UserError(f'"why {args.target} and not {args.contrast}" is zero everywhere: they are one class')
    return target, contrast


def class_chooser(target, contrast, count=1):
    """A function of the probabilities (B,C) that gives the classes to be explained, (B,K): the target, the contrast if
    there is one, then the likeliest others, `count` in all (with a contrast at least two).

    target: a class, or None for the predicted one. contrast: a class, RUNNER_UP (the likeliest class that is not the
    target), or None. Where the target is the contrast itself, the runner-up takes its place.
    """
    def choose(probs):
        rank = probs.clone()
        if contrast not in (None, RUNNER_UP):
            rank[:, contrast] = 2
        first = probs.argmax(1) if target is None else torch.full_like(probs.argmax(1), target)
        rank.scatter_(1, first[:, None], 3)
        return rank.topk(min(probs.shape[1], max(count, 1 if contrast is None else 2)), dim=1).indices
    return choose


# --- the command line ---------------------------------------------------------------------------------


def make_parser():
    """The parser of this script's flags."""
    parser = config.make_parser(__doc__, *config.MAPS, *config.PICTURES, 'pretrained', 'contrast_method',
                                listed=('score_map_process', 'format'))
    parser.add_argument('images', nargs='*', metavar='PHOTO', help='image files, or folders of images')
    parser.usage = '%(prog)s PHOTO ... [--flag=value ...]'
    return parser


def read_flags():
    """The flags. Raises UserError for combinations that have no meaning here."""
    args = config.parse(make_parser())
    methods = args.score_map_process or ()
    if 'contrast_method' in args.given and args.contrast is None:
        args.contrast = RUNNER_UP
    if args.contrast not in (None, RUNNER_UP) and Path(args.contrast).exists():  # --contrast photo.jpg
        screen.say(f'--contrast {args.contrast}: there is a file or folder of this name, so it is taken for images, '
                   'and the contrast is the runner-up; to contrast with a class of this name, give its number')
        args.images, args.contrast = [*args.images, args.contrast], RUNNER_UP
    if 'scoremap_root' in args.given or config.OBJECT_MASK in methods:
        raise UserError(f'--scoremap_root and --score_map_process={config.OBJECT_MASK} are for the evaluations; here a '
                        'network gives the maps')
    if args.score_map_method == 'backprop' and len(methods) > 1:
        raise UserError('--score_map_method=backprop does not go with several methods; leave it out, and name backprop '
                        'among them')
    one_for_all = methods and not any(METHODS[name].per_class for name in methods)
    if args.contrast is not None and args.contrast_method in (None, DIFFERENCE) and one_for_all:
        raise UserError(f'{methods[0]} gives one map for all classes: "why A and not B" would be zero everywhere; '
                        'add a method such as jointll, or a --contrast_method')
    if not args.images:
        raise UserError('no images: name image files, or folders of images, before the flags')
    args.output = args.output or 'maps'
    return args


# --- maps ---------------------------------------------------------------------------------------------


def open_methods(args):
    """The Network, and the ChosenMaps of each attribution method. Raises UserError for a method that the head lacks."""
    network = session.open_network(args, or_classifier=True)
    methods = [session.choose_maps(network, None, score_map_process=name) for name in args.score_map_process or (None,)]
    for maps in methods:
        screen.say(maps.describe())
    return network, methods


def choose_contrast(args, network):
    """(contrast method, its ChosenMaps): the method that the flags name; else, where they name attribution methods, the
    DIFFERENCE of their maps, without ChosenMaps; else the head's default. (None, None) without a contrast."""
    if args.contrast is None:
        return None, None
    asks_for_maps = args.score_map_process or args.score_map_method == 'backprop'
    name = args.contrast_method or (DIFFERENCE if asks_for_maps else network.model.default_contrast)
    if name == DIFFERENCE:
        return name, None
    if args.contrast_method is None:
        screen.say(f'the contrast is {name}, for the reasons in docs/findings.md; '
                   '--contrast_method=difference subtracts the maps of the two classes')
    return name, session.choose_maps(network, None, contrast=name, score_map_process=None,
                                     score_map_method='activation_map')


def explain(network, batch, indices, sources, choose, checked):
    """For each photo of a batch (probabilities, classes, {key: maps (K,h,w)}, what check_maps returns of it), from one
    forward of the network.

    sources: {key: (MapSource, the number of classes that it is asked)}. choose: of class_chooser. checked: the keys of
    the maps that are checked by erasing; without any the check is None.
    """
    any_source, _ = next(iter(sources.values()))
    activations = any_source.forward(batch)
    probs = any_source.probabilities(activations)
    classes = choose(probs)
    maps = {key: source(batch, indices, classes[:, :count], activations).maps
            for key, (source, count) in sources.items()}
    args, checks = network.args, [None] * len(batch)
    if checked:
        checks = check_maps(network.model, batch, classes[:, 0], {key: maps[key][:, :1] for key in checked},
                            util.image_seeds(args.seed, indices).tolist(), precision=args.precision,
                            at_a_time=args.batch_size)
    maps = {key: of_key.cpu().numpy() for key, of_key in maps.items()}
    return [(probs[row].tolist(), classes[row].tolist(), {key: maps[key][row] for key in maps}, checks[row])
            for row in range(len(batch))]


# --- the results --------------------------------------------------------------------------------------


def draw_all(network, images, names, album, sources, choose):
    """Explain every photo and fill the album, batch by batch. Returns {index: entry in the manifest} of the photos that
    open, of all processes. sources, choose: of explain."""
    entries = {}
    with screen.progress(None, ', '.join(album.methods), 'image', total=len(images)) as bar:
        for batch, opens, indices in network.loader(images, album.folder):
            explained = explain(network, batch, indices, sources, choose, album.methods if network.args.check else ())
            if processes.is_first() and any(opens):  # it lists the files to come, in case this run is interrupted
                album.write_manifest(entries.values())
            for index, is_open, result in zip(indices.tolist(), opens, explained, strict=True):
                if is_open:
                    path = images.paths[index]
                    box = images.transform.box(upright_size(path))
                    entries[index] = album.add(Explanation(names[index], path, box, *result))
                bar.update()
    album.share(list(entries))
    return dict(sorted(item for part in processes.gather(entries) for item in part.items()))


@torch.inference_mode()
def say_if_same_for_blanks(network, source, entries, album):
    """Warn if plain grey and noise get the same prediction as all photos, at nearly the same probability. entries: the
    photos' entries in the manifest."""
    noise = np.random.default_rng(0).integers(0, 256, (network.args.crop_size, network.args.crop_size, 3), np.uint8)
    blanks = torch.stack([network.transform()(Image.fromarray(pixels)) for pixels in (np.full_like(noise, 128), noise)])
    probs, labels = source.probabilities(source.forward(util.to_device(blanks, network.device))).max(1)
    labels = {*labels.tolist(), *(entry['predicted'] for entry in entries)}
    probs = [*probs.tolist(), *(entry['predicted_probability'] for entry in entries)]
    if len(labels) == 1 and max(probs) - min(probs) <= NEARLY:
        p = ' to '.join(dict.fromkeys(f'{value:.3f}' for value in (min(probs), max(probs))))
        album.note(f'the network says {album.class_name(*labels)}, p = {p}, of all photos here, and of plain grey and '
                   'of noise too: no map can say what in a photo led to it', screen.warn)


def say_check(network, entries, album):
    """Say of all photos whether erasing what the maps mark lowers p more than coarse noise does."""
    album.about['check'] = compare_with_noise([entry['check'] for entry in entries], network.args.seed)
    for method in album.methods:
        for fill, counts in album.about['check'][method].items():
            album.note(f'{method}, fill {fill}: erasing what the map marks lowers p more than coarse noise does on '
                       f'{counts["lower"]} of {counts["photos"]} photos')
    album.note(CAVEAT)


def describe_run(network, methods):
    """What the manifest says of a run."""
    settings = recorded_settings(network.args) | {'score_map_process': methods}
    return {**result_files.checkpoint_identity(network.checkpoint), 'settings': settings,
            'preprocessing': network.preprocessing, 'versions': result_files.versions(),
            'machine': result_files.machine(network.device)}


def report(entries, album, contrast):
    """Write the page; print the predicted classes, where the results are, and where the run differs from the request.
    entries: of the photos. contrast: of chosen_classes."""
    for entry in entries[:20]:
        where = f', {album.folder / entry["picture"]}' if 'picture' in entry else ''
        labels = f' (labels with p >= 0.5: {", ".join(entry["labels"])})' if 'labels' in entry else ''
        text = f'{entry["image"]}: {entry["class_name"]}, p = {entry["probability"]:.3f}{labels}{where}'
        screen.say(screen.shown(text))
    flat = [f'{name} of {entry["image"]}' for entry in entries for name in entry['constant_maps']]
    if flat:
        album.note(f'maps with one value everywhere show no place: {len(flat)} here, as {flat[0]}', screen.warn)
    if album.reduced:
        screen.say(f'{len(album.reduced)} of {len(entries)} photos are drawn smaller than they are, as '
                   f'{album.reduced[0]}')
    predicted = [] if contrast in (None, RUNNER_UP) else [
        entry for entry in entries if entry['contrast']['class'] != contrast]
    if predicted:
        screen.warn(f'{len(predicted)} photos are predicted to be {album.class_name(contrast)} itself, as '
                    f'{predicted[0]["image"]}: their contrast is the runner-up')
    if 'html' in album.formats:
        screen.say(f'{album.folder / PAGE}: open it in a browser ({album.write_page() / 1e6:.1f} MB)')
    screen.say(f'{len(entries)} images: {album.folder / MANIFEST}')


def refuse_broken(paths, entries):
    """Raise UserError, when all else is done, for images that do not open."""
    broken = [path for index, path in enumerate(paths) if index not in entries]
    if broken:
        reason = problems_of(broken[:1], open_upright)[0] or f'{broken[0]} did not open'
        raise UserError(f'{reason} ({len(broken)} of {len(paths)} images do not open; the others are explained)')


def main():
    args = read_flags()
    photos = find_images(args.images, args.output)
    network, methods = open_methods(args)
    network.args.contrast_method, contrast_maps = choose_contrast(args, network)
    if args.skip_broken:
        kept, items = opening_images(list(photos.values()), 'yours'), list(photos.items())
        photos = dict(items[index] for index in kept)
    class_names, path = weights.class_names(network.args, network.checkpoint, network.model), network.checkpoint.path
    target, contrast = chosen_classes(args, class_names, network.model.conv_last.out_channels)
    images = Photos(list(photos.values()), network.transform(), class_names)
    title = f'{network.args.attribution_method}, {network.args.architecture}, weights of ' + (
        path.parent.name if path.name == weights.FILE else path.name)
    names = [maps.method for maps in methods]
    album = Album(args.output, class_names, names, network.args.contrast_method, args.overlay, args.picture_size,
                  args.format, title, describe_run(network, names), network.model.scores)
    if processes.is_first():
        album.claim(photos)
    processes.gather(None)  # nobody writes before the first process has looked at what is there
    on_page = 'html' in args.format
    count = args.top_k if on_page else 1  # classes whose maps are needed
    if contrast is not None and (on_page or contrast_maps is None):
        count = max(count, 2)
    sources = {maps.method: (maps.source(images), count if maps.entry.per_class else 1) for maps in methods}
    if contrast_maps:
        sources[contrast_key(network.args.contrast_method)] = contrast_maps.source(images), 2
    any_source, _ = next(iter(sources.values()))
    entries = draw_all(network, images, list(photos), album, sources, class_chooser(target, contrast, count))
    if processes.is_first():
        if entries:
            say_if_same_for_blanks(network, any_source, list(entries.values()), album)
            if args.check:
                say_check(network, list(entries.values()), album)
            report(list(entries.values()), album, contrast)
            album.write_manifest(entries.values(), finished=True)
        refuse_broken(images.paths, entries)


if __name__ == '__main__':
    screen.run(main)
