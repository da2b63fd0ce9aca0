"""How far samplers on a cluster go: a simulation of events around the real pool, with a clock of its own.

    python benchmarks/cluster_simulation.py [--latencies FILE] [--dry-run] [--out docs/cluster_simulation.svg]

The pool and its schedule are those of a run; samplers, network, trainers and their clock are simulated, so that a day
takes seconds. `pool` is the measured CPU time of that code. Two kinds of work:

  6m   on a core each: chunks by the times that benchmarks/cluster_latencies.py recorded, weights of 23 MB, 10 Gbit/s
  7B   on a GPU each, eight a machine: 10 ms a step, weights of 15 GB, 200 Gbit/s out of the trainer's machine

A response has a log-normal length (sigma 1). Each machine pulls an iteration's weights once, out of the first trainer's
network, one after the other. Prints tables, draws a picture, and prints one JSON object last.
"""

import argparse
import heapq
import itertools
import json
import random
import statistics
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np

from rlhfkit.launch.pool import Answer, Pool

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

ROWS = 32
TRAIN_SHARE = 0.5
"""What a trainer takes to learn from a row, beside what a sampler takes to sample it."""
POLL_SECONDS = 5.0
"""A run's pool looks more often, where nothing comes."""
UPDATES = 4
"""Of an iteration; at each, trainers add up their gradients."""


@dataclass(frozen=True)
class Work:
    name: str
    step_seconds: float  # of a token of the longest row
    token_seconds: float  # of each token of any row
    mean_tokens: int
    most_tokens: int
    weight_bytes: float
    gradient_bytes: float
    network: float  # bytes a second out of a machine
    put: float = 4e9  # bytes a second into the store of the trainer's machine
    samplers_a_machine: int = 1
    build_seconds: float = 3.0
    call_seconds: float = 0.002  # of the pool's thread, for a chunk: Ray's part
    latency: float = 0.001  # one way
    bytes_a_token: float = 12.0


SMALL = Work("6m", 0.0083, 0.00051, 64, 512, 23e6, 23e6, 1.25e9)
LARGE = Work("7B", 0.010, 0.00002, 512, 4096, 15.2e9, 30.4e9, 25e9, samplers_a_machine=8, build_seconds=60.0)


@dataclass(frozen=True)
class Faults:
    losses_an_hour: float = 0.0  # of each sampler
    slow_share: float = 0.0
    slow_factor: float = 10.0
    late_share: float = 0.0
    late_seconds: float = 30.0
    noticed_seconds: float = 5.0
    restart_seconds: float = 20.0


@dataclass(frozen=True)
class Piece:
    """A chunk: whose it is, and how long its responses will be."""

    iteration: int
    place: int
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Result:
    of: tuple[int, int]
    num_units: int
    seconds: float
    host: str = "node"
    pid: int = 1


class Meter:
    """CPU seconds of this thread by what it is doing."""

    def __init__(self):
        self.seconds = Counter()
        self._doing, self._since = "simulation", time.thread_time()

    @contextmanager
    def of(self, what):
        before = self._switch(what)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, what):
        now, before = time.thread_time(), self._doing
        self.seconds[before] += now - self._since
        self._doing, self._since = what, now
        return before


class Simulation:
    """Samplers, network and trainers; the pool reaches them as it reaches Ray's."""

    def __init__(self, work, num, *, chunks, trainers, staleness, faults=None, iterations=None, seed=0):
        self.work, self.faults, self.staleness = work, faults or Faults(), staleness
        self.iterations = iterations or max(4, min(24, 256 // chunks))
        self.chunks, self.seed, self.random, self.now = chunks, seed, random.Random(seed), 0.0
        self.names = [f"sampler-{place}" for place in range(num)]
        num_late = round(self.faults.late_share * num)
        self.late = set(self.names[num - num_late :])
        self.slow = set(self.random.sample(self.names, round(self.faults.slow_share * num)))
        self.machine = {name: place // work.samplers_a_machine for place, name in enumerate(self.names)}
        self.train_seconds = self._train_seconds(trainers)
        self.meter, self.count, self.marks = Meter(), Counter(), []
        self._events, self._numbers = [], itertools.count()
        self._lives, self._built, self._up_at = Counter(), set(), {}
        self._pulled, self._network_free = {}, 0.0
        self._steps, self._job, self._is_over = self._trainer(), None, False
        self._begun = self._last = 0.0
        self.pool = Pool(self, slow_factor=3.0, clock=lambda: self.now)

    def run(self):
        """What came of it, an iteration, once all samplers were built."""
        self._further()
        with self.meter.of("pool"):
            while not self._is_over:
                if self._job is not None and self._job.is_done:
                    with self.meter.of("simulation"):
                        self._further()
                else:
                    self.pool.turn(POLL_SECONDS)
        return self._report()

    def _further(self):
        """Let the trainer go on to where it needs time, or waits for a job."""
        waits_for = next(self._steps, None)
        self._is_over, self._job = waits_for is None, None
        if isinstance(waits_for, float):
            self._push(self.now + waits_for, None)
        else:
            self._job = waits_for

    def _trainer(self):
        """Yields seconds that it takes, or the job that it waits for."""
        ahead = None
        for iteration in range(self.iterations):
            if ahead is None:
                yield self._publish_seconds()
                ahead = self._begin(iteration)
            yield ahead
            found = ahead.wait()
            assert [result.of for result in found] == [(iteration, place) for place in range(self.chunks)]
            self._mark(sampling=self._last - self._begun)
            ahead = None
            if self.staleness and iteration + 1 < self.iterations:
                yield self._publish_seconds()
                ahead = self._begin(iteration + 1)
            yield self.train_seconds

    def _begin(self, iteration):
        self._begun = self.now
        pieces = [Piece(iteration, place, tuple(row)) for place, row in enumerate(self._lengths(iteration))]
        with self.meter.of("pool"):
            return self.pool.begin(pieces, iteration=iteration, on_result=self._on_result)

    def _on_result(self, place, result):
        self._last = self.now

    def _publish_seconds(self):
        return self.work.weight_bytes / self.work.put

    def _train_seconds(self, trainers):
        work = self.work
        of_row = (work.step_seconds * 3 / ROWS + work.token_seconds) * work.mean_tokens  # the longest is 3 means or so
        summed = 0.0 if trainers == 1 else UPDATES * 2 * work.gradient_bytes / work.network
        return float(TRAIN_SHARE * of_row * ROWS * self.chunks / trainers + summed)

    def _lengths(self, iteration):
        """Those of each chunk's rows; losses do not change them."""
        draws = np.random.default_rng([self.seed, iteration]).lognormal(-0.5, 1.0, (self.chunks, ROWS))  # of mean 1
        return np.clip(np.rint(self.work.mean_tokens * draws), 1, self.work.most_tokens).astype(int).tolist()

    # ── as the pool sees it ──────────────────────────────────────────────────────────────────────────────────────────

    def members(self):
        return [name for name in self.names if name not in self.late or self.now >= self.faults.late_seconds]

    def give(self, worker, ticket, piece):
        with self.meter.of("simulation"):
            self.now += self.work.call_seconds / 2
            life = self._lives[worker]
            if self.now < self._up_at.get(worker, 0.0):
                return self._push(self.now + 0.1, Answer(worker, ticket, error=OSError("not up"), is_loss=True), life)
            start = self.now + self.work.latency
            ready = max(start, self._pull(worker, piece.iteration, start))
            if worker not in self._built:
                ready += self.work.build_seconds
            seconds = self._seconds_of(piece) * (self.faults.slow_factor if worker in self.slow else 1.0)
            rate = self.faults.losses_an_hour / 3600
            lives = self.random.expovariate(rate) if rate else float("inf")
            if lives < ready + seconds - start:
                noticed = start + lives + self.faults.noticed_seconds
                self._built.discard(worker)
                self._up_at[worker] = noticed + self.faults.restart_seconds
                self.count["losses"] += 1
                return self._push(noticed, Answer(worker, ticket, error=OSError("gone"), is_loss=True), life)
            self._built.add(worker)
            tokens = sum(piece.lengths)
            self.count["busy"] += seconds
            self.count["tokens"] += tokens
            result = Result((piece.iteration, piece.place), tokens, seconds)
            self._push(ready + seconds + self.work.latency, Answer(worker, ticket, result), life)

    def answers(self, seconds):
        with self.meter.of("simulation"):
            until = self.now + seconds
            if not self.pool.jobs and self._events:
                until = max(until, self._events[0][0])  # nothing to look for before it
            while self._events and self._events[0][0] <= until:
                at, _, what, life = heapq.heappop(self._events)
                self.now = max(self.now, at)
                if what is None:
                    self._further()
                    if self._is_over or (self._job is not None and self._job.is_done):
                        return []
                elif life == self._lives[what.worker]:
                    self.now += self.work.call_seconds / 2
                    self.count["answers"] += 1
                    return [what]
            self.now = max(self.now, until)
            return []

    def restart(self, worker):
        self._lives[worker] += 1
        self._built.discard(worker)
        self._up_at[worker] = self.now + self.faults.restart_seconds
        self.count["restarts"] += 1

    def publish(self, table):
        pass

    def _push(self, at, what, life=0):
        heapq.heappush(self._events, (at, next(self._numbers), what, life))

    def _pull(self, worker, version, now):
        """When a sampler's machine has the weights."""
        key = self.machine[worker], version
        if key not in self._pulled:
            begin = max(now, self._network_free)
            self._network_free = self._pulled[key] = begin + self.work.weight_bytes / self.work.network
            self.count["weight_bytes"] += self.work.weight_bytes
        return self._pulled[key]

    def _seconds_of(self, piece):
        return self.work.step_seconds * max(piece.lengths) + self.work.token_seconds * sum(piece.lengths)

    # ── what came of it ──────────────────────────────────────────────────────────────────────────────────────────────

    def _mark(self, *, sampling):
        self.marks.append((self.now, sampling, self.meter.seconds["pool"], Counter(self.count)))

    def _report(self):
        (start, _, cpu, before), (end, _, cpu_after, after) = self.marks[1], self.marks[-1]
        num = len(self.marks) - 2
        of = Counter(after)
        of.subtract(before)
        seconds = (end - start) / num
        sampling = statistics.mean(taken for _, taken, _, _ in self.marks[2:])
        return {
            "work": self.work.name,
            "samplers": len(self.names),
            "chunks": self.chunks,
            "staleness": self.staleness,
            "iteration_seconds": seconds,
            "train_seconds": self.train_seconds,
            "waits": max(0.0, 1 - self.train_seconds / seconds),
            "sampling_seconds": sampling,
            "tokens_a_second": of["tokens"] / num / sampling,
            "busy": of["busy"] / (end - start) / len(self.names),
            "pool_seconds": (cpu_after - cpu) / num,
            "call_seconds": of["answers"] / num * self.work.call_seconds,
            "weight_bytes": of["weight_bytes"] / num,
            "network_seconds": of["weight_bytes"] / num / self.work.network,
            "response_bytes": of["tokens"] / num * self.work.bytes_a_token,
            "second_answers": self.pool.num_dropped,
            "losses": after["losses"],
            "restarts": after["restarts"],
        }


# ── what is asked of it ──────────────────────────────────────────────────────────────────────────────────────────────

COLUMNS = {
    "work": "{}",
    "samplers": "{}",
    "trainers": "{}",
    "staleness": "{}",
    "chunks": "{}",
    "iteration_seconds": "{:.1f}",
    "sampling_seconds": "{:.1f}",
    "network_seconds": "{:.2f}",
    "pool_seconds": "{:.3f}",
    "call_seconds": "{:.2f}",
    "waits": "{:.0%}",
    "busy": "{:.0%}",
}


def simulated(work, num, *, trainers, **given):
    return {"trainers": trainers, **Simulation(work, num, trainers=trainers, **given).run()}


def weak(works, nums, *, chunks_each=4):
    """As many chunks for each sampler, however many there are; a trainer for every four."""
    return [
        simulated(work, num, chunks=chunks_each * num, trainers=max(1, num // 4), staleness=0)
        for work in works
        for num in nums
    ]


def strong(works, nums, all_trainers, *, chunks):
    """The same chunks for all."""
    return [
        simulated(work, num, chunks=chunks, trainers=trainers, staleness=staleness)
        for work in works
        for trainers in all_trainers
        for staleness in (0, 1)
        for num in nums
    ]


def with_faults(work, num, *, trainers, iterations):
    """What goes wrong, and how much longer an iteration takes for it."""
    cases = {
        "nothing": Faults(),
        "each sampler is lost every hour": Faults(losses_an_hour=1),
        "each sampler is lost every 10 minutes": Faults(losses_an_hour=6),
        "5 % of the samplers are 10 times as slow": Faults(slow_share=0.05),
        "half of the samplers join after 15 minutes": Faults(late_share=0.5, late_seconds=900.0),
    }
    return [
        {"case": case, **simulated(work, num, chunks=4 * num, trainers=trainers, iterations=iterations, **given)}
        for case, faults in cases.items()
        for given in ({"faults": faults, "staleness": 0}, {"faults": faults, "staleness": 1})
    ]


def in_advance(work, num, latencies):
    """Latency each way → share of an iteration that samplers spend waiting for their next chunk, beside latency 0.

    As much, at most, as a chunk in advance for each sampler could bring.
    """

    def sampling(latency):
        row = simulated(replace(work, latency=latency), num, chunks=16 * num, trainers=1, staleness=0, iterations=4)
        return row["sampling_seconds"]

    without = sampling(0.0)
    return {latency: max(0.0, 1 - without / sampling(latency)) for latency in latencies}


def breaks_at(rows):
    """Samplers at which the network, or the pool with Ray's calls, takes as long as sampling: both grow as they do."""
    last, even = rows[-1], rows[0]["sampling_seconds"]
    return {
        "network": round(last["samplers"] * even / last["network_seconds"]),
        "pool": round(last["samplers"] * even / (last["pool_seconds"] + last["call_seconds"])),
    }


def table(rows, columns):
    lines = [[name.replace("_", " ") for name in columns]]
    lines += [[COLUMNS.get(name, "{}").format(row[name]) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print("\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines))
    print()


def draw(of_weak, of_strong, out):
    """Three plots in a file."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "cluster", "font.size": 9, "font.family": "sans-serif"}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
        for work, color in zip(dict.fromkeys(row["work"] for row in of_weak), ("C0", "C1"), strict=False):
            rows = [row for row in of_weak if row["work"] == work]
            nums = [row["samplers"] for row in rows]
            axes[0].plot(nums, [row["tokens_share"] for row in rows], "o-", color=color, label=work, markersize=3.5)
            axes[1].plot(nums, [row["sampling_seconds"] for row in rows], color=color, label=f"{work}: sampling")
            axes[1].plot(nums, [row["network_seconds"] for row in rows], "--", color=color, label=f"{work}: weights")
            axes[1].plot(
                nums,
                [row["pool_seconds"] + row["call_seconds"] for row in rows],
                ":",
                color=color,
                label=f"{work}: pool",
            )
            middle = sorted({row["trainers"] for row in of_strong})[1]
            for staleness, line in ((0, "-"), (1, "--")):
                chosen = [
                    row
                    for row in of_strong
                    if (row["work"], row["staleness"], row["trainers"]) == (work, staleness, middle)
                ]
                axes[2].plot(
                    [row["samplers"] for row in chosen],
                    [row["waits"] for row in chosen],
                    line,
                    color=color,
                    label=f"{work}, max_staleness {staleness}",
                )
        axes[0].set(title="4 chunks a sampler: speed of one", ylim=(0, 1.05))
        axes[1].set(title="4 chunks a sampler: seconds of an iteration", yscale="log")
        axes[2].set(title=f"{of_strong[0]['chunks']} chunks: share of time that {middle} trainers wait", ylim=(0, 1.05))
        for plot in axes:
            plot.set_xscale("log", base=2)
            plot.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            plot.set_xlabel("samplers")
            plot.grid(color="#dddddd", linewidth=0.6)
            plot.legend(frameon=False, fontsize=7)
        for plot in (axes[0], axes[2]):
            plot.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        figure.savefig(out, metadata={"Date": None, "Creator": None}, facecolor="white")
    text = out.read_text()
    out.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--latencies", type=Path, help="what benchmarks/cluster_latencies.py wrote; else its figures here"
    )
    parser.add_argument("--dry-run", action="store_true", help="few samplers: does the program work?")
    parser.add_argument("--out", type=Path, default=Path("docs/cluster_simulation.svg"))
    args = parser.parse_args(words)
    works = [SMALL if args.latencies is None else recorded(args.latencies), LARGE]
    nums = (1, 2, 4) if args.dry_run else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    of_weak = weak(works, nums)
    for row in of_weak:
        alone = next(one for one in of_weak if one["work"] == row["work"])
        row["tokens_share"] = row["tokens_a_second"] / row["samplers"] / alone["tokens_a_second"]
    of_strong = strong(works, nums, (1, 2) if args.dry_run else (1, 8, 64), chunks=8 if args.dry_run else 256)
    faults = with_faults(LARGE, nums[-1] // 4 or 1, trainers=nums[-1] // 8 or 1, iterations=4 if args.dry_run else 12)
    report = {
        "weak": of_weak,
        "strong": of_strong,
        "faults": faults,
        "in_advance": {work.name: in_advance(work, 2, (0.001, 0.01, 0.05)) for work in works},
        "breaks_at": {work.name: breaks_at([row for row in of_weak if row["work"] == work.name]) for work in works},
    }
    table(of_weak, [*COLUMNS])
    table(of_strong, ["work", "trainers", "staleness", "samplers", "iteration_seconds", "waits", "busy"])
    table(faults, ["case", "staleness", "iteration_seconds", "waits", "busy", "losses", "restarts", "second_answers"])
    draw(of_weak, of_strong, args.out)
    print(json.dumps(report))
    return report


def recorded(path):
    """The small work with the figures of this machine."""
    found = json.loads(path.read_text())
    wall, cpu = found["call_seconds"]["1"]
    return replace(
        SMALL,
        step_seconds=found["step_seconds"],
        token_seconds=found["token_seconds"],
        call_seconds=cpu,
        latency=max(0.0, wall - cpu) / 2,
        bytes_a_token=found["bytes_a_token"],
    )


if __name__ == "__main__":
    main()
