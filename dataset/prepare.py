"""Prepare a data set: find or download its archives, verify, unpack, write its metadata, check.

Each step says what it does; what is done already is not done again, and a half-unpacked set is never in place.
Source of the lists and boxes that the official annotations do not give: the WSOL evaluation's
repository (Choe et al., CVPR 2020), at a pinned commit.

    python dataset/prepare.py cub                          downloads, unpacks, checks
    python dataset/prepare.py imagenet --archive ILSVRC2012_img_val.tar --archive ...
    python dataset/prepare.py all                          everything that can be had
    python dataset/prepare.py check CUB                    opens every image, checks labels and boxes
"""
import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from the repository's root

from munch import Munch  # noqa: E402

from dataset import check, toybirds  # noqa: E402
from dataset.archives import base_name, staged, unpack, unpack_nested  # noqa: E402
from dataset.download import Gone, drive_url, fetch, verify  # noqa: E402
from dataset.imagenet import drop, rename, restore, test_lists, train_lists  # noqa: E402
from dataset.metadata import corners_of, image_sizes, read_columns, write_split  # noqa: E402
from util import UserError, progress, run, warn  # noqa: E402

REPOSITORY = 'https://raw.githubusercontent.com/clovaai/wsolevaluation'
LISTS_COMMIT = 'b5c1e8a99868d5b2e869aa7f3f5ad8c310b16ca3'    # ids, labels, sizes, boxes
MAPPING_COMMIT = 'e9972606b18064ea886f098f2b5b29b9ade75f09'  # ImageNetV2's old names -> new names
IMAGENET_PAGE = 'https://image-net.org/download-images'
SPLITS = ('train', 'val', 'test')
PHOTOS = {'.jpg', '.jpeg'}  # masks are .png


@dataclass(frozen=True)
class Source:
    """An archive: its file name, where it comes from (None: the user's own account), how to know it."""
    file: str
    url: str | None = None
    size: int | None = None
    md5: str | None = None
    by_hand: str | None = None


def _drive(file, file_id):
    return Source(file, drive_url(file_id), by_hand=f'https://drive.google.com/file/d/{file_id}/view')


CUB_IMAGES = Source('CUB_200_2011.tgz', 'https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1',
                    1_150_585_339, '97eceeb196236b17998738112f37df78')
CUB_MASKS = Source('segmentations.tgz', 'https://data.caltech.edu/records/w9d68-gec53/files/segmentations.tgz?download=1',
                   39_272_883, '4d47ba1228eae64f2fa547c47bc65255')
CUBV2 = _drive('CUBV2.tar', '1U6cwKHS65wayT9FFvoLIA8cn1k0Ot2M1')
IMAGENET_TRAIN = Source('ILSVRC2012_img_train.tar', None, 147_897_477_120, '1d675b47d978889d74fa0da5fadfb00e',
                        IMAGENET_PAGE)
IMAGENET_VAL = Source('ILSVRC2012_img_val.tar', None, 6_744_924_160, '29b22e2961454d5413ddabcf34fc5622', IMAGENET_PAGE)
IMAGENET_BOXES = Source('ILSVRC2012_bbox_val_v3.tgz', None, by_hand=IMAGENET_PAGE)
IMAGENETV2 = Source('imagenetv2-threshold0.7.tar.gz',
                    'https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-threshold0.7.tar.gz')
OPENIMAGES = _drive('OpenImages_images.zip', '1oOb4WQ-lb8SYppHEg3lWnpHk1X8WVO4e')
OPENIMAGES_MASKS = _drive('OpenImages_annotations.zip', '1eu1YvcZlsEalhXTS_5Ni5tkImCliIPie')
ARCHIVES = [source.file for source in (CUB_IMAGES, CUB_MASKS, CUBV2, IMAGENET_TRAIN, IMAGENET_VAL, IMAGENET_BOXES,
                                       IMAGENETV2, OPENIMAGES, OPENIMAGES_MASKS)]
LISTS = ('class_labels.txt', 'image_sizes.txt', 'localization.txt', 'image_ids.txt')


class Place:
    """Where things go, and which archives the user has named."""

    def __init__(self, data_root, metadata_root, archives=()):
        self.data, self.metadata, self.archives = Path(data_root), Path(metadata_root), [Path(a) for a in archives]
        missing = [str(path) for path in self.archives if not path.is_file()]
        if missing:
            raise UserError(f'--archive={missing[0]}: no such file')
        unknown = [str(path) for path in self.archives if path.name not in ARCHIVES]
        if unknown:
            raise UserError(f'--archive={unknown[0]}: an archive is known by its name, one of {", ".join(ARCHIVES)}; '
                            'rename or link it')

    def archive(self, source):
        """The path of an archive, verified: one of --archive, one in the data folder, or downloaded there."""
        own = next((path for path in self.archives if path.name == source.file), self.data / source.file)
        if not own.exists() and source.url is None:
            raise UserError(f'{source.file} needs your own account: get it from {source.by_hand} and give it by '
                            f'--archive, or put it at {own}')
        print(f'{own}: ' + ('verifying' if own.exists() else f'downloading from {source.by_hand or source.url}'))
        if own.exists():
            verify(own, source.size, source.md5)
        else:
            fetch(source.url, own, source.size, source.md5, by_hand=source.by_hand)
        return own

    def has_lists(self, name, split):
        """Whether all metadata files of a split are there."""
        return all((self.metadata / name / split / file).is_file() for file in LISTS)

    def lists(self, name, split, files=LISTS, commit=LISTS_COMMIT):
        """Download a split's metadata files, those that are not there."""
        for file in files:
            fetch(f'{REPOSITORY}/{commit}/metadata/{name}/{split}/{file}', self.metadata / name / split / file)


# who prepares a split, and where its images lie below the data folder
SPLIT_FOLDERS = {'CUB': {'train': ('cub', 'CUB/images'), 'val': ('cubv2', 'CUBV2'), 'test': ('cub', 'CUB/images')},
                 'ILSVRC': {'train': ('imagenet', 'ILSVRC'), 'val': ('imagenetv2', 'ImageNetV2'),
                            'test': ('imagenet', 'ILSVRC')},
                 'OpenImages': dict.fromkeys(SPLITS, ('openimages', 'OpenImages')),
                 'ToyBirds': dict.fromkeys(SPLITS, ('toybirds', 'ToyBirds/images'))}


def _report(name, place):
    """Compare the files with the lists; say what is ready, missing and surplus, and the next command."""
    listed, todo, incomplete = {}, set(), False
    for split, (recipe, below) in SPLIT_FOLDERS[name].items():
        ids_path, folder = place.metadata / name / split / 'image_ids.txt', place.data / below
        if not ids_path.exists() or not folder.is_dir():
            print(f'{name} {split}: not prepared')
            todo.add(recipe)
            continue
        ids = {image_id.decode() for image_id in read_columns(ids_path, 0)[0]}
        listed.setdefault(folder, set()).update(ids)
    for folder, ids in listed.items():
        files = {path.relative_to(folder).as_posix() for path in
                 progress(folder.rglob('*'), f'looking through {folder}', 'file', leave=False)
                 if path.suffix.lower() in PHOTOS}
        missing, surplus = sorted(ids - files), sorted(files - ids)
        print(f'{folder}: {len(ids) - len(missing):,} of {len(ids):,} listed images are there')
        if missing:
            incomplete = True
            warn(f'{folder}: {len(missing):,} images are missing, the first {", ".join(missing[:3])}. To unpack it '
                 'again, move it away first')
        if surplus:
            print(f'{folder}: {len(surplus):,} images are in no list, the first {", ".join(surplus[:3])}')
    commands = [f'python dataset/prepare.py {recipe}' for recipe in sorted(todo)]
    commands += [f'python dataset/prepare.py check {name}, which lists them all'] if incomplete else []
    print('next: ' + '; '.join([*commands, *([] if incomplete else [f'python main.py --dataset={name}'])]))


# --- CUB --------------------------------------------------------------------------------------------------

def cub_metadata(root, metadata, size_of=None):
    """CUB's train and test lists from its official annotations, equal to the WSOL evaluation's.

    root: the folder with images.txt, ... size_of: a function (image id) -> (width, height), default the photos'.
    """
    def column(file):
        return [line.split()[1:] for line in (root / file).read_text().splitlines() if line.strip()]

    try:
        ids = [row[0] for row in column('images.txt')]
        labels = [int(row[0]) - 1 for row in column('image_class_labels.txt')]
        training = [row[0] == '1' for row in column('train_test_split.txt')]
        boxes = [tuple(map(float, row)) for row in column('bounding_boxes.txt')]
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f'{root}: CUB\'s annotations do not parse ({error})') from error
    for split, wanted in (('train', True), ('test', False)):
        chosen = [index for index, train in enumerate(training) if train == wanted]
        names = [ids[index] for index in chosen]
        paths = [root / 'images' / name for name in names]
        sizes = image_sizes(paths) if size_of is None else [size_of(name) for name in names]
        own = [[corners_of(boxes[index], size)] for index, size in zip(chosen, sizes, strict=True)]
        write_split(metadata / 'CUB' / split, names, [labels[index] for index in chosen], sizes, own)


def prepare_cub(place):
    """CUB-200-2011 (Wah et al. 2011) with its segmentations, as dataset/CUB."""
    target = place.data / 'CUB'
    if not target.exists():
        archives = [place.archive(CUB_IMAGES), place.archive(CUB_MASKS)]
        with staged(target) as partial:
            # CUB_200_2011/* and, one level up, attributes.txt
            unpack(archives[0], partial, lambda name: name.removeprefix('./').removeprefix('CUB_200_2011/'))
            # segmentations/<class>/*.png; eight stray *_rgb.jpg belong to nothing
            unpack(archives[1], partial, lambda name: name.removeprefix('./') if name.endswith('.png') else None)
    if not all(place.has_lists('CUB', split) for split in ('train', 'test')):
        cub_metadata(target, place.metadata)
    missing = [name for name in ('segmentations', 'parts', 'attributes') if not (target / name).is_dir()]
    if missing:
        warn(f'{target} has no {", ".join(missing)}/, which cue localization needs: move it away, prepare it anew')
    _report('CUB', place)


def prepare_cubv2(place):
    """CUBV2 (Choe et al. 2020), the val split, as dataset/CUBV2."""
    target = place.data / 'CUBV2'
    if not target.exists():
        archive = place.archive(CUBV2)
        with staged(target) as partial:  # .../<class>/<photo>.jpg, whatever stands before
            unpack(archive, partial, lambda name: '/'.join(PurePosixPath(name).parts[-2:])
                   if re.fullmatch(r'\d{3}\..+', PurePosixPath(name).parent.name) else None)
    place.lists('CUB', 'val')
    _report('CUB', place)


# --- ImageNet ------------------------------------------------------------------------------------------------

def prepare_imagenet(place):
    """ImageNet (ILSVRC 2012) train and val, which is the test split, as dataset/ILSVRC: what can be had of it."""
    root, problems = place.data / 'ILSVRC', []
    for folder, source, extract in (
            ('val', IMAGENET_VAL, lambda archive, into: unpack(archive, into, base_name)),
            ('train', IMAGENET_TRAIN, unpack_nested)):
        if not (root / folder).exists():
            try:
                archive = place.archive(source)
                with staged(root / folder) as partial:
                    extract(archive, partial)
            except UserError as error:
                problems.append(str(error))
    if (root / 'train').is_dir() and not place.has_lists('ILSVRC', 'train'):
        train_lists(root, place.metadata)
    if (root / 'val').is_dir() and not place.has_lists('ILSVRC', 'test'):
        _imagenet_test_lists(place, root)
    _report('ILSVRC', place)
    if problems:
        raise UserError('; '.join(problems))


def _imagenet_test_lists(place, root):
    """From the devkit's boxes and the training set's synsets where both are there, else downloaded."""
    boxes = next((path for path in (*place.archives, place.data / IMAGENET_BOXES.file)
                  if path.name == IMAGENET_BOXES.file and path.is_file()), None)
    if boxes is None or not (root / 'train').is_dir():
        place.lists('ILSVRC', 'test')
        return
    with staged(root / 'boxes') as partial:
        unpack(boxes, partial, lambda name: base_name(name) if name.endswith('.xml') else None)
    test_lists(place.metadata, root / 'boxes', sorted(path.name for path in (root / 'train').iterdir()))


def prepare_imagenetv2(place):
    """ImageNetV2 threshold-0.7 (Recht et al. 2019), the val split, as dataset/ImageNetV2/val2."""
    target, lists = place.data / 'ImageNetV2', place.metadata / 'ILSVRC' / 'val'
    if not target.exists():
        restore(lists)
    place.lists('ILSVRC', 'val')
    if not target.exists():
        archive, mapping = place.archive(IMAGENETV2), lists / 'mapping.txt'
        try:
            place.lists('ILSVRC', 'val', ('mapping.txt',), MAPPING_COMMIT)
        except Gone as error:  # any other failure may pass: it stops here, and the next call goes on
            warn(f'no mapping of the new file names ({error}); matching by image size and boxes instead')
            mapping = None
        with staged(target) as partial:  # imagenetv2-threshold0.7-format-val/<class>/<hash>.jpeg
            unpack(archive, partial, lambda name: '/'.join(('val2', *PurePosixPath(name).parts[-2:]))
                   if PurePosixPath(name).parent.name.isdecimal() else None)
            total, lost = rename(partial, lists, mapping)
            if lost and (mapping or len(lost) == total):
                raise UserError(f'{archive} is not the archive it should be: {len(lost):,} of the {total:,} images of '
                                f'{lists} are not in it, by {mapping or "size and boxes"}; the first: {lost[0]}')
        if lost:
            drop(lists, set(lost))
            warn(f'{len(lost):,} of the {total:,} images of ImageNetV2 could not be told apart by size and boxes, the '
                 f'first: {", ".join(lost[:3])}. They are out of the val lists, which {lists / "whole"} keeps whole. '
                 f'To try again with {lists / "mapping.txt"}, move {target} away and call again')
    _report('ILSVRC', place)


# --- OpenImages and the rest ------------------------------------------------------------------------------

def _from_split(name):
    """Whatever stands before train/, val/ or test/ is left out; so is what lies in none of them."""
    parts = PurePosixPath(name).parts
    start = next((index for index, part in enumerate(parts[:-1]) if part in SPLITS), None)
    return None if start is None else '/'.join(parts[start:])


def prepare_openimages(place):
    """OpenImages30k (Choe et al. 2020; Benenson et al. 2019), images and masks, as dataset/OpenImages."""
    target = place.data / 'OpenImages'
    if not target.exists():
        archives = [place.archive(OPENIMAGES), place.archive(OPENIMAGES_MASKS)]
        with staged(target) as partial:
            for archive in archives:
                unpack(archive, partial, _from_split)
    for split in SPLITS:
        place.lists('OpenImages', split, ('class_labels.txt', *(('localization.txt',) if split != 'train' else ()),
                                          'image_ids.txt'))
    _report('OpenImages', place)


def prepare_toybirds(place):
    """ToyBirds, painted."""
    toybirds.ensure(place.data, place.metadata)
    _report('ToyBirds', place)


RECIPES = {'toybirds': prepare_toybirds, 'cub': prepare_cub, 'cubv2': prepare_cubv2, 'imagenet': prepare_imagenet,
           'imagenetv2': prepare_imagenetv2, 'openimages': prepare_openimages}


def prepare_all(place):
    """Every recipe; what cannot be had is said at the end."""
    failed = {}
    for name, recipe in RECIPES.items():
        print(f'--- {name}')
        try:
            recipe(place)
        except UserError as error:
            failed[name] = str(error)
    if failed:
        raise UserError('not prepared: ' + '; '.join(f'{name} ({reason})' for name, reason in failed.items()))


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f'{message} (--help explains)')


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=[*RECIPES, 'all', 'check'], help='the data set; or check, and a data set')
    parser.add_argument('dataset', nargs='?', help='check: CUB, ILSVRC, OpenImages, ToyBirds or a folder of your own')
    parser.add_argument('--archive', action='append', default=[], help='an archive that you have; repeatable')
    parser.add_argument('--data_root', default='dataset/', help='where the images go (default: dataset/)')
    parser.add_argument('--metadata_root', default='metadata/', help='where the lists go (default: metadata/)')
    args = Munch(vars(parser.parse_args()))
    if args.name == 'check':
        if args.dataset is None:
            raise UserError('check which data set? For example: python dataset/prepare.py check CUB')
        found = check.check_dataset(args)
        print(json.dumps(check.summary(found), indent=1))
        sys.exit(1 if any(found.values()) else 0)
    if args.dataset is not None:
        raise UserError(f'unexpected "{args.dataset}"; only check takes a data set')
    place = Place(args.data_root, args.metadata_root, args.archive)
    (prepare_all if args.name == 'all' else RECIPES[args.name])(place)


if __name__ == '__main__':
    run(main)
