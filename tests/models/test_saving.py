"""What is saved is what was trained, and what transformers alone makes of it ends where training ended."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhfkit.errors import CheckpointError, ModelError, OutOfMemoryError
from rlhfkit.models.reward_model import Normalization, RewardModel, read_max_tokens, read_normalization
from rlhfkit.models.saving import save_model, try_saving
from rlhfkit.rundir.directory import RunDir
from tests.tiny import EOS, MORE_FAMILIES, PAD, Directory, builder, load, save_family


def with_generation_config(directory, settings):
    save_family("llama", directory)
    (directory / "generation_config.json").write_text(json.dumps(settings))
    return directory


def saved_generation_config(directory):
    return json.loads((directory / "generation_config.json").read_text())


@pytest.mark.parametrize(
    ("settings", "kept", "lost"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}, ()),
        ({"top_k": 20, "do_sample": False}, {"do_sample": False}, ("top_k",)),
        ({"early_stopping": True, "length_penalty": 2.0}, {"eos_token_id": EOS}, ("early_stopping", "length_penalty")),
    ],
)
def test_settings_of_generation_that_transformers_refuses_cost_no_model(settings, kept, lost, tmp_path):
    model = load(with_generation_config(tmp_path / "model", settings))
    model.save(tmp_path / "saved")
    written = saved_generation_config(tmp_path / "saved")
    assert written.items() >= kept.items()
    assert not written.keys() & set(lost)


def test_what_was_changed_is_said(tmp_path):
    directory = with_generation_config(tmp_path / "model", {"temperature": 0.6})
    made = builder(directory, tmp_path)
    made.language_model(made.starting_point())
    assert any("it is saved with do_sample = true" in note for note in made.notes)


@pytest.mark.parametrize("named", [None, 7, [7, EOS], [EOS]])
def test_transformers_stops_at_the_end_that_was_trained(named, tmp_path):
    directory = with_generation_config(tmp_path / "model", {} if named is None else {"eos_token_id": named})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": named}))
    model = load(directory)
    with torch.no_grad():  # whatever it reads, EOS is what it says next
        weight = model.causal_lm.get_output_embeddings().weight
        weight.zero_()
        weight[EOS] = model.trunk(torch.tensor([[1, 2, 3]]))[0, -1]
    model.save(tmp_path / "saved")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        said = theirs.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=9, do_sample=False)[0, 3:].tolist()
    assert said == [EOS]
    ids = saved_generation_config(tmp_path / "saved")["eos_token_id"]
    assert (ids if isinstance(ids, list) else [ids])[0] == EOS
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["eos_token_id"] == ids


def test_a_saved_model_that_computes_something_else_is_an_error(tmp_path, directory_of: Directory):
    model = load(directory_of("llama"))
    own = model.causal_lm.save_pretrained

    def damaged(directory, **options):
        own(directory, **options)
        tensors = load_file(directory / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.weight"] *= 1.5
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    model.causal_lm.save_pretrained = damaged
    with pytest.raises(ModelError, match=r"is not the one that was trained: .* outputs differ by up to"):
        model.save(tmp_path / "saved")


def test_a_saved_tokenizer_that_reads_otherwise_is_an_error(tmp_path, directory_of: Directory):
    model = load(directory_of("llama"))
    own = model.encoder.tokenizer.save_pretrained

    def other(directory, **options):
        own(directory, **options)
        file = directory / "tokenizer.json"
        table = json.loads(file.read_text())
        vocabulary = table["model"]["vocab"]
        vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
        file.write_text(json.dumps(table))

    model.encoder.tokenizer.save_pretrained = other
    with pytest.raises(ModelError, match="is not the one that was trained: the saved tokenizer reads"):
        model.save(tmp_path / "saved")


def test_a_comparison_draws_nothing_from_the_generators_of_the_run(tmp_path, directory_of: Directory):
    model = load(directory_of("gpt2"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.save(tmp_path / "saved")
    assert torch.equal(torch.rand(3), expected)


def test_what_fails_beside_the_weights_does_not_cost_the_weights(tmp_path, directory_of: Directory):
    model = load(directory_of("llama"))

    def fails(directory):
        raise ValueError("a file beside the weights")

    with pytest.raises(ModelError, match=r"a file beside the weights; the weights .* are kept in .*as-trained"):
        save_model(RunDir(tmp_path), "policy", fails, model)
    kept = load_file(tmp_path / "policy.as-trained.safetensors")
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(kept[name], weight, rtol=0, atol=0)


def test_a_disk_that_is_full_stays_what_it_was(tmp_path, directory_of: Directory):
    def full(directory):
        raise CheckpointError("the disk is full")

    with pytest.raises(CheckpointError, match=r"^the disk is full$"):
        save_model(RunDir(tmp_path), "policy", full, load(directory_of("llama")))


def test_a_trial_leaves_nothing(tmp_path, directory_of: Directory):
    try_saving(RunDir(tmp_path), "policy", load(directory_of("llama")).save)
    assert list(tmp_path.iterdir()) == []


# ── reward models ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["llama", *MORE_FAMILIES])
def test_a_reward_model_of_any_family_gives_the_same_scores_once_saved_and_loaded(
    family, directory_of: Directory, tmp_path
):
    made = builder(directory_of(family), tmp_path)
    model = made.fresh_reward_model(name="reward_model")
    model.save(tmp_path / "saved", normalization=Normalization(1.0, 2.0), max_tokens=33)
    again = made.reward_model(tmp_path / "saved")
    ids, lengths = torch.arange(12).view(2, 6), torch.tensor([6, 4])
    with torch.no_grad():
        torch.testing.assert_close(model(ids, lengths), again(ids, lengths))
    assert read_normalization(tmp_path / "saved") == Normalization(1.0, 2.0)
    assert read_max_tokens(tmp_path / "saved") == 33


@pytest.mark.parametrize("family", ["cohere", "granite"])
def test_the_head_on_a_family_that_has_none_reads_the_last_token(family, directory_of: Directory, tmp_path):
    model = builder(directory_of(family), tmp_path).fresh_reward_model(name="reward_model")
    theirs = AutoModelForCausalLM.from_pretrained(directory_of(family)).model
    ids = torch.tensor([[3, 4, 5, 6]])
    weight = model.classifier.get_parameter("score.weight")
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state[0, -1].double() @ weight[0].double()
        assert float(model(ids, torch.tensor([4]))) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("family", ["cohere", "granite"])
def test_a_critic_of_its_own_needs_no_class_of_transformers(family, directory_of: Directory, tmp_path):
    critic = builder(directory_of(family), tmp_path).policy().critic
    assert critic is not None
    assert type(critic.classifier).__name__.lower() == f"{family}forsequenceclassification"


def test_a_reward_model_that_is_saved_wrong_is_an_error(directory_of: Directory, tmp_path):
    model = builder(directory_of("llama"), tmp_path).fresh_reward_model(name="reward_model")
    own = model.classifier.save_pretrained

    def without_head(directory, **options):
        own(directory, **options)
        tensors = load_file(directory / "model.safetensors")
        tensors["score.weight"] = -tensors["score.weight"]
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    model.classifier.save_pretrained = without_head
    with pytest.raises(ModelError, match="is not the one that was trained: on the same tokens, outputs differ"):
        model.save(tmp_path / "saved", normalization=Normalization())


def test_transformers_alone_loads_reward_models_of_the_families_that_it_has(directory_of: Directory, tmp_path):
    model: RewardModel = builder(directory_of("llama"), tmp_path).fresh_reward_model(name="reward_model")
    model.save(tmp_path / "saved", normalization=Normalization())
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids = tokenizer("Tea is fine.", return_tensors="pt").input_ids
    assert PAD not in ids
    with torch.no_grad():
        found = float(model(ids, torch.tensor([ids.shape[1]])))
        assert found == pytest.approx(float(theirs(ids).logits), rel=1e-4)


@pytest.mark.parametrize("content", ["{", "[]", '{"normalization": {"mean": 1, "deviation": 2}}'])
def test_damaged_settings_of_a_reward_model_are_named(content, tmp_path):
    (tmp_path / "rlhfkit_reward.json").write_text(content)
    with pytest.raises(ModelError, match=r"rlhfkit_reward\.json is damaged"):
        read_normalization(tmp_path)


def test_memory_that_runs_out_while_it_is_saved_is_told_as_that(tmp_path):
    def save(directory):
        raise RuntimeError("unable to mmap 91277256 bytes from file <model.safetensors>: Cannot allocate memory (12)")

    with pytest.raises(OutOfMemoryError, match=r"model policy was saved .*\(12\).* are kept in .*as-trained"):
        save_model(RunDir(tmp_path), "policy", save, torch.nn.Linear(2, 2))
    assert (tmp_path / "policy.as-trained.safetensors").exists()
