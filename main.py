"""Train a classifier with CAM or CALM, and test its accuracy.

Source: Kim et al., ICCV 2021, and its published training code.
Result: save/<experiment_name>/ with last_checkpoint.pth.tar (network, optimiser, settings; an interrupted training
resumes from it), previous_checkpoint.pth.tar, best_checkpoint.pth.tar (by accuracy on val), log.jsonl (a line per
epoch), training.png (the curves), results.json (the accuracies and the calibration error) and reliability.png.
--is_train=False tests a checkpoint and writes accuracy_<dataset>_<head>.<8 digits>.json and .png instead.

    python main.py --experiment_name=calm_em --architecture=resnet50 --attribution_method=CALM_EM \\
        --dataset=CUB --use_bn=True --large_feature_map=True
"""
import secrets
import sys
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave it out

import config
import util
from data_loaders import SeededBatches, make_loader
from dataset import open_dataset, registry
from dataset.images import warn_of_shared
from dataset.transforms import Transform, eval_transform
from evaluation import session
from experiment import checkpoint_files, frozen, result_files, training_images, weights
from experiment.settings import changed_settings, network_settings
from experiment.training import Training, classify, lr_factor, shared_loss
from reports import figures
from runtime import locks, processes, screen, whole_files
from wsol import HEADS, build_model, metrics, parameter_groups, prior_training
from wsol.backbones.resnet import check_effect
from wsol.contexts import keep_depthwise_in_float32
from wsol.errors import UserError
from wsol.heads import CALM
from wsol.networks import check_image_size, fewest_images, normalisation


def starts_from_checkpoint(args):
    """Whether a new training starts from the weights that --load_checkpoint names."""
    return args.use_load_checkpoint if 'use_load_checkpoint' in args.given else args.load_checkpoint is not None


def check_flags(args):
    """Raise UserError for flags that contradict one another."""
    check_effect(args.large_feature_map, args.last_stage)
    if args.freeze:
        frozen.check_freezable(args.architecture)
    if args.is_different_checkpoint and not starts_from_checkpoint(args):
        raise UserError('--is_different_checkpoint fine-tunes from a checkpoint: name it with --load_checkpoint')
    if args.prior_training and not issubclass(HEADS[args.attribution_method], CALM):
        raise UserError(f'{args.attribution_method} has no p(z|x), so --prior_training cannot be used: leave it out, '
                        'or choose --attribution_method=CALM_EM')


# --- the training that the experiment already holds -----------------------------------------------------


def checkpoint_to_resume(folder, args):
    """The Checkpoint of the training in an experiment's folder; None if the training starts afresh. Raises UserError
    unless all processes find the same.

    A command with --override_cache starts afresh once: if it is interrupted and repeated, it resumes.
    """
    path, checkpoint = checkpoint_files.latest(folder), None
    with suppress(UserError) if args.override_cache else nullcontext():  # a damaged one is about to be replaced
        checkpoint = path and weights.read_checkpoint(path)
    if checkpoint and args.override_cache and ((folder / 'results.json').is_file() or
                                               checkpoint.content.get('command') != result_files.command_line()):
        checkpoint = None
    found = f'{checkpoint.epoch} epochs and {checkpoint.content.get("step")} steps' if checkpoint else 'none'
    processes.check_same(found, f'find different checkpoints in {folder}: --save_root should be a folder that all '
                                'machines share')
    return checkpoint


def check_resumable(checkpoint, args):
    """Say where a training with these flags resumes from its experiment's checkpoint. Raises UserError if it cannot."""
    if not checkpoint_files.RECORD.keys() <= checkpoint.content.keys():
        raise UserError(f'{checkpoint.path} holds weights but no training to resume; choose another --experiment_name '
                        'and start from it with --load_checkpoint, or start afresh with --override_cache')
    earlier, step = checkpoint.content['args'], checkpoint.content['step']
    changed = changed_settings(args, earlier | checkpoint.network)
    if args.lr_schedule == 'one_cycle' and earlier.get('epochs') != args.epochs:
        changed.append(f'epochs was {earlier.get("epochs")}, is {args.epochs} (one_cycle plans all epochs ahead)')
    if checkpoint.epoch + (step > 0) > args.epochs:
        changed.append(f'{checkpoint.epoch} epochs are done, --epochs={args.epochs} asks for fewer')
    if changed:
        raise UserError(f'{checkpoint.path} was trained with other settings ({"; ".join(changed)}). Choose another '
                        '--experiment_name, or start afresh with --override_cache')
    version = checkpoint.content['torch']
    if version != torch.__version__:
        screen.say(f'{checkpoint.path} was trained with torch {version}, this is torch {torch.__version__}: the last '
                   'digits may differ from those of a training without a change')
    screen.say(f'{checkpoint.path} has {checkpoint.epoch} finished epochs' + (f' and {step} steps' if step else '')
               + ('; --override_cache starts afresh' if checkpoint.epoch == args.epochs else ''))


def open_settings(args, checkpoint, device):
    """{'seed', 'precision'}: as the flags say, else as in the checkpoint, else chosen by the first process."""
    earlier = checkpoint.content.get('args', {}) if checkpoint else {'seed': secrets.randbelow(2**31)}
    seed = args.seed if 'seed' in args.given else earlier.get('seed')
    precision = args.precision if 'precision' in args.given else earlier.get('precision', args.precision)
    precision = util.pick_precision(precision, device, -(-args.batch_size // (processes.size() * args.accumulate)))
    return processes.gather({'seed': seed, 'precision': precision})[0]


# --- what a training needs ------------------------------------------------------------------------------


def open_images(args, data):
    """{split: ImageDataset} of all splits. They are opened before training, so that bad test images show at once."""
    statistics = normalisation(args.architecture)
    transforms = dict.fromkeys(registry.SPLITS, eval_transform(args.crop_size, statistics))
    if not args.freeze:
        transforms['train'] = Transform(args.resize_size, args.crop_size, statistics)
    images = {split: data.open_split(split, transform, args.proxy_training_set and split == 'train', args.skip_broken,
                                     Path(args.save_root) / 'cache') for split, transform in transforms.items()}
    for split in ('val', 'test'):
        data.check_classes(split, images[split], images['train'].class_names, 'train')
    warn_of_shared(images)
    return images


def initial_network(args, data, images, checkpoint, folder, device):
    """The network on the device, with the weights of `checkpoint`, --load_checkpoint or ImageNet, or random weights.

    checkpoint: of the training to resume, or None. Raises UserError if weights, flags and class folders do not fit.
    """
    settings, source, new_classifier = network_settings(args), checkpoint, False
    if checkpoint is None and starts_from_checkpoint(args):
        path = weights.find_checkpoint(args.load_checkpoint, args.save_root, folder)
        source = weights.read_checkpoint(path, args.weights_key)
        new_classifier = args.is_different_checkpoint
    if source is None:
        model = build_model(**settings, num_classes=data.num_classes, pretrained=weights.pretrained(args))
        model = model.to(device, memory_format=util.memory_format(device))
    else:
        model = source.build(settings, data.num_classes, device, new_classifier)
        if not new_classifier:
            source.check_classes(data, 'train', images['train'])
    check_image_size(model, args.crop_size)
    if args.precision == 'bfloat16' and device.type == 'cpu' and not args.freeze:
        keep_depthwise_in_float32(model)
    return model


def make_training(args, model, images, device, folder, stop):
    """The Training that the flags ask for. model: the part that learns."""
    if args.prior_training:
        model.prior_training = prior_training.parse(args.prior_training)
    groups = parameter_groups(model, args.architecture, args.lr, args.lr_classifier_ratio, args.is_different_checkpoint)
    optimiser = torch.optim.SGD(groups, momentum=args.momentum, nesterov=args.momentum > 0,
                                weight_decay=args.weight_decay)
    factor_at = partial(lr_factor, schedule=args.lr_schedule, epochs=args.epochs,
                        decay_frequency=args.lr_decay_frequency)

    def draw(log):
        figures.save(figures.training_curves(folder.name, log), folder / 'training.png')
    network = network_settings(args) | {'num_classes': model.conv_last.out_channels}
    record = {'architecture': args.architecture, 'model': network, 'args': dict(args),
              'class_names': list(images['train'].class_names) or None, 'command': result_files.command_line(),
              'normalisation': normalisation(args.architecture), 'torch': str(torch.__version__),
              'training_images': training_images.record(images['train'])}
    # timm's networks have layers after the last map, which the loss does not use
    loss = shared_loss(model, device, some_unused=args.architecture.startswith('timm/'))
    return Training(model, loss, optimiser, factor_at, args.epochs, args.seed, device, args.precision, args.accumulate,
                    stop, folder, args.checkpoint_minutes, record, draw,
                    least=1 if args.freeze else fewest_images(model, args.crop_size))  # --freeze trains no BatchNorm


# --- what main() does -----------------------------------------------------------------------------------


def measure(model, loader_of, precision, args, result, figure, **more):
    """Show the accuracies on val and test and the calibration on test, write them to a ResultFile, with more, and draw
    the reliability plot. loader_of: split -> loader. figure: the path of the plot."""
    title, percent = f'{args.attribution_method}, {args.architecture}, {args.dataset}', {}
    for split in ('val', 'test'):
        confidence, correct = classify(model, loader_of(split), result.device, precision, split)
        percent[split] = 100 * int(correct.sum()) / len(correct)
    calibration = metrics.calibration(confidence, correct)  # from the last split, test
    screen.say(f'{title}: accuracy ' + ', '.join(f'{value:.1f} % on {split}' for split, value in percent.items())
               + f'; expected calibration error {calibration["error"]:.1f} % on test')
    if processes.is_first():
        result.write({**{f'{split}_accuracy': value for split, value in percent.items()}, 'calibration': calibration,
                      **more})
        figures.save(figures.reliability_curve(title, calibration), figure)


def test_checkpoint(args):
    """--is_train=False: test the accuracy of a checkpoint."""
    network = session.open_network(args)
    data = session.open_data(network)
    util.try_algorithms(network.device)
    images = {split: network.open_split(data, split) for split in ('val', 'test')}
    warn_of_shared(images)
    result = network.result_file('accuracy', data, images['test'], network.args.attribution_method)
    measure(network.model, lambda split: network.loader(images[split]), network.args.precision, network.args, result,
            result.figure())


def train(args, folder, device, stop):
    """Train as the flags say, resume if the experiment has a checkpoint, and test the accuracy of the network."""
    checkpoint = checkpoint_to_resume(folder, args)
    check_flags(args)
    evaluates_in = util.pick_precision(args.precision, device)
    args.update(open_settings(args, checkpoint, device))
    screen.say(f'trains in {args.precision} on {device.type}, evaluates in {evaluates_in}')
    if checkpoint:
        check_resumable(checkpoint, args)
    data = open_dataset(args.dataset, args.data_root, args.metadata_root)
    images = open_images(args, data)
    util.seed_everything(args.seed)
    model = initial_network(args, data, images, checkpoint, folder, device)
    training = make_training(args, frozen.head_of(model) if args.freeze else model, images, device, folder, stop)
    sampler = SeededBatches(len(images['train']), args.batch_size, args.seed, training.least)
    if processes.is_first():
        whole_files.check_writable(folder, training.bytes_of_checkpoint())
    if checkpoint:
        training.check_images(checkpoint)
    for split in registry.SPLITS if args.cache else ():  # this takes long, so it waits until the training can begin
        images[split].cached(Path(args.save_root) / 'cache')
    inputs, workers = images, args.workers
    if args.freeze and (checkpoint is None or checkpoint.epoch < args.epochs):  # else no epoch is left to train
        inputs, workers = frozen.extract_all(model, images, folder, args, device), 0
    training.begin(checkpoint)
    training.run({'train': make_loader(inputs['train'], args.batch_size, workers, device, sampler),
                  'val': make_loader(inputs['val'], args.batch_size, workers, device)})
    trained = weights.Checkpoint(folder / weights.FILE, {'state_dict': model.state_dict(), 'epoch': training.done})
    identity = result_files.identity('accuracy', data, 'test', images['test'], trained, dict(args))
    measure(model, lambda split: make_loader(images[split], args.batch_size, args.workers, device), evaluates_in, args,
            result_files.ResultFile(folder / 'results.json', identity, device), folder / 'reliability.png',
            processes=processes.size())


def make_parser():
    """The parser of this script's flags."""
    return config.make_parser(__doc__, *config.IMAGES, *config.TRAINING, 'cache', 'pretrained')


def main():
    args = config.parse(make_parser())
    if not args.is_train:
        return test_checkpoint(args)
    if args.fit not in (None, 'squash'):
        raise UserError(f'--fit={args.fit} is for evaluations; trainings squash whole photos, as published')
    args.fit = 'squash'
    if not args.freeze and args.crop_size > args.resize_size:
        raise UserError(f'--crop_size={args.crop_size} is larger than --resize_size={args.resize_size}')
    with processes.Stop() as stop:
        device = util.pick_device(args.device)
        util.try_algorithms(device)
        args.workers = util.pick_workers(args.workers, 'workers' in args.given)
        processes.join(device)
        folder = weights.experiment_folder(args.save_root, args.experiment_name)
        with locks.hold(folder / 'training', f'{folder} is being trained') if processes.is_first() else nullcontext():
            if processes.is_first():
                checkpoint_files.remove_abandoned(folder)
            processes.gather(None)  # the others read the folder after the first has locked it
            train(args, folder, device, stop)
    return None


if __name__ == '__main__':
    screen.run(main)
