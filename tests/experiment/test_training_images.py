"""A training goes on with the images that it began with, and several processes train on the same ones."""
import os
import random
import shutil

import numpy as np
import pytest
import several
import torch
from conftest import SMALL, accepted, change_checkpoint, files_below, paint_folder, refused, roots_of

from dataset.fingerprints import Contents
from dataset.images import ImageDataset
from experiment import training, training_images, weights


def test_what_has_happened_to_the_images_is_counted(tmp_path, monkeypatch):
    """Compared with counts of plain dicts, for images that are drawn anew a hundred times."""
    draw, photos = random.Random(0), {}
    monkeypatch.setattr(Contents, 'of', lambda _, paths: [f'{photos[path.name]:08x}'.ljust(64, '0') for path in paths])

    def record(images):
        photos.update({name: photo for name, (_, photo) in images.items()})
        labels = np.array([label for label, _ in images.values()])
        return training_images.record(ImageDataset(np.array([name.encode() for name in images]), labels, tmp_path, None))
    for _ in range(100):
        names = draw.sample([f'{number}.png' for number in range(40)], 30)
        before = {name: (draw.randrange(3), draw.randrange(3)) for name in names[:draw.randrange(1, 30)]}
        now = {name: draw.choice([content, (draw.randrange(3), draw.randrange(3))]) for name, content in before.items()
               if draw.random() < 0.9} | dict.fromkeys(names[draw.randrange(29, 31):], (0, 1))
        if not now:
            continue
        earlier, later = record(before), record(now)
        assert training_images.difference(earlier, earlier) is None and training_images.is_record(earlier)
        kept = before.keys() & now.keys()
        counts = [len(before.keys() - kept), len(now.keys() - kept), sum(before[name] != now[name] for name in kept)]
        kinds = ('gone', 'new', 'with another label or content')
        words = [f'{count} {what}' for count, what in zip(counts, kinds, strict=True) if count]
        text = training_images.difference(earlier, later)
        assert (text or '').endswith(', '.join(words)) and bool(text) == bool(words)
    assert training_images.difference(earlier, earlier.flip(0)).endswith('in another order')


def replace(path):
    """Another photo of the same size and time of writing."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 64  # in the pixels of a JPEG
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {  # what happens to the class folders of the training images, and how it is told
    'gone': (lambda train: (train / 'cat/0.jpg').unlink(), '12 images then, 11 now: 1 gone)'),
    'new': (lambda train: shutil.copy(train / 'cat/0.jpg', train / 'cat/9.jpg'), '12 images then, 13 now: 1 new)'),
    'moved': (lambda train: (train / 'cat/0.jpg').rename(train / 'dog/9.jpg'), '12 images then, 12 now: 1 gone, 1 new)'),
    'replaced': (lambda train: replace(train / 'cat/0.jpg'), '12 images then, 12 now: 1 with another label or content)')}


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('step', [2, 5])  # in the first epoch, of three steps, and in the second
def test_a_training_does_not_go_on_with_other_images(script, pets, tmp_path, monkeypatch, change, step):
    with monkeypatch.context() as stopping:
        stopping.setattr(training.Training, 'take_step', several.fail_at(step, 'stop'))
        assert script('main', *pets, '--epochs=2')[0] == 143
    before = files_below(tmp_path / 'save/result')
    make, told = CHANGES[change]
    make(tmp_path / 'pets/train')
    refused(script('main', *pets, '--epochs=2'), 'was trained on other images', told, '--override_cache', '--load_checkpoint')
    assert files_below(tmp_path / 'save/result') == before
    accepted(script('main', *pets, '--epochs=1', '--override_cache'))


def test_a_head_that_trained_on_features_does_not_go_on_with_those_of_other_images(script, pets, tmp_path):
    for flags in ([], ['--cache']):
        frozen = [*pets, '--freeze', *flags, f'--experiment_name={len(flags)}']
        assert script('main', *frozen, '--epochs=1')[0] == 0
        replace(tmp_path / 'pets/train/dog/0.jpg')
        before = files_below(tmp_path / 'save')
        refused(script('main', *frozen, '--epochs=2'), '1 with another label or content')
        assert {name: content for name, content in files_below(tmp_path / 'save').items() if 'sqlite' not in name} == {
            name: content for name, content in before.items() if 'sqlite' not in name}  # nor does a cache go


def test_lists_that_give_another_label_or_order_are_refused(script, own_birds):
    flags, folder = [*own_birds, *SMALL], roots_of(own_birds)[1] / 'ToyBirds/train'
    assert script('main', *flags, '--epochs=1')[0] == 0
    labels, ids = ((folder / f'{name}.txt').read_text().splitlines() for name in ('class_labels', 'image_ids'))
    (folder / 'image_ids.txt').write_text('\n'.join(ids[::-1]))
    refused(script('main', *flags, '--epochs=2'), '54 images then, 54 now: in another order')
    (folder / 'image_ids.txt').write_text('\n'.join(ids))
    (folder / 'class_labels.txt').write_text('\n'.join([*labels[:-1], labels[-1].split(',')[0] + ',0']))
    refused(script('main', *flags, '--epochs=2'), '54 images then, 54 now: 1 with another label')


def test_a_record_of_another_form_is_refused_and_another_torch_is_told(script, pets, tmp_path):
    assert script('main', *pets, '--epochs=1')[0] == 0
    path = tmp_path / 'save/result' / weights.FILE
    change_checkpoint(path, lambda content: content | {'torch': '1.2.3'})
    accepted(script('main', *pets, '--epochs=2'), 'was trained with torch 1.2.3, this is torch')
    for wrong in (torch.zeros(3), torch.zeros(2, 3), 'x'):
        change_checkpoint(path, lambda content, wrong=wrong: content | {'training_images': wrong})
        refused(script('main', *pets, '--epochs=4'), 'its training_images is')


# --- several processes ------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def forks():
    with several.Forks() as started:
        yield started


@pytest.mark.parametrize('more', [1, 4, 0])
@pytest.mark.parametrize('script_name', ['main', 'eval_pixel_perturb'])
def test_processes_that_see_different_images_end_before_the_first_step(forks, tmp_path, script_name, more):
    """One image more, a third more, and as many of other names; in trainings and in evaluations."""
    for rank in range(2):
        paint_folder(tmp_path / str(rank) / 'pets', counts=(4, 2, 2))
    split = 'train' if script_name == 'main' else 'test'
    folder = tmp_path / '1/pets' / split / 'cat'
    for number in range(more):
        shutil.copy(folder / '0.jpg', folder / f'more{number}.jpg')
    if not more:
        (folder / '0.jpg').rename(folder / 'same.jpg')
    flags = ['--dataset=./{rank}/pets', '--architecture=resnet34', '--pretrained=False', '--crop_size=32', '--resize_size=36',
             '--workers=0', '--batch_size=5', '--epochs=1', '--seed=0']
    if script_name != 'main':
        forks.start(tmp_path, [['main', *flags]], 1)
        assert [code for code, *_ in forks.ended()] == [0]
    forks.start(tmp_path, [[script_name, *flags[:1], '--workers=0'] if script_name != 'main' else [script_name, *flags]], 2)
    ended = forks.ended()
    errors = [line for _, _, err in ended for line in err.splitlines() if line.startswith('error: ')]
    assert [code for code, *_ in ended] == [2, 2] and len(errors) == 1, ended
    assert 'list different images of' in errors[0] and f'/pets {split}' in errors[0]
    count = 12 if split == 'train' else 6
    assert f'{count} images, fingerprint' in errors[0] and f'{count + more} images, fingerprint' in errors[0]
