"""Cue localization by contrast methods, and with the lowest pixels dropped."""
import numpy as np
import pytest
import torch
from conftest import SIZE, accepted, generators, open_birds, refused

import eval_cue_location
from data_loaders import make_loader
from evaluation.map_sources import MapSource
from experiment import result_files, weights
from wsol import metrics
from wsol.attribution.contrast import contrast_maps

# --- cue localization -----------------------------------------------------------------------------------


def cue_result(folder, word):
    (path,) = folder.glob(f'cue_location*{word}*.json')
    return result_files.read_result(path)


@pytest.mark.parametrize('flag, methods, dropped, alone', [
    ('score_map_process', ('vanilla', 'jointll', 'object_mask'), ('0', '60'), [('jointll', '60'), ('object_mask', '0')]),
    ('contrast_method', ('evidence', 'grad_cam'), ('0',), [('evidence', '0'), ('grad_cam', '0')])])
def test_several_methods_in_one_pass_are_measured_as_one_by_one(flag, methods, dropped, alone, tiny_birds, save, script):
    cue = ['eval_cue_location', *tiny_birds, '--experiment_name=CALM_EM']
    accepted(script(*cue, f'--{flag}={",".join(methods)}', f'--drop_lowest={",".join(dropped)}'))
    again, together = 0, {path.name: result_files.read_result(path) for path in (save / 'CALM_EM').glob('cue_location*.json')}
    assert len(together) == len(methods) * len(dropped)
    for method, share in alone:
        accepted(script(*cue, f'--{flag}={method}', f'--drop_lowest={share}'))
    for path in (save / 'CALM_EM').glob('cue_location*.json'):
        single, before = result_files.read_result(path), together[path.name]
        assert single['settings'] == before['settings']
        again += single['command'] != before['command']
        for pair, expected_pair in zip(single['pairs'], before['pairs'], strict=True):
            # a network that serves a gradient method too keeps its BatchNorms
            assert pair['pxap']['exact']['per pair, all pixels'] == pytest.approx(expected_pair['pxap']['exact']['per pair, all pixels'], abs=0.02)
    assert again == len(alone)


@pytest.mark.parametrize('method', ['log-odds', 'grad_cam'])
def test_cue_localization_by_a_contrast_is_that_of_its_maps_one_by_one(method, tiny_birds, save, script):
    """Against contrast_maps called for each image and pair, of its own class and the other, and histograms filled one
    at a time."""
    code, out, err = script('eval_cue_location', *tiny_birds, '--experiment_name=CAM', f'--contrast_method={method}')
    assert code == 0 and method in out, err
    result = cue_result(save / 'CAM', method)
    assert (result['settings']['norm_type'], result['settings']['threshold_type']) == ('minmax', 'even')
    images, data = open_birds(tiny_birds)
    cues = eval_cue_location.open_cues(data, images)
    model, _ = weights.load_model('CAM', save_root=save)
    edges, pairs = metrics.bin_edges('even', 0.001), cues.annotations.pairs
    counts = np.zeros((len(pairs), 2, len(edges) + 1), np.int64)
    for index in cues.rows:
        exact = cues.annotations.true_parts(images.image_id(index), SIZE)
        for number in cues.pairs[index]:
            first, second, parts = pairs[number][:3]
            single = int(images.labels[index])
            classes = torch.tensor([[single], [second if single == first else first]])
            signed = contrast_maps(model, images[index][0][None], *classes, method)
            scores = eval_cue_location.cue_scores(signed, (SIZE, SIZE), 'minmax')
            truth = torch.from_numpy(np.isin(exact, parts)).flatten()[None]
            counts[number] += metrics.count_scores(metrics.bin_scores(scores, edges).flatten(1), truth, len(edges) + 1,
                                                   torch.tensor([0]), 1)[0]
    expected = metrics.pixel_average_precision(counts, True)
    measured = {tuple(record['classes']): record['pxap']['exact']['per pair, all pixels'] for record in result['pairs']}
    for pair, value in zip(pairs, expected, strict=True):
        if (pair.first + 1, pair.second + 1) in measured and np.isfinite(value):
            assert measured[pair.first + 1, pair.second + 1] == pytest.approx(value, abs=0.05)


def test_a_contrast_and_a_map_of_each_class_are_not_asked_at_once(tiny_birds, save, script):
    refused(script('eval_cue_location', *tiny_birds, '--experiment_name=CALM_EM', '--contrast_method=evidence',
                   '--score_map_process=gtcond'), '--contrast_method')
    refused(script('eval_cue_location', *tiny_birds, '--experiment_name=CAM', '--contrast_method=log-odds',
                   '--score_map_method=backprop'), '--score_map_method=backprop one map for each')
    refused(script('eval_cue_location', *tiny_birds, '--experiment_name=CAM', '--contrast_method=log-odds',
                   '--scoremap_root=maps'), '--scoremap_root one map for each')
    refused(script('eval_cue_location', *tiny_birds, '--scoremap_root=maps', '--score_map_process=vanilla,random'),
            '--scoremap_root', 'several')
    refused(script('eval_cue_location', *tiny_birds, '--experiment_name=CAM', '--contrast_method=joint-difference'),
            'joint-difference')


def test_superclasses_that_hold_both_classes_of_every_pair_tell_nothing(tiny_birds, save, script):
    """On ToyBirds the classes of a pair are of one family."""
    refused(script('eval_cue_location', *tiny_birds, '--experiment_name=CALM_EM', '--score_map_process=jointll-superclass'),
            'one map for both classes of each of the', 'eval_wsol.py')
    assert not list((save / 'CALM_EM').glob('cue_location*'))


# --- the lowest pixels, dropped ---------------------------------------------------------------------------


def test_the_lowest_pixels_get_the_score_zero():
    maps = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0))
    whole = eval_cue_location.cue_scores(maps, (20, 20), 'minmax')
    for share in (0, 20, 50, 99):
        scores = eval_cue_location.cue_scores(maps, (20, 20), 'minmax', share, generators(3))
        zeros = (scores == 0).flatten(1).sum(1)
        assert (zeros >= share / 100 * 400).all() and (zeros <= share / 100 * 400 + 4).all()  # corners are flat
        assert torch.equal(scores[scores > 0], whole[scores > 0])
        for single, all_of_it in zip(scores.flatten(1), whole.flatten(1), strict=True):
            assert not (single > 0).any() or single[single > 0].min() >= all_of_it[single == 0].max()


def test_which_of_equal_pixels_are_dropped_falls_at_random_by_the_seed():
    """In reading order a binary map would lose the top of the picture, and with it the parts that lie there."""
    mask = torch.zeros(2, 20, 20)
    mask[:, 5:15, 5:15] = 1
    dropped = [eval_cue_location.cue_scores(mask, (20, 20), 'clipping', 87.5, [torch.Generator().manual_seed(seed)] * 2) for seed in (0, 0, 1)]
    for scores in dropped:  # 50 of 400 pixels are kept: half of the 100 of the mask, above and below alike
        assert ((scores > 0).flatten(1).sum(1) == 50).all() and (scores <= mask).all()
        assert 2 * 13 < scores[:, :10].sum() < 2 * 37
    assert torch.equal(dropped[0], dropped[1]) and not torch.equal(dropped[0], dropped[2])
    assert not torch.equal(*dropped[0])


def test_left_out_pairs_are_counted(tiny_birds, capsys):
    images, data = open_birds(tiny_birds)
    before, kept = data.annotations().pairs, images.labels > 0
    images.image_ids, images.labels = images.image_ids[kept], images.labels[kept]
    pairs = eval_cue_location.open_cues(data, images).annotations.pairs
    assert pairs == [pair for pair in before if 0 not in pair[:2]]
    assert f'{len(before) - len(pairs)} of {len(before)} class pairs' in capsys.readouterr().err


def test_maps_whose_sizes_differ_from_image_to_image_are_scored_as_they_would_be_alone(tiny_birds):
    """Maps made elsewhere may; all pairs of a batch are scored at once."""
    images, data = open_birds(tiny_birds)
    cues = eval_cue_location.open_cues(data, images)

    class Odd(MapSource):
        def read(self, index, classes, size):
            side = 5 + index % 3
            return torch.rand(len(classes), side, side, generator=torch.Generator().manual_seed(index))
    results = []
    for size in (1, 7):
        scorings = [eval_cue_location.Scoring(Odd(cues), 'minmax', metrics.bin_edges(), drop, 5) for drop in (0, 40)]
        results.append(eval_cue_location.fill_histograms(make_loader(cues, size, 0, torch.device('cpu')), scorings, torch.device('cpu')))
    (alone, of_each), (together, evaluations) = results
    assert (of_each == evaluations).all()
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys() >= {'parts', 'exact'}
        for name in one:
            for ours, theirs in zip(one[name], other[name], strict=True):
                np.testing.assert_array_equal(ours, theirs)
