"""Scores of a reward model, ours or somebody else's, read with its own tokenizer and chat template."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfkit.config.schema import RewardModelRewardConfig
from rlhfkit.errors import ConfigError
from rlhfkit.models.reward_model import Normalization, RewardModel, reward_ids
from rlhfkit.padding import length_buckets, pad_right
from rlhfkit.rewards.source import ScoredText, check_scores

__all__ = ["ClassifierReward", "RewardModelReward"]


class RewardModelReward:
    """Normalised score of a reward model that rlhfkit trained."""

    def __init__(
        self, model: RewardModel, normalization: Normalization, *, max_tokens: int = 512, batch_tokens: int = 16384
    ) -> None:
        """Score with `model`; the beginning of longer sequences is lost."""
        self.model, self.normalization = model, normalization
        self.max_tokens, self.batch_tokens = max_tokens, batch_tokens

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
        device = next(self.model.parameters()).device
        scores = torch.zeros(len(rows))
        for group in length_buckets([len(row) for row in rows], max_tokens=self.batch_tokens):
            part = [rows[index] for index in group]
            ids = pad_right(part, pad=self.model.encoder.pad_id, device=device)
            scores[group] = self.model(ids, torch.tensor([len(row) for row in part], device=device)).cpu()
        return scores


class ClassifierReward:
    """One output of any sequence-classification model, such as a sentiment classifier, as its authors feed it."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: RewardModelRewardConfig
    ) -> None:
        """Score with output `config.label` of `model`.

        Raises: ConfigError where the label is missing, or is none of the model's.
        """
        names = model.config.id2label or {}
        if config.label is None and len(names) > 1:
            raise ConfigError(
                f"{config.path!r} has {len(names)} outputs ({', '.join(f'{k}={v}' for k, v in names.items())}); set "
                "reward.label to the number of the one to maximise"
            )
        if config.label is not None and config.label >= len(names):
            raise ConfigError(f"reward.label = {config.label}, but {config.path!r} has outputs 0 to {len(names) - 1}")
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.label = config.label or 0

    @torch.inference_mode()
    def score(self, episodes: Sequence[ScoredText]) -> Tensor:
        """Raw output (B,) of the label; for several outputs, its log-probability."""
        scores = torch.zeros(len(episodes))
        texts = [self._text(episode) for episode in episodes]
        lengths = [
            len(ids) for ids in self.tokenizer(texts, truncation=True, max_length=self.config.max_tokens).input_ids
        ]
        for group in length_buckets(lengths, max_tokens=self.config.batch_tokens):
            batch = self.tokenizer(
                [texts[index] for index in group],
                truncation=True,
                max_length=self.config.max_tokens,
                padding=True,
                return_tensors="pt",
            ).to(self.model.device)
            logits = self.model(**batch).logits.float()
            if logits.shape[1] > 1:
                logits = logits.log_softmax(-1)
            scores[group] = logits[:, self.label].cpu()
        return check_scores(scores, episodes, source=f"reward model {self.config.path}")

    def _text(self, episode: ScoredText) -> str:
        """The whole conversation in the model's own chat template, or prompt and response as one text."""
        content = episode.prompt.content
        if isinstance(content, str) or not self.tokenizer.chat_template:
            return episode.prompt_text + episode.response
        messages = [{"role": message.role, "content": message.content} for message in content]
        messages.append({"role": "assistant", "content": episode.response})
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))
