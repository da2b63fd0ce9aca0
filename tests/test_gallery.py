"""Set-ups that are broken in a way that only training shows, as tiny runs: each is named, and no healthy run is."""

import dataclasses
import random

import pytest
import torch

from rlhfkit.config.load import load_recipe
from rlhfkit.config.ppo import AdaptiveKLConfig, FixedKLConfig, RolloutConfig, ValueConfig
from rlhfkit.config.training import OptimConfig, RewardModelConfig, SftConfig
from rlhfkit.diagnosis.diagnose import diagnose
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import run as pipeline
from rlhfkit.records import Prompt
from rlhfkit.rollout.text import TextRollout
from rlhfkit.rundir.directory import RunDir
from rlhfkit.training.reward_model import EncodedPair
from rlhfkit.training.sft import LearntText
from tests.training import tiny
from tests.training.runs import four_letters, ppo_config, ppo_trainer, rate, train, train_pairs, train_texts

NO_LEASH = FixedKLConfig(coef=0.0)


def named(run: RunDir) -> list[str]:
    """Rules, the causes before what follows from them."""
    return [problem.finding.rule for problem in diagnose(run).problems]


# ── healthy ──────────────────────────────────────────────────────────────────────────────────────────────────────────

HEALTHY = {
    "seed 0": {},
    "seed 2": {"seed": 2},
    "grpo": {"estimator": "grpo", "group_size": 4},
    "a shared trunk": {"value": ValueConfig(network="shared", coef=0.5)},
}
FURTHER_HEALTHY = {
    "seed 1": {"seed": 1},
    "seed 3": {"seed": 3},
    "rloo": {"estimator": "rloo", "group_size": 4},
    "groups of eight": {"estimator": "rloo", "group_size": 8, "seed": 1},
    "an adaptive leash": {"kl": AdaptiveKLConfig(type="adaptive", coef=0.1, horizon_episodes=1000)},
    "a clip range that falls": {"clip_schedule": "linear"},
    "larger rollouts": {"rollout_episodes": 64, "minibatch_episodes": 32},
    "a warm critic": {"value": ValueConfig(optim=rate(1e-2), warmup_iterations=3)},
}
CASES = [pytest.param(changes, id=name) for name, changes in HEALTHY.items()]
CASES += [pytest.param(changes, id=name) for name, changes in FURTHER_HEALTHY.items()]


@pytest.mark.thorough
@pytest.mark.parametrize("changes", CASES)
def test_of_a_healthy_run_nothing_is_said_neither_while_it_trains_nor_afterwards(tmp_path, changes):
    seed = changes.get("seed", 0)
    config = ppo_config(**{name: value for name, value in changes.items() if name != "seed"})
    run, said = train(ppo_trainer(config, seed=seed), tmp_path)
    diagnosis = diagnose(run)
    assert (diagnosis.problems, diagnosis.passed, said) == ((), (), [])
    assert diagnosis.state == "finished"
    assert any(line.startswith("The score of sampled responses rose from −") for line in diagnosis.right)


def control(directory, *overrides):
    """A few seconds of CartPole."""
    small = ["num_seeds=1", "ppo.env_steps=20480", "ppo.num_envs=16", "evaluation.num_episodes=2"]
    loaded = load_recipe("cartpole", [*small, "evaluation.record=false", *overrides])
    pipeline.run(loaded, directory, progress=Progress(quiet=True))
    return RunDir(directory)


@pytest.mark.thorough
def test_of_a_healthy_control_run_nothing_is_said(tmp_path):
    diagnosis = diagnose(control(tmp_path / "run"))
    assert (diagnosis.problems, diagnosis.passed) == ((), ())
    assert diagnosis.right[0].startswith("The return rose while it trained: seed 0 from ")


# ── PPO ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Negated:
    """A rollout whose critic has the wrong sign."""

    rollout: object

    def collect(self, iteration, *, kl_coef, on_finished=None):
        experience = self.rollout.collect(iteration, kl_coef=kl_coef)
        return dataclasses.replace(experience, old_values=-experience.old_values, next_values=-experience.next_values)

    def state(self):
        return {}

    def load_state(self, tensors):
        pass


@pytest.mark.thorough
def test_a_critic_with_the_wrong_sign(tmp_path):
    trainer = ppo_trainer(ppo_config())
    trainer.rollout = Negated(trainer.rollout)
    run, said = train(trainer, tmp_path)
    assert named(run) == ["critic_useless"]
    assert len(said) == 1 and "The critic foresees nothing (critic_useless)" in said[0]


@pytest.mark.thorough
def test_a_critic_that_does_not_learn(tmp_path):
    run, _ = train(ppo_trainer(ppo_config(value=ValueConfig(optim=rate(1e-12)))), tmp_path)
    assert named(run) == ["critic_useless"]


@pytest.mark.thorough
def test_a_learning_rate_of_almost_nothing(tmp_path):
    run, _ = train(ppo_trainer(ppo_config(optim=rate(1e-12))), tmp_path)
    assert named(run) == ["nothing_moves", "reward_flat"]
    first, second = diagnose(run).problems
    assert first.finding.remedies[0].setting == "ppo.optim.learning_rate"
    assert second.finding.follows_from == ("nothing_moves",)


@pytest.mark.thorough
def test_a_learning_rate_a_hundred_times_too_high(tmp_path):
    run, said = train(ppo_trainer(ppo_config(optim=rate(0.3))), tmp_path)
    assert named(run)[0] == "approx_kl_high"
    problems = diagnose(run).problems
    assert problems[0].finding.remedies[0].words() == "ppo.optim.learning_rate from 0.3 to 0.03"
    assert problems[0].first == 0
    assert all("approx_kl_high" in problem.finding.follows_from for problem in problems[1:])
    assert said[0].startswith("iteration 0: Updates are far too large (approx_kl_high)")


@pytest.mark.thorough
def test_no_leash_and_a_reward_that_can_be_hacked(tmp_path):
    config = ppo_config(kl=NO_LEASH)
    run, _ = train(ppo_trainer(config, lambda text: text.count("a"), max_response_tokens=32), tmp_path)
    assert named(run)[0] == "kl_exploding"
    kl = diagnose(run).problems[0]
    assert kl.finding.remedies[0].words() == "ppo.kl.coef from 0 to 0.05"
    assert kl.finding.evidence[0].numbers["recent"] > 50


@pytest.mark.thorough
def test_a_reward_of_length(tmp_path):
    run, _ = train(ppo_trainer(ppo_config(kl=NO_LEASH), lambda text: len(text) / 10, max_response_tokens=40), tmp_path)
    assert named(run) == ["length_runaway", "eos_lost"]


@pytest.mark.thorough
def test_a_reward_of_brevity(tmp_path):
    run, _ = train(ppo_trainer(ppo_config(kl=NO_LEASH), lambda text: -len(text) / 10, max_response_tokens=40), tmp_path)
    assert named(run)[0] == "length_collapse"


@pytest.mark.thorough
def test_a_reward_that_is_saturated(tmp_path):
    config = ppo_config(kl=NO_LEASH, optim=rate(1e-2), iterations=45)
    trainer = ppo_trainer(config, lambda text: float(bool(set(text) & set("abcdef"))), max_response_tokens=24)
    run, _ = train(trainer, tmp_path)
    problem = next(problem for problem in diagnose(run).problems if problem.finding.rule == "reward_saturated")
    assert problem.finding.evidence[0].metric == "score/std"
    assert problem.is_present


@pytest.mark.thorough
def test_a_reward_that_is_clipped_too_tightly(tmp_path):
    run, _ = train(ppo_trainer(ppo_config(clip_score=0.2)), tmp_path)
    (problem,) = diagnose(run).problems
    assert problem.finding.rule == "reward_saturated"
    assert problem.finding.remedies[0].words() == "ppo.clip_score from 0.2 to 0.6"


@pytest.mark.thorough
def test_a_constant_reward(tmp_path):
    run, _ = train(ppo_trainer(ppo_config(), lambda text: 1.0), tmp_path)
    assert named(run) == ["reward_saturated", "reward_flat"]


@pytest.mark.thorough
def test_an_entropy_bonus_that_is_too_high(tmp_path):
    run, _ = train(ppo_trainer(ppo_config(entropy_coef=5.0)), tmp_path)
    assert named(run) == ["entropy_rising", "reward_flat"]
    assert diagnose(run).problems[0].finding.remedies[0].words() == "ppo.entropy_coef from 5 to 0.5"


@pytest.mark.thorough
def test_a_policy_that_never_ends_by_itself(tmp_path):
    """EOS costs what no letter does, as where it was not learnt."""
    config = ppo_config(kl=NO_LEASH, optim=rate(1e-2))
    run, _ = train(ppo_trainer(config, lambda text: four_letters(text) + 5.0 * (len(text) == 8)), tmp_path)
    assert named(run)[0] == "eos_lost"


@pytest.mark.thorough
def test_sampling_that_is_not_what_is_trained(tmp_path):
    """A reference at another temperature: the KL comes out negative."""
    config = ppo_config(kl=NO_LEASH)
    trainer = ppo_trainer(config)
    reference = trainer.rollout.reference
    trainer.rollout.reference = lambda sequences: reference(sequences) + 0.2
    run, _ = train(trainer, tmp_path)
    assert "kl_negative" in [problem.finding.rule for problem in (*diagnose(run).problems, *diagnose(run).passed)]


# ── nothing to learn from ────────────────────────────────────────────────────────────────────────────────────────────


class OfPrompt:
    """A reward that never reads the response."""

    def score(self, episodes):
        return torch.tensor([float(len(episode.prompt_text)) for episode in episodes])


def named_first(trainer, directory):
    """What is named in a training, as its cause, and what was said in its first iterations."""
    run, said = train(trainer, directory)
    return named(run)[0], [problem.finding for problem in diagnose(run).problems], said


GROUPS = [
    pytest.param({"estimator": "grpo", "group_size": 4}, id="grpo"),
    pytest.param({"estimator": "rloo", "group_size": 4}, id="rloo", marks=pytest.mark.thorough),
    pytest.param({}, id="gae"),
]


@pytest.mark.parametrize("changes", GROUPS)
def test_a_reward_of_the_prompt_alone_is_no_matter_of_the_learning_rate(tmp_path, changes):
    trainer = tiny.trainer(ppo_config(iterations=6, **changes), reward=OfPrompt())
    first, findings, said = named_first(trainer, tmp_path)
    assert first == "reward_of_prompt_alone"
    assert said[0].startswith("iteration 2: The score depends on the prompt alone")
    rules = {finding.rule: finding for finding in findings}
    assert "nothing_moves" not in rules
    assert "learning rate too low" not in "".join(finding.cause for finding in findings)
    if "estimator" in changes:
        assert rules["zero_advantages"].follows_from == ("reward_of_prompt_alone",)


def test_a_reward_of_the_prompt_alone_shows_at_once_where_every_prompt_is_answered_once(tmp_path):
    trainer = tiny.trainer(ppo_config(iterations=3, rollout_episodes=16, minibatch_episodes=16), reward=OfPrompt())
    letters = tiny.LETTERS
    texts = [letters[at % 12] * (1 + at % 5) + letters[at // 12] for at in range(48)]
    trainer.rollout.prompts = [tiny.encoder().encode(Prompt(text), max_tokens=8) for text in texts]
    first, findings, said = named_first(trainer, tmp_path)
    assert first == "reward_of_prompt_alone"
    assert findings[0].evidence[0].metric == "score/exchange_change"
    assert said[0].startswith("iteration 0: The score depends on the prompt alone")


def test_one_prompt_a_thousand_times(tmp_path):
    trainer = ppo_trainer(ppo_config(iterations=6))
    trainer.rollout.prompts = trainer.rollout.prompts[:1] * 1000
    trainer.rollout.num_distinct_prompts = 1
    first, findings, said = named_first(trainer, tmp_path)
    assert first == "few_prompts"
    assert findings[0].advice == ("give more different prompts in data.prompts",)
    assert said[0].startswith("iteration 0: There are hardly any different prompts (few_prompts)")


def test_a_rollout_counts_its_different_prompts():
    rollout = ppo_trainer(ppo_config()).rollout
    same = TextRollout(
        rollout.policy,
        rollout.reference,
        rollout.reward,
        tiny.prompts(3) * 7,
        rollout=rollout.rollout,
        ppo=rollout.ppo,
        seed=0,
    )
    assert (rollout.num_distinct_prompts, same.num_distinct_prompts) == (4, 3)


@pytest.mark.thorough
def test_a_reward_beside_which_the_leash_has_no_weight(tmp_path):
    trainer = ppo_trainer(ppo_config(iterations=6, kl=FixedKLConfig(coef=0.05)), lambda text: 1e4 * four_letters(text))
    first, findings, said = named_first(trainer, tmp_path)
    assert first == "kl_weightless"
    assert any(line.startswith("iteration 0: The KL penalty has no weight beside the reward (k") for line in said)
    assert float(findings[0].remedies[0].to) > 100


def test_a_temperature_near_0(tmp_path):
    rollout = RolloutConfig(max_response_tokens=8, temperature=0.05)
    trainer = tiny.trainer(ppo_config(iterations=6), reward=tiny.Scripted(four_letters), rollout=rollout)
    first, findings, said = named_first(trainer, tmp_path)
    assert first == "temperature_extreme"
    assert findings[0].remedies[0].overrides() == ("rollout.temperature=1.0",)
    assert "temperature_extreme" in said[0]


@pytest.mark.thorough
def test_a_policy_that_is_certain_before_it_learns(tmp_path):
    trainer = tiny.trainer(ppo_config(iterations=6, estimator="grpo", group_size=4), reward=tiny.Scripted(four_letters))
    with torch.no_grad():
        trainer.policy.language_model.causal_lm.lm_head.weight.mul_(200.0)
    trainer.rollout.reference = lambda sequences: trainer.policy.evaluate(sequences).logprobs.detach()
    assert named_first(trainer, tmp_path)[0] == "responses_identical"


@pytest.mark.thorough
def test_a_run_that_its_kl_stopped(tmp_path):
    config = ppo_config(kl=NO_LEASH, max_ref_kl=2.0, optim=rate(1e-2))
    run, _ = train(ppo_trainer(config, lambda text: text.count("a"), max_response_tokens=16), tmp_path)
    assert "kl_over_limit" in named(run)
    assert "max_ref_kl = 2" in run.stages.read_text()


@pytest.mark.thorough
def test_updates_that_clip_most_tokens_are_not_of_a_good_size(tmp_path):
    optim = OptimConfig(learning_rate=3e-2, schedule="constant")
    run, _ = train(ppo_trainer(ppo_config(optim=optim, iterations=12)), tmp_path)
    found = diagnose(run)
    # Which updates are the largest, and whether that passes, depends on how the CPU adds up.
    seen = {problem.finding.rule for problem in (*found.problems, *found.passed)}
    assert {"approx_kl_high", "clip_fraction_high"} & seen
    assert not any("of a good size" in line for line in found.right)


# ── control ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_a_control_run_that_does_not_move(tmp_path):
    run = control(tmp_path / "run", "ppo.optim.learning_rate=1e-12")
    assert named(run) == ["nothing_moves", "reward_flat"]
    assert diagnose(run).problems[0].seeds == (0,)


@pytest.mark.thorough
def test_a_control_run_with_far_too_high_a_learning_rate(tmp_path):
    assert "approx_kl_high" in named(control(tmp_path / "run", "ppo.optim.learning_rate=0.8"))


@pytest.mark.thorough
def test_a_control_run_whose_bonus_keeps_it_random(tmp_path):
    assert named(control(tmp_path / "run", "ppo.entropy_coef=1000.0"))[0] == "entropy_rising"


# ── the stages before ────────────────────────────────────────────────────────────────────────────────────────────────


def random_letters(num, seed):
    dice = random.Random(seed)
    return [[dice.randint(2, 13) for _ in range(dice.randint(2, 6))] for _ in range(num)]


@pytest.mark.thorough
def test_a_reward_model_that_learns_noise_by_heart(tmp_path):
    words = random_letters(80, 0)
    pairs = [EncodedPair([*a, 1], [*b, 1], 0.0) for a, b in zip(words[:40], words[40:], strict=True)]
    config = RewardModelConfig(epochs=60, minibatch_pairs=16, validation_share=0.3, optim=rate(1e-2))
    run = train_pairs(pairs, config, tmp_path)
    assert named(run) == ["overfitting"]
    assert diagnose(run).problems[0].finding.remedies[0].words() == "reward_model.epochs from 60 to 1"


def good_pairs(num):
    """More "a" is better."""
    dice = random.Random(1)
    pairs = []
    for _ in range(num):
        few, many = sorted(dice.sample(range(7), 2))
        rows = [[2] * count + [dice.randint(3, 13) for _ in range(7 - count)] + [1] for count in (many, few)]
        pairs.append(EncodedPair(rows[0], rows[1], 0.0))
    return pairs


@pytest.mark.thorough
def test_a_reward_model_that_learns_is_healthy(tmp_path):
    config = RewardModelConfig(epochs=4, minibatch_pairs=16, validation_share=0.2, optim=rate(1e-2))
    assert named(train_pairs(good_pairs(150), config, tmp_path)) == []


def test_a_reward_model_whose_learning_rate_is_too_low(tmp_path):
    config = RewardModelConfig(epochs=4, minibatch_pairs=16, validation_share=0.2, optim=rate(1e-9))
    run = train_pairs(good_pairs(150), config, tmp_path)
    assert named(run) == ["not_learning"]
    assert diagnose(run).problems[0].finding.remedies[0].setting == "reward_model.optim.learning_rate"


@pytest.mark.thorough
def test_fine_tuning_that_learns_its_rows_by_heart(tmp_path):
    texts = [LearntText([*row, 1], 1) for row in random_letters(24, 3)]
    config = SftConfig(epochs=60, minibatch_sequences=8, max_tokens=12, validation_share=0.3, optim=rate(3e-2))
    assert named(train_texts(texts, config, tmp_path)) == ["overfitting"]


def test_fine_tuning_that_diverges(tmp_path):
    texts = [LearntText([2, 3, 4, 5, 6, 1], 1) for _ in range(64)]
    config = SftConfig(epochs=6, minibatch_sequences=8, max_tokens=12, validation_share=0.0, optim=rate(30.0))
    assert named(train_texts(texts, config, tmp_path)) == ["diverged"]
