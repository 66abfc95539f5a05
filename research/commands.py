"""Experiments as a user runs them: the project's own commands, printed, and not run again where they are done.

The settings on painted birds, which demo.py, ablation.py, localise.py and reproduce.py share: all networks are alike,
ResNet-18, started from one CAM classifier, as the paper's networks start from an ImageNet classifier.
"""
from pathlib import Path

import torch
from munch import Munch

import config
import util
from experiment import result_files
from runtime import processes, screen
from wsol.errors import UserError

ROOT = Path(__file__).resolve().parents[1]  # where the scripts are

CROP_SIZE = 112
PRECISION = '--precision=' + ('bfloat16' if util.computes_in_bfloat16(torch.device('cpu')) else 'float32')
TRAIN = ['--dataset=ToyBirds', f'--crop_size={CROP_SIZE}', '--resize_size=128', '--architecture=resnet18',
         '--pretrained=False', '--batch_size=32', '--lr_schedule=one_cycle', PRECISION]
FROM_RANDOM = ['--epochs=25', '--lr=0.02']
FINE_TUNE = ['--is_different_checkpoint', '--epochs=15', '--lr=0.001']  # with --load_checkpoint


def run(folder, script, *flags):
    """Run one of the project's scripts as a user would, and show how."""
    command = [script, *flags, f'--save_root={folder}']
    screen.say('\n$ python ' + ' '.join(command))
    code = processes.call([ROOT / script, *command[1:]])
    if code:
        raise UserError(f'{script} ended with exit code {code}; see above')


def is_trained(folder, experiment):
    """Whether a training has come to its end."""
    return (folder / experiment / 'results.json').is_file()


def changed_settings(folder, experiment, *flags):
    """What a finished training had otherwise than these flags of main.py would have it: ['epochs was 1, is 40']. Raises
    UserError where its result cannot be read."""
    path = folder / experiment / 'results.json'
    settings = result_files.read_result(path)['settings']
    if not settings:
        raise UserError(f'{path} does not say how it was trained. Move the folder {path.parent} away, and it is '
                        'trained again')
    before = Munch({name: flag.default for name, flag in config.ALL_FLAGS.items()} | settings)
    now = config.parse('main', argv=list(flags))
    now.precision = before.precision if 'precision' not in now.given else util.pick_precision(
        now.precision, util.pick_device(now.device), auto='bfloat16')
    changed = config.changed_settings(now, before | config.network_settings(before))
    return changed + [f'epochs was {before.epochs}, is {now.epochs}'] * (before.epochs != now.epochs)


def train(folder, experiment, *flags):
    """Train an experiment below folder, or go on with it, unless it is done. Raises UserError where it is done with
    other settings: its figures would pass for those that are asked for."""
    if not is_trained(folder, experiment):
        run(folder, 'main.py', f'--experiment_name={experiment}', *flags)
        return
    # PRECISION is the machine's, and no wish: what another machine has trained is not trained again for it
    changed = changed_settings(folder, experiment, *(flag for flag in flags if flag != PRECISION))
    if changed:
        raise UserError(f'{folder / experiment} was trained with other settings ({"; ".join(changed)}). Move that '
                        'folder away, and those of networks that started from it: they are trained again')


def train_row(folder, row, seed, method, last_stage, from_cam, *flags):
    """Train a row of a table of painted birds, which is a network, below folder: fine-tuned from a CAM classifier of
    the same seed and last stage, or from random weights for as long as both together. Returns the experiment's name."""
    name = row.replace(', ', '_').replace(' ', '_')
    common = [*TRAIN, f'--last_stage={last_stage}', f'--seed={seed}']
    if from_cam:
        start = f'start_{last_stage}'
        train(folder, start, *common, '--attribution_method=CAM', *FROM_RANDOM)
        learn = [*FINE_TUNE, f'--load_checkpoint={start}']
    else:
        learn = [*FROM_RANDOM, '--epochs=40']  # as long as the start and the fine-tuning together
    train(folder, name, *common, f'--attribution_method={method}', *learn, *flags)
    return name


def stated_settings(script, flags):
    """{name: value} of the flags by which a result is told from others, as it records them. Raises UserError for a
    mistake in them."""
    args = config.parse(script, argv=list(flags))
    told_apart = {'crop_size', *config.usual_settings(script)} & set(args.given)
    settings = {name: args[name] for name in args.given if name in told_apart}
    settings = {name: value[0] if script in config.ALL_FLAGS[name].several and len(value) == 1 else value
                for name, value in settings.items()}
    if 'precision' in settings:
        settings['precision'] = util.pick_precision(args.precision, util.pick_device(args.device), auto='float32')
    return settings


def result(folder, metric, process, *flags, trained=None, **settings):
    """What an evaluation measured, with these flags, of the network that an experiment has trained. trained: the result
    of that training, as it is in its folder. settings: more of what it was measured with; where they name other data,
    its images are not those of the training. Raises UserError where it has not."""
    trained = trained or result_files.read_result(folder / 'results.json')
    known = {name: value for name, value in trained['settings'].items() if name == 'crop_size'}
    settings = known | stated_settings(f'eval_{metric}', flags) | settings
    images = None if {'dataset', 'data_root', 'metadata_root', 'skip_broken'} & set(settings) else trained.get(
        'images_sha256')
    return result_files.find_result(folder, metric, process, trained.get('weights_sha256'), images, **settings)


def measure(folder, experiment, metric, process, *flags):
    """The result of an evaluation of an experiment below folder, measured now unless that is done."""
    return found_or_run(lambda: result(folder / experiment, metric, process, *flags), folder, f'eval_{metric}.py',
                        f'--experiment_name={experiment}', f'--score_map_process={process}', *flags)


def found_or_run(results, folder, script, *flags):
    """What results() finds, after a script has run where it finds nothing and raises UserError."""
    try:
        return results()
    except UserError:
        run(folder, script, *flags)
    return results()
