"""Pictures, as matplotlib Figures: a notebook shows them, save() writes them. No backend is chosen."""
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

import util
from wsol.metrics import resize


def save(figure, path):
    """Write a figure as PNG, whole or not at all."""
    util.write_atomically(path, lambda file: figure.savefig(file, format='png', dpi=110, bbox_inches='tight',
                                                            metadata={'Software': None}))


def _curve_axes(**labels):
    figure = Figure(figsize=(5, 3.6))
    axes = figure.subplots()
    axes.set(**labels)
    return figure, axes


def ratio_curve(curves):
    """R_k over k. curves: {name: records of eval_pixel_perturb}; R_0 = R_100 = 1 by definition."""
    figure, axes = _curve_axes(xlabel='erased pixels, %', ylabel='correct: top-k / random',
                               title='Remove-and-classify (lower is better)')
    axes.axhline(1, color='0.6', linewidth=1, linestyle=':')
    for name, records in curves.items():
        percent = [0, *(record['erased_percent'] for record in records), 100]
        ratio = [1, *(record['R'] for record in records), 1]
        drawn = [float('nan') if value is None else value for value in ratio]
        line, = axes.plot(percent, drawn, marker='o', label=name)
        if all(record['R'] is not None for record in records):
            axes.fill_between(percent, [1, *(record['R_low'] for record in records), 1],
                              [1, *(record['R_high'] for record in records), 1], color=line.get_color(), alpha=0.15)
    axes.set(ylim=(0, None))
    axes.legend()
    return figure


def precision_recall_curves(title, curves):
    """curves: {name: (precision, recall)}, from the highest threshold down."""
    figure, axes = _curve_axes(xlabel='recall, %', ylabel='precision, %', title=title, xlim=(0, 100), ylim=(0, 100))
    for name, (precision, recall) in curves.items():
        axes.plot(100 * recall, 100 * precision, label=name)
    axes.legend()
    return figure


def accuracy_curves(title, thresholds, curves):
    """Box accuracy over the threshold. curves: {measure: accuracy in percent (T,)}."""
    figure, axes = _curve_axes(xlabel='threshold of the map', ylabel='images found, %', title=title, xlim=(0, 1),
                               ylim=(0, 100))
    for name, values in curves.items():
        axes.plot(thresholds, values, label=name, linestyle='-' if 'V2' in name else '--')
    axes.legend(fontsize=7)
    return figure


def overlay(picture, values, title, unit, signed=False):
    """A map over its photo, with a colour bar in the map's units.

    picture: (H,W,3) in 0..1. values: (h,w), enlarged to the photo as the network saw it. signed: a diverging palette
    centred at 0.
    """
    height, width = picture.shape[:2]
    values = resize(torch.as_tensor(values)[None], (height, width))[0].numpy()
    extreme = float(np.abs(values).max()) or 1.0
    low, high = (-extreme, extreme) if signed else (min(0.0, float(values.min())), float(values.max()) or 1.0)
    strength = 0.8 * (np.abs(values) / extreme if signed else (values - low) / (high - low or 1))
    shape = min(max(height / width, 0.5), 1.6)
    figure = Figure(figsize=(5.4, 4.4 * shape + 0.5), layout='constrained')
    axes = figure.subplots()
    axes.imshow(picture)
    drawn = axes.imshow(values, cmap='RdBu_r' if signed else 'inferno', vmin=low, vmax=high, alpha=strength)
    bar = figure.colorbar(ScalarMappable(drawn.norm, drawn.cmap), ax=axes, label=unit)
    bar.formatter.set_powerlimits((-3, 4))
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[])
    return figure


def contact_sheet(methods, rows):
    """A row per image: the photo, and for each method its maps for A and B and their signed difference.

    rows: [(picture (S,S,3) in 0..1, cue (S,S) bool, caption, [(map A (S,S), map B (S,S), (p(A), p(B)))])]. A and B
    share a scale; the difference is centred at 0, with its own colour bar in the map's units.
    The cue is outlined everywhere.
    """
    columns = 1 + 3 * len(methods)
    figure = Figure(figsize=(1.9 * columns, 1.95 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (picture, cue, caption, maps) in zip(grid, rows, strict=True):
        axes_row[0].imshow(picture)
        axes_row[0].set_ylabel(caption, fontsize=8)
        for method, (first, second, probs) in enumerate(maps):
            low, high = min(first.min(), second.min()), max(first.max(), second.max())
            extreme = abs(first - second).max()
            axes = axes_row[1 + 3 * method:4 + 3 * method]
            for one, values in zip(axes, (first, second), strict=False):
                one.imshow(values, cmap='viridis', vmin=low, vmax=high)
            drawn = axes[2].imshow(first - second, cmap='RdBu_r', vmin=-extreme, vmax=extreme)
            bar = figure.colorbar(drawn, ax=axes[2], fraction=0.05, pad=0.03)
            bar.ax.tick_params(labelsize=6)
            bar.formatter.set_powerlimits((-2, 3))
            for one, text in zip(axes, (f'p(A) {probs[0]:.2f}', f'p(B) {probs[1]:.2f}'), strict=False):
                one.set_xlabel(text, fontsize=7, labelpad=1)
        for one in axes_row:
            one.set(xticks=[], yticks=[])
            one.contour(cue, levels=[0.5], colors='white', linewidths=1.6)
            one.contour(cue, levels=[0.5], colors='black', linewidths=0.7)
    asked = ('class A', 'class B', 'A - B')
    titles = ['photo, true cue', *(f'{method}\n{what}' for method in methods for what in asked)]
    for one, title in zip(grid[0], titles, strict=True):
        one.set_title(title, fontsize=8)
    return figure
