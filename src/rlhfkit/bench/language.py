"""PPO and sampling on fixed shapes with random weights: the same tokens, epochs and minibatches whoever runs them.

No response ends early, so that every run does the same arithmetic.
"""

import math
import random
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhfkit.bench.limit import Work, decode_bytes, generate_work, limit_seconds, ppo_work
from rlhfkit.bench.shapes import BOS, FIRST_WORD, SIZES, Shape, Size
from rlhfkit.config.ppo import PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.machine.device import PeakMeter, choose_device, keep_freed_memory, wait_for
from rlhfkit.machine.dtype import choose_dtype
from rlhfkit.models.attention import implementations_for
from rlhfkit.models.encoder import EncodedPrompt, Encoder
from rlhfkit.models.fast.activation import use_fast_activations
from rlhfkit.models.fast.compiling import compile_layers
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.models.reward_model import Normalization, RewardModel
from rlhfkit.models.value import ValueHead, ValueNetwork
from rlhfkit.ppo import FixedKL
from rlhfkit.records import Prompt
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rollout.generation import generate
from rlhfkit.rollout.text import TextRollout
from rlhfkit.training.memory import plan_of_ppo
from rlhfkit.training.ppo import PpoTrainer, optimizers_for, run_iteration

__all__ = ["bench_generate", "bench_ppo"]

EPOCHS, NUM_MINIBATCHES = 4, 4
PROMPTS_PER_ROW = 4
MICROBATCH_TOKENS = 8192


def bench_ppo(
    size: Size | Shape,
    *,
    like_for_like: bool = False,
    dtype: str | None = None,
    compiled: bool = True,
    device: str = "auto",
    iterations: int = 5,
    episodes: int | None = None,
    prompt_tokens: int | None = None,
    response_tokens: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Seconds of a PPO iteration, medians over `iterations` after a first one that is not counted.

    At its best settings (the faster type with float32 masters, the critic a head on the policy's trunk, compiled), or
    `like_for_like`: float32 and a value network of its own, as large as the policy.
    """
    shape, where = _shape(size), choose_device(device)
    prompt_tokens, response_tokens = prompt_tokens or shape.prompt_tokens, response_tokens or shape.response_tokens
    choice = choose_dtype(dtype or ("float32" if like_for_like else "auto"), where)
    tell(choice.words())
    episodes = episodes or shape.episodes
    trainer = _trainer(
        shape,
        like_for_like=like_for_like,
        dtype=choice.dtype,
        compiled=compiled,
        device=where,
        iterations=iterations + 1,
        episodes=episodes,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
    )
    policy, rollout = trainer.policy, trainer.rollout
    assert isinstance(policy, TextPolicy) and isinstance(rollout, TextRollout)
    plan = plan_of_ppo(policy, prompt_tokens=prompt_tokens, rollout=rollout.rollout, ppo=rollout.ppo)
    plan = replace(plan, checkpoint=0)  # nothing is written here
    seconds: list[float] = []
    generation: list[float] = []
    difference: list[float] = []
    meter = PeakMeter(where)
    for number in range(iterations + 1):
        start = time.perf_counter()
        _, metrics = run_iteration(trainer)
        wait_for(where)
        difference.append(metrics["sampler/logprob_max_difference"])
        seconds.append(time.perf_counter() - start)
        generation.append(metrics["time/generation_seconds"])
        tell(f"iteration {number}: {seconds[-1]:.2f} s, of which generation {generation[-1]:.2f} s")
    work = _ppo_work(shape, episodes, prompt_tokens, response_tokens, like_for_like=like_for_like)
    peak, peak_gpu = peak_rss_mb(), _peak_gpu_mb(meter)
    limits = [limit_seconds([part], shape, choice.dtype, where) for part in work]
    limit, median = sum(limits), statistics.median(seconds[1:])
    without_sampling = statistics.median(a - b for a, b in zip(seconds[1:], generation[1:], strict=True))
    return {
        "bench": "ppo",
        "size": size if isinstance(size, str) else repr(size),
        "device": where.type,
        "dtype": choice.taken,
        "like_for_like": like_for_like,
        "episodes": episodes,
        "iteration_seconds": median,
        "iteration_seconds_all": [round(s, 3) for s in seconds],
        "first_iteration_seconds": seconds[0],
        "generation_seconds": statistics.median(generation[1:]),
        "teraflop": ppo_teraflop(shape, episodes, prompt_tokens, response_tokens, like_for_like=like_for_like),
        "limit_seconds": limit,
        "limit_share": limit / median,
        "limit_share_without_sampling": limits[-1] / without_sampling,
        "sampler_logprob_max_difference": max(difference),
        "fast_paths": policy.language_model.paths.as_facts(),
        "predicted_peak_mb": plan.peak(MICROBATCH_TOKENS) / 2**20,
        "peak_rss_mb": peak,
        "peak_gpu_mb": peak_gpu,
    }


def _trainer(
    shape: Shape,
    *,
    like_for_like: bool,
    dtype: torch.dtype,
    compiled: bool,
    device: torch.device,
    iterations: int,
    episodes: int,
    prompt_tokens: int,
    response_tokens: int,
) -> PpoTrainer:
    keep_freed_memory()
    encoder = word_encoder(shape.vocabulary)
    actor = language_model(shape, encoder, device, dtype)
    frozen = language_model(shape, encoder, device, dtype)
    frozen.load_state_dict(actor.state_dict())
    actor.requires_grad_(True)
    judge, value_network = (classifier(shape, device, dtype) for _ in range(2))
    if compiled:
        actor.run_compiled()
        frozen.run_compiled()
        compile_layers(judge)
        compile_layers(value_network)
    reward_model = RewardModel(judge.requires_grad_(False), encoder)
    critic = ValueNetwork(value_network) if like_for_like else ValueHead(actor.width, device)
    rollout = RolloutConfig(max_response_tokens=response_tokens, slots=episodes)
    ppo = PpoConfig(
        iterations=iterations,
        epochs=EPOCHS,
        rollout_episodes=episodes,
        minibatch_episodes=episodes // NUM_MINIBATCHES,
        value=ValueConfig(network="separate" if like_for_like else "shared"),
        microbatch_tokens=MICROBATCH_TOKENS,
        optim=OptimConfig(learning_rate=1e-6),
    )
    policy = TextPolicy(actor, critic, temperature=rollout.temperature)
    text_rollout = TextRollout(
        policy,
        lambda sequences: frozen.logprobs(sequences, temperature=rollout.temperature),
        RewardModelReward(reward_model, Normalization()),
        random_prompts(shape, episodes * iterations, prompt_tokens),
        rollout=rollout,
        ppo=ppo,
        seed=0,
    )
    return PpoTrainer(policy, text_rollout, ppo, optimizers_for(policy, ppo, seed=0), 0, FixedKL(0.05), 0.05)


def ppo_teraflop(shape: Shape, episodes: int, prompt: int, response: int, *, like_for_like: bool) -> float:
    """Arithmetic of an iteration's matrix products, in 10^12 operations."""
    work = _ppo_work(shape, episodes, prompt, response, like_for_like=like_for_like)
    return sum(part.operations for part in work) / 1e12


def _ppo_work(shape: Shape, episodes: int, prompt: int, response: int, *, like_for_like: bool) -> list[Work]:
    return ppo_work(
        shape,
        episodes=episodes,
        prompt=prompt,
        response=response,
        epochs=EPOCHS,
        num_minibatches=NUM_MINIBATCHES,
        like_for_like=like_for_like,
        most_tokens=MICROBATCH_TOKENS,
    )


def _shape(size: Size | Shape) -> Shape:
    return SIZES[size] if isinstance(size, str) else size


def word_encoder(vocabulary: int) -> Encoder:
    """A word for each id; EOS is PAD, which has no probability."""
    words = {f"t{number}": number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=f"t{FIRST_WORD}"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Encoder(
        PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=tokenizer, pad_token="t0", eos_token="t0"
        )
    )


def language_model(shape: Shape, encoder: Encoder, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """A frozen model of this shape, always with the same random weights."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        shape.config(), trust_remote_code=False
    )
    model.set_attn_implementation(implementations_for(device)[0])
    use_fast_activations(model, device)
    with quiet_transformers():
        return LanguageModel(model.to(device, dtype).eval().requires_grad_(False), encoder)


def classifier(shape: Shape, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A model of this shape with one output, always with the same random weights."""
    torch.manual_seed(1)
    model: Any = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
        shape.config(num_labels=1), trust_remote_code=False
    )
    model.set_attn_implementation(implementations_for(device)[0])
    use_fast_activations(model, device)
    ready: PreTrainedModel = model.to(device, dtype).eval()
    return ready


def random_prompts(shape: Shape, num: int, tokens: int) -> list[EncodedPrompt]:
    """Prompts of random words, always the same ones."""
    draw = random.Random(0)
    found = []
    for _ in range(num):
        ids = tuple(draw.randrange(FIRST_WORD, shape.vocabulary) for _ in range(tokens))
        text = "".join(f"t{token} " for token in ids)
        found.append(EncodedPrompt(Prompt(text), text, ids, was_cut=False))
    return found


def end_with_probability(model: LanguageModel, probability: float) -> None:
    """Give each token this probability to be the last, by a bias of the head on one token, which then means the end."""
    head: Any = model.causal_lm.get_output_embeddings()
    # Logits of random weights are all near 0, so the others share the rest evenly.
    num_others = model.config.vocab_size - 2
    bias = torch.zeros(model.config.vocab_size, device=model.device, dtype=model.dtype)
    bias[BOS] = math.log(probability / (1 - probability) * num_others)
    head.bias = torch.nn.Parameter(bias, requires_grad=False)
    assert model.causal_lm.generation_config is not None
    model.causal_lm.generation_config.eos_token_id = BOS


def peak_rss_mb() -> float:
    """Most memory that this process has had, in units of 2^20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _peak_gpu_mb(meter: PeakMeter) -> float | None:
    """Most memory of a GPU that tensors have had, in units of 2^20 bytes; None on a CPU."""
    peak = meter.bytes() if meter.device.type == "cuda" else None
    return None if peak is None else peak / 2**20


def bench_generate(
    size: Size | Shape,
    *,
    rows: int = 64,
    prompt_tokens: int | None = None,
    response_tokens: int | None = None,
    mean_tokens: int | None = None,
    dtype: str = "auto",
    compiled: bool = True,
    device: str = "auto",
    repeats: int = 5,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Tokens per second, with their logprobs: the median over `repeats` after a first one that is not counted.

    With `mean_tokens` lengths are geometric with this mean, cut at `response_tokens`, and there are four prompts to
    each of the `rows` that are sampled at a time; without, every response has `response_tokens`.
    """
    keep_freed_memory()
    shape = _shape(size)
    prompt_tokens, response_tokens = prompt_tokens or shape.prompt_tokens, response_tokens or shape.response_tokens
    encoder = word_encoder(shape.vocabulary)
    where = choose_device(device)
    choice = choose_dtype(dtype, where)
    tell(choice.words())
    model = language_model(shape, encoder, where, choice.dtype)
    num = rows
    if mean_tokens is not None:
        end_with_probability(model, 1 / mean_tokens)
        num = PROMPTS_PER_ROW * rows
    if compiled:
        model.run_compiled()
    ids = [prompt.ids for prompt in random_prompts(shape, num, prompt_tokens)]
    config = RolloutConfig(max_response_tokens=response_tokens, slots=rows)
    rates: list[float] = []
    num_tokens = 0
    meter = PeakMeter(where)
    for number in range(repeats + 1):
        start = time.perf_counter()
        num_tokens = sum(len(response.ids) for response in generate(model, ids, config, seeds=range(num)))
        seconds = time.perf_counter() - start
        rates.append(num_tokens / seconds)
        tell(f"{number}: {num_tokens:,} tokens in {seconds:.2f} s, {rates[-1]:,.0f} tokens/s")
    work = generate_work(shape, rows=rows, prompts=num, prompt=prompt_tokens, sampled_tokens=num_tokens)
    peak, peak_gpu = peak_rss_mb(), _peak_gpu_mb(meter)
    limit, median = limit_seconds(work, shape, choice.dtype, where), statistics.median(rates[1:])
    return {
        "bench": "generate",
        "size": size if isinstance(size, str) else repr(size),
        "device": where.type,
        "dtype": choice.taken,
        "rows": rows,
        "tokens_per_second": median,
        "tokens_per_second_all": [round(rate, 1) for rate in rates],
        "teraflop": sum(part.operations for part in work) / 1e12,
        "limit_seconds": limit,
        "limit_share": limit / (num_tokens / median),
        "response_tokens_mean": num_tokens / num,
        "decode_gigabytes": None
        if mean_tokens
        else decode_bytes(shape, choice.dtype.itemsize, rows=rows, prompt=prompt_tokens, response=response_tokens)
        / 1e9,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "fast_paths": model.paths.as_facts(),
        "peak_rss_mb": peak,
        "peak_gpu_mb": peak_gpu,
    }
