"""Tokens per second of transformers' `generate` with the logprobs of what was sampled, as JSON; for generate.py.

The peer of `rlhfkit bench generate`: the same shapes, prompts' lengths and random lengths of responses.
"""

import argparse
import json
import math
import statistics
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

SIZES = {"1m": (4, 128, 4, 2048), "6m": (6, 256, 8, 4096), "30m": (8, 512, 8, 8192), "124m": (12, 768, 12, 50257)}
BOS, PROMPTS_PER_ROW = 1, 4


def model_of(size, dtype, mean_tokens):
    layers, width, heads, vocabulary = SIZES[size]
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        n_positions=1024,
        pad_token_id=0,
        eos_token_id=BOS if mean_tokens else None,
        bos_token_id=BOS,
    )
    model = GPT2LMHeadModel(config).to(dtype).eval()
    if mean_tokens:
        probability = 1 / mean_tokens
        bias = torch.zeros(vocabulary, dtype=dtype)
        bias[BOS] = math.log(probability / (1 - probability) * (vocabulary - 2))
        model.lm_head.bias = torch.nn.Parameter(bias)
    return model


@torch.inference_mode()
def sampled_tokens(model, ids, response_tokens):
    """Number of tokens that count; the logprob of each is computed as a trainer needs it."""
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        max_new_tokens=response_tokens,
        output_scores=True,
        return_dict_in_generate=True,
        suppress_tokens=[0],
    )
    responses = out.sequences[:, ids.shape[1] :]
    logits = torch.stack(out.scores, 1)
    logits.float().log_softmax(-1).gather(-1, responses[..., None])
    return int((responses != 0).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="6m")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--response-tokens", type=int, default=48)
    parser.add_argument("--mean-tokens", type=int)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model = model_of(args.size, getattr(torch, args.dtype), args.mean_tokens).to(args.device)
    num = args.rows * (PROMPTS_PER_ROW if args.mean_tokens else 1)
    prompts = torch.randint(2, SIZES[args.size][3], (num, 32), generator=torch.Generator().manual_seed(0)).to(
        args.device
    )
    rates = []
    for _ in range(args.repeats + 1):
        start = time.perf_counter()
        tokens = sum(sampled_tokens(model, part, args.response_tokens) for part in prompts.split(args.rows))
        rates.append(tokens / (time.perf_counter() - start))
    print(json.dumps({"peer": "transformers", **vars(args), "tokens_per_second": statistics.median(rates[1:])}))


if __name__ == "__main__":
    main()
