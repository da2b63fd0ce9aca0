"""The best of n against all ways to draw n, one by one."""

import math
from itertools import combinations

import pytest

from rlhfkit.errors import ShapeError
from rlhfkit.stats.best_of_n import at_distance, best_of_n, best_of_n_kl_bound

SCORES = [0.3, -1.0, 2.0, 0.3, 0.3, 5.0, -1.0]
VALUES = [7.0, 1.0, -3.0, 4.0, 1.5, 2.0, 0.25]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_estimate_is_the_mean_over_all_draws_and_ties_are_shared(n):
    best = []
    for drawn in combinations(range(7), n):
        highest = max(SCORES[row] for row in drawn)
        tied = [VALUES[row] for row in drawn if SCORES[row] == highest]
        best.append(sum(tied) / len(tied))
    assert best_of_n(SCORES, VALUES, n) == pytest.approx(sum(best) / len(best), abs=1e-12)


def test_numbers_that_do_not_fit_are_refused():
    for scores, values, n in ([1.0], [1.0], 2), ([1.0], [1.0], 0), ([1.0, 2.0], [1.0], 1):
        with pytest.raises(ShapeError, match=rf"n = {n}; expected"):
            best_of_n(scores, values, n)


def test_bound_holds_and_is_reached_where_no_two_responses_are_alike():
    def kl(probabilities, n):
        """Of the best of n to the model, for responses by rising score: P(best is i) = F(i)^n - F(i-1)^n."""
        found, below = 0.0, 0.0
        for p in probabilities:
            best = (below + p) ** n - below**n
            found += best * math.log(best / p)
            below += p
        return found

    assert best_of_n_kl_bound(1) == 0.0 and best_of_n_kl_bound(2) == pytest.approx(0.1931471805599453)
    for n in (2, 4, 16):
        assert kl([0.5, 0.3, 0.2], n) < best_of_n_kl_bound(n) - 0.01
        assert kl([1e-4] * 10_000, n) == pytest.approx(best_of_n_kl_bound(n), abs=1e-3)


def test_a_curve_is_read_off_between_its_points_and_not_beyond_them():
    curve = [(4.0, 3.0), (0.0, -1.0), (2.0, 1.0), (2.0, 5.0)]
    assert at_distance(curve, 1.0) == 0.0  # half the way from -1 to 1
    assert at_distance(curve, 3.0) == 4.0  # half the way from 5 to 3
    assert at_distance(curve, 4.0) == 3.0
    assert at_distance(curve, 4.1) is None and at_distance(curve, -0.5) is None
    assert at_distance([(1.0, 2.0)], 1.0) == 2.0
