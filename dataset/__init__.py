"""Data sets on disk: downloaded, verified, unpacked, painted (prepare.py), and opened."""
from dataset import registry, toybirds


def open_dataset(name, data_root='dataset/', metadata_root='metadata/', mask_root=None, class_names=None):
    """The registry.DataSet of a name or of the user's own folder; ToyBirds is painted where it is not there yet.

    data_root, metadata_root, mask_root: the folders of images, lists and OpenImages' masks. class_names: those of a
    checkpoint, for a folder of one's own whose training images are gone. Raises UserError.
    """
    data = registry.find_dataset(name, data_root, metadata_root, mask_root, class_names)
    if data.name == 'ToyBirds':
        toybirds.paint_dataset(data_root, metadata_root)
    return data
