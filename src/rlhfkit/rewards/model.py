"""Scores of a reward model, ours or somebody else's, read with its own tokenizer and chat template."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhfkit.config.schema import RewardModelRewardConfig
from rlhfkit.errors import ConfigError, ModelError
from rlhfkit.models.inspection import context_of
from rlhfkit.models.lora import unwrapped
from rlhfkit.models.reward_model import Normalization, RewardModel, reward_ids
from rlhfkit.models.template import TRANSCRIPT_TEMPLATE
from rlhfkit.padding import length_buckets, microbatches, pad_right
from rlhfkit.rewards.source import ScoredText, check_scores

__all__ = ["ClassifierReward", "RewardModelReward", "choose_output"]


class RewardModelReward:
    """Normalised score of a reward model that rlhfkit trained."""

    def __init__(
        self, model: RewardModel, normalization: Normalization, *, max_tokens: int = 512, batch_tokens: int = 16384
    ) -> None:
        """Score with `model`; the beginning of longer sequences is lost."""
        self.model, self.normalization = model, normalization
        self.max_tokens = min(max_tokens, context_of(unwrapped(model.classifier).config) or max_tokens)
        self.batch_tokens = batch_tokens

    def score(self, episodes: Sequence[ScoredText]) -> Tensor:
        """(raw - mean) / std (B,)."""
        raw = self.raw_scores(episodes)
        return check_scores((raw - self.normalization.mean) / self.normalization.std, episodes, source="reward model")

    @torch.inference_mode()
    def raw_scores(self, episodes: Sequence[ScoredText]) -> Tensor:
        """Scores (B,) before normalisation, on the CPU."""
        rows = [
            reward_ids(
                self.model.encoder,
                episode.prompt,
                episode.response,
                finished=episode.finished,
                max_tokens=self.max_tokens,
            )
            for episode in episodes
        ]
        device = self.model.device
        scores = torch.zeros(len(rows))
        for group in microbatches([len(row) for row in rows], max_tokens=self.batch_tokens, device=device):
            part = [rows[index] for index in group]
            ids = pad_right(part, pad=self.model.encoder.pad_id, device=device)
            scores[group] = self.model(ids, torch.tensor([len(row) for row in part], device=device)).cpu()
        return scores


def choose_output(model: PreTrainedConfig, config: RewardModelRewardConfig) -> int:
    """Number of the output that is the score.

    Raises: ModelError where the model writes text instead; ConfigError where the label is missing, or is none of its.
    """
    architecture = next(iter(model.architectures or ()), "")
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ModelError(
            f"{config.path!r} is a language model ({architecture}), which scores nothing; give a reward model or "
            "another sequence-classification model"
        )
    names = model.id2label or {}
    if config.label is None and len(names) > 1:
        raise ConfigError(
            f"{config.path!r} has {len(names)} outputs ({', '.join(f'{k}={v}' for k, v in names.items())}); set "
            "reward.label to the number of the one to maximise"
        )
    if config.label is not None and config.label >= len(names):
        raise ConfigError(f"reward.label = {config.label}, but {config.path!r} has outputs 0 to {len(names) - 1}")
    return config.label or 0


class ClassifierReward:
    """One output of any sequence-classification model, such as a sentiment classifier, as its authors feed it."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: RewardModelRewardConfig
    ) -> None:
        """Score with output `config.label` of `model`.

        Raises: as `choose_output`.
        """
        self.label = choose_output(model.config, config)
        tokenizer.truncation_side = "left"  # what is judged stands at the end
        self.model, self.tokenizer, self.config = model, tokenizer, config
        context = context_of(model.config) or config.max_tokens
        self.max_tokens = min(config.max_tokens, tokenizer.model_max_length, context)

    @torch.inference_mode()
    def score(self, episodes: Sequence[ScoredText]) -> Tensor:
        """Raw output (B,) of the label; for several outputs, its log-probability."""
        scores = torch.zeros(len(episodes))
        rows = [self._ids(episode) for episode in episodes]
        device = self.model.device
        for group in length_buckets([len(row) for row in rows], max_tokens=self.config.batch_tokens, device=device):
            part = [rows[index] for index in group]
            ids = pad_right(part, pad=self.tokenizer.pad_token_id, device=device)
            is_token = pad_right([[1] * len(row) for row in part], pad=0, device=device)
            logits = self.model(input_ids=ids, attention_mask=is_token).logits.float()
            if logits.shape[1] > 1:
                logits = logits.log_softmax(-1)
            scores[group] = logits[:, self.label].cpu()
        return check_scores(scores, episodes, source=f"reward model {self.config.path}")

    def _ids(self, episode: ScoredText) -> list[int]:
        """Prompt and response as one text, a conversation by the model's own chat template or as a transcript."""
        content, template = episode.prompt.content, self.tokenizer.chat_template
        text, has_special_tokens = episode.prompt_text + episode.response, False
        if not isinstance(content, str):
            messages = [{"role": message.role, "content": message.content} for message in content]
            messages.append({"role": "assistant", "content": episode.response})
            chat_template = template or TRANSCRIPT_TEMPLATE
            text = str(self.tokenizer.apply_chat_template(messages, chat_template=chat_template, tokenize=False))
            has_special_tokens = template is not None
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=not has_special_tokens, truncation=True, max_length=self.max_tokens
        )["input_ids"]
        return ids
