"""Probes while PPO runs measure the weights that act, when it is time, and say their gate beside each number."""

import json
from types import SimpleNamespace

import pytest

from rlhfkit.config.evaluation import EvaluationConfig
from rlhfkit.errors import ConfigError
from rlhfkit.probes.on_the_way import ProbesOnTheWay
from rlhfkit.probes.probe import Gate, Measurement, Probe, Subject, by_group
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from tests.evaluation.test_on_the_way import recipe
from tests.training import tiny


def parameters(subject):
    """As many items as the model has weights in its head's first rows, whose values they are."""
    values = tuple(subject.model.causal_lm.lm_head.weight[:, 0].tolist())
    names = tuple(map(str, range(len(values))))
    whole = Measurement(
        probe="weights",
        name="first",
        words="first weights",
        unit="nats",
        values=values,
        clusters=names,
        items=names,
        gate=Gate("it has weights", (True, True, False, True), 0.5),
    )
    return by_group(whole, ["odd" if place % 2 else "even" for place in range(len(values))])


PROBES = [Probe(name="weights", about="its weights", of="model", num_rows=14, run=parameters)]


def test_the_weights_of_now_are_probed_when_it_is_time(tmp_path):
    run, model = RunDir(tmp_path), tiny.language_model()
    with RunLog(run, tensorboard=False) as log:
        observer = ProbesOnTheWay(PROBES, Subject(), lambda: model, every=2, iterations=4, log=log)
        found = []
        for iteration in range(4):
            found.append(observer.before_update(SimpleNamespace(iteration=iteration), None))
            assert observer.after_update(SimpleNamespace(iteration=iteration), None) == {}
            model.causal_lm.lm_head.weight.data += 1.0
    first = found[0]["evaluation/weights/first"]
    assert [set(each) for each in found[::2]] == [{"evaluation/weights/first", "evaluation/weights/first_gate"}] * 2
    assert found[1] == {} and found[0]["evaluation/weights/first_gate"] == 0.75
    assert [each["evaluation/weights/first"] for each in found[2:]] == pytest.approx([first + 2, first + 3])
    rows = [json.loads(line) for line in run.observations.read_text().splitlines()]
    assert [(row["iteration"], row["kind"]) for row in rows] == [(0, "probes"), (2, "probes"), (3, "probes")]
    (measure,) = rows[0]["measures"]
    assert measure["words"] == "first weights" and measure["gate"]["share"] == 0.75
    assert sum(measure["values"]) / len(measure["values"]) == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"probes": ("stereotypes",)}, r"evaluation\.every_iterations"),
        ({"probes": ("reward_edits",), "every_iterations": 2}, "about the reward, which PPO does not change"),
    ],
)
def test_probes_that_could_say_nothing_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        recipe(evaluation=EvaluationConfig(**settings))
