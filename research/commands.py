"""Experiments as a user runs them: the project's own commands, printed, and not run again once they are done.

The commands run one after another in this process, which imports torch once for all of them.
demo, ablation and reproduce share the settings for painted birds: every network is a ResNet-18 that starts from one
CAM classifier, as the paper's networks start from an ImageNet classifier.
"""
import importlib
import itertools
import shlex
import sys

import torch
from munch import Munch

import config
import util
from experiment import result_files
from experiment.settings import changed_settings, network_settings, usual_settings
from runtime import processes, screen
from wsol.attribution.contrast import CONTRASTS
from wsol.attribution.registry import METHODS
from wsol.errors import UserError

PRECISION = '--precision=' + ('bfloat16' if util.computes_in_bfloat16(torch.device('cpu')) else 'float32')
TRAIN = ['--dataset=ToyBirds', '--architecture=resnet18', '--pretrained=False', '--lr_schedule=one_cycle', PRECISION]
SIZES = ['--crop_size=112', '--resize_size=128', '--batch_size=32']
FROM_RANDOM = ['--epochs=25', '--lr=0.02']
FINE_TUNE = ['--is_different_checkpoint', '--epochs=15', '--lr=0.001']  # with --load_checkpoint


def parse(script, flags):
    """The flags that one of the project's scripts reads. Raises UserError for a mistake in them."""
    return config.parse(importlib.import_module(script).make_parser(), list(flags))


def run(folder, script, *flags):
    """Print a command of the project, and do what it does."""
    if processes.size() > 1:
        raise UserError('this script runs others one after another: start it without torchrun')
    command = [f'{script}.py', *flags, f'--save_root={folder}']
    screen.say('\n$ python ' + shlex.join(command))
    before, sys.argv = sys.argv, command
    try:
        importlib.import_module(script).main()
    finally:
        sys.argv = before
        processes.end_loaders()


def refuse_chosen(args, names, study):
    """Raise UserError if the command line states a flag that a study chooses itself. study: its file's name."""
    for name in names:
        if name in args.given:
            raise UserError(f'python -m research.{study} chooses --{name} itself: leave it out')


def check_unchanged(folder, experiment, flags, more=(), remedy='Move that folder away, and those of networks that '
                    'started from it, and run again: they are trained anew'):
    """Raise UserError if a finished training had other settings than these flags of main.py state, since its figures
    would be mistaken for theirs. flags: the study's. more: the user's."""
    path = folder / experiment / 'results.json'
    settings = result_files.read_result(path)['settings']
    if not settings:
        raise UserError(f'{path} does not say how it was trained. Move the folder {path.parent} away and run '
                        'again: it is trained anew')
    before = Munch({name: flag.default for name, flag in config.ALL_FLAGS.items()} | settings)
    # PRECISION depends on the machine: a network that another machine trained is not trained again
    now = parse('main', [*(flag for flag in flags if flag != PRECISION), *more])
    now.precision = before.precision if 'precision' not in now.given else util.pick_precision(
        now.precision, util.pick_device(now.device), now.batch_size // now.accumulate)
    changed = changed_settings(now, before | network_settings(before))
    changed += [f'epochs was {before.epochs}, is {now.epochs}'] * (before.epochs != now.epochs)
    if changed:
        raise UserError(f'{path.parent} was trained with other settings ({"; ".join(changed)}). {remedy}')


def train(folder, experiment, *flags):
    """Train an experiment below folder, or continue it, unless it is finished; check_unchanged if it is."""
    if (folder / experiment / 'results.json').is_file():
        check_unchanged(folder, experiment, flags)
    else:
        run(folder, 'main', f'--experiment_name={experiment}', *flags)


def stated_settings(script, flags):
    """{name: value} of the flags that distinguish results, as a result records them. Raises UserError for a mistake in
    the flags."""
    args, distinguishing = parse(script, flags), {'crop_size', *usual_settings()}
    settings = {name: args[name] for name in args.given if name in args and name in distinguishing}
    if 'precision' in settings:
        settings['precision'] = util.pick_precision(args.precision, util.pick_device(args.device))
    return settings


def flag_of(method):
    """The flag of eval_cue_location.py that names a method: a contrast of two classes, or an attribution method."""
    return 'contrast_method' if method in CONTRASTS and method not in METHODS else 'score_map_process'


def result(folder, metric, method, *flags, trained=None, **settings):
    """The result of an evaluation, with these flags, of the network that an experiment has trained. Raises UserError if
    there is none.

    trained: the result of the training (default: read from the folder). settings: further settings of the evaluation;
    if they name other data, the images may differ from those of the training.
    """
    trained = trained or result_files.read_result(folder / 'results.json')
    known = {name: value for name, value in trained['settings'].items() if name == 'crop_size'}
    settings = known | stated_settings(f'eval_{metric}', flags) | settings
    if flag_of(method) == 'contrast_method':
        method, settings['contrast_method'] = None, method
    is_other_data = {'dataset', 'data_root', 'metadata_root', 'skip_broken'} & set(settings)
    like = None if is_other_data or 'images_sha256' not in trained else trained
    return result_files.find_result(folder, metric, method, trained.get('weights_sha256'), like, **settings)


def evaluate(folder, experiment, metric, methods, *flags, seen, dropped=(0,), **settings):
    """[result of each method] of an evaluation of an experiment below folder. Missing results are computed now; cue
    localization takes all attribution methods in one pass, and all contrast methods in another.

    seen: the results that a study has read so far, to which these are added. dropped: percentages of --drop_lowest; a
    method has a result for each. settings: of `result`. Raises UserError unless all results of a metric were measured
    on the same images and truth.
    """
    def find(method, percent):
        return result(folder / experiment, metric, method, *flags, drop_lowest=percent, **settings)

    passes = {}  # the missing methods and percentages of each pass
    for method, percent in itertools.product(methods, dropped):
        try:
            find(method, percent)
        except UserError:
            names, percents = passes.setdefault(flag_of(method) if metric == 'cue_location' else method, ({}, {}))
            names[method] = percents[f'{percent:.10g}'] = None
    for names, percents in passes.values():
        drop = [f'--drop_lowest={",".join(percents)}'] if dropped != (0,) else []
        run(folder, f'eval_{metric}', f'--experiment_name={experiment}', f'--{flag_of(next(iter(names)))}='
            + ','.join(names), *drop, *flags)
    results = list(itertools.starmap(find, itertools.product(methods, dropped)))
    seen += results
    result_files.check_alike(seen)
    return results
