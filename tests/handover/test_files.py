"""What lies beside the launch files: prompts as PPO reads them, in its order; links; critics that begin as here."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from rlhfkit import ConfigError, ModelError
from rlhfkit.config.load import load_recipe
from rlhfkit.handover.export import export_to
from rlhfkit.models.value import ValueNetwork
from rlhfkit.rollout.text import TextRollout
from rlhfkit.rundir.directory import RunDir
from tests.handover.conftest import MEAN, RECIPE, STD, make_run
from tests.tiny import byte_tokenizer

TOOLS = ("verl", "openrlhf", "nemo-rl")
NO_BONUS = ["ppo.entropy_coef=0"]


def rows_in(directory: Path, name: str = "prompts.jsonl") -> list[dict]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def texts_of(tool: str, rows: list[dict]) -> list[str]:
    key = {"openrlhf": "prompt", "nemo-rl": "input"}
    return [row["prompt"][0]["content"] if tool == "verl" else row[key[tool]] for row in rows]


def prompts_of_ppo(run: Path, overrides: list[str] = []) -> list[tuple[int, ...]]:  # noqa: B006
    """Tokens of the prompts of all iterations, one response to each, as PPO itself draws them."""
    from rlhfkit.data import load_prompts
    from rlhfkit.pipeline.build import Builder

    recipe = load_recipe(run / "recipe.toml", overrides).recipe
    builder = Builder(recipe, RunDir(run))
    encoder = builder.policy().language_model.encoder
    prompts = [
        encoder.encode(prompt, max_tokens=recipe.data.prompt_limit)
        for prompt in load_prompts(recipe.data.prompts, directory=".", on_bad_row="stop", seed=recipe.seed).records
    ]
    rollout = TextRollout(None, None, None, prompts, rollout=recipe.rollout, ppo=recipe.ppo, seed=recipe.seed)
    drawn = [prompt.ids for iteration in range(recipe.ppo.iterations) for prompt in rollout.prompts_of(iteration)]
    return drawn[:: recipe.ppo.group_size]


@pytest.mark.parametrize("tool", TOOLS)
def test_prompts_have_the_tokens_and_the_order_of_ppo(tool, run, tmp_path):
    export_to(tool, run, NO_BONUS, directory=tmp_path, gpus=2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    texts = texts_of(tool, rows_in(tmp_path))
    expected = prompts_of_ppo(run)
    assert len(texts) == 10 * 64 // 4  # iterations x episodes / group
    assert [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts] == expected


def test_long_prompts_are_cut_as_here(run, tmp_path):
    made = export_to("openrlhf", run, ["data.max_prompt_tokens=10"], directory=tmp_path, gpus=2)
    assert "12 prompts cut to data.max_prompt_tokens, as PPO here cuts them" in made.remarks
    texts = texts_of("openrlhf", rows_in(tmp_path))
    assert set(texts) == {"how much?"}  # at a word, and its end is kept


def test_verl_has_some_rows_for_a_validation_that_is_not_done(run, tmp_path):
    export_to("verl", run, directory=tmp_path, gpus=2)
    assert rows_in(tmp_path, "some_prompts.jsonl") == rows_in(tmp_path)[:16]
    assert rows_in(tmp_path)[3]["extra_info"]["index"] == 3


def test_a_tokenizer_that_puts_bos_first_has_it_in_the_text(tmp_path):
    from tokenizers.processors import TemplateProcessing

    made = make_run(tmp_path / "bos", "llama")
    tokenizer = byte_tokenizer(eos_token="<|endoftext|>", pad_token="<|pad|>", bos_token="<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(made / "sft")
    export_to("openrlhf", made, directory=tmp_path / "out", gpus=2)
    text = texts_of("openrlhf", rows_in(tmp_path / "out"))[0]
    assert text.startswith("<|endoftext|>Question")
    assert tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) == prompts_of_ppo(made)[0]


def test_bad_rows_stop_or_are_left_out_as_the_recipe_says(tmp_path):
    from rlhfkit import DataError

    made = make_run(tmp_path / "bad", "llama")
    with (made / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"chosen": "a", "rejected": "b", "response": "c"}) + "\n")
    with pytest.raises(DataError, match=r"data\.prompts: "):
        export_to("verl", made, directory=tmp_path / "out", gpus=2)
    export_to("verl", made, ["data.on_bad_row=skip"], directory=tmp_path / "out", gpus=2)
    assert len(set(texts_of("verl", rows_in(tmp_path / "out")))) == 12


def test_models_are_links(run, tmp_path):
    made = export_to("verl", run, directory=tmp_path / "out", gpus=2)
    assert (tmp_path / "out" / "policy").resolve() == (run / "sft").resolve()
    assert (tmp_path / "out" / "reward_model").resolve() == (run / "reward_model").resolve()
    assert made.files == (
        "critic/", "launch.sh", "policy/", "ppo.yaml", "prompts.jsonl", "reward.py", "reward_model/",
        "some_prompts.jsonl",
    )  # fmt: skip


def test_openrlhf_finds_mean_and_deviation_in_config_json(run, tmp_path):
    for _ in range(2):  # again into the same directory
        export_to("openrlhf", run, directory=tmp_path, gpus=2)
    before = (run / "reward_model" / "config.json").read_bytes()
    for name in ("reward_model", "critic"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert (config["mean"], config["std"]) == (MEAN, STD)
        assert (tmp_path / name / "model.safetensors").is_symlink()
    assert (run / "reward_model" / "config.json").read_bytes() == before


def test_nothing_is_written_through_links_of_another_export(run, tmp_path):
    weights = run / "reward_model" / "model.safetensors"
    before = weights.read_bytes()
    export_to("openrlhf", run, directory=tmp_path, gpus=2)
    with pytest.raises(ConfigError, match="reward_model is in the way; remove it, or give another --directory"):
        export_to("verl", run, directory=tmp_path, gpus=2)
    with pytest.raises(ConfigError, match="reward_model is in the way"):
        export_to("openrlhf", run, directory=run, gpus=2)
    assert weights.read_bytes() == before


def test_a_model_of_the_hub_stays_a_name(tmp_path):
    from tests.handover.conftest import ROWS

    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    assert load_recipe("demo")  # the hub is not asked: the encoder below is local
    text = RECIPE.replace('"MODEL"', json.dumps(str(tmp_path / "nothing")))
    (tmp_path / "mine.toml").write_text(text.replace("ROWS", str(tmp_path / "rows.jsonl")))
    with pytest.raises(ConfigError, match="run it first"):
        export_to("verl", tmp_path / "mine.toml", directory=tmp_path / "out")


# ── critics ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def values_of(directory: Path, tokens: torch.Tensor) -> torch.Tensor:
    critic = AutoModelForTokenClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        return critic(tokens).logits[..., 0]


TOKENS = torch.randint(0, 255, (3, 20), generator=torch.Generator().manual_seed(0))


def test_a_critic_begins_with_the_normalised_scores_of_the_reward_model(run, tmp_path):
    export_to("verl", run, directory=tmp_path, gpus=2)
    classifier = AutoModelForSequenceClassification.from_pretrained(run / "reward_model").eval()
    with torch.no_grad():
        hidden = classifier.base_model(TOKENS).last_hidden_state
        scores = (classifier.score(hidden)[..., 0] - MEAN) / STD
        own = ValueNetwork(classifier, mean=MEAN, std=STD).head(hidden)
    found = values_of(tmp_path / "critic", TOKENS)
    assert torch.allclose(found, scores, atol=1e-5)
    assert torch.allclose(found, own, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gpt2"])
def test_a_critic_of_the_policy_begins_at_zero(family, tmp_path):
    made = make_run(tmp_path / "run", family) if family == "llama" else None
    if made is None:
        made = make_run(tmp_path / "run", "llama")
        from shutil import rmtree

        from tests.tiny import save_family

        rmtree(made / "sft")
        save_family(family, made / "sft")
    export_to("nemo-rl", made, [*NO_BONUS, "ppo.value.init=policy"], directory=tmp_path / "out", gpus=2)
    assert torch.equal(values_of(tmp_path / "out" / "critic", TOKENS), torch.zeros(3, 20))
    critic = AutoModelForTokenClassification.from_pretrained(tmp_path / "out" / "critic")
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(made / "sft")
    trunk = policy.base_model.state_dict()
    assert all(torch.equal(value, trunk[name]) for name, value in critic.base_model.state_dict().items())


def test_a_family_without_token_classifiers_is_refused(tmp_path):
    from shutil import rmtree

    from tests.tiny import save_family

    made = make_run(tmp_path / "run", "llama")
    rmtree(made / "sft")
    save_family("opt", made / "sft")
    with pytest.raises(ModelError, match="no token classifier of the family opt"):
        export_to("verl", made, ["ppo.value.init=policy"], directory=tmp_path / "out", gpus=2)


def test_the_critic_is_of_the_runs_own_reward_model_wherever_the_reward_is_from(run, tmp_path):
    reward = ["reward={type='function', function='rlhfkit.rewards.examples:variety'}"]
    export_to("openrlhf", run, reward, directory=tmp_path, gpus=2)
    script = (tmp_path / "launch.sh").read_text()
    assert '--critic.model_name_or_path "$here/critic"' in script
    assert "--reward.normalize_enable" in script
    assert not (tmp_path / "reward_model").exists()
