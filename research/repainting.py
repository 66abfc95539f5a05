"""The true effect of every region of a ToyBirds image on a network's decision, by repainting the image.

The painter changes one thing: it gives a part the colours of another class, replaces the background, leaves out a part,
or leaves out a shape of the background. The effect is the log-odds of the image minus those of the repainted one.
Source: FunnyBirds (Hesse et al., ICCV 2023) leaves out single parts and single shapes of the background.
"""
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import util
from dataset.toybirds import class_colours
from runtime import processes, screen
from wsol.annotations.cub import NO_PART, UNION_PARTS
from wsol.errors import UserError
from wsol.maps import resize

REGIONS = (*UNION_PARTS, 'background')
BACKGROUND = UNION_PARTS.index('wing') + 1
SHAPES = 18  # of a background, at most


class Question(NamedTuple):
    """The question: why an image's class `first` and not `second`?"""
    index: int                # of the image
    pair: int                 # of annotations.pairs
    first: int
    second: int
    parts: tuple[int, ...]    # differing parts that are visible


class Asked(NamedTuple):
    """The questions about the N images of a split, and what every pixel shows."""
    questions: list
    regions: np.ndarray       # (N,S,S) uint8: index into REGIONS
    clutter: np.ndarray       # (N,S,S) uint8: number of the background's shape, from 1; 0: none

    def chosen(self, rows):
        """The Asked with only the questions of these rows."""
        return self._replace(questions=[self.questions[row] for row in rows])

    @property
    def present(self):
        """(Q,8) bool: the regions in sight."""
        return self._areas(self.regions, len(REGIONS)) > 0

    @property
    def shapes(self):
        """(Q,18): the share of the image that each shape of the background covers."""
        return self._areas(self.clutter, SHAPES + 1)[:, 1:]

    def _areas(self, labels, count):
        areas = np.stack([np.bincount(of_image.ravel(), minlength=count) / of_image.size for of_image in labels])
        return areas[[question.index for question in self.questions]]


class Effects(NamedTuple):
    """The effects of the interventions on log p(A|x) / p(B|x), before minus after; zero for what is not visible."""
    log_odds: np.ndarray      # (Q,8): a region in B's colours; the background replaced
    probability: np.ndarray   # (Q,8): the same on p(A|x) - p(B|x)
    all_parts: np.ndarray     # (Q,): all differing parts in B's colours
    is_right: np.ndarray      # (Q,) bool: A is predicted
    turns: np.ndarray         # (Q,) bool: with all differing parts in B's colours, B is predicted
    deletion: np.ndarray      # (Q,7): a part left out
    shapes: np.ndarray        # (Q,18): a shape of the background left out
    of_class: np.ndarray      # (Q,7): a part left out, the effect on log p(A|x) alone


def ask(images, annotations, repainter, size):
    """The Asked of a split, with images of size x size. Raises UserError without part masks."""
    regions, clutter, questions = [], [], []
    for index, label in enumerate(screen.progress(images.labels.tolist(), 'background shapes', 'image', leave=False)):
        mask = annotations.true_parts(images.image_id(index), size)
        if mask is None:
            raise UserError(f'{annotations.root / "part_masks"} is not there, and interventions need it: move '
                            f'{annotations.root} away, and the painter paints all of it again')
        regions.append(np.where(mask == NO_PART, BACKGROUND, mask).astype(np.uint8))
        shapes = Image.fromarray(repainter.picture(images.image_id(index)).clutter)
        clutter.append(np.asarray(shapes.resize((size, size), Image.Resampling.NEAREST)))
        shown = set(np.unique(mask).tolist())
        for number, pair in enumerate(annotations.pairs):
            parts = tuple(part for part in pair.parts if part in shown)
            if label in pair[:2] and parts:
                second = pair.second if label == pair.first else pair.first
                questions.append(Question(index, number, label, second, parts))
    return Asked(questions, np.stack(regions), np.stack(clutter))


def pictures_of(asked, index, numbers):
    """The pictures that the questions about an image need: {(field of Effects, column in it, question or None for all):
    arguments of Repainter.paint}. numbers: the numbers of these questions."""
    colours = [colours for _, colours in class_colours()]
    pictures = {('log_odds', BACKGROUND, None): {'background': 1}}
    for number in numbers:
        _, _, _, second, parts = asked.questions[number]
        swaps = {part: {UNION_PARTS[part]: colours[second][UNION_PARTS[part]]} for part in parts}
        pictures |= {('log_odds', part, number): {'colours': swap} for part, swap in swaps.items()}
        everything = {name: colour for swap in swaps.values() for name, colour in swap.items()}
        pictures['all_parts', 0, number] = {'colours': everything}
    parts, shapes = (np.unique(labels[index]).tolist() for labels in (asked.regions, asked.clutter))
    pictures |= {('deletion', part, None): {'without': (UNION_PARTS[part],)} for part in parts if part != BACKGROUND}
    return pictures | {('shapes', shape - 1, None): {'without': (shape,)} for shape in shapes if shape}


@torch.no_grad()
def true_effects(model, images, asked, repainter, device):
    """The Effects: one forward for each repainted picture. Several processes share the images."""
    questions, by_image = asked.questions, {}
    for number, question in enumerate(questions):
        by_image.setdefault(question.index, []).append(number)
    widths = {'log_odds': len(REGIONS), 'all_parts': 1, 'deletion': len(UNION_PARTS), 'shapes': SHAPES}
    # what log p(A|x) / p(B|x), p(A|x) - p(B|x) and log p(A|x) lose
    lost = {field: np.zeros((len(questions), width, 3)) for field, width in widths.items()}
    predicted = np.zeros((len(questions), 2), int)  # of the image, and with all differing parts in B's colours
    share = list(by_image.items())[processes.rank()::processes.size()]
    for index, numbers in screen.progress(share, 'repainting', 'image'):
        image_id, pictures = images.image_id(index), pictures_of(asked, index, numbers)
        painted = [repainter.paint(image_id, **how) for how in ({}, *pictures.values())]  # the first is unchanged
        batch = torch.stack([images.transform(Image.fromarray(picture)) for picture in painted])
        with util.autocast('float32', device):
            scores = model.log_probabilities(model(util.to_device(batch, device))).cpu().double().numpy()  # (V,C)
        for number in numbers:
            first, second = (scores[:, label] for label in questions[number][2:4])
            values = np.stack([first - second, np.exp(first) - np.exp(second), first], 1)  # (V,3)
            for row, (field, column, whose) in enumerate(pictures, 1):
                if whose in (None, number):
                    lost[field][number, column] = values[0] - values[row]
                if whose == number and field == 'all_parts':
                    predicted[number] = scores[[0, row]].argmax(1)
    of_each = processes.gather((lost, predicted))  # zero for the images of other processes
    swap, every, deletion, shapes = (sum(part[field] for part, _ in of_each) for field in widths)
    is_right, turns = (sum(part for _, part in of_each) == np.array(questions, object)[:, 2:4]).T
    return Effects(swap[..., 0], swap[..., 1], every[:, 0, 0], is_right, turns, deletion[..., 0], shapes[..., 0],
                   deletion[..., 2])


def masses(maps, labels, count):
    """Sums of maps (E,h,w), and of their absolute values, over the pixels of each label: (E,count), (E,count).

    labels: (E,S,S), in 0..count-1. Maps are enlarged to S x S; the mass of a whole map stays the sum of its cells.
    """
    size = labels.shape[1:]
    values = resize(maps, size).flatten(1).double() * (maps[0].numel() / (size[0] * size[1]))
    where = torch.from_numpy(labels).flatten(1).long()
    empty = torch.zeros(len(maps), count, dtype=torch.float64)
    return empty.scatter_add(1, where, values).numpy(), empty.scatter_add(1, where, values.abs()).numpy()
