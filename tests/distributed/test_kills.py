"""Whatever happens to a rank at whatever moment: all end within a minute, one message says why, and the run goes on.

Each test prints how long the last process took to end.
"""

import json
import random
import signal
import time
from functools import partial

import pytest

from tests import killing
from tests.distributed.launched import launched
from tests.killing import HALF_TENSORS, differences, results

pytestmark = pytest.mark.thorough

MOST_SECONDS = 60
CHECKPOINT = r".*/checkpoints.*"
MOMENTS = {
    "sft": [(0, HALF_TENSORS, 3), (0, rf"os.rename {CHECKPOINT}/sft/\.0.*/\.SHA256SUMS.*", 2)],
    "reward_model": [(0, HALF_TENSORS, 4), (0, rf"os.rmdir {CHECKPOINT}/reward_model/0.*", 1)],
    "ppo": [
        (0, HALF_TENSORS, 3),
        (0, rf"os.rename {CHECKPOINT}/ppo/\.0\w+\.\w+ .*", 2),
        (0, r"os.rename .*/\.policy\.\w+ .*", 1),
    ],
}
"""Where the rank that writes is killed."""
PARTED_MOMENTS = {
    "sft": [(1, HALF_TENSORS, 2), (0, rf"os.rename {CHECKPOINT}/sft/\.0.*rows.*/tensors-1\S* .*", 2)],
    "reward_model": [(1, HALF_TENSORS, 3), (0, HALF_TENSORS, 2)],
    "ppo": [
        (1, rf"os.rename {CHECKPOINT}/ppo/\.0.*rows.*/\.tensors-1\S* .*", 2),
        (1, HALF_TENSORS, 2),
    ],
}
"""The same where each rank writes the rows that it has, and the first one collects them."""
NUM_KILLS = {"sft": 6, "reward_model": 6, "ppo": 8}
"""Of a rank at a moment that nobody chose, in the slow tests; in the others one each."""


def check_end(ended, rank, words="was killed by SIGKILL"):
    assert ended.code == 137, ended.said
    assert len(ended.errors) == 1 and f"error: rank {rank} of 2 (host " in ended.errors[0], ended.said
    assert words in ended.errors[0]
    assert "Traceback" not in ended.said
    assert ended.seconds is None or ended.seconds < MOST_SECONDS


def undisturbed(name, tmp_path, *overrides):
    killing.start(name, tmp_path / "first").join()  # the fork server has all loaded after it
    start = time.monotonic()
    ended = launched(name, tmp_path / "whole", *overrides)
    assert ended.code == 0, ended.said
    return tmp_path / "whole", time.monotonic() - start


@pytest.mark.timeout(900)
@pytest.mark.parametrize("shard", ["none", pytest.param("fsdp", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "num_more"),
    [
        *(pytest.param(name, 1, marks=() if name == "ppo" else pytest.mark.slow) for name in NUM_KILLS),
        *(pytest.param(name, num, marks=pytest.mark.slow) for name, num in NUM_KILLS.items()),
    ],
)
def test_any_rank_may_be_killed_at_any_moment_and_the_run_ends_with_the_same_bits(name, num_more, shard, tmp_path):
    shared = f"parallel.shard={shard}"
    whole, seconds = undisturbed(name, tmp_path, shared)
    assert results(whole)["metrics.jsonl"]
    killed, took = tmp_path / "killed", []
    moments = PARTED_MOMENTS[name] if shard == "fsdp" else MOMENTS[name]
    for rank, pattern, number in moments:
        ended = launched(name, killed, shared, harm=("kill", rank, pattern, number))
        check_end(ended, rank)
        took += [ended.seconds] if ended.seconds else []
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    while len(took) < len(moments) + num_more:
        rank, after = chance.randrange(2), chance.uniform(0.05, 0.7) * seconds
        print(f"{name}, seed {seed}: rank {rank} is killed after {after:.2f} s of {seconds:.2f} s")
        ended = launched(name, killed, shared, hurt=(signal.SIGKILL, rank, after))
        if ended.seconds is None:
            assert ended.code == 0, ended.said
            assert differences(killed, whole) == []
            killed = tmp_path / f"killed-{len(took)}"
        elif ended.code:
            check_end(ended, rank)
            took.append(ended.seconds)
    if killed.exists():
        ended = launched(name, killed, shared)
        assert ended.code == 0, ended.said
        assert differences(killed, whole) == []
    print(f"{name}: the last process ended {sorted(round(each, 2) for each in took)} s after the kill")


def begun(directory, stage="ppo"):
    """Wait until a stage has logged something."""
    while not (directory / "metrics.jsonl").exists() or f'"{stage}"' not in (directory / "metrics.jsonl").read_text():
        time.sleep(0.05)


LONG = "ppo.iterations=10000"


@pytest.mark.slow  # nobody says what is wrong before the time limits of the collectives
@pytest.mark.parametrize("shard", ["none", "fsdp"])
def test_a_rank_that_hangs_is_named_by_the_others(shard, tmp_path):
    def stop(ranks):
        begun(tmp_path / "run")
        ranks[0].send_signal(signal.SIGSTOP)

    ended = launched("ppo", tmp_path / "run", LONG, f"parallel.shard={shard}", hurt=stop)
    print(f"the last process ended {ended.seconds:.1f} s after SIGSTOP")
    assert ended.code == 1 and ended.seconds < MOST_SECONDS
    assert len(ended.errors) == 1
    assert "error: rank 0 of 2 (host " in ended.errors[0] and "has given no sign of life for 3" in ended.errors[0]


@pytest.mark.parametrize(
    ("what", "rank", "words"),
    [
        ("raise", 1, "in phase ppo / update: ZeroDivisionError: division by zero"),
        ("memory", 1, "out of memory in update of the stage ppo (cannot allocate 3 GiB); ppo.microbatch_tokens"),
        ("memory", 0, "out of memory in update of the stage ppo (cannot allocate 3 GiB); ppo.microbatch_tokens"),
    ],
)
def test_a_rank_that_fails_says_why_and_what_to_lower(what, rank, words, tmp_path):
    ended = launched("ppo", tmp_path / "run", harm=(what, rank, "", 3))
    assert ended.code == 1, ended.said
    print(f"the last process ended {ended.seconds:.1f} s after the error")
    assert ended.seconds < MOST_SECONDS
    assert len(ended.errors) == 1 and f"error: rank {rank} of 2 (host " in ended.errors[0], ended.said
    assert words in ended.errors[0]


def rows(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def test_all_ranks_pause_alike(tmp_path):
    whole, _ = undisturbed("ppo", tmp_path)
    for _ in range(2):
        ended = launched("ppo", tmp_path / "paused", "--until", "1")
        assert ended.code == 0, ended.said
        assert ended.said.count("; to go on: ") == 1 and "Traceback" not in ended.said
        assert len([row for row in rows(tmp_path / "paused") if row["stage"] == "ppo"]) == 1
    assert launched("ppo", tmp_path / "paused").code == 0
    assert differences(tmp_path / "paused", whole) == []


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    """From the very state that was saved; what follows differs in the last digits."""
    whole, _ = undisturbed("ppo", tmp_path)
    directory = tmp_path / "changing"
    kept = []

    def interrupt(done, ranks):
        while not (directory / "metrics.jsonl").exists() or len(rows(directory)) < done + 1:
            time.sleep(0.02)
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)

    for num in (1, 2, 3):
        ended = launched("ppo", directory, num=num, hurt=partial(interrupt, len(kept)))
        assert ended.code == 130, ended.said
        assert ended.said.count("stopped; to go on from the last checkpoint: ") == 1
        assert rows(directory)[: len(kept)] == kept
        kept = rows(directory)
    assert launched("ppo", directory, num=1).code == 0
    found = rows(directory)
    assert found[: len(kept)] == kept and len(kept) < len(found)
    for line, expected in zip(found, rows(whole), strict=True):
        names = [name for name, value in expected.items() if isinstance(value, int | float)]
        assert line.keys() == expected.keys()
        for name in names:
            assert line[name] == pytest.approx(expected[name], rel=1e-2, abs=1e-3), name
