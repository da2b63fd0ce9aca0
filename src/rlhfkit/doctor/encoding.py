"""Tokenizer and chat template: what the first prompt becomes, token by token, and whether its parts belong together."""

import re
from collections.abc import Iterator, Sequence

from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.doctor.findings import Finding, fault, ok, warning
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.loading import load_tokenizer
from rlhfkit.records import Message, Prompt

__all__ = ["examine_first_prompt", "examine_joins", "examine_special_tokens", "examine_template", "shown_tokens"]

SHOWN_TOKENS = 24
MARK = re.compile(r"<\|[^|<>\s]+\|>|<(?:start|end)_of_turn>|\[/?INST\]|<<?/?SYS>>?|</?s>")
"""What templates write around turns, each of which is one token for the tokenizer that the template belongs to."""

ASKED, ANSWERED = "Is the sky blue?", "Yes, it is."


def examine_special_tokens(source: PretrainedModelConfig) -> Iterator[Finding]:
    """PAD and EOS as they come with the model, before anything is changed."""
    name = "model.pad_and_eos"
    tokenizer, notes = load_tokenizer(source)
    eos = f"EOS {tokenizer.eos_token!r} is token {tokenizer.eos_token_id}"
    shared = next((note for note in notes if "had PAD " in note), None)
    if shared is not None:
        why = shared.partition(" had ")[2].partition(": added")[0]
        yield warning(
            name,
            f"{eos}; the tokenizer has {why}",
            f"nothing has to be done: a PAD of its own is added as token {tokenizer.pad_token_id}; other tools need "
            "pad_token set in tokenizer_config.json",
        )
    elif notes:
        yield ok(name, f"{eos}; {'; '.join(notes)}")
    else:
        yield ok(name, f"{eos}, PAD {tokenizer.pad_token!r} is token {tokenizer.pad_token_id}")


def examine_template(encoder: Encoder, *, goes_on: bool = False) -> Iterator[Finding]:
    """Whether the chat template says what the user said, lets the assistant begin, and joins prompt and response.

    `goes_on` says that the user speaks again after a response, as in an environment.
    """
    name = "model.template"
    if encoder.uses_fallback:
        yield ok(name, "none of its own; conversations become transcripts, Human: … Assistant: …")
        return
    faults = list(_faults_of_template(name, encoder, goes_on=goes_on))
    yield from faults
    if not faults:
        ending = encoder.turns.closing.strip()
        how = f"{ending} ends a response" if ending else "it writes no ending, so that EOS ends a response"
        yield ok(name, f"turns are marked by {', '.join(_marks(encoder)) or 'words alone'}; {how}")


def _faults_of_template(name: str, encoder: Encoder, *, goes_on: bool) -> Iterator[Finding]:
    remedy = "set model.chat_template to the template that the model was trained with"
    turns = encoder.turns
    if turns.fault:
        yield fault(name, turns.fault, remedy)
        return
    split = [mark for mark in _marks(encoder) if len(_ids(encoder, mark)) > 1]
    if split:
        yield fault(
            name,
            f"{', '.join(split)} {'is' if len(split) == 1 else 'are'} no token of this tokenizer, which reads "
            f"{split[0]!r} as {len(_ids(encoder, split[0]))}: the template is another model's",
            remedy,
        )
        return
    if goes_on and turns.earlier_fault:
        yield fault(name, f"the user's next turn cannot be written: {turns.earlier_fault}", remedy)
    if turns.header:
        yield warning(
            name,
            "add_generation_prompt changes nothing, so the assistant's header is taken from finished conversations: "
            f"prompts end with {turns.header!r}",
            "nothing has to be done here; other tools need a template that writes it",
        )
    elif not _asked(encoder).rpartition(ASKED)[2].strip():
        yield warning(
            name,
            "nothing follows the user's words (add_generation_prompt changes nothing), so the model may go on as the "
            "user",
            remedy,
        )
    if turns.opened:
        yield warning(
            name,
            f"prompts end with {turns.opened!r}, which a finished conversation has not: SFT and reward model read "
            "responses without it, and the policy samples with it",
            "give a template that writes the same in both, if there is SFT",
        )


def examine_joins(remarks: Sequence[str]) -> Iterator[Finding]:
    """Rows whose prompt and response do not join as the chat template would; `remarks` are what a run warns of."""
    name = "data.joins"
    for remark in remarks:
        seen, _, remedy = remark.removeprefix("data.").partition("; ")
        yield warning(name, seen, remedy)
    if not remarks:
        yield ok(name, "prompt and response have the ids that the tokenizer gives to both as one")


def _asked(encoder: Encoder) -> str:
    return encoder.prompt_text(Prompt((Message("user", ASKED),)))


def _marks(encoder: Encoder) -> list[str]:
    """Marks in what the template writes, rather than in its source, where they may be in a branch that is not taken."""
    text = encoder.conversation_text(Prompt((Message("user", ASKED),)), ANSWERED) + _asked(encoder)
    return list(dict.fromkeys(MARK.findall(text)))


def _ids(encoder: Encoder, text: str) -> list[int]:
    ids: list[int] = encoder.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return ids


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
