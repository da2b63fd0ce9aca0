"""Probes while PPO runs: what else changes, at the same rows and draws each time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rlhfkit.config.evaluation import is_evaluated
from rlhfkit.metrics import rounded
from rlhfkit.models.language import LanguageModel
from rlhfkit.probes.probe import Measurement, Probe, Subject, measure
from rlhfkit.rundir.log import RunLog

__all__ = ["ProbesOnTheWay", "metric_of"]


class ProbesOnTheWay:
    """An observer of PPO: has the weights that act in an iteration probed, whenever it is time."""

    def __init__(
        self,
        probes: Sequence[Probe],
        subject: Subject,
        model: Callable[[], LanguageModel],
        *,
        every: int,
        iterations: int,
        log: RunLog,
    ) -> None:
        """Measure `subject` with what `model` gives, every so many of the `iterations`."""
        self._probes, self._subject, self._model, self._log = probes, subject, model, log
        self._every, self._iterations = every, iterations

    def before_update(self, trainer: Any, experience: object) -> Mapping[str, float]:
        """The number of each probe over all its rows, and the share of its gate."""
        if not is_evaluated(trainer.iteration, every=self._every, iterations=self._iterations):
            return {}
        with torch.no_grad():
            found = measure(self._probes, replace(self._subject, model=self._model()))
        whole = [each for each in found if not each.group]
        self._log.write_observation("ppo", trainer.iteration, "probes", {"measures": [_told(each) for each in whole]})
        gates = {f"{metric_of(each)}_gate": each.gate.share for each in whole if each.gate is not None}
        return {metric_of(each): each.value for each in whole} | gates

    def after_update(self, trainer: Any, experience: object) -> Mapping[str, float]:
        """Nothing."""
        return {}


def metric_of(found: Measurement) -> str:
    """The name of a measurement in `metrics.jsonl`, as "evaluation/stereotypes/stereotyped"."""
    return f"evaluation/{found.probe}/{found.name}"


def _told(found: Measurement) -> dict[str, Any]:
    gate = found.gate
    told = None if gate is None else {"what": gate.what, "share": rounded(gate.share), "least": gate.least}
    return {
        "metric": metric_of(found),
        "words": found.words,
        "unit": found.unit,
        "values": [rounded(value) for value in found.values],
        "ideal": found.ideal,
        "gate": told,
    }
