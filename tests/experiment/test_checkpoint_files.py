"""Checkpoint files: one changed bit is refused and the generation before offered; what they hold is what it should be."""
import contextlib
import functools
import threading

import hostile
import numpy as np
import pytest
import torch
from conftest import accepted, content_of, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment import checkpoint_files, training, weights
from experiment.checkpoint_files import BEST, LAST, PREVIOUS
from wsol.errors import UserError
from wsol.weights import files


@pytest.fixture
def whole(tmp_path):
    """A checkpoint's path."""
    checkpoint_files.write(tmp_path / 'whole.pth.tar', hostile.checkpoint_content())
    return tmp_path / 'whole.pth.tar'


def test_torch_reads_a_sealed_file_like_any_other(whole):
    content = torch.load(whole, weights_only=True)
    assert content.keys() == hostile.checkpoint_content().keys() and content['sums'] == [(1.5, 2, 3, 0.25)]


def test_a_changed_bit_anywhere_is_refused(whole):
    before = whole.read_bytes()

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.integers(0, 8 * len(before) - 1))
    def turn(bit):
        changed = bytearray(before)
        changed[bit // 8] ^= 1 << bit % 8
        whole.write_bytes(changed)
        with pytest.raises(UserError, match=r'whole\.pth\.tar cannot be read as weights \(.*damaged'):
            checkpoint_files.read(whole)
    turn()
    for bit in range(8 * (len(before) - 110), 8 * len(before)):  # every bit of the seal, and of the zip's end before it
        turn.hypothesis.inner_test(bit)


def test_a_file_cut_off_anywhere_is_refused(whole):
    before = whole.read_bytes()
    for size in range(0, len(before), 37):
        whole.write_bytes(before[:size])
        with pytest.raises(UserError, match='damaged'):
            checkpoint_files.read(whole)


NAN, HUGE = torch.full((3, 8, 1, 1), float('nan')), torch.zeros(1).expand(1 << 40)


@pytest.mark.parametrize('change, words', [
    ({'epoch': -5}, 'epoch is a int, -5'), ({'epoch': 1.5}, 'epoch'), ({'epoch': True}, 'epoch'), ({'step': 'x'}, 'step'),
    ({'model': {'prior': []}}, 'prior'), ({'model': {'num_classes': 2**70}}, 'num_classes'), ({'model': {'num_classes': 4}}, 'num_classes'),
    ({'model': {'depth': 3}}, 'depth: no flag has this name'), ({'args': {'lr': float('nan')}}, 'setting lr'),
    ({'args': {'crop_size': 10**9}}, 'setting crop_size'), ({'args': {'crop_size': '56'}}, 'setting crop_size'),
    ({'args': {'iou_thresholds': ('x',)}}, 'iou_thresholds'), ({'class_names': ['a']}, 'names 1 classes, and its network has 3'),
    ({'class_names': [1, 2, 3]}, 'class_names'), ({'normalisation': ((0, 0, 0), (0, 1, 1))}, 'normalisation'),
    ({'normalisation': ((0, 0), (1, 1))}, 'normalisation'), ({'command': 'main.py'}, 'command'), ({'log': [{'epoch': 1}]}, 'log'),
    ({'sums': [(float('nan'), 1, 1, 1)]}, 'sums'), ({'sums': []}, 'sums'), ({'optimizer': [1]}, 'optimizer'),
    ({'state_dict': {'x': HUGE}}, 'x is no weight'), ({'state_dict': {'x': NAN.to_sparse()}}, 'x is no weight'),
    ({'state_dict': {'x': NAN.to(torch.complex64)}}, 'x is no weight'), ({'state_dict': {1: NAN}}, '1 is no name'),
    ({'state_dict': None}, 'state_dict is a NoneType')], ids=str)
def test_content_that_cannot_be_is_refused_in_one_line(tmp_path, change, words):
    content = hostile.checkpoint_content()
    for key, value in change.items():
        content[key] = content[key] | value if key in ('model', 'args', 'state_dict') and value else value
    torch.save(content, tmp_path / 'whole.pth')
    with pytest.raises(UserError) as caught:
        checkpoint_files.read(tmp_path / 'whole.pth')
    assert words in str(caught.value) and '\n' not in str(caught.value)


def test_what_is_beside_the_weights_of_a_file_from_elsewhere_is_no_record(tmp_path):
    state = hostile.checkpoint_content()['state_dict']
    for beside in ({'command': 'train.py'}, {'model': 'resnet18', 'epoch': 'last'}, {'args': {'lr': 'x'}, 'optimizer': None}, {'command': ['a'], 'model': None}):
        torch.save(beside | {'state_dict': state}, tmp_path / 'file.pth')
        content = weights.read_checkpoint(tmp_path / 'file.pth').content
        assert content['state_dict'].keys() == state.keys() and not {'model', 'args', 'epoch', 'optimizer'} & content.keys()
    torch.save(hostile.checkpoint_content(), tmp_path / 'file.pth')
    with pytest.raises(UserError, match='leave --weights_key out'):
        checkpoint_files.read(tmp_path / 'file.pth', 'state_dict')


def test_a_disk_that_gives_back_something_else_leaves_the_old_file(whole, monkeypatch):
    before, check = whole.read_bytes(), files.check_whole

    def fail(file):
        if 'partial' in file.name:
            raise ValueError('it is damaged')
        check(file)
    monkeypatch.setattr(files, 'check_whole', fail)
    with pytest.raises(UserError, match='could not be verified after writing; the disk may be failing'):
        checkpoint_files.write(whole, {'epoch': 3})
    assert whole.read_bytes() == before and list(whole.parent.iterdir()) == [whole]


def test_readers_beside_a_writer_see_whole_checkpoints(tmp_path):
    """Of one generation or the next; never of none, of half of one, or an older one than before."""
    content, end, seen = hostile.checkpoint_content(), threading.Event(), []
    checkpoint_files.save(tmp_path, content | {'epoch': 0}, is_first=True)

    def write():
        for epoch in range(1, 40):
            checkpoint_files.save(tmp_path, content | {'epoch': epoch})
        end.set()
    writer = threading.Thread(target=write)
    writer.start()
    while not end.is_set():
        seen.append(checkpoint_files.read(tmp_path / LAST)['epoch'])
    writer.join()
    assert len(seen) > 10 and seen == sorted(seen)
    assert checkpoint_files.read(tmp_path / PREVIOUS)['epoch'] == 38
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]


# --- the generations of an experiment ---------------------------------------------------------------------------------


def test_a_damaged_checkpoint_offers_the_one_before_and_the_training_goes_on_from_it(script, pets, tmp_path):
    folder = tmp_path / 'save/result'
    assert script('main', *pets, '--epochs=2')[0] == 0
    content = bytearray((folder / LAST).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / LAST).write_bytes(content)
    refused(script('main', *pets, '--epochs=3'), f'{LAST} cannot be read', f'{PREVIOUS} is whole (after epoch 1)')
    refused(script('main', *pets, '--is_train=False'), f'{PREVIOUS} is whole (after epoch 1)')
    assert script('main', *pets, '--is_train=False', f'--load_checkpoint={folder / PREVIOUS}')[0] == 0
    (folder / LAST).unlink()
    accepted(script('main', *pets, '--epochs=3'), '1 finished epochs')
    assert content_of(folder)['epoch'] == 3


def test_the_best_checkpoint_is_that_of_the_first_best_epoch(script, pets, tmp_path, monkeypatch):
    folder, correct = tmp_path / 'save/result', iter([2, 3, 3, 1])  # images of four
    monkeypatch.setattr(training, 'classify', lambda *_: (None, np.arange(4) < next(correct)))
    assert script('main', *pets, '--epochs=4')[0] == 0
    epochs = [checkpoint_files.read(folder / name)['epoch'] for name in (LAST, PREVIOUS, BEST)]
    assert epochs == [4, 3, 2]


def test_what_killed_runs_left_is_removed_and_nothing_else(script, pets, tmp_path):
    folder = tmp_path / 'save/result'
    folder.mkdir(parents=True)
    left = [folder / f'.{name}.0123456789ab.partial' for name in (LAST, BEST, 'log.jsonl')]
    kept = [folder / name for name in ('.notes.partial', f'.{LAST}.mine.partial')]
    for path in (*left, *kept):
        path.touch()
    assert script('main', *pets, '--epochs=1')[0] == 0
    assert all(path.exists() for path in kept) and not any(path.exists() for path in left)
    assert weights.read_checkpoint(folder / LAST).epoch == 1


ODD = [None, -5, 2**70, [], {}, 'x', 1.5, float('nan'), (), b'x', True, torch.zeros(2), torch.zeros(()), [[[1]]], {'a': 1}]


@pytest.mark.parametrize('part', [(), ('model',), ('args',)])
def test_a_record_of_any_value_is_read_or_refused(part, tmp_path):
    """A tensor is neither true nor false, so that no comparison with it may decide by itself."""
    for key in functools.reduce(dict.get, part, hostile.checkpoint_content()):
        for value in ODD:
            content = hostile.checkpoint_content()
            functools.reduce(dict.get, part, content)[key] = value
            torch.save(content, tmp_path / 'odd.pth')
            with contextlib.suppress(UserError):
                checkpoint_files.read(tmp_path / 'odd.pth')
