"""Locks: one holder at a time, named to those who find it; a killed one blocks nobody; nothing is left behind."""
import errno
import os
import signal
import time
import warnings
from contextlib import contextmanager

import filelock
import pytest
from conftest import files_below, refused, roots_of

from dataset import toybirds
from runtime import locks
from wsol.errors import UserError


@contextmanager
def child(work):
    """work(say) in a process of its own. Yields (process id, hear): hear() waits for what it says, a byte at a time."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Python warns of forks beside threads; these children start none that matter
        number = os.fork()
    if not number:
        code = 1
        try:
            work(lambda: os.write(writer, b'.'))
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    try:
        yield number, lambda: os.read(reader, 1)
    finally:
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
        os.close(reader)


def holding(place):
    """Work that holds the lock of a place until it is killed."""
    def work(say):
        with locks.hold(place, f'{place.name} is being made'):
            say()
            time.sleep(600)
    return work


@pytest.fixture
def place(tmp_path):
    return tmp_path / 'new' / 'thing'


def test_the_holder_is_named_and_nothing_is_left(place):
    with child(holding(place)) as (number, hear):
        assert hear() == b'.'
        for _ in range(2):  # asking leaves the holder's name in place
            with pytest.raises(UserError, match=rf'thing is wanted by process {number} on {os.uname().nodename}, since 20'), \
                    locks.hold(place, 'thing is wanted'):
                pass
    assert place.with_name('.thing.lock').exists()  # the killed process left its file, which blocks nobody
    with locks.hold(place, ''):
        assert [path.name for path in place.parent.iterdir()] == ['.thing.lock']
    assert not list(place.parent.iterdir())


def test_the_processes_that_a_killed_holder_has_forked_do_not_hold_its_lock(place):
    """As the loader processes of a training, which end a few seconds after it."""
    def work(say):
        with locks.hold(place, ''):
            if os.fork():
                say()
            time.sleep(3)
    with child(work) as (_, hear):
        assert hear() == b'.'
    with locks.hold(place, ''):
        pass


def test_of_many_that_race_one_holds_it(place):
    """Six processes add to a number in a file, ten times each, in steps that would lose some if two came between."""
    place.parent.mkdir()
    counter = place.with_name('counter')
    counter.write_text('0')

    def work(say):
        for _ in range(10):
            with locks.hold(place, '', wait=True):
                number = int(counter.read_text())
                time.sleep(0.001)
                counter.write_text(str(number + 1))
        say()
        time.sleep(600)

    def run(left):
        with child(work) as (_, hear):
            if left:
                run(left - 1)
            assert hear() == b'.'
    run(5)
    assert counter.read_text() == '60'


def test_who_waits_says_so_once_and_goes_on_when_the_holder_is_gone(place, capsys):
    with child(holding(place)) as (number, hear):
        assert hear() == b'.'
        with child(lambda _: (time.sleep(0.5), os.kill(number, signal.SIGKILL), time.sleep(600))), \
                locks.hold(place, 'thing is being made', wait=True):
            pass
    printed = capsys.readouterr().out
    assert printed.count('\n') == 1 and f'thing is being made by process {number} on ' in printed and 'waiting for it' in printed


def test_a_lock_that_cannot_be_opened_is_named(place):
    """As another user's, which a crash has left: one line says which file has to go."""
    place.with_name('.thing.lock').mkdir(parents=True)
    with pytest.raises(UserError, match=r'cannot lock .*thing: .*If no process uses .*\.thing\.lock, remove it'), \
            locks.hold(place, ''):
        pass


@pytest.mark.parametrize('number, is_refused', [(errno.ENOLCK, False), (errno.EROFS, True)])
def test_a_file_system_without_locks_is_told_and_one_that_is_read_only_refused(place, monkeypatch, capsys, number, is_refused):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(filelock.FileLock, 'acquire', fail)
    ran = []
    try:
        with locks.hold(place, ''):
            ran.append(True)
    except UserError as error:
        assert str(error) == f'cannot lock {place}: Read-only file system'
    assert bool(ran) != is_refused and ('has no locks' in capsys.readouterr().err) != is_refused
    assert not place.parent.exists()


def test_a_second_training_of_an_experiment_is_refused_before_it_touches_anything(script, pets, tmp_path):
    assert script('main', *pets, '--epochs=1')[0] == 0
    before = files_below(tmp_path / 'save')
    with child(holding(tmp_path / 'save/result/training')) as (number, hear):
        assert hear() == b'.'
        for more in ([], ['--override_cache']):
            refused(script('main', *pets, '--epochs=2', *more), f'by process {number} on ', '--experiment_name')
        assert script('main', *pets, '--is_train=False')[0] == 0  # evaluations read beside it
        assert {name: content for name, content in files_below(tmp_path / 'save').items() if name in before} == before
    assert script('main', *pets, '--epochs=2')[0] == 0


def test_two_that_paint_at_once_leave_one_whole_painting(tmp_path, tiny_birds):
    def work(say):
        toybirds.paint_dataset(tmp_path / 'data', tmp_path / 'meta', {'train': 3, 'val': 1, 'test': 2}, seed=5)
        say()
        time.sleep(600)
    with child(work) as (_, first), child(work) as (_, second):
        assert first() == second() == b'.'
    for folder, reference in zip(('data', 'meta'), roots_of(tiny_birds), strict=True):
        assert files_below(tmp_path / folder) == files_below(reference)
