"""PPO and sampling on GPT-2 shapes with random weights: the same tokens, epochs and minibatches whoever runs them.

No response ends early, so that every run does the same arithmetic.
"""

import random
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhfkit.config.schema import OptimConfig, PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.device import choose_device, choose_dtype
from rlhfkit.models.attention import implementation_for
from rlhfkit.models.compiling import compile_layers
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.reward_model import Normalization, RewardModel
from rlhfkit.models.template import EncodedPrompt, Encoder
from rlhfkit.models.value import ValueHead, ValueNetwork
from rlhfkit.ppo import FixedKL
from rlhfkit.records import Prompt
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rollout.generation import generate
from rlhfkit.rollout.text import TextRollout
from rlhfkit.training.ppo import PpoTrainer, optimizers_for, run_iteration

__all__ = ["SIZES", "Size", "bench_generate", "bench_ppo"]

Size = Literal["1m", "6m", "30m", "124m"]


@dataclass(frozen=True)
class Shape:
    """A GPT-2 shape and the PPO workload that goes with it."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    episodes: int
    """Per iteration."""


SIZES: dict[Size, Shape] = {
    "1m": Shape(4, 128, 4, 2048, 64),
    "6m": Shape(6, 256, 8, 4096, 64),
    "30m": Shape(8, 512, 8, 8192, 32),
    "124m": Shape(12, 768, 12, 50257, 16),
}
EPOCHS, NUM_MINIBATCHES = 4, 4
FIRST_WORD = 2
CONTEXT_TOKENS = 1024


def bench_ppo(
    size: Size,
    *,
    like_for_like: bool = False,
    dtype: str | None = None,
    compiled: bool = True,
    device: str = "auto",
    iterations: int = 5,
    episodes: int | None = None,
    prompt_tokens: int = 32,
    response_tokens: int = 48,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Seconds of a PPO iteration, medians over `iterations` after a first one that is not counted.

    At its best settings (bfloat16 weights with float32 masters, the critic a head on the policy's trunk, compiled), or
    `like_for_like`: float32 and a value network of its own, as large as the policy.
    """
    shape = SIZES[size]
    trainer = _trainer(
        shape,
        like_for_like=like_for_like,
        dtype=dtype or ("float32" if like_for_like else "bfloat16"),
        compiled=compiled,
        device=device,
        iterations=iterations + 1,
        episodes=episodes or shape.episodes,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
    )
    seconds: list[float] = []
    generation: list[float] = []
    for number in range(iterations + 1):
        start = time.perf_counter()
        _, metrics = run_iteration(trainer)
        seconds.append(time.perf_counter() - start)
        generation.append(metrics["time/generation_seconds"])
        tell(f"iteration {number}: {seconds[-1]:.2f} s, of which generation {generation[-1]:.2f} s")
    return {
        "bench": "ppo",
        "size": size,
        "iteration_seconds": statistics.median(seconds[1:]),
        "iteration_seconds_all": [round(s, 3) for s in seconds],
        "generation_seconds": statistics.median(generation[1:]),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _trainer(
    shape: Shape,
    *,
    like_for_like: bool,
    dtype: str,
    compiled: bool,
    device: str,
    iterations: int,
    episodes: int,
    prompt_tokens: int,
    response_tokens: int,
) -> PpoTrainer:
    where, kind = choose_device(device), choose_dtype(dtype)
    encoder = word_encoder(shape.vocabulary)
    policy_lm = gpt2(shape, encoder, where, kind)
    frozen = gpt2(shape, encoder, where, kind)
    frozen.load_state_dict(policy_lm.state_dict())
    policy_lm.requires_grad_(True)
    judge, value_network = (classifier(shape, where, kind) for _ in range(2))
    if compiled:
        policy_lm.run_compiled()
        frozen.run_compiled()
        compile_layers(judge)
        compile_layers(value_network)
    reward_model = RewardModel(judge.requires_grad_(False), encoder)
    critic = ValueNetwork(value_network) if like_for_like else ValueHead(policy_lm.width, where)
    rollout = RolloutConfig(max_response_tokens=response_tokens, slots=episodes)
    ppo = PpoConfig(
        iterations=iterations,
        epochs=EPOCHS,
        rollout_episodes=episodes,
        minibatch_episodes=episodes // NUM_MINIBATCHES,
        value=ValueConfig(network="separate" if like_for_like else "shared"),
        optim=OptimConfig(learning_rate=1e-6),
    )
    policy = TextPolicy(policy_lm, critic, temperature=rollout.temperature)
    text_rollout = TextRollout(
        policy,
        lambda sequences: frozen.logprobs(sequences, temperature=rollout.temperature),
        RewardModelReward(reward_model, Normalization()),
        prompts(shape, encoder, episodes * iterations, prompt_tokens),
        rollout=rollout,
        ppo=ppo,
        seed=0,
    )
    return PpoTrainer(policy, text_rollout, ppo, optimizers_for(policy, ppo), 0, FixedKL(0.05), 0.05)


def word_encoder(vocabulary: int) -> Encoder:
    """A word for each id; EOS is PAD, which has no probability."""
    words = {f"t{number}": number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=f"t{FIRST_WORD}"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="t0", eos_token="t0"))


def _config(shape: Shape, **more: Any) -> GPT2Config:
    return GPT2Config(
        n_layer=shape.layers,
        n_embd=shape.width,
        n_head=shape.heads,
        vocab_size=shape.vocabulary,
        n_positions=CONTEXT_TOKENS,
        pad_token_id=0,
        eos_token_id=0,
        bos_token_id=1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **more,
    )


def gpt2(shape: Shape, encoder: Encoder, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(_config(shape))
    model.set_attn_implementation(implementation_for(device))
    return LanguageModel(model.to(device, dtype).eval().requires_grad_(False), encoder)


def classifier(shape: Shape, device: torch.device, dtype: torch.dtype) -> GPT2ForSequenceClassification:
    torch.manual_seed(1)
    model = GPT2ForSequenceClassification(_config(shape, num_labels=1))
    model.set_attn_implementation(implementation_for(device))
    return model.to(device, dtype).eval()


def prompts(shape: Shape, encoder: Encoder, num: int, tokens: int) -> list[EncodedPrompt]:
    draw = random.Random(0)
    found = []
    for _ in range(num):
        ids = tuple(draw.randrange(FIRST_WORD, shape.vocabulary) for _ in range(tokens))
        text = " ".join(f"t{token}" for token in ids)
        found.append(EncodedPrompt(Prompt(text + " "), text + " ", ids, was_cut=False))
    return found


def bench_generate(
    size: Size,
    *,
    rows: int = 64,
    prompt_tokens: int = 32,
    response_tokens: int = 48,
    dtype: str = "bfloat16",
    compiled: bool = True,
    device: str = "auto",
    repeats: int = 5,
    tell=lambda line: None,
) -> dict[str, Any]:
    shape = SIZES[size]
    encoder = word_encoder(shape.vocabulary)
    model = gpt2(shape, encoder, choose_device(device), choose_dtype(dtype))
    if compiled:
        model.run_compiled()
    ids = [prompt.ids for prompt in prompts(shape, encoder, rows, prompt_tokens)]
    config = RolloutConfig(max_response_tokens=response_tokens, slots=rows)
    seconds = []
    for number in range(repeats + 1):
        start = time.perf_counter()
        responses = generate(model, ids, config, seeds=range(rows))
        seconds.append(time.perf_counter() - start)
        tell(f"{number}: {sum(len(r.ids) for r in responses) / seconds[-1]:.0f} tokens/s")
    return {
        "bench": "generate",
        "size": size,
        "rows": rows,
        "tokens_per_second": rows * response_tokens / statistics.median(seconds[1:]),
    }
