"""vLLM as the engine, by a fake with its interface; `test_vllm_for_real.py` does the like with vLLM itself."""

import os
import sys

import pytest
import torch

from rlhfkit.config.load import load_recipe
from rlhfkit.config.model import LoraConfig
from rlhfkit.config.ppo import PpoConfig, RolloutConfig, ValueConfig, VllmConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import ConfigError, GenerationError, MissingDependencyError, TrainingError
from rlhfkit.padding import Sequences
from rlhfkit.pipeline import run as pipeline
from rlhfkit.rollout.generation import generate
from rlhfkit.rollout.multi_turn import MultiTurnRollout
from rlhfkit.rollout.vllm import VllmEngine, require_vllm
from rlhfkit.training.ppo import run_iteration
from rlhfkit.training.preflight import check_first_experience
from tests.pipeline.test_run import RECIPE
from tests.rollout import fake_vllm
from tests.rollout.fake_vllm import LLM
from tests.tiny import PAD, Directory, builder, load, ppo_trainer
from tests.training import tiny

PROMPTS = [[1, 2, 3], [40, 50], [60, 70, 80, 90, 100], [7]]
CONFIG = RolloutConfig(max_response_tokens=12, temperature=0.7, engine="vllm")
FAST = OptimConfig(learning_rate=1e-2)


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    for name, module in fake_vllm.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    LLM.made.clear()


def engine(config=CONFIG, *, max_tokens=32):
    return VllmEngine(config, dtype=torch.float32, max_tokens=max_tokens)


def sampled(model, config=CONFIG, *, seeds=range(4), prompts=PROMPTS):
    return engine(config).loaded(model)(model, prompts, config, seeds=None if seeds is None else list(seeds))


def recomputed(model, responses, *, temperature, prompts=PROMPTS):
    inputs = Sequences.join(prompts, [response.ids for response in responses], pad=PAD)
    with torch.no_grad():
        logprobs = model.logprobs(inputs, temperature=temperature)
    return [logprobs[row, : len(response.ids)].tolist() for row, response in enumerate(responses)]


def assert_agree(model, responses, *, temperature=0.7):
    for response, expected in zip(responses, recomputed(model, responses, temperature=temperature), strict=True):
        assert response.logprobs == pytest.approx(expected, abs=1e-4)


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logprobs_are_those_of_the_training_pass_at_the_temperature(family, directory_of: Directory):
    model = load(directory_of(family))
    assert_agree(model, sampled(model))


def test_pad_is_never_sampled_however_likely_the_model_finds_it(directory_of: Directory):
    model = load(directory_of("llama"))
    with torch.no_grad():
        model.causal_lm.lm_head.weight[PAD] *= 8
    responses = sampled(model, seeds=range(64), prompts=PROMPTS * 16)
    assert all(PAD not in response.ids for response in responses)
    found = recomputed(model, responses, temperature=0.7, prompts=PROMPTS * 16)
    for response, expected in zip(responses, found, strict=True):
        assert response.logprobs == pytest.approx(expected, abs=1e-4)
    with torch.no_grad():  # and without the bias it would have been
        likeliest = model.causal_lm(torch.tensor([PROMPTS[0] + responses[0].ids])).logits[0].argmax(-1)
    assert (likeliest == PAD).any()


def test_a_seed_decides_its_own_response(directory_of: Directory):
    model = load(directory_of("llama"))
    first, again, other = (sampled(model, seeds=seeds) for seeds in ([5, 6, 7, 8], [5, 9, 7, 9], [15, 16, 17, 18]))
    assert [first[row] == again[row] for row in range(4)] == [True, False, True, False]
    assert all(first[row].ids != other[row].ids for row in range(4))


@pytest.mark.thorough
def test_a_response_ends_with_eos_a_stop_token_or_the_limit(directory_of: Directory):
    model = load(directory_of("llama"))
    half_the_bytes = tuple(chr(code) for code in range(32, 127))
    config = CONFIG.model_copy(update={"stop_tokens": half_the_bytes, "temperature": 2.0, "max_response_tokens": 3})
    responses = sampled(model, config, seeds=range(400), prompts=PROMPTS * 100)
    stops = {model.encoder.tokenizer(letter)["input_ids"][0] for letter in half_the_bytes}
    assert {response.finish_reason for response in responses} == {"eos", "stop", "length"}
    for response in responses:
        *before, last = response.ids
        assert not stops & set(before) and model.encoder.eos_id not in before
        expected = "eos" if last == model.encoder.eos_id else "stop" if last in stops else "length"
        assert response.finish_reason == expected
        assert len(response.ids) == 3 or expected != "length"


def test_without_seeds_the_likeliest_token_is_taken_as_by_the_own_sampler(directory_of: Directory):
    model = load(directory_of("llama"))
    own = generate(model, PROMPTS, CONFIG, seeds=None)
    assert [response.ids for response in sampled(model, seeds=None)] == [response.ids for response in own]


def test_progress_is_reported_of_every_row(directory_of: Directory):
    model = load(directory_of("llama"))
    told = []
    engine().loaded(model)(model, PROMPTS, CONFIG, seeds=[0, 1, 2, 3], on_finished=told.append)
    assert sum(told) == 4


def test_no_prompts_give_no_responses(directory_of: Directory):
    assert sampled(load(directory_of("llama")), seeds=[], prompts=[]) == []


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def change(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def test_weights_are_those_of_the_last_load(directory_of: Directory):
    model = load(directory_of("llama"))
    used = engine()
    before = used.loaded(model)(model, PROMPTS, CONFIG, seeds=None)
    change(model)
    assert used.generate(model, PROMPTS, CONFIG, seeds=None) == before
    after = used.loaded(model)(model, PROMPTS, CONFIG, seeds=None)
    assert after != before
    own = generate(model, PROMPTS, CONFIG, seeds=None)
    assert [response.ids for response in after] == [response.ids for response in own]
    assert len(LLM.made) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_adapters_are_merged(family, directory_of: Directory, tmp_path):
    made = builder(directory_of(family), tmp_path, lora=LoraConfig(rank=4))
    model = made.language_model(made.starting_point(), trainable=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    with model.adapters_off():
        base = recomputed(model, responses := sampled(model), temperature=0.7)
    assert_agree(model, responses)
    differences = [abs(base[row][0] - response.logprobs[0]) for row, response in enumerate(responses)]
    assert max(differences) > 0.1


# ── start and end ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_settings_reach_vllm(directory_of: Directory):
    settings = VllmConfig(dtype="bfloat16", kv_cache_gib=0.5, compile=True)
    engine(CONFIG.model_copy(update={"vllm": settings, "slots": 7})).loaded(load(directory_of("llama")).bfloat16())
    given = LLM.made[0].settings
    assert given["dtype"] == "bfloat16"
    assert given["kv_cache_memory_bytes"] == 536_870_912
    assert given["max_num_seqs"] == 7
    assert given["max_model_len"] == 32
    assert not given["enforce_eager"]
    assert not os.path.exists(given["model"])  # a config.json that has served


def test_on_a_cpu_nothing_is_compiled_by_default(directory_of: Directory):
    engine().loaded(load(directory_of("llama")))
    assert LLM.made[0].settings["enforce_eager"]


def test_without_a_limit_a_sequence_may_fill_the_context(directory_of: Directory):
    engine(max_tokens=None).loaded(load(directory_of("llama")))
    assert LLM.made[0].settings["max_model_len"] == 64


def test_a_start_leaves_the_process_as_it_was(directory_of: Directory, monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    environment, set_num_threads, state = dict(os.environ), torch.set_num_threads, torch.get_rng_state()
    engine().loaded(load(directory_of("llama")))
    assert dict(os.environ) == environment
    assert torch.set_num_threads is set_num_threads
    assert torch.equal(torch.get_rng_state(), state)


def test_vllm_starts_in_this_process_and_tells_nobody(directory_of: Directory, monkeypatch):
    seen = {}
    start = LLM.__init__

    def watched(self, **settings):
        seen.update(os.environ)
        start(self, **settings)

    monkeypatch.setattr(LLM, "__init__", watched)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    engine().loaded(load(directory_of("llama")))
    assert seen["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert seen["VLLM_NO_USAGE_STATS"] == "1"
    assert seen["VLLM_LOGGING_LEVEL"] == "INFO"  # the user's own word counts


def test_the_end_shuts_vllm_down_even_after_a_fault(directory_of: Directory):
    with engine() as unused:
        pass
    assert LLM.made == [] and unused.importance_cap == 2
    with pytest.raises(KeyError), engine() as used:
        used.loaded(load(directory_of("llama")))
        raise KeyError
    assert LLM.made[0].is_shut_down


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_vllm_is_reported_with_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install vllm, in an environment of its own.* rollout.engine = \"own"
    ):
        require_vllm()
    with pytest.raises(MissingDependencyError):
        engine()


def test_a_run_with_vllm_missing_does_not_begin(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    loaded = load_recipe(str(tmp_path / "tiny.toml"), ["rollout.engine=vllm"])
    with pytest.raises(MissingDependencyError, match="pip install vllm"):
        pipeline.run(loaded, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cut_distribution_is_refused():
    with pytest.raises(ValueError, match=r"top_k 5 and top_p 1 leave over.*leave both out"):
        RolloutConfig(engine="vllm", top_k=5)
    with pytest.raises(ValueError, match=r"top_k 0 and top_p 0\.9"):
        RolloutConfig(engine="vllm", top_p=0.9)
    assert RolloutConfig(top_k=5).engine == "own"


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_a_temperature_that_vllm_does_not_know_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperatures from 0.01 to 2, not {temperature}"):
        RolloutConfig(engine="vllm", temperature=temperature)
    assert RolloutConfig(temperature=temperature).engine == "own"


def test_a_prompt_that_is_too_long_is_reported(directory_of: Directory):
    model = load(directory_of("llama"))
    with pytest.raises(ConfigError, match=r"a prompt of 21 tokens and rollout.max_response_tokens = 12 exceed the 32"):
        sampled(model, seeds=[0], prompts=[list(range(21))])


def test_a_model_that_vllm_cannot_serve_is_reported_in_one_line(directory_of: Directory, monkeypatch):
    def failing(self, **settings):
        raise RuntimeError("Unsupported CPU attention configuration: head_dim=8\nand a long story")

    monkeypatch.setattr(LLM, "__init__", failing)
    with pytest.raises(
        GenerationError, match=r"^vLLM cannot sample .*head_dim=8\); set rollout.engine = \"own\".*$"
    ) as told:
        sampled(load(directory_of("llama")))
    assert "long story" not in str(told.value)


def test_running_out_of_memory_is_left_to_who_knows_about_memory(directory_of: Directory, monkeypatch):
    def failing(self, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LLM, "__init__", failing)
    with pytest.raises(torch.OutOfMemoryError):
        sampled(load(directory_of("llama")))


def test_weights_that_are_not_finite_are_told(directory_of: Directory, monkeypatch):
    one = LLM._one

    def broken(self, prompt, params):
        output = one(self, prompt, params)
        output.logprobs[-1][output.token_ids[-1]].logprob = float("nan")
        return output

    monkeypatch.setattr(LLM, "_one", broken)
    with pytest.raises(GenerationError, match="logprobs that vLLM gave are not finite"):
        sampled(load(directory_of("llama")))


def test_an_aborted_response_is_reported(directory_of: Directory, monkeypatch):
    one = LLM._one

    def aborted(self, prompt, params):
        output = one(self, prompt, params)
        output.finish_reason = "abort"
        return output

    monkeypatch.setattr(LLM, "_one", aborted)
    with pytest.raises(GenerationError, match=r"ended a response early \(abort\)"):
        sampled(load(directory_of("llama")))


# ── PPO ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def trainer_with_engine(directory_of, tmp_path, *, noise=0.0, engine_dtype="model", **rollout):
    settings = VllmConfig(dtype=engine_dtype)
    rollout["importance_cap"] = rollout.pop("cap", 2.0)
    config = CONFIG.model_copy(update={"vllm": settings, **rollout})
    ppo = PpoConfig(
        rollout_episodes=8, minibatch_episodes=4, epochs=2, optim=FAST, value=ValueConfig(optim=FAST), min_eos_rate=0.0
    )
    made = builder(directory_of("llama"), tmp_path, ppo=ppo, rollout=config)
    trainer = ppo_trainer(made)
    trainer.rollout.engine = made.engine()
    trainer.rollout.engine.loaded(trainer.policy.language_model)
    LLM.made[0].noise = noise
    return trainer


def check(trainer, experience, engine_dtype=torch.float32):
    return check_first_experience(
        experience, trainer.policy, trainer.rollout.reference, min_eos_rate=0.0, engine_dtype=engine_dtype
    )


def test_two_iterations_sample_from_the_weights_of_their_own_time(directory_of: Directory, tmp_path):
    trainer = trainer_with_engine(directory_of, tmp_path)
    for _ in range(2):
        experience, metrics = run_iteration(trainer, check_first=lambda experience: check(trainer, experience))
        assert metrics["sampler/logprob_max_difference"] < 1e-4
        assert metrics["sampler/kl_token"] < 1e-6
        assert metrics["sampler/truncated_share"] == 0
        torch.testing.assert_close(experience.importance_weights, torch.ones(experience.mask.shape), atol=1e-4, rtol=0)
        assert metrics["ppo/approx_kl"] > 1e-4  # so that the weights of the first iteration would not do
    assert len(LLM.made) == 1


def test_weights_and_metrics_tell_how_far_the_engine_is_away(directory_of: Directory, tmp_path):
    trainer = trainer_with_engine(directory_of, tmp_path, noise=0.3, cap=1.25)
    experience = trainer.rollout.collect(0, kl_coef=0.0)
    weights, mask, metrics = experience.importance_weights, experience.mask, experience.metrics
    assert weights.max() == 1.25 and weights[mask].min() < 0.9
    share = float((weights[mask] == 1.25).float().mean())
    assert 0 < share < 1 and metrics["sampler/truncated_share"] == pytest.approx(share)
    assert metrics["sampler/weight_mean"] == pytest.approx(float(weights[mask].mean()))
    assert 0.05 < metrics["sampler/logprob_mean_difference"] < metrics["sampler/logprob_max_difference"] < 5
    # Noise of deviation 0.3 on the logits is 0.3 / 0.7 at the temperature, and KL about half its square.
    assert metrics["sampler/kl_token"] == pytest.approx(0.5 * (0.3 / 0.7) ** 2, rel=0.5)


def test_an_engine_that_is_far_away_does_not_pass_the_check_before_the_start(directory_of: Directory, tmp_path):
    trainer = trainer_with_engine(directory_of, tmp_path, noise=0.3)
    with pytest.raises(TrainingError, match=r"vLLM's logprobs differ .* rounding explains 0\.01 and 0\.001"):
        check(trainer, trainer.rollout.collect(0, kl_coef=0.0))


def test_an_engine_in_bfloat16_passes_and_would_not_pass_for_float32(directory_of: Directory, tmp_path):
    trainer = trainer_with_engine(directory_of, tmp_path, engine_dtype="bfloat16")
    experience = trainer.rollout.collect(0, kl_coef=0.0)
    assert experience.metrics["sampler/logprob_max_difference"] > 1e-2
    assert check(trainer, experience, torch.bfloat16)["preflight/sampler"] > 1e-2
    with pytest.raises(TrainingError, match="vLLM's logprobs differ"):
        check(trainer, experience, torch.float32)
    with pytest.raises(TrainingError, match="sampler's logprobs differ"):
        check(trainer, experience, None)


def test_the_own_engine_has_no_weights_and_no_further_metrics(directory_of: Directory, tmp_path):
    trainer = trainer_with_engine(directory_of, tmp_path)
    trainer.rollout.engine = None
    experience = trainer.rollout.collect(0, kl_coef=0.0)
    assert experience.importance_weights is None
    assert [name for name in experience.metrics if name.startswith("sampler/")] == ["sampler/logprob_max_difference"]


def test_an_environment_is_played_with_the_engine_and_loads_its_weights_once():
    policy, loads = tiny.policy(), []

    class Own:
        importance_cap = 2.0

        def loaded(self, model):
            loads.append(model)
            return generate

    class Twice(tiny.Won):
        def reset(self, seed):
            self.turns = 0
            return "abc"

        def step(self, response):
            self.turns += 1
            return tiny.TextStep("d", 1.0, terminated=self.turns == 2, won=True)

    rollout = MultiTurnRollout(
        policy,
        tiny.reference(),
        Twice,
        reward=None,
        rollout=RolloutConfig(max_response_tokens=3),
        ppo=PpoConfig(rollout_episodes=4, minibatch_episodes=4),
        max_prompt_tokens=16,
        seed=0,
        engine=Own(),
    )
    experience = rollout.collect(0, kl_coef=0.0)
    assert loads == [policy.language_model]
    assert experience.importance_weights.shape == experience.mask.shape
    torch.testing.assert_close(experience.importance_weights, torch.ones(experience.mask.shape), atol=1e-4, rtol=0)


@pytest.mark.thorough
def test_a_recipe_runs_with_the_engine_and_closes_it(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    stages = 'stages=["pretrain", "ppo"]'
    loaded = load_recipe(
        str(tmp_path / "tiny.toml"),
        ["rollout.engine=vllm", stages, 'reward={type="function", function="tests.training.tiny:count_vowels"}'],
    )
    pipeline.run(loaded, tmp_path / "run")
    assert [llm.is_shut_down for llm in LLM.made] == [True]
    assert "sampler/weight_mean" in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert LLM.made[0].settings["max_model_len"] == 40 + 12
