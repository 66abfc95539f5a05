"""Intervals of figures: against theory, paired over the same units alone, and over trainings."""
import re

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT

from reports import columns, paper
from reports.columns import COMPARED
from reports.intervals import Estimate, interval_over_trainings, mean_interval, mean_terms
from wsol import metrics


def mean_of(values, units=('a',)):
    """The Estimate of a mean over units."""
    values = np.asarray(values, float)
    return Estimate(float(np.nanmean(values)), units, mean_terms(values))


def test_the_interval_of_a_share_is_the_normal_one():
    low, high = mean_of(np.arange(4000) % 10 < 3).interval()
    half = 1.96 * (0.3 * 0.7 / 4000) ** 0.5
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.1 * half)


def test_the_interval_of_a_paired_difference_is_mcnemars():
    """Both right, only the first, only the second, none: 1000, 300, 200, 500 images."""
    first, second = (mean_of(np.repeat(values, [1000, 300, 200, 500])) for values in ([1, 1, 0, 0], [1, 0, 1, 0]))
    value, low, high = mean_interval([first], [second])
    half = 1.96 * ((500 - 100 ** 2 / 2000) / 2000 ** 2) ** 0.5
    assert value == pytest.approx(0.05) and (low, high) == pytest.approx((0.05 - half, 0.05 + half), abs=0.1 * half)
    assert mean_interval([first], [first]) == (0, 0, 0)


def test_a_unit_without_a_value_is_left_out_of_both():
    first, second = mean_of([1, np.nan, 5]), mean_of([2, 100, np.nan])
    assert mean_interval([first], [second]) == (-1, None, None)  # one unit alone has both, and gives no interval
    assert 1 <= first.interval()[0] <= first.interval()[1] <= 5


def test_what_has_other_units_or_draws_is_not_paired():
    draws = Estimate(1.0, ('a',), draws=np.ones(5), number=6)
    for first, second in ((mean_of([0, 1]), mean_of([0, 1], ('b',))), (draws, draws._replace(units=('a', 'other draws')))):
        assert mean_interval([first], [second]) == (first.value - second.value, None, None)
    assert mean_interval([Estimate(3.0)], [Estimate(1.0)]) == (2, None, None)


def test_a_mean_over_networks_is_that_of_their_ratios():
    """R_k is a ratio: the mean of 1/2 and 1/4 is 3/8, and not the 2/6 of all counts together."""
    def ratio(above, below):
        return Estimate(sum(above) / sum(below), ('images',), np.array([above, below], float).T)
    networks, others = [ratio([1, 0, 0], [1, 1, 0]), ratio([1, 0, 0], [2, 1, 1])], [ratio([1, 0, 0], [1, 0, 0])]
    value, low, high = mean_interval(networks, others)
    assert value == pytest.approx(3 / 8 - 1) and low <= value <= high


def test_draws_of_a_result_differ_draw_by_draw():
    """As those of the published protocol, some of which have no value."""
    rng = np.random.default_rng(0)

    def drawn(*values, number=4):
        return [Estimate(value, ('images',), draws=np.append(rng.normal(value, 3, 4000), np.nan), number=number) for value in values]
    networks, others = drawn(5.0, 7.0), drawn(1.0, 2.0)
    draws = np.mean([one.draws for one in networks], 0) - np.mean([one.draws for one in others], 0)
    assert mean_interval(networks, others) == pytest.approx((4.5, *np.nanquantile(draws, [0.025, 0.975])))
    assert networks[0].interval() == pytest.approx([*np.nanquantile(networks[0].draws, [0.025, 0.975])])
    # with trainings: the variance of the draws, as of so many pairs, and of either mean
    variances = [(np.nanvar(draws) * 4 / 3, 3), (1.0, 1), (0.25, 1)]
    value, low, high = interval_over_trainings(networks, others)
    assert value == 4.5 and high - value == pytest.approx(metrics.half_width(variances)) == pytest.approx(value - low)
    alone = drawn(5.0, 7.0, number=1)
    assert alone[0].interval() == (None, None) and interval_over_trainings(alone, alone) == (None, None, None)


@pytest.mark.parametrize(('networks', 'spreads'), [(3, (1, 1)), (2, (3, 0.5))])
def test_an_interval_over_trainings_covers_about_as_often_as_it_says(networks, spreads):
    """Figures of class pairs by networks, each with a part that is its own: the true difference, 0, is seldom outside,
    where the interval over the pairs alone misses it far more often."""
    rng, outside = np.random.default_rng(0), np.zeros(2)

    def measured(pairs, spread):
        return [mean_of(values) for values in pairs + rng.normal(0, spread, (networks, 1)) + rng.normal(0, 1, (networks, len(pairs)))]
    for _ in range(150):
        pairs = rng.normal(0, 5, 25)
        estimates, others = (measured(pairs + rng.normal(0, 1.5, 25), spread) for spread in spreads)
        bounds = interval_over_trainings(estimates, others)[1:], mean_interval(estimates, others)[1:]
        outside += [not low < 0 < high for low, high in bounds]
    assert 0 < outside[0] / 150 < 0.16 and outside[1] / 150 > 0.15


def test_one_unit_or_figures_that_do_not_vary_have_no_interval():
    one, two, three, four = (mean_of([value]) for value in (1, 2, 3, 4))
    assert three.interval() == (None, None) and mean_interval([three, four], [one]) == (2.5, None, None)
    assert interval_over_trainings([three, four], [one, two]) == (None, None, None)
    assert interval_over_trainings([Estimate(5.0)] * 2, [Estimate(5.0)] * 2) == (None, None, None)


def test_figures_without_units_differ_by_welch():
    first, second = (1.0, 2.0, 4.0), (0.0, 0.5, 3.0, 3.5)
    expected = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    value, *bounds = interval_over_trainings([*map(Estimate, first)], [*map(Estimate, second)])
    assert value == pytest.approx(7 / 3 - 7 / 4) and bounds == pytest.approx([*expected])


# --- what results say ------------------------------------------------------------------------------------------------


def test_the_draws_of_a_result_lie_about_its_value_and_one_pair_alone_has_none():
    def read(one_part, drawn):
        values = {count: dict.fromkeys(paper.KEYS, 20.0) for count in columns.PXAP}
        pairs = [{'classes': [1, number], 'parts': ['head'] * kind, 'pxap': {'parts': dict.fromkeys(columns.PXAP, 20.0)}}
                 for number, kind in enumerate([1] * one_part + [2] * 3)]
        return columns.read_estimates({'metric': 'cue_location', 'images_sha256': 'x', 'pxap': {'parts': values}, 'pairs': pairs,
                                       'published_draws': drawn, 'mass': {}, 'dropped': {'parts': {'true': None, 'false': 1.0}}})
    drawn = {'pairs_sha256': 'abc'} | dict.fromkeys(('published', 'published, all pixels'), dict.fromkeys(paper.KEYS, '22.00 23.00 nan 24.00'))
    estimates = read(1, drawn)
    np.testing.assert_allclose(estimates['published: 2'].draws, [19, 20, np.nan, 21])
    assert estimates['published: 1'].interval() == (None, None) and estimates['published: 2'].interval()[0] > 19
    assert read(2, drawn)['published: 1'].interval()[0] > 19
    assert read(1, None)['published: 2'] == Estimate(20.0)  # a result of very many thresholds
    assert estimates[f'{COMPARED}: mean'].terms.shape == (4, 2)


def test_the_papers_figures_are_the_documents():
    """The table of docs/protocols.md and the module say the same."""
    rows = re.findall(r'^\| ([\w ]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$', (ROOT / 'docs/protocols.md').read_text(), re.M)
    assert {name: tuple(map(float, values)) for name, *values in rows} == {
        name: paper.PXAP[method] for method, name in paper.METHODS.items()}
