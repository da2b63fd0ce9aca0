"""`PPOTrainer` does what `rlhfkit run` does, takes things as people have them, and serves a loop of your own."""

import gc
import json
import os
import signal
import weakref

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from rlhfkit import (
    CheckpointError,
    ConfigError,
    DataError,
    EvaluationConfig,
    FixedKLConfig,
    LoraConfig,
    ModelError,
    OptimConfig,
    PPOConfig,
    PPOTrainer,
    Progress,
    RewardError,
    RolloutConfig,
    RunDir,
    SFTConfig,
    TrainingError,
    ValueConfig,
)
from rlhfkit.cli.app import app
from rlhfkit.config.load import load_recipe
from rlhfkit.envs.text import TextStep
from rlhfkit.pipeline.run import run

FAST = OptimConfig(learning_rate=1e-3)
SMALL = PPOConfig(
    iterations=2,
    rollout_episodes=8,
    minibatch_episodes=4,
    epochs=2,
    min_eos_rate=0.0,
    optim=FAST,
    value=ValueConfig(optim=FAST, clip_range=0),
    kl=FixedKLConfig(coef=0.02),
)
PROMPTS = ["Once upon a time", "There was", "Say"]
CONFIG_OF_RECIPE = """
name = "ppo"
stages = ["ppo"]
seed = 5
[model]
path = "{model}"
[data]
prompts = {{ path = "{prompts}" }}
[reward]
type = "function"
function = "tests.api.test_ppo:plainness"
[rollout]
max_response_tokens = 8
[ppo]
iterations = 2
rollout_episodes = 8
minibatch_episodes = 4
epochs = 2
min_eos_rate = 0.0
optim = {{ learning_rate = 1e-3 }}
value = {{ optim = {{ learning_rate = 1e-3 }}, clip_range = 0 }}
kl = {{ coef = 0.02 }}
"""


def plainness(prompts, responses):
    return [float(sum(letter.isascii() for letter in response)) for response in responses]


def trainer(model, **options):
    usual = {
        "config": SMALL,
        "rollout": RolloutConfig(max_response_tokens=8),
        "seed": 5,
        "progress": Progress(quiet=True),
    }
    return PPOTrainer(model, **{"prompts": PROMPTS, "reward": plainness, **usual, **options})


def own_loop(model, **options):
    return trainer(model, **{"prompts": None, "reward": None, **options})


def weights(trained):
    return {name: tensor.detach().clone() for name, tensor in trained.model.causal_lm.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def prompts_file(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return file


@pytest.mark.thorough
def test_it_trains_to_the_bits_of_the_command_line(model_dir, prompts_file, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(CONFIG_OF_RECIPE.format(model=model_dir, prompts=prompts_file))
    run(load_recipe(recipe), tmp_path / "run", progress=Progress(quiet=True))
    trainer(model_dir).train().save(tmp_path / "saved")
    assert same(*(load_file(path / "model.safetensors") for path in (tmp_path / "run" / "policy", tmp_path / "saved")))
    assert not same(*(load_file(tmp_path / name / "model.safetensors") for name in ("saved", model_dir)))


def test_each_iteration_gives_its_metrics(model_dir):
    trained = trainer(model_dir)
    rows = list(trained)
    assert len(rows) == 2 and rows == trained.history
    assert {"score/mean", "ref_kl/sequence", "kl_coef", "ppo/approx_kl"} <= rows[0].keys()
    assert rows[0]["ref_kl/sequence"] == pytest.approx(0.0, abs=1e-4)


def test_transformers_loads_what_is_saved(model_dir, tmp_path):
    trained = trainer(model_dir).train()
    trained.save(tmp_path / "tuned")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(tmp_path / "tuned")
    assert torch.equal(loaded.lm_head.weight, trained.model.causal_lm.lm_head.weight)


@pytest.mark.thorough
def test_the_average_of_the_weights_is_saved_where_it_is_kept(model_dir, tmp_path):
    trained = trainer(model_dir, config=SMALL.model_copy(update={"ema": 0.5})).train()
    before = weights(trained)
    trained.save(tmp_path / "policy")
    trained.save(tmp_path / "ema", ema=True)
    assert same(weights(trained), before)
    policy, average = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("policy", "ema"))
    assert any(not torch.equal(average[name], weight) for name, weight in policy.items())
    with pytest.raises(ConfigError, match=r"set PPOConfig\(ema=0\.99\)"):
        trainer(model_dir).save(tmp_path / "other", ema=True)


def test_nothing_is_left_on_the_disk_without_a_run_directory(model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with trainer(model_dir) as trained:
        trained.train()
    assert list(tmp_path.iterdir()) == []
    assert len(trained._repr_html_()) > 100  # it still shows itself


@pytest.mark.thorough
def test_a_run_directory_holds_what_the_command_leaves(model_dir, tmp_path):
    trained = trainer(model_dir, run_dir=tmp_path / "run").train()
    directory = RunDir(tmp_path / "run")
    assert directory.report.exists() and "ppo" in directory.finished_stages()
    assert same(load_file(directory.model("policy") / "model.safetensors"), weights(trained))
    assert len(directory.metrics.read_text().splitlines()) == 2
    trained.close()
    again = trainer(model_dir, run_dir=tmp_path / "run")
    assert list(again) == [] and same(weights(again), weights(trained))


@pytest.mark.thorough
def test_a_finished_run_directory_says_so_once_and_has_its_history(model_dir, tmp_path, heard):
    with trainer(model_dir, run_dir=tmp_path / "run") as trained:
        trained.train()
    again = trainer(model_dir, run_dir=tmp_path / "run", progress=heard).train()
    said = [line for line in heard.lines if "nothing is left to train" in line]
    assert len(said) == 1 and "2 of 2 iterations are done; for more iterations, give another run_dir" in said[0]
    assert [row.keys() for row in again.history] == [row.keys() for row in trained.history]
    assert again.history[1]["score/mean"] == pytest.approx(trained.history[1]["score/mean"], rel=1e-5)


@pytest.mark.thorough
def test_a_training_that_stopped_goes_on_to_the_same_bits(model_dir, tmp_path):
    config = SMALL.model_copy(update={"checkpoint_minutes": 1e-9})
    whole = weights(trainer(model_dir).train())
    with trainer(model_dir, run_dir=tmp_path / "run", config=config) as first:
        next(first)
    second = trainer(model_dir, run_dir=tmp_path / "run", config=config)
    assert len(list(second)) == 1 and same(weights(second), whole)
    assert len(second.history) == 2 and second.history[0]["score/mean"] == pytest.approx(
        first.history[0]["score/mean"], rel=1e-5
    )


@pytest.mark.thorough
def test_the_commands_read_a_run_that_python_made_and_say_who_can_go_on_with_it(model_dir, tmp_path):
    with trainer(model_dir, run_dir=tmp_path / "run") as trained:
        trained.train()
    for path in (tmp_path / "run" / "recipe.toml", tmp_path / "run"):
        with pytest.raises(ConfigError, match=r"PPOTrainer made in Python.* by the same PPOTrainer\(…, run_dir=…\)"):
            load_recipe(path)
    for words in (["report"], ["diagnose"], ["generate", "--prompt", "Say"]):
        assert CliRunner().invoke(app, [words[0], str(tmp_path / "run"), *words[1:]]).exit_code == 0, words
    told = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run")])
    assert isinstance(told.exception, ConfigError) and "in Python call rlhfkit.evaluate(" in str(told.exception)


def test_a_run_directory_of_other_prompts_is_refused(model_dir, tmp_path):
    config = SMALL.model_copy(update={"checkpoint_minutes": 1e-9})
    with trainer(model_dir, run_dir=tmp_path / "run", config=config) as first:
        next(first)
    with pytest.raises(CheckpointError, match="rows in memory has changed since the stage ppo read it"):
        trainer(model_dir, run_dir=tmp_path / "run", config=config, prompts=["Other"])


@pytest.mark.thorough
def test_it_is_evaluated_on_the_way_by_a_judge_of_its_own_and_trains_to_the_same_bits(model_dir, tmp_path):
    asked = []

    def longer(prompts, responses):
        asked.extend(prompts)
        return [float(len(response)) for response in responses]

    watched = trainer(
        model_dir,
        run_dir=tmp_path / "run",
        evaluation=EvaluationConfig(every_iterations=5, num_prompts_on_the_way=4, probes=["stereotypes"]),
        test_prompts=["Held", "out", "of", "it"],
        judge=longer,
    )
    first, last = list(watched)
    assert {"Held", "out"} <= set(asked) and "Say" not in asked
    assert first["evaluation/ref_kl"] == pytest.approx(0.0, abs=1e-4) and last["evaluation/judge"] >= 0.0
    assert {"evaluation/judge_error", "evaluation/stereotypes/stereotyped"} <= first.keys()
    rows = [json.loads(line) for line in (tmp_path / "run" / "observations.jsonl").read_text().splitlines()]
    judged = next(row for row in rows if row["kind"] == "evaluation")["judge"]
    assert first["evaluation/judge"] == pytest.approx(sum(judged) / 4, rel=1e-5)
    assert same(weights(watched), weights(trainer(model_dir).train()))


def test_two_lambdas_are_two_functions(model_dir):
    evaluation = EvaluationConfig(every_iterations=1, num_prompts_on_the_way=2)
    reward = lambda prompts, responses: plainness(prompts, responses)  # noqa: E731
    row = next(
        trainer(
            model_dir,
            reward=reward,
            judge=lambda prompts, responses: [77.0] * len(prompts),
            evaluation=evaluation,
            test_prompts=["Held", "out"],
        )
    )
    assert row["evaluation/judge"] == 77.0 and row["score/mean"] < 77.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"evaluation": EvaluationConfig(every_iterations=2), "prompts": None, "reward": None},
            "evaluation without a reward needs something else that scores answers; give judge=…",
        ),
        ({"judge": plainness}, r"judge would be read by nothing; give evaluation=EvaluationConfig"),
        ({"test_prompts": ["Held"], "judge": plainness}, r"test_prompts and judge would be read by nothing"),
        (
            {"evaluation": EvaluationConfig(every_iterations=2)},
            r"EvaluationConfig.every_iterations = 2 evaluates on held-out prompts; give test_prompts=…, or",
        ),
        (
            {"evaluation": EvaluationConfig(every_iterations=2, probes=["stereotype"]), "test_prompts": ["Held"]},
            r"EvaluationConfig.probes: 'stereotype' is neither a file of rows nor a probe",
        ),
        (
            {"evaluation": EvaluationConfig(every_iterations=2), "test_prompts": ["Held"], "judge": print},
            "the function 'builtins:print' takes",
        ),
    ],
)
def test_an_evaluation_on_the_way_that_cannot_be_is_refused_before_anything_is_trained(model_dir, given, words):
    with pytest.raises((ConfigError, RewardError), match=words):
        trainer(model_dir, **given)


# ── what may be given ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_a_model_in_memory_trains_as_the_one_in_its_directory(model_dir):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    trained = trainer(model, tokenizer=tokenizer, dtype="float32").train()
    assert trained.model.causal_lm is model
    assert same(weights(trained), weights(trainer(model_dir, dtype="float32").train()))


def test_a_model_in_memory_needs_its_tokenizer(model_dir):
    with pytest.raises(ConfigError, match="a model in memory needs its tokenizer"):
        trainer(AutoModelForCausalLM.from_pretrained(model_dir))
    with pytest.raises(ConfigError, match="has its own; leave it out"):
        trainer(model_dir, tokenizer=AutoTokenizer.from_pretrained(model_dir))


@pytest.mark.thorough
def test_prompts_may_be_a_file_rows_or_conversations(model_dir, prompts_file):
    expected = weights(trainer(model_dir).train())
    assert same(weights(trainer(model_dir, prompts=str(prompts_file)).train()), expected)
    assert same(weights(trainer(model_dir, prompts=[{"prompt": prompt} for prompt in PROMPTS]).train()), expected)
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    assert not same(weights(trainer(model_dir, prompts=conversations).train()), expected)


@pytest.mark.thorough
def test_prompts_may_be_a_dataset(model_dir):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"prompt": PROMPTS})
    assert same(weights(trainer(model_dir, prompts=rows).train()), weights(trainer(model_dir).train()))


def test_a_reward_gets_the_columns_of_the_rows(model_dir):
    seen = []

    def reward(prompts, responses, label):
        seen.extend(label)
        return plainness(prompts, responses)

    next(trainer(model_dir, prompts=[{"prompt": "Say", "label": 7}], reward=reward))
    assert set(seen) == {7}


class Counting:
    """An object that can be called."""

    def __call__(self, prompts, responses):
        return plainness(prompts, responses)


class Source:
    """A reward source."""

    def score(self, episodes):
        return torch.tensor(plainness([], [episode.response for episode in episodes]))


@pytest.mark.thorough
@pytest.mark.parametrize("reward", [Counting(), Source(), lambda prompts, responses: plainness(prompts, responses)])
def test_a_reward_may_be_any_callable_or_a_source(model_dir, reward):
    assert same(weights(trainer(model_dir, reward=reward).train()), weights(trainer(model_dir).train()))


@pytest.mark.thorough
def test_adapters_are_trained_and_folded_in(model_dir, tmp_path):
    trained = trainer(model_dir, lora=LoraConfig(rank=2)).train()
    trained.save(tmp_path / "tuned")
    before, after = (load_file(f"{path}/model.safetensors") for path in (model_dir, tmp_path / "tuned"))
    assert before.keys() == after.keys() and not same(before, after)


class Echo:
    """Two turns."""

    def reset(self, seed):
        self.turns = 0
        return "Say"

    def step(self, response):
        self.turns += 1
        return TextStep("And?", plainness([], [response])[0], terminated=self.turns >= 2)


@pytest.mark.thorough
@pytest.mark.parametrize("env", [Echo, lambda: Echo()])
def test_an_environment_may_be_a_class_or_a_function(model_dir, env):
    trained = trainer(model_dir, prompts=None, reward=None, env=env)
    assert next(trained)["score/mean"] > 0
    with pytest.raises(ConfigError, match="this trainer plays in an environment"):
        trained.sample(["Say"])


# ── a loop of ones own ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_an_own_loop_over_the_same_prompts_trains_to_the_same_bits(model_dir):
    trained, own = trainer(model_dir), own_loop(model_dir)
    for iteration in range(2):
        next(trained)
        prompts = [prompt.prompt.content for prompt in trained._given.own.prompts_of(iteration)]
        responses = own.sample(prompts)
        metrics = own.step(prompts, responses, plainness(prompts, responses))
        assert metrics["score/mean"] == trained.history[-1]["score/mean"]
    assert same(weights(own), weights(trained))


def test_texts_of_somebody_else_may_be_learnt(model_dir):
    own = own_loop(model_dir)
    before = weights(own)
    metrics = own.step(["Say", "Tell"], ["yes", "no"], [1.0, -1.0])
    assert metrics["score/max"] == 1.0 and metrics["eos_rate"] == 1.0
    assert not same(before, weights(own))


def test_after_the_planned_steps_an_own_loop_is_told_what_to_set(model_dir):
    own = own_loop(model_dir)
    for _ in range(2):
        own.step(["Say", "Tell"], ["yes", "no"], [1.0, -1.0])
    with pytest.raises(ConfigError, match=r"config\.iterations = 2 steps are done; set as many as your loop makes"):
        own.step(["Say", "Tell"], ["yes", "no"], [1.0, -1.0])


def test_a_step_refuses_what_does_not_fit(model_dir):
    own = own_loop(model_dir)
    with pytest.raises(DataError, match="2 prompts and 1 responses; give one response to each prompt"):
        own.step(["a", "b"], ["c"], [1.0])
    with pytest.raises(RewardError, match="your code returned 1 score for 2 responses"):
        own.step(["a", "b"], ["c", "d"], [1.0])
    with pytest.raises(DataError, match=r"prompts\[0\]: a row of type int"):
        own.sample([3])
    own.step(["Say", "Tell"], ["yes", "no"], [1.0, -1.0])  # none of these has ended it


def test_iterations_need_prompts_and_a_reward(model_dir):
    with pytest.raises(ConfigError, match="an iteration needs prompts and a reward, and neither was given"):
        next(own_loop(model_dir))
    with pytest.raises(ConfigError, match=r"train\(\) needs prompts and a reward"):
        own_loop(model_dir).train()


@pytest.mark.parametrize(
    ("given", "words"),
    [({"reward": None}, "prompts without reward: give reward=…"), ({"prompts": None}, "reward without prompts: give")],
)
def test_half_of_what_an_iteration_needs_is_refused_before_anything_is_made(tmp_path, given, words):
    with pytest.raises(ConfigError, match=words):
        trainer(str(tmp_path / "no model is looked for"), **given)


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_faults_are_those_of_the_command_line(model_dir, tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        trainer(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"^prompts: .*missing\.jsonl"):
        trainer(model_dir, prompts=str(tmp_path / "missing.jsonl"))
    with pytest.raises(DataError, match="prompts is empty"):
        trainer(model_dir, prompts=[])
    with pytest.raises(RewardError, match=r"reward, tried on an empty response .* returned 1 score for 2 responses"):
        trainer(model_dir, reward=lambda prompts, responses: [0.0])
    with pytest.raises(ConfigError, match="reward is of type int; expected a function of"):
        trainer(model_dir, reward=3)
    with pytest.raises(ConfigError, match=r"takes \(texts\); expected"):
        trainer(model_dir, reward=lambda texts: [0.0])


def test_a_failed_iteration_is_not_gone_on_from(model_dir):
    calls = []

    def reward(prompts, responses):
        calls.append(1)
        return plainness(prompts, responses) if len(calls) < 3 else [float("nan")] * len(responses)

    trained = trainer(model_dir, reward=reward)
    with pytest.raises(RewardError, match="not finite"):
        trained.train()
    with pytest.raises(TrainingError, match=r"failed .*make a new trainer"):
        next(trained)


# ── how it shows itself ──────────────────────────────────────────────────────────────────────────────────────────────


def test_it_shows_curves_and_responses_before_and_after(model_dir):
    trained = trainer(model_dir)
    next(trained)
    shown = trained._repr_html_()
    assert shown.count("<polyline") == 2 and shown.count("<tr>") == 1 + 4 and "<th" in shown
    assert "http" not in shown and "<script" not in shown and len(shown) < 10_000


@pytest.mark.thorough
def test_showing_it_changes_no_bits(model_dir):
    trained = trainer(model_dir)
    for _ in trained:
        trained._repr_html_()
    assert same(weights(trained), weights(trainer(model_dir).train()))


# ── words of Python ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_what_is_wrong_is_said_in_the_words_of_the_program(model_dir, tmp_path, heard):
    with pytest.raises(ConfigError, match=r"^RolloutConfig\.max_response_tokens = 500 leaves no room"):
        trainer(model_dir, rollout=RolloutConfig(max_response_tokens=500))
    with pytest.raises(ModelError, match=r'^model = "\./modle": there is no such directory'):
        trainer("./modle")
    with pytest.raises(ConfigError, match=r"^the function '.*' takes \(texts\)"):
        trainer(model_dir, reward=lambda texts: [0.0])
    with pytest.raises(ModelError, match=r'^reward = "\./nowhere": there is no such directory'):
        trainer(model_dir, reward="./nowhere")
    with trainer(model_dir, run_dir=tmp_path / "run") as first:
        next(first)
        next(first)
    with pytest.raises(CheckpointError) as caught:
        trainer(model_dir, run_dir=tmp_path / "run", config=SMALL.model_copy(update={"epochs": 3}))
    assert "PPOConfig.epochs was 2, is now 3" in str(caught.value)
    assert "choose another run_dir, or remove that directory to start over" in str(caught.value)
    slow = SMALL.model_copy(update={"value": ValueConfig(optim=FAST)})
    far = lambda prompts, responses: [100 + score for score in plainness(prompts, responses)]  # noqa: E731
    next(trainer(model_dir, config=slow, reward=far, progress=heard))
    assert any("which PPOConfig.value.clip_range = 0.2 lets move" in line for line in heard.lines)


def test_a_text_in_place_of_a_list_of_prompts_is_named(model_dir):
    with pytest.raises(DataError, match=r"prompts is one text, 'Once upon a time', .* give prompts=\['Once upon a"):
        trainer(model_dir, prompts="Once upon a time")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"config": SFTConfig()}, "config is of the class SFTConfig; PPOTrainer takes a PPOConfig"),
        ({"rollout": SMALL}, "rollout is of the class PPOConfig; PPOTrainer takes a RolloutConfig"),
        ({"config": 3}, "config is of the class int; PPOTrainer takes a PPOConfig"),
    ],
)
def test_the_settings_of_something_else_are_named_with_what_is_taken(model_dir, given, words):
    with pytest.raises(ConfigError, match=words):
        trainer(model_dir, **given)


@pytest.mark.thorough
def test_settings_may_be_a_dictionary(model_dir):
    settings = SMALL.model_dump()
    assert same(weights(trainer(model_dir, config=settings).train()), weights(trainer(model_dir).train()))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rewrd", r"PPOTrainer has no argument 'rewrd'; did you mean reward\?"),
        ("iterations", r"it is a setting: give config=PPOConfig\(iterations=…\)"),
        ("max_response_tokens", r"give rollout=RolloutConfig\(max_response_tokens=…\)"),
        ("ppo_epochs", r"here it is a setting of config=PPOConfig\(…\): epochs"),
        ("learning_rate", r"here it is a setting of config=PPOConfig\(…\): optim\.learning_rate"),
        ("xyz", "it has model, tokenizer, prompts"),
    ],
)
def test_an_argument_that_there_is_not_is_answered(model_dir, name, words):
    with pytest.raises(TypeError, match=words):
        trainer(model_dir, **{name: 1})


# ── interrupts, and the end ──────────────────────────────────────────────────────────────────────────────────────────


def test_ctrl_c_without_a_run_directory_promises_no_save_and_keeps_the_metrics(model_dir, capfd):
    calls = []

    def reward(prompts, responses):
        calls.append(1)
        if len(calls) == 3:  # the first is the trial, the second the first iteration's
            os.kill(os.getpid(), signal.SIGINT)
        return plainness(prompts, responses)

    trained = trainer(model_dir, reward=reward, config=SMALL.model_copy(update={"iterations": 3}))
    with pytest.raises(KeyboardInterrupt):
        trained.train()
    assert len(trained.history) == 2
    said = capfd.readouterr().err
    assert "then stopping; its metrics are in the trainer's history" in said and "saving" not in said
    assert next(trained) and len(trained.history) == 3  # it can be gone on with


@pytest.mark.thorough
def test_a_trainer_that_nobody_holds_lets_its_model_go(model_dir):
    trained = trainer(model_dir)
    next(trained)
    model = weakref.ref(trained.model.causal_lm)
    del trained
    gc.collect()
    assert model() is None
