"""Does bfloat16 change what is measured? The three evaluations of a network, and trainings, in both precisions.

What --precision=auto means rests on this: it trains in bfloat16, and evaluates in float32 as long as PxAP, R_k and
MaxBoxAcc differ by more than 0.05 points.
Result: tables on the screen and save/precision/, with the results of the scripts that it runs.

    python precision.py evaluations --load_checkpoint=save/demo/CALM_EM --dataset=ToyBirds --crop_size=112
    python precision.py trainings --seeds=5
"""
from pathlib import Path

import numpy as np

import config
import experiments
import flag_values
import result_files
import util
import whole_files

FOLDER = Path('save/precision')
PRECISIONS = ('float32', 'bfloat16')
SCRIPTS = {'wsol': 'eval_wsol.py', 'pixel_perturb': 'eval_pixel_perturb.py', 'cue_location': 'eval_cue_location.py'}
TRAIN = [*experiments.TRAIN, '--last_stage=layer2', '--lr=0.02', '--attribution_method=CAM']


def figures_of(metric, result):
    """{name: points} of a result."""
    if metric == 'wsol':
        return {name: own['test'] for name, own in result['results'].items() if own['test'] is not None}
    if metric == 'pixel_perturb':
        return {'accuracy': result['accuracy']} | {
            f'R_{own["erased_percent"]}': 100 * own['R'] for own in result['ratios'] if own['R'] is not None}
    return {f'PxAP, {truth}, {protocol}': by['counted']['mean'] for truth, protocols in result['pxap'].items()
            for protocol, by in protocols.items()}


def evaluations(flags, seeds):
    """Each figure in both precisions. flags: of the evaluations, which name the network and the data."""
    rows = []
    for metric, script in SCRIPTS.items():
        found = []
        for precision in PRECISIONS:
            for path in (FOLDER / precision).glob(f'{metric}_*.json'):
                path.unlink()  # of another network, perhaps
            experiments.run(FOLDER, script, *flags, f'--experiment_name={precision}', f'--precision={precision}')
            path, = (FOLDER / precision).glob(f'{metric}_*.json')
            found.append(figures_of(metric, result_files.read_result(path)))
        rows += [[name, f'{value:.2f}', f'{found[1][name]:.2f}', f'{found[1][name] - value:+.2f}']
                 for name, value in found[0].items()]
    return util.table(['points', *PRECISIONS, 'difference'], rows)


def trainings(flags, seeds):
    """The test accuracy of a network for each seed, trained and tested in either precision."""
    accuracy = np.empty((seeds, 2))
    for seed in range(seeds):
        for column, precision in enumerate(PRECISIONS):
            name = f'seed{seed}_{precision}'
            # main.py finishes at once what is done, and refuses to go on with what was done with other settings
            experiments.run(FOLDER, 'main.py', f'--experiment_name={name}', *TRAIN, f'--seed={seed}',
                            f'--precision={precision}', *flags)
            accuracy[seed, column] = result_files.read_result(FOLDER / name / 'results.json')['test_accuracy']
    rows = [[f'seed {seed}', *own.tolist()] for seed, own in enumerate(accuracy)]
    difference = accuracy[:, 1] - accuracy[:, 0]
    rows.append(['mean ± deviation', *map(util.mean_and_deviation, accuracy.T)])
    apart = util.mean_and_deviation(difference, 2, '+')
    return (util.table(['test accuracy, %', *PRECISIONS], rows)
            + f'\nbfloat16 less float32: {apart} points over the seeds')


def make_parser():
    parser = config.plain_parser(__doc__)
    parser.add_argument('what', choices=[evaluations.__name__, trainings.__name__])
    parser.add_argument('--seeds', type=flag_values.COUNT, default=5, help='of the trainings (default: %(default)s)')
    return parser


def main():
    args, flags = make_parser().parse_known_args()
    text = {'evaluations': evaluations, 'trainings': trainings}[args.what](flags, args.seeds)
    whole_files.write_lines(FOLDER / f'{args.what}.txt', [text])
    util.say(f'\n{text}\n\n{FOLDER / args.what}.txt')


if __name__ == '__main__':
    util.run(main)
