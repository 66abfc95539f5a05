"""Photos and maps over them, as matplotlib Figures: a notebook shows them, figures.save writes them.

Beside every map stands a colour bar as tall as the map, in the map's own units. Its colours are those of the picture:
both are looked up in one table, of the map's level and the photo's brightness. A map is laid over the photo in grey,
because grey keeps the hue of a colour that is blended with it, and a photo's own colours would shift it.

The palettes are safe for the common colour vision deficiencies: viridis (van der Walt and Smith 2015), whose lightness
rises all along; for signed maps the blue and the red of ColorBrewer's RdBu (Harrower and Brewer 2003), stronger with
the distance from zero.
"""
import math
import textwrap
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

from wsol.maps import resize

LEVELS = 256
NEGATIVE, POSITIVE = '#0571b0', '#ca0020'
SEQUENTIAL = matplotlib.colormaps['viridis']
DIVERGING = LinearSegmentedColormap.from_list('blue-white-red', [NEGATIVE, '#ffffff', POSITIVE], LEVELS)
FINE, PERCENTILE = 10_000, 99.5  # the scale of a map of more cells ends at this percentile
STRENGTH = 0.85   # of the palette's strongest colour over the photo
DARKEST = 0.2    # what a mask leaves of the photo's brightness where the map is at its lowest
OUTLINES = (0.25, 0.5, 0.75)  # where the lines are, of the scale's range; of a signed scale on both sides
STYLE = {'font.size': 8, 'axes.titlesize': 8, 'xtick.labelsize': 7, 'ytick.labelsize': 7, 'axes.linewidth': 0.6,
         'text.parse_math': False, 'figure.constrained_layout.use': False, 'figure.autolayout': False}
GAP, BAR, TICKS, LABEL, LINE = 0.08, 0.22, 0.38, 0.26, 0.15  # inches: of the layout, and of a line of text
BESIDE = GAP + BAR + TICKS + LABEL  # what a colour bar takes
BAND = 256          # rows that are drawn at a time: matplotlib takes sixty bytes a pixel for an image
SIDE = 4.0          # inches: the longer side of a photo
CHARACTER = 0.062  # inches, the width of a letter on average


# --- scales and colours -------------------------------------------------------------------------------


class Scale(NamedTuple):
    """The values from a colour bar's lower to its upper end. A signed scale has zero in its middle. cut: whether there
    are values beyond the upper end (and, of a signed scale, the lower)."""
    low: float
    high: float
    signed: bool = False
    cut: bool = False

    @classmethod
    def of(cls, values, signed=False):
        """The scale of a map: from zero, or a negative minimum, to the maximum. In maps of single pixels a few outliers
        would leave all others dark: they end at a percentile, and their label says so."""
        sizes = np.sort(np.abs(values) if signed else values, axis=None)
        top = sizes[-1] if len(sizes) <= FINE else sizes[math.ceil(PERCENTILE / 100 * (len(sizes) - 1))]
        low = -float(top) if signed else min(0.0, float(values.min()))
        if not top > low:  # one value everywhere
            return cls(-1.0 if signed else low, low + 1.0, signed)
        return cls(low, float(top), signed, bool(sizes[-1] > top))

    def levels(self, values):
        """Values -> 0..255, uint8."""
        share = (values - self.low) / (self.high - self.low)
        return np.rint(share * (LEVELS - 1)).clip(0, LEVELS - 1).astype(np.uint8)

    def ticks(self):
        """(where, texts, factor): texts of few digits, and the power of ten that they are to be multiplied by, for the
        label: ' × 10⁻³', or ''."""
        where = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        where = [float(value) for value in where if self.low <= value <= self.high]
        largest = max(abs(self.low), abs(self.high))
        power = 0 if 0.01 <= largest < 10_000 else math.floor(math.log10(largest))
        texts = [f'{value / 10.0 ** power + 0:.4g}'.replace('-', '−') for value in where]
        return where, texts, f' × 10{str(power).translate(SUPERSCRIPT)}' if power else ''


SUPERSCRIPT = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')


def hues(overlay, signed):
    """The colour of each level of a map, (256,3) in 0..1. Laid over a photo, a signed map has one colour a side: its
    strength says how far from zero."""
    share = np.linspace(0, 1, LEVELS)
    if signed:
        return DIVERGING((share > 0.5).astype(float) if overlay == 'blend' else share)[:, :3]
    return SEQUENTIAL(share)[:, :3]


def colour_table(overlay, signed):
    """The colours of a picture, (levels of the map, levels of grey, 3) uint8: one grey alone where the photo does not
    show. They are the colour bar, from its lower end."""
    share = np.linspace(0, 1, LEVELS)[:, None, None]
    grey = np.linspace(0, 1, LEVELS)[None, :, None]
    if overlay == 'mask':
        kept = np.clip(2 * share - 1, 0, 1) if signed else share
        colours = (DARKEST + (1 - DARKEST) * kept) * np.broadcast_to(grey, (1, LEVELS, 3))
    elif overlay == 'blend':
        alpha = STRENGTH * (np.abs(2 * share - 1) if signed else share)
        colours = alpha * hues(overlay, signed)[:, None] + (1 - alpha) * grey
    else:
        colours = hues(overlay, signed)[:, None]
    return np.rint(255 * colours).astype(np.uint8)


def shade(picture, levels, overlay, signed):
    """A map over a photo. picture: (H,W,3) uint8; levels: (H,W) uint8 of the map. Returns (H,W,3) uint8.

    Rows are done in parts, so that memory is the photo's and not that of its real numbers.
    """
    table, shaded = colour_table(overlay, signed), np.empty_like(picture)
    for row in range(0, len(picture), 128):
        part, level = picture[row:row + 128], levels[row:row + 128]
        if overlay == 'mask':
            shaded[row:row + 128] = table[level[..., None], part, 0]
        elif overlay == 'blend':
            shaded[row:row + 128] = table[level, luminance(part)]
        else:
            shaded[row:row + 128] = table[level, 0]
    return shaded


def luminance(picture):
    """(H,W,3) uint8 -> (H,W) uint8, as Rec. 601 and PIL weigh the colours."""
    return np.rint(picture @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)


def enlarge(values, size):
    """A map (h,w) at the size (height, width) of its picture: bilinear, as the evaluations measure it."""
    return resize(torch.as_tensor(values, dtype=torch.float32)[None], size)[0].numpy()


# --- figures ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """A photo, and perhaps a map over it."""
    picture: np.ndarray                # (H,W,3) uint8
    title: str = ''
    values: np.ndarray | None = None   # (h,w), of any size
    label: str = ''                    # of the colour bar: what the values are
    signed: bool = False
    cue: np.ndarray | None = None      # (H,W) bool, to be outlined


def printable(text):
    """A text with a box for each letter that the font lacks, as matplotlib would draw it, with a warning, too."""
    letters = get_font(findfont(FontProperties())).get_charmap()
    return ''.join(letter if ord(letter) in letters else '□' for letter in str(text).replace('\n', ' '))


def wrapped(text, inches, lines):
    """A text in lines of this width, the last one cut short where there would be more."""
    return textwrap.wrap(printable(text), max(8, int(inches / CHARACTER)), max_lines=lines, placeholder=' …')


def arrange(photo, maps, contrasts):
    """Rows of panels: the photo, its maps, and of each map its contrast under it or beside it. Of the arrangements the
    one that is about as wide as a page, with few holes."""
    panels, height, width = [photo, *maps, *contrasts], *photo.picture.shape[:2]
    found = [[panels[start:start + columns] for start in range(0, len(panels), columns)]
             for columns in range(1, len(panels) + 1)]
    if len(contrasts) == len(maps) > 1:
        found = [[[photo, *maps], [None, *contrasts]],
                 [[photo, None], *([own, other] for own, other in zip(maps, contrasts, strict=True))]]

    def cost(rows):
        columns, side = max(map(len, rows)), max(height, width) / SIDE
        aspect = columns * (width / side + BESIDE) / (len(rows) * (height / side + 2 * LINE))
        return abs(math.log(aspect / 3)) + columns * len(rows) - sum(map(len, rows))
    return min(found, key=cost)


@matplotlib.rc_context(STYLE)
def sheet(rows, header='', captions=None, overlay='blend', side=SIDE):
    """Rows of panels of one size, some perhaps None, as a Figure in which a pixel of a photo is a pixel.

    header: a text above all. captions: a text to the left of each row. overlay: of config.OVERLAYS. side: the longer
    side of a photo in inches, which says how large the letters are beside it.
    """
    height, width = rows[0][0].picture.shape[:2]
    dpi = max(height, width) / side

    def pixels(inches):
        return round(inches * dpi)
    left = pixels(GAP + (2 * LINE if captions else 0))
    columns = list(zip_longest(*rows))
    widths = [width + pixels(GAP + any(panel and panel.values is not None for panel in column) * BESIDE)
              for column in columns]
    titles = [max(len(wrapped(panel.title, width / dpi, 2)) for panel in row if panel) for row in rows]
    across = left + sum(widths)
    lines = wrapped(header, across / dpi - 2 * GAP, 3) if header else []
    top = pixels(GAP + LINE * len(lines))
    heights = [pixels(GAP + LINE * count) + height + pixels(GAP) for count in titles]
    down = top + sum(heights) + pixels(GAP)
    # a hundredth of a pixel more, for matplotlib cuts fractions off
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
    height, width = panel.picture.shape[:2]
    axes = _axes(figure, x, y, width, height)
    axes.axis('off')
    _write(figure, '\n'.join(wrapped(panel.title, width / figure.dpi, 2)), x, y - pixels(GAP), va='baseline')
    picture = panel.picture
    if panel.values is not None:
        scale, values = Scale.of(panel.values, panel.signed), enlarge(panel.values, (height, width))
        bar = _axes(figure, x + width + pixels(GAP), y, pixels(BAR), height)
        if overlay == 'outline':
            _draw_lines(axes, bar, values, scale)
        else:
            picture = shade(picture, scale.levels(values), overlay, panel.signed)
            bar.imshow(colour_table(overlay, panel.signed), origin='lower', aspect='auto', interpolation='nearest',
                       extent=(0, 1, scale.low, scale.high))
        _label(bar, scale, panel.label, height / figure.dpi)
    for row in range(0, height, BAND):
        part = picture[row:row + BAND]
        axes.imshow(part, interpolation='nearest', aspect='auto', extent=(-0.5, width - 0.5, row + len(part) - 0.5,
                                                                          row - 0.5))
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    if panel.cue is not None and panel.cue.any():
        for colour, line in (('white', 1.6), ('black', 0.7)):
            axes.contour(panel.cue, levels=[0.5], colors=colour, linewidths=line)


def _label(bar, scale, label, inches):
    """Ticks and, along the bar, the label."""
    where, texts, factor = scale.ticks()
    bar.yaxis.tick_right()
    bar.set_yticks(where, texts)
    bar.tick_params('y', length=2, width=0.6, pad=1.5)
    bar.set_ylim(scale.low, scale.high)
    bar.yaxis.set_label_position('right')
    cut = f' ({PERCENTILE}th percentile)' if scale.cut else ''
    bar.set_ylabel('\n'.join(wrapped(label + factor + cut, inches, 2)), rotation=90, labelpad=2)


def _draw_lines(axes, bar, values, scale):
    """Lines of equal value over a photo, and the same lines across the bar."""
    if scale.signed:
        heights = [sign * share * scale.high for share in OUTLINES for sign in (-1, 1)]
    else:
        heights = [scale.low + share * (scale.high - scale.low) for share in OUTLINES]
    bar.set(facecolor='0.5', ylim=(scale.low, scale.high))
    down, across = (np.arange(0, length, max(1, length // 512)) for length in values.shape)
    coarse = values[np.ix_(down, across)]
    for height in sorted(heights):
        colour = colour_table('map', scale.signed)[scale.levels(np.float64(height)), 0] / 255
        for shown, line in (('black', 2.4), (colour, 1.4)):
            bar.axhline(height, color=shown, linewidth=line, solid_capstyle='butt')
            if values.min() < height < values.max() and min(coarse.shape) > 1:  # a photo one pixel thin has no lines
                axes.contour(across, down, coarse, levels=[height], colors=[shown], linewidths=line)
