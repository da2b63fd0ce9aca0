"""What went right or wrong in a run, in words, and which setting to turn; of a finished, a running or a dead one."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rlhfkit.evaluation.charts import number, percent
from rlhfkit.evaluation.facts import STAGE_NAMES, Facts, Row, curve, ends, finite, read_facts
from rlhfkit.evaluation.results import ControlEvaluation, read_results
from rlhfkit.evaluation.verdict import Verdict, judge_run, rival_of_reward_model
from rlhfkit.rundir import RunDir, read_json
from rlhfkit.symptoms import (
    CONTROL_RULES,
    PPO_RULES,
    PRETRAIN_RULES,
    REWARD_MODEL_RULES,
    SUPERVISED_RULES,
    Evidence,
    Finding,
    Named,
    Remedy,
    Rule,
    replay,
)
from rlhfkit.workspace import is_locked

__all__ = ["Diagnosis", "Problem", "diagnose", "problems_in_report", "problems_of"]

State = Literal["finished", "running", "dead"]

RULES: dict[str, tuple[Rule, ...]] = {
    "pretrain": PRETRAIN_RULES,
    "sft": SUPERVISED_RULES,
    "reward_model": REWARD_MODEL_RULES,
    "judge": REWARD_MODEL_RULES,
    "ppo": PPO_RULES,
    "control": CONTROL_RULES,
}
STAGES = (*STAGE_NAMES, "control")
ENOUGH_PAIRS = 50
"""Of fewer held-out pairs nothing can be said of a reward model."""
MANY_CUT = 0.5
"""Share of the demonstrations."""
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
        words.append(STAGE_NAMES.get(self.stage, self.stage))
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
        }


def problems_in_report(facts: Facts, run: RunDir) -> list[Problem]:
    """What is wrong, for the report: the same files give the same problems."""
    rounds = [problem for each in _rounds(facts, run) for problem in problems_of(each[1], each[0])]
    return _sorted_out([*problems_of(facts), *rounds])[0]


def diagnose(run: RunDir) -> Diagnosis:
    """The diagnosis of a run, as far as it has come; nothing is written.

    Raises: CheckpointError where there is no such run, or one of its files is damaged.
    """
    facts = read_facts(run)
    rounds = list(_rounds(facts, run))
    everything = [*problems_of(facts), *(problem for each in rounds for problem in problems_of(each[1], each[0]))]
    problems, passed = _sorted_out(everything)
    state = _state(facts, run)
    judged = facts if facts.evaluation is not None or not rounds else rounds[-1][1]
    return Diagnosis(
        run=str(run.path),
        name=facts.name,
        state=state,
        progress=_progress(facts, rounds, run, state),
        verdict=judge_run(judged) if judged.evaluation is not None else None,
        problems=tuple(problems),
        passed=tuple(passed),
        done=tuple(_done([(None, facts), *rounds])),
        right=tuple(_right(judged, run, {problem.finding.rule for problem in problems})),
    )


def _rounds(facts: Facts, run: RunDir) -> Iterator[tuple[int, Facts]]:
    for round_number in range(1, int(finite(facts.setting("rounds")) or 1) + 1):
        if run.round(round_number).is_run():
            yield round_number, read_facts(run.round(round_number))


# ── problems ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def problems_of(facts: Facts, round_number: int | None = None) -> list[Problem]:
    """What the rules name in a run, stage by stage, those that have passed included."""
    found: list[Problem] = []
    for stage in STAGES:
        found += _of_results(stage, facts, round_number)
        if stage in RULES and stage in facts.metrics:
            found += _of_curves(stage, facts, round_number)
    return found


def _of_curves(stage: str, facts: Facts, round_number: int | None) -> Iterator[Problem]:
    section = facts.setting("ppo" if stage in ("ppo", "control") else "reward_model" if stage == "judge" else stage)
    settings = dict(section) if isinstance(section, Mapping) else {}
    if stage not in ("ppo", "control"):
        settings["name"] = "reward_model" if stage == "judge" else stage
    by_seed: dict[float | None, list[Row]] = {}
    for row in facts.metrics[stage]:
        by_seed.setdefault(finite(row.get("seed")), []).append(row)
    found: dict[str, tuple[Named, list[int]]] = {}
    for seed, rows in by_seed.items():
        if stage in facts.finished:
            settings["num_updates"] = len(rows)
        for named in replay(rows, RULES[stage], settings):
            _, seeds = found.setdefault(f"{named.finding.rule} {named.is_present}", (named, []))
            seeds += [] if seed is None else [int(seed)]
    for named, seeds in found.values():
        yield Problem(named.finding, stage, round_number, tuple(seeds), named.first, named.last, named.is_present)


def _of_results(stage: str, facts: Facts, round_number: int | None) -> Iterator[Problem]:
    checks = {"sft": _demonstrations_cut, "reward_model": _reward_model_at_chance, "ppo": _reward_hacking}
    for finding in checks[stage](facts) if stage in checks else ():
        yield Problem(finding, stage, round_number)


def _demonstrations_cut(facts: Facts) -> Iterator[Finding]:
    record = facts.finished.get("sft", {})
    num, cut = finite(record.get("num_demonstrations")), finite(record.get("num_cut"))
    if not num or not cut or cut < MANY_CUT * num:
        return
    limit = facts.setting("sft", "max_tokens")
    yield Finding(
        "demonstrations_cut",
        "Most demonstrations are cut",
        (Evidence("num_cut", None, f"is {number(cut)} of {number(num)} demonstrations", {"cut": cut, "of": num}),),
        "A demonstration that is cut loses its end and with it EOS, so the model never learns where to stop.",
        (Remedy("sft.max_tokens", "more than the longest demonstration", None if limit is None else str(limit)),),
        "huggingface/trl#3750; Huang et al. 2023, The N Implementation Details of RLHF with PPO",
    )


def _reward_model_at_chance(facts: Facts) -> Iterator[Finding]:
    """Of a simple rule that is as good the verdict says a word: where the task is simple, it may be all there is."""
    results = facts.reward_model
    rival = rival_of_reward_model(results) if results is not None else None
    if results is None or rival is None or rival[0] != "a coin" or results.num_pairs < ENOUGH_PAIRS:
        return
    low = "" if results.accuracy_low is None else f", {percent(results.accuracy_low)} at the low end of its interval"
    words = f"is {percent(results.accuracy)} of {results.num_pairs} held-out pairs{low}; a coin has {percent(0.5)}"
    epochs, rate = facts.setting("reward_model", "epochs"), facts.setting("reward_model", "optim", "learning_rate")
    yield Finding(
        "reward_model_at_chance",
        "The reward model is no better than a coin",
        (Evidence("accuracy", None, words, {"accuracy": results.accuracy, "num_pairs": float(results.num_pairs)}),),
        "PPO maximises what the reward model says, so that it can only learn what the reward model knows.",
        (
            Remedy("data.preferences", "more pairs, of which people agree which is better"),
            Remedy("reward_model.optim.learning_rate", "three times as much", None if rate is None else str(rate)),
            Remedy("reward_model.epochs", "more, while validation/loss falls", None if epochs is None else str(epochs)),
        ),
        "Gao et al. 2023, arXiv 2210.10760; Huang et al. 2024, arXiv 2403.17031, with 63 to 69 %",
    )


def _reward_hacking(facts: Facts) -> Iterator[Finding]:
    evaluation = facts.evaluation
    wins = evaluation.win_rate if evaluation else None
    if evaluation is None or wins is None or wins.judge is None:
        return
    if not (wins.reward.low > 0.5 and wins.judge.high < 0.5):
        return
    coef = finite(facts.setting("ppo", "kl", "coef"))
    yield Finding(
        "reward_hacking",
        "Reward hacking: the reward rose, and the judge prefers the old responses",
        (
            Evidence(
                "win_rate.reward",
                None,
                f"is {percent(wins.reward.rate)} by the {evaluation.reward_name}, which PPO was trained on",
                wins.reward.model_dump(),
            ),
            Evidence(
                "win_rate.judge",
                None,
                f"is {percent(wins.judge.rate)} by the judge ({evaluation.judge_name}), which PPO never saw",
                wins.judge.model_dump(),
            ),
        ),
        "The policy has found what the reward pays for beside what it was meant to. Read samples: it is often one "
        "phrase, a length or a format.",
        (
            Remedy("ppo.kl.coef", number(max(2 * (coef or 0.0), 0.05)), None if coef is None else number(coef)),
            Remedy("ppo.iterations", "as many as until the judge was best"),
            Remedy("rounds", "2 or more, so that people see what the policy has found"),
        ),
        "Gao et al. 2023, arXiv 2210.10760; Skalse et al. 2022, arXiv 2209.13085",
    )


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
        stopped = facts.finished.get("ppo", {}).get("stopped")
        return f"{words}; PPO was stopped early: {stopped}" if stopped else words
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
    return any(stage in ("pretrain", "sft") and stage not in facts.finished for stage in facts.setting("stages") or ())


def _last_row(facts: Facts, stage: str) -> str:
    rows = facts.metrics.get(stage, ())
    if not rows:
        return "which has written no metrics yet"
    seed = finite(rows[-1].get("seed"))
    last = f"last iteration {number(finite(rows[-1].get('iteration')) or 0.0)}"
    total = finite(facts.setting("ppo", "iterations")) if stage == "ppo" else None
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
                    seed = finite(row.get("seed"))
                    of_seed = "" if seed is None else f" of seed {number(seed)}"
                    yield f"{at}iteration {row.get('iteration')}{of_seed}: {', '.join(rules)}: {'; '.join(actions)}"


def _names_rule(name: str) -> bool:
    return name.startswith(WATCH) and name.removeprefix(WATCH) in {rule.name for rule in PPO_RULES}


def _actions(row: Row) -> Iterator[str]:
    if (to := finite(row.get("watch/rolled_back_to"))) is not None:
        yield "the weights went back to those " + (f"of iteration {number(to)}" if to >= 0 else "that PPO began with")
    if (factor := finite(row.get("watch/learning_rate_factor"))) is not None:
        yield f"the learning rates became {number(factor)} of the recipe's"
    if (coef := finite(row.get("watch/kl_coef"))) is not None:
        yield f"the KL coefficient became {number(coef)}"
    if row.get("watch/stopped"):
        yield "the stage ended"


# ── what went right ──────────────────────────────────────────────────────────────────────────────────────────────────


def _right(facts: Facts, run: RunDir, wrong: set[str]) -> Iterator[str]:
    """What is well, in numbers, where no problem says otherwise."""
    results = facts.reward_model
    if results is not None and rival_of_reward_model(results) is None:
        best = max(results.baselines.values(), default=0.5)
        yield (
            f"The reward model is right on {percent(results.accuracy)} of {results.num_pairs} held-out pairs, simple "
            f"rules on at most {percent(best)}."
        )
    rows = facts.metrics.get("ppo", ())
    if rows:
        yield from _right_in_ppo(facts, rows, wrong)
    if facts.metrics.get("control"):
        yield from _right_in_control(facts, run, wrong)


def _right_in_ppo(facts: Facts, rows: Sequence[Row], wrong: set[str]) -> Iterator[str]:
    def both(key: str, *rules: str) -> tuple[float, float] | None:
        _, values = curve(rows, key)
        return None if len(values) < 2 or wrong & set(rules) else ends(values)

    if (score := both("score/mean", "reward_flat", "reward_falling", "reward_hacking")) and score[1] > score[0]:
        yield f"The score of sampled responses rose from {number(score[0])} to {number(score[1])}."
    if kl := both("ref_kl/sequence", "kl_exploding", "kl_negative", "nothing_moves"):
        target = finite(facts.setting("ppo", "kl", "target"))
        aim = "" if target is None else f" (target {number(target)})"
        yield f"The KL to the reference is {number(kl[1])} nats per sequence{aim}."
    explained = both("ppo/explained_variance", "critic_useless", "value_loss_growing")
    if explained and explained[1] > 0:  # it is 0 where there is no critic
        yield f"The critic foresees {percent(explained[1])} of the differences between returns."
    if both("ppo/clip_fraction", "clip_fraction_high", "approx_kl_high", "nothing_moves"):
        highest = max(curve(rows, "ppo/clip_fraction")[1])
        yield f"Updates are of a good size: PPO clipped at most {percent(highest)} of the tokens in an iteration."
    if (eos := both("eos_rate", "eos_lost")) and eos[1] > 0.5:
        yield f"{percent(eos[1])} of the responses end by themselves."
    if entropy := both("ppo/entropy", "entropy_collapse", "entropy_rising"):
        yield f"The entropy is {number(entropy[1])} nats per token, {number(entropy[0])} at the start."


def _right_in_control(facts: Facts, run: RunDir, wrong: set[str]) -> Iterator[str]:
    by_seed: dict[float, list[Row]] = {}
    for row in facts.metrics["control"]:
        by_seed.setdefault(finite(row.get("seed")) or 0.0, []).append(row)
    returns = {seed: curve(rows, "episode_return/mean")[1] for seed, rows in by_seed.items()}
    rises = {seed: ends(values) for seed, values in returns.items() if len(values) > 1}
    if rises and not wrong & {"reward_flat", "reward_falling"}:
        words = "; ".join(
            f"seed {number(seed)} from {number(first)} to {number(last)}" for seed, (first, last) in rises.items()
        )
        yield f"The return rose while it trained: {words}."
    evaluation = read_results(run.evaluation, ControlEvaluation)
    if evaluation is not None and evaluation.seeds:
        words = ", ".join(number(result.episode_return.mean) for result in evaluation.seeds)
        yield f"Mean return of each seed in episodes that training never saw: {words}."
