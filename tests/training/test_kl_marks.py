from rlhfkit.training.kl_marks import MARKS, comes_to_a_mark


def marked(kls, budget):
    """The iterations that are evaluated for their KL."""
    return [at for at in range(len(kls)) if comes_to_a_mark(kls[:at], budget)]


def test_a_policy_on_its_way_is_evaluated_before_it_passes_a_mark():
    """3 nats an iteration, of 10: what is expected of the iterations 2, 3 and 4 is 6, 9 and 12."""
    assert marked([0.0, 3.0, 6.0, 9.0, 12.0, 15.0], 10.0) == [2, 3, 4]
    assert not comes_to_a_mark([0.0, 2.0], 10.0)  # 4 of 10


def test_who_stays_near_the_budget_is_not_evaluated_again_and_again():
    kls = [10 * (1 - 0.5**at) for at in range(40)]
    assert len(marked(kls, 10.0)) <= len(MARKS)
    swinging = [9.0 + (at % 2) for at in range(40)]
    assert len(marked(swinging, 10.0)) == 1


def test_what_falls_is_expected_to_stay():
    assert not comes_to_a_mark([4.0, 2.0], 10.0) and not comes_to_a_mark([], 10.0) and not comes_to_a_mark([9.0], 10.0)
