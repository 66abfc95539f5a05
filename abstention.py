"""What a map gains by abstaining: PxAP while more and more of its lowest pixels are dropped.

With logarithmic thresholds the published cue localization leaves a score below the lowest threshold out of every count.
So a map that gives many pixels a score of nearly zero is measured on the others alone. Here any map does so: the lowest
percentage of its pixels gets the score 0. Each experiment is measured at each percentage by eval_cue_location.py, with
logarithmic thresholds, and no measurement is made twice. Folders of one name, as of networks trained with several
seeds, are one line: the mean, and in the table the standard deviation.
Result: <output>/abstention.txt, the table, and abstention.png: the share of dropped pixels against PxAP, as the
published code counts and with all pixels counted.

    python abstention.py save/demo/CAM save/demo/CALM_EM --drop=0,20,50,80 --processes=vanilla,jointll,saliency
"""
from pathlib import Path

import numpy as np

import config
import evaluation
import experiments
import figures
import util
from util import UserError
from wsol import HEADS
from wsol.query import PROCESSES


def make_parser():
    parser = config.plain_parser(__doc__)
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help="an experiment's folder, as save/calm_em")
    parser.add_argument('--drop', default=(0.0, 20.0, 50.0, 80.0), metavar='PERCENT,...',
                        type=config.several(config.number(float, 0, True, 100)),
                        help='percentages of the pixels (default: 0,20,50,80)')
    parser.add_argument('--processes', metavar='PROCESS,...',
                        type=config.several(config.choice((*PROCESSES, config.OBJECT_MASK))),
                        help='attribution methods, each measured where a network has it (default: the own of each)')
    parser.add_argument('--output', default='abstention', metavar='FOLDER', help='where to (default: abstention)')
    return parser


def methods_of(folder, processes):
    """The attribution methods to measure an experiment by. Raises UserError where it is no finished training."""
    method = evaluation.read_result(folder / 'results.json').get('settings', {}).get('attribution_method')
    if method not in HEADS:
        raise UserError(f'{folder} holds no finished training; name experiments as they lie, such as save/calm_em')
    head = HEADS[method]
    return [process for process in processes or [head.own_maps]
            if process == config.OBJECT_MASK or issubclass(head, PROCESSES[process].head)]


def measure(folder, process, percent, flags):
    """(share of dropped pixels, PxAP published, PxAP of all pixels) of an experiment, in percent."""
    settings = {'drop_lowest': percent, 'threshold_type': 'log'}
    found = experiments.measure(folder.parent, folder.name, 'cue_location', process, f'--drop_lowest={percent:g}',
                                '--threshold_type=log', *flags, **settings)
    pxap = found['pxap']['parts']['per_pair']
    return found['dropped']['parts']['all'], pxap['dropped']['mean'], pxap['counted']['mean']


def table_rows(name, percents, points):
    """The lines of one method. points: (networks, percentages, 3)."""
    spread = points.std(0, ddof=1) if len(points) > 1 else np.full(points.shape[1:], np.nan)
    return [[name, f'{percent:g} %', *(f'{mean:.1f}' if np.isnan(own) else f'{mean:.1f} ± {own:.1f}'
                                       for mean, own in zip(means, deviations, strict=True))]
            for percent, means, deviations in zip(percents, points.mean(0), spread, strict=True)]


def main():
    args, flags = make_parser().parse_known_args()
    config.parse('eval_cue_location', argv=flags)  # a mistake in them is known before the first measurement
    percents, networks = sorted(set(args.drop)), {}
    for folder in map(Path, args.folders):
        for process in methods_of(folder, args.processes):
            name = f'{folder.name}, {process}' if args.processes else folder.name
            networks.setdefault(name, []).append((folder, process))
    curves, rows = {}, []
    for name, own in networks.items():
        points = np.array([[measure(*one, percent, flags) for percent in percents] for one in own])
        curves[name] = points.mean(0).T
        rows += table_rows(name, percents, points)
    text = util.table(['', 'lowest set to 0', 'dropped, %', 'PxAP, dropped not counted', 'PxAP, all counted'], rows)
    folder = Path(args.output)
    util.write_lines(folder / 'abstention.txt', [text])
    figures.save(figures.abstention_curves('What dropping pixels does to PxAP', curves), folder / 'abstention.png')
    util.say('\nCue localization, nearest part point, each pair alone, logarithmic thresholds, mean over the pairs.\n\n'
             f'{text}\n\n{folder / "abstention.txt"}, {folder / "abstention.png"}')


if __name__ == '__main__':
    util.run(main)
