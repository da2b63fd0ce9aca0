"""The user who makes mistakes, at the real command line.

A mistake ends with exit code 1 and one line that says what is wrong and what to do. What can be known beforehand is
known before anything is written; what comes to light in a stage leaves a run that goes on once it is fixed.
: models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.bad_input.desk import (
    Desk,
)


def remove(*patterns: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        for path in [path for pattern in patterns for path in model.glob(pattern)]:
            path.unlink()

    return spoil


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / name).write_bytes(content)

    return spoil


def truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


MISSING_SHARD = json.dumps({"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}).encode()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            remove("tokenizer*"),
            "'model' has no tokenizer; the directory needs the model's tokenizer.json and tokenizer_",
        ),
        (
            remove("*.safetensors"),
            'model.path = "model" has no *.safetensors; pickled weights, as in pytorch_model.bin',
        ),
        (remove("config.json"), 'model.path = "model" has no config.json; give the directory of a model in Hugging Fa'),
        (truncate, 'model.path = "model": model.safetensors is missing or not whole ('),
        (
            overwrite("model.safetensors.index.json", MISSING_SHARD),
            "model-00002-of-00002.safetensors is missing or not whole",
        ),
        (
            overwrite("model.safetensors.index.json", b"{}"),
            "model.safetensors.index.json cannot be read ('weight_map')",
        ),
        (overwrite("config.json", b"{"), 'model.path = "model": its config.json cannot be used ('),
        (overwrite("tokenizer.json", b"{"), "cannot load the tokenizer from 'model': "),
    ],
    ids=["tokenizer", "weights", "config", "truncated", "shard", "index", "broken config", "broken tokenizer"],
)
def test_a_model_directory_that_is_not_whole_is_named_with_what_it_lacks(
    desk: Desk, spoil: Callable[[Path], None], words: str
):
    spoil(desk.own_model())
    assert words in desk.refused()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/no/such/model", 'model.path = "/no/such/model": there is no such directory; fix the path'),
        ("./modle", 'model.path = "./modle": there is no such directory (did you mean model?); fix the path'),
        ("", 'model.path = "": there is no such directory; fix the path'),
        ("recipe.toml", 'model.path = "recipe.toml" is a file; give the directory of a model in Hugging Face format'),
        ("modle", 'model.path = "modle": there is no such directory (did you mean model?), and the hub does not give'),
        ("someone/model", "and the hub does not give such a model ("),
    ],
)
def test_a_model_that_is_not_there_is_looked_for_no_further(desk: Desk, path: str, words: str):
    assert words in desk.refused(f"model.path={path}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_that_is_not_there_is_named(desk: Desk):
    message = desk.refused("model.device=cuda")
    assert message.startswith('model.device = "cuda" is not available here (there is: ')
    assert message.endswith('or set model.device = "auto"')
