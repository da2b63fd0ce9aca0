"""Charts of evaluations on the way: with the curve and its best distance where there is one, without where not."""

import math
from xml.etree import ElementTree as ET

from rlhfkit.report.on_the_way import on_the_way_charts
from rlhfkit.rundir.contents import Facts

KL = [0.0, 0.3, 1.2, 2.0, 3.5, 5.0, 8.0, 12.0, 16.0, 20.0, 26.0, 33.0]


def facts(*, num=None, by_prompt=True):
    """The judge follows d (1.5 - 0.7 ln d): best at exp(1.5 / 0.7 - 1) = 3.14, a KL of 9.83 nats."""
    rows, observations = [], []
    for at, kl in enumerate(KL[:num]):
        d = math.sqrt(kl)
        judge = d * (1.5 - 0.7 * math.log(d)) if d else 0.0
        numbers = {"ref_kl": kl, "judge": judge, "judge_error": 0.1, "distinct_2": 0.5 - 0.01 * at}
        row = {f"evaluation/{name}": value for name, value in numbers.items()}
        rows += [
            {"iteration": 2 * at, "score/mean": 0.2 * at, **row},
            {"iteration": 2 * at + 1, "score/mean": 0.2 * at},
        ]
        judged = [judge - 0.5, judge + 0.5]
        observations.append({"stage": "ppo", "iteration": 2 * at, "kind": "evaluation", "judge": judged})
    seen = observations if by_prompt else []
    return Facts("x", {}, {}, {}, {"ppo": rows}, (), None, None, 0, observations=seen)


def test_the_best_distance_is_drawn_and_told():
    course, distance, variety = on_the_way_charts(facts())
    assert [chart.title for chart in (course, variety)] == ["The judge on the way", "Variety on the way"]
    assert "d = 3.14, a KL of 9.83 nats" in distance.caption
    assert "the reward went on from 1.40 to 2.20" in distance.caption.replace("+", "")
    assert "best" in "".join(ET.fromstring(str(distance.svg)).itertext())
    assert "highest at 3.14" in str(distance.svg)


def test_it_is_told_without_the_scores_of_each_prompt_too():
    assert "d = 3.14" in on_the_way_charts(facts(by_prompt=False))[1].caption


def test_where_points_do_not_say_it_nothing_is_drawn_or_told():
    _, distance, _ = on_the_way_charts(facts(num=6))
    assert "highest" not in distance.caption + str(distance.svg)
    assert "best" not in "".join(ET.fromstring(str(distance.svg)).itertext())


def test_a_run_without_evaluations_has_none():
    assert (
        on_the_way_charts(Facts("x", {}, {}, {}, {"ppo": [{"iteration": 0, "score/mean": 1.0}]}, (), None, None, 0))
        == []
    )


def probed(share):
    """Two evaluations of a probe; its gate wants 0.7."""
    measure = {
        "metric": "evaluation/stereotypes/stereotyped",
        "words": "prefers the stereotyped sentence",
        "unit": "share",
    }
    gate = {"what": "words are in order", "least": 0.7}
    rows = [
        {
            "stage": "ppo",
            "iteration": at,
            "kind": "probes",
            "measures": [{**measure, "values": [1.0, 0.0], "ideal": 0.5, "gate": {**gate, "share": each}}],
        }
        for at, each in enumerate((0.9, share))
    ]
    return on_the_way_charts(Facts("x", {}, {}, {}, {}, (), None, None, 0, observations=rows))


def test_a_probe_is_drawn_with_what_its_gate_says():
    (held,), (failed,) = probed(0.8), probed(0.6)
    assert held.title == "stereotypes: stereotyped" and "without bias" in "".join(
        ET.fromstring(str(held.svg)).itertext()
    )
    assert "Its gate held throughout: words are in order" in held.caption
    assert "Its gate failed in 1 of 2 evaluations" in failed.caption
