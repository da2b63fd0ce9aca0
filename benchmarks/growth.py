"""How pages and reports grow with what they show: pairs and votes in the store, runs in the dashboard.

    python benchmarks/growth.py [--pairs 1000 10000 100000] [--runs 100 1000]

Fifty people have voted once on every pair, and three times on a tenth of them. Times of the store: one person's vote
with the next task, the queue, the report of agreement with and without reading the votes. Times of the dashboard: its
list of runs, asked for the first time and once more. Prints one JSON object last: times, and the exponent of growth
between the first and the last size, 1 being proportional.
"""

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from fastapi.testclient import TestClient

from rlhfkit.config.load import load_recipe
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.trust.compute import trust_report
from rlhfkit.feedback.votes import Choice, Pair, Vote
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.resume import prepare
from rlhfkit.web.app import create_app
from rlhfkit.web.dashboard import dashboard_router

PEOPLE = [f"person-{number}" for number in range(50)]
NUM_TIMED = 100
WORDS = ("the", "soup", "was", "warm", "and", "they", "brought", "it", "late", "again")


def seconds(act):
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def of_pairs(num, home):
    """Seconds of each thing that is asked of a store with so many pairs."""
    generator = random.Random(0)

    def text():
        return " ".join(generator.choices(WORDS, k=generator.randint(10, 40)))

    pairs = [Pair(f"pair-{i}", text(), text(), text(), is_calibration=i % 10 == 0) for i in range(num)]

    def vote(pair, person, number):
        choice = Choice("preference", generator.choice((-4, -3, -2, -1, 1, 2, 3, 4)))
        times = {"active_seconds": 5.0, "wall_seconds": 6.0, "created_at": float(number + 1)}
        return Vote(f"{pair.id}-{person}", pair.id, person, choice, generator.choice("ab"), **times)

    with Store.open(home / f"{num}.db") as store:
        found = {"adding pairs": seconds(lambda: store.add_pairs(pairs))}
        votes = [
            vote(pair, person, number)
            for number, pair in enumerate(pairs)
            for person in generator.sample(PEOPLE, 3 if pair.is_calibration else 1)
        ]
        found["adding votes"] = seconds(lambda: store.add_votes(votes))
        store.add_pairs([Pair(f"new-{i}", text(), text(), text()) for i in range(2 * NUM_TIMED)])
        waits = []
        for number in range(NUM_TIMED):
            person = PEOPLE[number % len(PEOPLE)]
            task = store.lease(person)
            new = vote(task.pair, person, num + number)
            waits.append(seconds(lambda new=new: store.vote_and_lease(new)))
        found["a vote"] = statistics.median(waits)
        found["the slowest of 20 votes"] = statistics.quantiles(waits, n=20)[-1]
        found["queue"] = seconds(store.queue)
        found["progress of one person"] = seconds(lambda: store.progress(PEOPLE[0]))
        found["report"] = seconds(lambda: trust_report(store.snapshot()))
        labels = store.snapshot()
        found["report, votes in memory"] = seconds(lambda: trust_report(labels))
    return found


def of_runs(num, home):
    """Seconds of the dashboard's list of so many runs."""
    loaded = load_recipe("demo", [])
    row = {"stage": "ppo", "seed": 0, **{f"metric-{i}": i / 7 for i in range(80)}}
    for number in range(num):
        run = RunDir(home / f"runs-{num}" / f"run-{number:04}")
        run.path.mkdir(parents=True)
        prepare(run, loaded, fresh=False)
        rows = (json.dumps({**row, "iteration": iteration}) for iteration in range(40))
        run.metrics.write_text("\n".join(rows) + "\n", encoding="utf-8")
        finished = {stage: {} for stage in loaded.recipe.stages if number % 2 or stage != "evaluate"}
        run.stages.write_text(json.dumps(finished), encoding="utf-8")
    client = TestClient(create_app(None, routers=[dashboard_router(home / f"runs-{num}")]), client=("127.0.0.1", 5))
    client.base_url = "http://127.0.0.1"

    def ask():
        answer = client.get("/api/dashboard/runs").raise_for_status().json()
        assert len(answer["runs"]) == num, f"{len(answer['runs'])} runs of {num}"

    return {"list of runs, first": seconds(ask), "list of runs": statistics.median(seconds(ask) for _ in range(5))}


def grown(tables):
    """{what: {size: seconds, …, "exponent": …}} of {size: {what: seconds}}."""
    (first, low), *_, (last, high) = tables.items()
    return {
        name: {
            **{str(size): round(table[name], 4) for size, table in tables.items()},
            "exponent": round(math.log(high[name] / low[name]) / math.log(last / first), 2),
        }
        for name in low
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000])
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, sizes, measure in (("pairs", args.pairs, of_pairs), ("runs", args.runs, of_runs)):
            tables = {}
            for size in sorted(sizes):
                tables[size] = measure(size, Path(directory))
                print(f"{size:,} {name}: {tables[size]}", file=sys.stderr, flush=True)
            if len(tables) > 1:
                results[name] = grown(tables)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
