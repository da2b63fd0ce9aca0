"""A small model out of nothing: random weights, and a tokenizer learnt on the texts that it will read."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhfkit.config.model import ScratchModelConfig
from rlhfkit.machine.seeding import seed_everything
from rlhfkit.models.attention import implementations_for

__all__ = ["random_model", "train_tokenizer"]


def random_model(
    config: ScratchModelConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int, device: torch.device
) -> LlamaForCausalLM:
    """A Llama-shaped model with random weights, still on the CPU; `device` is where it will compute."""
    seed_everything(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.context_tokens,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.set_attn_implementation(implementations_for(device)[0])
    return model


def train_tokenizer(texts: list[str], vocabulary_tokens: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with PAD 0 and EOS 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary_tokens,
            special_tokens=["<|pad|>", "<|eos|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|eos|>"
    )
