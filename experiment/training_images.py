"""What a checkpoint records of its training images, and how the present images differ from them.

A training that resumes with other images would be neither the earlier training nor a new one.
"""
import hashlib

import numpy as np
import torch


def record(images):
    """(N,3) int32 of an ImageDataset: four bytes of each id's SHA-256, the label, four bytes of the photo's SHA-256.

    The last is 0 for a photo that cannot be read. All processes of a run call this: they share the reading of photos.
    """
    ids = b''.join(hashlib.sha256(image_id).digest()[:4] for image_id in images.image_ids.tolist())
    photos = bytes.fromhex(''.join(sha256[:8] or '0' * 8 for sha256 in images.sha256))
    columns = np.frombuffer(ids, '<i4'), images.labels, np.frombuffer(photos, '<i4')
    return torch.from_numpy(np.stack(columns, 1).astype(np.int32))


def is_record(value):
    """Whether a value has the form of a record."""
    return isinstance(value, torch.Tensor) and value.dtype == torch.int32 and value.ndim == 2 and value.shape[1] == 3


def difference(before, now):
    """What has happened to the images from one record to another, in words; None if nothing has."""
    if torch.equal(before, now):
        return None
    earlier, later = ({name: content for name, *content in rows.tolist()} for rows in (before, now))
    kept = earlier.keys() & later.keys()
    counts = {'gone': len(earlier) - len(kept), 'new': len(later) - len(kept),
              'with another label or content': sum(earlier[name] != later[name] for name in kept)}
    words = [f'{count} {what}' for what, count in counts.items() if count] or ['in another order']
    return f'{len(before)} images then, {len(now)} now: {", ".join(words)}'
