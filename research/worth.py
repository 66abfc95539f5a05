"""Which of the common figures agree with exact truth, and which reward blur?

Every attribution method and control of each network is measured by all figures, as it is and blurred, and nothing is
measured twice. docs/protocols.md says what the truths are. Flags of the evaluations may follow.
Result: <output>/worth.csv, two rows for each map.

    python -m research.worth save/demo/CAM save/demo/CALM_EM --images=2
"""
import copy
import csv
from pathlib import Path

import numpy as np
import torch

import config
from dataset.toybirds import Repainter
from eval_cue_location import Scoring, fill_histograms, open_cues
from eval_pixel_perturb import classify_erased
from eval_wsol import BoxCounts, MaskCounts, localise
from evaluation import session
from evaluation.map_sources import MapSource
from evaluation.pxap import summarise
from experiment.training import classify
from research import commands, grid, interventions
from research.repainting import ask, true_effects
from runtime import command_line, processes, screen, whole_files
from wsol import metrics
from wsol.attribution.contrast import default_scale
from wsol.attribution.registry import METHODS, find_method
from wsol.errors import UserError
from wsol.heads import CALM

FIGURES = ('R_k', 'deletion', 'insertion', 'R_k, road', 'deletion, road', 'insertion, road', 'grid pointing',
           'mass in mask', 'mask PxAP', 'MaxBoxAccV2', 'MaxBoxAcc', 'PxAP published', 'PxAP published, all pixels',
           'PxAP by rank')
TRUTHS = ('PxAP exact', 'rank corr.', 'deletion corr.', 'deletion corr., one class')
COLUMNS = ('run', 'network', 'seeds', 'map', 'blurred', 'settings', *FIGURES, *TRUTHS)
RANDOM = 'random_weights'  # the name of this control in rows
CHOSEN = ('score_map_process', 'score_map_method', 'save_root', 'experiment_name', 'load_checkpoint', 'cache')


class StoredMaps(MapSource):
    """The maps of another source, each computed once by a process."""

    def __init__(self, source):
        super().__init__(source.images, None, source.precision, source.classifier)
        self.source, self.per_class, self.known = source, source.per_class, {}

    def compute(self, images, indices, classes, _):
        asked = [[(index, label) for label in row]
                 for index, row in zip(indices.tolist(), classes.tolist(), strict=True)]
        if not self.known.keys() >= {key for keys in asked for key in keys}:
            for keys, of_image in zip(asked, self.source(images, indices, classes).maps, strict=True):
                self.known.update(zip(keys, of_image, strict=True))
        return [torch.stack([self.known[key] for key in keys]) for keys in asked]


class Bench:
    """A network, and the images and truths that its maps are measured on; several processes share the images. count:
    images of each class, the first ones. road: the fill ROAD gets each road-th image of a batch; 0: none."""

    def __init__(self, network, count, road):
        self.network, self.args, self.data = network, network.args, session.open_data(network)
        self.images = images = network.open_split(self.data, 'test')
        rows = np.array(open_cues(self.data, images).rows)
        kept = np.sort(np.concatenate([rows[images.labels[rows] == label][:count] for label in set(images.labels)]))
        images.image_ids, images.labels = images.image_ids[kept], images.labels[kept]
        self.cues, self.asked, self.random = open_cues(self.data, images), None, {}
        loader, self.steps = network.loader(images), {'zeros': 1} | ({'road': road} if road else {})
        self.batches = list(loader)
        confidence, right = classify(network.model, loader, network.device, self.args.precision, 'test')
        try:
            self.grids = grid.make_grids(np.where(right, confidence, 0), images.labels, self.args.seed)
        except UserError as error:
            self.grids = None
            screen.warn(f'not measured: grid pointing, since {error}')
        if self.data.name == 'ToyBirds':  # only painted birds have true effects of their parts
            repainter = Repainter(self.data.cub_root)
            self.asked = ask(images, self.cues.annotations, repainter, self.args.crop_size)
            self.effects = true_effects(network.model, images, self.asked, repainter, network.device)

    def erasures(self, source):
        """R_k over all k together, and the two areas, for each fill."""
        figures, args = {}, self.args
        for fill, step in self.steps.items():
            part = [tuple(values[::step] for values in batch) for batch in self.batches]
            orders = ('top', 'low', 'random')[:2 + (fill not in self.random)]  # random erasure is the same for all maps
            right, p = classify_erased(self.network.model, part, source, self.network.device, args.seed, args.precision,
                                       args.batch_size, fill, orders)
            areas = [metrics.area_over_erased(p['intact'], p[order], p['blank']).sum() for order in ('top', 'low')]
            top, *areas, count = sum(processes.gather(np.array([right['top'].sum(), *areas, len(p['blank'])])))
            if 'random' in right:
                self.random[fill] = sum(processes.gather(right['random'].sum()))
            names = FIGURES[3:6] if fill == 'road' else FIGURES[:3]
            values = [metrics.ratio(top, self.random[fill]), *(area / count for area in areas)]
            figures |= zip(names, values, strict=True)
        return figures

    def localization(self, source):
        """How well a map finds the whole object, at the best threshold on these images."""
        ids, scale = self.images.image_ids, (self.args.crop_size, 'minmax', self.args.cam_curve_interval)
        boxes = BoxCounts(self.data.boxes('test', ids), *scale, self.args.iou_thresholds)
        masks = MaskCounts([()] * len(ids), *scale)
        object_mask = self.cues.annotations.object_mask
        masks.truth = lambda index: (shown := object_mask(ids[index].decode(), self.args.crop_size), shown | True)
        for counts in (boxes, masks):
            localise(self.batches, source, counts, self.network.device)
        best = {name: values.max() for name, values in boxes.curves().items()}
        return {'mass in mask': 100 * np.nanmean(masks.mass), 'MaxBoxAcc': best['MaxBoxAcc'],
                'mask PxAP': metrics.pixel_average_precision(masks.counts),
                'MaxBoxAccV2': np.mean([best[name] for name in best if '@' in name])}

    def cue_localization(self, source, method):
        """PxAP of A - B, on the method's usual scale and by rank."""
        scorings = [Scoring(source, norm, metrics.bin_edges(thresholds, self.args.cam_curve_interval))
                    for norm, thresholds in (default_scale(method), ('rank', 'even'))]
        counts, evaluations = fill_histograms(self.network.loader(self.cues), scorings, self.network.device)
        return {name: summarise(counts[scoring][truth][0], self.cues.annotations.pairs, evaluations)[0][count]['mean']
                for name, scoring, truth, count in (
                    ('PxAP published', 0, 'parts', 'published'), ('PxAP by rank', 1, 'parts', 'per pair, all pixels'),
                    ('PxAP published, all pixels', 0, 'parts', 'published, all pixels'),
                    ('PxAP exact', 1, 'exact', 'per pair, all pixels')) if truth in counts[scoring]}

    def interventions(self, source, unit):
        """Mean rank correlations of a map's masses in the parts with the effects on them. unit: of the map."""
        effects, of_class = self.effects, copy.copy(source)
        of_class.per_class = False  # its map is that of the first class, and not a difference
        of_pair, of_one = (interventions.measure(self.network, self.images, self.asked, maps, 'interventions')[0]
                           for maps in (source, of_class))
        by_repainting = effects.probability if unit == 'probability' else effects.log_odds
        pairs = ((of_pair, by_repainting), (of_pair, effects.deletion), (of_one, effects.of_class))
        return {name: np.nanmean(interventions.rank_correlation(masses, true, self.asked.present))
                for name, (masses, true) in zip(TRUTHS[1:], pairs, strict=True)}

    def measure(self, name):
        """Yield (blurred, {figure: value}) of a map: as it is, and blurred."""
        flags = {'control': RANDOM} if name == RANDOM else {'score_map_process': name}
        chosen = session.choose_maps(self.network, self.data, **flags)
        stored, of_grids = (StoredMaps(chosen.source(self.images)) for _ in range(2))
        for blurred in ('', 'yes'):
            stored.is_blurred = of_grids.is_blurred = bool(blurred)
            figures = self.cue_localization(stored, chosen.method)  # first: it asks for all classes that others need
            figures |= self.erasures(stored) | self.localization(stored)
            if self.asked:
                figures |= self.interventions(stored, METHODS[name].unit if name in METHODS else '')
            if stored.per_class and self.grids is not None:
                _, (shares,) = grid.measure(self.network, self.images, self.grids, [of_grids])
                figures['grid pointing'] = np.nanmean(shares)
            yield blurred, figures


def scores(rows, figure, blurred=''):
    """(N,M): a figure of N networks and their M methods that know the class. Higher is better; NaN: not measured."""
    known = {(row['network'], row['seeds'], row['map']): float(row[figure]) for row in rows
             if row['blurred'] == blurred and row[figure]}
    networks = dict.fromkeys((row['network'], row['seeds']) for row in rows)
    maps = [name for name in dict.fromkeys(row['map'] for row in rows) if name in METHODS and METHODS[name].per_class]
    values = np.array([[known.get((*network, name), np.nan) for name in maps] for network in networks])
    return -values if figure.split(',')[0] in ('R_k', 'deletion') else values


def agreement(rows, figure, truth):
    """The rank correlation over the methods: the mean of the networks, the lowest and the highest. None: not known."""
    return spread(interventions.rank_correlation(scores(rows, figure), scores(rows, truth)))


def spread(values):
    """The mean over the networks, the lowest and the highest. values: (N,). None if no value is known."""
    values = values[np.isfinite(values)]
    return {'value': values.mean(), 'low': values.min(), 'high': values.max()} if len(values) else None


def cell(values, form):
    """The text of a spread: "0.84 (0.70 .. 0.95)". form: of a number."""
    return '{value:{0}} ({low:{0}} .. {high:{0}})'.format(form, **values) if values else ''


def table(rows):
    """(header, rows): for each figure its agreement with the truths, or else with PxAP by rank; which percentage of the
    maps it ranks higher once blurred, and half of those that stay; and the figures of the heads' own maps."""
    truths, lines = [name for name in TRUTHS if any(row.get(name) for row in rows)] or ['PxAP by rank'], []
    for figure in (*FIGURES, *TRUTHS):
        plain = scores(rows, figure)
        change = scores(rows, figure, 'yes') - plain
        if np.isfinite(change).any():
            better = [50 * np.nanmean(1 + np.sign(of_network)) for of_network in change
                      if np.isfinite(of_network).any()]
            heads_maps = [[float(row[figure]) for row in rows if row['network'].startswith(head) and row[figure]
                           and (row['map'], row['blurred']) == (name, '')]
                          for head, name in (('CAM', 'vanilla'), ('CALM', 'jointll'))]
            lines.append([figure, *(cell(agreement(rows, figure, truth), '.2f') for truth in truths),
                          cell(spread(np.array(better)), '.0f'),
                          *(cell(spread(np.array(values)), '.3g') for values in heads_maps)])
    return ['figure', *truths, 'better if blurred, %', "CAM's map", "CALM's map"], lines


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help='an experiment, such as save/demo/CAM')
    parser.add_argument('--images', type=command_line.COUNT, default=5, metavar='INTEGER',
                        help='test images of each class (default: 5)')
    parser.add_argument('--road', type=command_line.NATURAL, default=5, metavar='INTEGER',
                        help='the fill ROAD takes long: it gets one of so many images; 0: none (default: 5)')
    parser.add_argument('--methods', metavar='METHOD,...', help='only these maps (default: all)',
                        type=command_line.several(command_line.choice((*METHODS, config.OBJECT_MASK, RANDOM))))
    parser.add_argument('--output', default='worth', metavar='FOLDER', help='default: worth')
    return parser


def maps_of(network):
    """The names of all methods of a network, and of the controls."""
    methods = (method.name for method in METHODS.values()
               if isinstance(network.model, method.head) and not method.needs_superclasses)
    return [*dict.fromkeys(methods), config.OBJECT_MASK, RANDOM]


def main():
    args, flags = make_parser().parse_known_args()
    path = Path(args.output) / 'worth.csv'
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    parser = config.make_parser(__doc__, *config.MAPS, 'cache', 'iou_thresholds', 'cam_curve_interval')
    commands.refuse_chosen(config.parse(parser, flags), CHOSEN, 'worth')
    settings = [f'--images={args.images}', f'--road={args.road}', *sorted(flags)]
    for folder in map(Path, args.folders):
        network = session.open_network(config.parse(parser, [*flags, f'--save_root={folder.parent}', '--cache=False',
                                                             f'--experiment_name={folder.name}']), whole=True)
        head = [network.args.attribution_method, *[network.args.prior] * isinstance(network.model, CALM)]
        about = {'run': path.parent.name, 'seeds': str(network.checkpoint.content['args']['seed']),
                 'network': ', '.join(head), 'settings': ' '.join([network.checkpoint.sha256[:8], *settings])}
        done = {row['map'] for row in rows if about.items() <= row.items()}
        names = [name for name in args.methods or maps_of(network) if name not in done]
        for name in METHODS.keys() & names:
            find_method(name, type(network.model))
        bench = Bench(network, args.images, args.road) if names else None
        for name in names:
            screen.say(f'{folder}: {name}')
            rows += [dict.fromkeys(COLUMNS, '') | about | {'map': name, 'blurred': blurred} | {
                key: f'{value:.4g}' for key, value in figures.items() if np.isfinite(value)}
                for blurred, figures in bench.measure(name)]
            if processes.is_first():
                cells = [COLUMNS, *(row.values() for row in rows)]
                whole_files.write_lines(path, [','.join(f'"{cell}"' for cell in line) for line in cells])
    rows = [row for row in rows if row['settings'].endswith(' ' + ' '.join(settings))]  # others are not comparable
    screen.say(f'\n{screen.table(*table(rows))}\n\n{path}')


if __name__ == '__main__':
    screen.run(main)
