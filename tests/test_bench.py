"""bench.py: its plain ways give what ours give, ratios are of one round, and a whole run leaves table, figures and plot."""
import json
from itertools import count

import numpy as np
import pytest
import torch
from conftest import refused
from test_data_loaders import noise_dataset

import bench as benchmark
import eval_cue_location
import eval_pixel_perturb
from data_loaders import make_loader
from map_sources import NetworkMaps
from wsol import attribution_maps, metrics
from wsol.cub import nearest_part

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def bench():
    return benchmark.Bench('resnet18', 32, CPU, rounds=2)


def test_the_plain_maps_are_ours(bench):
    plain, folded = bench.network(plain=True), bench.network(folded=True)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    images, labels = bench.images(3), bench.labels(3)
    ours = attribution_maps(folded, images, labels)
    torch.testing.assert_close(ours, benchmark._plain_maps(plain, images, labels), rtol=1e-3, atol=1e-5 * ours.max().item())


def test_the_plain_erasure_counts_what_ours_counts(bench):
    model, images, labels = bench.network(7), bench.images(6), bench.labels(6, 7)
    labels[:4] = model(images)[:4].argmax(1)  # so that some are right
    plain = np.array(benchmark._plain_erasure(model, images, labels))
    source = NetworkMaps(benchmark.SimpleNamespace(image_id=str), model, 'jointll')
    intact, top, _ = eval_pixel_perturb.classify_erased(model, [(images, labels, torch.arange(6))], source, CPU, 0, 'float32', 4)
    assert plain.shape == (11, 6) and intact.sum() >= 4
    np.testing.assert_array_equal(plain[0], intact)
    assert (top != plain[1:6].T).sum() <= 2  # of 30: among pixels of one value the order is another


def test_the_plain_cue_localization_counts_what_ours_counts(bench):
    model, edges = bench.network(), metrics.bin_edges('log')
    cues = benchmark.Cues(bench, 3, 4)
    for index, pair in enumerate(cues.annotations.pairs[:3]):
        own = np.isin(nearest_part(cues.points[index], 500, 375, 32), pair.parts) & cues.object_mask
        np.testing.assert_array_equal(benchmark._plain_mask(cues.points[index], 32, pair, cues.object_mask), own)
    measure = eval_cue_location.Measure(NetworkMaps(cues, model, 'jointll'), 'clipping', edges)
    (counts,), evaluations = eval_cue_location.fill_histograms(make_loader(cues, 2, 0, CPU), [measure], CPU)
    plain = benchmark._plain_cues(bench, model, cues, edges)
    ours = counts['parts'].sum(0)[:, 1:-1]  # numpy drops the underflow, as published
    assert evaluations.tolist() == [3] * 4 and plain.sum() > 1000
    assert np.abs(ours - plain).sum() <= 0.01 * plain.sum()  # numpy's last bin is closed, and a score may change its bin
    np.testing.assert_allclose(ours.sum(1), plain.sum(1), rtol=1e-3)


def test_the_plain_loader_gives_the_same_images_to_a_grey_level(tmp_path):
    dataset = noise_dataset(tmp_path, size=(256, 224))
    torch.manual_seed(7)  # which dataset[2, 7] does itself
    plain, ours = (kind[2, 7][0] for kind in (benchmark.PlainImages(dataset), dataset))
    assert plain.shape == ours.shape == (3, 224, 224) and (plain - ours).abs().max() <= 1.01 / 255 / 0.224


def test_the_ways_take_turns_and_a_ratio_is_of_one_round(bench, monkeypatch):
    order, clock = [], count()
    monkeypatch.setattr(benchmark.time, 'perf_counter', lambda: next(clock))
    ways = {name: lambda name=name: order.append(name) for name in ('plain', 'float32')}
    found = bench.measure(benchmark.Item('', ways, 4))
    assert order == ['plain', 'float32'] * 3 and found == {'plain': [250, 250], 'float32': [250, 250]}
    assert benchmark.ratio([6, 8, 30], [2, 4, 3]) == (3, 2, 10)
    line = benchmark.row('x', 'ms', {'plain': [6, 8, 30], 'float32': [2, 4, 3], 'floor': [1, 2, 3]})
    assert line == ['x', '8.0 ms', '3.00 (2.00 .. 10.00)', '-', '2.00 (1.00 .. 2.00)']


def test_cubs_time_follows_from_an_image_and_a_pair():
    """Ours: 100 ms an image and 2 more for each pair; the plain way 50 ms a pair."""
    results = {f'cue localization, 4 images x {pairs} pairs': {'plain': [50 * pairs], 'float32': [100 + 2 * pairs], 'floor': [1]}
               for pairs in (1, 4)}
    seconds = benchmark.project_on_cub(results)
    assert seconds == pytest.approx({'plain': 0.05 * 11039, 'float32': 0.1 * 2579 + 0.002 * 11039})


@pytest.mark.parametrize('name, flag', [('bench', '--only=trainin'), ('bench', '--rounds=0'), ('precision', 'training')])
def test_a_mistake_is_one_line(script, name, flag):
    refused(script(name, flag), flag.split('=')[-1])


def test_a_run_measures_everything(script, tmp_path, monkeypatch):
    for name in ('training', 'head', 'remove_and_classify', 'cue_localization'):
        assert name in benchmark.ITEMS
    monkeypatch.setattr(benchmark, 'COPIES', 2)
    monkeypatch.setattr(benchmark, 'PHOTOS', 6)
    code, out, err = script('bench', '--architecture=resnet18', '--crop_size=32', '--rounds=1', '--device=cpu',
                            '--json=b.json', '--plot=b.png')
    assert code == 0, err
    content = json.loads((tmp_path / 'b.json').read_text())
    assert (tmp_path / 'b.png').stat().st_size > 1000 and set(content['cue_localization_on_cub']) >= {'plain', 'float32'}
    for name, found in content['figures'].items():
        assert name in out and {'plain', 'float32'} <= found.keys(), name
    for word in ('1000 classes', 'batch of 32', '--cache', 'NoiseTunnel', 'torchcam'):
        assert any(word in name for name in content['figures']), word
