"""The plain ways that research/bench.py compares ours with: what the published code does (Kim et al., ICCV 2021).

They compute in float32, in torch's default memory layout, with a graph where the published code builds one.
tests/research/test_bench.py checks that their results agree with ours.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from dataset import image_files, transforms
from wsol import metrics
from wsol.annotations.cub import CENTRES, POINT_NAMES, UNION_PARTS
from wsol.heads import joint

AT_A_TIME = 8  # images of a pair through the network, with their graph


def maps(model, images, labels):
    """Maps (B,h,w): those of all classes are computed, with a graph, and one is kept."""
    _, logits, prior = model.activations(images)
    return joint(logits.log_softmax(1), prior)[range(len(images)), labels].detach()


def erasure(model, images, labels):
    """Remove-and-classify: a forward for the prediction, one for the map, a sort and a forward for each k and order.
    Returns 11 lists of B booleans: whether each image is right intact, after top-k and after random erasure."""
    def right(images):
        with torch.no_grad():
            return (model(images).argmax(1) == labels).tolist()
    results = [right(images)]
    scores = F.interpolate(maps(model, images, labels)[:, None], images.shape[2:], mode='bilinear').flatten(1)
    for by_value in (True, False):
        for ratio in metrics.ERASE_RATIOS:
            order = scores.argsort(1, descending=True) if by_value else torch.rand_like(scores).argsort(1)
            mask = torch.ones_like(scores).scatter_(1, order[:, :int(ratio * scores.shape[1])], 0)
            results.append(right(images * mask.view(len(images), 1, *images.shape[2:])))
    return results


def cue_mask(points, photo_size, size, parts, object_mask):
    """(S,S) bool: the pixels that show one of the parts, from the distances of all pixels to all part points.
    points: (15,3) x, y, visible, in a photo of photo_size."""
    scaled, centres, owners = points[:, :2] * size / photo_size, [], []
    for part, names in CENTRES:
        rows = [row for row in map(POINT_NAMES.index, names) if points[row, 2]]
        if rows:
            centres.append(scaled[rows].mean(0))
            owners.append(UNION_PARTS.index(part))
    pixels = np.array([(x, y) for y in range(size) for x in range(size)])
    squared = ((pixels[:, None] - np.array(centres).astype(int)[None]) ** 2).sum(2)
    nearest = np.array(owners)[squared.argmin(1)].reshape(size, size)
    return np.isin(nearest, parts) & object_mask


def cue_histograms(model, cues, edges, device):
    """Cue localization, pair by pair: two forwards with a graph, new masks, and numpy's histograms, which drop scores
    under the first edge. cues: a CueImages. Returns (P,2,len(edges)-1): the false and the true pixels of each pair."""
    annotations, counts = cues.annotations, np.zeros((len(cues.annotations.pairs), 2, len(edges) - 1), np.int64)
    for number, pair in enumerate(annotations.pairs):
        rows = [index for index in cues.rows if number in cues.pairs[index]]
        for start in range(0, len(rows), AT_A_TIME):
            batch = rows[start:start + AT_A_TIME]
            images = torch.stack([cues.images[index][0] for index in batch]).to(device)
            size = images.shape[-1]
            first, second = (maps(model, images, [label] * len(batch)) for label in pair[:2])
            differences = F.interpolate((first - second)[:, None], (size, size), mode='bilinear')[:, 0]
            for index, scores in zip(batch, differences.abs().clamp(0, 1).cpu().double().numpy(), strict=True):
                image_id = cues.images.image_id(index)
                truth = cue_mask(annotations.points(image_id), annotations.photo_size(image_id), size, pair.parts,
                                 annotations.object_mask(image_id, size))
                for side in (0, 1):
                    counts[number, side] += np.histogram(scores[truth == side], edges)[0]
    return counts


class TrainingImages(Dataset):
    """Loading: PIL resizes, the worker normalises, floats go through shared memory. images: an ImageDataset."""

    def __init__(self, images):
        self.images = images
        v2 = transforms.v2()
        self.transform = v2.Compose([v2.Resize((256, 256)), v2.RandomCrop(224), v2.RandomHorizontalFlip(), v2.ToImage(),
                                     v2.ToDtype(torch.float32, scale=True), v2.Normalize(*transforms.IMAGENET)])

    def __getitem__(self, key):
        index, _ = key
        image = image_files.open_image(self.images.folder / self.images.image_id(index))
        return self.transform(image), int(self.images.labels[index]), index
