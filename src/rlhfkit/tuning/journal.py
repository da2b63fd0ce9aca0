"""What has been tried, in one of Optuna's storages: a file beside the runs, or a database that several machines reach.

Optuna's own dashboard and functions read it too. Nothing here decides anything: who decides holds the study's lock.
"""

import fcntl
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.study import StudyDir
from rlhfkit.tuning.agenda import DEFAULT
from rlhfkit.tuning.knobs import Knob, Params
from rlhfkit.tuning.suggest import distributions_of, optuna

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as OptunaTrial

__all__ = ["Journal", "Noted", "locked_study"]

End = Literal["complete", "pruned", "infeasible", "failed"]


@dataclass(frozen=True)
class Noted:
    """A trial as it was noted."""

    number: int
    params: Params
    seed: int
    reaching: int | None
    """The rung that it was sent to and has not come to yet."""
    values: Mapping[int, tuple[float, float]]
    """Rung → (what is broken there, score)."""
    end: End | None
    """How it ended; None while it may go on."""
    cause: str


class _Lock:
    """A lock that falls with its process, for the journal of Optuna's, whose own ones stay behind after a kill."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def acquire(self) -> bool:
        """Wait for it."""
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Let the next one in."""
        self._file.close()


@contextmanager
def locked_study(study: StudyDir) -> Iterator[None]:
    """Nobody else decides, or notes anything, meanwhile."""
    with study.lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Journal:
    """The trials of a study."""

    def __init__(self, study: StudyDir, knobs: Sequence[Knob], *, storage: Any = None, name: str = "study") -> None:
        """Open, or begin, the journal beside the runs, or the one called `name` in `storage`: a URL, or Optuna's own.

        Raises: CheckpointError where it cannot be opened; MissingDependencyError.
        """
        package = optuna()
        self._states = package.trial.TrialState
        self._knobs = knobs
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._study: Study = package.create_study(
                    study_name=name,
                    storage=_storage(package, study.journal, storage),
                    direction="maximize",
                    sampler=package.samplers.RandomSampler(),
                    load_if_exists=True,
                )
        except Exception as error:
            where = study.journal if storage is None else str(storage).rpartition("@")[2]  # without the password
            raise CheckpointError(f"the trials of {study.path} cannot be read from {where} ({error})") from error

    def trials(self) -> list[Noted]:
        """All trials, by number."""
        return [_noted(trial) for trial in self._study.get_trials(deepcopy=False) if trial.user_attrs.get("params")]

    def add(self, number: int, params: Params, *, seed: int, rung: int) -> None:
        """A new trial, sent to its first rung. The default keeps its settings to itself: they may be "auto"."""
        known = {"params": json.dumps(dict(params)), "seed": seed, "reaching": rung}
        waiting = [trial for trial in self._study.get_trials(deepcopy=False) if trial.state == self._states.WAITING]
        if not waiting:  # or a process was killed between the two
            self._study.enqueue_trial({} if number == DEFAULT else dict(params), user_attrs=known)
        self._study.ask({} if number == DEFAULT else distributions_of(self._knobs))

    def send(self, number: int, rung: int) -> None:
        """A trial goes on to a rung."""
        self._reopened(number).set_user_attr("reaching", rung)

    def came_to(self, number: int, rung: int, *, broken: float, score: float) -> None:
        """A trial has come to the rung that it was sent to."""
        trial = self._reopened(number)
        trial.set_user_attr(f"broken at {rung}", broken)
        trial.report(score, rung)

    def end(self, number: int, end: End, *, score: float | None, guards: Mapping[str, float], cause: str = "") -> None:
        """A trial will not go on. Guards are noted before that, or a sampler would take a pruned one for feasible."""
        frozen = self._study.get_trials(deepcopy=False)[number]
        if frozen.state.is_finished():
            return
        trial = self._reopened(number)
        for name, value in {"end": end, "cause": cause}.items():
            trial.set_user_attr(name, value)
        for name in guards.keys() - frozen.constraints.keys():
            trial.set_constraint(name, guards[name])
        if end == "failed" or score is None:
            self._study.tell(number, state=self._states.FAIL)
        elif end == "pruned":
            self._study.tell(number, state=self._states.PRUNED)
        else:
            self._study.tell(number, score)

    def _reopened(self, number: int) -> "OptunaTrial":
        """A trial that may be written to, by whichever process."""
        return optuna().trial.Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)  # type: ignore[no-any-return]


def _storage(package: Any, path: Path, given: Any) -> Any:
    """What Optuna is given: a URL with the driver that we install, its own object, or a file of ours."""
    if isinstance(given, str):
        return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", given)
    if given is not None:
        return given
    from optuna.storages.journal import JournalFileBackend

    lock: Any = _Lock(path.with_suffix(".lock"))
    return package.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _noted(trial: "FrozenTrial") -> Noted:
    attrs = trial.user_attrs
    values = {rung: (attrs.get(f"broken at {rung}", 0.0), score) for rung, score in trial.intermediate_values.items()}
    reaching = attrs["reaching"]
    return Noted(
        number=trial.number,
        params=json.loads(attrs["params"]),
        seed=attrs["seed"],
        reaching=None if reaching in values or "end" in attrs else reaching,
        values=values,
        end=attrs.get("end"),
        cause=attrs.get("cause", ""),
    )
