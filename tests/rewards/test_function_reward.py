import asyncio
import sys
from pathlib import Path

import pytest
import torch

from rlhfkit.config.rewards import FunctionRewardConfig
from rlhfkit.errors import ConfigError, RewardError
from rlhfkit.rewards import FunctionReward

MODULE = """
import asyncio
import functools

def length(prompts, responses):
    return [float(len(response)) for response in responses]

def length_of_prompt(prompts, responses):
    return [len(prompt) for prompt in prompts]

def matches(prompts, responses, label):
    return [float(response == wanted) for response, wanted in zip(responses, label)]

def matches_twice(prompts, responses, *, label, weight=None):
    return [float(r == l) * (w or 2.0) for r, l, w in zip(responses, label, weight or [None] * len(label))]

def number_of_columns(prompts, responses, **columns):
    return [len(columns)] * len(responses)

def any_arguments(*texts):
    return [len(text) for text in texts[1]]

def as_trl_calls_it(completions, solution):
    return [1.0 if wanted in text else 0.0 for text, wanted in zip(completions, solution)]

def as_trl_calls_it_with_more(completions, solution, **kwargs):
    return [float(wanted in text) + len(kwargs["prompts"]) for text, wanted in zip(completions, solution)]

def column_first(label, responses):
    return [float(r == l) for r, l in zip(responses, label)]

def prompts_are_not_looked_at(_, responses):
    return [float(len(response)) for response in responses]

def one_at_a_time(prompt, response, label="b"):
    return float(response == label)

def one_at_a_time_by_annotation(prompts: str, responses: "str") -> float:
    return float(len(responses))

async def waits(prompts, responses):
    await asyncio.sleep(0)
    return [float(len(response)) for response in responses]

async def waits_for_each(response):
    await asyncio.sleep(0.01 if response == "a" else 0)
    return float(len(response))

def yields(prompts, responses):
    for response in responses:
        yield len(response)

def yields_and_raises(prompts, responses):
    yield 1.0
    raise KeyError("lost")

def by_keyword_only(*, responses, label):
    return [float(r == l) for r, l in zip(responses, label)]

def by_place_only(prompts, responses, /):
    return [float(len(response)) for response in responses]

def wrapped(function):
    return lambda *args, **kwargs: function(*args, **kwargs)

hidden = wrapped(length_of_prompt)
decorated = functools.wraps(length_of_prompt)(wrapped(length_of_prompt))

class Judge:
    def __init__(self, bonus=0.0):
        self.bonus = bonus
    def __call__(self, prompts, responses):
        return [len(response) + self.bonus for response in responses]
    def score(self, responses):
        return [float(len(response)) for response in responses]

class Unready(Judge):
    def __init__(self, path):
        pass

class Scorer:
    def score(self, responses):
        return [float(len(response)) for response in responses]

scorer = Scorer()

def switches(responses):
    import os
    import torch
    os.chdir("/")
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    return [float(len(response)) for response in responses]

class NoJudge:
    pass

judge = Judge(10.0)

def scaled(factor, prompts, responses):
    return [factor * len(response) for response in responses]

doubled = functools.partial(scaled, 2.0)

def one_score(prompts, responses):
    return 0.5

def tensor(responses):
    import torch
    return torch.tensor([float(len(response)) for response in responses])

def list_for_one(prompt, response) -> float:
    return [1.0]

def array_for_one(response):
    import numpy
    return numpy.ones(2)

def nothing_for_one(response):
    pass

def row_for_each(prompts, responses):
    return [[1.0]] * len(responses)

def by_names_of_others(queries, outputs):
    return [0.0] * len(outputs)

def only_prompts(prompts, label):
    return [0.0] * len(prompts)

def lists_and_one(prompts, response):
    return [0.0] * len(prompts)

def stray_by_place(label, /, responses):
    return [0.0] * len(responses)

def raises(prompts, responses):
    return _fail(responses)

def _fail(responses):
    return [int(response) for response in responses]

def speaks(prompts, responses):
    raise ValueError("one\\n  two")

def exits(prompts, responses):
    raise SystemExit(0)

def nothing(prompts, responses):
    pass

def not_a_number(prompts, responses):
    return [float("nan")] * len(responses)

def too_few(prompts, responses):
    return [1.0] * (len(responses) - 1)

def other_order(responses, prompts):
    return [float(len(response)) for response in responses]

def one_list(texts):
    return [0.0] * len(texts)

constant = 3.0
"""


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Builds the reward in a working directory that has my_rewards.py."""
    (tmp_path / "my_rewards.py").write_text(MODULE)
    (tmp_path / "broken_syntax.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "broken_import.py").write_text("\nimport a_module_that_nobody_has\n")
    (tmp_path / "broken_body.py").write_text("\n\n1 / 0\n")
    (tmp_path / "broken_exit.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield lambda function: FunctionReward(FunctionRewardConfig(type="function", function=function))
    for name in ("my_rewards", "broken_syntax", "broken_import", "broken_body", "broken_exit"):
        sys.modules.pop(name, None)


def test_function_of_the_working_directory_scores(build, make_episodes):
    assert build("my_rewards:length").score(make_episodes("", "four")).tolist() == [0.0, 4.0]


def test_function_gets_the_prompts_first(build, make_episodes):
    assert build("my_rewards:length_of_prompt").score(make_episodes("a")).tolist() == [len("prompt 0")]


def test_further_parameters_are_filled_with_columns(build, make_episodes):
    assert build("my_rewards:matches").score(make_episodes("a", "b", label=["a", "c"])).tolist() == [1.0, 0.0]


def test_a_parameter_with_a_default_needs_no_column(build, make_episodes):
    reward = build("my_rewards:matches_twice")
    assert reward.score(make_episodes("a", label=["a"])).tolist() == [2.0]
    assert reward.score(make_episodes("a", label=["a"], weight=[5.0])).tolist() == [5.0]


def test_variadic_keywords_get_the_columns_that_all_rows_have(build, make_episodes):
    reward = build("my_rewards:number_of_columns")
    assert reward.score(make_episodes("a", x=[1], y=[2])).tolist() == [2.0]
    uneven = make_episodes("a", x=[1], y=[2]) + make_episodes("b", y=[2])
    assert reward.score(uneven).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("function", "scores"),
    [
        ("other_order", [1.0, 2.0]),
        ("as_trl_calls_it", [1.0, 0.0]),
        ("as_trl_calls_it_with_more", [3.0, 2.0]),
        ("column_first", [0.0, 1.0]),
        ("prompts_are_not_looked_at", [1.0, 2.0]),
        ("one_at_a_time", [0.0, 1.0]),
        ("one_at_a_time_by_annotation", [1.0, 2.0]),
        ("waits", [1.0, 2.0]),
        ("waits_for_each", [1.0, 2.0]),
        ("yields", [1.0, 2.0]),
        ("by_keyword_only", [0.0, 1.0]),
        ("by_place_only", [1.0, 2.0]),
        ("decorated", [8.0, 8.0]),
        ("Judge", [1.0, 2.0]),
        ("judge", [11.0, 12.0]),
        ("judge.score", [1.0, 2.0]),
        ("doubled", [2.0, 4.0]),
    ],
)
def test_parameters_are_bound_by_their_names(build, make_episodes, function, scores):
    episodes = make_episodes("a", "bc", label=["b", "bc"], solution=["a", "x"])
    assert build(f"my_rewards:{function}").score(episodes).tolist() == scores


def test_a_tensor_of_one_score_is_a_list_for_one_response(build, make_episodes):
    assert build("my_rewards:tensor").score(make_episodes("abc")).tolist() == [3.0]


def test_a_coroutine_runs_beside_a_loop_that_runs_already(build, make_episodes):
    async def notebook():
        return build("my_rewards:waits").score(make_episodes("abc")).tolist()

    assert asyncio.run(notebook()) == [3.0]


def test_a_generator_that_fails_is_an_error_of_the_function(build, make_episodes):
    with pytest.raises(RewardError, match=r"my_rewards:yields_and_raises raised KeyError: 'lost' \(at .*my_rewards"):
        build("my_rewards:yields_and_raises").score(make_episodes("a", "b"))


def test_a_function_of_the_script_itself_can_be_named(make_episodes, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "length", lambda responses: [1.0] * len(responses), raising=False)
    reward = FunctionReward(FunctionRewardConfig(type="function", function="__main__:length"))
    assert reward.score(make_episodes("a", "b")).tolist() == [1.0, 1.0]


def test_missing_column_names_the_row_and_its_columns(build, make_episodes):
    with pytest.raises(RewardError, match=r"'label'.*rows\.jsonl:1.*'grade', 'topic'"):
        build("my_rewards:matches").score(make_episodes("a", topic=["t"], grade=[1]))


def test_words_of_an_exception_stay_on_one_line(build, make_episodes):
    with pytest.raises(RewardError, match=r"my_rewards:speaks raised ValueError: one two \(at"):
        build("my_rewards:speaks").score(make_episodes("abc"))


def test_a_function_that_exits_does_not_end_the_run_as_if_it_were_done(build, make_episodes):
    with pytest.raises(RewardError, match=r"my_rewards:exits raised SystemExit: 0 \(at .*my_rewards\.py:"):
        build("my_rewards:exits").score(make_episodes("abc"))


def test_exception_names_function_error_and_line(build, make_episodes):
    line = MODULE.splitlines().index("    return [int(response) for response in responses]") + 1
    with pytest.raises(RewardError, match=rf"my_rewards:raises raised ValueError.*'abc'.*my_rewards\.py:{line}\)"):
        build("my_rewards:raises").score(make_episodes("abc"))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nothing", "my_rewards:nothing returned None, not a list of numbers"),
        ("not_a_number", "my_rewards:not_a_number returned nan"),
        ("too_few", r"my_rewards:too_few returned 1 score for 2 responses"),
        (
            "one_score",
            r"^my_rewards:one_score got lists of 2 texts as \(prompts, responses\) and returned 0\.5 "
            r"\(of type float\); expected a list of 2 numbers, one for each response, in order: return a list; or, to "
            r"score one at a time, take \(prompt, response\)$",
        ),
        (
            "list_for_one",
            r"^my_rewards:list_for_one got one text for each of \(prompt, response\) and returned \[1\.0\] "
            r"\(of type list\); expected one number: return a float; or, to score many at once, take "
            r"\(prompts, responses\) and return a list$",
        ),
        ("array_for_one", r"one text for each of \(response\) and returned array\(\[1\., 1\.\]\) \(of type ndarray\)"),
        (
            "nothing_for_one",
            r"one text for each of \(response\) and returned None; expected one number: return a float",
        ),
        (
            "row_for_each",
            r"row_for_each returned scores for 2 responses in which response 0 has the list \[1\.0\]; return",
        ),
    ],
)
def test_bad_scores_name_the_function(build, make_episodes, function, words):
    with pytest.raises(RewardError, match=words):
        build(f"my_rewards:{function}").score(make_episodes("a", "b"))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("no_such_module:length", "no module 'no_such_module'"),
        ("my_rewards.inner:length", "no module 'my_rewards.inner'"),
        ("my_rewards:lenght", "did you mean 'length'"),
        ("my_rewards:zzz", "its functions: Judge, NoJudge, Scorer, Unready, any_arguments"),
        ("my_rewards:constant", "of type float, not a function"),
        ("my_rewards:one_list", r"takes \(texts\); expected \(prompts, responses.*rename the one that is"),
        ("my_rewards:any_arguments", r"takes \(\*texts\); expected \(prompts, responses"),
        ("my_rewards:by_names_of_others", r"takes \(queries, outputs\); expected \(prompts, responses"),
        ("my_rewards:only_prompts", r"takes \(prompts, label\); expected .* none of these is called responses"),
        ("my_rewards:lists_and_one", r"takes \(prompts, response\); expected .* name all of them alike"),
        ("my_rewards:hidden", r"takes \(\*args, \*\*kwargs\); expected .*functools\.wraps"),
        ("my_rewards:stray_by_place", r"label has no name to be called by"),
        ("my_rewards:Unready", r"is a class that cannot be made without arguments \(missing .* 'path'"),
        ("my_rewards:NoJudge", "is a class without __call__"),
        ("my_rewards:scorer", "is of type Scorer, not a function; name its method, my_rewards:scorer.score$"),
        (
            "my_rewards:Scorer.score",
            r"needs an object; make one .* mine = Scorer\(\), and name my_rewards:mine\.score$",
        ),
        ("operator:eq", r"takes \(a, b, /\); expected"),
        ("__main__:no_such_function", r"the script that runs, .*, has no function 'no_such_function'.*command line"),
    ],
)
def test_a_name_that_cannot_be_used_is_a_config_error(build, function, words):
    with pytest.raises(ConfigError, match=words):
        build(function)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("broken_syntax", r"SyntaxError.*broken_syntax\.py:2"),
        ("broken_import", r"ModuleNotFoundError.*a_module_that_nobody_has.*broken_import\.py:2"),
        ("broken_body", r"ZeroDivisionError.*broken_body\.py:3"),
        ("broken_exit", r"SystemExit: 0 \(at .*broken_exit\.py:2"),
    ],
)
def test_a_module_that_fails_on_import_is_named_with_its_line(build, module, words):
    with pytest.raises(RewardError, match=words):
        build(f"{module}:f")


def test_what_a_function_switches_for_the_whole_process_is_put_back(build, make_episodes, tmp_path):
    reward = build("my_rewards:switches")
    try:
        assert reward.score(make_episodes("a", "bb")).tolist() == [1.0, 2.0]
        assert (Path.cwd(), torch.is_grad_enabled(), torch.get_default_dtype()) == (tmp_path, True, torch.float32)
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)


def test_what_a_module_switches_while_it_is_imported_is_put_back(build, tmp_path):
    (tmp_path / "broken_body.py").write_text(
        "import torch\ntorch.set_grad_enabled(False)\ndef score(responses):\n    return [1.0 for _ in responses]\n"
    )
    try:
        build("broken_body:score")
        assert torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
