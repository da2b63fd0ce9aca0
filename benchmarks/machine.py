"""What the machine can do right now: matrix products and memory copies, as JSON. The other benchmarks call it.

python benchmarks/machine.py
"""

import json
import time

import torch


def best_seconds(act, *, repeats=5):
    act()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def teraflops(dtype, *, rows=1280, width=1024, products=20):
    x, weight = (torch.randn(size, width).to(dtype) for size in (rows, width))

    def act():
        for _ in range(products):
            x @ weight

    return products * 2 * rows * width**2 / best_seconds(act) / 1e12


def copy_gigabytes_per_second(*, megabytes=256):
    source = torch.zeros(megabytes * 2**18)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / best_seconds(lambda: target.copy_(source)) / 1e9


def read_gigabytes_per_second(*, megabytes=256):
    source = torch.ones(megabytes * 2**18)
    return source.numel() * 4 / best_seconds(source.sum) / 1e9


def measure():
    return {
        "threads": torch.get_num_threads(),
        "float32_teraflops": teraflops(torch.float32),
        "bfloat16_teraflops": teraflops(torch.bfloat16),
        "copy_gigabytes_per_second": copy_gigabytes_per_second(),
        "read_gigabytes_per_second": read_gigabytes_per_second(),
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
