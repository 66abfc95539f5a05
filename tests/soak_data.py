"""Rows of the soak table about data that changes under the user's hands, and about locks.

No number may be of other data than its file says: what has changed is refused in one line, told in one line, or measured
anew under another name; nothing that was there is lost, and with the data as before everything goes on.
"""
import errno
import os
import shutil
import signal
import time
from pathlib import Path

import several
from conftest import content_of, files_below, paint_folder, run_main, same
from PIL import Image

from dataset import toybirds
from runtime import locks

TOLD = {'training': 'was trained on other images', 'labels': 'other class', 'unreadable': 'cannot be read'}


def kept_files(folder):
    """The files below a folder but for caches of pixels, features and fingerprints."""
    return {name: content for name, content in files_below(folder).items() if 'cache/' not in name}


def replace_pixels(path, draw):
    """Change some bytes of a photo in BMP; its size and its time of writing stay."""
    before, content = path.stat(), bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 50)):
        content[draw.randrange(len(content) // 2, len(content))] ^= draw.randrange(1, 256)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class DataFaults:
    """The rows. bench: soak's Bench, whose trainings these are."""

    def __init__(self, bench):
        self.bench = bench

    def run(self, name, script, *flags, first=lambda: None):
        """(exit code, what it said) of a script in the bench's folder, in a process of its own."""
        def work():
            os.chdir(self.bench.folder)
            first()
            run_main(script, *flags)
        paths = [self.bench.folder / f'{name}.{kind}' for kind in ('out', 'err')]
        for path in paths:
            path.unlink(missing_ok=True)
        code = several.code_of(several.fork(*paths, work))
        said = ''.join(path.read_text(errors='replace') for path in paths)
        return code, said

    def refused(self, name, told, *command, first=lambda: None):
        """Whether a script ends in one line of error that holds a text, and leaves all files as they were."""
        before = kept_files(self.bench.folder / 'save')
        code, said = self.run(name, *command, first=first)
        errors = [line for line in said.splitlines() if line.startswith('error: ')]
        fine = (code == 2 and len(errors) == 1 and told in errors[0] and 'Traceback' not in said
                and kept_files(self.bench.folder / 'save') == before)
        return fine or print(code, said)

    def folder(self, name, kind='bmp', counts=(4, 2, 2)):
        """A painted folder of images in one format, and the flags of trainings on it."""
        folder = paint_folder(self.bench.folder / name, counts=counts)
        for path in [path for path in folder.rglob('*.*') if path.is_file()]:
            image = Image.open(path).convert('RGB')
            path.unlink()
            image.save(path.with_suffix(f'.{kind}'))
        return folder, [f'--dataset=./{name}' if flag.startswith('--dataset=') else flag for flag in self.bench.flags]

    def training_set_changed(self, count, draw):
        """Stop a training at any step, change its training images, go on; then with the images as before."""
        lost = 0
        folder, flags = self.folder('changing')
        train, aside = folder / 'train', folder.with_name('as before')
        shutil.copytree(train, aside)
        code, _ = self.run('undisturbed', 'main', *flags, '--experiment_name=undisturbed')
        straight = content_of(self.bench.folder / 'save/undisturbed')
        for number in range(count):
            command, step = ['main', *flags, f'--experiment_name=changed{number}'], draw.randint(2, 9)

            def stop(step=step):
                several.training.Training.take_step = several.fail_at(step, 'stop')
            fine = self.run('changed', *command, first=stop)[0] == 143
            for photo in draw.sample(sorted(train.rglob('*.bmp')), draw.randint(1, 4)):
                match draw.choice(['gone', 'new', 'moved', 'replaced']):
                    case 'gone':
                        photo.unlink()
                    case 'new':
                        shutil.copy(photo, photo.with_name(f'{photo.stem}{draw.random()}.bmp'))
                    case 'moved':
                        photo.rename(draw.choice([path for path in train.iterdir() if path != photo.parent]) / f'moved{photo.name}')
                    case 'replaced':
                        replace_pixels(photo, draw)
            fine = fine and self.refused('changed', TOLD['training'], *command)
            shutil.rmtree(train)
            shutil.copytree(aside, train)
            code, said = self.run('changed', *command)
            content = content_of(self.bench.folder / f'save/changed{number}')
            if not (fine and code == 0 and all(same(content[key], straight[key]) for key in ('state_dict', 'optimizer'))):
                lost += 1
                print(said)
        return lost

    def truth_replaced(self, count, draw):
        """Evaluate, change a box or a photo, evaluate again: another file, the first as it was; then as before: its name."""
        lost, (folder, flags) = 0, self.folder('located')
        for split in ('val', 'test'):
            lists = folder / 'metadata' / split
            lists.mkdir(parents=True)
            ids = sorted(str(path.relative_to(folder / split)) for path in (folder / split).rglob('*.bmp'))
            (lists / 'localization.txt').write_text(''.join(f'{name},2,2,20,20\n' for name in ids))
            (lists / 'image_sizes.txt').write_text(''.join(f'{name},30,40\n' for name in ids))
        experiment, name = self.bench.folder / 'save/located', '--experiment_name=located'
        assert self.run('located', 'main', *flags, name)[0] == 0
        command = ['eval_wsol', name, '--workers=0', '--cam_curve_interval=0.1']

        def results():
            return {path.name: path.read_bytes() for path in experiment.glob('wsol_*.json')}
        assert self.run('located', *command)[0] == 0
        first = results()
        for _ in range(count):
            if draw.random() < 0.6:
                path = folder / f'metadata/{draw.choice(["val", "test"])}/localization.txt'
                whole, lines = path.read_bytes(), path.read_text().splitlines()
                row = draw.randrange(len(lines))
                lines[row] = ','.join([lines[row].split(',')[0], *map(str, (draw.randint(0, 1), 1, draw.randint(3, 19), 30))])
                path.write_text('\n'.join(lines))
            else:
                path = draw.choice(sorted((folder / 'test').rglob('*.bmp')))
                whole = path.read_bytes()
                replace_pixels(path, draw)
            code, said = self.run('located', *command)
            fine, second = code == 0, results()
            path.write_bytes(whole)
            fresh = second.keys() - first.keys()
            fine = fine and len(fresh) == 1 and all(second[name] == content for name, content in first.items())
            for name in fresh:
                (experiment / name).unlink()
            code, said_again = self.run('located', *command)
            again = results()
            if not fine or code or again != first:
                lost += 1
                print(said, said_again, sorted(second), sorted(again))
        return lost

    def labels_rotated(self, count, draw):
        """Give the class numbers of a named data set another meaning, then go on with a training or evaluate it."""
        lost, root = 0, self.bench.folder
        toybirds.paint_dataset(root / 'birds', root / 'meta', {'train': 1, 'val': 1, 'test': 1}, seed=1)
        data = ['--dataset=ToyBirds', f'--data_root={root / "birds"}', f'--metadata_root={root / "meta"}']
        flags = [*data, *(flag for flag in self.bench.flags if not flag.startswith(('--dataset=', '--epochs='))), '--experiment_name=birds']
        assert self.run('birds', 'main', *flags, '--epochs=1')[0] == 0
        shutil.copytree(root / 'meta', root / 'meta before')
        for _ in range(count):
            order = list(range(18))
            if draw.random() < 0.5:
                turn = draw.randrange(1, 18)
                order = order[turn:] + order[:turn]
            else:
                first, second = draw.sample(order, 2)
                order[first], order[second] = second, first
            for path in (root / 'meta').rglob('class_labels.txt'):
                pairs = [line.rsplit(',', 1) for line in path.read_text().splitlines()]
                path.write_text(''.join(f'{name},{order[int(label)]}\n' for name, label in pairs))
            command = draw.choice([['main', *flags, '--epochs=2'], ['main', '--experiment_name=birds', '--is_train=False', *data],
                                   ['eval_pixel_perturb', '--experiment_name=birds', *data, '--workers=0']])
            lost += not self.refused('birds', '', *command)
            shutil.rmtree(root / 'meta')
            shutil.copytree(root / 'meta before', root / 'meta')
        code, said = self.run('birds', 'main', *flags, '--epochs=2')
        return lost if code == 0 else print(said) or count

    def unreadable(self, count, draw):
        """Let the system refuse to list a folder of images, at the start of a training or when it goes on."""
        lost = 0
        folder, flags = self.folder('partly')
        for number in range(count):
            command = ['main', *flags, f'--experiment_name=partly{number}', '--epochs=1']
            goes_on = draw.random() < 0.5
            if goes_on:
                self.run('partly', *command)
                command[-1] = '--epochs=2'
            hidden, number_of_error = draw.choice(sorted(folder.glob('*/*'))), draw.choice([errno.EACCES, errno.EIO, errno.ESTALE])

            def hide(hidden=hidden, code=number_of_error, scandir=os.scandir):
                def scan(path='.'):
                    if Path(path).resolve() == hidden:
                        raise OSError(code, os.strerror(code), str(path))
                    return scandir(path)
                os.scandir = scan
            fine = self.refused('partly', TOLD['unreadable'], *command, first=hide)
            code, said = self.run('partly', *command)
            if not fine or code:
                lost += 1
                print(said)
        return lost

    def cache_superseded(self, count, draw):
        """Replace photos by others of the same size and time, and train with --cache and --freeze: as without the cache."""
        lost = 0
        folder, flags = self.folder('cached')
        flags = [flag for flag in flags if not flag.startswith('--epochs=')] + ['--epochs=1', '--override_cache']
        cache = self.bench.folder / 'save/cache'
        for _number in range(count):
            kind = draw.choice([['--freeze'], []])
            for photo in draw.sample(sorted(folder.rglob('*.bmp')), draw.randint(1, 3)):
                replace_pixels(photo, draw)
            decoy = cache / f'cached_train_36.{draw.randrange(16**16):016x}.pixels'
            cache.mkdir(parents=True, exist_ok=True)
            decoy.write_text('mine')
            codes = [self.run('cached', 'main', *flags, *kind, *more, f'--experiment_name={name}')[0]
                     for name, more in (('plain', []), ('cached', ['--cache']))]
            plain, cached = (content_of(self.bench.folder / 'save' / name)['state_dict'] for name in ('plain', 'cached'))
            groups = [path.name.rsplit('.', 2)[0] for path in cache.iterdir() if path.suffix in ('.pixels', '.npy') and path != decoy]
            if codes != [0, 0] or not same(plain, cached) or len(groups) != len(set(groups)) or decoy.read_text() != 'mine':
                lost += 1
                print(codes, sorted(groups))
            decoy.unlink()
        return lost

    def test_among_training(self, count, draw):
        """Copy training images into the test set under other names: a warning counts them."""
        lost = 0
        folder, flags = self.folder('mixed', counts=(8, 2, 2))
        for number in range(count):
            copies = [Path(shutil.copy(photo, draw.choice(sorted((folder / 'test').iterdir())) / f'copy{index}.bmp'))
                      for index, photo in enumerate(draw.sample(sorted((folder / 'train').rglob('*.bmp')), draw.randint(1, 9)))]
            code, said = self.run('mixed', 'main', *flags, f'--experiment_name=mixed{number}', '--epochs=1')
            if code or f'warning: {len(copies)} images of test are images of train' not in said:
                lost += 1
                print(said)
            for path in copies:
                path.unlink()
        return lost

    def locks(self, count, draw):
        """Leave an old lock, of any time and content, or kill the process that holds it: a training begins at once, and
        never beside a holder that lives."""
        lost = 0
        for number in range(count):
            name = f'locked{number}'
            place = self.bench.folder / f'save/{name}/training'
            place.parent.mkdir(parents=True)
            if draw.random() < 0.5:
                lock = place.with_name('.training.lock')
                lock.write_bytes(draw.choice([b'', b'process 1 on elsewhere, since 2020-01-01 00:00:00', draw.randbytes(300)]))
                moment = time.time() + draw.uniform(-1e9, 1e9)
                os.utime(lock, (moment, moment))
                fine = True
            else:
                def hold(place=place):
                    with locks.hold(place, 'a test holds this'):
                        place.with_name('held').touch()
                        time.sleep(60)
                holder = several.fork(self.bench.folder / f'{name}.out', self.bench.folder / f'{name}.err', hold)
                while not place.with_name('held').exists():
                    time.sleep(0.01)
                fine = self.refused(name + 'second', 'is being trained by process', 'main', *self.bench.flags, f'--experiment_name={name}')
                os.kill(holder, draw.choice([signal.SIGKILL, signal.SIGTERM]))
                several.code_of(holder)
                place.with_name('held').unlink()
            start = time.monotonic()
            code = several.code_of(self.bench.start(name))
            took = time.monotonic() - start
            if not fine or code or took > 10 * self.bench.seconds + 10 or not self.bench.is_as_undisturbed(name):
                lost += 1
                print(took, self.bench.said(name))
        return lost

    def rows(self):
        """{fault: (how often, what tries it)}."""
        return {'truth replaced between two evaluations': (20, self.truth_replaced),
                'labels rotated': (20, self.labels_rotated),
                'training set changed before a resume': (20, self.training_set_changed),
                'folder of images that cannot be read': (20, self.unreadable),
                'photos replaced under a cache': (20, self.cache_superseded),
                'test images among training images': (20, self.test_among_training),
                'lock that was left, or whose holder is killed': (20, self.locks)}
