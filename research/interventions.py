"""Interventions: do the maps "why A and not B" show what the network's decision depends on? ToyBirds only.

The painter repaints a test image with one part in the colours of class B, or before another background, and changes
nothing else. So the true effect of every region on the network's log p(A|x) / p(B|x) is known: the log-odds of the
image minus those of the repainted one. Every contrast method is compared with these effects, and with the exact part
masks (cue localization). Leaving out a part, or a shape of the background, gives the figures for deletion and
distractors. Effects are computed in float32, whatever the precision of the maps.
Sources: Hesse et al., ICCV 2023 (FunnyBirds: deletion, distractors); Adebayo et al. 2018 (random weights as a control);
Kim et al., ICCV 2021 (cue localization).
Result: save/<experiment_name>/interventions_ToyBirds_<head>.<8 digits>.json, with the figures of each contrast;
with --scoremap_root the name holds that folder instead of the head.

    python -m research.interventions --experiment_name=calm_em
    python -m research.interventions --experiment_name=calm_em --scoremap_root=my_maps
"""
import numpy as np
import torch
from scipy import stats

import config
import util
from data_loaders import batches_in_order
from dataset.fingerprints import combined
from dataset.toybirds import Repainter
from evaluation import session
from evaluation.map_sources import MapSource, ObjectMasks, folder_name
from reports.columns import INTERVENTIONS
from research.repainting import BACKGROUND, REGIONS, SHAPES, ask, masses, true_effects
from runtime import processes, screen, whole_files
from wsol import metrics
from wsol.attribution.contrast import CONTRASTS
from wsol.errors import UserError
from wsol.heads import CALM
from wsol.maps import normalise, resize

NEGLIGIBLE = 0.1  # nats: a shape of the background with a smaller effect is a distractor


# --- methods and controls -----------------------------------------------------------------------------


class Noise(MapSource):
    """Uniform noise on 8 x 8 cells: what chance gives."""
    per_class = False

    def __init__(self, images, seed):
        super().__init__(images)
        self.seed = seed

    def read(self, index, classes, size):
        generator = torch.Generator().manual_seed(util.image_seeds(self.seed, index))
        return torch.rand(8, 8, generator=generator).expand(len(classes), -1, -1)


def map_sources(run, data, images, questions):
    """{name: MapSource} of every contrast that the flags ask for, or of --scoremap_root, and of the controls. Raises
    UserError."""
    head, args, root, classes = type(run.model), run.args, run.args.scoremap_root, {}
    for question in questions:
        classes.setdefault(question.index, set()).update((question.first, question.second))

    def source(contrast=None, **flags):
        usual = {'score_map_method': 'activation_map', 'score_map_process': None, 'scoremap_root': None}
        maps = session.choose_maps(run, data, contrast=contrast, **usual | flags)
        return maps.source(images, classes_of=lambda index: sorted(classes[index]), rows=sorted(classes))

    controls = {'control: random': Noise(images, args.seed),
                "control: the bird's mask": source(score_map_process=config.OBJECT_MASK),
                # only contrasts that take one forward, and the gradient
                **{f'control: random weights, {name}': source(name, control='random_weights')
                   for name, contrast in CONTRASTS.items()
                   if (contrast.one_forward or name == 'backprop') and issubclass(head, contrast.head)}}
    if issubclass(head, CALM):
        controls['control: prior'] = source(score_map_process='saliency')
    if root is None:
        names = args.contrast_method or [name for name, entry in CONTRASTS.items() if issubclass(head, entry.head)]
        return {name: source(name) for name in sorted(names, key=is_slow)} | controls  # the slow ones last
    made_elsewhere = source(args.contrast_method, scoremap_root=root)  # both flags together are refused
    if len(made_elsewhere.shapes) > 1:
        raise UserError(f'--scoremap_root={root}: the score maps of different images have different sizes; make them '
                        'of one size')
    return {folder_name(root): made_elsewhere} | controls


def signed_maps(source, images, indices, questions):
    """Why the first class of each question and not the second: (B,h,w). A control that knows no class gives its map."""
    classes = torch.tensor([[question.first, question.second] for question in questions], device=images.device)  # (B,2)
    maps = source(images, indices, classes, source.forward(images)).maps
    maps = maps if isinstance(maps, torch.Tensor) else torch.stack(maps)  # (B,1 or 2,h,w)
    return maps[:, 0] if source.takes_pairs or not source.per_class else maps[:, 0] - maps[:, 1]


def is_slow(name):
    """Whether a contrast takes many forwards for a map: it gets only --slow_questions of the questions."""
    return name in CONTRASTS and CONTRASTS[name].slow


# --- figures ------------------------------------------------------------------------------------------


def rank_correlation(first, second, known=True):
    """Spearman's rank correlation of each row: (Q,). second: (Q,R). first: (Q,S), of which the first R columns count.
    known: (Q,S) bool, or True for all. Values that are NaN or not known are left out."""
    first = np.where(known, first, np.nan)[:, :second.shape[1]]
    known = np.isfinite(first) & np.isfinite(second)
    ranks = [stats.rankdata(np.where(known, values, np.nan), axis=1, nan_policy='omit') for values in (first, second)]
    mean = (known.sum(1, keepdims=True) + 1) / 2
    first, second = (np.where(known, rank - mean, 0) for rank in ranks)
    return metrics.ratio((first * second).sum(1), np.sqrt(np.square(first).sum(1) * np.square(second).sum(1)))


def figures_of(signed, absolute, on_shapes, asked, effects, unit):
    """How masses agree with true effects: {figure: (numerators, denominators)} by question; a figure is the ratio of
    their sums.

    signed, absolute: (Q,8) masses in the regions. on_shapes: (Q,18) absolute masses on the background's shapes. asked:
    an Asked. effects: its Effects. unit: of the map. The last two figures are those of FunnyBirds.
    """
    present, areas = asked.present, asked.shapes
    differs = np.stack([np.isin(range(len(REGIONS)), question.parts) for question in asked.questions])  # (Q,8)
    caused = effects.probability if unit == 'probability' else effects.log_odds
    differing, distracts = differs & (caused != 0), (areas > 0) & (np.abs(effects.shapes) < NEGLIGIBLE)
    has_mass, total = absolute.any(1), np.maximum(absolute.sum(1), 1e-300)

    def by_rank(true):
        rank = rank_correlation(signed, true, present)
        return np.nan_to_num(rank), np.isfinite(rank)
    figures = {'rank corr.': by_rank(caused), 'mass on cue': (100 * (absolute * differs).sum(1) / total, has_mass),
               'sign': (100 * ((np.sign(signed) == np.sign(caused)) & differing).sum(1), differing.sum(1))}
    if unit in ('nats', 'probability'):
        figures['slope'] = (signed * caused).sum(1), np.square(caused).sum(1)
        figures['error'] = np.abs(signed - caused).sum(1), np.abs(caused).sum(1)
    figures |= {'deletion corr.': by_rank(effects.deletion),
                'on distractors': ((on_shapes * distracts).sum(1) / total, (areas * distracts).sum(1) * has_mass)}
    return {name: tuple(np.asarray(part, float) for part in parts) for name, parts in figures.items()}


@torch.no_grad()
def measure(run, images, asked, source, name):
    """One pass over the questions; several processes share the batches. Returns the signed and the absolute masses by
    region (Q,8) (Q,8), the absolute masses on the background's shapes (Q,18), and the histograms of cue localization
    (P,2,bins)."""
    edges, questions = metrics.bin_edges('even', run.args.cam_curve_interval), asked.questions
    num_pairs = 1 + max(question.pair for question in questions)
    signed, absolute = np.zeros((2, len(questions), len(REGIONS)))
    counts, on_shapes = 0, np.zeros((len(questions), SHAPES))
    for rows in screen.progress(batches_in_order(len(questions), run.args.batch_size), name, 'batch'):
        part = questions[rows.start:rows.stop]
        indices = torch.tensor([question.index for question in part])
        batch = util.to_device(torch.stack([images[index][0] for index in indices.tolist()]), run.device)
        maps = signed_maps(source, batch, indices, part).float().cpu()
        regions = asked.regions[indices.numpy()]
        signed[rows], absolute[rows] = masses(maps, regions, len(REGIONS))
        on_shapes[rows] = masses(maps, asked.clutter[indices.numpy()], SHAPES + 1)[1][:, 1:]
        scores = normalise(resize(maps, regions.shape[1:]).abs(), 'minmax')
        truth = [torch.from_numpy(np.isin(mask, question.parts)) for mask, question in zip(regions, part, strict=True)]
        binned, pairs = metrics.bin_scores(scores, edges).flatten(1), torch.tensor([question.pair for question in part])
        counts = counts + metrics.count_scores(binned, torch.stack(truth).flatten(1), len(edges) + 1, pairs, num_pairs)
    return [sum(values) for values in zip(*processes.gather((signed, absolute, on_shapes, counts)), strict=True)]


def summarise(figures, questions, pxap, seed):
    """{figure: [value, low, high]} with 95 % bootstrap intervals over the images; for the mean PxAP over the class
    pairs. pxap: (P,), NaN for a pair without a value."""
    images = np.array([question.index for question in questions])
    summary = {'PxAP exact': metrics.bootstrap_mean(pxap[np.isfinite(pxap)], seed)}
    for name, (numerators, denominators) in figures.items():
        by_image = [np.bincount(images, values) for values in (numerators, denominators)]
        summary[name] = [float(numerators.sum() / denominators.sum()) if denominators.any() else None,
                         *metrics.bootstrap_ratio(*by_image, seed)]
    return summary


def network_facts(effects, asked, seed):
    """What the network uses: which percentage of right predictions turns into B when all differing parts take B's
    colours, and which percentage of the background's shapes has a negligible effect."""
    images = np.array([question.index for question in asked.questions])
    right, turns = (np.bincount(images, part.astype(float))
                    for part in (effects.is_right, effects.is_right & effects.turns))
    share = turns.sum() / right.sum() if right.any() else None
    visible = asked.shapes > 0
    return {'accuracy': 100 * float(effects.is_right.mean()), 'turns': [
        None if value is None else 100 * float(value)
        for value in (share, *metrics.bootstrap_ratio(turns, right, seed))],
        'effect_of_all_parts': float(effects.all_parts.mean()),
        'effect_of_the_background': float(np.abs(effects.log_odds[:, BACKGROUND]).mean()),
        'shapes_that_distract': 100 * float((visible & (np.abs(effects.shapes) < NEGLIGIBLE)).sum() / visible.sum())}


def report(content, head):
    """Print the facts of the network, and the table of contrasts. content: of the result."""
    facts = content['network']
    share, low, high = facts['turns']
    turns = '' if share is None else (f'; {share:.1f} % [{low:.1f}, {high:.1f}] of these predictions become B when all '
                                      'differing parts take B\'s colours')
    screen.say(f'\n{head}, {content["questions"]} questions, {facts["accuracy"]:.1f} % about images that the network '
               f'classifies correctly{turns}')
    screen.say(f'{facts["shapes_that_distract"]:.1f} % of the shapes of the background are distractors: leaving '
               f'one out changes the log-odds by less than {NEGLIGIBLE}')
    table = []
    for name, row in content['methods'].items():
        values = [row.get(key, [None])[0] for key in INTERVENTIONS]
        table.append([name, *(None if value is None else f'{value:.2f}' for value in values), row['questions']])
    screen.say(screen.table(['why A and not B', *INTERVENTIONS, 'questions'], table))


def measure_all(run, images, asked, sources, effects):
    """Measure every contrast and control. Returns the content of the result."""
    seed, few = run.args.seed, np.random.default_rng(run.args.seed).permutation(len(asked.questions))
    content = {'questions': len(asked.questions), 'network': network_facts(effects, asked, seed), 'methods': {}}
    for name, source in sources.items():
        rows = np.sort(few[:run.args.slow_questions]) if is_slow(name) else np.arange(len(asked.questions))
        part, caused = asked.chosen(rows), type(effects)(*(values[rows] for values in effects))
        *masses_of_map, counts = measure(run, images, part, source, name)
        unit = CONTRASTS[name].unit if name in CONTRASTS else ''
        figures = figures_of(*masses_of_map, part, caused, unit)
        pxap = metrics.pixel_average_precision(counts)
        content['methods'][name] = {'questions': len(rows), 'unit': unit,
                                    **summarise(figures, part.questions, pxap, seed)}
    return content


def make_parser():
    """The parser of this script's flags."""
    return config.make_parser(__doc__, *config.IMAGES, *config.SAMPLING, 'cache', 'contrast_method', 'slow_questions',
                              'scoremap_root', 'cam_curve_interval', listed=('contrast_method',))


def main():
    run = session.open_network(config.parse(make_parser()), whole=True)
    data = session.open_data(run)
    if data.name != 'ToyBirds':
        raise UserError(f'interventions need the painter: --dataset=ToyBirds, not {data.name}')
    images, annotations, repainter = run.open_split(data, 'test'), data.annotations(), Repainter(data.cub_root)
    asked = ask(images, annotations, repainter, run.args.crop_size)
    # before the first image, so that mistakes in the flags and a folder without write access are found at once
    sources = map_sources(run, data, images, asked.questions)
    if processes.is_first():
        whole_files.check_writable(run.results_folder())
    effects = true_effects(run.model, images, asked, repainter, run.device)
    first, source = next(iter(sources.items()))
    truth = combined(str(asked.questions), asked.regions, asked.clutter, ObjectMasks(images, annotations).fingerprint())
    name = run.args.attribution_method if run.args.scoremap_root is None else first
    result = run.result_file('interventions', data, images, name, truth=truth, maps=source.fingerprint())
    content = measure_all(run, images, asked, sources, effects)
    if processes.is_first():
        report(content, run.args.attribution_method)
        result.write(content)


if __name__ == '__main__':
    screen.run(main)
