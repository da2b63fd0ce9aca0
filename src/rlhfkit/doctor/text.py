"""Tokenizer and chat template: what the first prompt becomes, token by token, and whether its parts belong together."""

import re
from collections.abc import Iterator, Sequence

import jinja2

from rlhfkit.config.schema import PretrainedModelConfig
from rlhfkit.doctor.findings import Finding, fault, ok, warning
from rlhfkit.models.loading import load_tokenizer
from rlhfkit.models.template import Encoder
from rlhfkit.records import Message, Prompt

__all__ = ["examine_first_prompt", "examine_special_tokens", "examine_template", "shown_tokens"]

SHOWN_TOKENS = 24
MARK = re.compile(r"<\|[^|<>\s]+\|>|<(?:start|end)_of_turn>|\[/?INST\]|<<?/?SYS>>?|</?s>")
"""What templates write around turns, each of which is one token for the tokenizer that the template belongs to."""

ASKED, ANSWERED = "Is the sky blue?", "Yes, it is."


def examine_special_tokens(source: PretrainedModelConfig) -> Iterator[Finding]:
    """PAD and EOS as they come with the model, before anything is mended."""
    name = "model.pad_and_eos"
    tokenizer, notes = load_tokenizer(source)
    eos = f"EOS {tokenizer.eos_token!r} is token {tokenizer.eos_token_id}"
    if any("PAD equal to EOS" in note for note in notes):
        yield warning(
            name,
            f"{eos}, and PAD is the same: where padding is masked, EOS is never learnt",
            f"nothing has to be done: a PAD of its own is added as token {tokenizer.pad_token_id}; other tools need "
            "pad_token set in tokenizer_config.json",
        )
    elif notes:
        yield ok(name, f"{eos}; {'; '.join(notes)}")
    else:
        yield ok(name, f"{eos}, PAD {tokenizer.pad_token!r} is token {tokenizer.pad_token_id}")


def examine_template(encoder: Encoder) -> Iterator[Finding]:
    """Whether the chat template says what the user said, lets the assistant begin, and ends turns as EOS does."""
    name = "model.template"
    if encoder.uses_fallback:
        yield ok(name, "none of its own; conversations become transcripts, Human: … Assistant: …")
        return
    faults = list(_faults_of_template(name, encoder))
    yield from faults
    if not faults:
        yield ok(name, f"turns are marked by {_listed(_marks(encoder)) or 'words alone'}")


def _faults_of_template(name: str, encoder: Encoder) -> Iterator[Finding]:
    remedy = "set model.chat_template to the template that the model was trained with"
    try:
        asked = encoder.prompt_text(Prompt((Message("user", ASKED),)))
        silent = _rendered(encoder, answered=False, generation=False)
        answered = _rendered(encoder, answered=True, generation=False)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        yield fault(name, f"it fails on a question and its answer: {error}", remedy)
        return
    if ASKED not in asked:
        yield fault(name, f"what the user says is not in the prompt, which reads {asked[:60]!r}", remedy)
        return
    if ANSWERED not in answered:
        yield fault(name, "what the assistant says is not in the text, so nothing of it can be learnt", remedy)
        return
    if asked == silent and not asked.rpartition(ASKED)[2].strip():
        yield warning(
            name,
            "nothing follows the user's words (add_generation_prompt changes nothing), so the model may go on as the "
            "user",
            remedy,
        )
    split = [mark for mark in _marks(encoder) if len(_ids(encoder, mark)) > 1]
    if split:
        yield fault(
            name,
            f"{_listed(split)} {'is' if len(split) == 1 else 'are'} no token of this tokenizer, which reads "
            f"{split[0]!r} as {len(_ids(encoder, split[0]))}: the template is another model's",
            remedy,
        )
        return
    after = _ids(encoder, answered.rpartition(ANSWERED)[2].strip())
    if after and after[0] != encoder.eos_id and encoder.tokenizer.convert_ids_to_tokens(after[0]) in _marks(encoder):
        closing = encoder.tokenizer.convert_ids_to_tokens(after[0])
        yield warning(
            name,
            f"it ends the assistant's turn with {closing!r}, and EOS is {encoder.tokenizer.eos_token!r}, so a model "
            "that was trained on it ends a response in a way that is not noticed",
            f'set eos_token to "{closing}" in tokenizer_config.json',
        )


def _rendered(encoder: Encoder, *, answered: bool, generation: bool) -> str:
    turns = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
    chosen = turns if answered else turns[:1]
    return str(encoder.tokenizer.apply_chat_template(chosen, add_generation_prompt=generation, tokenize=False))


def _marks(encoder: Encoder) -> list[str]:
    """Marks in what the template writes, rather than in its source, where they may be in a branch that is not taken."""
    text = _rendered(encoder, answered=True, generation=False) + encoder.prompt_text(Prompt((Message("user", ASKED),)))
    return list(dict.fromkeys(MARK.findall(text)))


def _ids(encoder: Encoder, text: str) -> list[int]:
    ids: list[int] = encoder.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return ids


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def examine_first_prompt(encoder: Encoder, prompt: Prompt, *, max_tokens: int) -> Iterator[Finding]:
    """The first prompt as the model reads it, token by token."""
    name = "model.first_prompt"
    encoded = encoder.encode(prompt, max_tokens=max_tokens)
    ids = list(encoded.ids)
    cut = f", as it was cut to at most {max_tokens}" if encoded.was_cut else ""
    words = f"{len(ids)} tokens{cut}: {shown_tokens(encoder, ids)}"
    bos = encoder.tokenizer.bos_token_id
    unknown = encoder.tokenizer.unk_token_id
    if bos is not None and bos != encoder.eos_id and ids[:2] == [bos, bos]:
        yield warning(name, f"BOS stands twice: {words}", "let the chat template leave it out, or the tokenizer")
    elif encoder.eos_id in ids and not _template_writes_eos(encoder):
        yield warning(name, f"EOS stands within the prompt: {words}", "look at the template and at the row")
    elif unknown is not None and unknown != encoder.eos_id and ids.count(unknown) > len(ids) / 10:
        yield warning(
            name, f"{ids.count(unknown)} tokens are unknown to the tokenizer: {words}", "is it the model's tokenizer?"
        )
    else:
        yield ok(name, words)


def _template_writes_eos(encoder: Encoder) -> bool:
    eos = str(encoder.tokenizer.eos_token)
    return eos in encoder.chat_template or "eos_token" in encoder.chat_template


def shown_tokens(encoder: Encoder, ids: Sequence[int]) -> str:
    """Tokens with their numbers, as "464:'The' 2646:'␣film'"; of many, the first and the last."""
    tokens = [f"{token}:{encoder.tokenizer.decode([token])!r}".replace(" ", "␣") for token in ids]
    if len(tokens) > SHOWN_TOKENS:
        half = SHOWN_TOKENS // 2
        tokens = [*tokens[:half], f"… {len(tokens) - 2 * half} more …", *tokens[-half:]]
    return " ".join(tokens)
