"""Tokens per second of vLLM with the logprobs of what was sampled, as JSON; for generate.py --vllm-python.

A peer of `rlhfkit bench generate`: the same shapes and lengths of prompts and responses, random weights.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time

from transformers import GPT2Config

SIZES = {"1m": (4, 128, 4, 2048), "6m": (6, 256, 8, 4096), "30m": (8, 512, 8, 8192), "124m": (12, 768, 12, 50257)}
PROMPT_TOKENS = 32
CACHE_BYTES = 2**31


def started(size, dtype, rows):
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # or it leaves cores unused
    from vllm import LLM

    layers, width, heads, vocabulary = SIZES[size]
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocabulary, n_positions=1024, bos_token_id=1
    )
    config.architectures = ["GPT2LMHeadModel"]
    with tempfile.TemporaryDirectory() as directory:
        config.save_pretrained(directory)
        return LLM(
            directory,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=dtype,
            max_num_seqs=rows,
            max_model_len=1024,
            kv_cache_memory_bytes=CACHE_BYTES,
            enable_prefix_caching=False,
            seed=0,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="6m")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--response-tokens", type=int, default=48)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    engine = started(args.size, args.dtype, args.rows)
    from vllm import SamplingParams

    draw = random.Random(0)
    prompts = [
        {"prompt_token_ids": [draw.randrange(2, SIZES[args.size][3]) for _ in range(PROMPT_TOKENS)]}
        for _ in range(args.rows)
    ]
    wanted = SamplingParams(temperature=1.0, max_tokens=args.response_tokens, ignore_eos=True, logprobs=0)
    rates = []
    for _ in range(args.repeats + 1):
        start = time.perf_counter()
        outputs = engine.generate(prompts, wanted, use_tqdm=False)
        rates.append(sum(len(output.outputs[0].token_ids) for output in outputs) / (time.perf_counter() - start))
    print(json.dumps({"peer": "vllm", **vars(args), "tokens_per_second": statistics.median(rates[1:])}))


if __name__ == "__main__":
    main()
