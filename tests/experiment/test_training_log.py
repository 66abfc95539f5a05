"""A training is seen: the screen and training.png show what log.jsonl holds."""
import json
import re
from types import SimpleNamespace

import pytest
from conftest import SMALL, accepted

from experiment import training
from reports import figures

LOG = [{'epoch': epoch, 'lr': 0.1 / epoch, 'train_loss': 2 / epoch, 'train_accuracy': 10.0 * epoch,
        'train_images_per_second': 50.0, 'val_accuracy': 9.0 * epoch} for epoch in (1, 2, 3)]


def test_a_training_shows_the_lines_of_its_log(script, drawn, tiny_birds, tmp_path):
    out = accepted(script('main', *tiny_birds, *SMALL, '--epochs=2'))
    folder = tmp_path / 'save/result'
    log = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    shown = re.findall(r'^epoch (\d)/2: loss ([\d.]+), accuracy ([\d.]+) % on train, ([\d.]+) % on val, rate ([\d.e-]+),', out, re.M)
    assert [tuple(map(float, words)) for words in shown] == [
        (line['epoch'], round(line['train_loss'], 3), round(line['train_accuracy'], 1), round(line['val_accuracy'], 1),
         float(f'{line["lr"]:.2g}')) for line in log]
    assert (folder / 'training.png').stat().st_size > 5000


def test_the_figure_holds_the_log():
    axes = figures.training_curves('birds', LOG).axes
    drawn = {(axis.get_ylabel(), line.get_label()): line.get_ydata().tolist() for axis in axes for line in axis.get_lines()}
    assert drawn == {('loss', 'train'): [2, 1, 2 / 3], ('accuracy, %', 'train'): [10, 20, 30], ('accuracy, %', 'val'): [9, 18, 27],
                     ('learning rate', 'at the start of the epoch'): [0.1, 0.05, 0.1 / 3]}


@pytest.mark.parametrize('rate', [0.1, 0.01, 1e-4, 3e-6])
def test_the_figures_words_are_within_it(rate):
    figure = figures.training_curves('birds', [{**LOG[0], 'lr': rate}])
    figure.draw_without_rendering()
    assert all(axes.yaxis.label.get_window_extent().x0 >= 0 for axes in figure.axes)


def test_the_figure_is_drawn_now_and_then_and_at_the_end(monkeypatch):
    drawn, now = [], [0]
    monkeypatch.setattr(training.time, 'monotonic', lambda: now[0])
    seen = SimpleNamespace(epochs=3, draw=lambda _: drawn.append(now[0]), drawn_at=0)
    for now[0], count in ((10, 1), (35, 2), (40, 3)):
        seen.log = LOG[:count]
        training.Training.show(seen)
    assert drawn == [35, 40]
