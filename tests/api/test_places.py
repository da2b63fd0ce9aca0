"""Saving takes the place of a saved model, and never of somebody's own files."""

import pytest

from rlhfkit import PPOConfig, PPOTrainer, RolloutConfig, sample
from rlhfkit.errors import CheckpointError, DataError
from rlhfkit.rundir.atomic import place_to_save


def test_a_new_an_empty_and_a_model_directory_may_be_saved_to(tmp_path):
    assert place_to_save(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "empty").mkdir()
    assert place_to_save(tmp_path / "empty") == tmp_path / "empty"
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (model / name).touch()
    assert place_to_save(str(model)) == model


@pytest.mark.parametrize("names", [["thesis.md"], ["config.json"], ["model.safetensors", "thesis.md"]])
def test_files_of_something_else_are_never_removed(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(CheckpointError, match=r"which saving would remove; expected a new or empty directory"):
        place_to_save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_file_is_no_directory_and_the_working_directory_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="it is a file; expected a directory"):
        place_to_save(tmp_path / "file")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert place_to_save(".") == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place_to_save("~/tuned") == tmp_path / "tuned"


def test_a_trainer_saves_over_its_own_model_and_over_nothing_else(directory_of, tmp_path):
    config = PPOConfig(iterations=1, rollout_episodes=2, minibatch_episodes=2, min_eos_rate=0.0)
    rollout = RolloutConfig(max_response_tokens=4)
    with PPOTrainer(str(directory_of("llama")), config=config, rollout=rollout) as trainer:
        trainer.save(tmp_path / "tuned")
        trainer.save(tmp_path / "tuned")
        (tmp_path / "tuned" / "notes.txt").write_text("mine")
        with pytest.raises(CheckpointError, match=r"it holds notes\.txt, which saving would remove"):
            trainer.save(tmp_path / "tuned")
        assert (tmp_path / "tuned" / "notes.txt").read_text() == "mine"
        with pytest.raises(DataError, match=r"prompts is one text, 'hi'; expected a list: give \['hi'\]"):
            sample(trainer, "hi")
