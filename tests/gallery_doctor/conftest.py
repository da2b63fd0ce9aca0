"""Fixtures of these tests."""

import shutil
import sys

import pytest
from transformers import AutoTokenizer

from rlhfkit.config.load import load_recipe
from rlhfkit.data import grammar
from rlhfkit.doctor.recipe import examine_recipe
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import run as pipeline
from tests.gallery_doctor.desk import CHAT, PLAIN_CHAT, PRETRAIN, QUESTIONS, RECIPE, REWARDS, WORLDS, as_row, write


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A folder with a trained tiny model, data, rewards and environments; cases take copies of what they break."""
    path = tmp_path_factory.mktemp("gallery")
    (path / "pretrain.toml").write_text(PRETRAIN)
    pipeline.run(load_recipe(path / "pretrain.toml"), path / "run", progress=Progress(quiet=True))
    shutil.copytree(path / "run" / "base", path / "model")
    shutil.copytree(path / "model", path / "chat_model")
    tokenizer = AutoTokenizer.from_pretrained(path / "model")
    tokenizer.chat_template = PLAIN_CHAT
    tokenizer.save_pretrained(path / "chat_model")
    (path / "gallery_rewards.py").write_text(REWARDS)
    (path / "gallery_worlds.py").write_text(WORLDS)
    demonstrations = [
        {"prompt": row.prompt.content, "completion": row.response} for row in grammar.demonstrations(64, 1)
    ]
    write(path / "demonstrations.jsonl", demonstrations)
    write(path / "prompts.jsonl", [{"prompt": row.content} for row in grammar.prompts(48, 2)])
    write(path / "test_prompts.jsonl", [{"prompt": row.content} for row in grammar.prompts(24, 3)])
    for name, seed in (("preferences", 4), ("test_preferences", 5)):
        write(path / f"{name}.jsonl", [as_row(pair) for pair in grammar.preferences(64, seed)])
    write(path / "questions.jsonl", [{"prompt": [{"role": "user", "content": text}]} for text in QUESTIONS])
    (path / "reviews.toml").write_text(RECIPE)
    (path / "chat.toml").write_text(CHAT)
    return path


@pytest.fixture
def examine(desk, monkeypatch, tmp_path):
    """Findings on a recipe, by name; of several with the same name, the gravest."""
    monkeypatch.chdir(desk)
    monkeypatch.setattr(sys, "path", [str(desk), *sys.path])

    def examine(recipe="reviews.toml", *overrides, run_dir=None):
        if "\n" in recipe:
            (tmp_path / "recipe.toml").write_text(recipe)
            recipe = tmp_path / "recipe.toml"
        gravity = ("ok", "skipped", "warning", "fault")
        found = sorted(
            examine_recipe(load_recipe(recipe, overrides), run_dir or tmp_path / "run"),
            key=lambda finding: gravity.index(finding.verdict),
        )
        return {finding.name: finding for finding in found}

    return examine
