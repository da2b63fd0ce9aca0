"""How long a request to the labelling page takes, with many people at once.

    python benchmarks/label_server.py [--annotators 50] [--pairs 10000] [--seconds 20] [--think 1.0] [--database URL]

A server process with the store (SQLite in a temporary directory unless a database is given), and this process, whose
annotators each ask for a task, think for a random time around `--think` seconds (0: none, for the most that the server
can take), and vote. One vote in twenty is taken back, one in ten sent twice, and a heartbeat comes with every fifth.
Checks that no vote was lost and that no pair got more votes than it needs. Prints one JSON object.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import httpx

from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Pair

SERVER = """
import sys
from rlhfkit.web.app import create_app
from rlhfkit.web.server import serve
from rlhfkit.feedback.store import Store
with Store.open(sys.argv[1]) as store:
    serve(create_app(store), port=0, on_ready=lambda address: print(address.url, flush=True))
"""


def fill(database, num_pairs, num_annotators):
    words = "word " * 120
    with Store.open(database) as store:
        store.add_pairs(
            Pair(f"pair-{n}", f"Prompt {n} {words}", f"A {n} {words}", f"B {n} {words}") for n in range(num_pairs)
        )
        return [store.add_annotator(f"person {n}") for n in range(num_annotators)]


async def annotate(client, token, think, until, generator, times, acknowledged):
    async def post(path, body):
        begin = time.perf_counter()
        response = await client.post(path, json=body)
        times.setdefault(path.removeprefix("/api/"), []).append(1000 * (time.perf_counter() - begin))
        return response.raise_for_status().json()

    await asyncio.sleep(generator.uniform(0, think))
    await client.get("/", params={"token": token})
    task = (await post("/api/task", {}))["task"]
    while task and time.monotonic() < until:
        await asyncio.sleep(generator.uniform(0.5, 1.5) * think)
        if generator.random() < 0.2:
            await post("/api/heartbeat", {"pair_id": task["pair_id"]})
        vote = {
            "id": str(uuid.UUID(int=generator.getrandbits(128))),
            "pair_id": task["pair_id"],
            "choice": "preference",
            "side": generator.choice(("left", "right")),
            "degree": generator.randint(1, 4),
            "active_seconds": think,
            "wall_seconds": think,
        }
        for _ in range(2 if generator.random() < 0.1 else 1):
            answer = await post("/api/vote", vote)
        acknowledged.add(vote["id"])
        if generator.random() < 0.05:
            answer = await post("/api/undo", {"id": str(uuid.UUID(int=generator.getrandbits(128)))})
            acknowledged.discard(vote["id"])
        task = answer["task"]


async def annotate_all(url, tokens, args):
    times, acknowledged = {}, set()
    # Made beforehand, without certificates to read: what a client costs is not the server's time.
    options = {"base_url": url, "headers": {"X-Rlhfkit": "1"}, "timeout": 60, "verify": False}
    clients = [httpx.AsyncClient(**options) for _ in tokens]
    until = time.monotonic() + args.seconds
    people = [
        annotate(client, token, args.think, until, random.Random(seed), times, acknowledged)
        for seed, (client, token) in enumerate(zip(clients, tokens, strict=True))
    ]
    await asyncio.gather(*people)
    await asyncio.gather(*(client.aclose() for client in clients))
    return times, acknowledged


def percentile(values, share):
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--think", type=float, default=1.0)
    parser.add_argument("--database", default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        database = args.database or str(Path(directory) / "votes.db")
        tokens = fill(database, args.pairs, args.annotators)
        server = subprocess.Popen([sys.executable, "-c", SERVER, database], stdout=subprocess.PIPE, text=True)
        try:
            url = server.stdout.readline().strip()
            begin = time.monotonic()
            times, acknowledged = asyncio.run(annotate_all(url, tokens, args))
            seconds = time.monotonic() - begin
        finally:
            server.terminate()
            server.wait()
        with Store.open(database) as store:
            votes = store.votes()
        voted = [vote.pair_id for vote in votes]
    every = [value for values in times.values() for value in values]
    print(
        json.dumps(
            {
                "annotators": args.annotators,
                "pairs": args.pairs,
                "think_seconds": args.think,
                "requests": len(every),
                "requests_per_second": round(len(every) / seconds, 1),
                "p50_ms": percentile(every, 0.5),
                "p95_ms": percentile(every, 0.95),
                "p99_ms": percentile(every, 0.99),
                "p95_ms_by_request": {name: percentile(values, 0.95) for name, values in sorted(times.items())},
                "votes": len(votes),
                "lost_votes": len(acknowledged - {vote.id for vote in votes}),
                "pairs_with_too_many_votes": len(voted) - len(set(voted)),
                "load": round(os.getloadavg()[0], 1),
                "cores": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
