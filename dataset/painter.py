"""The painter of ToyBirds: a bird in a pose, part by part, before a background with shapes.

All random numbers come from one generator in one order, even for what is not painted. So the same bird can be painted
again in other colours, before another background, or without one of its parts or a shape of the background.
"""
from typing import NamedTuple

import cv2
import numpy as np

from wsol.annotations.cub import CENTRES, POINT_NAMES, UNION_PARTS

PALETTE = {  # RGB
    'black': (38, 36, 42), 'white': (236, 234, 226), 'red': (204, 44, 40), 'yellow': (238, 204, 52),
    'green': (58, 150, 66), 'blue': (48, 92, 204), 'violet': (148, 66, 176), 'brown': (126, 84, 50),
}
PART_OF = {name: UNION_PARTS.index(part) + 1 for part, names in CENTRES for name in names}  # point -> number in a mask
SUPERSAMPLING = 4  # shapes are filled on a grid this much finer, then averaged: anti-aliasing


# --- the bird: outlines in a frame of its own, x towards the bill, y down, body length 0.84 ---

def ellipse(centre, radii, angle=0.0, start=0.0, stop=360.0):
    """(N,2) points along an ellipse, angles in degrees, clockwise on the screen."""
    t = np.radians(np.linspace(start, stop, 49))
    points = np.stack([radii[0] * np.cos(t), radii[1] * np.sin(t)], axis=1)
    return rotate(points, angle) + centre


def rotate(points, angle, pivot=(0.0, 0.0)):
    """(N,2) points turned by `angle` degrees about `pivot`, clockwise on the screen."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return (np.asarray(points) - pivot) @ np.array([[c, s], [-s, c]]) + pivot


def bird_outlines(rng):
    """One pose: [(part, polygon (N,2))] from back to front, and {CUB part point: (x, y)}."""
    tail_angle, spread = rng.uniform(-25, 25), rng.uniform(0.08, 0.2)
    tail = rotate([(-0.30, -0.12), (-0.84, -0.10 - spread), (-0.90, -0.04), (-0.84, 0.02 + spread / 2),
                   (-0.30, 0.06)], tail_angle, (-0.32, -0.04))
    head_angle = rng.uniform(-25, 25)
    neck = (0.28, -0.10)
    skull = ellipse((0.45, -0.31), (0.20, 0.18))
    throat = np.array([(0.16, -0.20), (0.33, -0.44), (0.60, -0.22), (0.40, 0.00)])
    bill = np.array([(0.61, -0.38), (0.61 + rng.uniform(0.14, 0.30), -0.27), (0.60, -0.23)])
    head = [rotate(shape, head_angle, neck) for shape in (throat, skull, bill)]
    folded = rng.random() < 0.6
    wing_angle = rng.uniform(-12, 14) if folded else rng.uniform(55, 120)
    wing = rotate([(0.20, -0.08), (0.12, -0.16), (-0.20, -0.12), (-0.52, 0.02), (-0.44, 0.08), (-0.16, 0.14),
                   (0.08, 0.10)], wing_angle, (0.12, -0.04))
    stride = rng.uniform(0.04, 0.14)
    legs = []
    for hip, foot in ((-0.02, stride), (-0.10, -stride)):
        legs.append(np.array([(hip - 0.03, 0.16), (hip + 0.03, 0.16), (hip + foot + 0.03, 0.50),
                              (hip + foot + 0.12, 0.55), (hip + foot - 0.05, 0.55), (hip + foot - 0.03, 0.50)]))
    body = (0.42, 0.27)
    back = ellipse((0, 0), body, start=180, stop=360)
    belly = np.concatenate([ellipse((0, 0), body, start=75, stop=180), [(0.02, 0.0)]])
    breast = np.concatenate([ellipse((0, 0), body, start=0, stop=75), [(0.02, 0.0)]])
    outlines = [('tail', tail), ('leg', legs[0]), ('leg', legs[1]), ('back', back), ('belly', belly),
                ('breast', breast), *(('head', shape) for shape in head), ('wing', wing)]
    on_head = {'beak': (0.66, -0.30), 'crown': (0.43, -0.46), 'forehead': (0.57, -0.40), 'nape': (0.28, -0.32),
               'throat': (0.45, -0.16), 'eye': (0.50, -0.35)}
    points = {name: rotate([at], head_angle, neck)[0] for name, at in on_head.items()}
    points.update(back=(-0.02, -0.22), belly=(-0.08, 0.20), breast=(0.26, 0.12), tail=tail[1:4].mean(0) * 0.7
                  + 0.3 * tail[[0, 4]].mean(0), wing=wing.mean(0), near_leg=legs[0].mean(0), far_leg=legs[1].mean(0))
    return outlines, points


def place(rng, outlines, points, width, height):
    """The pose in pixels: scaled, turned, perhaps mirrored, moved to where the whole bird fits."""
    angle, mirrored = rng.uniform(-25, 25), rng.random() < 0.5
    scale = rng.uniform(0.40, 0.60) * min(width, height)

    def turn(xy):
        xy = rotate(np.atleast_2d(xy), angle) * scale
        return xy * (-1, 1) if mirrored else xy

    outlines = [(part, turn(shape)) for part, shape in outlines]
    everything = np.concatenate([shape for _, shape in outlines])
    low, high = everything.min(0), everything.max(0)
    # a long pose of a large bird is shrunk to the canvas
    scale_down = min(1.0, (np.array([width, height]) * 0.94 / (high - low)).min())
    low, high = low * scale_down, high * scale_down
    shift = rng.uniform(0.1, 0.9, 2) * (np.array([width, height]) - (high - low)) - low
    outlines = [(part, shape * scale_down + shift) for part, shape in outlines]
    points = {name: turn(xy)[0] * scale_down + shift for name, xy in points.items()}
    near, far = ('left', 'right') if mirrored else ('right', 'left')  # near: the side that the viewer sees
    for old, new in (('eye', f'{near} eye'), ('wing', f'{near} wing'), ('near_leg', f'{near} leg'),
                     ('far_leg', f'{far} leg')):
        points[new] = points.pop(old)
    return outlines, points


# --- the picture ---

def fill(canvas, polygon, value):
    """Fill a polygon given in final pixels (pixel i covers [i, i+1)) on the fine grid, in place."""
    cv2.fillPoly(canvas, [np.round(np.asarray(polygon) * SUPERSAMPLING - 0.5).astype(np.int32)], value)


def shade(rng, name, spread=10.0):
    """A palette colour as it comes out in one image."""
    return np.array(PALETTE[name], np.float64) + rng.normal(0, spread, 3)


class Picture(NamedTuple):
    """A painted image of H x W pixels."""
    image: np.ndarray    # (H,W,3) uint8 RGB
    parts: np.ndarray    # (H,W) uint8: the part at a pixel: 0 is background, 1..7 as in UNION_PARTS
    points: np.ndarray   # (15,3): x, y, visible of CUB's part points, (0, 0, 0) where hidden
    clutter: np.ndarray  # (H,W) uint8: the background's shape at a pixel, from 1; 0 for none


def paint_background(rng, width, height, without=()):
    """A soft two-colour ground with sticks and 10 to 18 shapes of the palette's colours.

    without: numbers of the shapes to leave out. Returns the image (4H,4W,3) float and each point's shape (4H,4W) uint8.
    """
    ground = rng.uniform(60, 210, (2, 2, 3)).astype(np.float32)
    canvas = cv2.resize(ground, (width * SUPERSAMPLING, height * SUPERSAMPLING), interpolation=cv2.INTER_LINEAR)
    size = min(width, height)
    for _ in range(rng.integers(2, 5)):
        start, stop = rng.uniform(-0.1, 1.1, (2, 2)) * (width, height)
        across = (stop - start)[::-1] * (1, -1)
        across *= rng.uniform(0.008, 0.03) * size / (np.linalg.norm(across) + 1e-9)
        fill(canvas, [start - across, start + across, stop + across, stop - across],
             tuple(rng.uniform(40, 140, 3)))
    names, clutter = list(PALETTE), np.zeros(canvas.shape[:2], np.uint8)
    for number in range(1, 1 + rng.integers(10, 19)):
        centre, radii = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.03, 0.12, 2) * size
        kind, angle = rng.integers(4), rng.uniform(0, 360)
        if kind < 2:
            shape = ellipse(centre, radii, angle, stop=360 if kind else 180)
        else:
            corners = rng.integers(3, 6)
            shape = ellipse(centre, radii, angle)[np.sort(rng.choice(48, corners, replace=False))]
        colour = tuple(shade(rng, names[rng.integers(len(names))]))
        if number not in without:
            fill(canvas, shape, colour)
            fill(clutter, shape, number)
    return canvas, clutter


def paint(colours, rng, background=None, without=()):
    """The Picture of one bird. colours: {part: colour}.

    background: a generator that paints another background behind the same bird. without: the parts, by name, and the
    background's shapes, by number, to leave out; what is behind them shows.
    """
    width, height = (int(side) for side in rng.choice([160, 176, 192, 208], 2))
    outlines, points = place(rng, *bird_outlines(rng), width, height)
    canvas, clutter = paint_background(rng, width, height, without)
    if background is not None:  # rng has drawn its numbers, so that the bird stays the same
        canvas, clutter = paint_background(background, width, height, without)
    parts = np.zeros(canvas.shape[:2], np.uint8)
    shades = {part: shade(rng, name) for part, name in colours.items()}
    for part, shape in outlines:
        if part in without:
            continue
        fill(parts, shape, UNION_PARTS.index(part) + 1)
        fill(canvas, shape, tuple(shades[part]))
        # a thin darker contour, as feathers have: it shows a part against another of the same colour
        cv2.polylines(canvas, [np.round(shape * SUPERSAMPLING - 0.5).astype(np.int32)], True,
                      tuple(shades[part] * 0.7), thickness=2)
    if 'head' not in without:
        eye = next(xy for name, xy in points.items() if name.endswith('eye'))
        radius = 0.035 * np.ptp(np.concatenate([shape for _, shape in outlines]), axis=0).max() / 1.6
        fill(canvas, ellipse(eye, (1.5 * radius, 1.5 * radius)), (240, 240, 240))
        fill(canvas, ellipse(eye, (radius, radius)), (15, 15, 15))

    light = cv2.resize(rng.uniform(0.72, 1.2, (2, 2)).astype(np.float32), (width, height))
    image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA) * light[..., None]
    image += cv2.resize(rng.normal(0, 9, (height // 4, width // 4)).astype(np.float32), (width, height))[..., None]
    image += rng.normal(0, 4, image.shape)
    # the part at a pixel's centre is the part of the pixel
    half = SUPERSAMPLING // 2
    mask, clutter = (np.ascontiguousarray(fine[half::SUPERSAMPLING, half::SUPERSAMPLING]) for fine in (parts, clutter))

    return Picture(np.clip(np.round(image), 0, 255).astype(np.uint8), mask, visible_points(points, mask),
                   np.where(mask > 0, 0, clutter))


def visible_points(points, mask):
    """(15,3): x, y, visible of CUB's part points; visible if the pixel shows its part. points: {name: (x, y)}."""
    located, (height, width) = np.zeros((15, 3)), mask.shape
    for index, name in enumerate(POINT_NAMES):
        column, row = map(int, points.get(name, (-1, -1)))
        if 0 <= column < width and 0 <= row < height and mask[row, column] == PART_OF[name]:
            located[index] = *points[name], 1
    return located
