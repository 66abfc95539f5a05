"""Pictures of your own images: attribution maps of a trained network.

Result, in --output: for each image the photo beside its maps as a PNG, or one HTML page for all (--format); the raw
maps as .npy; and one manifest.json with classes, probabilities, settings and versions.

    python inference.py photo.jpg folder/ --load_checkpoint=calm_em
    python inference.py photo.jpg --load_checkpoint=CALM_EM-CUB --contrast
    python inference.py folder/ --load_checkpoint=calm_em --score_map_process=jointll,grad_cam --format=html
"""
from pathlib import Path

import torch

import config
import util
from dataset.image_files import broken_images, opening_images
from evaluation import session
from evaluation.map_sources import ContrastMaps
from experiment import result_files, weights
from reports.album import DIFFERENCE, PAGE, Album, Explanation
from reports.photos import Photos, find_images
from runtime import processes, screen
from runtime.screen import warn
from wsol.attribution.contrast import find_contrast
from wsol.attribution.registry import METHODS
from wsol.errors import UserError

RUNNER_UP = 'runner-up'
LARGE_PAGE = 100e6  # bytes that a browser is slow with


# --- classes ------------------------------------------------------------------------------------------


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


def class_chooser(target, contrast, count=1):
    """A function of the probabilities (B,C) that gives the classes to be explained, (B,K): the target, with a contrast
    that class, then the likeliest others up to `count` in all.

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


# --- maps ---------------------------------------------------------------------------------------------


class Explainer:
    """Attribution methods, and perhaps a contrast method, of one network: the photos of a batch go through it once.

    methods: the Maps of each. contrast_method: of config's table; None without a contrast. count: how many classes are
    explained.
    """

    def __init__(self, network, images, methods, choose, contrast_method=None, count=1):
        self.choose, self.pair = choose, None
        self.sources = {maps.method: maps.source(images) for maps in methods}
        if contrast_method not in (None, DIFFERENCE):
            self.pair = ContrastMaps(images, network.model, contrast_method, network.args.precision, network.args.seed,
                                     session.sampling_settings(network.args))
        self.count = max(count, 2 if contrast_method == DIFFERENCE else 1)

    def explain(self, batch, indices):
        """For each photo of a batch (probabilities, classes, {method: maps (K,h,w)}, map of the pair or None)."""
        any_source = next(iter(self.sources.values()))
        activations = any_source.forward(batch)
        probs = any_source.probabilities(activations)
        classes = self.choose(probs)
        maps = {name: source(batch, indices, classes[:, :self.count], activations).maps.cpu().numpy()
                for name, source in self.sources.items()}
        pairs = self.pair and self.pair(batch, indices, classes[:, :2], activations).maps.cpu().numpy()
        for row, (own_probs, own_classes) in enumerate(zip(probs.tolist(), classes.tolist(), strict=True)):
            yield (own_probs, own_classes, {name: own[row] for name, own in maps.items()},
                   None if pairs is None else pairs[row, 0])


# --- the command ----------------------------------------------------------------------------------------


def without_swallowed_photo(images, contrast):
    """--contrast photo.jpg: what is a file or a folder is an image, and the contrast is the runner-up. Returns both."""
    if contrast is None or contrast == RUNNER_UP or not Path(contrast).exists():
        return images, contrast
    screen.say(f'--contrast {contrast}: there is a file or folder of this name, so it is taken for images, and the '
             'contrast is the runner-up; a class of this name is said by its number')
    return [*images, contrast], RUNNER_UP


def refuse_what_would_be_ignored(args):
    """Raise UserError for flags that mean something else here than the user may think."""
    methods = args.score_map_process or ()
    if 'scoremap_root' in args.given or config.OBJECT_MASK in methods:
        raise UserError(f'--scoremap_root and --score_map_process={config.OBJECT_MASK} are for the evaluations; here a '
                        'network gives the maps')
    if args.score_map_method == 'backprop' and len(methods) > 1:
        raise UserError('--score_map_method=backprop says nothing of several methods; leave it out, and name backprop '
                        'among them')
    if args.contrast is not None and args.contrast_method in (None, DIFFERENCE) and methods and not any(
            METHODS[name].per_class for name in methods):
        raise UserError(f'{methods[0]} gives one map for all classes: "why A and not B" would be zero everywhere; '
                        'add a method such as jointll, or a --contrast_method')


def contrast_of(args, model):
    """The contrast method, a key of CONTRASTS or DIFFERENCE: the one that is asked for. Else it is the difference of
    the attribution methods that are asked for, or where none is, the head's own. Raises UserError."""
    names_maps = args.score_map_process or args.score_map_method == 'backprop'
    method = args.contrast_method or (DIFFERENCE if names_maps else model.default_contrast)
    if method != DIFFERENCE:
        find_contrast(method, type(model))
    if args.contrast_method is None and method != DIFFERENCE:
        screen.say(f'the contrast is {method}, for the reasons in docs/findings_painted_birds.md; '
                 '--contrast_method=difference subtracts the maps of the two classes')
    return method


def open_methods(args):
    """The Network, its flags completed by the contrast method, and the Maps of each attribution method that is asked
    for. Raises UserError for what the head does not define."""
    network = session.open_network(args, or_classifier=True)
    methods = [session.choose_maps(network, None, score_map_process=name) for name in args.score_map_process or (None,)]
    for maps in methods:
        screen.say(maps.describe())
    if args.contrast is not None:
        network.args.contrast_method = contrast_of(args, network.model)
    return network, methods


def chosen_classes(args, names, num_classes):
    """(target, contrast) of --target and --contrast: classes, None, or RUNNER_UP."""
    target, contrast = (value if value in (None, word) else resolve_class(value, names, num_classes)
                        for value, word in ((args.target, None), (args.contrast, RUNNER_UP)))
    if target is not None and target == contrast:
        raise UserError(f'"why {args.target} and not {args.contrast}" is zero everywhere: they are one class')
    if contrast is not None and num_classes < 2:
        raise UserError('this network knows one class: there is no other to contrast it with')
    return target, contrast


def draw_all(network, images, names, album, explainer):
    """Explain every image and fill the album, batch by batch. Returns {index: its entry in the manifest} of those that
    open, whichever process has explained them."""
    entries = {}
    with screen.progress(None, ', '.join(album.methods), 'image', total=len(images)) as bar:
        for batch, opens, indices in network.loader(images, album.folder):
            explained = explainer.explain(util.to_device(batch, network.device), indices)
            if processes.is_first() and any(opens):  # names the files to come: the next run knows them if this one ends
                write_manifest(network, album, entries)
            for index, is_open, own in zip(indices.tolist(), opens, explained, strict=True):
                if is_open:
                    entries[index] = album.add(Explanation(names[index], images.paths[index], *own))
                bar.update()
            if processes.is_first() and entries:
                write_manifest(network, album, entries)
    album.share(list(entries))
    of_all = {index: entry for own in processes.gather(entries) for index, entry in own.items()}
    return dict(sorted(of_all.items()))


def write_manifest(network, album, entries, finished=False):
    """Write what was explained, and how. entries: of draw_all."""
    settings = config.recorded_settings(network.args) | {'score_map_process': album.methods}
    album.write_manifest(list(entries.values()), finished, **result_files.checkpoint_identity(network.checkpoint),
                         settings=settings, versions=result_files.versions(),
                         machine=result_files.machine(network.device))


def report(entries, album, contrast):
    """Say what was found, where it is, and what is not as it was asked for. entries: of draw_all."""
    entries = list(entries.values())
    for entry in entries[:20]:
        where = f', {album.folder / entry["picture"]}' if 'picture' in entry else ''
        screen.say(f'{entry["image"]}: {entry["class_name"]}, p = {entry["probability"]:.3f}{where}')
    if album.reduced:
        screen.say(f'{len(album.reduced)} of {len(entries)} photos are drawn smaller than they are, as '
                 f'{album.reduced[0]}')
    own = [entry for entry in entries if contrast not in (None, RUNNER_UP)
           and entry['contrast']['class'] != contrast]
    if own:
        warn(f'{len(own)} photos are predicted to be {album.class_name(contrast)} itself, as {own[0]["image"]}: their '
             'contrast is the runner-up')
    if 'html' in album.formats:
        page = album.folder / PAGE
        size = album.page.write(page)
        screen.say(f'{page}: open it in a browser ({size / 1e6:.1f} MB)')
        if size > LARGE_PAGE:
            warn(f'browsers are slow with a page of {size / 1e6:.0f} MB: a smaller --picture_size or --top_k, or fewer '
                 'photos, make it smaller')
    screen.say(f'{len(entries)} images: {album.folder / "manifest.json"}')


def refuse_broken(paths, entries):
    """Raise UserError, when all else is done, for images that do not open."""
    broken = [path for index, path in enumerate(paths) if index not in entries]
    if broken:
        reason = next(iter(broken_images(broken[:1]).values()), f'{broken[0]} did not open')
        raise UserError(f'{reason} ({len(broken)} of {len(paths)} images do not open; the others are explained)')


def make_parser():
    """The parser of this script's flags."""
    parser = config.make_parser(__doc__, *config.MAPS, *config.PICTURES, 'pretrained', 'contrast_method',
                                listed=('score_map_process', 'format'))
    parser.add_argument('images', nargs='*', metavar='PHOTO', help='image files, or folders of images')
    parser.usage = '%(prog)s PHOTO ... [--flag=value ...]'
    return parser


def main():
    args = config.parse(make_parser())
    if 'contrast_method' in args.given and args.contrast is None:
        args.contrast = RUNNER_UP
    args.images, args.contrast = without_swallowed_photo(args.images, args.contrast)
    args.output = args.output or 'maps'
    refuse_what_would_be_ignored(args)
    if not args.images:
        raise UserError('no images: name image files, or folders of images, before the flags')
    found = find_images(args.images, args.output)
    names, paths = list(found), list(found.values())
    network, methods = open_methods(args)
    if args.skip_broken:
        kept = opening_images(paths, 'yours')
        names, paths = [names[row] for row in kept], [paths[row] for row in kept]
    class_names, num_classes = network.checkpoint.class_names or [], network.model.conv_last.out_channels
    target, contrast = chosen_classes(args, class_names, num_classes)
    contrast_method = None if contrast is None else network.args.contrast_method
    images = Photos(paths, network.transform(), class_names)
    # the page has a map for each class that can be chosen there
    count = max(args.top_k, 1 if contrast is None else 2) if 'html' in args.format else 1
    explainer = Explainer(network, images, methods, class_chooser(target, contrast, count), contrast_method, count)
    path = network.checkpoint.path
    title = f'{network.args.attribution_method}, {network.args.architecture}, weights of ' + (
        path.parent.name if path.name == weights.FILE else path.name)
    album = Album(args.output, class_names, list(explainer.sources), contrast_method, args.overlay, args.picture_size,
                  args.format, title)
    if processes.is_first():
        album.claim(names)
    entries = draw_all(network, images, names, album, explainer)
    if processes.is_first():
        if entries:
            report(entries, album, contrast)
            write_manifest(network, album, entries, finished=True)
        refuse_broken(paths, entries)


if __name__ == '__main__':
    screen.run(main)
