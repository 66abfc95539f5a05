"""Which settings make CALM localise on painted birds? The demo's protocol, varied, over several seeds.

Every row changes one thing: the prior (ReLU with its sum detached, as released, or softplus with its
gradient), EM or marginal likelihood, the start (random weights or a CAM classifier), the length (15 epochs or 45), the
stage at which ResNet-18 ends (receptive field 43, 99 or, at layer4, 339 of 112 pixels).
Result: save/ablation/table.txt, mean and standard deviation over the seeds. One to two hours a seed on 2 cores. What is
done already is not run again; what was trained with other settings is refused.

    python -m research.ablation 3
    python -m research.ablation 1 --rows CAM "CALM_EM, relu"
"""
from pathlib import Path

import numpy as np

from experiment import result_files
from reports import table_files
from research import commands
from research.commands import PRECISION
from runtime import command_line, screen, whole_files

FOLDER = Path('save/ablation')
ROWS = {  # name -> method, last stage, from a CAM classifier?, further flags
    'CAM': ('CAM', 'layer2', True),
    'CALM_EM, softplus': ('CALM_EM', 'layer2', True, '--prior=softplus'),
    'CALM_ML, softplus': ('CALM_ML', 'layer2', True, '--prior=softplus'),
    'CALM_EM, relu': ('CALM_EM', 'layer2', True),
    'CALM_ML, relu': ('CALM_ML', 'layer2', True),
    'CAM from random weights': ('CAM', 'layer2', False),
    'CALM_EM, softplus, from random weights': ('CALM_EM', 'layer2', False, '--prior=softplus'),
    'CALM_EM, relu, from random weights': ('CALM_EM', 'layer2', False),
    'CALM_ML, relu, from random weights': ('CALM_ML', 'layer2', False),
    'CAM, 45 epochs': ('CAM', 'layer2', True, '--epochs=45'),
    'CALM_EM, softplus, 45 epochs': ('CALM_EM', 'layer2', True, '--prior=softplus', '--epochs=45'),
    'CAM, layer1': ('CAM', 'layer1', True),
    'CALM_EM, softplus, layer1': ('CALM_EM', 'layer1', True, '--prior=softplus'),
    'CAM, layer4': ('CAM', 'layer4', True),
    'CALM_EM, softplus, layer4': ('CALM_EM', 'layer4', True, '--prior=softplus'),
}


def measure(seed, row, method, stage, from_cam, *flags):
    """Train and evaluate one row with one seed. Returns accuracy, PxAP 1, 2, 3 of its maps, and of its prior."""
    folder = FOLDER / f'seed{seed}'
    name = commands.train_row(folder, row, seed, method, stage, from_cam, *flags)
    values = [result_files.read_result(folder / name / 'results.json')['test_accuracy']]
    for process in ['vanilla'] if method == 'CAM' else ['jointll', 'saliency']:
        pxap = commands.measure(folder, name, 'cue_location', process, PRECISION)['pxap']
        values += [pxap['exact']['per pair, all pixels'][key] for key in '123']
    return values + [np.nan] * (7 - len(values))


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('seeds', nargs='?', type=command_line.COUNT, default=3, metavar='SEEDS',
                        help='number of seeds (default: 3)')
    parser.add_argument('--rows', nargs='+', type=command_line.choice(tuple(ROWS)), default=tuple(ROWS), metavar='ROW',
                        help=f'measure these rows only, of: {"; ".join(ROWS)}')
    return parser


def main():
    args = make_parser().parse_args()
    seeds, rows = range(args.seeds), []
    for name in args.rows:
        values = np.array([measure(seed, name, *ROWS[name]) for seed in seeds], float)  # (seeds,7)
        rows.append([name, *map(table_files.mean_and_deviation, values.T)])
        text = screen.table(['', 'accuracy', 'maps: PxAP 1', '2', '3', 'prior: PxAP 1', '2', '3'], rows)
        whole_files.write_lines(FOLDER / 'table.txt', [text])
    said = f'{len(seeds)} seeds: mean ± standard deviation' if len(seeds) > 1 else 'one seed'
    screen.say(f'\nToyBirds, ResNet-18, {said}. PxAP in % against the exact part\nmasks, per pair, '
             f'all pixels.\n\n{text}\n\n{FOLDER / "table.txt"}')


if __name__ == '__main__':
    screen.run(main)
