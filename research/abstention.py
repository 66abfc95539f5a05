"""What a map gains by abstaining: PxAP while more and more of its lowest pixels are dropped.

With log thresholds the published cue localization counts no pixel whose score is below the lowest threshold. So a map
that gives many pixels a score near zero is evaluated on its other pixels only. Here every map does so: the given
percentage of its pixels, the lowest, gets the score 0. The study runs eval_cue_location.py for each experiment and
percentage that has no result yet; flags of eval_cue_location.py may follow. Folders of the same name, such as networks
trained with several seeds, are one row: the mean and the standard deviation. The controls random and object_mask do not
depend on the network and are evaluated with the first folder.
Result: <output>/abstention.txt, the table, and abstention.png: PxAP over the share of dropped pixels, counted per pair,
without and with the dropped pixels (`per pair` and `per pair, all pixels`).

    python -m research.abstention save/demo/CAM save/demo/CALM_EM --drop=0,20,50,80
    python -m research.abstention save/demo/CALM_EM --methods=default,saliency,log-odds,random
"""
from pathlib import Path

import numpy as np

import config
from experiment import result_files
from reports import figures, table_files
from research import commands
from runtime import command_line, screen, whole_files
from wsol import HEADS
from wsol.attribution.contrast import CONTRASTS
from wsol.attribution.registry import METHODS
from wsol.errors import UserError

DEFAULT = 'default'
CHOSEN = ('experiment_name', 'save_root', 'load_checkpoint', 'scoremap_root', 'score_map_method', 'threshold_type',
          'score_map_process', 'contrast_method', 'drop_lowest')
CONTROLS = {config.OBJECT_MASK: "control: the object's mask", 'random': 'control: random maps'}
SHOWN = ('per pair', 'per pair, all pixels')  # the two counts of PxAP that are compared
HEADER = ['', 'lowest set to 0', 'dropped, %', *(f'PxAP, {count}' for count in SHOWN)]


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help='an experiment, such as save/calm_em')
    parser.add_argument('--drop', default=(0.0, 20.0, 50.0, 80.0), metavar='PERCENT,...',
                        type=command_line.several(command_line.number(float, 0, True, 100)),
                        help='percentages of the pixels (default: 0,20,50,80)')
    names = (DEFAULT, *METHODS, *(name for name in CONTRASTS if name not in METHODS), config.OBJECT_MASK)
    parser.add_argument('--methods', metavar='METHOD,...', default=(DEFAULT,),
                        type=command_line.several(command_line.choice(names)),
                        help='attribution methods, and contrasts such as log-odds, for each network that has them; '
                        'default (taken without this flag) means vanilla for CAM and jointll for CALM')
    parser.add_argument('--output', default='abstention', metavar='FOLDER', help='default: abstention')
    return parser


def methods_of(folder, names):
    """The methods among these names that the network of an experiment defines. Raises UserError if the folder holds no
    finished training."""
    head = result_files.read_result(folder / 'results.json').get('settings', {}).get('attribution_method')
    if head not in HEADS:
        raise UserError(f'{folder} holds no finished training; name the folder of an experiment, such as save/calm_em')
    head = HEADS[head]
    names = dict.fromkeys(head.default_method if name == DEFAULT else name for name in names)
    return [name for name in names if name in CONTROLS or issubclass(head, {**CONTRASTS, **METHODS}[name].head)]


def evaluate_all(args, flags, percents):
    """{row: (networks, percentages, 3)} of all experiments. Raises UserError for a mistake in the flags."""
    given, points, seen = commands.parse('eval_cue_location', flags), {}, []
    commands.refuse_chosen(given, CHOSEN, 'abstention')
    data = {name: given[name] for name in ('dataset', 'data_root', 'metadata_root') if name in given.given}
    folders = list(dict.fromkeys(map(Path, args.folders)))
    methods = {folder: methods_of(folder, [name for name in args.methods if folder == folders[0]
                                           or name not in CONTROLS]) for folder in folders}
    if not any(methods.values()):
        raise UserError(f'no network here defines --methods={",".join(args.methods)}')
    for folder in folders:
        results = commands.evaluate(folder.parent, folder.name, 'cue_location', methods[folder], '--threshold_type=log',
                                    *flags, seen=seen, dropped=percents, **data)
        values = np.array([[result['dropped']['parts']['all'],
                            *(result['pxap']['parts'][count]['mean'] for count in SHOWN)] for result in results], float)
        values = values.reshape(-1, len(percents), len(SHOWN) + 1)
        for method, of_method in zip(methods[folder], values, strict=True):
            row = folder.name if args.methods == (DEFAULT,) else f'{folder.name}, {method}'
            points.setdefault(CONTROLS.get(method, row), []).append(of_method)
    return {row: np.stack(values) for row, values in points.items()}


def main():
    args, flags = make_parser().parse_known_args()
    percents, folder = sorted({round(percent, 6) for percent in args.drop}), Path(args.output)
    points = evaluate_all(args, flags, percents)
    rows = [[row, f'{percent:.10g} %', *map(table_files.mean_and_deviation, values[:, place].T)]
            for row, values in points.items() for place, percent in enumerate(percents)]
    text = screen.table(HEADER, rows)
    whole_files.write_lines(folder / 'abstention.txt', [text])
    curves = {row: values.mean(0).T for row, values in points.items()}
    figures.save(figures.abstention_curves('What dropping pixels does to PxAP', curves), folder / 'abstention.png')
    screen.say('\nCue localization, nearest part point, log thresholds, mean over the pairs.\n'
               'per pair leaves the dropped pixels out; per pair, all pixels counts them.\n'
               f'\n{text}\n\n{folder / "abstention.txt"}, {folder / "abstention.png"}')


if __name__ == '__main__':
    screen.run(main)
