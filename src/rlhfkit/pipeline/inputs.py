"""What a run reads, tried before anything is trained: a typo must not come to light after hours."""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar, cast

from rlhfkit.config.data import SourceConfig, StoreConfig
from rlhfkit.config.envs import FunctionEnvConfig
from rlhfkit.config.feedback import PreferencesConfig
from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.rewards import (
    BagOfWordsRewardConfig,
    FunctionRewardConfig,
    GrammarRewardConfig,
    LexiconRewardConfig,
    RewardConfig,
    RewardModelRewardConfig,
    answer_rule,
    parts_of,
)
from rlhfkit.config.stages import BASELINES, STAGE_SPECS, Stage
from rlhfkit.data import (
    Loaded,
    SourceFile,
    load_demonstrations,
    load_preferences,
    load_prompts,
    load_texts,
    note_on_unread,
    refuse_bad_rows,
)
from rlhfkit.envs.check import check_text_env
from rlhfkit.envs.text import begin
from rlhfkit.errors import ConfigError, DataError, RewardError, RlhfkitError, StoreError
from rlhfkit.feedback.source import load_labels
from rlhfkit.labelling.people import check_preferences
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.inspection import inspect_model
from rlhfkit.models.joins import remarks_on_rows
from rlhfkit.pipeline.build import Builder
from rlhfkit.pipeline.early import early_readers, early_rewards
from rlhfkit.probes.choose import chosen_probes
from rlhfkit.probes.lm_eval import require_lm_eval
from rlhfkit.records import Demonstration, Preference, Prompt
from rlhfkit.rewards.answer import AnswerReward
from rlhfkit.rewards.chrf import ChrfReward, sacrebleu_metrics
from rlhfkit.rewards.ensemble import EnsembleReward
from rlhfkit.rewards.function import FunctionReward
from rlhfkit.rewards.http import HttpReward
from rlhfkit.rewards.llm_judge import LlmJudgeReward
from rlhfkit.rewards.match import MatchReward
from rlhfkit.rewards.model import ClassifierReward, RewardModelReward
from rlhfkit.rewards.source import ScoredText, references_of
from rlhfkit.rewards.unit_tests import UnitTestsReward
from rlhfkit.rollout.generation import stop_token_ids
from rlhfkit.rollout.vllm import require_vllm
from rlhfkit.rundir.manifest import hash_of_file, hashes_of_files

__all__ = ["Inputs"]

T = TypeVar("T")

LOADERS: dict[str, Callable[..., Loaded[Any]]] = {
    "texts": load_texts,
    "demonstrations": load_demonstrations,
    "prompts": load_prompts,
    "test_prompts": load_prompts,
    "preferences": load_preferences,
    "test_preferences": load_preferences,
    "judge_preferences": load_preferences,
}
"""Table of `data` → what reads it."""

TRIAL_RESPONSES = ("", "Yes, that is fine.")
"""What rewards are tried on: an empty response comes sooner or later, and many a function divides by its length."""


@dataclass
class Inputs:
    """The data of a recipe, read once, and the check of all that it names."""

    recipe: Recipe
    builder: Builder
    _encoder: Encoder | None = None
    _loaded: dict[str, Loaded[Any]] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)

    def load(self, name: str, load: Callable[..., Loaded[T]]) -> Loaded[T]:
        """Records of the table `name` of `data`; after `check`, only those that the model can read.

        Raises: DataError, which begins with the table's name.
        """
        if name not in self._loaded:
            source: SourceConfig | None = getattr(self.recipe.data, name)
            assert source is not None  # the recipe's own check saw to it
            data = self.recipe.data
            try:
                if (given := self.builder.given.data.get(name)) is not None:
                    loaded = _in_memory(given)
                elif isinstance(source, StoreConfig) and load is load_preferences:
                    loaded = cast("Loaded[T]", load_labels(source))
                else:
                    seed = self.recipe.evaluation_seed if name == "test_prompts" else self.recipe.seed
                    loaded = load(source, directory=data.directory, on_bad_row=data.on_bad_row, seed=seed)
                self._loaded[name] = self._readable(loaded)
            except (DataError, StoreError) as error:
                raise type(error)(f"data.{name}: {error}") from error
        return self._loaded[name]

    def foreign_code(self) -> str | None:
        """What to warn of where the recipe lets the code of a model's directory run; None where it does not."""
        model = self.recipe.model
        if not isinstance(model, PretrainedModelConfig) or not model.trust_remote_code:
            return None
        warning = (
            f"model.trust_remote_code = true: Python code out of {model.path} runs now, with all that you may read, "
            "write and send"
        )
        is_fixed = model.revision is not None or Path(model.path).is_dir()
        return warning if is_fixed else f"{warning}; set model.revision, or it may change at any time"

    def remarks(self) -> list[str]:
        """What to warn of in the rows that were read: where prompt and response do not join as the template would."""
        if self._encoder is None:
            return []
        return [
            f"data.{name}: {remark}"
            for name, loaded in self._loaded.items()
            for remark in remarks_on_rows(self._encoder, loaded.records)
        ]

    def unread(self) -> str | None:
        """What to say of files and splits beside those that are read, and that no table reads."""
        sources = [file for loaded in self._loaded.values() for file in loaded.sources]
        return note_on_unread(self.recipe.data, sources)

    def files(self) -> dict[str, dict[str, str]]:
        """Table of `data` → file → SHA-256, of what was loaded; of a store, to which votes are added, none."""
        return {
            name: {str(file.path): file.sha256 for file in loaded.sources}
            for name, loaded in self._loaded.items()
            if not isinstance(getattr(self.recipe.data, name), StoreConfig)
        }

    def read_from_outside(self, stages: Sequence[Stage]) -> dict[str, list[dict[str, str]]]:
        """Stage → models and code that it reads and the run does not make, with the SHA-256 of each."""
        found: dict[str, list[dict[str, str]]] = {}
        for stage in stages:
            places = self._places(stage)
            found[stage] = [entry for use, place in places if (entry := self._entry(use, place)) is not None]
        return found

    def _places(self, stage: Stage) -> Iterator[tuple[str, str]]:
        """(setting, the path or the function that it names)."""
        recipe, model = self.recipe, self.recipe.model
        from_base = "sft" not in recipe.stages or stage == "sft"
        from_base |= stage in ("reward_model", "judge") and recipe.reward_model.init == "base"
        given = self.builder.given
        if isinstance(model, PretrainedModelConfig) and from_base and given.model is None:
            yield "model.path", model.path
        if stage == "preferences" and recipe.preferences.sampled_from is not None:
            yield "preferences.sampled_from", str(recipe.preferences.sampled_from)
        scores = stage in ("ppo", "evaluate", "probe") or (stage in (*BASELINES, "compare") and recipe.has_reward)
        rewards = {"reward": recipe.reward} if scores and recipe.uses_reward else {}
        rewards |= dict(_constraints_of(recipe)) if stage in ("ppo", "evaluate") else {}
        if stage in ("evaluate", *BASELINES, "compare") and recipe.evaluation.judge is not None:
            rewards["evaluation.judge"] = recipe.evaluation.judge
        if given.reward is not None:
            rewards.pop("reward", None)
        for name, reward in rewards.items():
            for part_name, part in parts_of(reward, name):
                if isinstance(part, FunctionRewardConfig):
                    yield f"{part_name}.function", part.function
                elif isinstance(part, RewardModelRewardConfig | BagOfWordsRewardConfig | LexiconRewardConfig):
                    yield f"{part_name}.path", part.path or ""
        if stage == "ppo" and (saved := self.builder.saved_critic()) is not None:
            yield "ppo.value.init", str(saved.checkpoint)
        if stage in ("ppo", "evaluate") and isinstance(recipe.env, FunctionEnvConfig) and given.env is None:
            yield "env.function", recipe.env.function

    def _entry(self, use: str, place: str) -> dict[str, str] | None:
        """What the manifest has of it; None of a model of the hub, which `model.revision` fixes."""
        is_code = use.endswith(".function")
        if is_code:
            module = sys.modules.get(place.partition(":")[0])  # the check has imported it
            path = Path(getattr(module, "__file__", None) or "")
        else:
            path = Path(place)
        if not place or not (path.is_file() or (path.is_dir() and not is_code)):
            return None
        if str(path) not in self._hashes:
            self._hashes[str(path)] = _hash(path)
        return {
            "use": use,
            "path": str(path),
            "sha256": self._hashes[str(path)],
            "kind": "code" if is_code else "model",
        }

    def check(self, stages: Sequence[Stage]) -> None:
        """Read the data of `stages`, look at the files of models, and try the rewards, whose weights alone are read.

        Raises: RlhfkitError; where there are several faults, ConfigError with all of them.
        """
        faults: dict[str, list[RlhfkitError]] = {}
        for _, check in self.checks(stages):
            try:
                check()
            except RlhfkitError as error:
                faults.setdefault(_without_table(str(error)), []).append(error)
        if not faults:
            return
        lines = [
            str(errors[0]) if len(errors) == 1 else f"{', '.join(_tables(errors))}: {fault}"
            for fault, errors in faults.items()
        ]
        if len(lines) == 1:
            raise type(next(iter(faults.values()))[0])(lines[0])
        raise ConfigError(f"{len(lines)} faults, so nothing was started:" + "".join(f"\n  {line}" for line in lines))

    @property
    def encoder(self) -> Encoder | None:
        """Tokenizer and template of the model that the run begins with, once checked; None where the run makes it."""
        return self._encoder

    def loaded(self) -> dict[str, Loaded[Any]]:
        """The tables that were read so far, by name."""
        return dict(self._loaded)

    def checks(self, stages: Sequence[Stage]) -> Iterator[tuple[str, Callable[[], object]]]:
        """(what is checked, the check), each on its own, so that one fault does not hide the others."""
        recipe = self.recipe
        if stages:
            yield "model", lambda: self._check_start(stages)
        if "ppo" in stages and recipe.rollout.engine == "vllm":
            yield "rollout.engine", require_vllm
        made = ("preferences", "test_preferences") if "preferences" in recipe.stages else ()
        is_watched = "ppo" in stages and recipe.evaluation.every_iterations > 0
        is_compared = bool({*BASELINES, "compare"} & set(stages)) and recipe.data.test_prompts is not None
        named = dict.fromkeys(name for stage in stages for name in STAGE_SPECS[stage].data)
        if (is_watched and recipe.uses_prompts) or is_compared:
            named["test_prompts"] = None
        if "ppo" in stages and recipe.ppo.ptx_table is not None:
            named[recipe.ppo.ptx_table] = None
        for name in named:
            if name not in made and getattr(recipe.data, name) is not None:
                yield f"data.{name}", lambda name=name: self.load(name, LOADERS[name])  # type: ignore[misc]
        if "preferences" in stages:
            yield from self._checks_of_labelling(recipe.preferences)
        is_tried = recipe.env is not None and (recipe.env.type != "function" or recipe.env.check)
        if is_tried and {"ppo", "evaluate"} & set(stages):
            yield "env", lambda: self._try_env("prompts" if "ppo" in stages else "test_prompts")
        if recipe.uses_reward and ({"ppo", "evaluate", "raft"} & set(stages) or (is_compared and recipe.has_reward)):
            prompts = [name for name in ("prompts", "test_prompts") if name in named]
            yield "reward", lambda: self._try_reward(recipe.reward, "reward", prompts)
        if {"ppo", "evaluate"} & set(stages):
            prompts = [name for name in ("prompts", "test_prompts") if name in named]
            for name, source in _constraints_of(recipe):
                yield name, lambda source=source, name=name: self._try_reward(source, name, prompts)  # type: ignore[misc]
        if "ppo" in stages:
            yield "ppo.value.init", self._check_saved_critic
        if "evaluate" in stages or is_watched or is_compared:
            yield "evaluation.judge", lambda: self._check_judge(is_second="evaluate" in stages)
        if is_watched and recipe.evaluation.probes:
            yield "evaluation.probes", lambda: self._try_probes(recipe.evaluation.probes, "evaluation.probes")
        if "evaluate" in stages and recipe.evaluation.metric != "none":
            yield "evaluation.metric", self._try_metric
        if "probe" in stages:
            yield "probe", self._check_probes

    def _checks_of_labelling(self, config: PreferencesConfig) -> Iterator[tuple[str, Callable[[], object]]]:
        yield "preferences", lambda: check_preferences(config)
        if config.sampled_from is not None:
            subject = f'preferences.sampled_from = "{config.sampled_from}"'
            yield "preferences", lambda: inspect_model(str(config.sampled_from), subject=subject)
        if config.annotators.type == "simulated":
            yield (
                "preferences",
                lambda: self._try_reward(GrammarRewardConfig(type="grammar"), "preferences", ["prompts"]),
            )

    def _check_judge(self, *, is_second: bool) -> None:
        """Try the judge; where it `is_second` to the reward, it may be nothing of what PPO maximises."""
        if is_second:
            self.builder.check_judge()
        if (judge := self.recipe.evaluation.judge) is not None:
            self._try_reward(judge, "evaluation.judge", ["test_prompts"])

    def _check_probes(self) -> None:
        if self.recipe.probe.lm_eval:
            require_lm_eval()
        self._try_probes(self.recipe.probe.names, "probe.names")

    def _try_probes(self, names: Sequence[str], setting: str) -> None:
        """Read the files of rows that are probes, which are far into a run otherwise."""
        config = self.recipe.probe.model_copy(update={"names": tuple(names)})
        try:
            chosen_probes(config, directory=Path(self.recipe.data.directory), training=["-"])
        except (DataError, ConfigError) as error:
            raise type(error)(f"{setting}: {str(error).removeprefix('names: ')}") from error

    def _check_start(self, stages: Collection[Stage]) -> None:
        self._encoder = self.builder.check_start(stages)
        self.recipe = self.builder.recipe  # which knows the model's context now
        if self._encoder is not None:
            stop_token_ids(self._encoder, self.recipe.rollout.stop_tokens)

    def _try_env(self, table: str) -> None:
        config = self.recipe.env
        assert config is not None
        dialogues = self._loaded[table].records if table in self._loaded else []
        if config.type == "replay" and not dialogues:
            return  # the table itself is at fault, and reported
        try:
            factory = self.builder.env_factory(config, dialogues)
            check_text_env(factory)
            if self._encoder is not None:
                first = begin(factory(), 0)
                self._encoder.encode(first, max_tokens=self.recipe.data.prompt_limit)
                self._encoder.observation(first, "")
        except RlhfkitError as error:
            if str(error).startswith("env."):
                raise
            raise type(error)(f'env.type = "{config.type}": {error}') from error

    def _try_reward(self, config: RewardConfig, setting: str, tables: Sequence[str]) -> None:
        prompts = [prompt for name in tables if name in self._loaded for prompt in self._loaded[name].records]
        episodes = [
            ScoredText(prompt, self._text(prompt), response)
            for prompt, response in zip(cycle(prompts), TRIAL_RESPONSES, strict=False)
        ]
        try:
            sources = early_rewards(self.builder, config, setting=setting)
        except RlhfkitError as error:
            if str(error).startswith(setting):
                raise
            raise type(error)(f"{setting}: {error}") from error  # or a judge's fault would look like the reward's
        for reads in early_readers(self.builder, config, setting=setting):
            for name in tables:
                self._read_by(name, reads)
        for source in sources:
            if isinstance(source, HttpReward | LlmJudgeReward):
                source = source.impatient()
            if isinstance(source, FunctionReward):
                source.columns_of(prompts)
            if isinstance(source, AnswerReward | LlmJudgeReward | UnitTestsReward):
                source.check_rows(prompts, setting=setting)
            if isinstance(source, MatchReward | ChrfReward):
                references_of(prompts, wanted_by=f'{setting}.type = "{source.type}"')
            if episodes:
                try:
                    source.score(episodes)
                except RewardError as error:
                    trial = f'an empty response and on "{TRIAL_RESPONSES[1]}"'
                    raise RewardError(f"{setting}, tried on {trial}: {error}") from error
            for scorer in source.members if isinstance(source, EnsembleReward) else (source,):
                if isinstance(scorer, ClassifierReward | RewardModelReward):
                    _try_longest(scorer, setting)

    def _read_by(self, name: str, reads: Callable[[Prompt, str], object]) -> None:
        """Leave out the prompts of a table that the chat template of a reward model refuses.

        Raises: DataError where they may not be left out.
        """
        if name not in self._loaded:
            return
        loaded = self._loaded[name]
        try:
            self._loaded[name] = self._without_faults(loaded, lambda prompt: reads(prompt, TRIAL_RESPONSES[1]))
        except DataError as error:
            raise DataError(
                f"data.{name}: {error}; leave out these turns, or choose a reward model that reads them"
            ) from error

    def _check_saved_critic(self) -> None:
        saved = self.builder.saved_critic()
        if saved is not None and self._encoder is not None:
            saved.check(self.builder, self._encoder)

    def _try_metric(self) -> None:
        metric = self.recipe.evaluation.metric
        prompts = self._loaded["test_prompts"].records if "test_prompts" in self._loaded else []
        if metric == "answer" and (rule := answer_rule(self.recipe.reward)) is not None:
            AnswerReward(rule).check_rows(prompts, setting="reward")
        else:
            references_of(prompts, wanted_by=f'evaluation.metric = "{metric}"')
        if metric == "translation":
            sacrebleu_metrics('evaluation.metric = "translation"')

    def _text(self, prompt: Prompt) -> str:
        if self._encoder is not None:
            return self._encoder.prompt_text(prompt)
        return prompt.content if isinstance(prompt.content, str) else prompt.content[-1].content

    def _readable(self, loaded: Loaded[T]) -> Loaded[T]:
        """Without the records that the chat template refuses, or whose prompt cannot be cut to its limit."""
        return self._without_faults(loaded, self._encode)

    def _without_faults(self, loaded: Loaded[T], check: Callable[[Any], object]) -> Loaded[T]:
        """Without the records on which `check` fails. Raises: DataError where they may not be left out."""
        records, faults = [], []
        for record in loaded.records:
            try:
                check(record)
                records.append(record)
            except DataError as error:
                faults.append(str(error))
        refuse_bad_rows(faults, num_rows=len(loaded.records), on_bad_row=self.recipe.data.on_bad_row)
        return replace(loaded, records=records, skipped=(*loaded.skipped, *faults))

    def _encode(self, record: object) -> None:
        if self._encoder is None:
            return
        match record:
            case Prompt(content=content) if not isinstance(content, str):
                self._encoder.encode(record, max_tokens=self.recipe.data.prompt_limit)
            case Demonstration(prompt=prompt, response=response) if not isinstance(prompt.content, str):
                self._encoder.encode(prompt, max_tokens=self.recipe.data.prompt_limit)
                self._encoder.conversation_text(prompt, response)
            case Preference(prompt=prompt):  # reward models cut whole sequences
                self._encoder.prompt_text(prompt)
                self._encoder.conversation_text(prompt, record.chosen)
            case _:  # text can be cut anywhere
                pass


def _constraints_of(recipe: Recipe) -> Iterator[tuple[str, RewardConfig]]:
    """(dotted name, source) of what PPO holds to a limit."""
    for index, constraint in enumerate(recipe.ppo.constraints):
        yield f"ppo.constraints[{index}].source", constraint.source


def _in_memory(records: Sequence[Any]) -> Loaded[Any]:
    """Records that nobody has to read, with what tells them from others when the run goes on."""
    if not records:
        return Loaded([], (), ())
    digest = hashlib.sha256("\n".join(map(repr, records)).encode("utf-8", "surrogatepass")).hexdigest()
    return Loaded(list(records), (), (SourceFile("rows in memory", digest, len(records)),))


def _hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of a model's files."""
    if path.is_file():
        return hash_of_file(path)
    return hashlib.sha256(json.dumps(hashes_of_files(path), sort_keys=True).encode()).hexdigest()


def _try_longest(source: ClassifierReward | RewardModelReward, setting: str) -> None:
    """Raises: RewardError where a model cannot read as many tokens as it will be given."""
    longest = ScoredText(Prompt("Say"), "Say", " yes" * source.max_tokens)
    try:
        source.score([longest])
    except (IndexError, RuntimeError) as error:
        raise RewardError(
            f"{setting}: the model cannot read a text of {source.max_tokens} tokens ({str(error).splitlines()[0]}); "
            "set max_tokens there to what its authors name"
        ) from error


TABLE = re.compile(r"(data\.\w+): ")


def _without_table(fault: str) -> str:
    """Several tables may read one file, whose fault is reported once."""
    return TABLE.sub("", fault, count=1) if TABLE.match(fault) else fault


def _tables(errors: Sequence[RlhfkitError]) -> list[str]:
    found = (TABLE.match(str(error)) for error in errors)
    return list(dict.fromkeys(match[1] for match in found if match))
