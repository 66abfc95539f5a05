"""Whatever becomes of a file, its parser returns or says in one line what is wrong: hypothesis, over 2,000 files."""
import argparse

import hostile
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import config

EACH = 80  # files for each parser
RELAXED = {'deadline': None, 'derandomize': True, 'suppress_health_check': list(HealthCheck)}


@pytest.mark.parametrize('name', hostile.PARSERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(name, tmp_path):
    path, read = hostile.setting_up(name, tmp_path)
    whole = path.read_bytes()
    assert hostile.outcome(read) is None  # as it is, it is read
    refusals = []

    @settings(max_examples=EACH, **RELAXED)
    @given(st.randoms(use_true_random=False))
    def damage(random):
        path.write_bytes(hostile.mutate(random, whole))
        refusals.append(hostile.outcome(read))
    damage()
    assert len(refusals) >= EACH and any(refusals) or name in ('log_lines', 'checked_lists')


def test_there_are_over_2000_of_them():
    assert len(hostile.PARSERS) * EACH >= 2000


@pytest.mark.parametrize('flag', config.ALL_FLAGS)
@settings(max_examples=8, **RELAXED)
@given(text=st.one_of(st.text(), st.integers().map(str), st.floats().map(str), st.sampled_from([
    '9' * 5000, '1' * 400 + '.5', '1e999', '²', '½', '\0', '--', 'nan', '-0', '1_0', ' 1', '٣'])))
def test_any_text_is_a_flags_value_or_refused(flag, text):
    """And what is taken is taken for itself when a checkpoint carries it."""
    try:
        value = config.ALL_FLAGS[flag].parse(text)
    except argparse.ArgumentTypeError as error:
        assert str(error)
        return
    assert config.problem_of(flag, value) is None


@settings(max_examples=200, **RELAXED)
@given(st.sampled_from(sorted(config.ALL_FLAGS)), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner), max_leaves=4))
def test_any_setting_of_a_checkpoint_is_looked_at(flag, value):
    problem = config.problem_of(flag, value)
    assert problem is None or '\n' not in problem.strip() or isinstance(value, (str, bytes))
