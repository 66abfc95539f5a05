"""Pictures: curves of the evaluations."""
import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402  after the choice of backend

import util  # noqa: E402


def save(figure, path):
    """Write a figure as PNG, whole or not at all."""
    util.write_atomically(path, lambda file: figure.savefig(file, format='png', dpi=110, bbox_inches='tight',
                                                            metadata={'Software': None}))
    plt.close(figure)


def ratio_curve(path, curves):
    """R_k over k. curves: {name: records of eval_pixel_perturb}; R_0 = R_100 = 1 by definition."""
    figure, axes = plt.subplots(figsize=(5, 3.6))
    axes.axhline(1, color='0.6', linewidth=1, linestyle=':')
    for name, records in curves.items():
        percent = [0, *(record['erased_percent'] for record in records), 100]
        ratio = [1, *(record['R'] for record in records), 1]
        drawn = [float('nan') if value is None else value for value in ratio]
        line, = axes.plot(percent, drawn, marker='o', label=name)
        if all(record['R'] is not None for record in records):
            axes.fill_between(percent, [1, *(record['R_low'] for record in records), 1],
                              [1, *(record['R_high'] for record in records), 1], color=line.get_color(), alpha=0.15)
    axes.set(xlabel='erased pixels, %', ylabel='correct: top-k / random', title='Remove-and-classify (lower is better)',
             ylim=(0, None))
    axes.legend()
    save(figure, path)


def precision_recall_curves(path, title, curves):
    """curves: {name: (precision, recall)}, from the highest threshold down."""
    figure, axes = plt.subplots(figsize=(5, 3.6))
    for name, (precision, recall) in curves.items():
        axes.plot(100 * recall, 100 * precision, label=name)
    axes.set(xlabel='recall, %', ylabel='precision, %', title=title, xlim=(0, 100), ylim=(0, 100))
    axes.legend()
    save(figure, path)
