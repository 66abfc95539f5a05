"""What a map gains by abstaining: PxAP while more and more of its lowest pixels are dropped.

With logarithmic thresholds the published cue localization leaves a score below the lowest threshold out of every count.
So a map that gives many pixels a score of nearly zero is measured on the others alone. Here any map does so: the lowest
percentage of its pixels gets the score 0. Each experiment is measured at each percentage by eval_cue_location.py, with
logarithmic thresholds, and no measurement is made twice. Folders of one name, as of networks trained with several
seeds, are one line: the mean, and in the table the standard deviation. The controls random and object_mask know no
network, and are measured with the first folder alone.
Result: <output>/abstention.txt, the table, and abstention.png: the share of dropped pixels against PxAP, as the
published code counts and with all pixels counted.

    python -m research.abstention save/demo/CAM save/demo/CALM_EM --drop=0,20,50,80 \\
        --processes=own,saliency,log-odds,random
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

OWN = 'own'
CHOSEN = ('experiment_name', 'save_root', 'load_checkpoint', 'scoremap_root', 'score_map_method', 'threshold_type',
          'score_map_process', 'contrast_method', 'drop_lowest'
          )  # flags of eval_cue_location that this script states itself, or has no use for
OF_PAIRS = {name: entry for name, entry in CONTRASTS.items() if name not in METHODS}  # one map of two classes
CONTROLS = {config.OBJECT_MASK: "control: the object's mask", 'random': 'control: random maps'}  # of no network


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help="an experiment's folder, as save/calm_em")
    parser.add_argument('--drop', default=(0.0, 20.0, 50.0, 80.0), metavar='PERCENT,...',
                        type=command_line.several(command_line.number(float, 0, True, 100)),
                        help='percentages of the pixels (default: 0,20,50,80)')
    parser.add_argument('--processes', metavar='PROCESS,...', default=(OWN,),
                        type=command_line.several(
                            command_line.choice((OWN, *METHODS, *OF_PAIRS, config.OBJECT_MASK))),
                        help='attribution methods, and contrast methods such as log-odds, each measured where a '
                        "network has it; own: the network's own, vanilla or jointll (default: own)")
    parser.add_argument('--output', default='abstention', metavar='FOLDER', help='where to (default: abstention)')
    return parser


def methods_of(folder, processes):
    """The attribution methods to measure an experiment by. Raises UserError where it is no finished training."""
    method = result_files.read_result(folder / 'results.json').get('settings', {}).get('attribution_method')
    if method not in HEADS:
        raise UserError(f'{folder} holds no finished training; name experiments as they lie, such as save/calm_em')
    head = HEADS[method]
    processes = dict.fromkeys(head.default_method if process == OWN else process for process in processes)
    needs = {name: entry.head for name, entry in (*METHODS.items(), *OF_PAIRS.items())}
    return [process for process in processes if process in CONTROLS or issubclass(head, needs[process])]


def settings_of(flags):
    """{name: value} of the flags by which a result is told from others. Raises UserError for a mistake in them."""
    args = commands.parse('eval_cue_location', flags)
    for name in CHOSEN:
        if name in args.given:
            raise UserError(f'--{name} is what abstention.py itself chooses, for each of its folders; leave it out '
                            '(--help)')
    data = {name: args[name] for name in ('dataset', 'data_root', 'metadata_root') if name in args.given}
    return commands.stated_settings('eval_cue_location', flags) | data


def measure(folder, processes, percents, flags, settings):
    """{process: (Q,3)} of an experiment, in percent: for each percentage the share of dropped pixels, PxAP published,
    and PxAP of all pixels, NaN where there is none. settings: of the flags. Percentages of which something is missing
    are measured in one pass."""
    def result(process, percent):
        map_of = (None, {'contrast_method': process}) if process in OF_PAIRS else (process, {})
        return commands.result(folder, 'cue_location', map_of[0], **map_of[1], **settings, drop_lowest=percent,
                                  threshold_type='log')

    def is_missing(percent, names):
        try:
            for process in names:
                result(process, percent)
        except UserError:
            return True
        return False
    of_pairs = [process for process in processes if process in OF_PAIRS]
    for flag, names in (('score_map_process', [process for process in processes if process not in of_pairs]),
                        ('contrast_method', of_pairs)):
        missing = [f'{percent:.10g}' for percent in percents if is_missing(percent, names)]
        if missing:
            commands.run(folder.parent, 'eval_cue_location.py', f'--experiment_name={folder.name}',
                            f'--{flag}={",".join(names)}', '--threshold_type=log',
                            f'--drop_lowest={",".join(missing)}', *flags)

    def point(own):
        pxap = own['pxap']['parts']
        return own['dropped']['parts']['all'], pxap['per pair']['mean'], pxap['per pair, all pixels']['mean']
    return {process: np.array([point(result(process, percent)) for percent in percents], float)
            for process in processes}


def table_rows(name, percents, points):
    """The lines of one method. points: (networks, percentages, 3)."""
    return [[name, f'{percent:.10g} %', *map(table_files.mean_and_deviation, own.T)]
            for percent, own in zip(percents, points.transpose(1, 0, 2), strict=True)]


def main():
    args, flags = make_parser().parse_known_args()
    settings = settings_of(flags)  # a mistake in them is known before the first measurement
    percents, points, methods = sorted({round(percent, 6) for percent in args.drop}), {}, {}
    several = len(args.processes) > 1 or OWN not in args.processes
    for place, folder in enumerate(dict.fromkeys(map(Path, args.folders))):
        methods[folder] = methods_of(folder, [name for name in args.processes if place == 0 or name not in CONTROLS])
    if not any(methods.values()):
        raise UserError(f'none of the networks has --processes={",".join(args.processes)}')
    for folder, processes in methods.items():
        for process, own in (measure(folder, processes, percents, flags, settings) if processes else {}).items():
            name = f'{folder.name}, {process}' if several else folder.name
            points.setdefault(CONTROLS.get(process, name), []).append(own)
    points = {name: np.stack(own) for name, own in points.items()}  # (networks, percentages, 3)
    curves = {name: own.mean(0).T for name, own in points.items()}
    rows = [row for name, own in points.items() for row in table_rows(name, percents, own)]
    text = screen.table(['', 'lowest set to 0', 'dropped, %', 'PxAP, dropped not counted', 'PxAP, all counted'], rows)
    folder = Path(args.output)
    whole_files.write_lines(folder / 'abstention.txt', [text])
    figures.save(figures.abstention_curves('What dropping pixels does to PxAP', curves), folder / 'abstention.png')
    screen.say('\nCue localization, nearest part point, each pair alone, logarithmic thresholds, mean over the pairs.'
               '\n\n'
             f'{text}\n\n{folder / "abstention.txt"}, {folder / "abstention.png"}')


if __name__ == '__main__':
    screen.run(main)
