"""How fast the project is: each item beside the plain way to compute it and, where there is one, beside a floor.

The plain ways are those of the published code (research/plain_ways.py), captum and torchcam. All ways of an item take
turns, round by round, so that other work on the machine slows all of them. A ratio is the median over the rounds; the
lowest and the highest follow in parentheses. Networks have random weights and images are noise: no data is needed.
The floor is the least possible work: the backbone alone, or eleven forwards.
--gpu measures at the published sizes, and says what keeps the GPU from computing.

    python -m research.bench
    python -m research.bench --all --json=save/bench.json
    python -m research.bench --gpu --cub=data/CUB/CUB_200_2011
"""
import statistics
import time

import torch
from torch import nn

import util
from research import profiles
from research.bench_items import ITEMS
from runtime import command_line, screen, whole_files
from wsol import build_model
from wsol.errors import UserError
from wsol.speed.folding import fold_batchnorm

HEADER = ['per image', 'the plain way', 'times faster, float32', 'times faster, bfloat16', 'over the floor']


class Bench:
    """The networks whose speed is measured, and their inputs."""

    def __init__(self, architecture, size, device, rounds, all_items=False, batch=32, gpu=False, cub=None):
        self.architecture, self.size, self.device, self.rounds, self.all = architecture, size, device, rounds, all_items
        self.batch, self.gpu, self.cub = batch, gpu, cub
        util.try_algorithms(device)
        self.precisions = {'float32': 'float32'}
        if gpu and device.type == 'cuda':
            self.precisions['tf32'] = 'tf32'
        if util.computes_in_bfloat16(device):
            self.precisions['auto'] = 'bfloat16'
        self.best = list(self.precisions)[-1]

    def sizes(self, usual):
        """(images, classes, architecture) of each row: the usual ones, or with --gpu the published ones."""
        return [(self.batch, 200, None), (self.batch, 1000, None)] if self.gpu else usual

    def network(self, num_classes=200, folded=False, plain=False, architecture=None):
        """In eval mode. plain: in torch's default memory layout, with its BatchNorms. architecture: used instead
        of the benchmark's, with small maps."""
        torch.manual_seed(0)
        large = {'large_feature_map': True} if not architecture and self.architecture.startswith('resnet') else {}
        model = build_model(architecture or self.architecture, 'CALM_EM', num_classes, **large).to(self.device)
        for module in model.modules():  # statistics that fit the weights; otherwise numbers grow from layer to layer
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
        """{way: milliseconds per image (rounds,)} of an Item, and in words how far its results differ. The first round
        warms up and is not counted."""
        times, results = {way: [] for way in entry.ways}, {}
        for number in range(self.rounds + 1):
            for way, call in entry.ways.items():
                self.casting(way)  # a plain way that casts nothing computes in float32 too
                start = time.perf_counter()
                results[way] = call()
                if self.device.type == 'cuda':
                    torch.cuda.synchronize()
                times[way] += [1000 * (time.perf_counter() - start) / entry.count] * (number > 0)
        return times, entry.compare(results)


def ratio(numerators, denominators):
    """'2.00 (1.50 .. 2.50)': the median, the lowest and the highest of the rounds' ratios."""
    values = [numerator / denominator for numerator, denominator in zip(numerators, denominators, strict=True)]
    return f'{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})'


def row(name, times):
    """A row of the table: the plain way's time, how many times faster ours is, and our time over the floor's."""
    plain, best = statistics.median(times['plain']), 'auto' if 'auto' in times else 'float32'
    pairs = (('plain', 'float32'), ('plain', 'auto'), (best, 'floor'))
    return [name, f'{plain:.{1 if plain >= 1 else 2}f} ms', *(
        ratio(times[way], times[reference]) if {way, reference} <= times.keys() else '-' for way, reference in pairs)]


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('--all', action='store_true', help='more batch sizes, numbers of classes and methods')
    parser.add_argument('--gpu', action='store_true', help='the published sizes, and a profile of each way')
    parser.add_argument('--cub', metavar='FOLDER', help='take cue localization\'s annotations from this CUB_200_2011')
    parser.add_argument('--only', nargs='+', choices=ITEMS, default=list(ITEMS), help='only these parts')
    parser.add_argument('--architecture', default='resnet50', help='default: %(default)s, with 28x28 maps')
    parser.add_argument('--crop_size', type=command_line.COUNT, default=224, help='default: %(default)s')
    parser.add_argument('--batch_size', type=command_line.COUNT, help='size of large batches (default: 32; --gpu: 64)')
    parser.add_argument('--rounds', type=command_line.COUNT, default=2,
                        help='timed rounds, after one that warms up (default: %(default)s)')
    parser.add_argument('--device', default='auto', choices=['auto', 'cuda', 'cpu'])
    parser.add_argument('--json', metavar='FILE', help='write all times to this file')
    return parser


def profile_rows(entry, milliseconds, device):
    """Profile one call of each way of an Item, a row each. milliseconds: {way: time for an image}."""
    for way, times in milliseconds.items():
        per_image = statistics.median(times)
        values = profiles.profile(entry.ways[way], entry.count * per_image, device)
        yield [f'{entry.name}: {way}', round(1000 / per_image), *values]


def main():
    args = make_parser().parse_args()
    if args.gpu and args.device != 'cpu' and not torch.cuda.is_available():
        raise UserError('--gpu: torch finds no CUDA GPU here; to try it on a CPU: --device=cpu --batch_size=2')
    bench = Bench(args.architecture, args.crop_size, util.pick_device(args.device), args.rounds, args.all,
                  args.batch_size or (64 if args.gpu else 32), args.gpu, args.cub)
    screen.say(f'{args.architecture}, {args.crop_size}x{args.crop_size} pixels, {bench.device.type}, '
               f'{util.usable_cores()} cores, torch {torch.__version__}\n')
    measured, compared, profiled = {}, {}, []
    entries = (entry for name in args.only for entry in ITEMS[name](bench))
    for entry in screen.progress(entries, 'measuring', 'item'):
        measured[entry.name], compared[entry.name] = bench.measure(entry)
        if bench.gpu:
            profiled += profile_rows(entry, measured[entry.name], bench.device)
    screen.say(screen.table(HEADER, [row(name, times) for name, times in measured.items()]))
    for name, words in compared.items():
        if words:
            screen.say(f'{name}: {words}')
    if bench.gpu:
        screen.say('\n' + screen.table(['of one call', 'images/s', *profiles.HEADER], profiled))
    if args.json:
        whole_files.write_json(args.json, {'settings': vars(args), 'compared': compared, 'milliseconds': measured,
                                           'profiles': profiled})


if __name__ == '__main__':
    screen.run(main)
