"""A training: its steps, in one process or several, its checkpoints, and how it resumes from one, bit for bit.

Source: Kim et al., ICCV 2021, and its published training code. Each of several processes takes a share of every batch.
Their gradients are summed, so that the update is that of the whole batch.
"""
import json
import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import util
from data_loaders import in_order
from experiment import checkpoint_files, training_images
from runtime import processes, screen, whole_files
from wsol.errors import UserError

DRAW_EVERY = 30   # seconds
CHECK_EVERY = 20  # steps from one look at the losses to the next
NO_SUMS = (0.0, 0, 0, 0.0)  # the sums of an epoch in one process: losses, correct images, images, seconds
ADVICE = 'Lower --lr or --lr_classifier_ratio, or try --precision=float32'


def lr_factor(epoch, schedule, epochs, decay_frequency):
    """The factor of the learning rate at a time in epochs: 0.5 is the middle of the first epoch.

    step, as published: times 0.1 at the start of every 1-based epoch that decay_frequency divides.
    one_cycle (Smith 2018): a linear rise over the first 30 %, then a cosine down to 0.
    """
    if schedule == 'step':
        return 0.1 ** ((int(epoch) + 1) // decay_frequency)
    done = epoch / epochs
    return done / 0.3 if done < 0.3 else (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2


def part_sizes(count, parts, least):
    """Split a step's `count` images into at most `parts` parts of at least `least` images. Returns their sizes."""
    size = max(-(-count // parts), least)
    whole, rest = divmod(count, size)
    sizes = [size] * whole + [rest] * (rest > 0)
    return sizes if sizes[-1] >= least else [*sizes[:-2], sum(sizes[-2:])]


class Loss(nn.Module):
    """A network's training loss as a forward, which is what DistributedDataParallel wraps."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, labels):
        return self.model.loss(images, labels)


def shared_loss(model, device, some_unused=False):
    """The Loss of a network; its gradients are summed over all processes while the backward still computes.
    some_unused: the loss does not depend on some parameters. Running means are shared once an epoch, not at each step.
    """
    if processes.size() == 1:
        return Loss(model)
    # torch warns about 1x1 convolutions, whose memory layout can be described in two ways
    warnings.filterwarnings('ignore', 'Grad strides do not match bucket view strides')
    return DistributedDataParallel(Loss(model), [device] if device.type == 'cuda' else None,
                                   forward_sync_buffers=False, gradient_as_bucket_view=True,
                                   find_unused_parameters=some_unused)


@dataclass
class Training:
    """A network in training, everything that is needed to resume it, and its folder, where only the first process
    writes."""
    model: nn.Module
    loss: nn.Module         # shared_loss of the model
    optimiser: torch.optim.Optimizer
    factor_at: Callable     # time in epochs -> factor of the learning rate
    epochs: int
    seed: int
    device: torch.device
    precision: str
    accumulate: int         # the number of parts in which a step takes its images
    stop: processes.Stop
    folder: Path            # of the experiment
    minutes: float          # between two saves within an epoch
    record: dict            # what a checkpoint holds beside the state of the training
    draw: Callable          # (lines of the log) draws the curves into a file
    least: int = 1          # the fewest images of a part
    done: int = 0           # finished epochs
    step: int = 0           # finished steps of the next epoch
    sums: tuple = NO_SUMS   # of this process over these steps
    unread: list = field(default_factory=list)  # results of take_step that are still on the device
    log: list = field(default_factory=list)     # a line for each finished epoch
    resumes: bool = False   # resume the training in the folder; else the first save replaces it
    saved: tuple = (0, 0)   # (epochs, steps) at the last save
    saved_at: float = field(default_factory=time.monotonic)
    drawn_at: float = field(default_factory=time.monotonic)

    def run(self, loaders):
        """Train to the last epoch. Each epoch leaves a checkpoint and a line in the log. loaders: {'train', 'val'}.

        After a signal all processes stop before the same step, so that no finished step is lost.
        """
        all_sums = None
        try:
            for epoch in range(self.done, self.epochs):
                with self.stop.deferred():
                    all_sums = self.train_epoch(loaders['train'], epoch)
                _, correct = classify(self.model, loaders['val'], self.device, self.precision, 'val')
                with self.stop.deferred():
                    self.finish_epoch(epoch, all_sums, 100 * int(correct.sum()) / len(correct))
        except processes.Stopped as stop:
            if self.saved != (self.done, self.step):  # the signal came while the accuracy was computed
                self.save(all_sums)
            if self.resumes:
                stop.message = (f'stopped by {stop.name} after {self.done} epochs and {self.step} steps, which are '
                                f'saved in {self.folder}; the same command goes on from there')
            raise

    def train_epoch(self, loader, epoch):
        """Train to the end of an epoch (0-based). Returns the sums of every process over it.

        Losses stay on the device for CHECK_EVERY steps, or until a checkpoint is written, because to read one the host
        waits for the device.
        """
        self.model.train()
        batches, clock = loader.batch_sampler, time.perf_counter()
        batches.epoch, batches.start = epoch, self.step
        with screen.progress(None, f'epoch {epoch + 1}/{self.epochs}', 'image', total=len(loader.dataset),
                           initial=min(self.step * batches.batch_size, len(loader.dataset))) as bar:
            for images, labels, _ in loader:
                share, total = batches.counts(self.step)
                # dropout and stochastic depth draw from torch's generator: a resumed training draws the same numbers
                util.seed_everything(util.seed_of(self.seed, epoch, self.step, processes.rank()))
                result = self.take_step(images, labels, epoch + self.step / len(batches),
                                        share * processes.size() / total)
                self.unread.append(result if share else torch.zeros_like(result))
                self.step += 1
                is_read = self.step % CHECK_EVERY == 0 or self.step == len(batches)
                if is_read:
                    self.add_unread()
                clock, before = time.perf_counter(), clock
                losses, correct, seen, seconds = self.sums
                seen += share
                self.sums = losses, correct, seen, seconds + clock - before
                bar.update(total)
                if is_read and seen:
                    bar.set_postfix(loss=f'{losses / seen:.3f}', accuracy=f'{100 * correct / seen:.1f}%', refresh=False)
                self.save_or_stop()
        processes.share_buffers(self.model)
        return processes.gather(self.sums)

    def take_step(self, images, labels, time_in_epochs, weight):
        """One update. Returns the sum of the losses and the number of correct images: (2,), on the device.

        weight: of this process's mean loss in the mean over all processes.
        """
        for group in self.optimiser.param_groups:
            group['lr'] = group['initial_lr'] * self.factor_at(time_in_epochs)
        self.optimiser.zero_grad()
        sizes = part_sizes(len(images), self.accumulate, self.least)
        parts = list(zip(images.split(sizes), labels.split(sizes), strict=True))
        sums = torch.zeros(2, device=self.device)
        for number, (part, classes) in enumerate(parts, 1):
            part, classes = util.to_device(part, self.device), util.to_device(classes, self.device)
            # the processes sum their gradients once, after the last part
            waits = number < len(parts) and processes.size() > 1
            with self.loss.no_sync() if waits else nullcontext():
                with util.autocast(self.precision, self.device):
                    loss, scores = self.loss(part, classes)
                (loss * (len(part) / len(images) * weight)).backward()
            sums += torch.stack([loss.detach() * len(part), (scores.argmax(1) == classes).sum().to(loss)])
        self.optimiser.step()
        return sums

    def add_unread(self):
        """Add the results on the device to the sums. One by one, so that the sums do not depend on when this is called.

        Only here does a training wait for the device. Raises UserError if it has diverged.
        """
        losses, correct, *more = self.sums
        values = torch.stack(self.unread).tolist() if self.unread else []
        for step, (loss, right) in enumerate(values, self.step - len(values) + 1):
            if not math.isfinite(loss):
                raise UserError(f'the loss is {loss} at epoch {self.done + 1}, step {step}: training stops, the last '
                                f'checkpoint stays. {ADVICE}')
            losses, correct = losses + loss, correct + int(right)
        self.sums, self.unread = (losses, correct, *more), []

    def save_or_stop(self):
        """Between two steps: save if it is time, stop if a signal has come; all processes do the same."""
        is_due = processes.is_first() and time.monotonic() - self.saved_at >= 60 * self.minutes
        self.stop.number, is_due = processes.agree([self.stop.number, int(is_due)])
        if self.stop.number or is_due:
            self.add_unread()
            self.save(processes.gather(self.sums))
        if self.stop.number:
            processes.wait_for_all()  # if one ended before the first has saved, torchrun would kill the first
            raise processes.Stopped(self.stop.number)

    def finish_epoch(self, epoch, all_sums, accuracy):
        """Add a line to the log, save, and show the line."""
        loss, correct, seen, seconds = (sum(column) for column in zip(*all_sums, strict=True))
        best = max((line['val_accuracy'] for line in self.log), default=-1)
        self.log.append({
            'epoch': epoch + 1, 'lr': self.optimiser.param_groups[0]['initial_lr'] * self.factor_at(epoch),
            'train_loss': loss / seen, 'train_accuracy': 100 * correct / seen,
            'train_images_per_second': round(seen * processes.size() / seconds, 1), 'val_accuracy': accuracy})
        self.done, self.step, self.sums = epoch + 1, 0, NO_SUMS
        self.save([NO_SUMS] * processes.size(), is_best=accuracy > best)
        if processes.is_first():
            self.show()

    def save(self, all_sums, is_best=False):
        """Write a checkpoint and, at the end of an epoch, the log. all_sums: of every process."""
        if processes.is_first():
            state = {'epoch': self.done, 'step': self.step, 'sums': all_sums, 'log': self.log,
                     'state_dict': self.model.state_dict(), 'optimizer': self.optimiser.state_dict()}
            checkpoint_files.save(self.folder, state | self.record, is_best, is_first=not self.resumes)
            if not self.step:
                self.write_log()
        self.resumes, self.saved, self.saved_at = True, (self.done, self.step), time.monotonic()

    def write_log(self):
        """Write the whole log again, in case its file was changed."""
        if processes.is_first():
            whole_files.write_lines(self.folder / 'log.jsonl', map(json.dumps, self.log), durable=True)

    def show(self):
        """Print the last line of the log. The curves are drawn at most every DRAW_EVERY seconds, and at the end."""
        line = self.log[-1]
        screen.say(f'epoch {line["epoch"]}/{self.epochs}: loss {line["train_loss"]:.3f}, accuracy '
                   f'{line["train_accuracy"]:.1f} % on train, {line["val_accuracy"]:.1f} % on val, rate '
                   f'{line["lr"]:.2g}, {line["train_images_per_second"]:.0f} images/s')
        if line['epoch'] == self.epochs or time.monotonic() - self.drawn_at >= DRAW_EVERY:
            self.draw(self.log)
            self.drawn_at = time.monotonic()

    def check_images(self, checkpoint):
        """Raise UserError unless this experiment's Checkpoint records the same training images."""
        changed = training_images.difference(checkpoint.content['training_images'], self.record['training_images'])
        if changed:
            raise UserError(f'{checkpoint.path} was trained on other images ({changed}). Put them back as they were, '
                            'start afresh with --override_cache, or choose another --experiment_name and fine-tune '
                            'from it with --load_checkpoint')

    def begin(self, checkpoint):
        """Go on from this experiment's Checkpoint, whose weights the model already has, or begin a new training if it
        is None. Raises UserError."""
        if checkpoint is None:
            if checkpoint_files.latest(self.folder) is None:  # otherwise the first save removes the old results
                (self.folder / 'results.json').unlink(missing_ok=True)
                self.write_log()  # the folder now shows that a training has begun
            return
        parameters = [parameter for group in self.optimiser.param_groups for parameter in group['params']]
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {'state': momenta(checkpoint, parameters)})
        self.done, self.step = self.saved = checkpoint.epoch, checkpoint.content['step']
        self.resumes = True
        self.log, rows = checkpoint.content['log'], checkpoint.content['sums']
        if len(rows) != processes.size():  # the number of processes has changed: only the total stays the same
            rows = [tuple(map(sum, zip(*rows, strict=True))), *[NO_SUMS] * (processes.size() - 1)]
        self.sums = tuple(rows[processes.rank()])
        self.write_log()

    def bytes_of_checkpoint(self):
        """The approximate size of a checkpoint: weights, momentum, and the record of the training images."""
        return ((1 << 20) + 2 * sum(value.nbytes for value in self.model.state_dict().values())
                + self.record['training_images'].nbytes)


def momenta(checkpoint, parameters):
    """The state of SGD in a Checkpoint, for these parameters. Raises UserError if it is not theirs."""
    state = checkpoint.content['optimizer'].get('state')

    def fits(number, entry):
        momentum = entry.get('momentum_buffer') if isinstance(entry, dict) else entry
        return type(number) is int and 0 <= number < len(parameters) and (momentum is None or (
            isinstance(momentum, torch.Tensor) and momentum.shape == parameters[number].shape
            and momentum.dtype == parameters[number].dtype and bool(momentum.isfinite().all())))

    if not isinstance(state, dict) or not all(fits(number, entry) for number, entry in state.items()):
        raise UserError(f'{checkpoint.path} holds the optimiser of another network, or one that has diverged; start '
                        'another experiment from its weights by --load_checkpoint')
    return {number: {'momentum_buffer': (entry or {}).get('momentum_buffer')} for number, entry in state.items()}


@torch.inference_mode()
def classify(model, loader, device, precision, split):
    """Classify the images of a loader. Returns two (N,) in order: p of the predicted class, and whether this class is
    the true one. All processes of a run share the batches. Raises UserError if the network has diverged."""
    model.eval()
    results = [torch.empty(2, 0)]  # a process may have no batch
    for images, labels, _ in screen.progress(loader, f'accuracy on {split}', 'batch', leave=False):
        with util.autocast(precision, device):
            scores = model(util.to_device(images, device))
        if scores.isnan().any():
            raise UserError(f'the network has diverged: its scores on {split} are not numbers; it is not saved. '
                            f'{ADVICE}')
        confidence, predicted = model.probabilities(scores.float()).max(1)
        results.append(torch.stack([confidence.cpu(), predicted.cpu() == labels]))
    confidence, correct = in_order(loader.batch_sampler, torch.cat(results, 1).T.double().numpy()).T
    return confidence, correct > 0
