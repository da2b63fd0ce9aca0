"""Recipes are read, overridden and checked; every fault is named with a remedy."""

import pytest

from rlhfkit.config.load import list_recipes, load_recipe, recipe_text, resolved_json
from rlhfkit.config.ppo import AdaptiveKLConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.errors import ConfigError

MINIMAL = """\
# A recipe for tests.
name = "minimal"
stages = ["sft"]

[model]
path = "some/model"

[data.demonstrations]
path = "demonstrations.jsonl"
"""
OWN_PATHS = ["model.path=some/model", "data.path=some.jsonl"]


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "minimal.toml"
    path.write_text(MINIMAL)
    return path


def faults(path, *overrides):
    """The lines of the error that the recipe and the overrides deserve, without the recipe's name."""
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    heading, _, *others = str(caught.value).replace(f"recipe {path}", "").partition("\n")
    return [line.strip() for line in others[0].split("\n")] if others[0] else [heading.removeprefix(": ")]


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_becomes_a_recipe_and_keeps_its_text(minimal):
    loaded = load_recipe(minimal)
    assert loaded.recipe.name == "minimal"
    assert loaded.recipe.data.demonstrations.path == "demonstrations.jsonl"
    assert loaded.text == MINIMAL
    assert loaded.overrides == ()


def test_resolved_json_gives_the_same_recipe_back(minimal):
    recipe = load_recipe(minimal, ["ppo.kl.type=adaptive", "seed=3"]).recipe
    assert Recipe.model_validate_json(resolved_json(recipe)) == recipe
    assert '"gae_lambda": 0.95' in resolved_json(recipe)


@pytest.mark.parametrize("summary", list_recipes(), ids=lambda summary: summary.name)
def test_every_shipped_recipe_is_valid_and_says_what_it_is(summary):
    assert summary.purpose
    assert summary.hardware
    assert summary.time
    try:
        assert load_recipe(summary.name).recipe.name == summary.name
    except ConfigError as error:
        # A recipe may leave the choice of a model and of its data to the person who runs it, and nothing else.
        assert "model.path is required" in str(error)
        assert load_recipe(summary.name, OWN_PATHS).recipe.name == summary.name


def test_the_first_stages_of_a_shipped_recipe_may_be_run_alone():
    assert load_recipe("demo", ['stages=["pretrain", "sft"]']).recipe.stages == ("pretrain", "sft")


@pytest.mark.parametrize("summary", list_recipes(), ids=lambda summary: summary.name)
def test_a_shipped_recipe_can_be_copied(summary, tmp_path):
    (tmp_path / "mine.toml").write_text(recipe_text(summary.name))
    needs_paths = "# path = " in recipe_text(summary.name)
    overrides = OWN_PATHS if needs_paths else []
    assert load_recipe(tmp_path / "mine.toml", overrides).recipe == load_recipe(summary.name, overrides).recipe


REAL = ["pairs", "hh", "dialogue", "sentiment", "translation", "classification", "function"]


@pytest.mark.parametrize("name", REAL)
def test_recipes_for_models_of_any_size_fix_no_learning_rate(name):
    recipe = load_recipe(name, OWN_PATHS).recipe
    sections = {"sft": recipe.sft, "reward_model": recipe.reward_model, "ppo": recipe.ppo, "value": recipe.ppo.value}
    assert {section.optim.learning_rate for section in sections.values()} == {"auto"}


@pytest.mark.parametrize("name", ["pairs", "hh", "dialogue", "function"])
def test_recipes_of_free_answers_charge_for_one_that_does_not_end(name):
    """A score in its place, or a deviation subtracted; both would be refused by the schema."""
    ppo = load_recipe(name, OWN_PATHS).recipe.ppo
    assert ppo.missing_eos_score == -1.0 or ppo.missing_eos_penalty == 1.0


def test_header_comment_gives_the_summary():
    from rlhfkit.config.load import _summary

    text = "# To see it work.\n#\n# Hardware: 2 cores, 4 GB.\n# Time: 6 minutes.\n\n# Hardware: other\nname = 'x'\n"
    assert _summary("demo", text) == ("demo", "To see it work.", "2 cores, 4 GB.", "6 minutes.")
    assert _summary("bare", "name = 'x'\n") == ("bare", "", "", "")


def test_unknown_name_lists_the_recipes():
    with pytest.raises(ConfigError, match="neither a recipe nor a file 'nonsense'; the shipped recipes are"):
        load_recipe("nonsense")
    with pytest.raises(ConfigError, match="no shipped recipe is called 'nonsense'; the shipped recipes are"):
        recipe_text("nonsense")


@pytest.mark.skipif(not list_recipes(), reason="no recipe is shipped")
def test_a_name_that_is_nearly_right_is_recognised():
    name = list_recipes()[0].name
    with pytest.raises(ConfigError, match=f"did you mean {name}"):
        load_recipe(f"{name}x")
    with pytest.raises(ConfigError, match=f"did you mean {name}"):
        load_recipe(f"{name}.toml")


def test_a_directory_is_not_a_recipe(tmp_path):
    with pytest.raises(ConfigError, match="is a directory; give a recipe's name or a TOML file"):
        load_recipe(tmp_path)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes('purpose = "Güte"'.encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_recipe(path)


def test_a_syntax_error_names_file_and_line(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text('name = "x"\nstages = [\n"sft"\nseed = 1\n')
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML: .*line 4"):
        load_recipe(path)


# ── overrides ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_overrides_are_toml_values_or_else_texts(minimal):
    overrides = [
        "ppo.iterations=2",
        "ppo.kl.coef=0.1",
        "ppo.whiten_rewards=true",
        "data.prompts.path=[\"a.jsonl\", 'b.jsonl']",
        "data.prompts.rows=:90%",
        "model.revision=main",
        "purpose=a = b",
        "data.demonstrations.columns.prompt=question",
    ]
    loaded = load_recipe(minimal, overrides)
    recipe = loaded.recipe
    assert recipe.ppo.iterations == 2
    assert recipe.ppo.kl.coef == 0.1
    assert recipe.ppo.whiten_rewards is True
    assert recipe.data.prompts.path == ("a.jsonl", "b.jsonl")
    assert recipe.data.prompts.rows == ":90%"
    assert recipe.model.revision == "main"
    assert recipe.purpose == "a = b"
    assert recipe.data.demonstrations.columns == {"prompt": "question"}
    assert loaded.overrides == tuple(overrides)


def test_the_last_override_counts(minimal):
    assert load_recipe(minimal, ["seed=1", "seed=2"]).recipe.seed == 2


def test_a_table_can_be_replaced_as_a_whole(minimal):
    recipe = load_recipe(minimal, ['ppo.kl={type = "adaptive", target = 3.0}']).recipe
    assert recipe.ppo.kl == AdaptiveKLConfig(type="adaptive", target=3.0)


def test_a_date_is_a_text(minimal):
    assert load_recipe(minimal, ["model.revision=2026-01-31"]).recipe.model.revision == "2026-01-31"


def test_a_value_cannot_smuggle_in_other_settings(minimal):
    assert load_recipe(minimal, ["purpose=1\nseed = 5"]).recipe.seed == 0


@pytest.mark.parametrize("override", ["seed", "=3", "ppo..epochs=1", ".seed=1"])
def test_an_override_needs_a_key_and_a_value(minimal, override):
    assert faults(minimal, override) == [f"override {override!r}: expected section.key=value, as in ppo.iterations=2"]


def test_nothing_can_be_set_below_a_plain_value(minimal):
    assert faults(minimal, "name.first=x") == [
        "override 'name.first=x': name is \"minimal\", which has no settings below it; "
        "replace it as a whole with name=…"
    ]


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("override", "shown", "expected"),
    [
        ("ppo.epochs=0", "0", "a number above 0"),
        ("ppo.epochs=2.5", "2.5", "a whole number"),
        ("ppo.epochs=few", '"few"', "a whole number"),
        ("ppo.gamma=big", '"big"', "a number"),
        ("ppo.gamma=2", "2", "a number of at most 1"),
        ("seed=-1", "-1", "a number of at least 0"),
        ("ppo.optim.learning_rate=inf", "Infinity", 'a finite number or "auto"'),
        ("sft.packing=maybe", '"maybe"', "true or false"),
        ("sft=3", "3", "a table"),
        ("stages=sft", '"sft"', "a list"),
        ("stages=[]", "[]", "at least 1 of them"),
        ("sft.optim.schedule=lin", '"lin"', '"constant", "linear", "cosine" or "step"'),
        ("ppo.kl.type=adaptiv", '"adaptiv"', '"fixed" or "adaptive"'),
        ("model.lora.targets=3", "3", 'a list or "all-linear"'),
    ],
)
def test_a_wrong_value_is_shown_with_what_was_expected(minimal, override, shown, expected):
    name = override.partition("=")[0]
    assert faults(minimal, override) == [f"{name} = {shown} (from the command line): expected {expected}"]


def test_a_table_in_place_of_a_value_is_shown(minimal):
    assert faults(minimal, "seed.x=3") == ['seed = {"x": 3} (from the command line): expected a whole number']


def test_a_text_that_looks_like_a_number_can_be_quoted(minimal):
    assert faults(minimal, "model.revision=12345") == [
        "model.revision = 12345 (from the command line; 'model.revision=\"…\"' makes it a text): expected a text"
    ]
    assert load_recipe(minimal, ['model.revision="12345"']).recipe.model.revision == "12345"


def test_a_text_of_the_wrong_form_is_explained_by_the_help(minimal):
    [fault] = faults(minimal, "data.demonstrations.rows=most")
    assert fault.startswith('data.demonstrations.rows = "most" (from the command line): expected a text that matches ^')
    assert "as a slice in rows or per cent" in fault


def test_a_fault_of_the_file_does_not_blame_the_command_line(minimal):
    minimal.write_text(MINIMAL + "\n[ppo]\nepochs = 0\n")
    assert faults(minimal, "ppo.iterations=3") == ["ppo.epochs = 0: expected a number above 0"]


def test_a_fault_between_settings_names_the_overrides_that_take_part(minimal):
    assert faults(minimal, "ppo.minibatch_episodes=63", "seed=1") == [
        "ppo: minibatch_episodes 63 does not divide rollout_episodes 64; choose a divisor "
        "(you gave ppo.minibatch_episodes=63)"
    ]
    minimal.write_text(MINIMAL.replace('path = "demonstrations.jsonl"', ""))
    assert faults(minimal, "model.path=other/model") == [
        "data: no file is named for demonstrations: give data.path=FILE, or a path in each table"
    ]


@pytest.mark.parametrize(
    ("unknown", "hint"),
    [
        ("ppo.clip_rang", "did you mean ppo.clip_range?"),
        ("ppo.value.optim.lerning_rate", "did you mean ppo.value.optim.learning_rate?"),
        ("ppo.learning_rate", "did you mean ppo.optim.learning_rate or ppo.value.optim.learning_rate?"),
        ("gae_lambda", "did you mean ppo.gae_lambda or ppo.value.gae_lambda?"),
        ("model.width", 'width belongs to model.type = "scratch"'),
        ("preferences.annotators.xyz", "preferences.annotators has type, disagreement, votes_per_pair"),
    ],
)
def test_an_unknown_setting_comes_with_the_one_that_was_meant(minimal, unknown, hint):
    assert faults(minimal, f"{unknown}=1") == [f"{unknown} (from the command line): no such setting; {hint}"]


def test_an_unknown_section_comes_with_the_one_that_was_meant(minimal):
    assert faults(minimal, "pop.epochs=1") == ["pop (from the command line): no such setting; did you mean ppo?"]


def test_a_missing_setting_says_how_to_give_it(minimal):
    model = "(Directory in Hugging Face format, or a hub id)"
    minimal.write_text(MINIMAL.replace('path = "some/model"', ""))
    assert faults(minimal) == [f"model.path is required: give model.path=DIR-or-hub-id {model}"]
    minimal.write_text(MINIMAL.replace('[model]\npath = "some/model"', ""))
    assert faults(minimal) == [f"model is required: give model.path=DIR-or-hub-id {model}"]
    assert faults(minimal, "model.path=x", "data.texts.type=grammar") == [
        "data.texts.num_rows is required: give data.texts.num_rows=NUM_ROWS (How many reviews to write)"
    ]
    assert faults(minimal, "model.path=x", "reward.path=y") == [
        'reward.type is required: give one of "reward_model", "function", "lexicon", "http", "llm_judge", '
        '"bag_of_words", "grammar", "match", "chrf", "answer", "unit_tests", "length" or "mix"'
    ]


def test_faults_in_lists_are_named_without_the_labels_of_unions(minimal):
    mix = 'reward={type = "mix", parts = [{source = {type = "http"}}, {weigth = 2, source = {type = "grammar"}}]}'
    assert faults(minimal, mix) == [
        "reward.parts[0].source.url is required: add it to the recipe (Address of the endpoint)",
        "reward.parts[1].weigth (from the command line): no such setting; did you mean reward.parts[1].weight?",
    ]


def test_all_faults_come_in_one_message(minimal):
    with pytest.raises(ConfigError) as caught:
        load_recipe(minimal, ["seed", "ppo.epochs=0", "ppo.clip_rang=1"])
    first, *others = str(caught.value).split("\n")
    assert first == f"recipe {minimal} has 3 faults:"
    assert [line.split()[0] for line in others] == ["override", "ppo.epochs", "ppo.clip_rang"]


def test_a_long_value_is_cut(minimal):
    [fault] = faults(minimal, "seed=" + "x" * 500)
    assert len(fault) < 200
