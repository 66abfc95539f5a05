"""What a training shows of itself, from the lines of its log: a line on the screen, a figure, TensorBoard.

Result: save/<experiment_name>/training.png, drawn again after an epoch, at most every half minute, and after the last;
with --tensorboard (an optional dependency: pip install tensorboard) save/<experiment_name>/tensorboard/, for
`tensorboard --logdir=save`.
"""
import time
from pathlib import Path

from reports import figures
from runtime import screen
from wsol.errors import UserError

DRAW_EVERY = 30  # seconds


class TrainingLog:
    """Shows the epochs of an experiment as they end.

    Raises UserError where TensorBoard is asked for and not installed.
    """

    def __init__(self, folder, epochs, tensorboard=False):
        self.folder, self.epochs = Path(folder), epochs
        self.open_board = _summary_writer() if tensorboard else None
        self.board, self.drawn_at = None, time.monotonic()

    def show(self, log):
        """Show the last line of the log. log: all lines, those before an interruption among them."""
        line = log[-1]
        screen.say(f'epoch {line["epoch"]}/{self.epochs}: loss {line["train_loss"]:.3f}, accuracy '
              f'{line["train_accuracy"]:.1f} % on train, {line["val_accuracy"]:.1f} % on val, rate {line["lr"]:.2g}, '
              f'{line["train_images_per_second"]:.0f} images/s')
        if line['epoch'] == self.epochs or time.monotonic() - self.drawn_at >= DRAW_EVERY:
            figures.save(figures.training_curves(self.folder.name, log), self.folder / 'training.png')
            self.drawn_at = time.monotonic()
        if self.open_board:
            # what an earlier run showed of this epoch and of later ones is not so any more
            self.board = self.board or self.open_board(self.folder / 'tensorboard', purge_step=line['epoch'])
            for name in line.keys() - {'epoch'}:
                self.board.add_scalar(name, line[name], line['epoch'])
            self.board.flush()


def _summary_writer():
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError('--tensorboard needs the package tensorboard: pip install tensorboard') from error
    return SummaryWriter
