"""What chunks take on this machine, for benchmarks/cluster_simulation.py: sampling them, and Ray's part in it.

    python benchmarks/cluster_latencies.py [--size 6m] [--chunks 12] [--out latencies.json]

Samples chunks of 32 rows of geometric lengths with the own sampler, and fits
seconds = a * (tokens of the longest row) + b * (tokens of all rows). Then gives chunks that take no time to actors of
Ray, by the pool and the transport of a run. Prints one JSON object; the file has each chunk too, as `recorded`.
"""

import argparse
import json
import pickle
import statistics
import time
from pathlib import Path

import numpy as np
import ray
import torch
from scipy.optimize import nnls

from rlhfkit.bench.language import end_with_probability, language_model, random_prompts, word_encoder
from rlhfkit.bench.shapes import SIZES
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.launch.board import SAMPLERS, Orders
from rlhfkit.launch.messages import Chunk, Probe, Sampled, Weights
from rlhfkit.launch.pool import Pool
from rlhfkit.launch.transport import RayTransport
from rlhfkit.rollout.generation import Response, generate

ROWS, MEAN_TOKENS, MOST_TOKENS = 32, 64, 512
WEIGHTS = Weights("w", 1, [None], [None], 1, Probe((1,) * 64, (-1.0,) * 63), 1)


def recorded_chunks(size, num):
    """Seconds and lengths of chunks of the own sampler on one core."""
    torch.set_num_threads(1)
    shape = SIZES[size]
    model = language_model(shape, word_encoder(shape.vocabulary), torch.device("cpu"), torch.float32)
    end_with_probability(model, 1 / MEAN_TOKENS)
    config = RolloutConfig(max_response_tokens=MOST_TOKENS)
    chunks = []
    for number in range(num + 1):
        prompts = [prompt.ids for prompt in random_prompts(shape, ROWS, 32)]
        start = time.process_time()  # of one thread, so that other programs on the machine do not count
        responses = generate(model, prompts, config, seeds=[ROWS * number + row for row in range(ROWS)])
        chunks.append((time.process_time() - start, [len(response.ids) for response in responses]))
    return chunks[1:]  # the first one warms up


def fitted(chunks):
    """(a, b) of the line, by least squares, neither below 0."""
    work = np.array([[max(lengths), sum(lengths)] for _, lengths in chunks], float)
    seconds = np.array([seconds for seconds, _ in chunks])
    return [float(number) for number in nnls(work, seconds)[0]]


class Idle:
    """Answers at once."""

    def work(self, chunk):
        responses = [Response([7] * MEAN_TOKENS, [-1.234567] * MEAN_TOKENS, "eos") for _ in chunk.prompts]
        return Sampled(responses, "w", 1, chunk.weights.probe.logprobs, 0.0, 0.0)


def seconds_of_a_call(num_workers, num_chunks=200):
    """What a chunk of 32 rows takes where sampling takes no time: (wall clock, CPU of the pool's process)."""
    names = tuple(f"{SAMPLERS}-{place}" for place in range(num_workers))
    actors = [ray.remote(Idle).options(name=name, num_cpus=0).remote() for name in names]
    transport = RayTransport(SAMPLERS)
    transport.orders = Orders(workers=names)
    pool = Pool(transport, slow_factor=1e9)
    pool.start()
    chunk = Chunk(WEIGHTS, [[1] * 32] * ROWS, list(range(ROWS)), RolloutConfig())
    pool.begin([chunk] * num_workers * 5).wait()
    start, cpu = time.perf_counter(), time.process_time()
    pool.begin([chunk] * num_chunks).wait()
    seconds = (time.perf_counter() - start) / num_chunks, (time.process_time() - cpu) / num_chunks
    pool.stop()
    for actor in actors:
        ray.kill(actor)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="6m", choices=sorted(SIZES))
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("latencies.json"))
    args = parser.parse_args()
    chunks = recorded_chunks(args.size, args.chunks)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    sampled = Idle().work(Chunk(WEIGHTS, [[1]] * ROWS, range(ROWS), None))
    calls = {num: [seconds_of_a_call(num) for _ in range(2)] for num in (1, 4)}
    step, token = fitted(chunks)
    found = {
        "recorded": [[round(seconds, 4), lengths] for seconds, lengths in chunks],
        "step_seconds": step,
        "token_seconds": token,
        "mean_chunk_seconds": statistics.mean(seconds for seconds, _ in chunks),
        "call_seconds": {num: min(seconds) for num, seconds in calls.items()},
        "bytes_a_token": len(pickle.dumps(sampled, protocol=5)) / sampled.num_units,
    }
    args.out.write_text(json.dumps(found))
    print(json.dumps({key: value for key, value in found.items() if key != "recorded"}))


if __name__ == "__main__":
    main()
