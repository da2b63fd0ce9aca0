"""What is written beside the launch files: prompts, the file of the reward, links to models, and a critic."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.rewards import FunctionRewardConfig, RewardConfig
from rlhfkit.errors import ConfigError, DataError
from rlhfkit.handover.render import constants
from rlhfkit.handover.subject import Subject
from rlhfkit.handover.terms import Line
from rlhfkit.rundir.atomic import write_atomically, write_json

if TYPE_CHECKING:
    from rlhfkit.models.encoder import EncodedPrompt, Encoder

__all__ = [
    "Written",
    "encoder_of",
    "link_model",
    "made_free",
    "reward_file",
    "rows_of",
    "write_prompts",
    "write_scorers",
]

SOME = 16
"""Prompts in the file that verl wants for a validation which is not done."""


@dataclass(frozen=True)
class Written:
    """Prompts as they were written."""

    num_rows: int
    num_prompts: int
    num_cut: int
    num_other: int
    """Prompts whose tokens are not the same there, as they spell special tokens."""


def encoder_of(subject: Subject) -> "Encoder":
    """Tokenizer and chat template of the model that PPO starts from."""
    from rlhfkit.models.encoder import Encoder, read_template
    from rlhfkit.models.loading import load_tokenizer
    from rlhfkit.rundir.resume import recorded_date

    model = subject.recipe.model
    given = model if isinstance(model, PretrainedModelConfig) else None
    source = PretrainedModelConfig(
        path=subject.policy_path,
        revision=None if given is None or subject.is_local else given.revision,
        trust_remote_code=given is not None and given.trust_remote_code,
    )
    tokenizer, _ = load_tokenizer(source)
    template = None if model.chat_template is None else read_template(model.chat_template)
    now = None if subject.run is None else recorded_date(subject.run)
    return Encoder(tokenizer, chat_template=template, name=model.chat_template or source.path, now=now)


# ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _encoded(subject: Subject, encoder: "Encoder") -> list["EncodedPrompt"]:
    """The prompts as PPO reads them, in the order of their files."""
    from rlhfkit.data import load_prompts

    data = subject.recipe.data
    assert data.prompts is not None  # the recipe's own check saw to it
    try:
        loaded = load_prompts(
            data.prompts, directory=data.directory, on_bad_row=data.on_bad_row, seed=subject.recipe.seed
        )
    except DataError as error:
        raise DataError(f"data.prompts: {error}") from error
    found = []
    for prompt in loaded.records:
        try:
            found.append(encoder.encode(prompt, max_tokens=subject.max_prompt_tokens))
        except DataError:
            if data.on_bad_row == "stop":
                raise
    if not found:
        raise DataError("data.prompts: no prompt is left; look at the rows")
    return found


def drawn(prompts: list[Any], subject: Subject) -> Iterator[Any]:
    """The prompts of all iterations, one after the other, as PPO draws them: all are seen before one comes again."""
    from rlhfkit.machine.seeding import derive_seed, shuffled

    wanted = subject.iterations * subject.prompts
    for epoch in range(-(-wanted // len(prompts))):
        order = shuffled(len(prompts), derive_seed(subject.recipe.seed, "prompts", epoch))
        yield from (prompts[place] for place in order[: wanted - epoch * len(prompts)])


def _whole_text(encoder: "Encoder", prompt: "EncodedPrompt") -> tuple[str, bool]:
    """The text that a tokenizer which adds nothing makes the prompt's tokens of, and whether it does."""
    tokenizer = encoder.tokenizer
    for text in (prompt.text, f"{tokenizer.bos_token or ''}{prompt.text}"):
        if tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) == prompt.ids:
            return text, True
    return prompt.text, False


def rows_of(tool: str, text: str, prompt: "EncodedPrompt", subject: Subject, number: int) -> dict[str, Any]:
    """The row of a prompt in the tool's format."""
    asked = ""
    if subject.is_function:
        content = prompt.prompt.content
        asked = json.dumps(
            {
                "prompt": prompt.text,
                "columns": dict(prompt.prompt.columns),
                "is_conversation": not isinstance(content, str),
            },
            ensure_ascii=False,
            default=str,
        )
    if tool == "verl":
        return {
            "data_source": subject.recipe.name,
            "prompt": [{"role": "user", "content": text}],
            "reward_model": {"style": "model", "ground_truth": ""},
            "extra_info": {"index": number, "asked": asked},
        }
    if tool == "nemo-rl":
        return {"input": text, "output": ""}
    return {"prompt": text, **({"label": asked} if asked else {})}


def write_prompts(tool: str, subject: Subject, encoder: "Encoder") -> Written:
    """Write prompts.jsonl."""
    encoded = _encoded(subject, encoder)
    texts = [_whole_text(encoder, prompt) for prompt in encoded]
    pairs = list(zip(encoded, texts, strict=True))
    rows = [
        rows_of(tool, text, prompt, subject, number) for number, (prompt, (text, _)) in enumerate(drawn(pairs, subject))
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomically(subject.directory / "prompts.jsonl", "".join(lines))
    if tool == "verl":
        write_atomically(subject.directory / "some_prompts.jsonl", "".join(lines[:SOME]))
    return Written(
        num_rows=len(rows),
        num_prompts=len(encoded),
        num_cut=sum(prompt.was_cut for prompt in encoded),
        num_other=sum(not same for _, same in texts),
    )


# ── the reward ───────────────────────────────────────────────────────────────────────────────────────────────────────


def reward_file(tool: str, subject: Subject, encoder: "Encoder", lines: tuple[Line, ...]) -> str:
    """The file that scores for `tool`."""
    tokenizer = encoder.tokenizer
    is_text = tool == "openrlhf"
    endings = [str(tokenizer.convert_ids_to_tokens(token)) if is_text else token for token in encoder.eos_ids]
    begins = tokenizer("a", add_special_tokens=True)["input_ids"][:1] == [tokenizer.bos_token_id]
    reward = subject.recipe.reward
    parts = {
        "@CONSTANTS@": constants(lines).rstrip("\n"),
        "@ENDINGS@": repr(endings),
        "@BEGINNING@": repr(str(tokenizer.bos_token) if begins else ""),
        "@FUNCTION@": repr(reward.function if isinstance(reward, FunctionRewardConfig) else None),
        "@WORKING_DIRECTORY@": repr(str(Path.cwd())),
        "@BINDING@": _binding(reward),
        "@CALLING@": _template("calling.py.txt").rstrip("\n") + "\n",
    }
    text = _template(f"reward_of_{tool}.py.txt")
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return text.rstrip("\n") + "\n"


def _binding(reward: RewardConfig) -> str:
    """How the function is called, as constants. Raises: ConfigError, RewardError where it cannot be."""
    from rlhfkit.rewards.binding import Binding
    from rlhfkit.rewards.function import FunctionReward

    binding = Binding({}, {}, takes_all=False, one_at_a_time=False)
    if isinstance(reward, FunctionRewardConfig):
        binding = FunctionReward(reward).binding
    found = {
        "TEXTS": binding.names,
        "COLUMNS": binding.columns,
        "TAKES_ALL": binding.takes_all,
        "ONE_AT_A_TIME": binding.one_at_a_time,
        "BY_PLACE": binding.by_place,
    }
    return "\n".join(f"{name} = {value!r}" for name, value in found.items())


def _template(name: str) -> str:
    return (files("rlhfkit.handover") / name).read_text(encoding="utf-8")


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def link_model(name: str, path: str, directory: Path) -> None:
    """A link to a model's directory beside the launch files, for a copy with `rsync -L` to have all."""
    if not Path(path).is_dir():
        return
    link = directory / name
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise ConfigError(f"{link} is in the way; remove it, or give another --directory")
    link.symlink_to(Path(path).resolve(), target_is_directory=True)


def made_free(place: Path, *, for_links: bool) -> Path:
    """The directory, empty or as an export before it left it, so that nothing is written through a link.

    Raises: ConfigError where something else is there.
    """
    if place.is_symlink():
        place.unlink()
    place.mkdir(parents=True, exist_ok=True)
    if any(file.is_symlink() != for_links for file in place.iterdir() if file.name != "config.json"):
        raise ConfigError(f"{place} is in the way; remove it, or give another --directory")
    return place


def write_scorers(subject: Subject) -> None:
    """Reward model and critic as OpenRLHF reads them: their normalisation in config.json; other files are links."""
    if subject.is_reward_model:
        _write_scorer(Path(subject.reward_path), subject.directory / "reward_model", subject.normalization)
    if subject.critic_starts_from_reward_model:
        _write_scorer(Path(subject.critic_path), subject.directory / "critic", subject.critic_normalization)


def _write_scorer(source: Path, place: Path, normalization: tuple[float, float] | None) -> None:
    if not source.is_dir():
        return
    made_free(place, for_links=True)
    for file in source.iterdir():
        link = place / file.name
        if link.is_symlink():
            link.unlink()
        if file.name != "config.json":
            link.symlink_to(file.resolve())
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    mean, std = normalization or (0.0, 1.0)
    write_json(place / "config.json", config | {"mean": mean, "std": std})
