"""Train a classifier with CAM or CALM, and test its accuracy.

Source: Kim et al., ICCV 2021, and its published training code.
Result: save/<experiment_name>/ with last_checkpoint.pth.tar (network, optimiser, settings; a run
that was interrupted goes on from it), log.jsonl (a line per epoch) and results.json.

    python main.py --experiment_name=calm_em --architecture=resnet50 --attribution_method=CALM_EM \\
        --dataset=CUB --use_bn=True --large_feature_map=True
"""
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

import config
import data_loaders
import evaluation
import util
import weights
from dataset import open_dataset
from image_files import eval_transform, train_transform
from util import UserError
from wsol import build_model, parameter_groups
from wsol.networks import check_image_size, normalisation

CHECK_EVERY = 20  # steps between two looks at the loss


def lr_factor(epoch, schedule, epochs, decay_frequency):
    """The learning rate's factor at a time in epochs: epoch 0.5 is the middle of the first.

    step, as published: times 0.1 at the start of every 1-based epoch that decay_frequency divides.
    one_cycle (Smith 2018): a linear rise over the first 30 %, then a cosine down to 0.
    """
    if schedule == 'step':
        return 0.1 ** ((int(epoch) + 1) // decay_frequency)
    done = epoch / epochs
    return done / 0.3 if done < 0.3 else (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2


@dataclass
class Training:
    """A network being trained, and what it takes to go on with it."""
    model: nn.Module
    optimiser: torch.optim.Optimizer
    factor_at: Callable     # the learning rate's factor at a time in epochs
    epochs: int
    seed: int
    device: torch.device
    precision: str
    record: dict            # what a checkpoint says of the network beside its weights
    done: int = 0           # finished epochs
    log: list = field(default_factory=list)  # a line for each of them

    def run(self, loaders, folder):
        """Train, epoch by epoch, each leaving a whole checkpoint and a line of the log. loaders: {'train', 'val'}."""
        for epoch in range(self.done, self.epochs):
            line = {'epoch': epoch + 1, 'lr': self.optimiser.param_groups[0]['initial_lr'] * self.factor_at(epoch)}
            line |= {f'train_{key}': value for key, value in self.train_epoch(loaders['train'], epoch).items()}
            line['val_accuracy'] = top1_accuracy(self.model, loaders['val'], self.device, self.precision, 'val')
            weights.save_checkpoint(folder / weights.FILE, epoch=epoch + 1, state_dict=self.model.state_dict(),
                                    optimizer=self.optimiser.state_dict(), **self.record)
            self.done = epoch + 1
            self.log.append(line)
            util.write_json_lines(folder / 'log.jsonl', self.log)

    def train_epoch(self, loader, epoch):
        """One pass over the training set. epoch: 0-based. Returns {'loss', 'accuracy', 'images_per_second'}.

        Loss and correct predictions are summed on the device, and looked at every CHECK_EVERY steps and at the end:
        a number that is looked at makes the host wait for the device.
        """
        self.model.train()
        loader.sampler.epoch = epoch
        # dropout and stochastic depth draw from torch's own state: a resumed epoch draws what it would have drawn
        util.seed_everything(self.seed * 1_000_003 + epoch)
        seen, loss_sum, correct, start = 0, 0.0, 0, time.perf_counter()
        sums, checked = torch.zeros(2, device=self.device), 0  # since the last check: loss times images, correct
        with util.progress(None, f'epoch {epoch + 1}/{self.epochs}', 'image', total=len(loader.dataset)) as bar:
            for step, (images, labels, _) in enumerate(loader, 1):
                images, labels = util.to_device(images, self.device), util.to_device(labels, self.device)
                loss, scores = self.take_step(images, labels, epoch + (step - 1) / len(loader))
                sums += torch.stack([loss * len(labels), (scores.argmax(1) == labels).sum().to(loss)])
                seen += len(labels)
                bar.update(len(labels))
                if step % CHECK_EVERY and step < len(loader):
                    continue
                more_loss, more_correct = util.look_at(sums)
                if not math.isfinite(more_loss):
                    raise UserError(f'the loss is {more_loss} at epoch {epoch + 1}, steps {checked + 1} to {step}: '
                                    'training stops, the last checkpoint stays. Lower --lr or --lr_classifier_ratio, '
                                    'or try --precision=float32')
                loss_sum, correct, checked = loss_sum + more_loss, correct + int(more_correct), step
                sums.zero_()
                bar.set_postfix(loss=f'{loss_sum / seen:.3f}', accuracy=f'{100 * correct / seen:.1f}%', refresh=False)
        return {'loss': loss_sum / seen, 'accuracy': 100 * correct / seen,
                'images_per_second': round(seen / (time.perf_counter() - start), 1)}

    def take_step(self, images, labels, time_in_epochs):
        """One update, which never waits for the device. Returns the loss () and the class scores (B,C), on it."""
        for group in self.optimiser.param_groups:
            group['lr'] = group['initial_lr'] * self.factor_at(time_in_epochs)
        with util.autocast(self.precision, self.device):
            loss, scores = self.model.loss(images, labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.detach(), scores

    def resume(self, before, log):
        """Go on from this experiment's own checkpoint. log: its lines so far."""
        self.optimiser.load_state_dict(before.content['optimizer'])
        self.done, self.log = before.epoch, log[:before.epoch]


@torch.inference_mode()
def top1_accuracy(model, loader, device, precision, name):
    """Top-1 accuracy in percent over a loader. name: of the split, for the bar."""
    model.eval()
    correct = 0
    for images, labels, _ in util.progress(loader, f'accuracy on {name}', 'batch', leave=False):
        with util.autocast(precision, device):
            scores = model(util.to_device(images, device))
        if scores.isnan().any():
            raise UserError(f'the network gives scores that are no numbers on {name}: it has diverged, and is not '
                            'saved. Lower --lr or --lr_classifier_ratio, or try --precision=float32')
        correct += (scores.argmax(1).cpu() == labels).sum().item()
    return 100 * correct / len(loader.dataset)


def check_resumable(before, args):
    """Raise UserError unless a training with these flags can go on from this experiment's own checkpoint."""
    if not {'optimizer', 'epoch', 'args'} <= before.content.keys():
        raise UserError(f'{before.path} holds weights but no training to go on with; choose another --experiment_name '
                        'and start from it with --load_checkpoint, or start afresh with --override_cache')
    earlier = before.content['args']
    changed = config.changed_settings(args, earlier | before.network)
    if args.lr_schedule == 'one_cycle' and earlier.get('epochs') != args.epochs:
        changed.append(f'epochs was {earlier.get("epochs")}, is {args.epochs} (one_cycle plans all epochs ahead)')
    if before.epoch > args.epochs:
        changed.append(f'{before.epoch} epochs are done, --epochs={args.epochs} asks for fewer')
    if changed:
        raise UserError(f'{before.path} was trained with other settings ({"; ".join(changed)}). Choose another '
                        '--experiment_name, or start afresh with --override_cache')


def open_settings(args, before, device):
    """{'seed', 'precision'}, which the flags may leave open: those of the training that goes on, else new ones."""
    earlier = before.content.get('args', {}) if before else {'seed': util.draw_seed()}
    seed = args.seed if 'seed' in args.given else earlier.get('seed')
    precision = args.precision if 'precision' in args.given else earlier.get('precision', args.precision)
    return {'seed': seed, 'precision': util.pick_precision(precision, device, auto='bfloat16')}


def accuracies(model, loaders, device, precision):
    """{'val_accuracy', 'test_accuracy'} in percent."""
    return {f'{split}_accuracy': top1_accuracy(model, loaders[split], device, precision, split)
            for split in ('val', 'test')}


def report(measured, args):
    """The accuracies on the screen."""
    print(f'{args.attribution_method}, {args.architecture}, {args.dataset}: accuracy '
          + ', '.join(f'{value:.1f} % on {name.split("_")[0]}' for name, value in measured.items()))


def test_checkpoint(args):
    """--is_train=False: the accuracy of a checkpoint."""
    run = evaluation.open_evaluation(args, 'main')
    images = {split: run.open_split(split) for split in ('val', 'test')}
    loaders = {split: run.loader(own) for split, own in images.items()}
    measured = accuracies(run.model, loaders, run.device, run.args.precision)
    report(measured, run.args)
    run.result_file('accuracy', images['test'], 'test', run.args.attribution_method).write(measured)


def open_images(args, data):
    """{split: ImageDataset}. All are opened before the first epoch: what is wrong with the test images is not found out
    after the last."""
    statistics = normalisation(args.architecture)
    transforms = dict.fromkeys(data_loaders.SPLITS, eval_transform(args.crop_size, statistics))
    transforms['train'] = train_transform(args.resize_size, args.crop_size, statistics)
    images = {split: data.open_split(split, transform, args.proxy_training_set and split == 'train')
              for split, transform in transforms.items()}
    if args.skip_broken:
        images = {split: own.without_broken(split) for split, own in images.items()}
    if args.cache:
        folder = Path(args.save_root) / 'cache'
        images = {split: own.cached(folder, f'{data.label}_{split}') for split, own in images.items()}
    return images


def initial_network(args, data, before, starts_from, folder, device):
    """The network on the device: this experiment's own where it goes on, else that of --load_checkpoint, ImageNet's or
    a random one."""
    source = before
    if starts_from and before is None:
        source = weights.read_checkpoint(weights.find_checkpoint(args.load_checkpoint, args.save_root, folder))
    model = build_model(**config.network_settings(args), num_classes=data.num_classes,
                        pretrained=args.pretrained and source is None)
    if source is not None:
        weights.load_weights(model, source, but_classifier=args.is_different_checkpoint and before is None)
    model = model.to(device, memory_format=util.memory_format(device))
    check_image_size(model, args.crop_size)
    return model


def make_training(args, model, images, device):
    """The Training that the flags ask for."""
    groups = parameter_groups(model, args.architecture, args.lr, args.lr_classifier_ratio, args.is_different_checkpoint)
    optimiser = torch.optim.SGD(groups, momentum=args.momentum, nesterov=args.momentum > 0,
                                weight_decay=args.weight_decay)
    factor_at = partial(lr_factor, schedule=args.lr_schedule, epochs=args.epochs,
                        decay_frequency=args.lr_decay_frequency)
    network = config.network_settings(args) | {'num_classes': model.conv_last.out_channels}
    record = {'architecture': args.architecture, 'model': network, 'args': dict(args),
              'class_names': list(images['train'].class_names), 'normalisation': normalisation(args.architecture)}
    return Training(model, optimiser, factor_at, args.epochs, args.seed, device, args.precision, record)


def main():
    args = config.parse('main', __doc__)
    if not args.is_train:
        return test_checkpoint(args)
    starts_from = args.use_load_checkpoint if 'use_load_checkpoint' in args.given else args.load_checkpoint is not None
    if args.is_different_checkpoint and not starts_from:
        raise UserError('--is_different_checkpoint fine-tunes from a checkpoint: name it with --load_checkpoint')
    device = util.pick_device(args.device)
    args.workers = util.pick_workers(args.workers, 'workers' in args.given)
    folder = weights.experiment_folder(args.save_root, args.experiment_name)
    path = folder / weights.FILE
    before = weights.read_checkpoint(path) if path.is_file() and not args.override_cache else None
    evaluates_in = util.pick_precision(args.precision, device)
    args.update(open_settings(args, before, device))
    print(f'trains in {args.precision} on {device.type}, evaluates in {evaluates_in}')
    if before:
        check_resumable(before, args)
        print(f'{path} has {before.epoch} finished epochs'
              + ('; --override_cache starts afresh' if before.epoch == args.epochs else ''))
    data = open_dataset(args.dataset, args.data_root, args.metadata_root)
    images = open_images(args, data)
    util.seed_everything(args.seed)
    model = initial_network(args, data, before, starts_from, folder, device)
    training = make_training(args, model, images, device)
    util.make_folder(folder)  # one that cannot be written is known before the first epoch
    if before:
        training.resume(before, util.read_json_lines(folder / 'log.jsonl'))
    else:
        (folder / 'results.json').unlink(missing_ok=True)  # of the network that is about to be replaced
    sampler = data_loaders.SeededSampler(len(images['train']), args.seed)
    loaders = {split: data_loaders.make_loader(own, args.batch_size, args.workers, device,
                                               sampler if split == 'train' else None) for split, own in images.items()}
    training.run(loaders, folder)
    measured = accuracies(model, loaders, device, evaluates_in)
    report(measured, args)
    trained = weights.Checkpoint(path, {'state_dict': model.state_dict(), 'epoch': training.done})
    identity = evaluation.identity('accuracy', data, 'test', images['test'], trained, dict(args))
    evaluation.ResultFile(folder / 'results.json', identity).write(measured)
    return None


if __name__ == '__main__':
    util.run(main)
