"""Shows a training's log: on the screen, in a figure, and in TensorBoard.

Result: save/<experiment_name>/training.png, drawn at most every half minute and after the last epoch. With
--tensorboard (an optional dependency: pip install tensorboard) also save/<experiment_name>/tensorboard/, which
`tensorboard --logdir=save` shows.
"""
import time
from pathlib import Path

from runtime import screen
from wsol.errors import UserError

DRAW_EVERY = 30  # seconds


class TrainingLog:
    """Shows the epochs of an experiment as they end. Raises UserError if TensorBoard is asked for and missing.

    draw: (lines of the log, path) draws the curves into a file.
    """

    def __init__(self, folder, epochs, draw, tensorboard=False):
        self.folder, self.epochs, self.draw = Path(folder), epochs, draw
        self.board, self.open_board, self.drawn_at = None, None, time.monotonic()
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError('--tensorboard needs the package tensorboard: pip install tensorboard') from error
            self.open_board = SummaryWriter

    def show(self, log):
        """Show the last line. log: all lines, including those from before an interruption."""
        line = log[-1]
        screen.say(f'epoch {line["epoch"]}/{self.epochs}: loss {line["train_loss"]:.3f}, accuracy '
                   f'{line["train_accuracy"]:.1f} % on train, {line["val_accuracy"]:.1f} % on val, rate '
                   f'{line["lr"]:.2g}, {line["train_images_per_second"]:.0f} images/s')
        if line['epoch'] == self.epochs or time.monotonic() - self.drawn_at >= DRAW_EVERY:
            self.draw(log, self.folder / 'training.png')
            self.drawn_at = time.monotonic()
        if self.open_board:
            # an interrupted run may have shown this epoch and later ones already: they are removed
            self.board = self.board or self.open_board(self.folder / 'tensorboard', purge_step=line['epoch'])
            for name in line.keys() - {'epoch'}:
                self.board.add_scalar(name, line[name], line['epoch'])
            self.board.flush()
