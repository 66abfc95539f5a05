"""ImageNet's lists from its folders and annotations; ImageNetV2's files under the names that its lists use."""
import xml.etree.ElementTree

from dataset.lists import leads_out, read_columns
from dataset.metadata import write_split
from runtime.screen import progress
from wsol.errors import UserError


def _synsets(data):
    """The names of the training set's class folders in order, which is that of the class numbers."""
    folder = data.image_folders['train'] / 'train'
    synsets = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(synsets) != data.num_classes:
        raise UserError(f'{folder} has {len(synsets)} class folders, not {data.num_classes}: labels would be shifted. '
                        'Move it away and prepare it anew')
    return synsets


def write_train_lists(data):
    """The lists of ImageNet's training set from its folders. data: the DataSet."""
    root, ids, labels = data.image_folders['train'], [], []
    for label, synset in enumerate(progress(_synsets(data), 'listing', 'class')):
        names = sorted(path.name for path in (root / 'train' / synset).iterdir())
        ids += [f'train/{synset}/{name}' for name in names]
        labels += [label] * len(names)
    write_split(data.list_folders['train'], ids, labels)


def write_test_lists(data, annotations):
    """The test lists (ImageNet's val images) from the devkit's XML: boxes, sizes, and the class of the objects.

    data: the DataSet, whose training images are there. annotations: the folder of the XML files.
    """
    label_of = {synset: label for label, synset in enumerate(_synsets(data))}
    ids, labels, sizes, boxes = [], [], [], []
    for path in progress(sorted(annotations.rglob('*.xml')), 'reading boxes', 'file'):
        try:
            tree = xml.etree.ElementTree.parse(path)
            width, height = (int(tree.findtext(f'size/{side}')) for side in ('width', 'height'))
            objects = tree.findall('object')
            corners = [[int(thing.findtext(f'bndbox/{key}')) for key in ('xmin', 'ymin', 'xmax', 'ymax')]
                       for thing in objects]
            labels.append(label_of[objects[0].findtext('name')])
        except (xml.etree.ElementTree.ParseError, TypeError, ValueError, LookupError) as error:
            raise UserError(f'{path} does not parse as an ImageNet annotation: '
                            f'{type(error).__name__} {error}') from error
        ids.append(f'val/{path.stem}.JPEG')
        sizes.append((width, height))
        boxes.append([(x0, y0, min(x1, width - 1), min(y1, height - 1)) for x0, y0, x1, y1 in corners])
    write_split(data.list_folders['test'], ids, labels, sizes, boxes)


def rename(data, folder):
    """Give ImageNetV2's files the names that its lists use, by the published mapping.txt beside the lists.

    folder: where val2/<class>/<hash>.jpeg become val2/<class>/<n>.jpeg. Raises UserError unless all are there then.
    """
    lists = data.list_folders['val']
    mapping = lists / 'mapping.txt'
    for number, line in enumerate(mapping.read_text(errors='replace').splitlines(), 1):
        names = [name.strip() for name in line.split(',')]
        if len(names) != 2 or any(leads_out(name.encode()) for name in names):
            raise UserError(f'{mapping}, line {number}: expected "old name, new name", found "{line}"')
        old, new = (folder / 'val2' / name for name in names)
        if new.is_file():
            new.rename(old)
    image_ids = [image_id.decode() for image_id in read_columns(lists / 'image_ids.txt', 0)[0]]
    lost = [image_id for image_id in image_ids if not (folder / image_id).is_file()]
    if lost:
        raise UserError(f'ImageNetV2\'s archive is not the archive it should be: by {mapping}, {len(lost):,} of the '
                        f'{len(image_ids):,} images are not in it, the first {lost[0]}')
