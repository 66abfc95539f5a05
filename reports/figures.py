"""Curves, as matplotlib Figures: a notebook shows them, save() writes them. They choose no backend.

Photos and maps are in pictures.py.
"""
import re

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from runtime import whole_files

# What a curve is, as a pattern in its name: its colour in every plot; the first that matches counts. The colours can be
# told apart with the common colour vision deficiencies (Okabe and Ito 2008).
COLOUR_OF = {'coarse noise': '#000000', 'random': '#e69f00', 'mask': '#56b4e9',
             r'\bprior\b(?!-)|(?<!vanilla-)saliency': '#cc79a7',
             'calm_ml': '#009e73', 'calm_em': '#d55e00', r'\bcam': '#0072b2'}
COLOURS = ('#882255', *reversed(COLOUR_OF.values()))  # the first is for what the table does not have
LINES = ('-', '--', ':')
MARKERS = ('o', 's', '^')


def printable(text):
    """A text with a box for each letter that the font lacks. matplotlib draws a box too, but warns, and fails at a byte
    of a file's name that is no text."""
    known = get_font(findfont(FontProperties())).get_charmap()
    return ''.join(letter if letter in '\n\t' or ord(letter) in known else '□' for letter in text)


def save(figure, path, dpi='figure'):
    """Write a figure as a whole PNG file; dpi: dots per inch. A $ in a name begins no formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(printable(text.get_text()))
    whole_files.write_atomically(path, lambda file: figure.savefig(file, format='png', dpi=dpi,
                                                                   metadata={'Software': None}))


def colour_of(name):
    """The colour of COLOUR_OF for a name; None if it has none."""
    return next((colour for pattern, colour in COLOUR_OF.items() if re.search(pattern, name.lower())), None)


def styles(names, lines=LINES):
    """(colour, line) of each name: the colour of COLOUR_OF, else one that no other name has. Names of one colour have
    different lines; where a colour has no more lines, another takes its place. lines: line styles or markers."""
    named = [colour_of(name) for name in names]
    pairs, chosen = [(colour, line) for line in lines for colour in COLOURS], []
    for own in named:
        free = [pair for pair in pairs if pair not in chosen] or pairs
        chosen.append(min(free, key=lambda pair: pair[0] != own if own else pair[0] in named))
    return chosen


def _axes(title, xlabel, ylabel, **limits):
    """A figure of one panel, and its axes."""
    figure = Figure(figsize=(5, 3.6), dpi=110, layout='constrained')
    axes = figure.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, **limits)
    return figure, axes


def _curves(title, xlabel, ylabel, curves, marker=None, **limits):
    """A figure of curves: {name: (x, y)} or, with a band around each, {name: (x, y, low, high)}."""
    figure, axes = _axes(title, xlabel, ylabel, **limits)
    for (name, (x, y, *band)), (colour, line) in zip(curves.items(), styles(curves), strict=True):
        axes.plot(x, y, color=colour, linestyle=line, marker=marker, label=name)
        if band:
            axes.fill_between(x, *band, color=colour, alpha=0.15, linewidth=0)
    axes.legend(fontsize=7)
    return figure


def intervals(axes, lines, series):
    """Points with their intervals, one below the other. lines: a text for each; one that names a head has its colour.
    series: {name: {line: {'value', 'low', 'high': text}}}, at most two; the points of the second are hollow."""
    for (name, points), marker, fill, shift in zip(series.items(), 'os', (None, 'w'), (-0.15, 0.15), strict=False):
        for line, row in points.items():
            value, low, high = (float(row['value'] if row[column] == '' else row[column])
                                for column in ('value', 'low', 'high'))
            axes.errorbar(value, line + shift, xerr=[[value - low], [high - value]], fmt=marker, mfc=fill,
                          color=colour_of(lines[line]) or 'k', markersize=4, capsize=2)
        axes.plot([], [], marker, mfc=fill, color='k', markersize=4, label=name)
    axes.set_yticks(range(len(lines)), lines, fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)


def ratio_curve(title, curves):
    """R_k over k; R_0 = R_100 = 1 by definition. curves: {name: records of eval_pixel_perturb}."""
    points = {name: [[0, *(record['erased_percent'] for record in records), 100], *(
        np.array([1, *(record[key] for record in records), 1], float) for key in ('R', 'R_low', 'R_high'))]
        for name, records in curves.items()}  # None becomes NaN
    figure = _curves(title, 'erased pixels, %', 'correct: top-k / random (lower is better)', points, marker='o')
    figure.axes[0].axhline(1, color='0.6', linewidth=1, linestyle=':')
    figure.axes[0].set_ylim(bottom=0)
    return figure


def erasure_chart(shares, curves, size):
    """A small chart as pixels (H,W,3) uint8: p(A) over the erased share in percent. curves: {(name, fill): p}; a fill
    has a line style, a name a colour. size: (H,W)."""
    dpi = max(size) / 4
    figure = Figure([(length + 0.01) / dpi for length in size[::-1]], dpi=dpi)
    axes = figure.add_axes((0.14, 0.2, 0.83, 0.75))
    names, fills = (list(dict.fromkeys(part)) for part in zip(*curves, strict=True))
    for (name, fill), values in curves.items():
        axes.plot(shares, values, color=colour_of(name) or COLOURS[0], linestyle=LINES[fills.index(fill)],
                  marker=MARKERS[names.index(name)], markersize=3, label=f'{name}, fill {fill}')
    axes.set(ylim=(-0.02, 1.02), xticks=shares)
    axes.set_xlabel('erased pixels, %. Smoothness alone moves p: arXiv 2304.13836', fontsize=7)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=5, framealpha=0.6)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def precision_curves(title, curves):
    """Precision over recall. curves: {name: (precision, recall)}, or (precision, recall, low, high), all in shares."""
    return _curves(title, 'recall, %', 'precision, %', {
        name: [100 * np.asarray(part) for part in (recall, precision, *band)]
        for name, (precision, recall, *band) in curves.items()}, xlim=(0, 100), ylim=(0, 100))


def accuracy_curves(title, thresholds, curves):
    """Box accuracy over the threshold. curves: {metric: accuracy in percent (T,)}."""
    return _curves(title, 'threshold of the map', 'images found, %',
                   {name: (thresholds, values) for name, values in curves.items()}, xlim=(0, 1), ylim=(0, 100))


def abstention_curves(title, curves):
    """PxAP over the share of pixels under the lowest threshold: solid where they are left out (per pair), dashed where
    all pixels count (per pair, all pixels). curves: {name: (share in percent, PxAP without them, PxAP of all pixels)},
    each (Q,)."""
    figure, axes = _axes(title, 'pixels under the lowest threshold, %', 'PxAP, %, all pairs', xlim=(0, 100))
    for (name, (share, without, all_pixels)), (colour, marker) in zip(
            curves.items(), styles(curves, MARKERS), strict=True):  # the line already says which count it is
        axes.plot(share, without, linestyle='-', marker=marker, color=colour, label=name)
        axes.plot(share, all_pixels, linestyle='--', marker=marker, fillstyle='none', color=colour)
    figure.legend(title='solid: per pair; dashed: per pair, all pixels', title_fontsize=7, fontsize=7, ncols=2,
                  loc='outside lower center', handlelength=4)
    return figure


def reliability_curve(title, calibration):
    """Accuracy over confidence, bin by bin; a point's size shows its share of the images. calibration: of
    metrics.calibration."""
    figure, axes = _axes(title, 'confidence: p of the predicted class, %', 'accuracy, %', xlim=(0, 100), ylim=(0, 100))
    axes.plot([0, 100], [0, 100], color='0.6', linewidth=1, linestyle=':', label='calibrated')
    points = np.array([calibration[key] for key in ('confidence', 'accuracy', 'images')], float)
    confidence, accuracy, images = points[:, points[2] > 0]
    colour = colour_of(title) or COLOURS[0]  # the title begins with the head
    axes.plot(confidence, accuracy, color=colour)
    axes.scatter(confidence, accuracy, 4 + 200 * images / images.sum(), color=colour,
                 label=f'expected calibration error {calibration["error"]:.1f} %')
    axes.legend(fontsize=7)
    return figure


def training_curves(title, log):
    """Loss, accuracies and learning rate over the epochs. log: the lines of log.jsonl."""
    figure = Figure(figsize=(5, 6), dpi=110)
    figure.subplots_adjust(0.23, 0.08, 0.97, 0.94)  # fixed: computing a layout takes longer than a small epoch
    figure.suptitle(title)
    panels = (('loss', {'train': 'train_loss'}), ('accuracy, %', {'train': 'train_accuracy', 'val': 'val_accuracy'}),
              ('learning rate', {'at the start of the epoch': 'lr'}))
    epochs = [line['epoch'] for line in log]
    for axes, (label, curves) in zip(figure.subplots(len(panels), sharex=True), panels, strict=True):
        axes.set_prop_cycle(color=COLOURS)
        for name, key in curves.items():
            axes.plot(epochs, [line[key] for line in log], marker='.', label=name)
        axes.set(ylabel=label)
        axes.legend(fontsize=7)
    axes.set(xlabel='epoch', xlim=(0.5, epochs[-1] + 0.5))
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure
