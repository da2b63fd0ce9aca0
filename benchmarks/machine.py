"""What the machine can do right now: matrix products and memory copies, as JSON. The other benchmarks call it.

python benchmarks/machine.py [--device cpu|cuda]
"""

import argparse
import json
import time

import torch


def best_seconds(act, *, device, repeats=5, enough_seconds=10.0):
    """The least of a few; fewer where that alone would take long: a CPU without bfloat16 makes such products slowly."""
    act()
    seconds = []
    while len(seconds) < repeats and sum(seconds) < enough_seconds:
        wait_for(device)
        start = time.perf_counter()
        act()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def wait_for(device):
    if device != "cpu":
        torch.cuda.synchronize(device)


def teraflops(dtype, device, *, rows, width, products):
    x, weight = (torch.randn(size, width, device=device).to(dtype) for size in (rows, width))

    def act():
        for _ in range(products):
            x @ weight

    return products * 2 * rows * width**2 / best_seconds(act, device=device) / 1e12


def copy_gigabytes_per_second(device, *, megabytes):
    source = torch.zeros(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / best_seconds(lambda: target.copy_(source), device=device) / 1e9


def read_gigabytes_per_second(device, *, megabytes):
    source = torch.ones(megabytes * 2**18, device=device)
    return source.numel() * 4 / best_seconds(source.sum, device=device) / 1e9


def measure(device="cpu"):
    # A GPU needs larger ones to show what it can do, and its caches hold 256 MB.
    is_cpu = device == "cpu"
    product = {"rows": 1280, "width": 1024, "products": 2} if is_cpu else {"rows": 8192, "width": 8192, "products": 5}
    megabytes = 256 if is_cpu else 4096
    return {
        "threads": torch.get_num_threads(),
        "float32_teraflops": teraflops(torch.float32, device, **product),
        "bfloat16_teraflops": teraflops(torch.bfloat16, device, **product),
        "copy_gigabytes_per_second": copy_gigabytes_per_second(device, megabytes=megabytes),
        "read_gigabytes_per_second": read_gigabytes_per_second(device, megabytes=megabytes),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    print(json.dumps(measure(parser.parse_args().device)))
