"""What makes CALM localise on painted birds? A table of networks that differ in one setting, over several seeds.

The rows change: the prior (ReLU with its sum detached, as released, or softplus with its gradient), EM or marginal
likelihood, the start (random weights or a CAM classifier), the length of the training, the stage at which ResNet-18
ends (receptive field 43, 99 or, at layer4, 339 of 112 pixels), a frozen backbone, and the entropy of the prior.
The columns are the accuracy and, for the head's own method and for CALM's prior, PxAP in percent against the exact part
masks, counted `per pair, all pixels`, for pairs with 1, 2 and 3 differing parts.
Flags of main.py may follow, such as --epochs=8: the fine-tuned networks get them.
Result: <save_root>/table.txt. With all rows a seed takes one to two hours on 2 cores. What is finished is not run
again; a network that was trained with other settings is refused.

    python -m research.ablation 3
    python -m research.ablation 1 --rows CAM "CALM_EM, relu"
"""
from pathlib import Path

import numpy as np

from experiment import result_files
from reports import table_files
from reports.columns import COMPARED
from research import commands
from research.commands import FINE_TUNE, FROM_RANDOM, PRECISION
from runtime import command_line, screen, whole_files

ROWS = ('CAM', 'CALM_EM, softplus', 'CALM_ML, softplus', 'CALM_EM, relu', 'CALM_ML, relu',
        'CAM from random weights', 'CALM_EM, softplus, from random weights', 'CALM_EM, relu, from random weights',
        'CALM_ML, relu, from random weights', 'CAM, 45 epochs', 'CALM_EM, softplus, 45 epochs',
        'CAM, layer1', 'CALM_EM, softplus, layer1', 'CAM, layer4', 'CALM_EM, softplus, layer4',
        'CALM_EM, softplus, entropy 0.1', 'CALM_EM, softplus, entropy -0.1', 'CALM_EM, softplus, entropy -1',
        'CALM_EM, softplus, frozen', 'CAM, frozen, lr 0.01', 'CALM_EM, softplus, frozen, lr 0.01',
        'CALM_EM, softplus, frozen, lr 0.01, entropy -1', 'CALM_EM, softplus, frozen, lr 0.01, entropy -10',
        'CALM_EM, softplus, layer1, frozen, lr 0.01, entropy -1')
FLAGS = {'softplus': '--prior=softplus', '45 epochs': '--epochs=45', 'frozen': '--freeze',
         'lr 0.01': '--lr=0.01',  # a head alone may learn faster
         **{f'entropy {weight}': f'--prior_training=entropy:{weight}' for weight in (0.1, -0.1, -1, -10)}}
HEADER = ('', 'accuracy', 'maps: PxAP 1', '2', '3', 'prior: PxAP 1', '2', '3')
CHOSEN = ('experiment_name', 'save_root', 'seed', 'attribution_method', 'load_checkpoint', 'last_stage', 'prior',
          'dataset')


def train(folder, row, seed, *flags):
    """Train the network of a row below folder: fine-tuned from a CAM classifier of the same seed and last stage, or
    from random weights for as many epochs as both together. Returns the experiment's name."""
    head, *words = row.split(', ')
    last_stage = next((word for word in words if word.startswith('layer')), 'layer2')
    more = [FLAGS[word] for word in words if word in FLAGS]
    name, start = row.replace(', ', '_').replace(' ', '_'), f'start_{last_stage}'
    common = [*commands.TRAIN, *commands.SIZES, f'--last_stage={last_stage}', f'--seed={seed}']
    if 'from random weights' not in row:
        commands.train(folder, start, *common, '--attribution_method=CAM', *FROM_RANDOM)
        learn = [*FINE_TUNE, f'--load_checkpoint={start}', *more, *flags]
    else:
        learn = [*FROM_RANDOM, '--epochs=40', *more]
    commands.train(folder, name, *common, f'--attribution_method={head.split()[0]}', *learn)
    return name


def evaluate(root, seed, row, flags, seen):
    """Train and evaluate one row with one seed. Returns its columns, NaN for the prior that CAM does not have. seen: as
    in commands.evaluate."""
    folder = root / f'seed{seed}'
    name = train(folder, row, seed, *flags)
    methods = ['vanilla'] if row.startswith('CAM') else ['jointll', 'saliency']
    results = commands.evaluate(folder, name, 'cue_location', methods, PRECISION, seen=seen)
    pxaps = [result['pxap']['exact'][COMPARED][key] for result in results for key in '123']
    accuracy = result_files.read_result(folder / name / 'results.json')['test_accuracy']
    return [accuracy, *pxaps, *[np.nan] * (6 - len(pxaps))]


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('seeds', nargs='?', type=command_line.COUNT, default=3, metavar='SEEDS',
                        help='number of seeds (default: 3)')
    parser.add_argument('--rows', nargs='+', type=command_line.choice(ROWS), default=ROWS, metavar='ROW',
                        help=f'only these rows: {"; ".join(ROWS)}')
    parser.add_argument('--save_root', default='save/ablation', metavar='FOLDER', help='default: save/ablation')
    return parser


def main():
    args, flags = make_parser().parse_known_args()
    commands.refuse_chosen(commands.parse('main', flags), CHOSEN, 'ablation')
    root, rows, seen = Path(args.save_root), [], []
    for row in args.rows:
        values = np.array([evaluate(root, seed, row, flags, seen) for seed in range(args.seeds)], float)
        rows.append([row, *map(table_files.mean_and_deviation, values.T)])
        text = screen.table(HEADER, rows)
        whole_files.write_lines(root / 'table.txt', [text])
    seeds = f'{args.seeds} seeds: mean ± standard deviation' if args.seeds > 1 else 'one seed'
    screen.say(f'\nToyBirds, ResNet-18, {seeds}. PxAP in % against the exact part\nmasks, {COMPARED}.'
               f'\n\n{text}\n\n{root / "table.txt"}')


if __name__ == '__main__':
    screen.run(main)
