"""Launch files, prompts and models of a recipe for another tool, in one directory."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhfkit.errors import ConfigError
from rlhfkit.handover.nemo_rl import NEMO_RL
from rlhfkit.handover.openrlhf import OPENRLHF
from rlhfkit.handover.render import arguments, yaml_of
from rlhfkit.handover.runtimes import RUNTIMES, export_model
from rlhfkit.handover.subject import Subject, subject_of
from rlhfkit.handover.terms import Refusal, Target
from rlhfkit.handover.translate import Translation, translate
from rlhfkit.handover.verl import VERL
from rlhfkit.rundir.atomic import write_atomically
from rlhfkit.wording import counted

__all__ = ["TARGETS", "Exported", "Tool", "export_to"]

Tool = Literal["openrlhf", "verl", "nemo-rl", "gguf", "ollama", "vllm"]
TARGETS: dict[str, Target] = {target.name: target for target in (OPENRLHF, VERL, NEMO_RL)}

YAML_HEADS = {
    "verl": "defaults:\n  - ppo_trainer\n  - _self_\nhydra:\n  searchpath:\n    - pkg://verl.trainer.config\n",
    "nemo-rl": 'defaults: "@NEMO_RL@/examples/configs/ppo_math_1B.yaml"\n',
}
BASH = '#!/usr/bin/env bash\nset -euo pipefail\nhere="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"\n'
LAUNCHES = {
    "verl": (
        'export HANDOVER="$here"\nexec python3 -m verl.trainer.main_ppo --config-path "$here" --config-name ppo "$@"\n'
    ),
    "nemo-rl": (
        ': "${NEMO_RL:?set NEMO_RL to a checkout of https://github.com/NVIDIA-NeMo/RL}"\nexport HANDOVER="$here"\n'
        'sed "s|@NEMO_RL@|$NEMO_RL|" "$here/ppo.yaml" > "$here/ppo.here.yaml"\n'
        'cd "$NEMO_RL"\nexec uv run examples/run_ppo.py --config "$here/ppo.here.yaml" "$@"\n'
    ),
    "openrlhf": 'ARGS=(\n@ARGUMENTS@\n)\nexec python3 -m openrlhf.cli.train_ppo_ray "${ARGS[@]}" "$@"\n',
}


@dataclass(frozen=True)
class Exported:
    """What was written, and what has to be known about it."""

    directory: Path
    files: tuple[str, ...]
    """Names of what lies in it."""
    substitutes: tuple[str, ...]
    """Settings that the tool cannot say, with what was written in their place."""
    without_effect: tuple[str, ...]
    """Settings of the recipe that do nothing there, with the reason."""
    remarks: tuple[str, ...]
    """What is otherwise there, whatever a recipe says."""
    follow: str = ""
    """What to do with a model that was written; of launch files, they are to be read and run."""

    def __str__(self) -> str:
        """For people, in lines."""
        lines = [f"{self.directory} holds {', '.join(self.files)}"]
        for title, entries in (
            ("substitutes:", self.substitutes),
            ("without effect there:", self.without_effect),
            ("to know:", self.remarks),
        ):
            lines += [title, *(f"  - {entry}" for entry in entries)] if entries else []
        follow = self.follow or f"read it, and then bash {self.directory}/launch.sh"
        return "\n".join([*lines, f"next: {follow}"])


def export_to(
    tool: str,
    run_or_recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    directory: str | Path | None = None,
    substitute: bool = False,
    gpus: int = 1,
    response_tokens: float | None = None,
) -> Exported:
    """Write what `tool` needs to go on with PPO of a run, or of a recipe.

    Raises: ConfigError where the tool cannot say what the recipe says; all such settings are in its message.
    """
    if tool in RUNTIMES:
        return _exported_model(tool, run_or_recipe, overrides, directory)
    if tool not in TARGETS:
        known = ", ".join((*TARGETS, *RUNTIMES))
        raise ConfigError(f"{tool!r} is no tool that recipes or models are handed over to; choose {known}")
    target = TARGETS[tool]
    subject = subject_of(
        run_or_recipe,
        overrides,
        directory=Path(directory or Path("exported") / f"{Path(run_or_recipe).stem}-{tool}"),
        gpus=gpus,
        response_tokens=response_tokens,
    )
    translation = translate(target, subject)
    _refuse(translation, subject, substitute=substitute)
    remarks = _written(translation, subject)
    return Exported(
        directory=subject.directory,
        files=tuple(sorted(path.name + ("/" if path.is_dir() else "") for path in subject.directory.iterdir())),
        substitutes=tuple(map(Refusal.words, translation.refused)),
        without_effect=translation.without_effect,
        remarks=(*remarks, *target.remarks),
    )


def _exported_model(
    tool: str, run_or_model: str | Path, overrides: Sequence[str], directory: str | Path | None
) -> Exported:
    """The trained model itself, for what serves models."""
    if overrides:
        raise ConfigError(f"{overrides[0]} has no effect on a model that is there already; leave it out")
    place = Path(directory or Path("exported") / f"{Path(run_or_model).name}-{tool}")
    files, remark, follow = export_model(tool, run_or_model, place)
    return Exported(place, files, (), (), (remark,), follow)


def _refuse(translation: Translation, subject: Subject, *, substitute: bool) -> None:
    """Raises: ConfigError where something has no substitute, or none is wanted."""
    refused = translation.refused
    final = [refusal for refusal in refused if not refusal.substitute]
    if not refused or (substitute and not final):
        return
    target = translation.target
    if final:
        end = "what names nothing nearest has to be changed in the recipe first"
    else:
        end = "--substitute takes what is nearest for each of them"
    entries = "".join(f"\n  {refusal.words()}" for refusal in refused)
    raise ConfigError(
        f"{target.name} {target.version} cannot say {counted(len(refused), 'thing')} that {subject.recipe.name} "
        f"says:{entries}\n{end}"
    )


def _written(translation: Translation, subject: Subject) -> list[str]:
    """Write the files; remarks on what was read."""
    from rlhfkit.handover.files import encoder_of, link_model, reward_file, write_prompts, write_scorers

    target, directory = translation.target, subject.directory
    directory.mkdir(parents=True, exist_ok=True)
    encoder = encoder_of(subject)
    prompts = write_prompts(target.name, subject, encoder)
    link_model("policy", subject.policy_path, directory)
    if target.name == "openrlhf":
        write_scorers(subject)
    elif subject.is_reward_model:
        link_model("reward_model", subject.reward_path, directory)
    if subject.has_critic and subject.is_local and target.name != "openrlhf":
        from rlhfkit.handover.critic import write_critic

        write_critic(subject)
    if target.name == "verl" or (target.name == "openrlhf" and subject.is_function):
        write_atomically(directory / "reward.py", reward_file(target.name, subject, encoder, translation.constants))
    head = _head(translation, subject)
    if target.name in YAML_HEADS:
        write_atomically(directory / "ppo.yaml", head + YAML_HEADS[target.name] + yaml_of(translation.lines))
        launch = BASH + LAUNCHES[target.name]
    else:
        launch = BASH + head + LAUNCHES[target.name].replace("@ARGUMENTS@", arguments(translation.lines))
    write_atomically(directory / "launch.sh", launch)
    (directory / "launch.sh").chmod(0o755)
    return list(_on_prompts(prompts.num_rows, prompts.num_prompts, prompts.num_cut, prompts.num_other))


def _on_prompts(num_rows: int, num_prompts: int, num_cut: int, num_other: int) -> Iterable[str]:
    yield f"prompts.jsonl has {counted(num_rows, 'row')} of {counted(num_prompts, 'prompt')}, for all iterations"
    if num_cut:
        yield f"{counted(num_cut, 'prompt')} cut to data.max_prompt_tokens, as PPO here cuts them"
    if num_other:
        yield f"{counted(num_other, 'prompt')} with other tokens there, as they spell special tokens"


def _head(translation: Translation, subject: Subject) -> str:
    """Comments at the top of a launch file."""
    from rlhfkit import __version__

    target = translation.target
    lines = [
        f"{subject.recipe.name}, handed over by rlhfkit {__version__} to {target.name} {target.version}.",
        f'In the comments "here" is rlhfkit and "there" is {target.name}; in brackets stands the place in '
        f"{target.where} of that version that reads the line.",
    ]
    for title, entries in (
        ("Substitutes, for what it cannot say:", [refusal.words() for refusal in translation.refused]),
        ("Without effect there:", translation.without_effect),
        ("To know:", target.remarks),
    ):
        lines += [title, *(f"- {entry}" for entry in entries)] if entries else []
    wrapped = [
        part
        for line in lines
        for part in textwrap.wrap(line, 116, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)
    ]
    return "\n".join(wrapped) + "\n"
