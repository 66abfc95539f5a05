"""bench.py: the plain ways give what ours give, ratios are of one round, and a whole run leaves table, figures and plot."""
import json
from itertools import count

import numpy as np
import pytest
import torch
from conftest import noise_dataset, refused, shared

import eval_cue_location
import eval_pixel_perturb
from data_loaders import make_loader
from evaluation.map_sources import NetworkMaps
from research import bench as benchmark
from research import bench_items, plain_ways
from wsol import attribution_maps, metrics

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def bench():
    return benchmark.Bench('resnet18', 32, CPU, rounds=2)


def test_the_plain_maps_are_ours(bench):
    plain, folded = bench.network(plain=True), bench.network(folded=True)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    images, labels = bench.images(3), bench.labels(3)
    ours = attribution_maps(folded, images, labels)
    torch.testing.assert_close(ours, plain_ways.maps(plain, images, labels), rtol=1e-3, atol=1e-5 * ours.max().item())


def test_the_plain_erasure_counts_what_ours_counts(bench):
    model, images, labels = bench.network(7), bench.images(6), bench.labels(6, 7)
    labels[:4] = model(images)[:4].argmax(1)  # so that some are right
    plain = np.array(plain_ways.erasure(model, images, labels))
    source = NetworkMaps(bench_items.SimpleNamespace(image_id=str), model, 'jointll')
    intact, top, _ = eval_pixel_perturb.classify_erased(model, [(images, labels, torch.arange(6))], source, CPU, 0, 'float32', 4)
    assert plain.shape == (11, 6) and intact.sum() >= 4
    np.testing.assert_array_equal(plain[0], intact)
    assert (top != plain[1:6].T).sum() <= 2  # of 30: among pixels of one value the order is another


def both_histograms(bench, cues):
    """Of the plain way, and ours; of one network in one memory layout."""
    model, edges = bench.network(plain=True), metrics.bin_edges('log')
    plain = plain_ways.cue_histograms(model, cues, edges, CPU)
    measure = eval_cue_location.Measure(NetworkMaps(cues, model, 'jointll'), 'clipping', edges)
    ours = eval_cue_location.fill_histograms(make_loader(cues, 2, 0, CPU), [measure], CPU)
    return {'plain': plain, 'float32': ours}


def assert_same_histograms(plain, float32):
    """numpy drops the underflow, as published, and its last bin is closed; a score may change its bin."""
    counts = float32[0][0]['parts'][..., 1:-1]
    assert plain.shape == counts.shape and plain.sum() > 1000
    assert np.abs(counts - plain).sum() <= 0.01 * plain.sum()
    np.testing.assert_allclose(counts.sum(2), plain.sum(2), rtol=1e-3)
    assert bench_items.counted_otherwise({'plain': plain, 'float32': float32}).startswith('float32: 0.')


def test_the_plain_cue_localization_counts_what_ours_counts(bench):
    results = both_histograms(bench, bench_items.some_cues(bench, 3, 4))
    assert results['float32'][1].tolist() == [3] * 4
    assert_same_histograms(**results)


def test_cubs_real_pairs_are_counted_plainly_as_ours():
    """Points that no photo shows among them."""
    bench = benchmark.Bench('resnet18', 32, CPU, 1, shared('cub'), 3)
    cues = bench_items.cues_of_cub(bench)
    points = np.stack([cues.annotations.points(cues.images.image_id(index)) for index in cues.rows])
    assert len(cues) == 3 and (points[..., 2] == 0).any() and (points[..., 2] == 1).any()
    results = both_histograms(bench, cues)
    assert results['float32'][1].sum() == sum(len(cues.pairs[index]) for index in cues.rows) >= 3
    assert_same_histograms(**results)


def test_what_is_counted_otherwise_is_said():
    plain = np.zeros((1, 2, 4), np.int64)
    plain[0, :, 2] = 50
    ours = np.pad(plain, ((0, 0), (0, 0), (1, 1)))
    ours[0, 1, 0] = 77  # underflow, which numpy drops
    for moved in (0, 5):
        ours[0, 1, 2:4] = moved, 50 - moved
        said = bench_items.counted_otherwise({'plain': plain, 'auto': ([{'parts': ours}], None), 'floor': None})
        assert said.startswith(f'auto: {moved}.000 % of the pixels')


def test_the_plain_loader_gives_the_same_images_to_a_grey_level(tmp_path):
    dataset = noise_dataset(tmp_path, size=(256, 224))
    torch.manual_seed(7)  # which dataset[2, 7] does itself
    plain, ours = (kind[2, 7][0] for kind in (plain_ways.TrainingImages(dataset), dataset))
    assert plain.shape == ours.shape == (3, 224, 224) and (plain - ours).abs().max() <= 1.01 / 255 / 0.224


def test_the_ways_take_turns_and_a_ratio_is_of_one_round(bench, monkeypatch):
    order, clock = [], count()
    monkeypatch.setattr(benchmark.time, 'perf_counter', lambda: next(clock))
    ways = {name: lambda name=name: order.append(name) for name in ('plain', 'float32')}
    found, said = bench.measure(bench_items.Item('', ways, 4, compare=', '.join))
    assert order == ['plain', 'float32'] * 3 and found == {'plain': [250, 250], 'float32': [250, 250]}
    assert said == 'plain, float32'
    found, said = bench.measure(bench_items.Item('', ways, rounds=1))
    assert len(order) == 6 + 4 and found == {'plain': [1000], 'float32': [1000]} and not said
    assert benchmark.ratio([6, 8, 30], [2, 4, 3]) == (3, 2, 10)
    line = benchmark.row('x', 'ms', {'plain': [6, 8, 30], 'float32': [2, 4, 3], 'floor': [1, 2, 3]})
    assert line == ['x', '8.0 ms', '3.00 (2.00 .. 10.00)', '-', '2.00 (1.00 .. 2.00)']


def test_cubs_time_follows_from_an_image_and_a_pair():
    """Ours: 100 ms an image and 2 more for each pair; the plain way 50 ms a pair."""
    results = {f'cue localization, 4 images x {pairs} pairs': {'plain': [50 * pairs], 'float32': [100 + 2 * pairs], 'floor': [1]}
               for pairs in (1, 4)}
    seconds = bench_items.project_on_cub(results)
    assert seconds == pytest.approx({'plain': 0.05 * 11039, 'float32': 0.1 * 2579 + 0.002 * 11039})


@pytest.mark.parametrize('name, flag', [('bench', '--only=trainin'), ('bench', '--rounds=0'), ('precision', 'training')])
def test_a_mistake_is_one_line(script, name, flag):
    refused(script(name, flag), flag.split('=')[-1])


def test_a_run_measures_everything(script, tmp_path, monkeypatch):
    for name in ('training', 'remove_and_classify', 'cue_localization'):
        assert name in benchmark.ITEMS
    monkeypatch.setattr(bench_items, 'COPIES', 2)
    monkeypatch.setattr(bench_items, 'PHOTOS', 6)
    code, out, err = script('research.bench', '--architecture=resnet18', '--crop_size=32', '--rounds=1', '--device=cpu',
                            '--json=b.json', '--plot=b.png')
    assert code == 0, err
    content = json.loads((tmp_path / 'b.json').read_text())
    assert len(content['compared']) == 3 and all(said in out for said in content['compared'].values())
    assert (tmp_path / 'b.png').stat().st_size > 1000 and set(content['cue_localization_on_cub']) >= {'plain', 'float32'}
    for name, found in content['figures'].items():
        assert name in out and {'plain', 'float32'} <= found.keys(), name
    for word in ('1000 classes', 'maps, batch of 32', 'classify, batch of 32', 'classify, batch of 8', '--cache', 'NoiseTunnel', 'torchcam'):
        assert any(word in name for name in content['figures']), word
