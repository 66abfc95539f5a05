"""How fast the project is: each item beside the plain way to compute it and, where there is one, beside a floor.

The plain ways are those of the published code (research/plain_ways.py). All ways of an item take turns, round by
round, so that other work on the machine slows all of them. A ratio is the median over the rounds; the lowest and the
highest follow in parentheses. Networks have random weights and images are noise: no data is needed.
The floor is the least possible work: the backbone alone, or eleven forwards. Memory is the most that tensors take at
once, beside the network and its inputs.
--gpu measures at the published sizes, and says what keeps the GPU from computing.

    python -m research.bench
    python -m research.bench --all --json=save/bench.json
    python -m research.bench --gpu --cub=data/CUB/CUB_200_2011
"""
import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

import util
from research import profiles
from research.bench_items import ITEMS
from runtime import command_line, screen, whole_files
from wsol import build_model
from wsol.errors import UserError

HEADER = ['per image', 'the plain way', 'times faster, float32', 'times faster, bfloat16', 'over the floor',
          'MiB, the plain way', 'MiB, ours']
PROFILE_HEADER = ['of one call', 'images/s', 'started', 'waits', 'copies', 'GPU idle, %', 'peak, MiB']


@dataclass
class Bench:
    """The networks whose speed is measured, and their inputs."""
    architecture: str
    size: int              # pixels of a side of the images
    device: torch.device
    rounds: int = 2
    all: bool = False
    batch: int = 8
    gpu: bool = False
    cub: str | None = None

    def __post_init__(self):
        util.try_algorithms(self.device)
        self.precisions = {'float32': 'float32'}
        if self.gpu and self.device.type == 'cuda':
            self.precisions['tf32'] = 'tf32'
        if util.computes_in_bfloat16(self.device):
            self.precisions['auto'] = 'bfloat16'
        self.best = list(self.precisions)[-1]

    def sizes(self, *usual, more=()):
        """(images, classes) of an item's rows: the usual ones, with --all some more, with --gpu the published ones."""
        return [(self.batch, 200), (self.batch, 1000)] if self.gpu else usual + more * self.all

    def network(self, num_classes=200, plain=False):
        """In eval mode. plain: in torch's default memory layout."""
        torch.manual_seed(0)
        large = {'large_feature_map': True} if self.architecture.startswith('resnet') else {}
        model = build_model(self.architecture, 'CALM_EM', num_classes, **large).to(self.device)
        for module in model.modules():  # statistics that fit the weights; otherwise numbers grow from layer to layer
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.randn(4, 3, self.size, self.size, device=self.device))
        return model.eval() if plain else model.eval().to(memory_format=util.memory_format(self.device))

    def images(self, count, plain=False):
        images = torch.randn(count, 3, self.size, self.size, generator=torch.Generator().manual_seed(1))
        return images.to(self.device) if plain else util.to_device(images, self.device)

    def labels(self, count, num_classes=200):
        return torch.arange(count, device=self.device) % num_classes

    def casting(self, way):
        return util.autocast(self.precisions.get(way, 'float32'), self.device)

    def measure(self, entry):
        """{way: milliseconds per image (rounds,)} of an Item, {way: Profile}, and in words how far its results differ.
        Rounds before the timed ones warm up: on a GPU one searches for algorithms. The last of them is profiled."""
        times, profiled, results = {way: [] for way in entry.ways}, {}, {}
        untimed = 2 if self.device.type == 'cuda' else 1
        for number in range(untimed + self.rounds):
            for way, call in entry.ways.items():
                self.casting(way)  # a plain way that casts nothing computes in float32 too
                if number == untimed - 1:
                    profiled[way] = profiles.profile(call, self.device)
                    continue
                start = time.perf_counter()
                results[way] = call()
                if self.device.type == 'cuda':
                    torch.cuda.synchronize()
                times[way] += [1000 * (time.perf_counter() - start) / entry.count] * (number >= untimed)
        return times, profiled, entry.compare(results)


def ratio(numerators, denominators):
    """'2.00 (1.50 .. 2.50)': the median, the lowest and the highest of the rounds' ratios."""
    values = [numerator / denominator for numerator, denominator in zip(numerators, denominators, strict=True)]
    return f'{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})'


def row(name, times, profiled):
    """A row of the table: the plain way's time, how many times faster ours is, our time over the floor's, memory."""
    plain, best = statistics.median(times['plain']), 'auto' if 'auto' in times else 'float32'
    pairs = (('plain', 'float32'), ('plain', 'auto'), (best, 'floor'))
    return [name, f'{plain:.{1 if plain >= 1 else 2}f} ms', *(
        ratio(times[way], times[reference]) if {way, reference} <= times.keys() else '-' for way, reference in pairs),
        *(profiled[way].peak for way in ('plain', best))]


def profile_rows(name, times, profiled, count):
    """A row for each way of an Item of `count` images, under PROFILE_HEADER."""
    for way, (started, waits, copies, busy, peak) in profiled.items():
        per_image = statistics.median(times[way])
        idle = None if busy is None else max(0.0, 100 - 100 * busy / (count * per_image))
        yield [f'{name}: {way}', round(1000 / per_image), started, waits, copies, idle, peak]


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('--all', action='store_true', help='more batch sizes and numbers of classes')
    parser.add_argument('--gpu', action='store_true', help='the published sizes, and a profile of each way')
    parser.add_argument('--cub', metavar='FOLDER', help='take cue localization\'s annotations from this CUB_200_2011')
    parser.add_argument('--only', nargs='+', choices=ITEMS, default=list(ITEMS), help='only these parts')
    parser.add_argument('--architecture', default='resnet50', help='default: %(default)s, with 28x28 maps')
    parser.add_argument('--crop_size', type=command_line.COUNT, default=224, help='default: %(default)s')
    parser.add_argument('--batch_size', type=command_line.COUNT, help='size of large batches (default: 8; --gpu: 64)')
    parser.add_argument('--rounds', type=command_line.COUNT, default=2,
                        help='timed rounds, after those that warm up (default: %(default)s)')
    parser.add_argument('--device', default='auto', choices=['auto', 'cuda', 'cpu'])
    parser.add_argument('--json', metavar='FILE', help='write all times to this file')
    return parser


def main():
    args = make_parser().parse_args()
    if args.gpu and args.device != 'cpu' and not torch.cuda.is_available():
        raise UserError('--gpu: torch finds no CUDA GPU here; to try it on a CPU: --device=cpu --batch_size=2')
    bench = Bench(args.architecture, args.crop_size, util.pick_device(args.device), args.rounds, args.all,
                  args.batch_size or (64 if args.gpu else 8), args.gpu, args.cub)
    screen.say(f'{args.architecture}, {args.crop_size}x{args.crop_size} pixels, {bench.device.type}, '
               f'{util.usable_cores()} cores, torch {torch.__version__}\n')
    times, compared, rows, profiled = {}, {}, [], []
    entries = (entry for name in args.only for entry in ITEMS[name](bench))
    for entry in screen.progress(entries, 'measuring', 'item'):
        times[entry.name], of_ways, compared[entry.name] = bench.measure(entry)
        rows.append(row(entry.name, times[entry.name], of_ways))
        profiled += profile_rows(entry.name, times[entry.name], of_ways, entry.count)
    screen.say(screen.table(HEADER, rows))
    for name in filter(compared.get, compared):
        screen.say(f'{name}: {compared[name]}')
    if bench.gpu:
        screen.say('\n' + screen.table(PROFILE_HEADER, profiled))
    if args.json:
        whole_files.write_json(args.json, {'settings': vars(args), 'compared': compared, 'milliseconds': times,
                                           'profiles': profiled})


if __name__ == '__main__':
    screen.run(main)
