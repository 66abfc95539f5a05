"""The evaluations, end to end on a tiny ToyBirds, against naive loops; and the published command lines."""
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SIZE, SMALL, accepted, flags_of, open_birds, read_result, result_paths, roots_of, without

import util
from evaluation import erasing, session
from experiment import weights
from wsol.attribution.maps import attribution_maps

# --- cue localization -------------------------------------------------------------------------------------------

def signed(model, image, pair, process):
    """map_A - map_B of an image, (1,h,w)."""
    with torch.no_grad():
        maps = attribution_maps(model, image, torch.tensor([pair[:2]]), process)  # (1,2,h,w)
    return maps[:, 0] - maps[:, 1]


def enlarge(values):
    return F.interpolate(values[None], size=(SIZE, SIZE), mode='bilinear', align_corners=False)[0]


def to_unit(values, norm):
    """0..1, with the norm's formula written out; doubles, as the bins compare them."""
    values = values[0].double().numpy() if norm == 'clipping' else (
        (values - values.min()) / (values.max() - values.min()))[0].double().numpy()
    return values.clip(0, 1)


def average_precision(counts):
    """PxAP in percent with the underflow left out. counts: (2,bins), false and true pixels."""
    area, true, false, reached = 0.0, 0, 0, 0.0
    for fresh_false, fresh_true in counts.T[::-1]:
        true, false = true + fresh_true, false + fresh_false
        recall = true / counts[1].sum()
        area += (recall - reached) * (true / (true + false) if true else 0)
        reached = recall
    return 100 * area


@pytest.mark.parametrize('method, process, norm, thresholds', [
    ('CAM', 'vanilla', 'minmax', 'even'), ('CALM_EM', 'jointll', 'clipping', 'log')])
def test_cue_location_agrees_with_a_naive_loop(script, drawn, tiny_birds, save, method, process, norm, thresholds):
    out = accepted(script('eval_cue_location', *tiny_birds, f'--experiment_name={method}', '--batch_size=1'))
    assert 'exact part masks, per pair, all pixels' in out and 'the paper' not in out
    path, = result_paths(save / method, 'cue_location')
    assert path.name.startswith(f'cue_location_ToyBirds_{method}_{process}_{norm}_{thresholds}.')
    assert path.with_suffix('.png').stat().st_size > 1000
    result = json.loads(path.read_text())
    assert not result['is_control'] and 'control: ' not in out

    model, _ = weights.load_model(save / method)
    images, data = open_birds(tiny_birds)
    annotations = data.annotations()
    steps = np.arange(0, 1, 0.001)
    edges = np.array([*(10 ** (-7 * steps[::-1]) if thresholds == 'log' else steps), 1, 2, 3])
    ours, running, masses = {'published': [], 'per pair': []}, np.zeros((2, len(edges) - 1)), []
    for number, pair in enumerate(annotations.pairs):
        alone, inside = np.zeros((2, len(edges) - 1)), []
        for index, label in enumerate(images.labels):
            image_id = images.image_id(index)
            if label not in pair[:2] or number not in annotations.evaluated(image_id, label):
                continue
            difference = signed(model, images[index][0][None], pair, process)
            truth = np.isin(annotations.partition(image_id, SIZE), pair.parts) & annotations.object_mask(image_id, SIZE)
            absolute = enlarge(difference).abs()  # the published order: resized, made absolute, normalised
            inside.append(100 * float(absolute[0][truth].sum() / absolute.sum()))
            scores = to_unit(absolute, norm)
            alone += [np.histogram(scores[truth == side], edges)[0] for side in (False, True)]
        masses.append(np.mean(inside))
        running += alone
        ours['published'].append(average_precision(running))
        ours['per pair'].append(average_precision(alone))
    parts = np.array([len(pair.parts) for pair in annotations.pairs])
    for count, by_pair in ours.items():
        measured = result['pxap']['parts'][count]
        assert measured['mean'] == pytest.approx(np.mean(by_pair), rel=1e-5)
        for k in (1, 2, 3):
            assert measured[str(k)] == pytest.approx(np.array(by_pair)[parts == k].mean(), rel=1e-5)
    assert result['mass']['parts']['mean'] == pytest.approx(np.mean(masses), rel=1e-4)
    assert [record['mass']['parts'] for record in result['pairs']] == pytest.approx(masses, rel=1e-4)


def test_every_image_goes_through_the_network_once(script, tiny_birds, save, forwards):
    accepted(script('eval_cue_location', *tiny_birds, '--experiment_name=CALM_EM', '--batch_size=7'))
    result = read_result(save / 'CALM_EM', 'cue_location')
    assert sum(forwards) == result['evaluated_images'] == 36 < result['evaluations'] and max(forwards) == 7


def test_the_control_of_the_object_mask_scores_the_share_of_the_cue(script, tiny_birds, save):
    """A map that is 1 on the bird and 0 off it finds the cue at the precision of its share of the bird."""
    out = accepted(script('eval_cue_location', *tiny_birds, '--experiment_name=CAM', '--score_map_process=object_mask',
                        '--norm_type=clipping'))
    rows = [line for line in out.splitlines() if 'published' in line]
    assert len(rows) == 4 and all(row.startswith('control: ') for row in rows)
    result = read_result(save / 'CAM', 'cue_location')
    assert result['is_control']
    images, data = open_birds(tiny_birds)
    annotations, shares, masses = data.annotations(), [], []
    for number, pair in enumerate(annotations.pairs):
        ids = [images.image_id(index) for index, label in enumerate(images.labels)
               if number in annotations.evaluated(images.image_id(index), label)]
        birds = [annotations.object_mask(image_id, SIZE) for image_id in ids]
        cues = [np.isin(annotations.partition(image_id, SIZE), pair.parts) & bird
                for image_id, bird in zip(ids, birds, strict=True)]
        shares.append(100 * np.sum(cues) / np.sum(birds))
        masses.append(100 * np.mean([cue.sum() / bird.sum() for cue, bird in zip(cues, birds, strict=True)]))
    measured = result['pxap']['parts']['per pair']
    assert measured['mean'] == pytest.approx(np.mean(shares), rel=1e-9)
    assert result['mass']['parts']['mean'] == pytest.approx(np.mean(masses), rel=1e-5)
    # the mask is the same for every class, network and seed
    assert min(shares) > 0 and measured['pairs'] == len(annotations.pairs)


# --- remove-and-classify ----------------------------------------------------------------------------------------

def test_remove_and_classify_agrees_with_a_naive_loop(script, drawn, tiny_birds, save, forwards):
    accepted(script('eval_pixel_perturb', *tiny_birds, '--experiment_name=CALM_EM', '--batch_size=7'))
    assert sum(forwards) == 21 * 36 + 6  # intact, 5 shares erased in 4 orders, and a blank image for each batch
    path, = result_paths(save / 'CALM_EM', 'pixel_perturb')
    assert path.name.startswith('pixel_perturb_ToyBirds_CALM_EM_jointll.')
    result = json.loads(path.read_text())
    assert path.with_suffix('.png').stat().st_size > 1000 and result['images'] == 36
    model, _ = weights.load_model(save / 'CALM_EM')
    images, _ = open_birds(tiny_birds)
    correct, intact = dict.fromkeys((10, 30, 50, 70, 90), 0), 0
    for index, label in enumerate(images.labels):
        image = images[index][0][None]
        with torch.no_grad():
            maps = attribution_maps(model, image, torch.tensor([label]), 'jointll')
            intact += int(model(image).argmax()) == label
        order = enlarge(maps).flatten().argsort(descending=True)
        for percent in correct:
            erased = image.flatten(2).clone()
            erased[..., order[:int(percent / 100 * SIZE * SIZE)]] = 0
            with torch.no_grad():
                correct[percent] += int(model(erased.view_as(image)).argmax()) == label
    assert result['accuracy'] == pytest.approx(100 * intact / 36) and intact > 0
    for record in result['ratios']:
        # zeros tie: the order among them is drawn
        assert abs(correct[record['erased_percent']] - record['correct_top']) <= 1
        assert record['R'] is None or record['R'] == record['correct_top'] / record['correct_random']


def test_random_maps_repeat_with_the_seed_and_differ_with_another(script, tiny_birds, save, monkeypatch):
    orders, ranks = [], erasing.ranks

    def ranks_and_keep(maps, generators):
        orders.append((maps.clone(), *ranks(maps, generators)))
        return orders[-1][1:]
    monkeypatch.setattr(erasing, 'ranks', ranks_and_keep)
    for batch, seed in ((36, 3), (36, 3), (36, 4), (5, 3)):
        accepted(script('eval_pixel_perturb', *without(tiny_birds, 'seed'), '--experiment_name=CAM', f'--seed={seed}',
                        '--score_map_process=random', f'--batch_size={batch}'))
    orders = orders[::2]  # each second call orders the pixels by coarse noise
    first, again, other, by_fives = orders[0], orders[1], orders[2], [torch.cat(part) for part in zip(*orders[3:], strict=True)]
    for one, same, differing, batched in zip(first, again, other, by_fives, strict=True):
        assert torch.equal(one, same) and torch.equal(one, batched)
        assert not any(torch.equal(*rows) for rows in zip(one, differing, strict=True))
    assert len({tuple(row.flatten().tolist()) for row in first[0]}) == 36  # each image has a map of its own


# --- command lines ----------------------------------------------------------------------------------------------

@pytest.fixture
def tiny_cub(tiny_birds, tmp_path):
    """A folder in CUB's layout and under CUB's names, with a handful of images."""
    data, meta = roots_of(tiny_birds)
    shutil.copytree(data / 'ToyBirds', tmp_path / 'data' / 'CUB')
    (tmp_path / 'data' / 'CUBV2').symlink_to(data / 'ToyBirds' / 'images')
    for split, chosen in (('train', slice(2)), ('val', slice(1)), ('test', slice(0, 4, 2))):  # the classes 1 and 2, a pair
        for name in ('image_ids.txt', 'class_labels.txt'):
            target = tmp_path / 'meta' / 'CUB' / split / name
            target.parent.mkdir(parents=True, exist_ok=True)
            lines = (meta / 'ToyBirds' / split / name).read_text().splitlines()[chosen]
            target.write_text('\n'.join(lines) + '\n')
    return [f'--data_root={tmp_path / "data"}', f'--metadata_root={tmp_path / "meta"}']


def test_the_three_published_commands_run_as_written(script, tiny_cub, tmp_path):
    added = [*tiny_cub, '--pretrained=False', '--epochs=1']
    train = ['--experiment_name=experiment_name/', '--architecture=resnet50', '--attribution_method=CALM_EM',
             '--dataset=CUB', '--use_bn=True', '--large_feature_map=True']
    evaluate = [*train, '--use_load_checkpoint=True', '--load_checkpoint=checkpoint_name/',
                '--score_map_process=jointll', '--norm_type=clipping']
    assert script('main', *train, *added)[0] == 0
    assert script('eval_pixel_perturb', *evaluate, *added)[0] == 0
    code, out, err = script('eval_cue_location', *evaluate, '--threshold_type=log', *added)
    assert code == 0
    assert 'the paper (CUB, ResNet-50)' in out and '30.4' in out
    assert 'class pairs have a class without test images and are left out' in err
    names = {path.name.split('.')[0] for path in (tmp_path / 'save/experiment_name').glob('*.json')}
    assert names == {'results', 'pixel_perturb_CUB_CALM_EM_jointll', 'cue_location_CUB_CALM_EM_jointll_clipping_log'}


def test_the_published_long_form_is_accepted_after_the_short_one(script, tiny_birds, tmp_path):
    """A ResNet has no use for --use_bn: whether it is stated changes nothing, and is no contradiction."""
    short = [*tiny_birds, *SMALL, '--attribution_method=CALM_EM']
    assert script('main', *short, '--epochs=1')[0] == 0
    files, loading = [], ['--use_load_checkpoint=True', '--load_checkpoint=checkpoint_name/']
    for flags in ([], [*loading, *SMALL, '--attribution_method=CALM_EM', '--use_bn=True']):
        accepted(script('eval_pixel_perturb', *tiny_birds, *flags, '--batch_size=20'))
        files.append(read_result(tmp_path / 'save/result', 'pixel_perturb'))
        files[-1].pop('command')
    assert files[0] == files[1]
    before = torch.load(tmp_path / 'save/result' / weights.FILE, weights_only=True)
    accepted(script('main', *short, '--use_bn=True', '--epochs=1'), '1 finished epochs')
    accepted(script('main', *short, *loading, '--use_bn=True', '--epochs=2'), '1 finished epochs')
    after = torch.load(tmp_path / 'save/result' / weights.FILE, weights_only=True)
    assert after['epoch'] == 2 and after['model'] == before['model']


def test_workers_are_at_most_one_for_each_usable_core(tiny_birds, trained, monkeypatch, capsys):
    """And not as many as torch has threads, which OMP_NUM_THREADS=1 makes one."""
    monkeypatch.setattr(util.os, 'sched_getaffinity', lambda _: {3, 5}, raising=False)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    flags = [*without(tiny_birds, 'workers'), f'--save_root={trained}', '--experiment_name=CAM']
    for workers, expected, says in ((['--workers=16'], 2, True), (['--workers=1'], 1, False), (['--workers=0'], 0, False), ([], 2, False)):
        network = session.open_network(flags_of('eval_wsol', [*flags, *workers]))
        assert network.args.workers == expected
        assert ('--workers=16: this process may use 2 cores' in capsys.readouterr().err) == says  # of the default's four nothing is said
