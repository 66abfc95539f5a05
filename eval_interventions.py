"""Interventions: is a map's mass where the network's decision is, and is it worth what it says? ToyBirds only.

The painter repaints a test image with one part in another class's colours, or before another background, all else the
same. So the true effect of every region on this network's log p(A|x) / p(B|x) is known: the log-odds of the image less
those of the repainted one. Every contrast method, "why A and not B", is held against it, next to cue localization on
exact part masks. Source: the idea is that of FunnyBirds (Hesse et al., ICCV 2023), which deletes a part, where here it
takes the other class's colours; the network with random weights of Adebayo et al. 2018; cue localization of Kim et al.,
ICCV 2021.
True effects are computed in float32, whatever the precision of the maps.
Result: save/<experiment_name>/interventions_ToyBirds_<method>.<8 digits>.json, a row for each contrast; until
all are measured, those that are stand in a file of that name with .unfinished at its end.

    python eval_interventions.py --experiment_name=calm_em
    python eval_interventions.py --experiment_name=calm_em --scoremap_root=my_maps
"""
from typing import NamedTuple

import numpy as np
import torch

import config
import evaluation
import processes
import util
import whole_files
from dataset.toybirds import Repainter, class_colours
from image_files import as_image
from map_sources import FolderMaps, ObjectMasks
from util import UserError
from wsol import build_model, metrics
from wsol.contrast import CONTRASTS, contrast_maps
from wsol.cub import NO_PART, UNION_PARTS

REGIONS = (*UNION_PARTS, 'background')
BACKGROUND = UNION_PARTS.index('wing') + 1
# methods that take some fifty forwards and more for a map are measured on --slow_questions of the questions
SLOW = ('integrated', 'smooth', 'var_grad', 'score_cam', 'occlusion')
# the contrasts whose maps of a network with random weights are controls: they take one forward or gradient
UNTRAINED = ('joint-difference', 'posterior-difference', 'prior-log-odds', 'evidence', 'log-odds', 'backprop')
COLUMNS = {'pxap': 'PxAP, exact', 'rank': 'rank corr.', 'share': 'mass on cue, %', 'sign': 'sign, %', 'slope': 'slope',
           'error': 'error'}


class Question(NamedTuple):
    """Why an image's class `first` and not `second`?"""
    index: int                # of the image
    pair: int                 # of annotations.pairs
    first: int
    second: int
    parts: tuple[int, ...]    # differing parts that the picture shows


class Effects(NamedTuple):
    """What the interventions did, question by question. Effects: before less after; a region that the two classes share
    has none."""
    log_odds: np.ndarray      # (Q,8), on log p(A|x) / p(B|x), by region
    probability: np.ndarray   # (Q,8), on p(A|x) - p(B|x)
    all_parts: np.ndarray     # (Q,), on the log-odds, of all differing parts at once
    is_right: np.ndarray      # (Q,) bool: the image's class is predicted
    turns: np.ndarray         # (Q,) bool: with all differing parts in B's colours, B is


def ask(images, annotations, size):
    """The Questions of a split, and the region (N,S,S) uint8 of every pixel of its images."""
    regions, questions = [], []
    for index, label in enumerate(images.labels.tolist()):
        mask = annotations.true_parts(images.image_id(index), size)
        if mask is None:
            raise UserError(f'{annotations.root / "part_masks"} is not there, and interventions need it: move '
                            f'{annotations.root} away, and the painter makes it again')
        regions.append(np.where(mask == NO_PART, BACKGROUND, mask).astype(np.uint8))
        shown = set(np.unique(mask).tolist())
        for number, pair in enumerate(annotations.pairs):
            parts = tuple(part for part in pair.parts if part in shown)
            if label in pair[:2] and parts:
                other = pair.second if label == pair.first else pair.first
                questions.append(Question(index, number, label, other, parts))
    return questions, np.stack(regions)


@torch.no_grad()
def true_effects(model, images, questions, repainter, device):
    """The Effects, by repainting: one forward for each picture. Each process repaints some of the images."""
    colours, by_image = [own for _, own in class_colours()], {}
    for number, question in enumerate(questions):
        by_image.setdefault(question.index, []).append(number)
    log_odds, probability = (np.zeros((len(questions), len(REGIONS))) for _ in range(2))
    all_parts, is_right, turns = np.zeros(len(questions)), *(np.zeros(len(questions), bool) for _ in range(2))
    own = list(by_image.items())[processes.rank()::processes.size()]
    for index, numbers in util.progress(own, 'repainting', 'image'):
        image_id = images.image_id(index)
        pictures, places = [repainter.paint(image_id), repainter.paint(image_id, background=1)], {}
        for number in numbers:
            other = colours[questions[number].second]
            swaps = {(number, part): {UNION_PARTS[part]: other[UNION_PARTS[part]]} for part in questions[number].parts}
            swaps[number, 'all'] = {name: other[name] for swap in list(swaps.values()) for name in swap}
            for key, swap in swaps.items():
                places[key] = len(pictures)
                pictures.append(repainter.paint(image_id, swap))
        batch = torch.stack([images.transform(as_image(picture)) for picture in pictures])
        scores = model(util.to_device(batch, device)).log_softmax(1).cpu().double().numpy()  # (V,C)
        for number in numbers:
            _, _, first, second, parts = questions[number]
            odds = scores[:, first] - scores[:, second]
            gap = np.exp(scores[:, first]) - np.exp(scores[:, second])
            for region, place in ((BACKGROUND, 1), *((part, places[number, part]) for part in parts)):
                log_odds[number, region], probability[number, region] = odds[0] - odds[place], gap[0] - gap[place]
            after = places[number, 'all']
            all_parts[number] = odds[0] - odds[after]
            is_right[number], turns[number] = scores[0].argmax() == first, scores[after].argmax() == second
    effects = processes.gather((log_odds, probability, all_parts, is_right, turns))  # zero where another has measured
    return Effects(*(sum(own).astype(own[0].dtype) for own in zip(*effects, strict=True)))


def region_masses(maps, regions):
    """The sum of maps (E,h,w) over each region of the picture, and of their absolute values: two (E,8).

    Enlarged to the regions' size (E,S,S); a map's whole mass stays the sum of its cells.
    """
    size = regions.shape[1:]
    values = metrics.resize(maps, size).flatten(1).double() * (maps[0].numel() / (size[0] * size[1]))
    where = torch.from_numpy(regions).flatten(1).long()
    empty = torch.zeros(len(maps), len(REGIONS), dtype=torch.float64)
    return empty.scatter_add(1, where, values).numpy(), empty.scatter_add(1, where, values.abs()).numpy()


# --- methods and controls -----------------------------------------------------------------------------


def contrast_sources(run, images, questions, annotations):
    """{name: function (batch (B,3,S,S), indices, first, second) -> maps (B,h,w)}: of every contrast method that is
    asked for, or of the maps made elsewhere, and of the controls. Raises UserError."""
    settings, head = evaluation.sampling_settings(run.args), type(run.model)

    def source(model, name):
        def maps(images, indices, first, second):
            return contrast_maps(model, images, first, second, name, util.image_seeds(run.args.seed, indices), settings)
        return maps
    controls = control_sources(run, source, ObjectMasks(images, annotations))
    if run.args.scoremap_root is not None:
        if run.args.contrast_method:
            raise UserError("--scoremap_root brings its own maps, and --contrast_method names the network's; leave one "
                            'of them out')
        return {run.maps_name(): folder_source(run, images, questions)} | controls
    defined = [name for name, entry in CONTRASTS.items() if issubclass(head, entry.head)]
    asked = run.args.contrast_method or defined
    unknown = [name for name in asked if name not in defined]
    if unknown:
        raise UserError(f'--contrast_method={unknown[0]} is not measured here for {head.__name__}; choose some of '
                        f'{", ".join(defined)}, or leave the flag out to measure them all')
    names = sorted(asked, key=is_slow)  # the cheap ones first
    return {name: source(run.model, name) for name in names} | controls


def folder_source(run, images, questions):
    """The difference of two maps made elsewhere: <root>/test/<class>/<image_id>.npy, all of one size."""
    classes = {}
    for question in questions:
        classes.setdefault(question.index, set()).update((question.first, question.second))
    folder = FolderMaps(run.args.scoremap_root, 'test', images, lambda index: sorted(classes[index]), sorted(classes))
    if len(folder.shapes) > 1:
        raise UserError(f'--scoremap_root={folder.root}: the score maps of different images have different sizes; '
                        'make them of one size')

    def maps(batch, indices, first, second):
        both = folder(batch, indices, torch.stack([first, second], 1)).maps  # B of (2,h,w)
        return torch.stack(both).diff(dim=1)[:, 0].neg()
    return maps


def control_sources(run, source, masks):
    """What explains nothing: noise, the prior, the whole bird, and the maps of a network with random weights.

    source: a function (model, contrast) -> maps. masks: the ObjectMasks.
    """
    def noise(images, indices, *_):
        seeds = util.image_seeds(run.args.seed, indices).tolist()
        return torch.stack([torch.rand(8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def bird(images, indices, *_):
        return torch.cat([masks.read(index, [0], images.shape[-1]) for index in indices.tolist()])  # whatever the class

    # each network has a control of its own, which is not the start of a training with the same seed
    torch.manual_seed(util.seed_of(run.args.seed, int(run.checkpoint.sha256[:16], 16)))
    untrained = build_model(**config.network_settings(run.args), num_classes=run.data.num_classes).to(run.device).eval()
    controls = {'control: random': noise,
                "control: the bird's mask": bird,
                **{f'control: random weights, {name}': source(untrained, name) for name in UNTRAINED
                   if issubclass(type(untrained), CONTRASTS[name].head)}}
    if run.model.own_maps == 'jointll':
        controls['control: prior'] = lambda images, *_: run.model.activations(images).prior
    return controls


def is_slow(name):
    return name.startswith(SLOW)


# --- figures ------------------------------------------------------------------------------------------


def rank_correlation(first, second):
    """Spearman's, row by row, ties by their mean rank: (Q,R), (Q,R) with NaN for what a row has not -> (Q,)."""
    result = np.full(len(first), np.nan)
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        there = np.isfinite(a) & np.isfinite(b)
        ranks = [metrics.mean_ranks(values[there]) for values in (a, b)]
        if min(np.ptp(own) for own in ranks) > 0:
            result[row] = np.corrcoef(*ranks)[0, 1]
    return result


def held_against(signed, absolute, questions, effects, unit, present):
    """{figure: (numerators, denominators)} by question: each figure is the ratio of their sums.

    signed, absolute: (Q,8) masses. effects: (Q,8), in the map's unit. present: (Q,8) bool, regions that are in sight.
    """
    true = np.zeros_like(present)
    for row, question in enumerate(questions):
        true[row, list(question.parts)] = True
    rank = rank_correlation(np.where(present, signed, np.nan), np.where(present, effects, np.nan))
    agrees = (np.sign(signed) == np.sign(effects)) & true & (effects != 0)
    figures = {'rank': (np.nan_to_num(rank), np.isfinite(rank)),
               'share': (100 * (absolute * true).sum(1) / np.maximum(absolute.sum(1), 1e-300), absolute.sum(1) > 0),
               'sign': (100 * agrees.sum(1), (true & (effects != 0)).sum(1))}
    if unit in ('nats', 'probability'):
        figures['slope'] = (signed * effects).sum(1), np.square(effects).sum(1)
        figures['error'] = np.abs(signed - effects).sum(1), np.abs(effects).sum(1)
    return {name: tuple(np.asarray(part, float) for part in parts) for name, parts in figures.items()}


@torch.no_grad()
def measure(run, images, questions, regions, source, name):
    """One pass over the questions, of which each process takes some batches. Returns the masses, two (Q,8), and the
    histograms (P,2,bins) of cue localization."""
    edges, pairs = metrics.bin_edges('even', run.args.cam_curve_interval), 1 + max(q.pair for q in questions)
    signed, absolute = np.zeros((2, len(questions), len(REGIONS)))
    counts, starts = 0, range(0, len(questions), run.args.batch_size)[processes.rank()::processes.size()]
    for start in util.progress(starts, name, 'batch'):
        part = questions[start:start + run.args.batch_size]
        indices = torch.tensor([question.index for question in part])
        batch = util.to_device(torch.stack([images[index][0] for index in indices.tolist()]), run.device)
        first, second = (torch.tensor([question[side] for question in part]) for side in (2, 3))
        with util.autocast(run.args.precision, run.device):
            maps = source(batch, indices, first, second).float().cpu()
        if not maps.isfinite().all():
            raise UserError(f'{name} gives maps with values that are infinite or no number')
        own = regions[indices.numpy()]
        rows = slice(start, start + len(part))
        signed[rows], absolute[rows] = region_masses(maps, own)
        scores = metrics.normalise(metrics.resize(maps, own.shape[1:]).abs(), 'minmax')
        truth = torch.stack([torch.isin(torch.from_numpy(mask), torch.tensor(question.parts, dtype=torch.uint8))
                             for mask, question in zip(own, part, strict=True)])
        binned, rows = metrics.bin_scores(scores, edges).flatten(1), torch.tensor([question.pair for question in part])
        counts = counts + metrics.count_scores(binned, truth.flatten(1), len(edges) + 1, rows, pairs)
    return [sum(own) for own in zip(*processes.gather((signed, absolute, counts)), strict=True)]


def summarise(figures, questions, pxap, seed):
    """{figure: [value, low, high]}, 95 % by images drawn again; of PxAP's mean by class pairs. pxap: (P,), NaN where a
    pair has none."""
    images, pxap = np.array([question.index for question in questions]), pxap[np.isfinite(pxap)]
    summary = {'pxap': [float(pxap.mean()), *metrics.bootstrap_ratio_of_sums(pxap, np.ones(len(pxap)), seed)]}
    for name, (above, below) in figures.items():
        by_image = [np.bincount(images, part) for part in (above, below)]
        summary[name] = [float(above.sum() / below.sum()) if below.any() else None,
                         *metrics.bootstrap_ratio_of_sums(*by_image, seed)]
    return summary


def network_facts(effects, questions, seed):
    """Does the network use the cue at all? Of the images that it gets right, how many turn with the colours."""
    images = np.array([question.index for question in questions])
    right, turns = (np.bincount(images, part.astype(float))
                    for part in (effects.is_right, effects.is_right & effects.turns))
    share = turns.sum() / right.sum() if right.any() else None  # of nothing
    return {'accuracy': 100 * float(effects.is_right.mean()), 'turns': [
        None if value is None else 100 * float(value)
        for value in (share, *metrics.bootstrap_ratio_of_sums(turns, right, seed))],
        'effect_of_all_parts': float(effects.all_parts.mean()),
        'effect_of_the_background': float(np.abs(effects.log_odds[:, BACKGROUND]).mean())}


def report(content, method):
    """Say what was measured of the network, and of each contrast. content: of the result."""
    facts = content['network']
    share, low, high = facts['turns']
    turns = '' if share is None else f'; of these {share:.1f} % [{low:.1f}, {high:.1f}] turn with all differing parts'
    util.say(f'\n{method}, {content["questions"]} questions, {facts["accuracy"]:.1f} % on images that the network gets '
             f'right{turns}')
    table = []
    for name, own in content['methods'].items():
        values = [own.get(key, [None])[0] for key in COLUMNS]
        table.append([name, *(None if value is None else f'{value:.2f}' for value in values), own['questions']])
    util.say(util.table(['why A and not B', *COLUMNS.values(), 'questions'], table))


def main():
    run = evaluation.open_evaluation(config.parse('eval_interventions', __doc__), 'eval_interventions')
    if run.data.name != 'ToyBirds':
        raise UserError(f'interventions need the painter: --dataset=ToyBirds, not {run.data.name}')
    images, annotations, seed = run.open_split('test'), run.data.annotations(), run.args.seed
    questions, regions = ask(images, annotations, run.args.crop_size)
    # first of all: mistakes in the flags are found here, and a folder that cannot be written
    sources = contrast_sources(run, images, questions, annotations)
    if processes.is_first():
        whole_files.check_writable(run.results_folder())
    effects = true_effects(run.model, images, questions, Repainter(run.data.cub_root), run.device)
    present = np.stack([np.isin(np.arange(len(REGIONS)), regions[question.index]) for question in questions])
    few = np.random.default_rng(seed).permutation(len(questions))[:run.args.slow_questions]
    name = run.args.attribution_method if run.args.scoremap_root is None else run.maps_name()
    result = run.result_file('interventions', images, 'test', name)
    content = {'questions': len(questions), 'network': network_facts(effects, questions, seed), 'methods': {}}
    for name, source in sources.items():
        rows = np.sort(few) if is_slow(name) else np.arange(len(questions))
        asked = [questions[row] for row in rows]
        signed, absolute, counts = measure(run, images, asked, regions, source, name)
        unit = CONTRASTS[name].unit if name in CONTRASTS else ''
        effect = (effects.probability if unit == 'probability' else effects.log_odds)[rows]
        value = metrics.pixel_average_precision(counts)
        figures = held_against(signed, absolute, asked, effect, unit, present[rows])
        content['methods'][name] = {'questions': len(asked), 'unit': unit,
                                    **summarise(figures, asked, value, seed)}
        if processes.is_first():
            result.write_unfinished(content)
    if not processes.is_first():
        return
    report(content, run.args.attribution_method)
    result.write(content)


if __name__ == '__main__':
    util.run(main)
