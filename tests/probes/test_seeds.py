"""Several seeds of one recipe: what all of them do is found, what one of them does is not."""

import numpy as np
import pytest

from rlhfkit.probes.compare import over_seeds
from rlhfkit.probes.probe import Measurement


def seed_of(shift, seed, num=60):
    """(before, after) of one run, whose items change by `shift` on average."""
    generator = np.random.default_rng(seed)
    before = generator.normal(size=num)
    sides = before, before + shift + 0.1 * generator.normal(size=num)
    clusters = tuple(map(str, range(num)))
    return tuple(
        [
            Measurement(
                probe="p",
                name="n",
                words="does it",
                unit="score",
                values=tuple(side),
                clusters=clusters,
                items=clusters,
            )
        ]
        for side in sides
    )


def test_what_three_seeds_do_alike_is_found_with_each_of_them():
    (found,) = over_seeds([seed_of(shift, seed) for seed, shift in enumerate((1.0, 1.1, 0.9))], primary="p", seed=0)
    assert found.difference.mean == pytest.approx(1.0, abs=0.05) and found.difference.low > 0.7
    assert (found.reading, found.num_clusters, found.num_items) == ("worse", 3, 180)
    assert found.note.startswith("each seed: +1.0") and found.note.count(",") == 2


def test_what_one_seed_of_three_does_is_no_evidence_though_its_items_are_clear():
    (found,) = over_seeds([seed_of(shift, seed) for seed, shift in enumerate((2.0, 0.0, 0.0))], primary="p", seed=0)
    assert found.reading == "no evidence" and found.difference.low < 0.1 < 2 / 3 < found.difference.high
    assert found.detectable > found.difference.mean


def test_one_seed_alone_tests_nothing():
    (found,) = over_seeds([seed_of(1.0, 0)], primary="p", seed=0)
    assert (found.p_value, found.detectable, found.difference.low) == (1.0, None, None)
