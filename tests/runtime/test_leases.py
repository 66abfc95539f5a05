"""Leases: one holder at a time, told to others; a dead one's is taken over, at once on one kernel and later elsewhere."""
import os
import signal
import time
import warnings
from contextlib import ExitStack, contextmanager

import pytest
from conftest import files_below, refused, roots_of

from dataset import toybirds
from runtime import leases
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
    """Work that holds the lease of a place until it is killed."""
    def work(say):
        with leases.hold(place, f'{place.name} is being made'):
            say()
            time.sleep(600)
    return work


@pytest.fixture
def place(tmp_path):
    return tmp_path / 'thing'


@pytest.fixture
def elsewhere(monkeypatch):
    """As another host, or another container's kernel, sees a lease: by its touches alone."""
    monkeypatch.setattr(leases, 'PERIOD', 0.6)
    yield lambda: monkeypatch.setattr(leases, '_kernel', lambda: 'another')


def test_the_holder_is_named_and_nothing_is_left(place):
    with child(holding(place)) as (number, hear):
        assert hear() == b'.'
        said = rf'thing is wanted by process {number} on {os.uname().nodename}, since 20'
        with pytest.raises(UserError, match=said), leases.hold(place, 'thing is wanted'):
            pass
    with leases.hold(place, '') as lease:  # killed a moment ago, with a PERIOD of a minute: taken over at once
        lease.check()
        assert list(place.parent.iterdir()) == [lease.path]  # the dead one's is gone
    assert list(place.parent.iterdir()) == []


def test_a_lease_of_another_kernel_lives_while_it_is_touched(place, elsewhere):
    with child(holding(place)) as (number, hear):
        assert hear() == b'.'
        elsewhere()
        for _ in range(3):
            with pytest.raises(UserError, match=f'by process {number}'), leases.hold(place, ''):
                pass
        os.kill(number, signal.SIGSTOP)  # asleep: from here on nothing touches it
        with leases.hold(place, '') as lease:
            os.kill(number, signal.SIGCONT)
            lease.check()


def test_who_slept_through_a_takeover_ends(place, elsewhere):
    def work(say):
        with leases.hold(place, '') as lease:
            say()
            os.kill(os.getpid(), signal.SIGSTOP)
            try:
                lease.check()
            except UserError as error:
                assert 'another has taken over' in str(error)
                say()
                time.sleep(600)
    with child(work) as (number, hear):
        assert hear() == b'.'
        elsewhere()
        with leases.hold(place, '') as lease:
            os.kill(number, signal.SIGCONT)
            assert hear() == b'.'
            lease.check()  # and what it left alone is this one's


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'{"host": 1}', b'\xff', b'[' * 5000])
def test_a_lease_that_says_nothing_is_nobodys_after_a_while(place, elsewhere, content):
    (place.parent / '.thing.lease.7').write_bytes(content)
    with leases.hold(place, '') as lease:
        assert list(place.parent.iterdir()) == [lease.path] and lease.path.name != '.thing.lease.7'


def test_of_many_that_race_one_holds_it(place):
    """Six processes add to a number in a file, ten times each, in steps that would lose some if two came between."""
    counter = place.with_name('counter')
    counter.write_text('0')

    def work(say):
        for _ in range(10):
            with leases.hold(place, '', wait=True):
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


def test_a_lease_that_is_made_while_another_is_taken_for_dead_is_seen(place, monkeypatch):
    """The first lets go while it is looked at, and at once a second process takes the thing: a third does not hold it too."""
    first, judge, second = leases._acquire(place, '', False), leases._holder, []

    with ExitStack() as stack:
        def slowly(path):
            if second:
                return judge(path)
            first.release()
            second.append(stack.enter_context(child(holding(place))))
            assert second[0][1]() == b'.'
            return None
        monkeypatch.setattr(leases, '_holder', slowly)
        with pytest.raises(UserError, match=f'by process {second[0][0] if second else ""}'), leases.hold(place, ''):
            pass
        assert len(second) == 1 and len(list(place.parent.iterdir())) == 1


def test_a_second_training_of_an_experiment_is_refused_before_it_touches_anything(script, pets, tmp_path):
    assert script('main', *pets, '--epochs=1')[0] == 0
    before = files_below(tmp_path / 'save')
    with child(holding(tmp_path / 'save/result/training')) as (number, hear):
        assert hear() == b'.'
        for more in ([], ['--override_cache']):
            refused(script('main', *pets, '--epochs=2', *more), f'by process {number} on ', '--experiment_name')
        assert script('main', *pets, '--is_train=False')[0] == 0  # evaluations read beside it
        assert {name: own for name, own in files_below(tmp_path / 'save').items() if name in before} == before
    assert script('main', *pets, '--epochs=2')[0] == 0


def test_two_that_paint_at_once_leave_one_whole_painting(tmp_path, tiny_birds):
    def work(say):
        toybirds.paint_dataset(tmp_path / 'data', tmp_path / 'meta', {'train': 3, 'val': 1, 'test': 2}, seed=5)
        say()
        time.sleep(600)
    with child(work) as (_, first), child(work) as (_, second):
        assert first() == second() == b'.'
    for own, reference in zip(('data', 'meta'), roots_of(tiny_birds), strict=True):
        assert files_below(tmp_path / own) == files_below(reference)
