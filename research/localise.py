"""What makes CALM localise on painted birds? One change at a time, and then what helped, together.

All rows fine-tune one CAM classifier, of the same seed and the same stages, for 8 epochs. The columns are PxAP in
percent against the exact part masks, the mean over the class pairs, each alone, all pixels counted. The score of a
pixel is its rank in its map, so that no method's scale decides. CAM's log-odds is its difference of maps, A - B. A row
reaches the goal where one of its contrasts of classes is above CAM's A - B, its own prior and the controls, each beyond
the 95 % interval (Student's t over the seeds, paired), at no more than 2 points of accuracy less than CAM.
Result: save/localise/table.txt. What is done already is not run again; what was trained with
other settings is refused.

    python -m research.localise --seeds=3
    python -m research.localise --seeds=1 --rows CALM_EM "CALM_EM, entropy -1"
"""
from pathlib import Path

import numpy as np

from experiment import result_files
from reports import table_files
from reports.table_files import Cell
from research import commands
from research.commands import PRECISION
from runtime import command_line, screen, whole_files
from wsol import metrics

FOLDER = Path('save/localise')
EPOCHS = 8  # of fine-tuning: fewer than the ablation's, for there are many rows
CALM = ('CALM_EM', 'layer2', '--prior=softplus')
FROZEN = ('--freeze', '--lr=0.01')  # a head alone may learn faster
SPREAD = (*FROZEN, '--prior_training=entropy:-1')
ROWS = {  # name -> method, last stage, further flags; the first is what the others are compared with
    'CAM': ('CAM', 'layer2'),
    'CALM_EM': CALM,
    **{f'CALM_EM, entropy {weight}': (*CALM, f'--prior_training=entropy:{weight}') for weight in (0.1, -0.1, -1)},
    'CALM_EM, frozen backbone': (*CALM, '--freeze'),
    'CALM_EM, frozen backbone, lr 0.01': (*CALM, *FROZEN),
    'CALM_EM, frozen backbone, lr 0.01, entropy -1': (*CALM, *SPREAD),
    'CALM_EM, frozen backbone, lr 0.01, entropy -10': (*CALM, *FROZEN, '--prior_training=entropy:-10'),
    'CAM, frozen backbone, lr 0.01': ('CAM', 'layer2', *FROZEN),
    'CAM, layer1': ('CAM', 'layer1'),
    'CALM_EM, layer1': ('CALM_EM', 'layer1', '--prior=softplus'),
    # and with what helped at layer2
    'CALM_EM, layer1, frozen backbone, lr 0.01, entropy -1': ('CALM_EM', 'layer1', '--prior=softplus', *SPREAD),
}
CONTRASTS = ('joint-difference', 'prior-log-odds', 'log-odds')
COLUMNS = ('accuracy', *CONTRASTS, 'prior')
A_B = COLUMNS.index('log-odds')  # for CAM
CONTROLS = {"the bird's mask": 'object_mask', 'random maps': 'random'}
ACCURACY_LOSS = 2  # points


def pxap(folder, name, flag, methods):
    """PxAP of an experiment's maps by several methods, measured in one pass. flag: score_map_process or
    contrast_method, whose values they are."""
    scale = [PRECISION, '--norm_type=rank', '--threshold_type=even']

    def results():
        return [commands.result(folder / name, 'cue_location', None, *scale, **{flag: method}) for method in methods]
    found = commands.found_or_run(results, folder, 'eval_cue_location.py', f'--experiment_name={name}', *scale,
                                     f'--{flag}={",".join(methods)}')
    return [own['pxap']['exact']['per pair, all pixels']['mean'] for own in found]


def measure(seed, row, method, stage, *flags):
    """Train and evaluate one row with one seed. Returns its COLUMNS, NaN where the method has none."""
    folder = FOLDER / f'seed{seed}'
    name = commands.train_row(folder, row, seed, method, stage, True, f'--epochs={EPOCHS}', *flags)
    contrasts = [contrast for contrast in CONTRASTS if method != 'CAM' or contrast == 'log-odds']
    found = dict(zip(contrasts, pxap(folder, name, 'contrast_method', contrasts), strict=True))
    if method != 'CAM':
        found['prior'], = pxap(folder, name, 'score_map_process', ['saliency'])
    found['accuracy'] = result_files.read_result(folder / name / 'results.json')['test_accuracy']
    return [found.get(column, np.nan) for column in COLUMNS]


def mean_and_interval(values):
    """(mean, low, high), 95 % by Student's t. values: (S,). One value has no interval."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, None, None
    half = metrics.half_width([(np.var(values, ddof=1) / len(values), len(values) - 1)]) or 0.0
    return mean, mean - half, mean + half


def less_cam(values, row):
    """(S,5): a row's columns less CAM's accuracy and, of all maps, less CAM's A - B, seed by seed. values: {row:
    (S,5)}."""
    own, cam = values[row], values['CAM'][:len(values[row])]
    return own - cam[:, [0, *[A_B] * (len(COLUMNS) - 1)]]


def verdict(values, controls):
    """One sentence: which contrasts of CALM reach the goal, or which comes nearest. values: {row: (S,5)}; controls:
    {name: PxAP}."""
    found = []
    for row in values:
        gains = less_cam(values, row)
        for column, contrast in enumerate(CONTRASTS, 1):
            own = values[row][:, column]
            if ROWS[row][0] == 'CAM':
                continue
            against = [gains[:, column], own - values[row][:, -1], *(own - control for control in controls.values())]
            intervals = [mean_and_interval(gain) for gain in against]
            is_reached = gains[:, 0].mean() >= -ACCURACY_LOSS and all(low is not None and low > 0
                                                                      for _, low, _ in intervals)
            found.append((is_reached, intervals[0], f'{row}, {contrast}'))
    reached = [name for is_reached, _, name in found if is_reached]
    if reached:
        return f'Of {len(found)} maps of CALM these reach the goal: {"; ".join(reached)}.'
    if not found:
        return ''
    _, interval, name = max(found, key=lambda entry: entry[1][0])
    return (f"Of {len(found)} maps of CALM none reaches the goal. Highest against CAM's A - B is {name}: "
            f'{Cell(*interval, 1, "+")}.')


def report(values, controls):
    """The tables and the verdict as text. values: {row: (S,5)}."""
    own = [[row, str(len(array)), *map(table_files.mean_and_deviation, array.T)] for row, array in values.items()]
    compared = [[row, str(len(values[row])), *(str(Cell(*mean_and_interval(column), 1, '+')) for column in less_cam(
        values, row).T)] for row in values if row != 'CAM']
    parts = ['Mean ± standard deviation over the seeds', screen.table(['', 'seeds', *COLUMNS], own),
             f'Controls: {", ".join(f"{name} {value:.1f}" for name, value in controls.items())}.']
    if compared:
        parts += ["Less CAM's accuracy and CAM's A - B (its log-odds), with 95 % intervals over the seeds",
                  screen.table(['', 'seeds', *COLUMNS], compared), verdict(values, controls)]
    return '\n\n'.join(part for part in parts if part)


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('--seeds', type=command_line.COUNT, default=3, metavar='N', help='number of seeds (default: 3)')
    parser.add_argument('--rows', nargs='+', type=command_line.choice(tuple(ROWS)), default=tuple(ROWS), metavar='ROW',
                        help=f'measure CAM and these rows only, of: {"; ".join(ROWS)}')
    return parser


def main():
    args = make_parser().parse_args()
    values, controls = {}, {}
    for seed in range(args.seeds):
        for row in dict.fromkeys(['CAM', *args.rows]):
            own = np.array([measure(seed, row, *ROWS[row])], float)
            values[row] = np.concatenate([values[row], own]) if row in values else own
            if not controls:  # which know no network: those of the first one serve all
                measured = pxap(FOLDER / 'seed0', row, 'score_map_process', list(CONTROLS.values()))
                controls = dict(zip(CONTROLS, measured, strict=True))
            whole_files.write_lines(FOLDER / 'table.txt', [report(values, controls)])
    screen.say(f'\n{report(values, controls)}\n\n{FOLDER / "table.txt"}')


if __name__ == '__main__':
    screen.run(main)
