"""The notebook docs/tour.ipynb runs from top to bottom."""
import json
from pathlib import Path

import matplotlib
import pytest
from conftest import roots_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.filterwarnings('ignore:FigureCanvasAgg is non-interactive')
def test_the_tour_runs_and_ends_with_a_figure(tiny_birds, monkeypatch, capsys):
    """Its cells one after another in one namespace, as a notebook runs them, on the tests' own birds; 20 steps of training
    stand for 200."""
    cells = [''.join(cell['source']) for cell in json.loads((ROOT / 'docs/tour.ipynb').read_text())['cells']
             if cell['cell_type'] == 'code']
    monkeypatch.chdir(ROOT)
    previous = matplotlib.get_backend()
    matplotlib.use('agg')
    names = {}
    try:
        for cell in cells:
            *body, last = cell.rstrip().splitlines()
            source = cell.replace("open_dataset('ToyBirds')", f"open_dataset('ToyBirds', {', '.join(repr(str(root)) for root in roots_of(tiny_birds))})")
            exec(source.replace('STEPS, BATCH = 200, 32', 'STEPS, BATCH = 20, 16'), names)
        figure = eval(last, names)
    finally:
        matplotlib.pyplot.close('all')
        matplotlib.use(previous)
    printed = capsys.readouterr().out
    assert 'sum of all cells: 1.0' in printed
    assert len(figure.axes) >= 4
    assert names['losses'][-1] < names['losses'][0]
