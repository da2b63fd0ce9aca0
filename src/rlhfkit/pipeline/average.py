"""One reward model out of several of the same shape and origin: the mean of their weights (WARM)."""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhfkit.config.data import RowsConfig
from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.data import load_preferences
from rlhfkit.errors import DataError, ModelError
from rlhfkit.machine.device import choose_device
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.loading import load_classifier, load_tokenizer
from rlhfkit.models.reward_model import (
    HEADS_FILE,
    MEMBERS,
    SETTINGS_FILE,
    Normalization,
    RewardModel,
    members_of,
    read_max_tokens,
    read_normalization,
)
from rlhfkit.records import Preference
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rewards.source import DEFAULT_MAX_TOKENS, ScoredText
from rlhfkit.rundir.atomic import place_to_save, read_json, write_directory_atomically, write_json
from rlhfkit.rundir.directory import RunDir

__all__ = ["Average", "average_reward_models", "mean_of_weights", "similarity"]

SAME_ORIGIN = 0.5
"""Cosine of all matrices of two models: near 1 where both were tuned from one model, near 0 where they were not."""


@dataclass(frozen=True)
class Average:
    """What came of it."""

    directory: Path
    members: tuple[Path, ...]
    similarity: float
    """Smallest cosine of a member's matrices with the first one's."""
    head_similarity: float
    """The same of their heads."""
    accuracies: tuple[float, ...] = ()
    """Of the members, on the pairs that were given; none without pairs."""
    accuracy: float | None = None
    """Of the average."""
    num_pairs: int = 0


def average_reward_models(models: Sequence[Path], to: Path, *, pairs: Path | None = None) -> Average:
    """Average the weights of reward models into the directory `to`, and measure all on pairs.

    `models`: directories of reward models, of ensembles, which count for each of their members, or of runs. `pairs`: a
    file of preferences; by default the test pairs of a run among `models`.
    Raises: ModelError where there are fewer than two, they differ in shape, tokenizer or origin, or one is an
    ensemble of heads on one trunk; DataError where the pairs cannot be read; CheckpointError where `to` holds files of
    something else, which would be removed.
    """
    members = tuple(path for model in models for path in _expanded(model))
    if len(members) < 2:
        raise ModelError(
            f"{len(members)} reward model in {', '.join(map(str, models))}: expected at least two; give several, or "
            "train an ensemble with reward_model.ensemble.members above 1"
        )
    for member in members:
        _check(member, members[0])
    place = place_to_save(to)
    if place.resolve() in [member.resolve() for member in members]:
        raise ModelError(f"{to} is one of those to be averaged, and would be replaced; give another directory")
    weights, likeness, head_likeness = mean_of_weights(members)
    test = _pairs(models, pairs)
    with write_directory_atomically(place) as directory:
        left_out = shutil.ignore_patterns(MEMBERS, HEADS_FILE, "*.safetensors", "*.safetensors.index.json")
        shutil.copytree(members[0], directory, ignore=left_out, dirs_exist_ok=True)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        raw = [_raw_scores(path, test) for path in (*members, directory)] if test else []
        _write_scale(directory, members, raw)
    found = tuple(float((scores[0] > scores[1]).float().mean()) for scores in raw)
    return Average(to, members, likeness, head_likeness, found[:-1], found[-1] if found else None, len(test))


def mean_of_weights(directories: Sequence[Path]) -> tuple[dict[str, Tensor], float, float]:
    """(name → mean of the tensors, smallest cosine of the matrices, of the heads) of models that are saved.

    Raises: ModelError where names or shapes differ, or the matrices are not of one origin.
    """
    first = _weights(directories[0])
    total = {name: tensor.double() for name, tensor in first.items()}
    cosines, head_cosines = [1.0], [1.0]
    for directory in directories[1:]:
        other = _weights(directory)
        _same_shapes(first, other, directories[0], directory)
        cosines.append(similarity(first, other, [name for name in _matrices(first) if name != "score.weight"]))
        head_cosines.append(similarity(first, other, ["score.weight"]))
        if cosines[-1] < SAME_ORIGIN:
            raise ModelError(
                f"{directory} and {directories[0]} were not tuned from the same model: the cosine of their weights is "
                f"{cosines[-1]:.2f}, where it is near 1 for two that were; the mean of such weights computes nothing. "
                "Combine their scores instead, by a mix with combine"
            )
        for name, tensor in other.items():
            total[name] += tensor.double()
    mean = {name: (tensor / len(directories)).to(first[name].dtype) for name, tensor in total.items()}
    return mean, min(cosines), min(head_cosines)


def similarity(one: dict[str, Tensor], other: dict[str, Tensor], names: Sequence[str]) -> float:
    """Cosine of the named tensors of two models, all taken as one vector."""
    dot = sum(float((one[name].double() * other[name].double()).sum()) for name in names)
    squares = [sum(float(model[name].double().square().sum()) for name in names) for model in (one, other)]
    return dot / max(math.sqrt(squares[0] * squares[1]), 1e-30)


def _expanded(model: Path) -> Iterator[Path]:
    """The reward models in a directory: of a run, of an ensemble, or the one that it is."""
    path = RunDir(model).model("reward_model") if RunDir(model).is_run() else model
    yield path
    yield from members_of(path)


def _check(member: Path, first: Path) -> None:
    """Raises: ModelError where a member is no reward model of ours, or reads other tokens than the first."""
    if read_normalization(member) is None:
        raise ModelError(f"{member} is no reward model that rlhfkit trained (it has no {SETTINGS_FILE}); leave it out")
    if (member / HEADS_FILE).exists():
        raise ModelError(
            f"{member} is an ensemble of heads on one trunk, which have the weights of the trunk in common: there is "
            'nothing to average; train one with reward_model.ensemble.shared = "nothing"'
        )
    for name, path, other in (("tokenizer.json", member, first), ("chat_template.jinja", member, first)):
        texts = [(place / name).read_bytes() if (place / name).exists() else b"" for place in (path, other)]
        if texts[0] != texts[1]:
            raise ModelError(f"{member} and {first} differ in {name}, so they read other tokens; leave one of them out")


def _weights(directory: Path) -> dict[str, Tensor]:
    files = sorted(path for path in directory.glob("*.safetensors") if path.name != HEADS_FILE)
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def _same_shapes(first: dict[str, Tensor], other: dict[str, Tensor], *places: Path) -> None:
    for name in sorted({*first, *other}):
        shapes = [tuple(model[name].shape) if name in model else "missing" for model in (first, other)]
        if shapes[0] != shapes[1]:
            raise ModelError(
                f"{name} is {shapes[0]} in {places[0]} and {shapes[1]} in {places[1]}: only models of one shape have a "
                "mean; combine their scores instead, by a mix with combine"
            )


def _matrices(weights: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in weights.items() if tensor.dim() >= 2]


def _pairs(models: Sequence[Path], pairs: Path | None) -> list[Preference]:
    found = pairs or next((run.test_preferences for run in map(_run_of, models) if run.test_preferences.exists()), None)
    if found is None:
        return []
    if not found.exists():
        raise DataError(f"{found} does not exist; give a file of preferences")
    return load_preferences(RowsConfig(path=str(found.absolute()))).records


def _run_of(model: Path) -> RunDir:
    return RunDir(model) if RunDir(model).is_run() else RunDir(model.parent)


def _raw_scores(directory: Path, pairs: Sequence[Preference]) -> Tensor:
    """(2, N) raw scores of chosen and rejected responses."""
    tokenizer, _ = load_tokenizer(PretrainedModelConfig(path=str(directory)))
    device = choose_device("auto")
    classifier = load_classifier(str(directory), tokenizer, device=device, dtype=torch.float32, num_labels=1)
    model = RewardModel(classifier, Encoder(tokenizer, name=str(directory)))
    scorer = RewardModelReward(model, Normalization(), max_tokens=read_max_tokens(directory) or DEFAULT_MAX_TOKENS)
    sides = [[ScoredText(pair.prompt, "", getattr(pair, side)) for pair in pairs] for side in ("chosen", "rejected")]
    return torch.stack([scorer.raw_scores(side) for side in sides])


def _write_scale(directory: Path, members: Sequence[Path], raw: Sequence[Tensor]) -> None:
    """Store a normalisation of the average that puts it on the members' scale.

    On the responses of the pairs its scores get the mean and the deviation that those of the members have on average;
    without pairs its normalisation is the mean of theirs.
    """
    scales = [read_normalization(member) or Normalization() for member in members]
    mean, std = (sum(getattr(scale, name) for scale in scales) / len(scales) for name in ("mean", "std"))
    if raw:
        normalised = [(scores - scale.mean) / scale.std for scores, scale in zip(raw, scales, strict=False)]
        wanted_mean, wanted_std = (
            sum(float(number) for number in numbers) / len(normalised)
            for numbers in zip(*((scores.mean(), scores.std(correction=0)) for scores in normalised), strict=True)
        )
        std = float(raw[-1].std(correction=0)) / wanted_std
        mean = float(raw[-1].mean()) - wanted_mean * std
    settings = read_json(directory / SETTINGS_FILE)
    settings.pop("length", None)  # the line of one member is not that of the average
    normalization = asdict(Normalization(mean, std))
    write_json(directory / SETTINGS_FILE, settings | {"normalization": normalization, "averaged": len(members)})
