"""research.findings: the page holds what the measurements say, and each measurement says where it is from."""
import re
from collections import Counter

import pytest

from research import findings

PAGE = (findings.DOCS / 'findings.md').read_text()
MEASURED = {name: findings.read(name) for name in ('real_birds', 'painted_birds')}
RUNS = {row['run'] for row in findings.read('runs')}


def test_the_tables_of_the_pages_are_those_of_the_data():
    pages = [path.read_text() for path in findings.PAGES]
    assert sorted(re.findall(r'<!-- table: (\w+) -->', ''.join(pages))) == sorted(findings.TABLES)
    assert [findings.filled(page) for page in pages] == pages


def test_a_changed_measurement_changes_the_page(monkeypatch):
    """And nothing outside the tables."""
    read = findings.read
    monkeypatch.setattr(findings, 'read', lambda *args, **wanted: [
        row | {'value': '12.3'} if row['value'] == '35.6' else row for row in read(*args, **wanted)])
    changed = findings.filled(PAGE)
    assert changed == PAGE.replace(' 35.6 ± 0.5 ', ' 12.3 ± 0.5 ') != PAGE


def test_the_page_is_short():
    assert len(PAGE.splitlines()) <= 150


def test_no_interval_stands_in_a_sentence():
    assert not re.search(r'\[[+-]?\d+\.\d, [+-]?\d+\.\d\]', PAGE)


def test_the_figures_in_sentences_are_measurements():
    """Two are differences within a table, four are the paper's."""
    sentences = re.sub(r'^\|.*', '', PAGE, flags=re.M)
    values = {row['value'].lstrip('-') for rows in MEASURED.values() for row in rows}
    computed = {'1.3', '0.3', '2.2', '34.3', '29.6', '71.8', '59.6'}
    assert not set(re.findall(r'(?<![\w.])\d+\.\d+(?![\w.]|\.\d)', sentences)) - values - computed


def test_the_plots_have_a_point_for_each_measurement():
    axes, = findings.forest().axes
    assert len(axes.containers) == 2 * sum(len(networks) - ('CAM' in networks)
                                           for networks in (findings.TRAININGS | findings.PAIRS).values())
    drawn = {round(x, 6) for line in findings.dropping().axes[0].lines for x in line.get_xdata()}
    assert {20, 50, 61, 77.5, 82.5} <= drawn


@pytest.mark.parametrize('name', MEASURED)
def test_each_measurement_has_one_row_and_a_run(name):
    keys = Counter(tuple(value for column, value in row.items() if column not in ('value', 'deviation', 'low', 'high'))
                   for row in MEASURED[name])
    assert not [key for key, count in keys.items() if count > 1]
    assert {row['run'] for row in [*MEASURED[name], *findings.read('performance')]} <= RUNS
    for row in MEASURED[name]:
        assert row['figure'] and (row['figure'] == 'PxAP') == bool(row['count']) == bool(row['parts']), row
        assert row['count'] in ('', 'published', 'published, all pixels', 'per pair', 'per pair, all pixels')
        assert bool(row['low']) == bool(row['high']) == bool(row['over']), row
        if row['low']:
            assert float(row['low']) <= float(row['value']) <= float(row['high']), row


def test_the_columns_are_explained():
    text = (findings.DOCS / 'measurements.md').read_text()
    named = {name for cell in re.findall(r'^\| ([\w, ]+) \|', text, re.M) for name in cell.split(', ')}
    assert set(MEASURED['real_birds'][0]) <= named
    assert all(f'`{path.name}`' in text for path in (findings.DOCS / 'data').glob('*.csv'))
