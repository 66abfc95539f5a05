"""bench.py: the plain ways give what ours give, ratios are of one round, and a whole run leaves table, figures and plot."""
import json
from functools import partial
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
from research import bench_items, plain_ways, profiles
from wsol import attribution_maps, metrics

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def bench():
    return benchmark.Bench('resnet18', 32, CPU, rounds=2)


def test_the_plain_maps_are_ours(bench):
    images, labels = bench.images(3), bench.labels(3)
    ours = attribution_maps(bench.network(), images, labels)
    torch.testing.assert_close(ours, plain_ways.maps(bench.network(plain=True), images, labels))


def test_the_plain_erasure_counts_what_ours_counts(bench):
    model, images, labels = bench.network(7), bench.images(6), bench.labels(6, 7)
    labels[:4] = model(images)[:4].argmax(1)  # so that some are right
    plain = np.array(plain_ways.erasure(model, images, labels))
    source = NetworkMaps(bench_items.SimpleNamespace(image_id=str), model, 'jointll')
    correct, _ = eval_pixel_perturb.classify_erased(model, [(images, labels, torch.arange(6))], source, CPU, 0, 'float32', 4, names=('top', 'random'))
    intact, top = correct['intact'], correct['top']
    assert plain.shape == (11, 6) and intact.sum() >= 4
    np.testing.assert_array_equal(plain[0], intact)
    assert (top != plain[1:6].T).sum() <= 2  # of 30: among pixels of one value the order is another


def test_the_plain_cue_localization_counts_what_ours_counts(bench):
    """With points that no photo shows among them. numpy drops the underflow, as published, and its last bin is closed; a
    score may change its bin."""
    cues, edges = bench_items.some_cues(bench, 3, 4), metrics.bin_edges('log')
    assert (cues.annotations.made[..., 2] == 0).any()
    model = bench.network(plain=True)
    plain = plain_ways.cue_histograms(model, cues, edges, CPU)
    scoring = eval_cue_location.Scoring(NetworkMaps(cues, model, 'jointll'), 'clipping', edges)
    ours = eval_cue_location.fill_histograms(make_loader(cues, 2, 0, CPU), [scoring], CPU)
    counts = ours[0][0]['parts'][0][..., 1:-1]
    assert ours[1].tolist() == [3] * 4 and plain.shape == counts.shape and plain.sum() > 1000
    assert np.abs(counts - plain).sum() <= 0.01 * plain.sum()
    np.testing.assert_allclose(counts.sum(2), plain.sum(2), rtol=1e-3)
    assert bench_items.differing_counts({'plain': plain, 'float32': ours}).startswith('float32: 0.')


def test_differing_counts_are_reported():
    plain = np.zeros((1, 2, 4), np.int64)
    plain[0, :, 2] = 50
    ours = np.pad(plain, ((0, 0), (0, 0), (1, 1)))
    ours[0, 1, 0] = 77  # underflow, which numpy drops
    for moved in (0, 5):
        ours[0, 1, 2:4] = moved, 50 - moved
        said = bench_items.differing_counts({'plain': plain, 'auto': ([{'parts': [ours]}], None), 'floor': None})
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
    milliseconds, profiled, said = bench.measure(bench_items.Item('', ways, 4, compare=', '.join))
    assert order == ['plain', 'float32'] * 3 and milliseconds == {'plain': [250, 250], 'float32': [250, 250]}
    assert said == 'plain, float32' and profiled == dict.fromkeys(ways, (0, 0, None, None, 0))
    assert benchmark.ratio([6, 8, 30], [2, 4, 3]) == '3.00 (2.00 .. 10.00)'
    peaks = {way: profiles.Profile(1, 0, None, None, peak) for way, peak in (('plain', 70), ('float32', 50), ('floor', 40))}
    line = benchmark.row('x', {'plain': [6, 8, 30], 'float32': [2, 4, 3], 'floor': [1, 2, 3]}, peaks)
    assert line == ['x', '8.0 ms', '3.00 (2.00 .. 10.00)', '-', '2.00 (1.00 .. 2.00)', 70, 50]


def test_idle_is_the_share_of_the_call_in_which_the_gpu_does_nothing():
    """Two images of 5 ms each, of which the GPU computes 4 ms in all."""
    row, = benchmark.profile_rows('x', {'plain': [4, 5, 6]}, {'plain': profiles.Profile(9, 1, 2, 4.0, 7)}, 2)
    assert row == ['x: plain', 200, 9, 1, 2, pytest.approx(60), 7]


def test_mistakes(script):
    refused(script('research.bench', '--only=trainin'), 'trainin')
    refused(script('research.bench', '--rounds=0'), '--rounds: "0"')


def run_bench(script, tmp_path, *flags):
    """The times of a run, and what it printed."""
    code, out, err = script('research.bench', '--architecture=resnet18', '--crop_size=32', '--rounds=1', '--device=cpu', '--json=b.json',
                            *flags)
    assert code == 0, err
    content = json.loads((tmp_path / 'b.json').read_text())
    assert all(name in out and {'plain', 'float32'} <= times.keys() for name, times in content['milliseconds'].items())
    assert all(words in out for words in content['compared'].values())
    return content['milliseconds'], out


def test_a_run_measures_everything_in_a_short_table(script, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_items, 'PHOTOS', 6)
    times, out = run_bench(script, tmp_path, '--batch_size=4')
    assert 7 <= len(times) <= 15 and '--cache' in out and 'counted in another bin' in out
    more, _ = run_bench(script, tmp_path, '--all', '--only', 'remove_and_classify')
    assert len(more) == 3 and len(set(more) - set(times)) == 2


def test_gpu_measures_the_published_sizes_and_says_what_they_ask_of_a_gpu(script, tmp_path, monkeypatch):
    """On a CPU, without the columns that need a GPU."""
    monkeypatch.setattr(bench_items, 'PHOTOS', 6)
    times, out = run_bench(script, tmp_path, '--gpu', '--batch_size=2')
    rows = json.loads((tmp_path / 'b.json').read_text())['profiles']
    assert [name.split(',')[0] for name in times] == [*['training'] * 2, *['jointll maps', 'accuracy'] * 2, *['remove-and-classify'] * 2,
                                                      'cue localization', 'loading', 'loading']
    started = {name: count for name, _, count, *_ in rows}
    assert started.keys() == {f'{name}: {way}' for name, ways in times.items() for way in ways}
    for name, ways in times.items():
        if 'floor' in ways:
            assert 20 < started[f'{name}: floor'] <= started[f'{name}: float32'] <= started[f'{name}: plain'] + 5, name
    assert 'peak, MiB' in out


def test_operations_and_reads_are_counted():
    values = torch.arange(4.0)
    assert profiles.profile(lambda: (values.view(2, 2)[0] + 1).exp().max(), CPU) == (3, 0, None, None, 0)
    assert profiles.profile(lambda: values.sum().item(), CPU)[:2] == (1, 1)
    assert profiles.profile(lambda: (values.tolist(), bool(values.any())), CPU).waits == 2


def test_the_peak_is_of_what_is_in_use_at_once():
    """4 MiB, another 4, then 12 in their place; a backward keeps what it needs."""
    values = torch.ones(1 << 20, requires_grad=True)
    assert profiles.profile(lambda: [torch.ones(1 << 20) for _ in range(2)], CPU).peak == 8
    assert profiles.profile(lambda: torch.ones(1 << 20).add(1).repeat(3).add(1), CPU).peak == 24
    assert profiles.profile(lambda: (values * 2).exp().sum().backward(), CPU).peak == 8


def test_cue_localization_asks_no_more_of_a_gpu_for_more_images_or_pairs(bench):
    """Within a batch: every launch, read and copy is for all of its images at once, not for each image or each pair."""
    model, figures = bench.network(), []
    for images, pairs in ((2, 1), (2, 4), (8, 1)):
        cues = bench_items.some_cues(bench, images, pairs)
        scoring = eval_cue_location.Scoring(NetworkMaps(cues, model, 'jointll'), 'clipping', metrics.bin_edges('log'))
        loader = type('Loader', (list,), {'images': cues})(make_loader(cues, 8, 0, CPU))
        figures.append(profiles.profile(partial(eval_cue_location.fill_histograms, loader, [scoring], CPU), CPU)[:2])
    assert figures[0] == figures[1] == figures[2]


def test_gpu_needs_one(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    refused(script('research.bench', '--gpu'), '--gpu', 'no CUDA GPU', '--device=cpu')


def test_cue_localization_is_measured_on_cubs_annotations():
    cub = benchmark.Bench('resnet18', 32, CPU, 1, cub=shared('cub'))
    cues = bench_items.some_cues(cub, 5, 1)
    assert 3 <= len(cues) <= 5 and len(cues.annotations.pairs) > 100 and cues.read(0)[4].any()
