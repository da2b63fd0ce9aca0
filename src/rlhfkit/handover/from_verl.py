"""A recipe out of a configuration of verl."""

import ast
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhfkit.config.load import with_overrides
from rlhfkit.errors import ConfigError
from rlhfkit.handover.verl_defaults import (
    ACTOR,
    CORRECTION,
    MODEL,
    NAMES_LEFT_OUT,
    OFF,
    PARTS_LEFT_OUT,
    REWARD_MODEL,
    ROLLOUT,
    VERL_DEFAULTS,
)

__all__ = ["Imported", "import_from"]

OLDER_REWARD_MODEL = ("reward_model.enable", "reward_model.model.path")
HUGE = 1e6
"""From here on a bound bounds nothing."""
MEAN = "loss_agg_mode"
ESTIMATORS = {
    "gae": "gae",
    "rloo": "rloo",
    "grpo": "grpo",
    "reinforce_plus_plus": "reinforce++",
    "reinforce_plus_plus_baseline": "reinforce++-baseline",
}
AGGREGATIONS = {"token-mean": "token", "seq-mean-token-mean": "sequence", "seq-mean-token-sum-norm": "constant"}
"""The names there, and here."""
EPS = "override_optimizer_config.eps"


def _is_left_out(name: str) -> bool:
    return bool(PARTS_LEFT_OUT & set(name.split("."))) or NAMES_LEFT_OUT.fullmatch(name) is not None


@dataclass(frozen=True)
class Imported:
    """A recipe that was made of another tool's configuration."""

    text: str
    """TOML, with the name there of each line."""
    not_understood: tuple[str, ...]
    """Settings there, with their values, that the recipe does not say, and why."""
    left_out: tuple[str, ...]
    """Settings there about machines, memory, logs and files."""

    def __str__(self) -> str:
        """The recipe."""
        return self.text

    def summary(self) -> list[str]:
        """What was not understood, and what was left out, in lines."""
        lines = [f"not understood ({len(self.not_understood)}):"] if self.not_understood else []
        lines += [f"  - {entry}" for entry in self.not_understood]
        if self.left_out:
            lines.append(f"left out ({len(self.left_out)}), as they are about machines, memory, logs and files")
        return lines or ["all of it was understood"]


@dataclass
class _Found:
    """A configuration, flat, and what of it has been read."""

    settings: dict[str, Any]
    read: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    lines: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Setting here → (value, where it comes from)."""

    def __getitem__(self, name: str) -> Any:
        """The setting, or what verl takes where it is not there."""
        self.read.add(name)
        value = self.settings.get(name, VERL_DEFAULTS.get(name))
        if isinstance(value, str) and "${" in value and "oc.env" not in value:
            self.problems.append(f"{name} = {value}: it is made of others; verl's default was taken, write the value")
            return VERL_DEFAULTS.get(name)
        return value

    def put(self, ours: str, value: Any, *names: str) -> None:
        """Set a setting here, which comes from those of these names there."""
        self.lines[ours] = value, ", ".join(self._named(name) for name in names)

    def take(self, ours: str, name: str, convert: Callable[[Any], Any] = lambda value: value) -> None:
        """Set a setting here to that of this name there."""
        self.put(ours, convert(self[name]), name)

    def refuse(self, name: str, why: str) -> None:
        """Note that a setting cannot be said here."""
        self.problems.append(f"{name} = {json.dumps(self[name])}: {why}")

    def _named(self, name: str) -> str:
        return name if name in self.settings else f"verl's default of {name}"


def import_from(tool: str, config: str | Path | Mapping[str, Any], *, response_tokens: float | None = None) -> Imported:
    """A recipe that does what a configuration of verl's `main_ppo` says, as a YAML file or a dictionary.

    What the configuration does not say is as verl has it by default. Raises: ConfigError where it is no such
    configuration, or its algorithm is another one.
    """
    if tool != "verl":
        raise ConfigError(f"{tool!r} is no tool whose configurations are read; choose verl")
    settings = flat(config if isinstance(config, Mapping) else _read(Path(config)))
    here = None if isinstance(config, Mapping) else str(Path(config).resolve().parent)
    found = _Found({name: _resolved(value, settings, here) for name, value in settings.items()})
    known = {name.split(".")[0] for name in (*VERL_DEFAULTS, *OLDER_REWARD_MODEL)}
    if not known & {name.split(".")[0] for name in settings}:
        raise ConfigError(f"{config} is no configuration of verl: it has none of {', '.join(sorted(known))}")
    name = re.sub(r"[^a-z0-9_-]+", "-", str(found["trainer.experiment_name"]).lower()).strip("-")
    found.put("name", name or "verl", "trainer.experiment_name")
    found.take("seed", f"{ROLLOUT}.seed")
    found.put("stages", ["ppo"])
    for read in (_model, _data, _reward, _sampling, _counts, _advantages, _loss):
        read(found)
    _kl(found, response_tokens)
    _optim(found, "ppo.optim", f"{ACTOR}.optim")
    if found.lines["ppo.estimator"][0] == "gae":
        _optim(found, "ppo.value.optim", "critic.optim")
        _critic(found)
    else:
        found.read |= {name for name in settings if name.startswith("critic.")}
    _order(found)
    text = _toml(found.lines)
    with_overrides(_nested(found.lines), (), name="the recipe that was made of it")
    unread = [name for name in settings if name not in found.read]
    unknown = [name for name in unread if not _is_left_out(name) and not _is_default(name, settings)]
    return Imported(
        text=text,
        not_understood=(
            *found.problems,
            *(f"{name} = {json.dumps(settings[name], default=str)}: nothing here says this" for name in unknown),
        ),
        left_out=tuple(name for name in unread if _is_left_out(name)),
    )


def _is_default(name: str, settings: Mapping[str, Any]) -> bool:
    known = VERL_DEFAULTS | OFF
    return settings[name] is None or (name in known and settings[name] == known[name])


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _model(found: _Found) -> None:
    found.take("model.path", f"{MODEL}.path", str)
    if found[f"{MODEL}.trust_remote_code"]:
        found.put("model.trust_remote_code", True, f"{MODEL}.trust_remote_code")
    found.take("model.gradient_checkpointing", f"{MODEL}.enable_gradient_checkpointing", bool)
    if found[f"{MODEL}.custom_chat_template"]:
        found.refuse(f"{MODEL}.custom_chat_template", "write it to a file, and set model.chat_template to that")
    if found[f"{MODEL}.lora_rank"] > 0:
        found.take("model.lora.rank", f"{MODEL}.lora_rank")
        found.take("model.lora.alpha", f"{MODEL}.lora_alpha", float)
        found.take("model.lora.targets", f"{MODEL}.target_modules")
    else:
        found.read |= {f"{MODEL}.lora_alpha", f"{MODEL}.target_modules"}


def _data(found: _Found) -> None:
    found.take("data.max_prompt_tokens", "data.max_prompt_length")
    found.take("data.prompts.path", "data.train_files")
    if found["data.prompt_key"] != "prompt":
        found.put("data.prompts.columns", {"prompt": found["data.prompt_key"]}, "data.prompt_key")


SCORER = "reward.reward_manager"
SHAPING = ("clip_score", "length_penalty", "length_penalty_tokens", "brevity_penalty", "brevity_penalty_tokens",
           "missing_eos_score", "missing_eos_penalty")  # fmt: skip


def _reward(found: _Found) -> None:
    own = _own_reward(found)
    for name in (key for key in SHAPING if own.get(key.upper()) is not None):
        found.put(f"ppo.{name}", own[name.upper()], f"{SCORER}.module.path")
    if own.get("FUNCTION"):
        found.put("reward.type", "function", f"{SCORER}.module.path")
        found.put("reward.function", own["FUNCTION"], f"{SCORER}.module.path")
        return
    for enable, path in ((f"{REWARD_MODEL}.enable", f"{REWARD_MODEL}.model_path"), OLDER_REWARD_MODEL):
        if found[enable]:
            found.put("reward.type", "reward_model", enable)
            found.take("reward.path", path)
            return
    found.put("reward.type", "function")
    found.put("reward.function", "reward:score")
    found.problems.append(
        "the reward: verl's is a function of other arguments (see reward.custom_reward_function); write a function "
        "`score(prompts, responses)` in reward.py, or change reward.function"
    )


def _own_reward(found: _Found) -> dict[str, Any]:
    """The constants of the file of the reward that an export has written, where that is the one."""
    path = Path(str(found.settings.get(f"{SCORER}.module.path")))
    if found.settings.get(f"{SCORER}.name") != "ScoreManager" or not path.is_file():
        return {}
    found.read |= {f"{SCORER}.{key}" for key in ("name", "source", "module.path")}
    found.read.add("reward.custom_reward_function.path")
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    return {
        ast.unparse(statement.targets[0]): ast.literal_eval(statement.value)
        for statement in statements
        if isinstance(statement, ast.Assign)
    }


def _sampling(found: _Found) -> None:
    found.take("rollout.max_response_tokens", "data.max_response_length")
    found.take("rollout.temperature", f"{ROLLOUT}.temperature", float)
    found.take("rollout.top_k", f"{ROLLOUT}.top_k", lambda value: max(0, value))
    found.take("rollout.top_p", f"{ROLLOUT}.top_p", float)
    level = found[f"{CORRECTION}.rollout_is"]
    if level == "token":
        found.put("rollout.engine", "vllm", f"{CORRECTION}.rollout_is")
        found.take("rollout.importance_cap", f"{CORRECTION}.rollout_is_threshold", float)
    elif level is not None:
        found.refuse(f"{CORRECTION}.rollout_is", "weights are of tokens here")


def _counts(found: _Found) -> None:
    group = found[f"{ROLLOUT}.n"]
    episodes = found["data.train_batch_size"] * group
    found.take("ppo.group_size", f"{ROLLOUT}.n")
    found.put("ppo.rollout_episodes", episodes, "data.train_batch_size", f"{ROLLOUT}.n")
    minibatch = min(found[f"{ACTOR}.ppo_mini_batch_size"] * group, episodes)
    found.put("ppo.minibatch_episodes", minibatch, f"{ACTOR}.ppo_mini_batch_size", f"{ROLLOUT}.n")
    found.take("ppo.epochs", f"{ACTOR}.ppo_epochs")
    if found[f"{ACTOR}.use_dynamic_bsz"]:
        found.take("ppo.microbatch_tokens", f"{ACTOR}.ppo_max_token_len_per_gpu")
    else:
        found.put("ppo.microbatch_tokens", "auto")
    steps = found["trainer.total_training_steps"]
    if steps is None:
        found.read.add("trainer.total_epochs")
        found.problems.append(
            f"trainer.total_epochs = {found.settings.get('trainer.total_epochs', 30)}: iterations are counted here; "
            "set ppo.iterations to it times the prompts, divided by data.train_batch_size"
        )
    else:
        found.take("ppo.iterations", "trainer.total_training_steps")
        found.read.add("trainer.total_epochs")


def _advantages(found: _Found) -> None:
    name = found["algorithm.adv_estimator"]
    if name not in ESTIMATORS:
        raise ConfigError(
            f"algorithm.adv_estimator = {name!r} is none of {', '.join(ESTIMATORS)}, which there are here"
        )
    found.take("ppo.estimator", "algorithm.adv_estimator", lambda value: ESTIMATORS[value])
    found.take("ppo.gamma", "algorithm.gamma", float)
    found.take("ppo.gae_lambda", "algorithm.lam", float)
    if not found["algorithm.norm_adv_by_std_in_grpo"] and name == "grpo":
        found.put("ppo.normalize_std", False, "algorithm.norm_adv_by_std_in_grpo")


def _kl(found: _Found, response_tokens: float | None) -> None:
    control = "algorithm.kl_ctrl"
    kinds = [found[f"{control}.{key}"] for key in ("type", "kl_coef", "target_kl", "horizon")]
    if found[f"{ACTOR}.use_kl_loss"] and not found["algorithm.use_kl_in_reward"]:
        _kl_loss(found)
        return
    if found[f"{ACTOR}.use_kl_loss"]:
        found.refuse(f"{ACTOR}.use_kl_loss", "the KL penalty is in the reward or in the loss here, and not in both")
    if not found["algorithm.use_kl_in_reward"]:
        found.put("ppo.kl.coef", 0.0, "algorithm.use_kl_in_reward")
        return
    if found["algorithm.kl_penalty"] not in ("kl", "k1"):
        found.refuse("algorithm.kl_penalty", "it is k1 here")
    found.put("ppo.kl.type", kinds[0], f"{control}.type")
    found.take("ppo.kl.coef", f"{control}.kl_coef", float)
    if kinds[0] == "adaptive":
        length = response_tokens or found["data.max_response_length"]
        found.put("ppo.kl.target", found[f"{control}.target_kl"] * length, f"{control}.target_kl")
        found.take("ppo.kl.horizon_episodes", f"{control}.horizon")
        if response_tokens is None:
            found.problems.append(
                f"{control}.target_kl: nats per token there, per sequence here; multiplied by the longest response, "
                f"{length}, as the mean length is not known (--response-tokens N)"
            )


def _kl_loss(found: _Found) -> None:
    found.put("ppo.kl.place", "loss", f"{ACTOR}.use_kl_loss")
    found.take("ppo.kl.coef", f"{ACTOR}.kl_loss_coef", float)
    kind = found[f"{ACTOR}.kl_loss_type"]
    found.put("ppo.kl.estimator", "k2", f"{ACTOR}.kl_loss_type")
    if kind not in ("k2", "mse") and not str(kind).endswith("+"):  # with a + the gradient is that of k2
        found.refuse(f"{ACTOR}.kl_loss_type", "its gradient is not that of the KL; k2, whose is, was taken")


def _loss(found: _Found) -> None:
    low, high = (found[f"{ACTOR}.clip_ratio_{side}"] for side in ("low", "high"))
    both = found[f"{ACTOR}.clip_ratio"]
    low, high = (both if value is None else value for value in (low, high))
    found.put("ppo.clip_range", float(low), f"{ACTOR}.clip_ratio_low")
    mode, aggregation = found[f"{ACTOR}.policy_loss.loss_mode"], found[f"{ACTOR}.{MEAN}"]
    if mode == "cispo":  # 1 is no bound below, as anything more is there
        found.put("ppo.objective", "cispo", f"{ACTOR}.policy_loss.loss_mode")
        found.put("ppo.clip_range", min(1.0, float(low)), f"{ACTOR}.clip_ratio_low")
    if low != high:
        found.put("ppo.clip_range_high", float(high), f"{ACTOR}.clip_ratio_high")
    if mode == "gspo":
        found.put("ppo.ratio", "sequence", f"{ACTOR}.policy_loss.loss_mode")
    bound = found[f"{ACTOR}.clip_ratio_c"]
    if bound < HUGE and mode == "vanilla":  # the others do not read it
        found.take("ppo.dual_clip", f"{ACTOR}.clip_ratio_c", float)
    if mode not in ("vanilla", "gspo", "cispo"):
        found.refuse(f"{ACTOR}.policy_loss.loss_mode", 'the loss is that of "vanilla", "gspo" or "cispo" here')
    if aggregation in AGGREGATIONS:
        found.put("ppo.loss_aggregation", AGGREGATIONS[aggregation], f"{ACTOR}.{MEAN}")
    else:
        found.refuse(f"{ACTOR}.{MEAN}", f"the loss is one of {', '.join(AGGREGATIONS)} here")
    scale = found[f"{ACTOR}.loss_scale_factor"]
    if scale is not None and aggregation == "seq-mean-token-sum-norm":
        found.put("ppo.loss_tokens", int(scale), f"{ACTOR}.loss_scale_factor")
    found.take("ppo.entropy_coef", f"{ACTOR}.entropy_coeff", float)


def _optim(found: _Found, ours: str, theirs: str) -> None:
    found.take(f"{ours}.learning_rate", f"{theirs}.lr", float)
    found.take(f"{ours}.schedule", f"{theirs}.lr_scheduler_type")
    found.take(f"{ours}.weight_decay", f"{theirs}.weight_decay", float)
    found.take(f"{ours}.adam_betas", f"{theirs}.betas", list)
    eps = found[f"{theirs}.{EPS}"]
    found.put(f"{ours}.adam_eps", 1e-8 if eps is None else float(eps), f"{theirs}.{EPS}")
    found.take(f"{ours}.max_grad_norm", f"{theirs}.clip_grad", float)
    found.read |= {f"{theirs}.total_training_steps"}
    steps, ratio = found[f"{theirs}.lr_warmup_steps"], found[f"{theirs}.lr_warmup_steps_ratio"]
    total = found["trainer.total_training_steps"]
    if steps and steps > 0 and total:
        found.put(f"{ours}.warmup_share", steps / total, f"{theirs}.lr_warmup_steps", "trainer.total_training_steps")
    else:
        found.put(f"{ours}.warmup_share", float(ratio), f"{theirs}.lr_warmup_steps_ratio")
        if steps and steps > 0:
            found.refuse(f"{theirs}.lr_warmup_steps", "it is a share of all updates here, whose number is not known")
    if (found[f"{theirs}.min_lr_ratio"] or 0) > 0 and found[f"{theirs}.lr_scheduler_type"] == "cosine":
        found.refuse(f"{theirs}.min_lr_ratio", "a cosine ends with 0 here")


def _critic(found: _Found) -> None:
    clip = found["critic.cliprange_value"]
    found.put("ppo.value.clip_range", 0.0 if clip >= HUGE else float(clip), "critic.cliprange_value")
    found.put("ppo.value.warmup_iterations", max(0, found["trainer.critic_warmup"] - 1), "trainer.critic_warmup")
    found.put("ppo.value.init", "policy")
    if (path := found["critic.model.path"]) not in (None, found[f"{MODEL}.path"]):
        found.problems.append(
            f"critic.model.path = {json.dumps(path)}: the critic begins at the policy here, or at the reward model of "
            "the run"
        )

    for key, value in (("ppo_epochs", f"{ACTOR}.ppo_epochs"), ("ppo_mini_batch_size", f"{ACTOR}.ppo_mini_batch_size")):
        if found.settings.get(f"critic.{key}", found[value]) != found[value]:
            found.refuse(f"critic.{key}", "the critic learns from the same minibatches as the policy here")
    if found.settings.get(f"critic.{MEAN}", found[f"{ACTOR}.{MEAN}"]) != "token-mean":
        found.refuse(f"critic.{MEAN}", "its loss is a mean over tokens here")


def _order(found: _Found) -> None:
    """What is always shuffled here."""
    for name, what in (("data.shuffle", "prompts"), (f"{ACTOR}.shuffle", "minibatches")):
        if found.settings.get(name) is False:
            found.refuse(name, f"{what} are always drawn at random here")


# ── reading and writing ──────────────────────────────────────────────────────────────────────────────────────────────


def _read(path: Path) -> Mapping[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give verl's YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no settings; give verl's YAML file")
    return found


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name → value; keys may be dotted themselves."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = _number(value)
    return found


def _number(value: Any) -> Any:
    """A number where YAML 1.1 has read a text, as of 1e-6."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _resolved(value: Any, settings: Mapping[str, Any], here: str | None) -> Any:
    """The value, with others put in where it names them; as it is where that cannot be done.

    `here` is the file's directory, which launch.sh of an export says in a variable.
    """
    if not isinstance(value, str):
        return value
    if (named := re.fullmatch(r"\$\{(?:oc\.select:)?([\w.]+)(?:,\s*([^}]*))?\}", value)) and named[1] in settings:
        return _resolved(settings[named[1]], settings, here)
    if named and named[2] is not None and "${" not in named[2]:
        return _number({"null": None, "true": True, "false": False}.get(named[2], named[2]))
    known = ({} if here is None else {"HANDOVER": here}) | os.environ
    return re.sub(r"\$\{oc\.env:(\w+)\}", lambda found: known.get(found[1], f"${found[1]}"), value)


def _nested(lines: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, (value, _) in lines.items():
        *above, last = name.split(".")
        place = table
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
    return table


def _toml(lines: Mapping[str, tuple[Any, str]]) -> str:
    """TOML, a table for each section, each line with the name there behind it."""
    sections: dict[str, list[str]] = {}
    for name, (value, origin) in lines.items():
        section, _, key = name.rpartition(".")
        text = f"{key} = {_toml_value(value)}"
        sections.setdefault(section, []).append(f"{text}  # {origin}" if origin else text)
    return "\n\n".join(_blocks(sections)) + "\n"


def _blocks(sections: Mapping[str, list[str]]) -> Iterator[str]:
    for section in sorted(sections):
        yield "\n".join([f"[{section}]"] * bool(section) + sections[section])


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)
