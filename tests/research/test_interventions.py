"""research.interventions: effects against pictures painted by hand, figures of maps that are exactly right or wrong."""
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.stats
import torch
from conftest import accepted, flags_of, open_birds, refused, run_main
from munch import Munch
from PIL import Image
from torch import nn

from dataset import open_dataset
from dataset.toybirds import Repainter, class_colours
from dataset.transforms import eval_transform
from evaluation import map_sources, session
from experiment import weights
from experiment.settings import network_settings
from reports.rows import read_experiments
from research import interventions, repainting
from wsol import build_model
from wsol.annotations.cub import UNION_PARTS
from wsol.errors import UserError

SIZE = 56


@pytest.fixture(scope='module', autouse=True)
def painted_once():
    """A picture that is painted again is kept: every measurement here asks for the same ones, and to paint them takes
    longer than all else."""
    kept, paint = {}, Repainter.paint

    def paint_once(painter, *of_picture, **how):
        key = painter.seed, len(painter.index), repr(of_picture), repr(sorted(how.items()))
        if key not in kept:
            kept[key] = paint(painter, *of_picture, **how)
        return kept[key]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repainter, 'paint', paint_once)
        yield


@pytest.fixture(scope='module')
def birds(tiny_birds):
    """The tiny ToyBirds: its data set, test images, annotations and painter."""
    roots = dict(flag[2:].split('=') for flag in tiny_birds)
    data = open_dataset('ToyBirds', roots['data_root'], roots['metadata_root'])
    return data, data.open_split('test', eval_transform(SIZE)), data.annotations(), Repainter(data.cub_root)


@pytest.fixture(scope='module')
def asked(birds):
    _, images, annotations, painter = birds
    return repainting.ask(images, annotations, painter, SIZE)


@pytest.fixture(scope='module')
def measured(trained, tiny_birds, painted_once, tmp_path_factory):
    """A save_root with the trained experiments, where CAM's log-odds have been measured. Tests copy it."""
    root = tmp_path_factory.mktemp('measured') / 'save'
    shutil.copytree(trained, root)
    run_main('research.interventions', *tiny_birds, f'--save_root={root}', '--experiment_name=CAM', '--contrast_method=log-odds')
    return root


@pytest.fixture
def save_measured(measured, script, tmp_path):
    """The folder `save` of the test's own working folder, with a copy of `measured`."""
    shutil.copytree(measured, tmp_path / 'save')
    return tmp_path / 'save'


def test_an_image_painted_again_is_its_file(birds):
    data, images, _, painter = birds
    for index in range(0, len(images), 5):
        image_id = images.image_id(index)
        with Image.open(data.cub_root / 'images' / image_id) as file:
            assert np.array_equal(painter.paint(image_id), np.asarray(file))


def test_only_what_is_repainted_changes(birds):
    """A part in another colour changes pixels of that part alone, but for JPEG's blocks; a background all but the bird."""
    _, images, annotations, painter = birds
    image_id = images.image_id(0)
    before = painter.paint(image_id).astype(int)
    parts = annotations.true_parts(image_id, before.shape[0]) if before.shape[0] == before.shape[1] else None
    with Image.open(annotations.root / 'part_masks' / Path(image_id).with_suffix('.png')) as file:
        parts = np.asarray(file).astype(int) - 1  # -1 off the bird
    for name in ('head', 'belly'):
        replaced = 'violet' if painter.colours[image_id.split('/')[0]][name] != 'violet' else 'green'
        changed = np.abs(painter.paint(image_id, {name: replaced}).astype(int) - before).max(2) > 40
        assert changed.sum() > 20 and (parts[changed] == UNION_PARTS.index(name)).mean() > 0.85
    changed = np.abs(painter.paint(image_id, background=1).astype(int) - before).max(2) > 40
    assert changed.sum() > 500 and (parts[changed] == -1).mean() > 0.97


def test_the_questions_are_those_of_the_class_pairs(birds, asked):
    _, images, annotations, _ = birds
    questions, regions, clutter = asked
    assert regions.shape == clutter.shape == (len(images), SIZE, SIZE) and regions.max() <= interventions.BACKGROUND
    assert (regions[clutter > 0] == interventions.BACKGROUND).mean() > 0.99 and 10 < clutter.max() <= repainting.SHAPES
    for question in questions:
        pair = annotations.pairs[question.pair]
        assert images.labels[question.index] == question.first and {question.first, question.second} == set(pair[:2])
        assert set(question.parts) <= set(pair.parts)
        assert all((regions[question.index] == part).any() for part in question.parts)
    shown = [sum(question.pair == number for question in questions) for number in range(len(annotations.pairs))]
    assert min(shown) >= 2 and len(questions) <= 4 * len(annotations.pairs)


class ColourNetwork(nn.Module):
    """Class scores that are linear in the mean colour of the whole picture: every effect can be told from the pictures."""

    def __init__(self, classes):
        super().__init__()
        self.weight = torch.randn(3, classes, generator=torch.Generator().manual_seed(0))

    def forward(self, images):
        return 5 * images.mean((2, 3)) @ self.weight

    def log_probabilities(self, scores):
        return scores.log_softmax(1)


def test_the_effects_are_those_of_pictures_painted_by_hand(birds, asked):
    _, images, annotations, painter = birds
    some, model, colours = asked.chosen(range(0, len(asked.questions), 7)), ColourNetwork(18), [own for _, own in class_colours()]
    effects = repainting.true_effects(model, images, some, painter, torch.device('cpu'))

    def scores(picture):
        return model.log_probabilities(model(images.transform(Image.fromarray(picture))[None]))[0]

    def odds(picture, question):
        return float(scores(picture)[question.first] - scores(picture)[question.second])

    for row, question in enumerate(some.questions):
        image_id, replaced = images.image_id(question.index), colours[question.second]
        clean = odds(np.array(painter.paint(image_id)), question)
        expected, deletion, of_class, shapes = np.zeros(8), np.zeros(7), np.zeros(7), np.zeros(18)
        for part in question.parts:
            name = UNION_PARTS[part]
            expected[part] = clean - odds(np.array(painter.paint(image_id, {name: replaced[name]})), question)
        expected[7] = clean - odds(np.array(painter.paint(image_id, background=1)), question)
        np.testing.assert_allclose(effects.log_odds[row], expected, atol=2e-5)
        everything = {UNION_PARTS[part]: replaced[UNION_PARTS[part]] for part in question.parts}
        assert effects.all_parts[row] == pytest.approx(clean - odds(np.array(painter.paint(image_id, everything)), question), abs=2e-5)
        for part in set(asked.regions[question.index].ravel().tolist()) - {7}:
            picture = np.array(painter.paint(image_id, without=[UNION_PARTS[part]]))
            deletion[part] = clean - odds(picture, question)
            of_class[part] = scores(np.array(painter.paint(image_id)))[question.first] - scores(picture)[question.first]
        for shape in set(asked.clutter[question.index].ravel().tolist()) - {0}:
            shapes[shape - 1] = clean - odds(np.array(painter.paint(image_id, without=[shape])), question)
        np.testing.assert_allclose(effects.deletion[row], deletion, atol=2e-5)
        np.testing.assert_allclose(effects.of_class[row], of_class, atol=2e-5)
        np.testing.assert_allclose(effects.shapes[row], shapes, atol=2e-5)
        assert np.count_nonzero(deletion) > 3 and np.count_nonzero(shapes) > 5


def test_what_is_left_out_changes_nothing_elsewhere(birds):
    """A part that is not painted changes pixels that showed it; a shape of the background, those that showed that shape."""
    _, images, _, painter = birds
    image_id = images.image_id(3)
    before = painter.picture(image_id)
    for label, without in ((before.parts == 1 + UNION_PARTS.index('wing'), 'wing'), (before.clutter == 4, 4)):
        after = painter.picture(image_id, without=[without])
        # a pixel is the mean of four by four points: at an edge its centre may show another thing
        near = np.asarray(cv2.dilate(label.astype(np.uint8), np.ones((5, 5), np.uint8)), bool)
        changed = (after.image != before.image).any(2)
        assert label.sum() > 20 and changed[label].mean() > 0.8 and not changed[~near].any()
    assert not (painter.picture(image_id, without=['head']).parts == 1 + UNION_PARTS.index('head')).any()
    whole = painter.picture(image_id, without=[*UNION_PARTS])
    assert not whole.parts.any() and not whole.points.any() and (whole.clutter > 0).sum() > (before.clutter > 0).sum()


def test_the_figures_of_deletion_and_distractors(asked):
    """By hand: a map whose masses are the effects of deletion ranks as they do; one spread evenly has as much mass on
    distractors as they have area, one on the bird alone has none."""
    some = asked.chosen(range(12))
    rng = np.random.default_rng(0)
    regions = np.stack([np.bincount(some.regions[question.index].ravel(), minlength=8) for question in some.questions]) / SIZE ** 2
    areas, zeros = some.shapes, np.zeros(12)
    np.testing.assert_array_equal(some.present, regions > 0)
    deletion = rng.normal(size=(12, 7)) * some.present[:, :7]
    shapes = np.where(rng.random((12, 18)) < 0.5, 0.01, -2.0) * (areas > 0)
    effects = repainting.Effects(np.zeros((12, 8)), np.zeros((12, 8)), zeros, zeros > 0, zeros > 0, deletion, shapes, deletion)

    def figures(signed, on_shapes):
        by_figure = interventions.figures_of(signed, np.abs(signed), on_shapes, some, effects, '')
        return {name: by_figure[name][0].sum() / by_figure[name][1].sum() for name in ('deletion corr.', 'on distractors')}
    masses = np.concatenate([deletion, np.full((12, 1), 9.0)], 1)  # the background's has no part in the ranks
    assert figures(masses, 0 * areas) == {'deletion corr.': pytest.approx(1), 'on distractors': 0}
    assert figures(-masses, 0 * areas)['deletion corr.'] == pytest.approx(-1)
    assert figures(5 * regions, 5 * areas)['on distractors'] == pytest.approx(1)
    bird = 5 * regions * (np.arange(8) < 7)
    assert figures(bird, 5 * areas)['on distractors'] == pytest.approx(
        (areas * (shapes == 0.01) / regions[:, :7].sum(1, keepdims=True)).sum() / (areas * (shapes == 0.01)).sum())
    assert regions.sum(1) == pytest.approx(1) and (areas.sum(1) < regions[:, 7]).all()


def test_masses_add_up_to_the_map(asked):
    regions = asked.regions
    maps = torch.randn(len(regions), 7, 7, generator=torch.Generator().manual_seed(0))
    signed, absolute = repainting.masses(maps, regions, 8)
    inner = torch.nn.functional.interpolate(maps[:, None], size=(SIZE, SIZE), mode='bilinear')[:, 0]
    np.testing.assert_allclose(signed.sum(1), inner.mean((1, 2)) * 49, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(absolute.sum(1), inner.abs().mean((1, 2)) * 49, rtol=1e-4)
    alone = inner[3].numpy() * (regions[3] == 0)
    assert signed[3, 0] == pytest.approx(alone.sum() * 49 / SIZE ** 2, abs=1e-4)


def figures_of(signed, effects, questions, unit='nats'):
    wide = np.ones((len(signed), 18))
    asked = Munch(questions=questions, present=np.ones_like(signed, bool), shapes=wide)
    caused = Munch(log_odds=effects, probability=None, deletion=effects[:, :7], shapes=0 * wide)
    by_figure = interventions.figures_of(signed, np.abs(signed), wide, asked, caused, unit)
    assert list(by_figure)[-2:] == ['deletion corr.', 'on distractors']
    return {name: by_figure[name][0].sum() / by_figure[name][1].sum() for name in list(by_figure)[:-2]}


@pytest.fixture
def truth():
    """Questions with effects on one to three parts and a small one of the background."""
    rng = np.random.default_rng(0)
    questions = [repainting.Question(row, 0, 0, 1, tuple(sorted(rng.choice(7, 1 + row % 3, replace=False).tolist())))
                 for row in range(30)]
    effects = np.zeros((30, 8))
    for row, question in enumerate(questions):
        effects[row, list(question.parts)] = rng.normal(2, 1, len(question.parts))
        effects[row, 7] = rng.normal(0, 0.1)
    return questions, effects


def test_a_map_that_is_right_and_one_that_is_wrong(truth):
    questions, effects = truth
    right, wrong, double = (figures_of(maps, effects, questions) for maps in (effects, -effects, 2 * effects))
    assert right['rank corr.'] == pytest.approx(1) and right['slope'] == pytest.approx(1) and right['error'] == pytest.approx(0)
    assert right['sign'] == 100 and wrong['sign'] == 0 and wrong['rank corr.'] == pytest.approx(-1)
    assert double['slope'] == pytest.approx(2) and double['error'] == pytest.approx(1) and double['rank corr.'] == pytest.approx(1)
    shares = [100 * np.abs(effects[row, list(q.parts)]).sum() / np.abs(effects[row]).sum() for row, q in enumerate(questions)]
    assert right['mass on cue'] == pytest.approx(np.mean(shares))
    assert figures_of(np.abs(effects), effects, questions, '').keys() == {'rank corr.', 'mass on cue', 'sign'}


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, (20, 8)).astype(float), rng.normal(size=(20, 8))
    ours = interventions.rank_correlation(first, second)
    np.testing.assert_allclose(ours, [scipy.stats.spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)])
    assert np.isnan(interventions.rank_correlation(np.ones((1, 8)), second[:1])).all()  # a constant ranks nothing
    first[:, 3] = np.nan  # what a row does not have counts in neither ranking
    rest = np.delete(first, 3, 1), np.delete(second, 3, 1)
    np.testing.assert_allclose(interventions.rank_correlation(first, second), interventions.rank_correlation(*rest))


def test_the_script_ranks_a_map_of_the_cue_above_noise(script, tiny_birds, save, monkeypatch, tmp_path):
    """A contrast that is 1 on the parts in which the classes differ is found to be on the cue; noise is not."""
    truth = {}

    def cue(model, images, first, second, *_, **__):
        return torch.stack([truth[round(float(image.sum()), 3), int(a), int(b)] for image, a, b in zip(images, first, second, strict=True)])

    before = interventions.ask

    def remember(images, *more):
        asked = before(images, *more)
        for question in asked.questions:
            mask = np.isin(asked.regions[question.index], question.parts)
            truth[round(float(images[question.index][0].sum()), 3), question.first, question.second] = torch.from_numpy(mask).float()
        return asked
    monkeypatch.setattr(interventions, 'ask', remember)
    monkeypatch.setattr(map_sources, 'contrast_maps', cue)
    out = accepted(script('research.interventions', *tiny_birds, '--experiment_name=CALM_EM', '--contrast_method=log-odds'))
    (path,) = (save / 'CALM_EM').glob('interventions_*.json')
    content = json.loads(path.read_text())
    by_figure, noise = content['methods']['log-odds'], content['methods']['control: random']
    assert by_figure['mass on cue'][0] == pytest.approx(100) and by_figure['PxAP exact'][0] > 99 and by_figure['rank corr.'][0] > noise['rank corr.'][0]
    assert noise['mass on cue'][0] < 30 and noise['mass on cue'][1] < noise['mass on cue'][0] < noise['mass on cue'][2]
    assert noise['PxAP exact'][1] < noise['PxAP exact'][0] < noise['PxAP exact'][2]  # over the class pairs
    assert content['network']['accuracy'] <= 100 and 'log-odds' in out
    assert f'{content["network"]["shapes_that_distract"]:.1f} % of the shapes of the background are distractors' in out


def test_interventions_need_the_painter(script, tiny_birds, save, tmp_path):
    with pytest.raises(UserError, match='cannot be painted again'):
        Repainter(tmp_path)
    refused(script('research.interventions', *tiny_birds, '--experiment_name=CAM', '--contrast_method=evidences'), 'did you mean evidence?')
    code, _, err = script('research.interventions', *tiny_birds, '--experiment_name=CAM', '--contrast_method=joint-difference')
    assert code == 2 and 'CAM does not define joint-difference' in err and 'it defines log-odds' in err


def test_every_network_has_a_control_with_random_weights_of_its_own():
    """A control that is the same for all networks says nothing of how it varies; one that is seeded as a training is can
    be the network's own start."""
    args = flags_of('research.interventions', ['--architecture=resnet18', '--last_stage=layer1', '--seed=0'])

    def controls(sha256, args):
        model = build_model(**network_settings(args), num_classes=18)
        run = session.Network(args, torch.device('cpu'), Munch(sha256=sha256, is_foreign=False), model)
        sources = interventions.map_sources(run, Munch(annotations=lambda: None), [], [])
        return {name.partition(' weights, ')[2]: source for name, source in sources.items() if 'random weights' in name}

    def control(sha256):
        return controls(sha256, args)['log-odds'].model.conv_last.weight
    torch.manual_seed(0)
    start = build_model(**network_settings(args), num_classes=18).conv_last.weight
    first, again, second = (control(digit * 64) for digit in 'aab')
    assert torch.equal(first, again)
    assert not any(torch.equal(*pair) for pair in ((first, second), (first, start), (second, start)))
    of_a_head = {head: controls('a' * 64, Munch(args, attribution_method=head)) for head in ('CAM', 'CALM_EM')}
    assert of_a_head['CAM'].keys() == {'log-odds', 'evidence', 'backprop'}
    assert of_a_head['CALM_EM'].keys() - of_a_head['CAM'].keys() == {'joint-difference', 'posterior-difference', 'prior-log-odds'}
    assert all(source.method == name for sources in of_a_head.values() for name, source in sources.items())


def test_the_birds_mask_is_a_control(script, tiny_birds, save_measured, birds, asked):
    """It localises as cue localization says that the segmentation does, and its mass on the cue is a share of areas."""
    save = save_measured
    accepted(script('eval_cue_location', *tiny_birds, '--experiment_name=CAM', '--score_map_process=object_mask', '--threshold_type=even'))
    contents = [json.loads(path.read_text()) for metric in ('interventions', 'cue_location')
                for path in (save / 'CAM').glob(f'{metric}_*.json')]
    bird = contents[0]['methods']["control: the bird's mask"]
    assert bird['PxAP exact'][0] == pytest.approx(contents[1]['pxap']['exact']['per pair, all pixels']['mean'])
    questions, regions, _ = asked
    masks = [birds[2].object_mask(birds[1].image_id(question.index), SIZE) for question in questions]
    shares = [np.isin(regions[question.index][mask], question.parts).mean()
              for question, mask in zip(questions, masks, strict=True)]
    assert bird['mass on cue'][0] == pytest.approx(100 * np.mean(shares), rel=1e-3)
    assert bird['sign'][0] == contents[0]['methods']['control: random']['sign'][0]  # neither is negative anywhere


def test_a_folder_that_cannot_be_written_is_found_before_the_first_picture(script, tiny_birds, save, monkeypatch):
    def full(folder, *_):
        raise UserError(f'{folder} is full')
    monkeypatch.setattr(interventions.whole_files, 'check_writable', full)
    code, _, err = script('research.interventions', *tiny_birds, '--experiment_name=CAM')
    assert code == 2 and 'save/CAM is full' in err and 'repainting' not in err


def test_a_network_that_is_never_right_has_no_share_that_turns(asked):
    questions = asked.questions
    wide = np.zeros((len(questions), 18))
    zeros, never = np.zeros((len(questions), 8)), np.zeros(len(questions), bool)
    facts = interventions.network_facts(repainting.Effects(zeros, zeros, zeros[:, 0], never, never, zeros[:, :7], wide, zeros[:, :7]), asked, seed=0)
    assert facts['accuracy'] == 0 and facts['turns'] == [None, None, None]


def test_part_masks_that_are_gone_are_named(birds, tmp_path):
    _, images, annotations, _ = birds
    with pytest.raises(UserError, match='nowhere/part_masks is not there, and interventions need it'):
        repainting.ask(images, Munch(true_parts=lambda *_: None, root=tmp_path / 'nowhere', pairs=[]), birds[3], SIZE)


def test_fewer_contrasts_leave_the_result_of_more_and_double_no_row(script, tiny_birds, save_measured):
    """Slow methods answer as many questions as asked, after the cheap ones."""
    save, before = save_measured, {path: path.read_bytes() for path in (save_measured / 'CAM').glob('interventions_*.json')}
    code, out, err = script('research.interventions', *tiny_birds, '--experiment_name=CAM', '--integrated_grad_nr_iter=2',
                            '--contrast_method=integrated_gradients,log-odds', '--slow_questions=3')
    assert code == 0 and 'replaces an earlier result' not in out, err
    path, = set((save / 'CAM').glob('interventions_*.json')) - before.keys()
    assert len(before) == 1 and all(path.read_bytes() == content for path, content in before.items())
    content = json.loads(path.read_text())
    asked = {name: row['questions'] for name, row in content['methods'].items()}
    assert list(asked)[:2] == ['log-odds', 'integrated_gradients']
    assert asked['integrated_gradients'] == 3 < asked['log-odds'] == content['questions']
    assert content['settings']['slow_questions'] == 3
    rows = read_experiments([save / 'CAM'])
    methods = [row.method for row in rows if 'PxAP exact' in row.estimates]
    assert sorted(set(methods)) == sorted(methods) and {'log-odds', 'integrated_gradients', 'control: random'} <= set(methods)
    accepted(script('compare', 'save/CAM'), 'CAM: integrated_gradients')


def test_maps_made_elsewhere_are_held_against_the_same_effects(script, tiny_birds, save_measured, tmp_path):
    """CAM's own maps of both classes, written to files, score as its contrast does; what is wrong is said before any work."""
    flags = [*tiny_birds, '--experiment_name=CAM']
    images, _ = open_birds(tiny_birds)
    model, _ = weights.load_model('CAM', save_root=save_measured)
    for index in range(len(images)):
        for label, values in enumerate(model.activations(images[index][0][None]).logits[0].detach().numpy()):
            path = tmp_path / f'mine/test/{label}/{images.image_id(index)}.npy'
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, values)
    accepted(script('research.interventions', *flags, '--scoremap_root=mine'))
    results = [json.loads(path.read_text())['methods'] for path in (save_measured / 'CAM').glob('interventions_*.json')]
    rows = {name: figures for methods in results for name, figures in methods.items() if not name.startswith('control')}
    assert len(results) == len(rows) == 2
    theirs = rows.pop('log-odds')
    (name, mine), = rows.items()
    assert name.startswith('maps-mine-')
    for figure in ('PxAP exact', 'rank corr.', 'mass on cue', 'sign'):
        assert mine[figure][0] == pytest.approx(theirs[figure][0], rel=1e-3), figure
    refused(script('research.interventions', *flags, '--scoremap_root=mine', '--contrast_method=log-odds'), 'leave one of them out')
    for replaced in (tmp_path / 'mine/test').rglob(path.name):
        np.save(replaced, np.zeros((3, 3)))
    mistakes = [('different images have different sizes', lambda: None), ('no score map', path.unlink)]
    for words, make in mistakes:
        make()
        code, _, err = script('research.interventions', *flags, '--scoremap_root=mine')
        assert code == 2 and words in err and 'repainting' not in err
