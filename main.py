"""Train a classifier with CAM or CALM, and test its accuracy.

Source: Kim et al., ICCV 2021, and its published training code.
Result: save/<experiment_name>/ with last_checkpoint.pth.tar (network, optimiser, settings; a run
that was interrupted goes on from it), log.jsonl (a line per epoch) and results.json.

    python main.py --experiment_name=calm_em --architecture=resnet50 --attribution_method=CALM_EM \\
        --dataset=CUB --use_bn=True --large_feature_map=True
"""
import math
import time

import torch

import config
import data_loaders
import evaluation
import util
from checkpoints import loading
from util import UserError
from wsol import build_model, check_image_size, parameter_groups

# flags that a continued training may change
FREE = {'experiment_name', 'save_root', 'override_cache', 'is_train', 'workers', 'device', 'data_root', 'metadata_root',
        'mask_root', 'pretrained', 'use_load_checkpoint', 'load_checkpoint', 'epochs', 'seed', 'given',
        *(name for name, *_ in config.FLAGS['maps and metrics'])}


def lr_factor(epoch, args):
    """The learning rate's factor at a time in epochs: epoch 0.5 is the middle of the first.

    step, as published: times 0.1 at the start of every 1-based epoch that lr_decay_frequency divides.
    one_cycle (Smith 2018): a linear rise over the first 30 %, then a cosine down to 0.
    """
    if args.lr_schedule == 'step':
        return 0.1 ** ((int(epoch) + 1) // args.lr_decay_frequency)
    done = epoch / args.epochs
    return done / 0.3 if done < 0.3 else (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2


def train_epoch(model, loader, optimiser, args, epoch, device):
    """One pass over the training set. epoch: 0-based. Returns {'loss', 'accuracy', 'images_per_second'}."""
    model.train()
    loader.sampler.epoch = epoch
    seen, loss_sum, correct, start = 0, 0.0, 0, time.perf_counter()
    with util.progress(None, f'epoch {epoch + 1}/{args.epochs}', 'image', total=len(loader.dataset)) as bar:
        for step, (images, labels, _) in enumerate(loader):
            for group in optimiser.param_groups:
                group['lr'] = group['initial_lr'] * lr_factor(epoch + step / len(loader), args)
            images, labels = util.to_device(images, device), labels.to(device, non_blocking=True)
            with util.autocast(args, device):
                loss, scores = model.loss(images, labels)
            value = loss.item()
            if not math.isfinite(value):
                raise UserError(f'the loss is {value} at epoch {epoch + 1}, step {step + 1}: training stops, the last '
                                'checkpoint stays. Lower --lr or --lr_classifier_ratio, or try --precision=float32')
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            seen, loss_sum = seen + len(labels), loss_sum + value * len(labels)
            correct += (scores.argmax(1) == labels).sum().item()
            bar.update(len(labels))
            bar.set_postfix(loss=f'{loss_sum / seen:.3f}', accuracy=f'{100 * correct / seen:.1f}%', refresh=False)
    return {'loss': loss_sum / seen, 'accuracy': 100 * correct / seen,
            'images_per_second': round(seen / (time.perf_counter() - start), 1)}


@torch.inference_mode()
def top1_accuracy(model, loader, args, device, name):
    """Top-1 accuracy in percent over a loader."""
    model.eval()
    correct = 0
    for images, labels, _ in util.progress(loader, f'accuracy on {name}', 'batch', leave=False):
        with util.autocast(args, device):
            scores = model(util.to_device(images, device))
        if scores.isnan().any():
            raise UserError(f'the network gives scores that are no numbers on {name}: it has diverged, and is not '
                            'saved. Lower --lr or --lr_classifier_ratio, or try --precision=float32')
        correct += (scores.argmax(1).cpu() == labels).sum().item()
    return 100 * correct / len(loader.dataset)


def start_or_resume(model, optimiser, args, path):
    """Load this experiment's own checkpoint, if there is one. Returns the number of finished epochs."""
    if not path.is_file() or args.override_cache:
        return 0
    checkpoint = util.read_checkpoint(path)
    if not {'optimizer', 'epoch', 'args'} <= checkpoint.keys():
        raise UserError(f'{path} holds weights but no training to go on with; choose another --experiment_name and '
                        'start from it with --load_checkpoint, or start afresh with --override_cache')
    before = checkpoint.get('args', {})
    changed = [f'{key} was {before.get(key)}, is {value}' for key, value in args.items()
               if key not in FREE and before.get(key) != value]
    if args.lr_schedule == 'one_cycle' and before.get('epochs') != args.epochs:
        changed.append(f'epochs was {before.get("epochs")}, is {args.epochs} (one_cycle plans all epochs ahead)')
    if changed:
        raise UserError(f'{path} was trained with other settings ({"; ".join(changed)}). Choose another '
                        '--experiment_name, or start afresh with --override_cache')
    util.load_weights(model, checkpoint, path)
    optimiser.load_state_dict(checkpoint['optimizer'])
    return checkpoint['epoch']


def train(args, device, folder, splits):
    """Train, epoch by epoch, each leaving a whole checkpoint. splits: {'train': data set, 'val': ...}. Returns the
    model."""
    path = folder / util.CHECKPOINT
    if path.is_file() and not args.override_cache and 'seed' not in args.given:
        args.seed = util.read_checkpoint(path).get('args', {}).get('seed')
    args.seed = util.seed_everything(args.seed)
    train_set, val_set = splits['train'], splits['val']
    num_classes = data_loaders.dataset_spec(args).num_classes
    model = initial_model(args, num_classes, goes_on=path.is_file() and not args.override_cache)
    model = model.to(device, memory_format=util.memory_format(device))
    groups = parameter_groups(model, args.architecture, args.lr, args.lr_classifier_ratio, args.is_different_checkpoint)
    optimiser = torch.optim.SGD(groups, momentum=args.momentum, nesterov=args.momentum > 0,
                                weight_decay=args.weight_decay)
    done = start_or_resume(model, optimiser, args, path)
    if done:
        hint = '; --override_cache starts afresh' if done >= args.epochs else ''
        print(f'{path} has {done} finished epochs{hint}')
    sampler = data_loaders.SeededSampler(len(train_set), args.seed)
    train_loader = data_loaders.make_loader(train_set, args, device, sampler)
    val_loader = data_loaders.make_loader(val_set, args, device)
    check_image_size(model, args.crop_size, device)
    util.make_folder(folder)  # one that cannot be written is known before the first epoch
    log = util.read_json_lines(folder / 'log.jsonl')[:done]
    for epoch in range(done, args.epochs):
        line = {'epoch': epoch + 1, 'lr': args.lr * lr_factor(epoch, args)}
        line |= {f'train_{key}': value for key, value in
                 train_epoch(model, train_loader, optimiser, args, epoch, device).items()}
        line['val_accuracy'] = top1_accuracy(model, val_loader, args, device, 'val')
        util.save_checkpoint(path, architecture=args.architecture, epoch=epoch + 1, state_dict=model.state_dict(),
                             optimizer=optimiser.state_dict(), model=loading.network_settings(args, num_classes),
                             args=dict(args), class_names=data_loaders.class_names(train_set, args))
        log.append(line)
        util.write_json_lines(folder / 'log.jsonl', log)
    return model


def initial_model(args, num_classes, goes_on):
    """The network to start from: ImageNet's weights, --load_checkpoint's, or random ones. goes_on: this experiment's
    own checkpoint will replace them, so none are fetched."""
    load = loading.wants_checkpoint(args) and not goes_on
    model = build_model(**loading.network_settings(args, num_classes),
                        pretrained=args.pretrained and not load and not goes_on)
    if load:
        source, checkpoint = loading.open_checkpoint(args)
        util.load_weights(model, checkpoint, source, args.is_different_checkpoint)
    return model


def main():
    args = config.parse(__doc__)
    device = util.pick_device(args.device)
    folder = util.experiment_folder(args)
    if args.is_different_checkpoint and not loading.wants_checkpoint(args):
        raise UserError('--is_different_checkpoint fine-tunes from a checkpoint: name it with --load_checkpoint')
    target = folder / 'results.json'
    if not args.is_train:
        model, path, args = loading.load_model(args, device)
        target = evaluation.results_folder(args, path) / 'accuracy.json'  # results.json is the training's
    # all of them before the first epoch: what is wrong with the test images is not found out after the last
    names = data_loaders.SPLITS if args.is_train else ('val', 'test')
    splits = {split: data_loaders.open_split(args, split) for split in names}
    if args.is_train:
        model = train(args, device, folder, splits)
    accuracies = {}
    for split in ('val', 'test'):
        loader = data_loaders.make_loader(splits[split], args, device)
        accuracies[f'{split}_accuracy'] = top1_accuracy(model, loader, args, device, split)
    settings = {key: args[key] for key in sorted(args)} if args.is_train else evaluation.recorded_settings(args)
    util.write_json(target, {**accuracies, 'settings': settings})
    print(f'{args.attribution_method}, {args.architecture}, {args.dataset}: accuracy '
          + ', '.join(f'{value:.1f} % on {name.split("_")[0]}' for name, value in accuracies.items())
          + f' ({target})')


if __name__ == '__main__':
    util.run(main)
