"""What a map gains by abstaining: PxAP while more and more of its lowest pixels are dropped.

With logarithmic thresholds the published cue localization leaves a score below the lowest threshold out of every count.
So a map that gives many pixels a score of nearly zero is measured on the others alone. Here any map does so: the lowest
percentage of its pixels gets the score 0. Each experiment is measured at each percentage by eval_cue_location.py, with
logarithmic thresholds, and no measurement is made twice.
Result: <output>/abstention.txt, the table, and abstention.png: the share of dropped pixels against PxAP, as the
published code counts and with all pixels counted.

    python abstention.py save/demo/CAM save/demo/CALM_EM --drop=0,20,50,80
"""
from pathlib import Path

import config
import evaluation
import experiments
import figures
import util
from util import UserError
from wsol import HEADS


def make_parser():
    parser = config.plain_parser(__doc__)
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help="an experiment's folder, as save/calm_em")
    parser.add_argument('--drop', default=(0.0, 20.0, 50.0, 80.0), metavar='PERCENT,...',
                        type=config.several(config.number(float, 0, True, 100)),
                        help='percentages of the pixels (default: 0,20,50,80)')
    parser.add_argument('--output', default='abstention', metavar='FOLDER', help='where to (default: abstention)')
    return parser


def measure(folder, percent, flags):
    """(share of dropped pixels, PxAP published, PxAP of all pixels) of an experiment, in percent."""
    trained = evaluation.read_result(folder / 'results.json')
    method = trained.get('settings', {}).get('attribution_method')
    if method not in HEADS:
        raise UserError(f'{folder} holds no finished training; name experiments as they lie, such as save/calm_em')
    settings = {'drop_lowest': percent, 'threshold_type': 'log'}
    found = experiments.measure(folder.parent, folder.name, 'cue_location', HEADS[method].own_maps,
                                f'--drop_lowest={percent:g}', '--threshold_type=log', *flags, **settings)
    pxap = found['pxap']['parts']['per_pair']
    return found['dropped']['parts']['all'], pxap['dropped']['mean'], pxap['counted']['mean']


def main():
    args, flags = make_parser().parse_known_args()
    config.parse('eval_cue_location', argv=flags)  # a mistake in them is known before the first measurement
    curves, rows = {}, []
    for folder in map(Path, args.folders):
        points = [measure(folder, percent, flags) for percent in sorted(set(args.drop))]
        curves[folder.name] = tuple(zip(*points, strict=True))
        rows += [[folder.name, f'{percent:g} %', *point]
                 for percent, point in zip(sorted(set(args.drop)), points, strict=True)]
    text = util.table(['', 'lowest set to 0', 'dropped, %', 'PxAP, dropped not counted', 'PxAP, all counted'], rows)
    folder = Path(args.output)
    util.write_lines(folder / 'abstention.txt', [text])
    figures.save(figures.abstention_curves('What dropping pixels does to PxAP', curves), folder / 'abstention.png')
    util.say('\nCue localization, nearest part point, each pair alone, logarithmic thresholds, mean over the pairs.\n\n'
             f'{text}\n\n{folder / "abstention.txt"}, {folder / "abstention.png"}')


if __name__ == '__main__':
    util.run(main)
