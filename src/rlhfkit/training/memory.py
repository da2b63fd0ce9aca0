"""How much memory a stage will need, how many tokens fit into a microbatch, and how much it then needed.

What a forward pass keeps for the backward pass is not guessed from the architecture: it is counted, on two rows of the
length that the stage will see.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import ConfigError
from rlhfkit.machine.device import available_bytes, held_bytes
from rlhfkit.machine.dtype import bfloat16_saves
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.layers import trunk_hidden
from rlhfkit.models.reward_model import RewardModel
from rlhfkit.models.value import ValueNetwork
from rlhfkit.rollout.generation import worth_reordering
from rlhfkit.rollout.kv_cache import SlotCache

__all__ = ["MemoryPlan", "bytes_kept", "fits", "plan_of_ppo", "plan_of_supervised", "tokens_that_fit"]

TRIAL_ROWS = 2
# Beside what was kept, the backward pass holds gradients of it, and the allocator holes: 1.4 to 1.5 times, measured.
BACKWARD_FACTOR = 1.5
# Programs and buffers that libraries make for each shape they meet, measured on a CPU.
LIBRARY_BYTES = 100 * 2**20
# What is left to the rest of the machine, and to what the allocator cannot use.
SHARE_OF_AVAILABLE = 0.8
# More tokens than this in a pass bring no speed on a CPU, and little on a GPU.
MOST_TOKENS = {"cpu": 8192, "cuda": 65536, "mps": 16384}
GRANULE_TOKENS = 64
# With fewer in a pass, computing layers twice costs less time than many small passes.
ENOUGH_TOKENS = 1024


@dataclass(frozen=True)
class MemoryPlan:
    """What a stage needs beyond what the process holds before it begins, in bytes."""

    held: int
    """Held already: the program, the weights of all models, float32 masters."""
    optimizer: int
    """Adam's two averages, and gradients."""
    per_token: int
    """Kept for the backward pass, for each token of a microbatch."""
    head: int
    """Logits of one chunk and their gradient."""
    sampling: int
    """Keys, values and logits while responses are sampled; the microbatch is not there then."""
    scoring: int
    """A pass over responses that keeps nothing for a gradient, with the logits of a chunk; at another time again."""
    stem: int
    """What layers that nothing trains make of the episodes of two iterations: of one while the next is sampled."""
    checkpoint: int
    """The copy of all that learns, which a thread writes while training goes on; a GPU's is not on the GPU."""
    longest: int
    """Tokens of the longest sequence."""
    minibatch_tokens: int
    """Tokens of a minibatch, more than which no microbatch has."""
    ema: int = 0
    """The average of the policy's weights; a checkpoint has it too."""
    libraries: int = LIBRARY_BYTES
    """What libraries take while the stage runs."""

    def peak(self, microbatch_tokens: int) -> int:
        """Most that the process will hold."""
        tokens = min(microbatch_tokens, self.minibatch_tokens)
        return self.held + self.fixed + max(self.per_token * tokens + self.head, self.sampling, self.scoring)

    def parted(self, module: nn.Module) -> "MemoryPlan":
        """The same once the weights of `module`, which are whole now, are parted among the ranks.

        A rank has its rows of the float32 weights, gradients and averages; of what a pass gathers, two layers and what
        is in no layer are there at a time, with their gradients.
        """
        size, learning, frozen, passing = ranks().size, 0, 0, 0
        for parameter in module.parameters():
            learning += parameter.numel() * parameter.requires_grad
            frozen += parameter.nbytes * (not parameter.requires_grad)
            passing += parameter.nbytes * parameter.requires_grad
        lists = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part)]
        in_layers = sum(_nbytes(part) for part in lists)
        gathered = 2 * (_nbytes(module) - in_layers + sum(2 * _nbytes(part) // len(part) for part in lists))
        return replace(
            self,
            held=self.held - passing - frozen + (4 * learning + frozen) // size,
            optimizer=self.optimizer // size + gathered,
            ema=self.ema // size,
            checkpoint=(3 * 4 * learning + self.ema) // size if self.checkpoint else 0,
        )

    @property
    def fixed(self) -> int:
        """What is there from the first update on, whatever a microbatch has."""
        return self.optimizer + self.ema + self.checkpoint + self.stem + self.libraries

    def as_facts(self, microbatch_tokens: int) -> dict[str, Any]:
        """For the manifest."""
        return {
            "microbatch_tokens": microbatch_tokens,
            "predicted_peak_bytes": self.peak(microbatch_tokens),
            "held_bytes": self.held,
            "optimizer_bytes": self.optimizer,
            "bytes_per_token": self.per_token,
            "head_bytes": self.head,
            "sampling_bytes": self.sampling,
            "scoring_bytes": self.scoring,
            "stem_bytes": self.stem,
            "checkpoint_bytes": self.checkpoint,
            "ema_bytes": self.ema,
        }


def _nbytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def plan_of_ppo(policy: TextPolicy, *, prompt_tokens: int, rollout: RolloutConfig, ppo: PpoConfig) -> MemoryPlan:
    """What PPO needs for prompts of `prompt_tokens`, all models and optimizers being there already."""
    model = policy.language_model
    longest = prompt_tokens + rollout.max_response_tokens
    if model.context_tokens is not None:
        longest = min(longest, model.context_tokens)
    networks = [model.causal_lm]
    if isinstance(policy.critic, ValueNetwork):
        networks.append(policy.critic.classifier)
    slots = min(rollout.slots, ppo.rollout_episodes)
    kept = [_kept_per_token(network, model.encoder.eos_id, longest) for network in networks]
    ema = 0 if ppo.ema is None else ema_bytes(model.parameters())
    return MemoryPlan(
        optimizer=optimizer_bytes(policy.parameters()),
        checkpoint=checkpoint_bytes(policy.parameters()) + (ema if model.device.type == "cpu" else 0),
        ema=ema,
        stem=2 * ppo.rollout_episodes * longest * model.width * model.dtype.itemsize if model.stem is not None else 0,
        per_token=int(BACKWARD_FACTOR * sum(kept)),
        head=_head_bytes(model, ppo.minibatch_episodes * rollout.max_response_tokens),
        sampling=_sampling_bytes(model, rollout, slots, longest),
        scoring=_scoring_bytes(model, kept[0], min(ppo.forward_tokens, ppo.rollout_episodes * longest)),
        longest=longest,
        minibatch_tokens=ppo.minibatch_episodes * longest,
        held=held_bytes(model.device),  # the last, since the first passes make libraries take what they need
    )


def _kept_per_token(network: PreTrainedModel | PeftModel, token: int, longest: int) -> int:
    ids = torch.full((TRIAL_ROWS, longest), token, device=next(network.parameters()).device)
    kept = bytes_kept(lambda: trunk_hidden(network, ids), network.parameters())
    return -(-kept // ids.numel())


def _head_bytes(model: LanguageModel, num_tokens: int) -> int:
    """Logits of `num_tokens` with what their gradient needs, which is about as much again."""
    num_tokens = min(num_tokens, model.chunk_tokens(with_gradient=True))
    hidden = torch.zeros((num_tokens, model.width), device=model.device, dtype=model.dtype, requires_grad=True)
    targets = torch.full((num_tokens,), model.encoder.eos_id, device=model.device)
    return 2 * bytes_kept(lambda: model.token_logprobs(hidden, targets)[0], model.parameters())


def _sampling_bytes(model: LanguageModel, rollout: RolloutConfig, slots: int, longest: int) -> int:
    logits = 4 * model.vocabulary_tokens
    weights = model.reordered_weights.nbytes if worth_reordering(rollout) else 0
    return weights + slots * (longest * SlotCache.of(model, 1, 1).bytes_per_place + 3 * logits)


def _scoring_bytes(model: LanguageModel, kept_per_token: int, num_tokens: int) -> int:
    """What one layer would keep is there at a time; then logits, in the weights' type and four times in float32."""
    below = 0 if model.stem is None else model.stem.num_layers  # which keep nothing
    layers = max(1, int(model.config.num_hidden_layers) - below)
    logits = min(num_tokens, model.chunk_tokens(with_gradient=False)) * model.vocabulary_tokens
    return num_tokens * kept_per_token // layers + logits * (model.dtype.itemsize + 4 * 4)


def bytes_kept(forward: Callable[[], Tensor], parameters: Iterable[nn.Parameter]) -> int:
    """Bytes that autograd keeps between `forward` and its backward pass, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, int] = {}

    held: list[Tensor] = []

    def count(tensor: Tensor) -> None:
        # To give the graph what it would keep makes a circle of the two that nothing collects, weights included.
        held.append(tensor.detach())  # so that its address is not used again
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()

    with torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
        forward()
    return sum(kept.values())


def optimizer_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Adam's two averages and gradients, float32 of each weight that learns; masters are there from the start."""
    num = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return 3 * 4 * num


def ema_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Float32 of each weight that learns."""
    return sum(4 * parameter.numel() for parameter in parameters if parameter.requires_grad)


def checkpoint_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """A copy of the weights that learn, of Adam's averages and of masters. A GPU's is in the memory of the CPU."""
    learning = [parameter for parameter in parameters if parameter.requires_grad and parameter.device.type == "cpu"]
    masters = [parameter for parameter in learning if parameter.dtype != torch.float32]
    return sum((parameter.itemsize + 8) * parameter.numel() for parameter in learning) + sum(
        4 * parameter.numel() for parameter in masters
    )


def plan_of_supervised(model: LanguageModel | RewardModel, *, longest: int, minibatch_tokens: int) -> MemoryPlan:
    """What SFT, pre-training or a reward model needs for rows of `longest` tokens; the optimizer is not there yet."""
    network = model.causal_lm if isinstance(model, LanguageModel) else model.classifier
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    masters = sum(4 * parameter.numel() for parameter in learning if parameter.dtype != torch.float32)
    kept = _kept_per_token(network, model.encoder.eos_id, longest)
    return MemoryPlan(
        optimizer=optimizer_bytes(learning) + masters,
        checkpoint=checkpoint_bytes(learning),
        stem=0,
        per_token=int(BACKWARD_FACTOR * kept),
        head=_head_bytes(model, minibatch_tokens) if isinstance(model, LanguageModel) else 0,
        sampling=0,
        scoring=0,
        longest=longest,
        minibatch_tokens=minibatch_tokens,
        held=held_bytes(next(network.parameters()).device),
    )


def fits(plan: MemoryPlan, device: torch.device, microbatch_tokens: int | Literal["auto"]) -> bool:
    """Whether memory has room for microbatches of so many tokens; with "auto", for a good many."""
    wanted = ENOUGH_TOKENS if microbatch_tokens == "auto" else microbatch_tokens
    return plan.peak(max(wanted, plan.longest)) - plan.held <= SHARE_OF_AVAILABLE * _available(device)


def _available(device: torch.device) -> int:
    """Memory that this process can have: ranks on one machine share that of the CPU, and have a GPU each."""
    return available_bytes(device, shared_by=ranks().local_size)


def tokens_that_fit(plan: MemoryPlan, device: torch.device) -> int:
    """Tokens of a microbatch: as many as memory has room for, not more than a minibatch has or a pass gains from.

    Raises: ConfigError where not even the longest sequence fits.
    """
    available = int(SHARE_OF_AVAILABLE * _available(device))
    room = available - plan.fixed - plan.head
    fitting, longest = room // max(1, plan.per_token), plan.longest
    elsewhere = max(plan.sampling, plan.scoring)
    if fitting < longest or available < plan.fixed + elsewhere:
        smaller_type = ' or model.dtype = "bfloat16"' if bfloat16_saves(device) else ""
        needed = plan.fixed + max(plan.per_token * longest + plan.head, elsewhere)
        raise ConfigError(
            f"a single sequence of {longest} tokens needs {needed / 2**30:.1f} GiB beyond what is loaded, and "
            f"{available / 2**30:.1f} GiB are free; set model.lora{smaller_type}, choose a smaller model, or lower "
            "data.max_prompt_tokens and rollout.max_response_tokens"
        )
    most = min(fitting, MOST_TOKENS[device.type], max(longest, plan.minibatch_tokens))
    return max(longest, most // GRANULE_TOKENS * GRANULE_TOKENS)
