"""Tiny models of many families, saved as real Hugging Face directories.

Their weights are random but large: with the usual small ones every distribution would be nearly uniform, attention
would hardly look anywhere, and a wrong mask or position would go unnoticed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rlhfkit.config.data import DataConfig, RowsConfig
from rlhfkit.config.model import LoraConfig, PretrainedModelConfig
from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.rewards import RewardModelRewardConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.loading import load_causal_lm, load_tokenizer
from rlhfkit.pipeline.build import Builder
from rlhfkit.pipeline.parted import part_policy
from rlhfkit.records import Prompt
from rlhfkit.rewards.source import RewardSource, ScoredText
from rlhfkit.rollout.text import TextRollout
from rlhfkit.rundir.directory import RunDir
from rlhfkit.training.ppo import PpoTrainer, kl_controller, optimizers_for

Directory = Callable[[str], Path]
"""Name of a family -> where a model of it is saved."""

CPU = torch.device("cpu")
EOS, PAD = 256, 257
CONTEXT = 64
WINDOW = 6

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neox": {},
    "llama": {"num_key_value_heads": 2},
    # Its first layer looks everywhere, its second no further than the window.
    "qwen2": {
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "mistral": {"num_key_value_heads": 2, "sliding_window": WINDOW},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "phi3": {"num_key_value_heads": 2, "sliding_window": WINDOW},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
# Further architectures, for what is peculiar to them: logits that are capped, or scaled.
MORE_FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.25},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 4.0},
    # Heads that may look at nothing, and experts.
    "gpt_oss": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": WINDOW, "num_local_experts": 4},
}


def byte_tokenizer(**special_tokens: str) -> PreTrainedTokenizerFast:
    """One token a byte; EOS 256 and PAD 257, unless `special_tokens` says otherwise."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **(special_tokens or {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"})
    )


def save_family(
    family: str, directory: Path, *, tokenizer: PreTrainedTokenizerFast | None = None, seed: int = 0, **config: Any
) -> Path:
    """A causal language model of `family`, two layers of width 32, with its tokenizer in `directory`."""
    tokenizer = tokenizer or byte_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
        "init_std": 0.3,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family not in ("gpt2", "opt"):
        settings["intermediate_size"] = 48
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **{**settings, **{**FAMILIES, **MORE_FAMILIES}[family], **config})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:  # norms and biases, which are born as ones and zeros
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load(
    directory: Path,
    *,
    chat_template: str | None = None,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """The language model in `directory`, as rlhfkit reads it."""
    config = PretrainedModelConfig(path=str(directory))
    tokenizer, _ = load_tokenizer(config)
    model, _ = load_causal_lm(config, tokenizer, device=device, dtype=dtype)
    return LanguageModel(model, Encoder(tokenizer, chat_template=chat_template))


def builder(
    model: Path,
    run: Path,
    *,
    lora: LoraConfig | None = None,
    num_trained_layers: int | None = None,
    ppo: PpoConfig | None = None,
    rollout: RolloutConfig | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: Literal["cpu", "cuda"] = "cpu",
    gradient_checkpointing: bool | Literal["auto"] = "auto",
) -> Builder:
    """A builder for a recipe whose only stage is PPO on the model in a directory."""
    recipe = Recipe(
        name="tiny",
        stages=("ppo",),
        model=PretrainedModelConfig(
            path=str(model),
            device=device,
            dtype=dtype,
            lora=lora,
            num_trained_layers=num_trained_layers,
            gradient_checkpointing=gradient_checkpointing,
        ),
        data=DataConfig(prompts=RowsConfig(path="prompts.jsonl"), max_prompt_tokens=24),
        reward=RewardModelRewardConfig(type="reward_model", path="elsewhere"),
        rollout=rollout or RolloutConfig(max_response_tokens=16),
        ppo=ppo or PpoConfig(),
    )
    return Builder(recipe, RunDir(run))


class Ascii:
    """A reward that is seldom the same twice: how many letters are ASCII, and a little for the length."""

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        texts = [episode.response for episode in episodes]
        return torch.tensor([sum(letter.isascii() for letter in text) + 0.1 * len(text) for text in texts])


def ppo_trainer(
    builder: Builder,
    *,
    prompts: Sequence[str] = ("a", "Once upon a time", "be", "There was"),
    reward: RewardSource | None = None,
) -> PpoTrainer:
    """A trainer as the pipeline makes it; where ranks part weights, with parted ones."""
    policy, config = builder.policy(), builder.recipe.ppo
    encoder = policy.language_model.encoder
    engine = builder.sampler_of(None) if ranks().shards else None
    rollout = TextRollout(
        policy,
        builder.reference(policy),
        reward or Ascii(),
        [encoder.encode(Prompt(text), max_tokens=24) for text in prompts],
        rollout=builder.recipe.rollout,
        ppo=config,
        seed=0,
        engine=engine,
    )
    part_policy(policy, has_value_optimizer=config.value_optim is not None, seed=0)
    kl = kl_controller(config.kl)
    return PpoTrainer(policy, rollout, config, optimizers_for(policy, config, seed=0), 0, kl, kl.initial_coef)
