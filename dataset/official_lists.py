"""CUB's lists from its annotations, ImageNet's from its folders; ImageNetV2's files renamed as its lists say."""
from dataset.image_files import stored_size
from dataset.image_folders import in_threads
from dataset.lists import read_columns, read_rows, write_split
from runtime.command_line import RATE
from runtime.screen import progress
from wsol.annotations import whole_number
from wsol.annotations.cub import read_by_id
from wsol.errors import UserError

# --- CUB --------------------------------------------------------------------------------------------


def corners_of(box, size):
    """CUB's x, y, width, height -> the WSOL evaluation's x0, y0, x1, y1, within an image of size (width, height)."""
    x, y, width, height = box
    return int(x), int(y), min(int(x + width), size[0] - 1), min(int(y + height), size[1] - 1)


def write_cub_lists(data):
    """Write CUB's train and test lists, equal to the WSOL evaluation's; the annotations are joined by their ids.

    data: the DataSet. Raises UserError where the annotations do not fit, naming the file, and the line or the id.
    """
    root, classes = data.cub_root, range(data.num_classes)
    names = read_by_id(root / 'images.txt')
    labels = _values(root / 'image_class_labels.txt', names, lambda text: classes.index(whole_number(text) - 1),
                     f'1 to {data.num_classes}')
    splits = _values(root / 'train_test_split.txt', names, {'1': 'train', '0': 'test'}.__getitem__, '1 or 0')
    boxes = _values(root / 'bounding_boxes.txt', names, _box, 'the numbers x y width height')
    for split in ('train', 'test'):
        keys = [key for key in names if splits[key] == split]
        sizes = in_threads(stored_size, [data.image_folders[split] / names[key] for key in keys], 'image sizes')
        write_split(data.list_folders[split], [(names[key], labels[key], size, [corners_of(boxes[key], size)])
                                               for key, size in zip(keys, sizes, strict=True)])


def _values(path, names, parse, expected):
    """{id: parse(value)} of a file that has a value for every id of names."""
    values = read_by_id(path, names)
    for key, text in values.items():
        try:
            values[key] = parse(text)
        except (ValueError, KeyError, UserError) as error:
            raise UserError(f'{path}: expected {expected} for the id {key}, found "{text}"') from error
    return values


def _box(text):
    x, y, width, height = map(RATE, text.split())  # RATE: a finite number from 0
    return x, y, width, height


# --- ImageNet ---------------------------------------------------------------------------------------


def write_train_lists(data):
    """Write the lists of ImageNet's training set: the order of the class folders' names is that of the class numbers.

    data: the DataSet. Raises UserError unless all class folders are there.
    """
    folder = data.image_folders['train'] / 'train'
    synsets = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(synsets) != data.num_classes:
        raise UserError(f'{folder} has {len(synsets)} class folders, not {data.num_classes}: labels would be shifted. '
                        'Move it away and prepare it anew')
    write_split(data.list_folders['train'], [
        (f'train/{synset}/{path.name}', label) for label, synset in enumerate(progress(synsets, 'listing', 'class'))
        for path in sorted((folder / synset).iterdir())])


def rename(data, folder):
    """Give ImageNetV2's files the names that its lists use, by the published mapping.txt beside the lists.

    folder: of val2/, where <class>/<hash>.jpeg become <class>/<n>.jpeg. Raises UserError unless all are there then.
    """
    lists = data.list_folders['val']
    mapping = lists / 'mapping.txt'
    for _, *names in read_rows(mapping, 'old name, new name'):
        old, new = (folder / name.decode() for name in names)
        if new.is_file():
            new.rename(old)
    image_ids = [image_id.decode().removeprefix('val2/') for image_id in read_columns(lists / 'image_ids.txt')[0]]
    lost = [image_id for image_id in image_ids if not (folder / image_id).is_file()]
    if lost:
        raise UserError(f'ImageNetV2\'s archive is not the archive it should be: by {mapping}, {len(lost):,} of the '
                        f'{len(image_ids):,} images are not in it, the first {lost[0]}')
