"""research.abstention: the share of dropped pixels and both PxAPs, as the evaluations measure them."""
import re
import shutil

import pytest
from conftest import accepted, refused

from experiment import result_files
from reports import figures
from wsol.errors import UserError

TINY = ['--crop_size=56', '--workers=0', '--device=cpu']


def rows_in(folder):
    """[[name, cell, ...]] of the table that was written."""
    lines = (folder / 'abstention/abstention.txt').read_text().splitlines()
    return [re.split(r'\s{2,}', line.strip()) for line in lines[2:]]


def test_the_table_holds_the_figures_of_the_results_and_measures_nothing_twice(at_home, save, script, tiny_birds, tmp_path):
    accepted(script('research.abstention', 'save/CAM', 'save/CALM_EM', '--drop=60,0', *TINY))
    assert len(at_home) == 2 and all(command[0] == 'eval_cue_location' for command in at_home)
    rows = rows_in(tmp_path)
    assert [row[:2] for row in rows] == [['CAM', '0 %'], ['CAM', '60 %'], ['CALM_EM', '0 %'], ['CALM_EM', '60 %']]
    for name, percent, *shown in rows:
        results = [result_files.read_result(path) for path in (save / name).glob('cue_location*_log*.json')]
        (result,) = [result for result in results if result['settings']['drop_lowest'] == float(percent.split()[0])]
        pxap = result['pxap']['parts']
        expected = result['dropped']['parts']['all'], pxap['per pair']['mean'], pxap['per pair, all pixels']['mean']
        assert shown == [f'{value:.1f}' for value in expected]
    share = {(name, percent): float(value) for name, percent, value, *_ in rows}
    assert abs(share['CAM', '60 %'] - 60) < 2 and share['CAM', '0 %'] < 2
    assert (tmp_path / 'abstention' / 'abstention.png').stat().st_size > 5000
    code, _, err = script('research.abstention', 'save/CAM', '--drop=60,0', *TINY)
    assert code == 0 and len(at_home) == 2, err
    sha256 = result_files.read_result(save / 'CAM' / 'results.json')['weights_sha256']
    with pytest.raises(UserError):  # what other commands look for has even thresholds, and is not there yet
        result_files.find_result(save / 'CAM', 'cue_location', 'vanilla', sha256)
    code, _, err = script('research.abstention', 'save/CAM', '--drop=60,0', '--norm_type=max', *TINY)
    assert code == 0 and len(at_home) == 3, err  # another norm is measured anew
    code, _, err = script('research.abstention', 'save/CAM', '--drop=60,30,0', '--norm_type=max', *TINY)
    assert code == 0 and len(at_home) == 4 and '--drop_lowest=30' in at_home[-1], err  # what is new alone


def test_networks_of_one_name_are_one_line_for_each_method_they_have(at_home, save, script, tiny_birds, tmp_path):
    for name in ('CAM', 'CALM_EM'):
        shutil.copytree(save / name, save / 'again' / name)
    accepted(script('research.abstention', *(f'save/{name}' for name in ('CAM', 'again/CAM', 'CALM_EM', 'again/CALM_EM')),
                    '--drop=0', '--methods=default,saliency,object_mask', *TINY))
    rows = rows_in(tmp_path)
    # the prior is CALM's alone, and the birds' masks know no network
    assert [row[0] for row in rows] == ['CAM, vanilla', "control: the object's mask", 'CALM_EM, jointll', 'CALM_EM, saliency']
    assert all(cell.endswith('± 0.0') for row in rows for cell in row[2:] if row[0] != rows[1][0])  # two networks are one
    assert rows[2][3:] != rows[3][3:]


def test_contrast_methods_are_methods_too(at_home, save, script, tiny_birds, tmp_path):
    for _ in range(2):  # nothing is measured twice
        code, _, err = script('research.abstention', 'save/CAM', 'save/CALM_EM', '--drop=0,50', '--methods=default,log-odds,evidence,random',
                              *TINY)
        assert code == 0 and len(at_home) == 4, err
    rows = rows_in(tmp_path)
    assert [row[0] for row in rows[::2]] == ['CAM, vanilla', 'CAM, log-odds', 'CAM, evidence', 'control: random maps',
                                             'CALM_EM, jointll', 'CALM_EM, log-odds', 'CALM_EM, evidence']
    for name in ('log-odds', 'evidence'):
        (result,) = [result for result in map(result_files.read_result, (save / 'CALM_EM').glob('cue_location*.json'))
                  if result['settings']['contrast_method'] == name and result['settings']['drop_lowest'] == 50]
        shown = next(row for row in rows if row[:2] == [f'CALM_EM, {name}', '50 %'])[2:]
        pxap = result['pxap']['parts']
        assert shown == [f'{value:.1f}' for value in (result['dropped']['parts']['all'], pxap['per pair']['mean'], pxap['per pair, all pixels']['mean'])]


def test_what_is_no_experiment_is_refused(script, tmp_path):
    (tmp_path / 'empty').mkdir()
    refused(script('research.abstention', 'empty'), 'empty', 'save/')
    refused(script('research.abstention', 'empty', '--thresholds=3'), 'thresholds')
    for flag in ('threshold_type=even', 'load_checkpoint=x', 'scoremap_root=x', 'save_root=x', 'drop_lowest=3'):
        refused(script('research.abstention', 'empty', f'--{flag}'), flag.partition('=')[0], 'research.abstention')


def test_a_method_that_no_network_has_is_refused(save, script):
    refused(script('research.abstention', 'save/CAM', '--methods=saliency'), '--methods=saliency')


def test_solid_is_the_published_count_however_many_curves_there_are():
    """Beyond the seventh, where the colours repeat, another marker tells them apart, and the line still says the count."""
    names = [f'method {i}' for i in range(16)]
    axes, = figures.abstention_curves('', {name: ([0, 50], [30, 40], [30, 20]) for name in names}).axes
    published = [line for line in axes.lines if line.get_label() in names]
    counted = [line for line in axes.lines if list(line.get_ydata()) == [30, 20]]
    assert [line.get_linestyle() for line in published] == ['-'] * 16
    assert [line.get_linestyle() for line in counted] == ['--'] * 16
    assert len({(line.get_color(), line.get_marker()) for line in published}) == 16
    assert [line.get_color() for line in published] == [line.get_color() for line in counted]
