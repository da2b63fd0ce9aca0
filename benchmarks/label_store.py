"""Milliseconds of `lease` and `vote` with many annotators at once, and whether the queue holds what it promises.

    python benchmarks/label_store.py [--database postgresql://…] [--annotators 50] [--pairs 10000] [--votes 3000]

Every annotator is a thread that leases, thinks for a random time about `--think` seconds, and votes. The times include
waiting for the turn of the others. Prints one JSON object.
"""

import argparse
import collections
import json
import random
import tempfile
import threading
import time
import uuid

from rlhfkit.feedback.states import StoreSettings
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Choice, Pair, Vote


def quantiles(seconds):
    ordered = sorted(seconds)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(1000 * ordered[int(share * (len(ordered) - 1))], 2) for name, share in shares.items()}


def label(store, name, args, times, lock, left):
    generator = random.Random(name)
    while True:
        with lock:
            if left[0] <= 0:
                return
            left[0] -= 1
        began = time.perf_counter()
        task = store.lease(name)
        times["lease"].append(time.perf_counter() - began)
        if task is None:
            return
        time.sleep(generator.expovariate(1 / args.think) if args.think else 0)
        choice = Choice("preference", generator.choice((-4, -3, -2, -1, 1, 2, 3, 4)))
        vote = Vote(str(uuid.uuid4()), task.pair.id, name, choice, task.shown_left, args.think, args.think)
        began = time.perf_counter()
        store.vote(vote)
        times["vote"].append(time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", help="default: an SQLite file in a temporary directory")
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--votes", type=int, default=3_000)
    parser.add_argument("--overlap", type=int, default=2)
    parser.add_argument("--think", type=float, default=1.0, help="mean seconds between a task and its vote")
    args = parser.parse_args()
    times = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        database = args.database or f"{directory}/labels.db"
        with Store.open(database, settings=StoreSettings(overlap=args.overlap)) as store:
            text = "An answer of some length. " * 40
            began = time.perf_counter()
            store.add_pairs(
                Pair(f"pair-{index}", f"Prompt {index}", text, text[::-1], is_calibration=index % 7 == 0)
                for index in range(args.pairs)
            )
            add_seconds = time.perf_counter() - began
            lock, left = threading.Lock(), [args.votes]
            threads = [
                threading.Thread(target=label, args=(store, f"annotator-{index}", args, times, lock, left))
                for index in range(args.annotators)
            ]
            began = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wall = time.perf_counter() - began
            votes = store.votes()
            beyond = collections.Counter(vote.pair_id for vote in votes if not vote.is_surplus)
            result = {
                "add_seconds": round(add_seconds, 2),
                "votes_per_second": round(len(times["vote"]) / wall, 1),
                "lease_ms": quantiles(times["lease"]),
                "vote_ms": quantiles(times["vote"]),
                "num_votes": len(votes),
                "num_surplus": sum(vote.is_surplus for vote in votes),
                "largest_count": max(beyond.values()),
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
