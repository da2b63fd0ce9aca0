"""The whole plan: what fits where, what makes it fit, what it costs, and what is said of wrong words."""

import json
from dataclasses import replace

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.errors import ConfigError
from rlhfkit.formulas.accelerators import ACCELERATORS, accelerators_named
from rlhfkit.formulas.machine import cpu_machine, machine_of
from rlhfkit.formulas.work import work_of
from rlhfkit.planning import lines_of, plan, plan_of_work
from rlhfkit.planning.remedies import applied, changes_for
from rlhfkit.wording import binary
from tests.formulas.test_memory import WORK

PAIRS = ["data.path=PAIRS.jsonl"]


def test_a_small_model_fits_without_sharding():
    found = plan("pairs", PAIRS, model="0.5B", gpus="1xH200")
    assert found.fits
    assert (found.laid.layout.sharding, found.alternatives) == ("none", ())


def test_what_one_gpu_has_no_room_for_is_sharded_over_eight():
    one, eight = (plan("pairs", PAIRS, model="8B", gpus=gpus) for gpus in ("1xH200", "8xH200"))
    assert not one.fits
    assert eight.fits
    assert eight.laid.layout.sharding == "fsdp"


@pytest.mark.parametrize(
    ("shard", "gib", "sharding"),
    [
        ("auto", 1000, "none"),
        ("auto", 200, "fsdp"),
        ("none", 200, "none"),
        ("fsdp", 1000, "fsdp"),
    ],
)
def test_weights_are_parted_as_a_run_would_part_them(shard, gib, sharding):
    overrides = [*PAIRS, "model.path=8B", f"parallel.shard={shard}"]
    work = work_of(load_recipe("pairs", overrides).recipe, WORK.policy, itemsize=2)
    machine = cpu_machine(2, memory_bytes=2 * gib * 2**30, flops=1e12, bandwidth=1e10, threads=1)
    assert plan_of_work("test", work, machine).laid.layout.sharding == sharding


def test_one_process_has_nothing_to_part():
    assert (
        plan_of_work("test", replace(WORK, shard="fsdp"), machine_of(ACCELERATORS["h100"], 1)).laid.layout.sharding
        == "none"
    )


@pytest.mark.parametrize(("model", "gpus"), [("3B", "1xL4"), ("8B", "1xRTX4090"), ("8B", "1xH100"), ("8B", "2xH100")])
def test_each_way_to_make_it_fit_was_planned_and_fits(model, gpus):
    found = plan("pairs", PAIRS, model=model, gpus=gpus)
    assert not found.fits
    assert 1 <= len(found.alternatives) <= 3
    for alternative in found.alternatives:
        assert alternative.laid.fits
        assert all(not step.laid.fits for step in alternative.steps[:-1])  # no step is more than needed


def test_a_plan_counts_the_rounds_of_resampling_at_their_most():
    groups = [*PAIRS, "ppo.estimator=grpo", "ppo.group_size=4"]
    once = plan("pairs", groups, model="0.5B", gpus="1xH200")
    found = plan("pairs", [*groups, "ppo.resample_rounds=2"], model="0.5B", gpus="1xH200")
    assert found.laid.seconds.sampling == pytest.approx(3 * once.laid.seconds.sampling)
    # Old logprobs and reference are two trunks of the same size as the reward model's, and two heads beside.
    assert 4 / 3 < found.laid.seconds.scoring / once.laid.seconds.scoring < 5 / 3
    assert found.laid.seconds.update == once.laid.seconds.update
    assert any("further rounds of sampling (ppo.resample_rounds = 2)" in line for line in lines_of(found))
    measured = found.work.with_lengths(longest_prompt=8, mean_prompt=4, mean_response=4)
    assert not any("further rounds" in note for note in measured.notes)  # a trial has sampled as many as it took


def test_a_plan_knows_how_often_a_recipe_is_evaluated_on_the_way():
    watched = [*PAIRS, "evaluation.every_iterations=10", "evaluation.num_prompts_on_the_way=32", "ppo.iterations=41"]
    test = 'data.test_prompts={path="TEST.jsonl"}'
    found = plan("pairs", [*watched, test], model="0.5B", gpus="1xH200")
    assert (found.work.evaluations, found.work.evaluated_prompts) == (5, 32)  # 0, 10, 20, 30, 40
    without = plan("pairs", [*PAIRS, "ppo.iterations=41"], model="0.5B", gpus="1xH200")
    share = found.laid.seconds.evaluation
    assert found.hours == pytest.approx(without.hours + 41 * share / 3600)
    lines = list(lines_of(found))
    assert any(line.startswith("  evaluated on the way, shared out") for line in lines)
    assert "  an evaluation on the way is planned as a rollout of its prompts; its probes are not" in lines
    assert not any("on the way" in line for line in lines_of(without))


def test_where_nothing_makes_it_fit_that_is_said():
    found = plan("pairs", PAIRS, model="70B", gpus="8xH100")
    assert (found.fits, found.alternatives) == (False, ())
    assert any(line.startswith("Nothing that was tried makes it fit") for line in lines_of(found))


def test_a_change_of_settings_is_what_a_recipe_with_it_gives():
    found = plan("pairs", PAIRS, model="3B", gpus="1xH100")
    words = [alternative.words for alternative in found.alternatives]
    assert "ppo.value.network=shared" in words
    again = plan("pairs", [*PAIRS, "ppo.value.network=shared"], model="3B", gpus="1xH100")
    assert again.fits
    assert again.laid == found.alternatives[words.index("ppo.value.network=shared")].laid


def test_every_change_of_settings_is_one_that_a_recipe_takes():
    work = replace(WORK, itemsize=4, microbatch_tokens=8192, recompute=False)
    for change in changes_for(work, ranks=2):
        overrides = [*PAIRS, "model.path=8B", *change.words.replace("MODULE:NAME", "my:reward").split()]
        recipe = load_recipe("pairs", overrides).recipe
        assert applied(work, (change,)) != work
        assert recipe.stages


def test_the_price_is_that_of_all_gpus_for_all_iterations():
    found = plan("pairs", [*PAIRS, "ppo.iterations=10"], model="8B", gpus="8xH200", price=2.5)
    assert found.cost == pytest.approx(2.5 * 8 * 10 * found.laid.seconds.iteration / 3600)
    assert found.tokens_per_second == pytest.approx(64 * 256 / found.laid.seconds.iteration)


def test_shorter_responses_take_less_time_but_memory_for_the_longest():
    long, short = (plan("pairs", PAIRS, model="0.5B", gpus="H200", response_tokens=n) for n in (256, 64))
    assert short.laid.seconds.iteration < long.laid.seconds.iteration

    def cache(found):
        return next(part.num_bytes for part in found.laid.memory.parts if part.name == "KV cache")

    assert cache(short) == cache(long)


def test_the_models_of_a_recipe_are_counted():
    overrides = [*PAIRS, "model.path=0.5B"]
    shape = WORK.policy
    work = work_of(load_recipe("pairs", overrides).recipe, shape, itemsize=2)
    assert (len(work.reward_models), work.critic) == (1, "separate")
    shared = work_of(load_recipe("pairs", [*overrides, "ppo.value.network=shared"]).recipe, shape, itemsize=2)
    assert len(shared.trained_networks) == 1
    function = load_recipe("function", [*overrides, "reward.function=my:reward"]).recipe
    assert work_of(function, shape, itemsize=2).reward_models == ()


def test_a_plan_in_words_has_its_assumptions():
    lines = list(lines_of(plan("pairs", PAIRS, model="8B", gpus="1xRTX4090", price=0.5)))
    text = "\n".join(lines)
    assert lines[2].startswith("Does not fit: ")
    for words in (
        "Adam's two averages",
        "training_share = 0.35",
        "would fit",
        "config.json of meta-llama/Llama-3.1-8B",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("num_bytes", "words"), [(0, "0 MiB"), (3000, "3 KiB"), (2**20, "1 MiB"), (2**30, "1.0 GiB"), (10**12, "931.3 GiB")]
)
def test_memory_is_said_in_the_unit_that_fits(num_bytes, words):
    assert binary(num_bytes) == words


def test_a_plan_for_programs_is_json_and_adds_up():
    found = json.loads(json.dumps(plan("pairs", PAIRS, model="0.5B", gpus="H200").as_dict()))
    parts = found["memory"]["parts"]
    by_phase = {phase: sum(p["num_bytes"] for p in parts if p["phase"] == phase) for phase in ("always", "update")}
    assert found["memory"]["fullest_phase"] == "update"
    assert found["memory"]["peak_bytes"] == by_phase["always"] + by_phase["update"]
    assert found["seconds"]["iteration"] == pytest.approx(
        sum(value for name, value in found["seconds"].items() if name != "iteration")
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gpus": "8xH10"}, "did you mean H100"),
        ({"gpus": "0xH100"}, "at least one"),
        ({"gpus": "4xcpu"}, "--processes 4"),
        ({"gpus": "2xH100", "processes": 4}, "give --gpus 4xH100"),
        ({"gpus": "H100", "measure": True}, "leave one out"),
        ({"model": "8B", "measure": True}, "leave one out"),
        ({"model": "8C"}, "no model '8C' is known"),
        ({"gpus": "H100", "response_tokens": 1000}, "not between 1 and"),
    ],
)
def test_wrong_words_are_answered_with_what_is_known(arguments, words):
    with pytest.raises(ConfigError, match=words):
        plan("pairs", PAIRS, **{"model": "0.5B", **arguments})


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("cartpole", [], "control task"),
        ("pairs", [*PAIRS, 'stages=["sft"]'], "a plan is of PPO"),
        ("pairs", [*PAIRS, "rollout.max_response_tokens=200000"], "more than the context"),
        ("pairs", [*PAIRS, "model.num_trained_layers=24"], "has 24 layers"),
        ("pairs", [*PAIRS, "ppo.epochs=0"], "ppo.epochs"),
    ],
)
def test_a_recipe_that_cannot_be_planned_says_why(recipe, overrides, words):
    with pytest.raises(ConfigError, match=words):
        plan(recipe, overrides, model="0.5B", gpus="H100")


@pytest.mark.parametrize("name", ACCELERATORS)
def test_an_accelerator_is_known_by_its_name_in_any_case(name):
    assert accelerators_named(f"4x{name.upper()}") == (4, ACCELERATORS[name])
    assert plan_of_work("test", WORK, machine_of(ACCELERATORS[name], 4)).work is WORK


def test_a_plan_counts_an_average_of_the_policy():
    alone = plan("pairs", PAIRS, model="0.5B", gpus="1xH200")
    found = plan("pairs", [*PAIRS, "ppo.ema=0.99"], model="0.5B", gpus="1xH200")
    numbers = found.work.policy.parameters
    assert found.laid.memory.peak_bytes - alone.laid.memory.peak_bytes == 4 * numbers
    assert found.laid.memory.host_bytes - alone.laid.memory.host_bytes == 4 * numbers
    of_adapters = [
        plan("pairs", [*PAIRS, "model.lora.rank=16", *more], model="0.5B", gpus="1xH200").laid.memory.peak_bytes
        for more in ([], ["ppo.ema=0.99"])
    ]
    assert of_adapters[1] - of_adapters[0] == 4 * found.work.policy.adapter_parameters(16)


def test_a_plan_counts_what_is_learnt_beside_ppo():
    alone = plan("pairs", PAIRS, model="0.5B", gpus="1xH200")
    found = plan("pairs", [*PAIRS, "ppo.ptx.coef=1"], model="0.5B", gpus="1xH200")
    seconds, before = found.laid.seconds, alone.laid.seconds
    # Two networks learn the rollout; one learns as many rows beside, whose prompts go through its head as well.
    assert 1.5 < seconds.update / before.update < 2
    assert (seconds.sampling, seconds.scoring) == (before.sampling, before.scoring)
    assert found.laid.memory.peak_bytes == alone.laid.memory.peak_bytes
