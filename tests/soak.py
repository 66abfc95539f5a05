"""Faults by the hundred against trainings and files: a table of what was tried, what survived, and what was lost.

Every fault is drawn anew from a seed. Survived means: what was asked for came out as without the fault, or one line said
what is wrong and nothing that was there has changed. The trainings are real ones of main.py, of a tiny network on a tiny
folder of images, each in a process of its own.

    make soak                                  the counts below
    python tests/soak.py --scale=0.05          a twentieth of them
"""
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hostile  # noqa: E402
import several  # noqa: E402
import torch  # noqa: E402
from conftest import OWN_FLAGS, content_of, paint_folder, run_main, same, without  # noqa: E402
from soak_data import DataFaults  # noqa: E402

from experiment import checkpoint_files, training  # noqa: E402
from runtime import command_line, screen  # noqa: E402
from wsol import networks  # noqa: E402
from wsol.errors import UserError  # noqa: E402

PICTURES, ARCHIVES = ('jpeg', 'png', 'tiff'), ('tar', 'tar_gz', 'zip_file')
CHECKPOINTS = ('checkpoint', 'foreign_checkpoint', 'legacy_checkpoint', 'safetensors')
TEXTS = tuple(name for name in hostile.PARSERS if name not in (*PICTURES, *ARCHIVES, *CHECKPOINTS))
PAGE = resource.getpagesize()


# --- files ------------------------------------------------------------------------------------------------


def damaged(names, count, random, folder):
    """Damage files of these parsers, so many. Returns the number that was neither read nor refused in one line."""
    lost, made = 0, {name: hostile.setting_up(name, folder) for name in names}
    wholes = {name: path.read_bytes() for name, (path, _) in made.items()}
    for number in range(count):
        name = names[number % len(names)]
        path, read = made[name]
        path.write_bytes(hostile.mutate(random, wholes[name]))
        try:
            hostile.outcome(read)
        except Exception:
            lost += 1
            traceback.print_exc()
    return lost


# --- trainings --------------------------------------------------------------------------------------------


class Bench:
    """A folder in which trainings run, and what one leaves that nothing has disturbed."""

    def __init__(self, folder):
        self.folder = folder
        self.flags = [*without(OWN_FLAGS, 'architecture', 'batch_size', 'epochs'), '--architecture=resnet34',
                      '--batch_size=5', f'--dataset={paint_folder(folder / "pets", counts=(4, 2, 2))}', '--epochs=3',
                      '--checkpoint_minutes=0']
        start = time.monotonic()
        assert several.code_of(self.start('straight')) == 0, self.said('straight')
        self.seconds = time.monotonic() - start
        self.straight = content_of(folder / 'save/straight')

    def start(self, name, *more, first=lambda: None):
        """Begin, or go on with, an experiment in a process of its own; first: what that does before. Returns its id."""
        def train():
            os.chdir(self.folder)
            first()
            run_main('main', *self.flags, *more, f'--experiment_name={name}')
        return several.fork(self.folder / f'{name}.out', self.folder / f'{name}.err', train)

    def said(self, name):
        """All that the processes of an experiment have printed."""
        return ''.join((self.folder / f'{name}.{kind}').read_text(errors='replace') for kind in ('out', 'err'))

    def is_as_undisturbed(self, name):
        """Whether an experiment ended as the one that nothing has disturbed, and no process printed a traceback."""
        content = content_of(self.folder / 'save' / name)
        return 'Traceback' not in self.said(name) and all(
            same(content[key], self.straight[key]) for key in ('state_dict', 'optimizer', 'epoch', 'step'))

    def kills(self, count, random):
        """Kill trainings at any moment, and go on with them until they end. Returns the number that was lost."""
        lost = tried = chain = 0
        while tried < count:
            killed, code, chain, name = 0, None, chain + 1, f'killed{chain}'
            while code != 0:
                number = self.start(name)
                if tried + killed < count:
                    time.sleep(random.uniform(0, self.seconds))
                    os.kill(number, signal.SIGKILL)
                code = several.code_of(number)
                killed += code == -signal.SIGKILL
                if code not in (0, -signal.SIGKILL):
                    break
            tried += killed
            if code != 0 or not self.is_as_undisturbed(name):
                lost += max(killed, 1)
                print(self.said(name))
        return lost

    def stops(self, count, random):
        """Likewise with the signals of schedulers, which are heeded between two steps."""
        lost = 0
        for number in range(count):
            name, step = f'stopped{number}', random.randint(1, 9)
            kind = random.choice(['stop', 'warn'])

            def fail(step=step, kind=kind):
                training.Training.take_step = several.fail_at(step, kind)
            code = several.code_of(self.start(name, first=fail))
            again = several.code_of(self.start(name))
            if code != 128 + several.SIGNALS[kind] or again or not self.is_as_undisturbed(name):
                lost += 1
                print(self.said(name))
        return lost

    def full_disks(self, count, random):
        """Let the disk be full from some step on; what was saved should stay, and the training go on when there is
        space."""
        lost = 0
        for number in range(count):
            name, step, size = f'full{number}', random.randint(2, 9), random.randint(1, 12_000)
            take_step, steps = training.Training.take_step, [0]

            def fill(*inputs, step=step, size=size, take_step=take_step, steps=steps):
                steps[0] += 1
                if steps[0] == step:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
                return take_step(*inputs)

            def patch(fill=fill):
                training.Training.take_step = fill
            code = several.code_of(self.start(name, first=patch))
            is_whole = content_of(self.folder / 'save' / name)['step'] == (step - 1) % 3
            if code != 2 or not is_whole or several.code_of(self.start(name)) or not self.is_as_undisturbed(name):
                lost += 1
                print(self.said(name))
        return lost

    def races(self, count, random):
        """Start an experiment twice at a time: one should train it, the other be refused."""
        lost = 0
        for number in range(count):
            name = f'raced{number}'
            both = [self.start(name)]
            time.sleep(random.uniform(0, 0.05))
            both.append(self.start(name))
            codes = sorted(map(several.code_of, both))
            if codes != [0, 2] or not self.is_as_undisturbed(name):
                lost += 1
                print(codes, self.said(name))
        return lost

    def broken_photos(self, count, random):
        """Cut off a training photo's end: one line should name it, and no loader process should keep the run alive."""
        lost = 0
        for number in range(count):
            folder = shutil.copytree(self.folder / 'pets', self.folder / f'pets{number}')
            path = random.choice(sorted((folder / 'train').rglob('*.*')))
            path.write_bytes(path.read_bytes()[:random.randint(1, 150)])
            code = several.code_of(self.start(f'broken{number}', f'--dataset={folder}', '--workers=2'))
            if code != 2 or str(path) not in self.said(f'broken{number}'):
                lost += 1
                print(code, self.said(f'broken{number}'))
        return lost

    def memory(self, epochs, _):
        """Train so many epochs; memory after the first 20 and before the last, which draws the curves, should differ by
        a hundredth at most."""
        taken = {}

        def watch():
            finish = training.Training.finish_epoch

            def look(trained, epoch, *more):
                finish(trained, epoch, *more)
                if epoch + 1 in (20, epochs - 1):
                    taken[epoch + 1] = int(Path('/proc/self/statm').read_text().split()[1]) * PAGE
                if epoch + 1 == epochs - 1:
                    first, last = taken.values()
                    print(f'{first / 1e6:.1f} MB, {last / 1e6:.1f} MB', flush=True)
                    assert last <= 1.01 * first
            training.Training.finish_epoch = look
        code = several.code_of(self.start('long', f'--epochs={epochs}', '--checkpoint_minutes=10', first=watch))
        print(self.said('long')[-300:] if code else '', end='')
        return epochs if code else 0


# --- the table --------------------------------------------------------------------------------------------


def settings_changed(count, random):
    """Give checkpoints' records values of other kinds. Returns the number that was neither taken nor refused."""
    lost, odd = 0, [None, -5, 2**70, [], {}, 'x', 1.5, float('nan'), (), b'x', True, torch.zeros(2), [[[1]]], {'a': 1}]
    for _ in range(count):
        content = hostile.checkpoint_content()
        part = random.choice([content, content['model'], content['args'], content['state_dict']])
        part[random.choice(list(part))] = random.choice(odd)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(content, Path(folder) / 'x.pth')
            try:
                checkpoint_files.read(Path(folder) / 'x.pth')
            except UserError:
                continue
            except Exception:
                lost += 1
                traceback.print_exc()
    return lost


def main():
    parser = command_line.plain_parser(__doc__)
    parser.add_argument('--scale', type=command_line.RATE, default=1.0, metavar='X', help='times the counts (default: 1)')
    parser.add_argument('--seed', type=command_line.SEED, default=0, metavar='N', help='of the faults (default: 0)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    networks.ARCHITECTURES.update(several.PLAIN)
    several.import_libraries()
    folder, draw, start = Path(tempfile.mkdtemp()), random.Random(args.seed), time.monotonic()
    try:
        (folder / 'bench').mkdir()
        bench = Bench(folder / 'bench')

        def files(names):
            return lambda count, draw: damaged(names, count, draw, folder / '_'.join(names)[:50])
        faults = {  # fault: how often, and what tries it
            'training killed at any moment': (100, bench.kills),
            'training stopped by SIGTERM or SIGUSR1': (40, bench.stops),
            'disk full from some step on': (20, bench.full_disks),
            'two trainings of one experiment at once': (10, bench.races),
            'training photo broken, with loader processes': (20, bench.broken_photos),
            'epochs in a row, for memory that grows': (200, bench.memory),
            **DataFaults(bench).rows(),
            'checkpoint file damaged': (500, files(CHECKPOINTS)),
            'checkpoint with a record of other values': (200, settings_changed),
            'list or text of a data set damaged': (800, files(TEXTS)),
            'picture damaged': (300, files(PICTURES)),
            'archive damaged': (300, files(ARCHIVES))}
        rows = []
        for fault, (count, attempt) in faults.items():
            count = max(40 if attempt == bench.memory else 2, round(count * args.scale))
            lost = attempt(count, draw)
            rows.append([fault, count, count - lost, lost])
            print(f'{time.monotonic() - start:5.0f} s  {fault}: {count} tried, {lost} lost', file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    screen.say(screen.table(['fault', 'times tried', 'survived', 'lost'], rows))
    if any(lost for *_, lost in rows):
        raise UserError('something was lost; what happened is above')


if __name__ == '__main__':
    screen.run(main)
