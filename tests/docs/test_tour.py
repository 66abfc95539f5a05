"""The notebook docs/tour.ipynb runs from top to bottom, and is stored as it ran."""
import json
import re
from pathlib import Path

import matplotlib
import pytest
from conftest import roots_of

from experiment import checkpoint_files, weights
from wsol import build_model

ROOT = Path(__file__).resolve().parents[2]
CELLS = [cell for cell in json.loads((ROOT / 'docs/tour.ipynb').read_text())['cells'] if cell['cell_type'] == 'code']


@pytest.mark.filterwarnings('ignore:FigureCanvasAgg is non-interactive')
def test_the_tour_runs_and_ends_with_a_figure(tiny_birds, tmp_path, monkeypatch, capsys):
    """Its cells one after another in one namespace, as a notebook runs them, on the tests' own birds; untrained
    networks stand for those of the demo."""
    cells = [''.join(cell['source']) for cell in CELLS]
    monkeypatch.chdir(ROOT)
    previous = matplotlib.get_backend()
    matplotlib.use('agg')
    for head, prior in (('CAM', 'relu'), ('CALM_EM', 'softplus')):
        network = {'architecture': 'resnet18', 'attribution_method': head, 'last_stage': 'layer2', 'num_classes': 18,
                   'prior': prior}
        state = build_model(**network).state_dict()
        checkpoint_files.write(tmp_path / head / weights.FILE, {'model': network, 'state_dict': state})
    names = {}
    try:
        for cell in cells:
            *body, last = cell.rstrip().splitlines()
            source = cell.replace("open_dataset('ToyBirds')", f"open_dataset('ToyBirds', {', '.join(repr(str(root)) for root in roots_of(tiny_birds))})")
            exec(source.replace("'save/demo'", repr(str(tmp_path))), names)
        figure = eval(last, names)
    finally:
        matplotlib.pyplot.close('all')
        matplotlib.use(previous)
    printed = capsys.readouterr().out
    assert 'sum of all cells: 1.0' in printed
    assert len(figure.axes) >= 4
    sums = re.search(r'the evidence: the cells sum to (.*); .* = (.*)', printed)
    assert float(sums[1]) == pytest.approx(float(sums[2]), abs=0.02)


def test_the_tour_is_stored_with_its_outputs():
    assert [cell['execution_count'] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell['outputs']]
    assert not [output for output in outputs if output['output_type'] == 'error' or output.get('name') == 'stderr']
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 4
