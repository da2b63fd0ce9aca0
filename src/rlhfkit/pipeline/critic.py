"""The critic of another run, out of a checkpoint of its PPO: what the critic of this one may begin with."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhfkit.config.recipe import Recipe
from rlhfkit.errors import CheckpointError, ConfigError, RlhfkitError
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.inspection import inspect_model
from rlhfkit.models.lora import merged
from rlhfkit.models.sequence_classification import is_known_to_transformers, sequence_classification_class
from rlhfkit.models.value import ValueHead, ValueNetwork
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.resume import recipe_of
from rlhfkit.training.checkpoint import is_checkpoint, load_trainable, tensors_of

if TYPE_CHECKING:
    from rlhfkit.pipeline.build import Builder

__all__ = ["SavedCritic", "saved_critic"]

HEAD = "linear."
"""How the names of a head on the policy's trunk begin; a network of its own has others."""
REMEDY = "give a run whose critic is like this one's, or leave ppo.value.init out"


@dataclass(frozen=True)
class SavedCritic:
    """A critic in a checkpoint, and the run that it is of."""

    setting: str
    """How it was named."""
    run: RunDir
    checkpoint: Path

    @cached_property
    def recipe(self) -> Recipe:
        """The settings that it was trained with."""
        found = recipe_of(self.run)
        if not isinstance(found, Recipe):
            raise ConfigError(f"{self.setting} is a run of a control task; {REMEDY}")
        return found

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """What of it has learnt, by name. Raises: ConfigError where there was no critic."""
        try:
            found = tensors_of(self.checkpoint, "policy/critic.")
        except (CheckpointError, OSError) as error:
            raise CheckpointError(f"{self.setting}: checkpoint {self.checkpoint} is damaged ({error})") from error
        if not found:
            estimator = self.recipe.ppo.estimator
            raise ConfigError(f"{self.setting} has no critic: its estimator was {estimator!r}; {REMEDY}")
        return found

    @property
    def is_head(self) -> bool:
        """Whether it is a head on the policy's trunk."""
        return next(iter(self.tensors)).startswith(HEAD)

    @property
    def is_whole(self) -> bool:
        """Whether all of it has learnt, so that the checkpoint has all its weights."""
        model = self.recipe.model
        return self.is_head or (model.lora is None and model.num_trained_layers is None)

    # ── before anything is trained ───────────────────────────────────────────────────────────────────────────────────

    def check(self, builder: "Builder", encoder: Encoder) -> None:
        """Raises: ConfigError where it is of another kind, architecture, size or tokenizer than this run's critic."""
        wanted, found = (("head" if is_head else "network") for is_head in (builder.shares_trunk, self.is_head))
        if wanted != found:
            kinds = {"head": '"shared", a head on the policy', "network": '"separate", a network of its own'}
            raise ConfigError(
                f"{self.setting} has a critic with ppo.value.network = {kinds[found]}, and here it is {kinds[wanted]}; "
                "set it as there, or leave ppo.value.init out"
            )
        if self.is_whole:
            self._check_shapes(builder)
        self._check_tokenizer(builder, encoder)

    def _check_shapes(self, builder: "Builder") -> None:
        start = builder.starting_point().path
        if not Path(start).exists():  # a stage is still to make it, of the same shape
            start = builder.source_of().path
        config = inspect_model(start, subject=f'model.path = "{start}"', trust_remote_code=builder.trusts_remote_code)
        with torch.device("meta"):
            if self.is_head:
                expected = dict(ValueHead(config.hidden_size, torch.device("meta")).named_parameters())
            else:
                config.num_labels = 1
                cls = sequence_classification_class(config)
                made = (
                    cls.from_config(config, trust_remote_code=builder.trusts_remote_code)
                    if is_known_to_transformers(config)
                    else cls(config)
                )
                expected = {f"classifier.{name}": weight for name, weight in made.named_parameters()}
                head = ValueHead(expected.pop("classifier.score.weight").shape[1], torch.device("meta"))
                expected |= {f"head.{name}": weight for name, weight in head.named_parameters()}
        odd = sorted(self.tensors.keys() ^ expected.keys())
        if odd:
            where = "there alone" if odd[0] in self.tensors else "here alone"
            raise ConfigError(
                f"{self.setting} has a critic of another architecture than {start}: {len(odd)} weights differ, such as "
                f"{odd[0]}, which is {where}; {REMEDY}"
            )
        for name, weight in expected.items():
            if (shape := self.tensors[name].shape) != weight.shape:
                raise ConfigError(
                    f"{self.setting} has a critic of another size than {start}: {name} is {tuple(shape)} there, and "
                    f"{tuple(weight.shape)} here; {REMEDY}"
                )

    def _check_tokenizer(self, builder: "Builder", encoder: Encoder) -> None:
        policy = self.run.model("policy")
        theirs = self._builder(builder)
        source = theirs.source_of(policy) if policy.exists() else theirs.starting_point()
        if theirs.encoder(source).tokenizer.get_vocab() != encoder.tokenizer.get_vocab():
            raise ConfigError(
                f"{self.setting} has a critic that reads the tokens of another tokenizer, of {source.path}; {REMEDY}"
            )

    # ── to begin with it ─────────────────────────────────────────────────────────────────────────────────────────────

    def head(self) -> dict[str, Tensor]:
        """Weight and bias of its head."""
        prefix = HEAD if self.is_head else f"head.{HEAD}"
        return {name.removeprefix(prefix): self.tensors[f"{prefix}{name}"] for name in ("weight", "bias")}

    def fill(self, classifier: PreTrainedModel, builder: "Builder", encoder: Encoder) -> None:
        """Put the weights of its trunk, with adapters folded in, into a classifier of the same shape."""
        if self.is_whole:
            needed_gradient = [weight for weight in classifier.parameters() if weight.requires_grad]
            load_trainable(ValueNetwork(classifier), self.tensors)
            for weight in needed_gradient:
                weight.requires_grad_(True)
            return
        try:
            network = self._builder(builder).value_network(encoder)
        except RlhfkitError as error:
            raise ConfigError(
                f"{self.setting} has a critic of which only a part has learnt, and what that stands on cannot be had: "
                f"{error}"
            ) from error
        load_trainable(network, self.tensors)
        try:
            classifier.load_state_dict(merged(network.classifier).state_dict())
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise ConfigError(
                f"{self.setting} has a critic of another architecture or size ({lines[-1].strip()}); {REMEDY}"
            ) from error

    def _builder(self, builder: "Builder") -> "Builder":
        """What makes the models of the other run, where and in which type this one computes."""
        ours, model = builder.recipe.model, self.recipe.model
        changed = {"device": ours.device, "dtype": ours.dtype, "compile": False}
        recipe = self.recipe.model_copy(update={"model": model.model_copy(update=changed)})
        return type(builder)(recipe, self.run, given_dtype=builder.dtype_choice)


def saved_critic(name: str, *, own: RunDir) -> SavedCritic:
    """The critic that `ppo.value.init` names: that of a run's newest checkpoint, or of one of its checkpoints.

    Raises: ConfigError where there is none.
    """
    setting, place = f'ppo.value.init = "{name}"', Path(name)
    if not place.is_dir():
        raise ConfigError(
            f'{setting}: expected "auto", "reward_model", "policy" or the directory of another run; there is no such '
            "directory"
        )
    if is_checkpoint(place):
        run, checkpoints = RunDir(place.resolve().parents[2]), [place]
    else:
        run = RunDir(place)
        checkpoints = sorted(path for path in (run.checkpoints / "ppo").glob("*") if is_checkpoint(path))
    if run.path.resolve() == own.path.resolve():
        raise ConfigError(f"{setting} is this run itself, which goes on with its own critic; name another run")
    if not run.is_run():
        raise ConfigError(f"{setting} is neither a run directory nor a checkpoint of PPO in one; name one of these")
    if not checkpoints:
        rounds = sorted(run.path.glob("round-*"))
        remedy = f"name one of its rounds, as {rounds[-1]}" if rounds else "go on with it until PPO has saved one"
        raise ConfigError(f"{setting} has no checkpoint of PPO; {remedy}")
    return SavedCritic(setting, run, checkpoints[-1])
