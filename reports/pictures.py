"""Photos and maps over them: as arrays of pixels for the page, and as matplotlib Figures, which a notebook shows.

Beside every map stands a colour bar as tall as the map, in the map's unit. Map and bar are drawn by the same function,
so the bar holds the colours of the picture. A map is laid over the photo in grey, because grey keeps the hue of a
colour that is blended with it; a photo's colours would shift the hue.

The palettes can be read with the common colour vision deficiencies: viridis (van der Walt and Smith 2015), whose
lightness rises throughout; for signed maps the blue and the red of ColorBrewer's RdBu (Harrower and Brewer 2003),
stronger with the distance from zero.
"""
import math
import textwrap
from itertools import zip_longest
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.figures import printable
from wsol.maps import resize

LEVELS = 256
NEGATIVE, POSITIVE = '#0571b0', '#ca0020'
SEQUENTIAL = matplotlib.colormaps['viridis']
DIVERGING = LinearSegmentedColormap.from_list('blue-white-red', [NEGATIVE, '#ffffff', POSITIVE], LEVELS)
FINE, PERCENTILE = 10_000, 99.5  # the scale of a map of more cells ends at this percentile
STRENGTH = 0.85   # opacity of the palette's strongest colour over the photo
DARKEST = 0.2     # the share of the photo's brightness that a mask keeps where the map is lowest
DIMMED = 0.35     # the brightness of the part of a photo that the network did not see
STYLE = {'font.size': 8, 'axes.titlesize': 8, 'xtick.labelsize': 7, 'ytick.labelsize': 7, 'axes.linewidth': 0.6,
         'text.parse_math': False, 'figure.constrained_layout.use': False, 'figure.autolayout': False}
GAP, BAR, TICKS, LABEL, LINE = 0.08, 0.22, 0.38, 0.26, 0.15  # inches; LINE is the height of a line of text
BESIDE = GAP + BAR + TICKS + LABEL  # the width that a colour bar takes
BAND = 256         # rows that are drawn at a time: matplotlib takes sixty bytes a pixel for an image
SIDE = 2.8         # inches: the longer side of a photo
CHARACTER = 0.062  # inches: the average width of a letter
SUPERSCRIPT = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')


# --- scales and colours -------------------------------------------------------------------------------


class Scale(NamedTuple):
    """The values at the lower and the upper end of a colour bar. A signed scale has zero in its middle. cut: whether
    some values lie beyond the ends."""
    low: float
    high: float
    signed: bool = False
    cut: bool = False

    @classmethod
    def of(cls, values, signed=False):
        """The scale of a map: from zero, or a negative minimum, to the maximum. In maps of single pixels a few outliers
        would leave all other pixels dark: their scale ends at a percentile, and their label says so."""
        sizes = np.sort(np.abs(values) if signed else values, axis=None)
        top = sizes[-1] if len(sizes) <= FINE else sizes[math.ceil(PERCENTILE / 100 * (len(sizes) - 1))]
        low = -float(top) if signed else min(0.0, float(values.min()))
        if not top > low:  # one value everywhere
            return cls(-1.0 if signed else low, low + 1.0, signed)
        return cls(low, float(top), signed, bool(sizes[-1] > top))

    def share(self, values):
        """Values -> where they lie on the scale, 0 at its lower and 1 at its upper end."""
        return (values - self.low) / (self.high - self.low)

    def levels(self, values):
        """Values -> 0..255, uint8."""
        return np.rint(self.share(values) * (LEVELS - 1)).clip(0, LEVELS - 1).astype(np.uint8)

    def ticks(self):
        """(values, texts): texts of few digits, to be multiplied by the power of ten that `label` names."""
        values = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        values = [float(value) for value in values if self.low <= value <= self.high]
        return values, [f'{value / 10.0 ** self._power() + 0:.4g}'.replace('-', '−') for value in values]

    def label(self, text):
        """The label of a colour bar: the text, the power of ten of the ticks (' × 10⁻³'), and where the scale ends."""
        power = self._power()
        factor = f' × 10{str(power).translate(SUPERSCRIPT)}' if power else ''
        return text + factor + (f' ({PERCENTILE}th percentile)' if self.cut else '')

    def _power(self):
        largest = max(abs(self.low), abs(self.high))
        return 0 if 0.01 <= largest < 10_000 else math.floor(math.log10(largest))


def hues(overlay, signed):
    """The colour of each level of a map, (256,3) in 0..1. Over a photo, each sign of a signed map has one colour: its
    opacity shows the distance from zero."""
    share = np.linspace(0, 1, LEVELS)
    if signed:
        return DIVERGING((share > 0.5).astype(float) if overlay == 'blend' else share)[:, :3]
    return SEQUENTIAL(share)[:, :3]


def shade(picture, values, scale, overlay, box=None):
    """A map over a photo. picture: (H,W,3) uint8; values: (h,w) of any size; overlay: a key of config.OVERLAYS; box: of
    Panel. Returns (H,W,3) uint8.

    It works in parts of some rows, so that it needs the memory of the photo and not of its floating-point numbers.
    """
    if box is not None:
        dimmed = np.rint(DIMMED * luminance(picture)).astype(np.uint8)[..., None].repeat(3, 2)
        part, values = within(values, box, picture.shape[:2])
        dimmed[part] = shade(picture[part], values, scale, overlay)
        return dimmed
    values, shaded = enlarge(values, picture.shape[:2]), np.empty_like(picture)
    palette = 255 * hues(overlay, scale.signed).astype(np.float32)
    for row in range(0, len(picture), 128):
        rows = slice(row, row + 128)
        photo, levels = picture[rows].astype(np.float32), scale.levels(values[rows])
        share = levels[..., None] / np.float32(LEVELS - 1)
        if overlay == 'mask':
            kept = np.clip(2 * share - 1, 0, 1) if scale.signed else share
            mixed = (DARKEST + (1 - DARKEST) * kept) * photo
        elif overlay == 'blend':
            alpha = STRENGTH * (np.abs(2 * share - 1) if scale.signed else share)
            mixed = alpha * palette[levels] + (1 - alpha) * luminance(photo)[..., None]
        else:
            mixed = palette[levels]
        shaded[rows] = np.rint(mixed)
    return shaded


def within(values, box, size):
    """(slices of a picture's rows and columns, the map there): a map on its part of a picture. box: as in Panel. size:
    (height, width) of the picture."""
    ends = [(round(box[axis] * length), max(round(box[axis] * length) + 1, round(box[axis + 2] * length)))
            for axis, length in ((1, size[0]), (0, size[1]))]
    enlarged = enlarge(values, [end - start for start, end in ends])
    part = tuple(slice(max(0, start), min(length, end)) for (start, end), length in zip(ends, size, strict=True))
    return part, enlarged[tuple(slice(seen.start - start, seen.stop - start)
                                for seen, (start, _) in zip(part, ends, strict=True))]


def colour_bar(scale, overlay, height=LEVELS, width=64):
    """A colour bar (height,width,3) uint8, its lower end in the first row: the scale over a photo that is black on the
    left and white on the right."""
    values = np.linspace(scale.low, scale.high, height, dtype=np.float32)[:, None].repeat(width, 1)
    photo = np.broadcast_to(np.rint(np.linspace(0, 255, width)).astype(np.uint8)[:, None], (height, width, 3))
    return shade(photo, values, scale, overlay)


def luminance(picture):
    """(H,W,3) -> (H,W) grey, as Rec. 601 and PIL weigh the colours."""
    return picture @ np.array([0.299, 0.587, 0.114], np.float32)


def enlarge(values, size):
    """A map (h,w) at the size (height, width) of its picture: bilinear, as the evaluations enlarge it."""
    return resize(torch.as_tensor(values, dtype=torch.float32)[None], size)[0].numpy()


# --- figures ------------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """A photo, and perhaps a map over it."""
    picture: np.ndarray                # (H,W,3) uint8
    title: str = ''
    values: np.ndarray | None = None   # (h,w), of any size
    label: str = ''                    # of the colour bar: what the values are
    signed: bool = False
    cue: np.ndarray | None = None      # (H,W) bool, to be outlined
    box: tuple | None = None           # (x0,y0,x1,y1): where the map lies, in shares of the width and height; None: all


def wrapped(text, inches, lines):
    """A text in lines of this width; the last one is cut short where more would follow."""
    return textwrap.wrap(printable(text), max(8, int(inches / CHARACTER)), max_lines=lines, placeholder=' …')


def arrange(photo, maps, contrasts):
    """Rows of panels: the photo and its maps, each contrast under its map; where contrasts and maps do not pair, the
    number of columns with which the sheet is about as wide as a page and has few holes."""
    if len(contrasts) == len(maps) > 1:
        return [[photo, *maps], [None, *contrasts]]
    panels, (height, width) = [photo, *maps, *contrasts], photo.picture.shape[:2]

    def cost(columns):
        rows, side = math.ceil(len(panels) / columns), max(height, width) / SIDE
        aspect = columns * (width / side + BESIDE) / (rows * (height / side + 2 * LINE))
        return abs(math.log(aspect / 3)) + columns * rows - len(panels)
    columns = min(range(1, len(panels) + 1), key=cost)
    return [panels[start:start + columns] for start in range(0, len(panels), columns)]


@matplotlib.rc_context(STYLE)
def sheet(rows, header='', captions=None, overlay='blend', side=SIDE):
    """Rows of panels of one size, some of them None, as a Figure in which a pixel of a photo is a pixel.

    header: a text above all. captions: a text to the left of each row. overlay: a key of config.OVERLAYS. side: the
    longer side of a photo in inches; the letters are larger beside a smaller photo.
    """
    height, width = rows[0][0].picture.shape[:2]
    dpi = max(height, width) / side

    def pixels(inches):
        return round(inches * dpi)
    left = pixels(GAP + (2 * LINE if captions else 0))
    widths = [width + pixels(GAP + any(panel and panel.values is not None for panel in column) * BESIDE)
              for column in zip_longest(*rows)]
    titles = [max(len(wrapped(panel.title, width / dpi, 2)) for panel in row if panel) for row in rows]
    across = left + sum(widths)
    lines = wrapped(header, across / dpi - 2 * GAP, 3) if header else []
    top = pixels(GAP + LINE * len(lines))
    heights = [pixels(GAP + LINE * count) + height + pixels(GAP) for count in titles]
    down = top + sum(heights) + pixels(GAP)
    # a hundredth of a pixel more, since matplotlib cuts fractions off
    figure = Figure(((across + 0.01) / dpi, (down + 0.01) / dpi), dpi=dpi)
    _write(figure, '\n'.join(lines), left, pixels(GAP), va='top')
    for number, (row, place) in enumerate(zip(rows, np.cumsum([top, *heights[:-1]]), strict=True)):
        y = int(place) + heights[number] - pixels(GAP) - height
        if captions:
            caption = '\n'.join(wrapped(captions[number], height / dpi, 2))
            _write(figure, caption, pixels(GAP + LINE), y + height / 2, ha='center', va='center', rotation=90)
        for panel, x in zip(row, np.cumsum([left, *widths]), strict=False):
            if panel:
                _draw(figure, panel, overlay, int(x), y, pixels)
    return figure


def _write(figure, text, x, y, **options):
    """Text at a pixel from the top left corner."""
    across, down = figure.get_size_inches() * figure.dpi
    figure.text(x / across, 1 - y / down, text, linespacing=1.15, **options)


def _axes(figure, x, y, width, height):
    """Axes without ticks that cover these pixels exactly. (x, y): from the top left corner."""
    across, down = figure.get_size_inches() * figure.dpi
    axes = figure.add_axes((x / across, 1 - (y + height) / down, width / across, height / down))
    axes.set(xticks=[], yticks=[])
    return axes


def _draw(figure, panel, overlay, x, y, pixels):
    """A panel at a pixel of the figure, with its title above and its colour bar to the right."""
    picture, (height, width) = panel.picture, panel.picture.shape[:2]
    axes = _axes(figure, x, y, width, height)
    axes.axis('off')
    _write(figure, '\n'.join(wrapped(panel.title, width / figure.dpi, 2)), x, y - pixels(GAP), va='baseline')
    if panel.values is not None:
        scale = Scale.of(panel.values, panel.signed)
        picture = shade(picture, panel.values, scale, overlay, panel.box)
        _draw_bar(_axes(figure, x + width + pixels(GAP), y, pixels(BAR), height), scale, overlay, panel.label, height)
    for row in range(0, height, BAND):
        part = picture[row:row + BAND]
        axes.imshow(part, interpolation='nearest', aspect='auto', extent=(-0.5, width - 0.5, row + len(part) - 0.5,
                                                                          row - 0.5))
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    if panel.cue is not None and panel.cue.any():
        for colour, line in (('white', 1.6), ('black', 0.7)):
            axes.contour(panel.cue, levels=[0.5], colors=colour, linewidths=line)


def _draw_bar(axes, scale, overlay, label, height):
    """A colour bar with its ticks and, along it, its label."""
    axes.imshow(colour_bar(scale, overlay, height), origin='lower', aspect='auto', interpolation='nearest',
                extent=(0, 1, scale.low, scale.high))
    axes.yaxis.tick_right()
    axes.set_yticks(*scale.ticks())
    axes.tick_params('y', length=2, width=0.6, pad=1.5)
    axes.set_ylim(scale.low, scale.high)
    axes.yaxis.set_label_position('right')
    lines = wrapped(scale.label(label), height / axes.figure.dpi, 2)
    axes.set_ylabel('\n'.join(lines), rotation=90, labelpad=2)
