"""How fast, as ratios: every item beside the plain way of doing it and, where there is one, beside a floor.

The plain ways are the published code's (plain_ways.py), where the item has one, and captum's and torchcam's, where they
are installed. All ways of an item run in turns, round by round, so that what else the machine does hits them alike; a
ratio is the median of the rounds', beside the lowest and the highest. Networks have random weights, images are noise:
neither data nor a checkpoint is needed. With CUB's annotations cue localization is measured on its real pairs, too.

    python -m research.bench --json=save/bench.json --plot=save/bench.png
    python -m research.bench --only cue_localization --cub_root=dataset/CUB
"""
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.ticker import FixedLocator
from torch import nn

import util
from reports import figures
from research.bench_items import CUB, ITEMS, project_on_cub
from runtime import command_line, screen, whole_files
from wsol import build_model
from wsol.speed.folding import fold_batchnorm


class Bench:
    """The network that is measured, in the ways it is used, and what it is measured on."""

    def __init__(self, architecture, size, device, rounds, cub_root=None, cub_images=0):
        self.architecture, self.size, self.device, self.rounds = architecture, size, device, rounds
        self.cub_root, self.cub_images = cub_root, cub_images
        util.try_algorithms(device)
        self.precisions = {'float32': 'float32'}
        if util.computes_in_bfloat16(device):
            self.precisions['auto'] = 'bfloat16'
        self.best = list(self.precisions)[-1]

    def network(self, num_classes=200, folded=False, plain=False, other=None):
        """In eval mode. plain: in the memory layout that torch has by default, with its BatchNorms. other: an
        architecture in the place of the one that is measured, with small maps."""
        torch.manual_seed(0)
        large = {'large_feature_map': True} if not other and self.architecture.startswith('resnet') else {}
        model = build_model(other or self.architecture, 'CALM_EM', num_classes, **large).to(self.device)
        for module in model.modules():  # statistics that fit the weights: else numbers grow from layer to layer
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.randn(4, 3, self.size, self.size, device=self.device))
        model = model.eval() if plain else model.eval().to(memory_format=util.memory_format(self.device))
        if folded:
            fold_batchnorm(model, self.size)
        return model

    def images(self, count, plain=False, size=None):
        size = size or self.size
        images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
        return images.to(self.device) if plain else util.to_device(images, self.device)

    def labels(self, count, num_classes=200):
        return torch.arange(count, device=self.device) % num_classes

    def casting(self, way):
        return util.autocast(self.precisions.get(way, 'float32'), self.device)

    def measure(self, entry):
        """{way: figures (rounds,)} of one thing, and how far the results are apart, in words. The first round warms up,
        and counts for nothing."""
        found, results = {way: [] for way in entry.ways}, {}
        for number in range((entry.rounds or self.rounds) + 1):
            for way, call in entry.ways.items():
                start = time.perf_counter()
                figure = results[way] = call()
                if self.device.type == 'cuda':
                    torch.cuda.synchronize()
                if entry.unit == 'ms':
                    figure = 1000 * (time.perf_counter() - start)
                found[way] += [figure / entry.count] * (number > 0)
        return found, entry.compare(results)


# --- the table -----------------------------------------------------------------------------------------------


def ratio(above, below):
    """(median, lowest, highest) of the rounds' ratios."""
    values = [one / other for one, other in zip(above, below, strict=True)]
    return statistics.median(values), min(values), max(values)


def row(name, unit, found):
    """One line of the table: what the plain way takes, how many times less ours does, and ours over the floor."""
    def times(above, below):
        if above not in found or below not in found:
            return '-'
        middle, low, high = ratio(found[above], found[below])
        return f'{middle:.2f} ({low:.2f} .. {high:.2f})'
    best = 'auto' if 'auto' in found else 'float32'
    plain = statistics.median(found['plain'])
    return [name, f'{plain:.1f} {unit}' if plain >= 1 else f'{plain:.2f} {unit}', times('plain', 'float32'),
            times('plain', 'auto'), times(best, 'floor')]


def ratios_figure(measured):
    """A bar for each item: how many times faster than the plain way, with the lowest and the highest round."""
    best = {name: ratio(own['plain'], own['auto' if 'auto' in own else 'float32'])
            for name, (_, own) in measured.items()}
    figure = figures.Figure(figsize=(10, 0.28 * len(best) + 1), layout='constrained')
    axes = figure.subplots()
    middle, low, high = np.array(list(best.values())).T
    axes.barh(list(best), middle - 1, left=1, xerr=[middle - low, high - middle], color='teal')
    axes.axvline(1, color='black', linewidth=1)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set(xlabel='times less than the plain way', xscale='log')
    axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 1.5, 2, 3, 5, 10, 20]))
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.tick_params(axis='y', labelsize=8)
    return figure


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('--only', nargs='+', choices=ITEMS, default=list(ITEMS), help='these parts alone')
    parser.add_argument('--architecture', default='resnet50', help='default: %(default)s, with 28x28 maps')
    parser.add_argument('--crop_size', type=command_line.COUNT, default=224,
                        help='of the images (default: %(default)s)')
    parser.add_argument('--rounds', type=command_line.COUNT, default=3,
                        help='beside one that warms up (default: %(default)s)')
    parser.add_argument('--cub_root', help="a folder of CUB_200_2011's annotations: measure cue localization on its "
                        'test images too, noise where photos are missing')
    parser.add_argument('--cub_images', type=command_line.COUNT, default=8,
                        help='how many of them (default: %(default)s)')
    parser.add_argument('--device', default='auto', choices=['auto', 'cuda', 'cpu'])
    parser.add_argument('--json', help='write all figures there')
    parser.add_argument('--plot', help='draw the ratios there')
    return parser


def main():
    args = make_parser().parse_args()
    bench = Bench(args.architecture, args.crop_size, util.pick_device(args.device), args.rounds, args.cub_root,
                  args.cub_images)
    screen.say(f'{args.architecture}, {args.crop_size}x{args.crop_size} pixels, {bench.device.type}, '
             f'{util.usable_cores()} cores, torch {torch.__version__}; auto is {bench.precisions[bench.best]}')
    measured, compared = {}, {}
    for name in args.only:
        for entry in ITEMS[name](bench):
            found, said = bench.measure(entry)
            measured[entry.name] = entry.unit, found
            screen.say('  '.join(row(entry.name, entry.unit, found)))
            if said:
                compared[entry.name] = said
                screen.say('    ' + said)
    header = ['per image', 'the plain way', 'float32: times less', 'auto: times less', 'over the floor']
    screen.say('\n' + screen.table(header, [row(name, *own) for name, own in measured.items()]))
    projected = {}
    if 'cue_localization' in args.only:
        projected = project_on_cub({name: own for name, (_, own) in measured.items()})
        screen.say(f'\ncue localization on CUB, {CUB.images} images and {CUB.evaluations} evaluations, from what '
                 'an image and a pair cost here: '
                 + ', '.join(f'{way} {projected[way]:.0f} s' for way in sorted(projected)))
    if args.json:
        named = {name: {'unit': unit, **own} for name, (unit, own) in measured.items()}
        whole_files.write_json(args.json, {'settings': vars(args), 'cue_localization_on_cub': projected,
                                           'compared': compared, 'figures': named})
    if args.plot:
        figures.save(ratios_figure(measured), Path(args.plot))


if __name__ == '__main__':
    screen.run(main)
