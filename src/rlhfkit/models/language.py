"""A Hugging Face causal language model, taken apart into trunk and head, and the text policy made of it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from rlhfkit.errors import ModelError
from rlhfkit.machine.fast_paths import FastPaths
from rlhfkit.models.attention import additive_masks
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.fast.compiling import compile_layers, compiled
from rlhfkit.models.fast.weight_layout import ReorderedWeights
from rlhfkit.models.frozen_layers import Stem
from rlhfkit.models.generation_config import set_endings
from rlhfkit.models.hidden_states import predicting_hidden
from rlhfkit.models.inspection import context_of
from rlhfkit.models.layers import recompute_layers, trunk_hidden
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.models.lora import merged, unwrapped
from rlhfkit.models.policy import PolicyOutput
from rlhfkit.models.saving import check_saved_language_model
from rlhfkit.models.value import ValueHead, ValueNetwork
from rlhfkit.padding import PackedRows, Sequences
from rlhfkit.ppo.logprobs import token_logprobs
from rlhfkit.rundir.atomic import write_json

__all__ = ["LanguageModel", "TextPolicy", "spread"]

# Finite, so that p log p stays 0 and not NaN where the probability is 0.
NEVER = -1e9
# At a time, in 32 MiB of float32. Entropy needs a few tensors of this size.
MOST_LOGITS = 2**23
# As many more where a gradient is wanted, since then all but a single chunk are computed twice.
GRADIENT_FACTOR = 2


class LanguageModel(nn.Module):
    """Trunk (ids → hidden states) and head (hidden states → logits) of a causal language model.

    The head runs only on the positions that are asked for, and PAD, which no text holds, has no probability.
    """

    _pad_index: Tensor

    def __init__(self, causal_lm: PreTrainedModel | PeftModel, encoder: Encoder) -> None:
        """Take `causal_lm` apart and make sure that the parts still give its logits.

        Raises: ModelError where they do not, because the architecture does something between trunk and head.
        """
        super().__init__()
        self.causal_lm = causal_lm
        self.encoder = encoder
        self.config: PreTrainedConfig = unwrapped(causal_lm).config
        self.is_compiled = False
        self.computes_in: torch.dtype | None = None
        """Where weights are kept in another type than that of the passes, as parted ones are."""
        self.paths = FastPaths()
        self.stem: Stem | None = None  # what it begins with, in common with others
        # As a tensor on the model's device: a number would be copied there anew by every step of decoding.
        self.register_buffer("_pad_index", torch.tensor(encoder.pad_id, device=self.device), persistent=False)
        self._refuse_unknown_layers()
        self._refuse_different_logits()
        self._refuse_where_masks_are_not_heeded()

    def _refuse_unknown_layers(self) -> None:
        unknown = set(getattr(self.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if unknown:
            raise ModelError(
                f"{self.config.model_type} has layers of type {', '.join(sorted(unknown))}; the sampler knows full and "
                "sliding attention. Choose a model of another architecture"
            )

    @torch.no_grad()
    def _refuse_different_logits(self) -> None:
        ids = torch.tensor([[self.encoder.eos_id] * 3], device=self.device)
        expected = unwrapped(self.causal_lm)(input_ids=ids, use_cache=False).logits.float()
        if not torch.isfinite(expected).all():
            raise ModelError(f"{self.config.model_type} {self._why_not_finite()}")
        expected[..., self.encoder.pad_id] = NEVER
        found = self.head(self.trunk(ids)).float()
        if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * float(expected[expected > NEVER].abs().max())):
            raise ModelError(
                f"{self.config.model_type} does not compute its logits as head(hidden) alone, so logprobs would be "
                "wrong; choose a model of another architecture"
            )

    def _why_not_finite(self) -> str:
        for name, weight in self.causal_lm.named_parameters():
            if not torch.isfinite(weight).all():
                return f"has weights that are no finite numbers ({name}); copy the model again, or give an earlier one"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"computes logits that are no finite numbers in {dtype}; set model.dtype to another, as to float32"

    @torch.no_grad()
    def _refuse_where_masks_are_not_heeded(self) -> None:
        """Sampling and packed rows hand the trunk masks and positions of their own; here each token sees itself."""
        last = self.vocabulary_tokens - 1
        ids = torch.tensor([[0, 1], [last, 1]], device=self.device)
        positions = torch.zeros_like(ids)
        itself = torch.eye(2, dtype=torch.bool, device=self.device).expand(2, -1, -1)
        masks = additive_masks(self.config, itself, positions, positions, self.dtype)
        try:
            one, other = self.trunk(ids, position_ids=positions, attention_mask=masks)[:, 1].float()
            why = None if torch.allclose(one, other, rtol=0, atol=1e-3 * float(one.abs().max())) else "it looks past it"
        except (IndexError, RuntimeError, TypeError, ValueError) as error:  # whatever it makes of an unknown mask
            why = str(error)
        if why is not None:
            raise ModelError(
                f"{self.config.model_type} does not take a mask and positions for each row, which sampling needs "
                f"({why}); choose a model of another architecture, such as GPT-2, Llama, Qwen, Mistral or Gemma"
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.causal_lm.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the embeddings, so of the hidden states."""
        if self.computes_in is not None:
            return self.computes_in
        return unwrapped(self.causal_lm).get_input_embeddings().get_parameter("weight").dtype

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self._lm_head.get_parameter("weight").shape[1])

    @property
    def vocabulary_tokens(self) -> int:
        """Number of logits at a position."""
        return int(self._lm_head.get_parameter("weight").shape[0])

    def chunk_tokens(self, *, with_gradient: bool) -> int:
        """Positions whose logits exist at a time."""
        most = MOST_LOGITS * (GRADIENT_FACTOR if with_gradient else 1)
        return max(1, most // self.vocabulary_tokens)

    @cached_property
    def reordered_weights(self) -> ReorderedWeights:
        """Linear layers that sampling may run from weights laid out for it."""
        return ReorderedWeights(self.causal_lm, paths=self.paths)

    @property
    def context_tokens(self) -> int | None:
        """Longest sequence that the positions allow, where the model says so."""
        return context_of(self.config)

    def run_compiled(self) -> None:
        """From now on trunk, logprobs and decoding run compiled."""
        compile_layers(self.causal_lm, paths=self.paths)
        self.is_compiled = True

    def trunk(self, ids: Tensor, **options: object) -> Tensor:
        """Hidden states (B, T, H) after the final norm."""
        return trunk_hidden(self.causal_lm, ids, **options)

    def trunk_with_cache(self, ids: Tensor, **options: object) -> Tensor:
        """The same where `past_key_values` holds what was read before."""
        trunk = unwrapped(self.causal_lm).base_model
        hidden: Tensor = trunk(input_ids=ids, use_cache=True, **options).last_hidden_state
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (…, V); PAD has none to speak of."""
        logits: Tensor = self._lm_head(hidden)
        scale = getattr(self.config, "logit_scale", None)
        divisor = getattr(self.config, "logits_scaling", None)
        softcap = getattr(self.config, "final_logit_softcapping", None)
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return logits.index_fill(-1, self._pad_index, NEVER)

    @property
    def _lm_head(self) -> nn.Module:
        head: nn.Module = unwrapped(self.causal_lm).get_output_embeddings()  # type: ignore[no-untyped-call]
        return head

    def predicting_hidden(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Hidden states (N, H) that predict the N sampled tokens, and these tokens (N,)."""
        return predicting_hidden(self.causal_lm, sequences, self.stem, paths=self.paths), sequences.predicting()[2]

    def logprobs(self, sequences: Sequences, *, temperature: float) -> Tensor:
        """(B, R) log-probability of each sampled token; 0 outside the mask."""
        hidden, targets = self.predicting_hidden(sequences.trimmed())
        return spread(self.token_logprobs(hidden, targets, temperature=temperature)[0], sequences.mask)

    def packed_logprobs(self, rows: PackedRows, masks: Tensor | dict[str, Tensor]) -> Tensor:
        """(N,) log-probability of each learnt token, in row-major order."""
        hidden = self.trunk(rows.ids, position_ids=rows.position_ids, attention_mask=masks)
        learnt = rows.targets[:, 1:]
        return self.token_logprobs(hidden[:, :-1][learnt], rows.ids[:, 1:][learnt])[0]

    def token_logprobs(
        self, hidden: Tensor, targets: Tensor, *, temperature: float = 1.0, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(log-probability (N,) of each target, entropy (N,) or None), from the hidden states (N, H) before them."""
        return token_logprobs(
            hidden,
            self.head,
            targets,
            temperature=temperature,
            chunk_tokens=self.chunk_tokens(with_gradient=torch.is_grad_enabled()),
            with_entropy=with_entropy,
            prepared=partial(compiled, paths=self.paths) if self.is_compiled else None,
        )

    def save(self, directory: Path) -> None:
        """Write a directory that `transformers` alone can load: adapters folded in, tokenizer and template beside.

        Raises: ModelError where what it loads computes other logits, or ends responses with other tokens.
        """
        set_endings(unwrapped(self.causal_lm), self.encoder)
        with quiet_transformers():
            merged(self.causal_lm).save_pretrained(directory)
            self.encoder.tokenizer.save_pretrained(directory)
        write_json(directory / "rlhfkit.json", {"template": self.encoder.template_hash})
        check_saved_language_model(
            directory, unwrapped(self.causal_lm), self.encoder, lambda ids: self.head(self.trunk(ids))
        )

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """The model as it was before its adapters; without adapters this does nothing."""
        with self.causal_lm.disable_adapter() if isinstance(self.causal_lm, PeftModel) else nullcontext():
            yield


class TextPolicy(nn.Module):
    """A language model as actor, and its critic."""

    def __init__(
        self, language_model: LanguageModel, critic: ValueHead | ValueNetwork | None, *, temperature: float
    ) -> None:
        """Act by `language_model` at `temperature`; `critic` is a head on its trunk, a network of its own, or None."""
        super().__init__()
        self.language_model = language_model
        self.critic = critic
        self.temperature = temperature

    def recompute_layers(self) -> None:
        """From now on the backward pass computes layers a second time, to save memory."""
        recompute_layers(self.language_model.causal_lm)
        if isinstance(self.critic, ValueNetwork):
            recompute_layers(self.critic.classifier)

    def read_once(self, inputs: Sequences, *, max_tokens: int) -> Sequences:
        """`inputs` with what the layers that nothing trains make of them, if there are any."""
        stem = self.language_model.stem
        return inputs if stem is None else stem.read(inputs, max_tokens=max_tokens)

    def logprobs_without_adapters(self, inputs: Sequences) -> Tensor:
        """(B, R) of the sampled tokens under the model as it was before its adapters."""
        with self.language_model.adapters_off():
            return self.language_model.logprobs(inputs, temperature=self.temperature)

    def packed_logprobs(self, rows: PackedRows, masks: Tensor | dict[str, Tensor]) -> Tensor:
        """(N,) of each learnt token, as `LanguageModel.packed_logprobs`: of texts, so at temperature 1."""
        return self.language_model.packed_logprobs(rows, masks)

    def evaluate(self, inputs: Sequences, *, with_entropy: bool = True) -> PolicyOutput:
        """Logprobs, entropy and values (B, R) of the sampled tokens, with gradients."""
        inputs_trimmed, mask = inputs.trimmed(), inputs.mask
        hidden, targets = self.language_model.predicting_hidden(inputs_trimmed)
        logprobs, entropy = self.language_model.token_logprobs(
            hidden, targets, temperature=self.temperature, with_entropy=with_entropy
        )
        match self.critic:
            case None:
                values = torch.zeros_like(logprobs)
            case ValueHead():
                values = self.critic(hidden)
            case ValueNetwork():
                values = self.critic(inputs_trimmed)
        return PolicyOutput(
            spread(logprobs, mask), None if entropy is None else spread(entropy, mask), spread(values, mask)
        )


def spread(tokens: Tensor, mask: Tensor) -> Tensor:
    """(N,) numbers of the tokens in `mask`, in row-major order, as (B, R) with 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=tokens.dtype, device=tokens.device).masked_scatter(mask, tokens)
