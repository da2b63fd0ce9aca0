"""What went right or wrong in a run, in words, and which setting to turn; of a finished, a running or a dead one."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rlhfkit.config.stages import STAGE_SPECS, title_of
from rlhfkit.diagnosis import (
    PPO_RULES,
    Evidence,
    Finding,
    Named,
    replay,
)
from rlhfkit.diagnosis.claims import right_of, unusual_in
from rlhfkit.diagnosis.curves import WINDOW
from rlhfkit.diagnosis.limits import CHANCE
from rlhfkit.diagnosis.result_rules import findings_of, settings_of
from rlhfkit.diagnosis.rule_sets import rules_of
from rlhfkit.diagnosis.verdict import Verdict, cautions_of_reward_model, judge_run
from rlhfkit.rundir.atomic import read_json
from rlhfkit.rundir.contents import Facts, Row, read_facts
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import finite_or_none
from rlhfkit.rundir.lock import is_locked
from rlhfkit.wording import counted, number

__all__ = ["Diagnosis", "Problem", "diagnose", "problems_in_report", "problems_of"]

State = Literal["finished", "running", "dead"]

STAGES = (*STAGE_SPECS, "control")
WATCH = "watch/"


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding, and where it is."""

    finding: Finding
    stage: str
    round: int | None = None
    seeds: tuple[int, ...] = ()
    """Of a control task, the trainings that have it; the evidence is the first one's."""
    first: int | None = None
    """Iteration in which it was named first; None where it is not of a curve."""
    last: int | None = None
    is_present: bool = True
    """Whether it was still there at the end of what is written."""

    def where(self) -> str:
        """As "PPO, iterations 12 to 39" or "round 2, reward model"."""
        words = [f"round {self.round}"] if self.round is not None else []
        words.append(title_of(self.stage))
        if self.seeds:
            words.append(f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}")
        if self.first is not None:
            words.append(
                f"iteration {self.first}" if self.first == self.last else f"iterations {self.first} to {self.last}"
            )
        return ", ".join(words)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self.finding),
            "stage": self.stage,
            "round": self.round,
            "seeds": list(self.seeds),
            "first_iteration": self.first,
            "last_iteration": self.last,
            "is_present": self.is_present,
        }


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What there is to say of a run."""

    run: str
    name: str
    state: State
    progress: str
    """How far it is, or what it did last."""
    verdict: Verdict | None
    """The answer of the evaluation, where there is one."""
    problems: tuple[Problem, ...]
    """What is wrong, the cause before what follows from it."""
    passed: tuple[Problem, ...]
    """What was wrong for a while."""
    done: tuple[str, ...]
    """What the rules did while it trained."""
    right: tuple[str, ...]
    """What went right."""
    unusual: tuple[str, ...] = ()
    """What is outside of its usual range, and not so far that it is called wrong."""
    cautions: tuple[str, ...] = ()
    """What the stages measured that speaks against trusting them, where no verdict says it."""
    too_early: str = ""
    """Why little can be said yet."""

    def conclusion(self) -> str:
        """What is left to say where no rule names a fault; empty where one does."""
        if self.problems:
            return ""
        yet = "" if self.state == "finished" else " so far"
        if self.too_early:
            return f"Too early to say: {self.too_early}."
        is_open = self.verdict is not None and (self.verdict.tone != "good" or bool(self.verdict.cautions))
        if is_open or self.cautions or self.unusual:
            return f"No rule names a fault{yet}; what speaks against it all the same is said here."
        return f"Nothing is wrong{yet}, as far as the rules can see."

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "run": self.run,
            "name": self.name,
            "state": self.state,
            "progress": self.progress,
            "verdict": None if self.verdict is None else asdict(self.verdict),
            "problems": [problem.as_dict() for problem in self.problems],
            "passed": [problem.as_dict() for problem in self.passed],
            "done": list(self.done),
            "right": list(self.right),
            "unusual": list(self.unusual),
            "cautions": list(self.cautions),
            "conclusion": self.conclusion(),
        }


def problems_in_report(facts: Facts, run: RunDir) -> list[Problem]:
    """What is wrong, for the report: the same files give the same problems."""
    return _sorted_out(_everything(facts, list(_rounds(facts, run)), run))[0]


def _everything(facts: Facts, rounds: Sequence[tuple[int, Facts]], run: RunDir) -> list[Problem]:
    """The problems of a run and of its rounds, those that have passed included."""
    found = [*_of_ends(facts, run, None), *problems_of(facts)]
    for at, of_round in rounds:
        found += [*_of_ends(of_round, run.round(at), at), *problems_of(of_round, at)]
    return found


def diagnose(run: RunDir) -> Diagnosis:
    """The diagnosis of a run, as far as it has come; nothing is written.

    Raises: CheckpointError where there is no such run, or one of its files is damaged.
    """
    facts = read_facts(run)
    rounds = list(_rounds(facts, run))
    problems, passed = _sorted_out(_everything(facts, rounds, run))
    state = _state(facts, run)
    judged = facts if facts.evaluation is not None or not rounds else rounds[-1][1]
    wrong = {problem.finding.rule for problem in problems}
    verdict = judge_run(judged) if judged.evaluation is not None else None
    if verdict is not None and verdict.tone == "good" and problems:
        verdict = replace(
            verdict, cautions=[*verdict.cautions, f"The rules find {counted(len(problems), 'fault')}, below."]
        )
    return Diagnosis(
        run=str(run.path),
        name=facts.name,
        state=state,
        progress=_progress(facts, rounds, run, state),
        verdict=verdict,
        problems=tuple(problems),
        passed=tuple(passed),
        done=tuple(_done([(None, facts), *rounds])),
        right=tuple(right_of(judged, run, wrong=wrong, verdict=verdict)),
        unusual=tuple(unusual_in(judged, wrong)),
        cautions=() if verdict is not None else tuple(cautions_of_reward_model(judged)),
        too_early=_too_early(rounds[-1][1] if rounds and not _is_before_rounds(facts) else facts),
    )


def _too_early(facts: Facts) -> str:
    """Why next to nothing can be said of the stage that is at work, or of PPO; empty where something can."""
    stage = next((name for name in facts.setting("stages") or () if name not in facts.finished), None)
    trained = [name for name in STAGES if rules_of(name) and facts.metrics.get(name)]
    if stage is not None and rules_of(stage) and stage not in trained:
        return f"the stage {stage} has made no update yet"
    for name in ("ppo", "control"):
        if name in trained and len(facts.metrics[name]) < WINDOW:
            return f"{len(facts.metrics[name])} iterations are too few for most rules"
    return ""


def _rounds(facts: Facts, run: RunDir) -> Iterator[tuple[int, Facts]]:
    for round_number in range(1, int(finite_or_none(facts.setting("rounds")) or 1) + 1):
        if run.round(round_number).is_run():
            yield round_number, read_facts(run.round(round_number))


# ── problems ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def problems_of(facts: Facts, round_number: int | None = None) -> list[Problem]:
    """What the rules name in a run, stage by stage, those that have passed included."""
    found: list[Problem] = []
    for stage in STAGES:
        curves = list(_of_curves(stage, facts, round_number)) if rules_of(stage) and stage in facts.metrics else []
        known = {problem.finding.rule for problem in curves if problem.is_present}
        found += [*_of_results(stage, facts, round_number, known), *curves]
    if not any(problem.stage == "ppo" and problem.is_present for problem in found):
        found += _of_early_end(facts, round_number)
    return found


def _of_curves(stage: str, facts: Facts, round_number: int | None) -> Iterator[Problem]:
    settings = settings_of(stage, facts)
    by_seed: dict[float | None, list[Row]] = {}
    for row in facts.metrics[stage]:
        by_seed.setdefault(finite_or_none(row.get("seed")), []).append(row)
    found: dict[str, tuple[Named, list[int]]] = {}
    for seed, rows in by_seed.items():
        if stage in facts.finished:
            settings["num_updates"] = len(rows)
        for named in replay(rows, rules_of(stage), settings):
            _, seeds = found.setdefault(f"{named.finding.rule} {named.is_present}", (named, []))
            seeds += [] if seed is None else [int(seed)]
    for named, seeds in found.values():
        if not _is_refuted(named, facts):
            yield Problem(named.finding, stage, round_number, tuple(seeds), named.first, named.last, named.is_present)


def _is_refuted(named: Named, facts: Facts) -> bool:
    """Whether held-out prompts show the contrary: samples of a few iterations weigh less than a whole evaluation."""
    wins = facts.evaluation.win_rate if facts.evaluation else None
    if wins is None or wins.reward.low <= CHANCE:
        return False
    numbers = named.finding.evidence[0].numbers
    is_below_start = numbers.get("recent", 0.0) < numbers.get("start", 0.0)
    return named.finding.rule == "reward_flat" or (named.finding.rule == "reward_falling" and is_below_start)


def _of_results(stage: str, facts: Facts, round_number: int | None, known: set[str]) -> Iterator[Problem]:
    """What is not known from the curves already."""
    for finding in findings_of(stage, facts):
        if finding.rule not in known:
            yield Problem(finding, stage, round_number)


def _of_ends(facts: Facts, run: RunDir, round_number: int | None) -> Iterator[Problem]:
    """A stage that stopped itself, so that a run which ended badly is never without its reason."""
    stage = next((name for name in facts.setting("stages") or () if name not in facts.finished), None)
    if stage is not None and not is_locked(run) and (reason := _error_of(run, stage)):
        yield Problem(_of_error(stage, reason, len(facts.metrics.get(stage, ()))), stage, round_number)


def _of_error(stage: str, reason: str, num_rows: int) -> Finding:
    what, semicolon, remedy = reason.rpartition("; ")
    title = f"It stopped itself {f'after iteration {num_rows - 1}' if num_rows else 'before its first update'}"
    evidence = Evidence("error", None, f"says: {what if semicolon else reason}")
    cause = f"The stage {stage} saw that it could not go on, or that going on would be in vain."
    return Finding(
        "stopped_itself",
        title,
        (evidence,),
        cause,
        (),
        "the run's manifest.json",
        advice=(remedy,) if semicolon else (),
    )


def _of_early_end(facts: Facts, round_number: int | None) -> Iterator[Problem]:
    """PPO that a limit ended, where no rule has named why."""
    stopped = facts.finished.get("ppo", {}).get("stopped")
    if stopped:
        what, semicolon, remedy = str(stopped).rpartition("; ")
        evidence = Evidence("stopped", None, f"says: {what if semicolon else stopped}")
        cause = "A limit of the recipe was passed, so that PPO ended before its last iteration."
        advice = (remedy,) if semicolon else ()
        finding = Finding(
            "stopped_early", "PPO was stopped early", (evidence,), cause, (), "the run's stages.json", advice=advice
        )
        yield Problem(finding, "ppo", round_number)


def _sorted_out(everything: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """(what is wrong, what was for a while); a cause that has passed counts while what followed from it is there."""
    needed = {
        (problem.stage, problem.round, cause)
        for problem in everything
        if problem.is_present
        for cause in problem.finding.follows_from
    }
    wrong: list[Problem] = []
    passed: list[Problem] = []
    for problem in everything:
        is_cause = (problem.stage, problem.round, problem.finding.rule) in needed
        (wrong if problem.is_present or is_cause else passed).append(problem)
    return sorted(wrong, key=lambda problem: bool(problem.finding.follows_from)), passed


# ── state ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _state(facts: Facts, run: RunDir) -> State:
    stages = facts.setting("stages") or ()
    if stages and all(stage in facts.finished for stage in stages):
        return "finished"
    return "running" if is_locked(run) else "dead"


def _progress(facts: Facts, rounds: Sequence[tuple[int, Facts]], run: RunDir, state: State) -> str:
    if state == "finished":
        num = len(facts.setting("stages"))
        words = f"all {num} stages are done" if num > 1 else "its stage is done"
        ppo = facts.finished.get("ppo", {})
        if stopped := ppo.get("stopped"):
            return f"{words}; PPO was stopped early: {stopped}"
        return f"{words}; {kept}" if (kept := ppo.get("kept")) else words
    at, latest, directory = "", facts, run
    if rounds and not _is_before_rounds(facts):
        at, latest, directory = f"round {rounds[-1][0]}, ", rounds[-1][1], run.round(rounds[-1][0])
    stage = next((name for name in latest.setting("stages") or () if name not in latest.finished), None)
    if stage is None:
        return f"{at}between two rounds"
    where = f"{at}stage {stage}, {_last_row(latest, stage)}{_age(directory)}"
    if state == "running":
        return f"{where}; a process works on it"
    if reason := _error_of(directory, stage):
        return f"{where}; it stopped itself: {reason}"
    saved = _newest_checkpoint(directory, stage)
    resumed = f"goes on from its checkpoint {saved}" if saved is not None else "begins this stage anew"
    return f"{where}; no process holds its lock, so it was stopped or killed; the command that began it {resumed}"


def _error_of(run: RunDir, stage: str) -> str | None:
    """What the stage said when it stopped itself; None where it was killed, or is still to begin."""
    stages = read_json(run.manifest).get("stages", {}) if run.manifest.exists() else {}
    error: str | None = stages.get(stage, {}).get("error")
    return error


def _is_before_rounds(facts: Facts) -> bool:
    once = {spec.name for spec in STAGE_SPECS.values() if not spec.is_of_round}
    return any(stage in once and stage not in facts.finished for stage in facts.setting("stages") or ())


def _last_row(facts: Facts, stage: str) -> str:
    rows = facts.metrics.get(stage, ())
    if not rows:
        return "which has written no metrics yet"
    seed = finite_or_none(rows[-1].get("seed"))
    last = f"last iteration {number(finite_or_none(rows[-1].get('iteration')) or 0.0)}"
    total = finite_or_none(facts.setting("ppo", "iterations")) if stage == "ppo" else None
    return f"{last}{f' of {number(total)}' if total else ''}{'' if seed is None else f' of seed {number(seed)}'}"


def _age(run: RunDir) -> str:
    """How long nothing has been written."""
    try:
        seconds = max(0.0, time.time() - run.metrics.stat().st_mtime)
    except OSError:
        return ""
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
    size, name = next(((size, name) for size, name in units if seconds >= 2 * size), (1, "seconds"))
    return f", {seconds / size:.0f} {name} ago"


def _newest_checkpoint(run: RunDir, stage: str) -> int | None:
    directory = run.checkpoints / stage
    names = [path.name for path in directory.glob("**/*") if path.is_dir() and path.name.isdigit()]
    return max(map(int, names), default=None)


def _done(parts: Sequence[tuple[int | None, Facts]]) -> Iterator[str]:
    """What the rules did while it trained."""
    for round_number, facts in parts:
        for stage in ("ppo", "control"):
            for row in facts.metrics.get(stage, ()):
                actions = list(_actions(row))
                if actions:
                    rules = [name.removeprefix(WATCH) for name in row if _names_rule(name)]
                    at = "" if round_number is None else f"round {round_number}, "
                    seed = finite_or_none(row.get("seed"))
                    of_seed = "" if seed is None else f" of seed {number(seed)}"
                    yield f"{at}iteration {row.get('iteration')}{of_seed}: {', '.join(rules)}: {'; '.join(actions)}"


def _names_rule(name: str) -> bool:
    return name.startswith(WATCH) and name.removeprefix(WATCH) in {rule.name for rule in PPO_RULES}


def _actions(row: Row) -> Iterator[str]:
    if (to := finite_or_none(row.get("watch/rolled_back_to"))) is not None:
        yield "the weights went back to those " + (f"of iteration {number(to)}" if to >= 0 else "that PPO began with")
    if (factor := finite_or_none(row.get("watch/learning_rate_factor"))) is not None:
        yield f"the learning rates became {number(factor)} of the recipe's"
    if (coef := finite_or_none(row.get("watch/kl_coef"))) is not None:
        yield f"the KL coefficient became {number(coef)}"
    if row.get("watch/stopped"):
        yield "the stage ended"
