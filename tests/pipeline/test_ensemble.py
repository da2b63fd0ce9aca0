"""The stage `reward_model` with an ensemble: what each member is trained on, what is saved, and what is said of it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rlhfkit.config.load import load_recipe
from rlhfkit.config.rewards import RewardModelRewardConfig
from rlhfkit.machine.progress import Progress
from rlhfkit.models.reward_model import members_of, read_heads, read_scales
from rlhfkit.pipeline import run as pipeline
from rlhfkit.pipeline.build import Builder
from rlhfkit.records import Prompt
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rundir.directory import RunDir
from tests.pipeline.whole_runs import Killed
from tests.tiny import save_family

pytestmark = pytest.mark.thorough

RECIPE = """
name = "members"
synthetic = true
seed = 3
stages = ["reward_model"]

[model]
type = "pretrained"
path = "{model}"

[data]
max_prompt_tokens = 8
preferences = {{ path = "{pairs}" }}
test_preferences = {{ path = "{test_pairs}" }}
prompts = {{ path = "{prompts}" }}

[rollout]
max_response_tokens = 8

[reward_model]
epochs = 2
minibatch_pairs = 8
normalization_responses = 12
validation_share = 0.0
optim = {{ learning_rate = 3e-3 }}
"""
LETTERS = "bcdefghij"


def pairs(num, *, seed):
    """Responses of letters; people want more of the letter a, and three times in ten they err."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(num):
        letters = [LETTERS[int(place)] for place in torch.randint(len(LETTERS), (4,), generator=draw)]
        sides = ["".join(["a", *letters[:2]]), "".join(letters[1:])]
        if float(torch.rand(1, generator=draw)) < 0.3:
            sides.reverse()
        rows.append({"prompt": letters[0] + LETTERS[number % len(LETTERS)], "chosen": sides[0], "rejected": sides[1]})
    return rows


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run of the stage with some settings of the ensemble."""
    room = tmp_path_factory.mktemp("ensemble")
    save_family("llama", room / "model")
    text = RECIPE.format(
        model=room / "model",
        pairs=written(room / "pairs.jsonl", pairs(24, seed=0)),
        test_pairs=written(room / "test_pairs.jsonl", pairs(20, seed=1)),
        prompts=written(room / "prompts.jsonl", [{"prompt": row["prompt"]} for row in pairs(8, seed=2)]),
    )
    (room / "recipe.toml").write_text(text)
    made = {}

    def run(*settings, directory=None, progress=None):
        if directory is None and settings in made:
            return made[settings]
        overrides = [f"reward_model.ensemble.{setting}" for setting in settings]
        place = directory or room / f"run-{len(made)}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "report_or_warn", lambda run_dir, warn: None)
            pipeline.run(load_recipe(room / "recipe.toml", overrides), place, progress=progress or Progress(quiet=True))
        return made.setdefault(settings, RunDir(place)) if directory is None else RunDir(place)

    return run


WHOLE_MODELS, HEADS = ("members=3",), ("members=3", 'shared="trunk"')


def weights(directory):
    return load_file(directory / "model.safetensors")


def scores_of_members(run):
    """What each member says of chosen and rejected responses of the test pairs (2, pairs, members), loaded anew."""
    recipe = load_recipe(run.recipe).recipe
    source = Builder(recipe, run).reward(RewardModelRewardConfig(path=str(run.model("reward_model"))))
    sides = [[ScoredText(Prompt(row["prompt"]), "", row[side]) for row in pairs(20, seed=1)] for side in SIDES]
    return torch.stack([source.score_members(side) for side in sides])


SIDES = ("chosen", "rejected")


@pytest.mark.parametrize("settings", [WHOLE_MODELS, HEADS], ids=["nothing", "trunk"])
def test_the_first_member_is_the_reward_model_without_the_others_bit_by_bit(trained, settings):
    alone, first = (weights(trained(*given).model("reward_model")) for given in ((), settings))
    assert alone.keys() == first.keys()
    assert all(torch.equal(alone[name], first[name]) for name in alone)


def test_further_members_are_whole_models_with_heads_orders_and_scales_of_their_own(trained):
    directory = trained(*WHOLE_MODELS).model("reward_model")
    others = members_of(directory)
    assert [path.name for path in others] == ["1", "2"]
    assert read_heads(directory) is None
    heads = [weights(path)["score.weight"] for path in (directory, *others)]
    trunks = [weights(path)["model.layers.0.mlp.up_proj.weight"] for path in (directory, *others)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert torch.cosine_similarity(heads[one], heads[other]).item() < 0.9
        assert not torch.equal(trunks[one], trunks[other])
    means = [read_scales(path)[0].normalization.mean for path in (directory, *others)]
    assert len(set(means)) == 3


def test_members_that_begin_with_one_head_stay_near_each_other(trained):
    directory = trained("members=2", "same_head=true").model("reward_model")
    first, second = (weights(path)["score.weight"] for path in (directory, *members_of(directory)))
    assert torch.cosine_similarity(first, second).item() > 0.9
    assert not torch.equal(first, second)


def test_a_member_may_learn_from_a_draw_of_the_pairs(trained):
    drawn = members_of(trained("members=2", "same_head=true", "resample=true").model("reward_model"))
    all_of_them = members_of(trained("members=2", "same_head=true").model("reward_model"))
    assert not torch.equal(weights(drawn[0])["score.weight"], weights(all_of_them[0])["score.weight"])


def test_heads_on_one_trunk_stand_beside_the_first_with_scales_of_their_own(trained):
    directory = trained(*HEADS).model("reward_model")
    assert members_of(directory) == []
    heads = read_heads(directory)
    assert heads.shape == (2, 32)
    assert torch.cosine_similarity(heads[:1], heads[1:]).item() < 0.99
    assert len({scale.normalization.mean for scale in read_scales(directory)}) == 3


@pytest.mark.parametrize("settings", [WHOLE_MODELS, HEADS], ids=["nothing", "trunk"])
def test_what_is_said_of_the_members_is_what_they_score(trained, settings):
    run = trained(*settings)
    report = json.loads(run.reward_model_report.read_text())["ensemble"]
    chosen, rejected = scores_of_members(run)
    shares = [float(((a > b) + 0.5 * (a == b)).mean()) for a, b in zip(chosen.T, rejected.T, strict=True)]
    assert report["members"] == pytest.approx(shares)
    assert report["mean"] == pytest.approx(float((chosen.mean(1) > rejected.mean(1)).float().mean()))
    assert report["min"] == pytest.approx(float((chosen.amin(1) > rejected.amin(1)).float().mean()))
    spread = torch.cat([chosen, rejected]).double().numpy().std(axis=1).mean()
    assert report["disagreement"] == pytest.approx(spread, rel=1e-4)
    assert report["disagreement"] > 0.05


def test_a_stage_that_was_stopped_goes_on_with_the_members_it_has(trained, tmp_path):
    whole = trained(*WHOLE_MODELS).model("reward_model")
    with pytest.raises(KeyboardInterrupt):
        trained(*WHOLE_MODELS, directory=tmp_path / "run", progress=Killed("reward_model", 2))
    going_on = Killed("reward_model", 99)  # which it does not come to
    again = trained(*WHOLE_MODELS, directory=tmp_path / "run", progress=going_on).model("reward_model")
    assert 99 - going_on.time == 2  # of three members the first had been made
    for one, other in zip((whole, *members_of(whole)), (again, *members_of(again)), strict=True):
        assert all(torch.equal(weights(one)[name], weights(other)[name]) for name in weights(one))
