"""The user who makes mistakes, at the real command line.

A mistake ends with exit code 1 and one line that says what is wrong and what to do. What can be known beforehand is
known before anything is written; what comes to light in a stage leaves a run that goes on once it is fixed.
: rewards."""

import socket
import sys

import pytest

from tests.bad_input.desk import (
    LETTERS,
    ONLY_PPO,
    RECIPE,
    Desk,
    Endpoint,
    jsonl,
)

TRIED = 'reward, tried on an empty response and on "Yes, that is fine.": '


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "raise ValueError('no\\nlines')",
            "rewarding:letters raised ValueError: no lines (at {here}/rewarding.py:2); c",
        ),
        ("return [1 / len(r) for r in responses]", "rewarding:letters raised ZeroDivisionError: division by zero (at"),
        ("return [float('nan')] * len(responses)", "rewarding:letters returned nan for response 0 ('') and 2 of 2 s"),
        ("return [1.0]", "rewarding:letters returned 1 score for 2 responses; return one float per response, in order"),
        (
            "return None",
            "rewarding:letters returned None, not a list of numbers (but NoneType); return one float per response",
        ),
        (
            "return sum(map(len, responses))",
            "rewarding:letters got lists of 2 texts as (prompts, responses) and returned 18 (of",
        ),
        (
            "return ['good'] * len(responses)",
            "rewarding:letters returned ['good', 'good'], not a list of numbers ('goo",
        ),
        ("raise SystemExit(0)", "rewarding:letters raised SystemExit: 0 (at {here}/rewarding.py:2); correct the func"),
    ],
)
def test_a_reward_function_is_tried_before_anything_is_trained(desk: Desk, body: str, words: str):
    desk.write("rewarding.py", f"def letters(prompts, responses):\n    {body}\n")
    assert desk.refused().startswith(TRIED + words.format(here=desk.path))


@pytest.mark.parametrize(
    ("function", "module", "words"),
    [
        (
            "rewardin:letters",
            "",
            "there is no module 'rewardin'; write `package.module:name`, importable from the w",
        ),
        ("rewarding:leters", LETTERS, "rewarding has no function 'leters'; did you mean 'letters'?"),
        ("rewarding:letters", "def letters(:\n", "importing its module raised SyntaxError"),
        (
            "rewarding:letters",
            "import nowhere_at_all\n",
            "raised ModuleNotFoundError: No module named 'nowhere_at_all' (",
        ),
        (
            "rewarding:letters",
            "import sys\nsys.exit()\n",
            "raised SystemExit (at {here}/rewarding.py:2); correct the module",
        ),
        ("rewarding:letters", "def letters(texts): ...\n", "takes (texts); expected (prompts, responses, …)"),
    ],
)
def test_a_reward_function_that_cannot_be_imported_is_named(desk: Desk, function: str, module: str, words: str):
    desk.write("rewarding.py", module)
    message = desk.refused(f"reward.function={function}")
    assert message.startswith(f"reward.function '{function}'")
    assert words.format(here=desk.path) in message


def test_a_column_that_a_reward_function_asks_for_must_be_in_all_rows(desk: Desk):
    desk.write("rewarding.py", "def letters(prompts, responses, label): return [1.0 for _ in label]\n")
    rows = [{"prompt": str(number), "label": "x"} for number in range(5)]
    desk.write("prompts.jsonl", jsonl(*rows, {"prompt": "5", "lable": "x"}))
    assert desk.refused(ONLY_PPO) == (
        "rewarding:letters asks for the column 'label', which the row prompts.jsonl:6 does not have; its columns: "
        "'lable'. Rename the parameter (prompts and responses are the lists of text), give it a default, or add the "
        "column"
    )
    desk.write("prompts.jsonl", jsonl(*rows))
    assert "the row test_prompts.jsonl:1 does not have" in desk.refused()


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (
            '{type="reward_model", path="./nowhere"}',
            'reward.path = "./nowhere": there is no such directory; fix the p',
        ),
        ('{type="reward_model", path="model"}', "'model' is a language model (LlamaForCausalLM), which scores nothing"),
        (
            '{type="mix", parts=[{source={type="function", function="rewarding:letters"}}, '
            '{source={type="reward_model", path="./nowhere"}}]}',
            'reward.parts[1].source.path = "./nowhere": there is no such directory; fix the path',
        ),
        (
            '{type="lexicon", path="words.txt"}',
            "words.txt:2: 'bad -1' is not `word TAB weight` with a finite weight; f",
        ),
        ('{type="lexicon", path="nowhere.txt"}', "cannot read the lexicon nowhere.txt (No such file or directory); se"),
        (
            '{type="bag_of_words", path="nowhere"}',
            "nowhere holds no bag of words (no bag_of_words.json with bag_of_wor",
        ),
        (
            '{type="grammar"}',
            "'Say one:' does not ask for a review; expected a prompt such as \"Review of the Blue Door",
        ),
        ('{type="http", url="http://"}', "reward.url = 'http://' names no host; expected https://host/path"),
        (
            '{type="http", url="http://x/", token_env="NOWHERE"}',
            "names the environment variable 'NOWHERE', which is no",
        ),
    ],
)
def test_a_reward_that_cannot_be_had_is_named(desk: Desk, reward: str, words: str):
    desk.write("words.txt", "good\t1\nbad -1\n")
    assert words in desk.refused(f"reward={reward}")


ANSWERED = jsonl({"prompt": "Say one:", "completion": " one"}, {"prompt": "Say two:", "completion": " two"})


@pytest.mark.parametrize("kind", ["match", "chrf"])
def test_a_reward_that_compares_needs_something_to_compare_with(desk: Desk, kind: str):
    assert desk.refused(ONLY_PPO, f'reward={{type="{kind}"}}') == (
        f'reward.type = "{kind}" compares with the right response, and the row prompts.jsonl:1 gives none (2 of 2 '
        'rows); add a column "completion", or name yours as in columns = {completion = "label"}'
    )
    mixed = f'reward={{type="mix", parts=[{{source={{type="{kind}"}}}}]}}'
    assert f'reward.type = "{kind}" compares with the right response' in desk.refused(ONLY_PPO, mixed)
    desk.write("prompts.jsonl", ANSWERED)
    assert "the row test_prompts.jsonl:1 gives none (2 of 4 rows)" in desk.refused(f'reward={{type="{kind}"}}')


def test_a_row_without_the_answer_is_found_before_anything_is_trained(desk: Desk):
    desk.write("prompts.jsonl", jsonl({"prompt": "1 + 1 = ", "sum": 2}, {"prompt": "1 + 2 = ", "sum": "three"}))
    assert desk.refused(ONLY_PPO, 'reward={type="answer", column="sum"}') == (
        "reward.type = \"answer\": the right answer of the row prompts.jsonl:2 is 'three'; expected a number: correct "
        "the row, or set reward.kind, reward.after or reward.extract to fit"
    )
    assert "reads the column 'total', which in the row prompts.jsonl:1 is None" in desk.refused(
        ONLY_PPO, 'reward={type="answer", column="total"}'
    )


@pytest.mark.parametrize("metric", ["classification", "translation"])
def test_a_metric_needs_something_to_compare_with(desk: Desk, metric: str):
    assert desk.refused(f"evaluation.metric={metric}") == (
        f'evaluation.metric = "{metric}" compares with the right response, and the row test_prompts.jsonl:1 gives none '
        '(2 of 2 rows); add a column "completion", or name yours as in columns = {completion = "label"}'
    )


def test_answers_of_the_test_rows_are_read_before_anything_is_trained(desk: Desk):
    desk.write("prompts.jsonl", jsonl({"prompt": "1 + 1 = ", "sum": 2}, {"prompt": "1 + 2 = ", "sum": 3}))
    desk.write("test_prompts.jsonl", jsonl({"prompt": "1 + 3 = ", "sum": 4}, {"prompt": "2 + 2 = ", "sum": "four"}))
    settings = ('stages=["ppo", "evaluate"]', 'reward={type="answer", column="sum"}', "evaluation.metric=answer")
    assert "the right answer of the row test_prompts.jsonl:2 is 'four'; expected a number" in desk.refused(*settings)
    other = ('stages=["ppo", "evaluate"]', 'reward={type="length"}', "evaluation.metric=answer")
    assert 'reads answers as reward.type = "answer" does, and the reward is "length"; set that' in desk.refused(*other)


@pytest.mark.parametrize(
    ("overrides", "wanted_by"),
    [
        ((ONLY_PPO, 'reward={type="chrf"}'), 'reward.type = "chrf"'),
        (("evaluation.metric=translation",), 'evaluation.metric = "translation"'),
    ],
)
def test_without_sacrebleu_the_install_line_is_shown(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], wanted_by: str
):
    desk.write("prompts.jsonl", ANSWERED)
    desk.write("test_prompts.jsonl", ANSWERED)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    assert desk.refused(*overrides) == (
        f"{wanted_by} needs sacrebleu, which is not installed; pip install 'rlhfkit[translation]'"
    )


@pytest.mark.parametrize("place", ["run/reward_model", "./run/../run/reward_model", "link/reward_model"])
def test_the_reward_model_that_the_run_will_make_is_no_independent_judge_of_it(desk: Desk, place: str):
    (desk.path / "link").symlink_to(desk.run_dir)
    stages = 'stages=["sft", "reward_model", "ppo", "evaluate"]'
    judge = f'evaluation.judge={{type="reward_model", path="{place}"}}'
    message = desk.refused(stages, 'reward={type="reward_model"}', judge)
    assert message.endswith(
        "evaluation.judge is what PPO maximises (reward), so it cannot be independent; name another judge"
    )


def test_the_judge_that_the_run_will_make_is_no_judge_where_ppo_maximises_it(desk: Desk):
    code, _, message = desk.run(
        'stages=["sft", "judge", "ppo", "evaluate"]',
        'judge.type="reward_model"',
        'reward={type="mix", parts=[{weight=1.0, source={type="reward_model", path="run/judge"}}]}',
    )
    assert code == 1 and "evaluation.judge is what PPO maximises (reward.parts[0].source)" in message
    assert not desk.run_dir.exists()


def test_the_judge_is_checked_too(desk: Desk):
    judge = 'evaluation.judge={type="reward_model", path="./nowhere"}'
    assert 'evaluation.judge.path = "./nowhere": there is no such directory' in desk.refused(judge)
    desk.write("judging.py", LETTERS.replace("float", "str"))
    judge = 'evaluation.judge={type="function", function="judging:letters"}'
    assert desk.refused(judge).startswith("evaluation.judge, tried on an empty response")
    judge = 'evaluation.judge={type="lexicon", path="nowhere.txt"}'
    assert desk.refused(judge).startswith("evaluation.judge: cannot read the lexicon nowhere.txt")


def test_simulated_people_judge_synthetic_reviews_only(desk: Desk):
    stages = 'stages=["sft", "preferences", "reward_model", "judge", "ppo", "evaluate"]'
    assert 'the stage "preferences" makes what data.preferences would read; leave one of the two' in desk.refused(
        stages
    )
    desk.write("recipe.toml", RECIPE.replace('\npreferences = { path = "preferences.jsonl" }', ""))
    message = desk.refused(stages)
    assert message.startswith("preferences, tried on")
    assert "does not ask for a review" in message


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (
            500,
            b"oops",
            "answered 500 Internal Server Error: 'oops' at the last of 2 attempts in 0 s; see that the endpoint runs",
        ),
        (404, b"what?", "answered 404 Not Found: 'what?'; fix the request or the endpoint"),
        (200, b"<html>", "answered something that is not JSON: '<html>'; expected {\"scores\": […]}"),
        (200, b'{"scores": [1.0]}', "returned 1 score for 2 responses; return one float per response, in order"),
    ],
)
def test_an_endpoint_is_asked_before_anything_is_trained(
    desk: Desk, endpoint: Endpoint, status: int, content: bytes, words: str
):
    endpoint.status, endpoint.content = status, content
    assert desk.refused(endpoint.reward()).startswith(f"{TRIED}{endpoint.url} {words}")


def test_an_endpoint_that_hangs_is_left(desk: Desk, endpoint: Endpoint):
    endpoint.seconds = 0.5
    message = desk.refused(endpoint.reward(timeout_seconds=0.1, retries=0))
    assert (
        "gave no answer (ReadTimeout: timed out) at the last of 1 attempts in 0 s; see that the endpoint runs"
        in message
    )


def test_an_endpoint_that_refuses_connections_is_named(desk: Desk, endpoint: Endpoint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    message = desk.refused(endpoint.reward(retries=0).replace(endpoint.url, f"http://127.0.0.1:{port}/"))
    assert f"http://127.0.0.1:{port}/ gave no answer (ConnectError: " in message
