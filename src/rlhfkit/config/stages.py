"""What the stages are, in order: one description of each, for all who need to know something of it.

`rlhfkit.pipeline.run` has the function of each.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "BASELINES",
    "STAGE_SPECS",
    "ModelName",
    "Role",
    "Stage",
    "StageSpec",
    "readers_of_section",
    "readers_of_table",
    "role_of",
    "section_of",
    "spec_of",
    "title_of",
]

Stage = Literal[
    "pretrain", "sft", "preferences", "reward_model", "judge", "ppo", "evaluate", "probe", "dpo", "raft", "compare"
]

ModelName = Literal["base", "sft", "reward_model", "judge", "policy", "ema", "value", "dpo", "raft"]
"""A directory of a run that holds a model."""

Role = Literal["pretrain", "sft", "reward_model", "policy", "value", "control", "dpo", "raft"]
"""What an optimizer trains; learning rates and the rules that watch training go by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """What there is to know of a stage without running it."""

    name: Stage
    title: str
    """Its name for people."""
    data: tuple[str, ...]
    """Tables of `data` that it reads: the first it needs, the others it uses where they are set."""
    needs_data: bool = True
    """Whether it needs the first of these tables."""
    sections: tuple[str, ...]
    """Sections of the recipe that its result depends on, beside those that all stages depend on; the
    first says how it trains."""
    writes: tuple[str, ...] = ()
    """What it leaves in the run directory for the stages after it."""
    model: ModelName | None = None
    """The model that it makes."""
    trains: Role | None = None
    """What it trains; None for a stage that trains no network."""
    is_of_round: bool = False
    """Whether every round does it, rather than the whole run once."""
    keeps_checkpoints: bool = False
    """Whether its checkpoints stay once it is finished, because they hold more than its result does."""


STAGE_SPECS: dict[Stage, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec(
            name="pretrain",
            title="pre-training",
            data=("texts",),
            sections=("pretrain",),
            writes=("base",),
            model="base",
            trains="pretrain",
        ),
        StageSpec(
            name="sft",
            title="supervised fine-tuning",
            data=("demonstrations",),
            sections=("sft",),
            writes=("sft",),
            model="sft",
            trains="sft",
        ),
        StageSpec(
            name="preferences",
            title="preferences",
            data=("prompts",),
            sections=("preferences", "rollout"),
            writes=("preferences.jsonl", "test_preferences.jsonl", "trust.json"),
            is_of_round=True,
        ),
        StageSpec(
            name="reward_model",
            title="reward model",
            data=("preferences", "test_preferences", "prompts"),
            sections=("reward_model", "rollout"),
            writes=("reward_model", "reward_model.json"),
            model="reward_model",
            trains="reward_model",
            is_of_round=True,
        ),
        StageSpec(
            name="judge",
            title="judge",
            data=("judge_preferences", "prompts"),
            sections=("reward_model", "judge", "rollout"),
            writes=("judge", "judge_preferences.jsonl"),
            model="judge",
            trains="reward_model",
        ),
        StageSpec(
            name="ppo",
            title="PPO",
            data=("prompts",),
            sections=("ppo", "reward", "env", "rollout"),
            writes=("policy", "ema"),
            model="policy",
            trains="policy",
            is_of_round=True,
            keeps_checkpoints=True,  # they hold the critic, and the run may be continued
        ),
        StageSpec(
            name="evaluate",
            title="evaluation",
            data=("test_prompts", "prompts"),
            sections=("evaluation", "reward", "env", "rollout"),
            is_of_round=True,
        ),
        StageSpec(
            name="probe",
            title="probes",
            data=("prompts", "demonstrations", "texts"),
            needs_data=False,
            sections=("probe", "reward", "rollout"),
            is_of_round=True,
        ),
        StageSpec(
            name="dpo",
            title="DPO",
            data=("preferences",),
            sections=("dpo",),
            writes=("dpo",),
            model="dpo",
            trains="dpo",
        ),
        StageSpec(
            name="raft",
            title="rejection sampling",
            data=("prompts",),
            sections=("raft", "reward", "rollout"),
            writes=("raft",),
            model="raft",
            trains="raft",
        ),
        StageSpec(
            name="compare",
            title="comparison",
            data=("test_prompts",),
            sections=("compare", "evaluation", "reward", "rollout"),
            writes=("comparison.json",),
        ),
    )
}


BASELINES: tuple[Stage, ...] = ("dpo", "raft")
"""Stages that begin where PPO begins and do without it, so that one sees what it is worth."""


def readers_of_section(section: str) -> frozenset[Stage]:
    """The stages whose result depends on a section, or on a setting outside of all sections."""
    found = frozenset(spec.name for spec in STAGE_SPECS.values() if section in spec.sections)
    return found or frozenset(STAGE_SPECS)


def readers_of_table(table: str) -> tuple[Stage, ...]:
    """The stages that read a table of `data`; all of them, where it is no table but a setting for all tables."""
    found = tuple(spec.name for spec in STAGE_SPECS.values() if table in spec.data)
    return found or tuple(STAGE_SPECS)


def title_of(stage: str) -> str:
    """The name of a stage for people."""
    spec = spec_of(stage)
    return stage if spec is None else spec.title


def role_of(stage: str) -> Role | None:
    """What a stage trains, that of a control task included; None where it trains no network."""
    spec = spec_of(stage)
    return spec.trains if spec is not None else "control" if stage == "control" else None


def section_of(stage: str) -> str:
    """The section of the recipe that says how a stage works."""
    spec = spec_of(stage)
    return spec.sections[0] if spec is not None else "ppo" if stage == "control" else stage


def spec_of(stage: str) -> StageSpec | None:
    """What there is to know of a stage; None of a control task's, or where no stage is called so."""
    return next((spec for spec in STAGE_SPECS.values() if spec.name == stage), None)
