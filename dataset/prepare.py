"""Prepare a data set: find or download its archives, verify and unpack them, get its lists, compare files and lists.

A step that is done already is skipped, and a half-unpacked data set is never in place. Source of the lists: the
repository of the WSOL evaluation (Choe et al., CVPR 2020) at a pinned commit; CUB's train and test lists come from its
own annotations, ImageNet's train lists from its folders.

    python dataset/prepare.py cub                          downloads, unpacks, checks
    python dataset/prepare.py imagenet --archive ILSVRC2012_img_val.tar --archive ...
    python dataset/prepare.py all                          every data set that can be downloaded
    python dataset/prepare.py check CUB                    opens every image, checks labels and boxes
"""
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a run as a script from the repository's root

from dataset import check, official_lists, open_dataset
from dataset.archives import GROWTH, staged, unpack
from dataset.download import Lock, drive_urls, fetch
from dataset.lists import LISTS
from dataset.registry import SPLITS, find_dataset
from runtime.command_line import number, plain_parser
from runtime.screen import run, say, warn
from runtime.whole_files import write_json
from wsol.errors import UserError

REPOSITORY = 'https://raw.githubusercontent.com/clovaai/wsolevaluation'
LISTS_COMMIT = 'b5c1e8a99868d5b2e869aa7f3f5ad8c310b16ca3'    # ids, labels, sizes, boxes
MAPPING_COMMIT = 'e9972606b18064ea886f098f2b5b29b9ade75f09'  # mapping.txt: ImageNetV2's old names, new names
CALTECH = 'https://data.caltech.edu/records'
IMAGENET = 'https://image-net.org/download-images'
FROM_SPLIT = r'(?:.+?/)??((?:train|val|test)/.+)'  # whatever folders stand before


@dataclass(frozen=True)
class Archive:
    """An archive: where its files go, where it comes from, and how to know that it is the right one."""
    file: str                   # its name
    folder: str                 # below the data folder
    wanted: str                 # the pattern of the files to unpack; its first group is their path in the folder
    url: str | None             # None if only the user's own account gives it
    by_hand: str | None = None  # the address for a browser, if it is another one
    size: int | None = None     # bytes
    md5: str | None = None      # None if nobody publishes it: the SHA-256 is then recorded at first use


@dataclass(frozen=True)
class Recipe:
    """How a data set, or a split of it, is prepared."""
    dataset: str                         # its name in registry.DATASETS
    archives: tuple[Archive, ...] = ()   # archives of one folder are unpacked into it together
    downloads: dict[str, tuple[str, ...]] = field(default_factory=dict)  # split -> lists to download from REPOSITORY
    finish: Callable | None = None       # (DataSet, folder): renames the files that were just unpacked
    write_lists: Callable | None = None  # DataSet: makes the lists that are not in downloads


def write_missing_cub_lists(data):
    """Make the training and test lists from the annotations; warn if cue localization will lack files."""
    if not data.cub_root.is_dir():
        return
    if not (has_lists(data, 'train') and has_lists(data, 'test')):
        official_lists.write_cub_lists(data)
    missing = [name for name in ('segmentations', 'parts', 'attributes') if not (data.cub_root / name).is_dir()]
    if missing:
        warn(f'{data.cub_root} has no {", ".join(missing)}/, which cue localization needs. To unpack it again, move it '
             'away first')


def write_missing_imagenet_lists(data):
    """Make the training lists from the class folders, and download the test lists, each if its images are there."""
    if (data.image_folders['train'] / 'train').is_dir() and not has_lists(data, 'train'):
        official_lists.write_train_lists(data)
    if (data.image_folders['test'] / 'val').is_dir():
        download_lists(data, 'test')


def download_lists(data, split, files=LISTS):
    """Download the lists of a split, unless they are there."""
    for file in files:
        commit = MAPPING_COMMIT if file == 'mapping.txt' else LISTS_COMMIT
        fetch(f'{REPOSITORY}/{commit}/metadata/{data.name}/{split}/{file}', data.list_folders[split] / file)


def has_lists(data, split):
    return (data.list_folders[split] / LISTS[-1]).is_file()  # which is written last


RECIPES = {
    'toybirds': Recipe('ToyBirds'),  # painted when it is opened
    'cub': Recipe('CUB', (
        # attributes.txt lies above CUB_200_2011/
        Archive('CUB_200_2011.tgz', 'CUB', r'(?:CUB_200_2011/)?(.+)',
                f'{CALTECH}/65de6-vp158/files/CUB_200_2011.tgz?download=1', size=1_150_585_339,
                md5='97eceeb196236b17998738112f37df78'),
        # beside the masks there are eight stray *_rgb.jpg
        Archive('segmentations.tgz', 'CUB', r'(.+\.png)', f'{CALTECH}/w9d68-gec53/files/segmentations.tgz?download=1',
                size=39_272_883, md5='4d47ba1228eae64f2fa547c47bc65255'),
    ), write_lists=write_missing_cub_lists),
    'cubv2': Recipe('CUB', (
        Archive('CUBV2.tar', 'CUBV2', r'(?:.+/)?(\d{3}\.[^/]+/[^/]+)',
                *drive_urls('1U6cwKHS65wayT9FFvoLIA8cn1k0Ot2M1')),
    ), {'val': LISTS}),
    'imagenet': Recipe('ILSVRC', (
        Archive('ILSVRC2012_img_val.tar', 'ILSVRC/val', r'(?:.+/)?([^/]+)', None, IMAGENET, 6_744_924_160,
                '29b22e2961454d5413ddabcf34fc5622'),
        Archive('ILSVRC2012_img_train.tar', 'ILSVRC/train', r'(?:.+/)?(n\d+/[^/]+)', None, IMAGENET, 147_897_477_120,
                '1d675b47d978889d74fa0da5fadfb00e'),
    ), write_lists=write_missing_imagenet_lists),
    'imagenetv2': Recipe('ILSVRC', (
        Archive('imagenetv2-threshold0.7.tar.gz', 'ImageNetV2/val2', r'(?:.+/)?(\d+/[^/]+)',
                'https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-threshold0.7.tar.gz'),
    ), {'val': (*LISTS, 'mapping.txt')}, finish=official_lists.rename),
    'openimages': Recipe('OpenImages', (
        Archive('OpenImages_images.zip', 'OpenImages', FROM_SPLIT, *drive_urls('1oOb4WQ-lb8SYppHEg3lWnpHk1X8WVO4e')),
        Archive('OpenImages_annotations.zip', 'OpenImages', FROM_SPLIT,
                *drive_urls('1eu1YvcZlsEalhXTS_5Ni5tkImCliIPie')),
    ), {'train': ('class_labels.txt', 'image_ids.txt'),
        **dict.fromkeys(('val', 'test'), ('class_labels.txt', 'localization.txt', 'image_ids.txt'))}),
}


class Workspace:
    """The folders to fill, the archives that the user has named, and the bytes that an archive may unpack to."""

    def __init__(self, data_root, metadata_root, named=(), unpack_limit=None):
        self.data_root, self.metadata_root, self.unpack_limit = Path(data_root), Path(metadata_root), unpack_limit
        self.named = {Path(path).name: Path(path) for path in named}
        self.lock = Lock(self.data_root / 'archives.lock.json')
        known = [archive.file for recipe in RECIPES.values() for archive in recipe.archives]
        for name, path in self.named.items():
            if not path.is_file():
                raise UserError(f'--archive={path}: no such file')
            if name not in known:
                raise UserError(f'--archive={path}: an archive is known by its name, one of {", ".join(known)}; '
                                'rename or link it')

    def obtain(self, archive):
        """The path of an archive, verified: given by --archive, in the data folder already, or downloaded there."""
        path, source = self.named.get(archive.file, self.data_root / archive.file), archive.by_hand or archive.url
        if not path.exists() and archive.url is None:
            raise UserError(f'{archive.file} needs your own account: get it from {source} and give it by --archive, or '
                            f'put it at {path}')
        say(f'{path}: ' + ('verifying' if path.exists() else f'downloading from {source}'))
        expected = {'size': archive.size, 'md5': archive.md5} if archive.md5 else self.lock.expected(archive.file)
        fetch(archive.url, path, archive.by_hand, **expected)
        return path


def follow(recipe, workspace):
    """Prepare what a recipe says, as far as possible. Raises UserError for the rest at the end."""
    data, problems = open_dataset(recipe.dataset, workspace.data_root, workspace.metadata_root), []
    for split, files in recipe.downloads.items():
        download_lists(data, split, files)
    for folder in dict.fromkeys(archive.folder for archive in recipe.archives):
        try:
            fill(folder, recipe, data, workspace)
        except UserError as error:
            problems.append(str(error))
    if recipe.write_lists is not None:
        recipe.write_lists(data)
    report(data)
    if problems:
        raise UserError('; '.join(problems))


def fill(folder, recipe, data, workspace):
    """Unpack the archives of a folder, unless it is there: aside, and put in place when it is whole."""
    target = workspace.data_root / folder
    if target.exists():
        return
    paths = {archive: workspace.obtain(archive) for archive in recipe.archives if archive.folder == folder}
    with staged(target) as unfinished:
        if target.exists():  # another process has made it meanwhile
            return
        for archive, path in paths.items():
            unpack(path, unfinished, archive.wanted, workspace.unpack_limit)
        if recipe.finish is not None:
            recipe.finish(data, unfinished)
    for archive, path in paths.items():
        if archive.md5 is None:
            workspace.lock.record(archive.file, path)


def report(data):
    """Compare the files of a DataSet with its lists; say what is ready, missing and surplus, and what to run next."""
    listed = {split: ids for split, ids in check.listed_images(data).items() if data.image_folders[split].is_dir()}
    absent = [split for split in SPLITS if split not in listed]
    for split in absent:
        say(f'{data.name} {split}: not prepared')
    commands = sorted({data.prepare[split] for split in absent})
    complete = f'python main.py --dataset={data.name}'
    for folder, (ids, missing, surplus) in check.compare(data, listed).items():
        say(f'{folder}: {len(ids) - len(missing):,} of {len(ids):,} listed images are there')
        if missing:
            complete = f'python dataset/prepare.py check {data.name}, which lists them all'
            warn(f'{folder}: {len(missing):,} images are missing, the first {", ".join(missing[:3])}. To unpack it '
                 'again, move it away first')
        if surplus:
            say(f'{folder}: {len(surplus):,} images are in no list, the first {", ".join(surplus[:3])}')
    say('next: ' + '; '.join([*commands, complete]))


def follow_all(names, workspace):
    """Follow the recipes of these names. Raises UserError at the end for those that fail."""
    failed = []
    for name in names:
        say(f'--- {name}')
        try:
            follow(RECIPES[name], workspace)
        except UserError as error:
            failed.append(f'{name} ({error})')
    if failed:
        raise UserError('not prepared: ' + '; '.join(failed))


def check_one(name, workspace):
    """Check a data set: show a summary of the problems, write all of them to a file, exit with 1 if there are any."""
    data = find_dataset(name, workspace.data_root, workspace.metadata_root)
    problems = check.check_dataset(data)
    write_json(workspace.data_root / f'check_{Path(data.name).name}.json', problems)
    shown = {kind: {'count': len(where), 'first': where[:5]} if where else 0 for kind, where in problems.items()}
    say(json.dumps(shown, indent=1))
    sys.exit(1 if any(problems.values()) else 0)


def main():
    parser = plain_parser(__doc__)
    parser.add_argument('name', choices=[*RECIPES, 'all', 'check'], help='the data set; or check, and a data set')
    parser.add_argument('dataset', nargs='?', help='check: CUB, ILSVRC, OpenImages, ToyBirds or a folder of your own')
    parser.add_argument('--archive', action='append', default=[], help='an archive that you have; repeatable')
    parser.add_argument('--data_root', default='dataset/', help='where the images go (default: dataset/)')
    parser.add_argument('--metadata_root', default='metadata/', help='where the lists go (default: metadata/)')
    parser.add_argument('--unpack_limit', type=number(float, 0, False, 1e9), metavar='GB', help='what one archive may '
                        f'unpack to (default: {GROWTH} times its size, and 1)')
    args = parser.parse_args()
    limit = None if args.unpack_limit is None else int(args.unpack_limit * 1e9)
    workspace = Workspace(args.data_root, args.metadata_root, args.archive, limit)
    if args.name == 'check':
        if args.dataset is None:
            raise UserError('check which data set? For example: python dataset/prepare.py check CUB')
        check_one(args.dataset, workspace)
    elif args.dataset is not None:
        raise UserError(f'unexpected "{args.dataset}"; only check takes a data set')
    else:
        follow_all(RECIPES if args.name == 'all' else [args.name], workspace)


if __name__ == '__main__':
    run(main)
