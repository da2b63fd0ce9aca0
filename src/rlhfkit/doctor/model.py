"""Whether weights and tokenizer belong together, and whether the weights have learnt anything."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rlhfkit.diagnosis.limits import ORDER_NATS, SPARE_TOKENS
from rlhfkit.doctor.findings import Finding, fault, ok, skipped, warning
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.lora import unwrapped

__all__ = ["distributions", "examine_likelihood", "examine_vocabulary"]

LONGEST_TEXT = 64
FEWEST_TOKENS = 32


def examine_vocabulary(model: LanguageModel, *, num_rows: int, num_added: int) -> Iterator[Finding]:
    """Whether the tokenizer has as many tokens as the model's files have embeddings (`num_rows`), and the same EOS.

    `num_added` tokens, such as PAD, are rlhfkit's own, for which the files can have none. An EOS that the chat template
    itself names was chosen for it, whatever the model's files say: what is trained is written into what is saved.
    """
    name, num_tokens = "model.vocabulary", len(model.encoder.tokenizer) - num_added
    remedy = "give the tokenizer that the model was trained with: copy its files beside config.json"
    words = f"{num_tokens:,} tokens, {num_rows:,} embeddings"
    endings = _configured_eos(model)
    if num_tokens > num_rows:
        yield fault(name, f"{words}: {num_tokens - num_rows:,} tokens have none, and begin at random", remedy)
    elif num_tokens < (1 - SPARE_TOKENS) * num_rows:
        yield warning(
            name, f"{words}, so {1 - num_tokens / num_rows:.0%} of what the model can say is no token", remedy
        )
    elif endings and not endings & {*model.encoder.eos_ids} and not _template_names_eos(model):
        listed = ", ".join(map(str, sorted(endings)))
        yield warning(
            name,
            f"the tokenizer's EOS is token {model.encoder.eos_id}, and the model's config.json says {listed}",
            f"{remedy}, or fix eos_token",
        )
    else:
        yield ok(name, words)


def _template_names_eos(model: LanguageModel) -> bool:
    return str(model.encoder.tokenizer.eos_token) in model.encoder.chat_template


def _configured_eos(model: LanguageModel) -> set[int]:
    found: set[int] = set()
    for config in (model.config, model.causal_lm.generation_config):
        value = getattr(config, "eos_token_id", None)
        found |= set(value) if isinstance(value, list) else set() if value is None else {int(value)}
    return found


def examine_likelihood(model: LanguageModel, texts: Sequence[str], *, seed: int = 0) -> Iterator[Finding]:
    """Whether the model finds the recipe's own texts likelier than chance, and than their tokens in another order.

    loss = - mean of log p(token | tokens before), in nats; a token drawn blindly from V has log V
    """
    name = "model.likelihood"
    rows = [ids[:LONGEST_TEXT] for text in texts if len(ids := _ids(model, text)) >= 4]
    num_tokens = sum(len(row) - 1 for row in rows)
    if num_tokens < FEWEST_TOKENS:
        yield skipped(name, "the recipe's data have too little text to tell whether the model can read it")
        return
    generator = torch.Generator().manual_seed(seed)
    mixed = [[row[place] for place in torch.randperm(len(row), generator=generator).tolist()] for row in rows]
    loss, loss_mixed = _loss(model, rows), _loss(model, mixed)
    chance = math.log(len(model.encoder.tokenizer))
    words = (
        f"{loss:.2f} nats a token on the recipe's own texts; chance is {chance:.2f}, the same tokens in another order "
        f"{loss_mixed:.2f}"
    )
    if not math.isfinite(loss):
        yield fault(name, f"{words}: the weights are damaged", "copy the model again")
    elif loss > chance:
        yield fault(
            name,
            f"{words}: worse than chance, as with the tokenizer of another model, untrained weights, or texts unlike "
            "any that it has read",
            "give the tokenizer that the model was trained with, or a model that knows such texts",
        )
    elif loss_mixed - loss < ORDER_NATS:
        yield warning(
            name,
            f"{words}: the model reads no language in them, as if it were untrained, or they were in a language that "
            "it does not know",
            "give a pre-trained model, or train it on such texts first",
        )
    else:
        yield ok(name, words)


def _ids(model: LanguageModel, text: str) -> list[int]:
    ids: list[int] = model.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _loss(model: LanguageModel, rows: Sequence[Sequence[int]]) -> float:
    total, num = 0.0, 0
    for row in rows:
        log_p = distributions(model, row, temperature=1.0)[:-1]
        targets = torch.tensor(row[1:], device=log_p.device)
        total -= float(log_p.gather(-1, targets[:, None]).sum())
        num += len(row) - 1
    return total / num


@torch.no_grad()
def distributions(model: LanguageModel, ids: Sequence[int], *, temperature: float) -> Tensor:
    """(T, V) log-probabilities of the token after each of T, by the model's own forward pass over one row alone.

    It shares nothing with sampler and training, so that it can tell which of them is wrong.
    """
    row = torch.tensor([list(ids)], device=model.device)
    logits: Tensor = unwrapped(model.causal_lm)(input_ids=row, use_cache=False).logits[0].float()
    logits[:, model.encoder.pad_id] = -torch.inf
    return (logits / temperature).log_softmax(-1)
