"""Scores of a reward model, ours or somebody else's, read with its own tokenizer and chat template."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhfkit.config.rewards import RewardModelRewardConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import ConfigError, DataError, ModelError
from rlhfkit.models.chat_template import ChatTemplate, TemplateFailure, transcript_template
from rlhfkit.models.cutting import cut
from rlhfkit.models.encoder import chosen_template
from rlhfkit.models.inspection import context_of
from rlhfkit.models.lora import unwrapped
from rlhfkit.models.reward_model import Normalization, RewardModel, Scale, read_max_tokens, reward_ids
from rlhfkit.padding import length_buckets, microbatches, pad_right
from rlhfkit.records import Message, Prompt
from rlhfkit.rewards.source import DEFAULT_MAX_TOKENS, ScoredText, check_scores

__all__ = [
    "ClassifierReward",
    "RewardModelReward",
    "choose_output",
    "classifier_template",
    "longest_scored",
    "written_by",
]


class RewardModelReward:
    """Normalised score of a reward model that rlhfkit trained, or of the heads of an ensemble on one trunk."""

    def __init__(
        self,
        model: RewardModel,
        scale: Normalization | Sequence[Scale],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        batch_tokens: int = 16384,
        debias_length: bool = False,
    ) -> None:
        """Score with `model`; the beginning of longer sequences is lost.

        `scale`: of its head, and of the further ones, if any. `debias_length` takes out what goes by the length.
        """
        self.model, self.scales = model, [Scale(scale)] if isinstance(scale, Normalization) else list(scale)
        self.max_tokens = min(max_tokens, context_of(unwrapped(model.classifier).config) or max_tokens)
        self.batch_tokens, self.debias_length = batch_tokens, debias_length

    def score(self, episodes: Sequence[ScoredText]) -> Tensor:
        """(raw - mean) / std (B,) by its own head."""
        return self.score_heads(episodes)[:, 0]

    def score_heads(self, episodes: Sequence[ScoredText]) -> Tensor:
        """Normalised scores (B, heads) of all heads."""
        raw = self.raw_scores(episodes).view(len(episodes), len(self.scales))
        lengths = self.response_tokens(episodes) if self.debias_length else None
        heads = self.normalised(raw, lengths).unbind(1)
        return torch.stack([check_scores(head, episodes, source="reward model") for head in heads], dim=1)

    def normalised(self, raw: Tensor, lengths: Tensor | None) -> Tensor:
        """Raw scores (B, heads) on the scale of each head; `lengths` (B,) of the responses count where debiased."""
        counted = lengths if self.debias_length else None
        columns = [scale.normalised(head, counted) for scale, head in zip(self.scales, raw.unbind(1), strict=True)]
        return torch.stack(columns, dim=1)

    def response_tokens(self, episodes: Sequence[ScoredText]) -> Tensor:
        """(B,) tokens of each response as the reward model reads it, with what ends it."""
        joined = self.model.encoder.joined
        return torch.tensor(
            [float(len(joined(episode.prompt, episode.response, finished=episode.finished)[1])) for episode in episodes]
        )

    @torch.inference_mode()
    def raw_scores(self, episodes: Sequence[ScoredText]) -> Tensor:
        """Scores (B,) before normalisation, on the CPU; several ranks share the episodes out.

        (B, heads) where there are further heads.
        """
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
        device, heads = self.model.device, self.model.further_heads
        scores = torch.zeros(len(rows)) if heads is None else torch.zeros(len(rows), 1 + len(heads))
        own = ranks().share(len(rows))
        groups = microbatches([len(rows[row]) for row in own], max_tokens=self.batch_tokens, device=device)
        for places, counts in ranks().in_step(([own[index] for index in group] for group in groups), [0]):
            part = [rows[place] for place in places]
            ids = pad_right(part, pad=self.model.encoder.pad_id, device=device)
            found = self.model(ids, torch.tensor([len(row) for row in part], device=device)).cpu()
            if counts:
                scores[places] = found
        ranks().add_up([scores])  # zero where it is another rank's
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


def _positions_after_pad(model: PreTrainedModel) -> int | None:
    """Longest sequence where positions are counted from behind PAD, as in RoBERTa and its kin; None elsewhere."""
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx is not None
    ]
    return min((table.num_embeddings - int(table.padding_idx or 0) - 1 for table in tables), default=None)


def classifier_template(tokenizer: PreTrainedTokenizerBase, *, now: datetime | None) -> ChatTemplate:
    """What a conversation becomes for somebody else's model: its own chat template, or a transcript."""
    source = chosen_template(tokenizer.chat_template) or transcript_template(bos=False, eos=False)
    return ChatTemplate(source, tokenizer.special_tokens_map, now)


def written_by(template: ChatTemplate, prompt: Prompt, response: str, *, whose: str) -> str:
    """A conversation and the response to it as the template of `whose` model writes them.

    Raises: DataError where the template refuses the conversation, or fails on it.
    """
    if isinstance(prompt.content, str):
        return prompt.content + response
    messages = (*prompt.content, Message("assistant", response))
    try:
        return template.render(messages, generation=False)
    except TemplateFailure as error:
        raise DataError(
            f"{prompt.origin or 'a conversation'} does not fit the chat template of {whose} ({error}), its roles "
            f"being {[message.role for message in messages]}"
        ) from error


class ClassifierReward:
    """One output of any sequence-classification model, such as a sentiment classifier, as its authors feed it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: RewardModelRewardConfig,
        *,
        now: datetime | None = None,
    ) -> None:
        """Score with output `config.label` of `model`; `now` is the date for a chat template that writes it.

        Raises: as `choose_output`.
        """
        self.label = choose_output(model.config, config)
        tokenizer.truncation_side = "left"  # what is judged stands at the end
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self._template = classifier_template(tokenizer, now=now)
        wanted = config.max_tokens or DEFAULT_MAX_TOKENS
        limits = (wanted, tokenizer.model_max_length, context_of(model.config), _positions_after_pad(model))
        self.max_tokens = min(limit for limit in limits if limit is not None)

    @torch.inference_mode()
    def score(self, episodes: Sequence[ScoredText]) -> Tensor:
        """Raw output (B,) of the label; for several outputs, its log-probability."""
        scores, own = torch.zeros(len(episodes)), ranks().share(len(episodes))
        rows = [self._ids(episodes[place]) for place in own]
        device = self.model.device
        for group in length_buckets([len(row) for row in rows], max_tokens=self.config.batch_tokens, device=device):
            part = [rows[index] for index in group]
            ids = pad_right(part, pad=self.tokenizer.pad_token_id, device=device)
            is_token = pad_right([[1] * len(row) for row in part], pad=0, device=device)
            logits = self.model(input_ids=ids, attention_mask=is_token).logits.float()
            if logits.shape[1] > 1:
                logits = logits.log_softmax(-1)
            scores[[own[index] for index in group]] = logits[:, self.label].cpu()
        ranks().add_up([scores])  # zero where it is another rank's
        return check_scores(scores, episodes, source=f"reward model {self.config.path}")

    def _ids(self, episode: ScoredText) -> list[int]:
        """Prompt and response as one text, a conversation by the model's own chat template or as a transcript."""
        if isinstance(episode.prompt.content, str):
            ids: list[int] = self.tokenizer(
                episode.prompt_text + episode.response, truncation=True, max_length=self.max_tokens
            )["input_ids"]
            return ids
        whole = self.conversation_ids(episode.prompt, episode.response)
        if len(whole) <= self.max_tokens:
            return whole
        short = cut(episode.prompt, lambda part: len(self.conversation_ids(part, episode.response)) <= self.max_tokens)
        fewest = self.conversation_ids(short, episode.response)
        spare = len(fewest) - self.max_tokens
        return fewest if spare <= 0 else [fewest[0], *fewest[spare + 1 :]]

    def conversation_ids(self, prompt: Prompt, response: str) -> list[int]:
        """Token ids of the whole conversation, uncut.

        Raises: DataError where the model's chat template refuses it, or fails on it.
        """
        text = written_by(self._template, prompt, response, whose=str(self.config.path))
        is_own = self.tokenizer.chat_template is not None
        ids: list[int] = self.tokenizer(text, add_special_tokens=not is_own, verbose=False)["input_ids"]
        return ids


def longest_scored(config: RewardModelRewardConfig, directory: Path) -> int:
    """Longest sequence that a reward model of ours scores.

    Raises: ConfigError where the recipe wants another than it was trained on: what is cut off would not be scored.
    """
    wanted, trained = config.max_tokens, read_max_tokens(directory)
    if wanted is not None and trained is not None and wanted != trained:
        raise ConfigError(
            f"max_tokens = {wanted} of a reward, but {directory} was trained on sequences of up to {trained} tokens; "
            "leave max_tokens out"
        )
    return trained or wanted or DEFAULT_MAX_TOKENS
