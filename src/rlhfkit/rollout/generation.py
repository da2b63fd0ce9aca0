"""Sampling with a pre-allocated KV cache: rows of any length, and no slot waits for its neighbours.

A row lives in a slot of the cache from its first token to its last, position = index in the cache, so there is no
padding on the left and nothing to shift. Prompts are read in groups of like length; a finished row gives its slot to
the next prompt; when no prompt waits, the rows that are left move together and the batch shrinks.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.errors import ConfigError, GenerationError
from rlhfkit.machine.fast_paths import agree
from rlhfkit.models.attention import additive_masks, any_shape_attention
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.fast.compiling import compiled, uncompiled
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.layers import layers_computed_once
from rlhfkit.padding import pad_right
from rlhfkit.rollout.cuda_graph import CapturedSteps, Step
from rlhfkit.rollout.kv_cache import Decode, Prefill, SlotCache
from rlhfkit.rollout.sampling import next_token

__all__ = [
    "FinishReason",
    "Response",
    "generate",
    "most_new_tokens",
    "stop_ids",
    "stop_token_ids",
    "worth_reordering",
]


FinishReason = Literal["eos", "stop", "length"]

# New prompts are read once this share of the slots is free: reading one at a time costs as much as a whole step.
REFILL_SHARE = 1 / 8
# Rows move together once fewer than this share of the slots is in use, so that copying stays cheap against decoding.
SHRINK_SHARE = 3 / 4
# Compiled code for any number of rows does not cover a single one, so a batch stays at two.
FEWEST_ROWS = 2
# To reorder the weights for sampling takes about as long as a few steps of a single row.
FEWEST_REORDERED_STEPS = 8
# To capture a step takes longer than to run it, and is done anew for each call: the cache lies elsewhere.
FEWEST_CAPTURED_STEPS = 32
# Among as many rows it is no rounding where every second one has another token.
FEWEST_ROWS_TO_COUNT = 8


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled response."""

    ids: list[int]
    """Its tokens, EOS included."""
    logprobs: list[float]
    """Log-probability of each token, at the sampling temperature; empty where nobody knows who wrote it."""
    finish_reason: FinishReason

    @property
    def finished(self) -> bool:
        """Whether the model ended it, rather than the length limit."""
        return self.finish_reason != "length"


def stop_ids(model: LanguageModel, stop_tokens: Sequence[str]) -> tuple[set[int], set[int]]:
    """Ids that end a response: (EOS, the template's ending and the generation config's EOS, the recipe's stop tokens).

    Raises: ConfigError where a stop token is not a single token.
    """
    configured = getattr(model.causal_lm.generation_config, "eos_token_id", None)
    eos = {*model.encoder.eos_ids} | set(configured if isinstance(configured, list) else [configured])
    return {int(token) for token in eos if token is not None}, stop_token_ids(model.encoder, stop_tokens)


def stop_token_ids(encoder: Encoder, stop_tokens: Sequence[str]) -> set[int]:
    r"""Ids of the recipe's stop tokens, and of all tokens that hold one, as "\n\n" holds "\n".

    Raises: ConfigError where one is not a single token.
    """
    stops: set[int] = set()
    for token in stop_tokens:
        ids = encoder.continuation_ids(token)
        if len(ids) != 1:
            raise ConfigError(
                f"rollout.stop_tokens: {token!r} is {len(ids)} tokens for this tokenizer; expected a single one"
            )
        stops |= encoder.tokens_with(token)
    return stops


class _Slots:
    """What each slot is doing: tensors of one entry a slot, in the order of the cache."""

    def __init__(self) -> None:
        self.row = torch.empty(0, dtype=torch.long)
        self.token = torch.empty(0, dtype=torch.long)
        self.position = torch.empty(0, dtype=torch.long)
        self.active = torch.empty(0, dtype=torch.bool)

    def add(self, row: Tensor, token: Tensor, position: Tensor) -> None:
        self.row = torch.cat([self.row, row])
        self.token = torch.cat([self.token, token])
        self.position = torch.cat([self.position, position])
        self.active = torch.cat([self.active, torch.ones_like(row, dtype=torch.bool)])

    def put(self, slots: Tensor, row: Tensor, token: Tensor, position: Tensor) -> None:
        self.row[slots], self.token[slots], self.position[slots], self.active[slots] = row, token, position, True

    def keep(self, slots: Tensor) -> None:
        self.row, self.token, self.position, self.active = (
            self.row[slots],
            self.token[slots],
            self.position[slots],
            self.active[slots],
        )


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    config: RolloutConfig,
    *,
    seeds: Sequence[int] | None,
    on_finished: Callable[[int], None] | None = None,
    offsets: Sequence[int] | None = None,
) -> list[Response]:
    """One response to each prompt, in order.

    `seeds` holds one number per prompt, which decides its randomness alone: a response depends on its prompt, its seed
    and the weights, not on the batch it was sampled in. None decodes greedily. `on_finished` gets how many rows
    have just finished. `offsets`: so many tokens at the end of each prompt belong to the response already, which goes
    on from there by up to `config.partial_tokens`; what comes back are the new tokens, "length" where it is cut.
    Raises: ConfigError where prompt and response do not fit the model's context; GenerationError where the model's
    logits are not finite.
    """
    if not prompts:
        return []
    sampler = _Sampler(model, prompts, config, seeds=seeds, offsets=offsets)
    reordered = model.reordered_weights.in_use(sampler.cache.num_slots) if worth_reordering(config) else nullcontext()
    with reordered, any_shape_attention(model.device), layers_computed_once(model.causal_lm):
        while sampler.unfinished:
            num_finished = sampler.step()
            if num_finished and on_finished is not None:
                on_finished(num_finished)
    return sampler.responses()


def most_new_tokens(config: RolloutConfig, offsets: Tensor, *, is_cut: bool) -> Tensor:
    """(B,) tokens that may be added to responses that have `offsets` (B,) already: up to where they end, or are cut."""
    most = config.max_response_tokens - offsets
    return most if not is_cut or config.partial_tokens is None else most.clamp(max=config.partial_tokens)


def worth_reordering(config: RolloutConfig) -> bool:
    """Whether there are steps enough to make up for reordering the weights."""
    return config.max_response_tokens >= FEWEST_REORDERED_STEPS


class _Sampler:
    """State of one call of `generate`.

    The books are kept on the CPU, which decides by them what to do next; a step takes three numbers a row to the
    model's device and brings two back.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        config: RolloutConfig,
        *,
        seeds: Sequence[int] | None,
        offsets: Sequence[int] | None,
    ) -> None:
        self.offsets = torch.tensor([0] * len(prompts) if offsets is None else offsets)
        self.prompt_lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int((self.prompt_lengths - self.offsets).max()) + config.max_response_tokens
        context = model.context_tokens
        if context is not None and longest > context:
            raise ConfigError(
                f"a prompt of {longest - config.max_response_tokens} tokens and rollout.max_response_tokens = "
                f"{config.max_response_tokens} exceed the model's context of {context} tokens; lower "
                "data.max_prompt_tokens or rollout.max_response_tokens"
            )
        self.model, self.prompts, self.config = model, prompts, config
        self.device = model.device
        self.uniforms = None if seeds is None else _uniforms(seeds, config.max_response_tokens)
        self.most = most_new_tokens(config, self.offsets, is_cut=offsets is not None)
        num, limit = len(prompts), int(self.most.max())
        self.tokens = torch.zeros((num, limit), dtype=torch.long)
        self.logprobs = torch.zeros((num, limit))
        self.lengths = torch.zeros(num, dtype=torch.long)
        eos, stops = stop_ids(model, config.stop_tokens)
        self.eos, self.ending = torch.tensor(sorted(eos)), torch.tensor(sorted(eos | stops))
        # Rows of like length are read together; nothing that a caller sees depends on this order.
        self.waiting = sorted(range(num), key=lambda row: (-len(prompts[row]), row))
        self.slots = _Slots()
        self.cache = SlotCache.of(model, min(config.slots, num), longest)
        self._decode_step = self._prepared_step()
        self.unfinished = num

    def _prepared_step(self) -> Step:
        """A step of decoding: compiled where the model is, and on a GPU captured as well."""
        if not self.model.is_compiled:
            return partial(_decode_step, self.model, self.cache, self.config)
        fast_step = compiled(_decode_step, paths=self.model.paths, same=_same_steps)
        step = partial(fast_step, self.model, self.cache, self.config)
        if self.device.type == "cuda" and self.config.max_response_tokens >= FEWEST_CAPTURED_STEPS:
            return CapturedSteps(step, max_tokens=self.cache.max_tokens, paths=self.model.paths, same=_same_steps)
        return step

    def step(self) -> int:
        """Read waiting prompts where there is room for them, or else sample a token in every slot; rows finished."""
        free = (~self.slots.active).nonzero().flatten()
        unused = self.cache.num_slots - len(self.slots.row) if self.waiting else 0
        room = len(free) + unused
        if self.waiting and room >= min(len(self.waiting), max(1, int(self.cache.num_slots * REFILL_SHARE))):
            return self._read_prompts(free, unused)
        in_use, rows = len(self.slots.row) - len(free), len(self.slots.row)
        fewest = max(in_use, min(FEWEST_ROWS, rows))
        if fewest < SHRINK_SHARE * rows:
            kept = torch.argsort((~self.slots.active).int(), stable=True)[:fewest]  # an idle one only to make two
            self.cache.keep(kept)
            self.slots.keep(kept)
        return self._decode()

    def _read_prompts(self, free: Tensor, unused: int) -> int:
        start = len(self.slots.row)
        places = torch.cat([free, torch.arange(start, start + unused)])
        rows, self.waiting = self.waiting[: len(places)], self.waiting[len(places) :]
        places = places[: len(rows)]
        ids = pad_right([self.prompts[row] for row in rows], pad=self.model.encoder.pad_id, device=self.device)
        row = torch.tensor(rows)
        lengths = self.prompt_lengths[row]
        # Not compiled: it is one pass in an iteration, and its program would take longest to make.
        with uncompiled():
            sampled = _prefill_step(
                self.model,
                self.cache,
                self.config,
                ids,
                places.to(self.device),
                lengths.to(self.device),
                self._uniform(row),
            )
        token, logprob = _to_cpu(sampled)
        self._record(row, token, logprob)
        new = places >= start
        self.slots.put(places[~new], row[~new], token[~new], lengths[~new])
        self.slots.add(row[new], token[new], lengths[new])
        return self._finish()

    def _decode(self) -> int:
        slots = self.slots
        width = int(slots.position.max()) + 1
        token, position = slots.token.to(self.device), slots.position.to(self.device)
        token, logprob = _to_cpu(self._decode_step(token, position, width, self._uniform(slots.row)))
        self._record(slots.row[slots.active], token[slots.active], logprob[slots.active])
        slots.token = token
        slots.position = torch.where(slots.active, slots.position + 1, slots.position)
        return self._finish()

    def _uniform(self, row: Tensor) -> Tensor | None:
        """(B,) the random number for the next token of each row; None to take the likeliest."""
        if self.uniforms is None:
            return None
        at = (self.offsets + self.lengths)[row].clamp(max=self.config.max_response_tokens - 1)
        return self.uniforms[row, at].to(self.device)

    def _record(self, row: Tensor, token: Tensor, logprob: Tensor) -> None:
        """Take down the next token of each row."""
        if not torch.isfinite(logprob).all():
            raise GenerationError(
                "the model's logits are not finite, so nothing can be sampled; its weights are damaged, or training "
                "diverged: lower the learning rate and start from the last good checkpoint"
            )
        at = (row, self.lengths[row])
        self.tokens[at], self.logprobs[at] = token, logprob
        self.lengths[row] += 1

    def _finish(self) -> int:
        """Free the slots whose row has ended."""
        ended = torch.isin(self.slots.token, self.ending)
        ended |= (self.lengths >= self.most)[self.slots.row]
        ended &= self.slots.active
        self.slots.active = self.slots.active & ~ended
        num = int(ended.sum())
        self.unfinished -= num
        return num

    def responses(self) -> list[Response]:
        """What was sampled."""
        last = self.tokens.gather(1, (self.lengths - 1).clamp(min=0)[:, None]).squeeze(-1)
        is_eos, is_end = torch.isin(last, self.eos).tolist(), torch.isin(last, self.ending).tolist()
        tokens, logprobs = self.tokens.tolist(), self.logprobs.tolist()
        return [
            Response(
                ids=tokens[row][:length],
                logprobs=logprobs[row][:length],
                finish_reason="eos" if is_eos[row] else "stop" if is_end[row] else "length",
            )
            for row, length in enumerate(self.lengths.tolist())
        ]


def _to_cpu(sampled: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    token, logprob = sampled
    return token.cpu(), logprob.cpu()


def _prefill_step(
    model: LanguageModel,
    cache: SlotCache,
    config: RolloutConfig,
    ids: Tensor,
    places: Tensor,
    lengths: Tensor,
    uniform: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(token, logprob), each (B,), that follow the prompts `ids` (B, T) of `lengths` (B,), read into slots `places`."""
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    # Plain causal attention: padding is on the right, where no real token looks.
    allowed = positions[:, :, None] >= positions[:, None]
    hidden = model.trunk_with_cache(
        ids,
        position_ids=positions,
        attention_mask=additive_masks(model.config, allowed, positions, positions, model.dtype),
        past_key_values=Prefill(cache, places),
    )
    last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
    return next_token(model.head(last), config, uniform)


def _decode_step(
    model: LanguageModel,
    cache: SlotCache,
    config: RolloutConfig,
    token: Tensor,
    position: Tensor,
    width: int,
    uniform: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(token, logprob), each (B,), that follow the newest token of the first B slots, which stands at `position`."""
    places = torch.arange(width, device=token.device)
    allowed = (places <= position[:, None])[:, None]
    hidden = model.trunk_with_cache(
        token[:, None],
        position_ids=position[:, None],
        attention_mask=additive_masks(model.config, allowed, position[:, None], places[None], model.dtype),
        past_key_values=Decode(cache, position, width),
    )
    return next_token(model.head(hidden[:, 0]), config, uniform)


def _same_steps(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    """Whether two ways to compute a step agree: tokens may differ where rounding decided, their logprobs not."""
    same = found[0] == expected[0]
    if len(same) >= FEWEST_ROWS_TO_COUNT and int(same.sum()) < len(same) / 2:
        return False
    return agree(found[1][same], expected[1][same])


def _uniforms(seeds: Sequence[int], num: int) -> Tensor:
    """(B, num) numbers in [0, 1); row b follows from seeds[b] alone."""
    generator = torch.Generator()
    return torch.stack([torch.rand(num, generator=generator.manual_seed(seed)) for seed in seeds])
