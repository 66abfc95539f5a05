"""Random search for a training's settings: the WSOL evaluation's protocol, by Optuna.

Source: Choe et al., CVPR 2020: 30 random trials for each method, data set and network, the learning rate drawn
log-uniformly, the best on val reported on test. Every trial is an experiment of main.py below the study's folder; one
that was interrupted goes on. Flags of main.py go behind the search's own. An optional dependency: pip install optuna.
Result: save/<study>/study.db, trials.json, search.png, and the best trial as a command.

    python -m research.search --study=cub_em --trials=30 --dataset=CUB --attribution_method=CALM_EM --large_feature_map
"""
import shlex
import warnings
from pathlib import Path

from matplotlib.figure import Figure

import config
import util
from experiment import result_files
from experiment.training import DIVERGED
from reports import figures
from runtime import command_line, processes, screen, whole_files
from runtime.command_line import COUNT, POSITIVE, SEED
from wsol.errors import UserError

ROOT = Path(__file__).resolve().parents[1]  # where the scripts are

HEARTBEAT = 60  # seconds without a sign after which a trial counts as lost, and is taken up again


def make_parser():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('--study', default='search', metavar='NAME', help='folder below save_root (default: search)')
    parser.add_argument('--trials', type=COUNT, default=30, metavar='N', help='in all (default: 30)')
    parser.add_argument('--lr_low', type=POSITIVE, default=1e-4, metavar='X', help='lowest rate (default: 1e-4)')
    parser.add_argument('--lr_high', type=POSITIVE, default=1e-1, metavar='X', help='highest rate (default: 0.1)')
    parser.add_argument('--storage', default=None, metavar='URL',
                        help="any storage of Optuna's, for several machines (default: a SQLite file in the folder)")
    parser.add_argument('--search_seed', type=SEED, default=0, metavar='N', help='of the draws (default: 0)')
    return parser


def open_study(name, storage):
    """The study, new or gone on with. A trial whose process died is queued again: its experiment then goes on. Raises
    UserError."""
    try:
        import optuna
    except ImportError as error:
        raise UserError('search.py needs the package optuna: pip install optuna') from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)  # of the heartbeat

    def queue_again(study, lost):
        study.enqueue_trial(lost.params, user_attrs={'experiment': lost.user_attrs['experiment']})
    try:
        kept = optuna.storages.RDBStorage(storage, heartbeat_interval=HEARTBEAT,
                                          heartbeat_stale_trial_callback=queue_again)
        return optuna.create_study(study_name=name, storage=kept, direction='maximize', load_if_exists=True)
    except Exception as error:  # SQLAlchemy's, its drivers', Optuna's own: no address, no driver, no database
        reason = ': '.join([type(error).__name__, *str(error).splitlines()[:1]])  # some say nothing
        raise UserError(f'the study {storage} does not open ({reason}); check --storage, or move a damaged study.db '
                        'away') from error


def draw_rate(trial, args):
    """The learning rate of a trial: by its number and the seed, whichever machine draws it; of one that is queued again
    its own."""
    from optuna.samplers import RandomSampler
    trial.study.sampler = RandomSampler(seed=util.seed_of(args.search_seed, trial.number) % 2**32)
    return trial.suggest_float('lr', args.lr_low, args.lr_high, log=True)


def command_of(flags, experiment, rate):
    return ['main.py', *flags, f'--experiment_name={experiment}', f'--lr={rate:.3g}']


def run_trial(trial, args, flags, save_root):
    """Train one experiment. Returns its accuracy on val in percent, 0 of one that diverges. Raises UserError for any
    other end, and the trial is queued again, as where it is interrupted: its experiment then goes on."""
    experiment = trial.user_attrs.get('experiment', f'{args.study}/trial_{trial.number:04d}')
    trial.set_user_attr('experiment', experiment)
    rate = draw_rate(trial, args)
    command = command_of(flags, experiment, rate)
    screen.say('\n$ python ' + shlex.join(command))
    script, diverged = ROOT / command[0], Path(save_root) / experiment / DIVERGED
    diverged.unlink(missing_ok=True)
    try:
        code = processes.call([script, *command[1:]])
        if code < 0 or code in (130, 138, 143):  # a signal ended it
            raise KeyboardInterrupt
        if code and not diverged.is_file():
            raise UserError(f'main.py ended with exit code {code} and without a result; see above. The same command '
                            'goes on with this trial')
    except (KeyboardInterrupt, UserError):
        trial.study.enqueue_trial(trial.params, user_attrs={'experiment': experiment})
        raise
    if code:  # a rate at which training diverges is a finding, not a failure of the search
        return 0.0
    results = result_files.read_result(Path(save_root) / experiment / 'results.json')
    trial.set_user_attr('test_accuracy', results['test_accuracy'])
    return results['val_accuracy']


def draw(trials):
    """Accuracy on val over the learning rate."""
    figure = Figure(figsize=(5, 3.6))
    axes = figure.subplots()
    axes.plot([trial['lr'] for trial in trials], [trial['val_accuracy'] for trial in trials], 'o')
    axes.set(xscale='log', xlabel='learning rate of the backbone', ylabel='accuracy on val, %', title='Random search')
    return figure


def main():
    args, flags = make_parser().parse_known_args()
    training = config.parse('main', argv=flags)
    if {'lr', 'experiment_name', 'is_train'} & set(training.given):
        raise UserError('--lr, --experiment_name and --is_train are the search\'s: leave them out')
    if args.lr_low >= args.lr_high:
        raise UserError(f'--lr_low={args.lr_low} should be lower than --lr_high={args.lr_high}')
    folder = Path(training.save_root) / args.study
    whole_files.make_folder(folder)
    study = open_study(args.study, args.storage or f'sqlite:///{folder / "study.db"}')

    def finished():
        done = [trial for trial in study.trials if trial.state.is_finished() and trial.value is not None]
        return [{'experiment': trial.user_attrs['experiment'], 'lr': trial.params['lr'], 'val_accuracy': trial.value,
                 'test_accuracy': trial.user_attrs.get('test_accuracy')} for trial in done]

    with screen.progress(None, args.study, 'trial', total=args.trials, initial=len(finished())) as bar:
        while len(finished()) < args.trials:
            study.optimize(lambda trial: run_trial(trial, args, flags, training.save_root), n_trials=1)
            trials = sorted(finished(), key=lambda trial: -trial['val_accuracy'])
            whole_files.write_json(folder / 'trials.json', trials)
            figures.save(draw(trials), folder / 'search.png')
            bar.update()
    trials = sorted(finished(), key=lambda trial: -trial['val_accuracy'])
    rows = [[trial['experiment'], f'{trial["lr"]:.2e}', trial['val_accuracy'], trial['test_accuracy']]
            for trial in trials]
    screen.say('\n' + screen.table(['trial, best first', 'lr', 'val, %', 'test, %'], rows))
    best = trials[0]
    screen.say(f'\nthe best of {len(trials)} by val:\npython '
             + shlex.join(command_of(flags, best['experiment'], best['lr'])) + f'\n{folder / "trials.json"}')


if __name__ == '__main__':
    screen.run(main)
