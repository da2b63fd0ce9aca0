"""Text into tokens, the same way for SFT, reward model, PPO and evaluation."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from rlhfkit.errors import ConfigError, DataError
from rlhfkit.models.chat_template import (
    TRANSCRIPT_TEMPLATE,
    ChatTemplate,
    TemplateFailure,
    read_template,
    transcript_template,
    with_endings,
)
from rlhfkit.models.cutting import cut
from rlhfkit.models.turns import ANSWERED, read_turns
from rlhfkit.records import Conversation, Message, Prompt

__all__ = ["TRANSCRIPT_TEMPLATE", "EncodedPrompt", "Encoder", "chosen_template", "read_template"]

SPELLED = "\ufdd0"
"""Parts a special token that a person spelled, so that neither template nor tokenizer takes it for one; no character
of any text."""

LEAD_INS = ("\n", ".", "0")
"""What stands before a text that is no beginning while it is encoded."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the policy reads it."""

    prompt: Prompt
    text: str
    """Chat template included, as cut."""
    ids: tuple[int, ...]
    was_cut: bool
    share_lost: float = 0.0
    """Of the tokens, what the cut left out."""


def chosen_template(templates: str | Mapping[str, str] | None) -> str | None:
    """The chat template of a tokenizer; of several the one that transformers takes, which is called "default".

    Raises: ConfigError where there are several and none is the default.
    """
    if templates is None or isinstance(templates, str):
        return templates
    if "default" in templates or len(templates) == 1:
        return templates.get("default", next(iter(templates.values())))
    raise ConfigError(
        f"the tokenizer has several chat templates ({', '.join(templates)}), none of which is the default; "
        "write the one to use to a file and set model.chat_template to it"
    )


class Encoder:
    """A tokenizer and a chat template; knows where prompts may be cut and what ends a response."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str | None = None,
        name: str = "",
        now: datetime | None = None,
    ) -> None:
        """Use `chat_template`, or the tokenizer's own, or transcripts.

        `name` says in messages whose template it is; `now` is the date for templates that write it.
        """
        self.tokenizer = tokenizer
        self.name = name
        self.pad_id = int(tokenizer.pad_token_id)
        self.eos_id = int(tokenizer.eos_token_id)
        own = chat_template or chosen_template(tokenizer.chat_template)
        self.chat_template: str = own or transcript_template(bos=self._begins_with_bos)
        self.uses_fallback = self.chat_template in {transcript_template(bos=bos) for bos in (False, True)}
        self.template = ChatTemplate(self.chat_template, tokenizer.special_tokens_map, now)
        self.turns = read_turns(self.template, self._marks)
        self.ends_turns_itself = self._lacks_endings()
        if self.ends_turns_itself:
            self.chat_template = with_endings(self.chat_template)
            self.template = replace(self.template, source=self.chat_template)
            self.turns = read_turns(self.template, self._marks)
        tokenizer.chat_template = self.chat_template
        # Tokenizers like Llama 2's put a space before a text and take it away again when they decode; others put one
        # there and leave it. A response is no beginning, so there it is encoded and decoded after this.
        once = self._raw_ids("a")
        alone = str(tokenizer.decode(once))
        is_plain = tokenizer.decode([*once, *once]) == 2 * alone and alone == alone.strip()
        self._lead_ins = [(text, self._raw_ids(text)) for text in ([""] if is_plain else LEAD_INS)]
        self._lead_in_ids = self._lead_ins[0][1]
        self._lead_in_text = str(tokenizer.decode(self._lead_in_ids))

    # ── what the template says ───────────────────────────────────────────────────────────────────────────────────────

    def _lacks_endings(self) -> bool:
        """Whether nothing tells where an assistant's turn ends in what the template writes, so that EOS has to."""
        turns = self.turns
        is_read = not turns.fault and not turns.earlier_fault
        has_marks = bool(self._marks.search(turns.tail + turns.between))
        return is_read and not has_marks and bool(self._marks.fullmatch(str(self.tokenizer.eos_token)))

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a response: first the one that the template ends the assistant's turn with, then EOS."""
        return tuple(dict.fromkeys([*self._last_mark(self.turns.closing), self.eos_id]))

    @property
    def template_hash(self) -> str:
        """Fingerprint of the chat template, kept with every model that was trained through it."""
        return hashlib.sha256(self.chat_template.encode()).hexdigest()[:16]

    def spelled_marks(self, text: str) -> list[str]:
        """Tokens that only a template may name, and which `text` spells."""
        return list(dict.fromkeys(self._special.findall(text)))

    def marks_in(self, text: str) -> list[str]:
        """Tokens in `text` that the tokenizer has for templates to mark turns with."""
        return list(dict.fromkeys(self._marks.findall(text)))

    # ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as text; a conversation ends where the assistant begins to speak.

        Raises: DataError where the template refuses the conversation, or fails on it.
        """
        return prompt.content if isinstance(prompt.content, str) else _shown(self._asked(prompt, prompt.content))

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of the prompt, with BOS where the tokenizer wants one; a chat template writes its own."""
        if not isinstance(prompt.content, str):
            return self._ids(self._asked(prompt, prompt.content))
        ids = self._raw_ids(prompt.content, add_special_tokens=True, split_special_tokens=True)
        return ids[:-1] if ids[-1:] == [self.eos_id] else ids

    def encode(self, prompt: Prompt, *, max_tokens: int) -> EncodedPrompt:
        """The prompt in at most `max_tokens` tokens.

        A conversation loses its oldest turns first, and then the middle of the last one; plain text loses its
        beginning. Both are cut at a line if one is near, else at a word. The beginning and the end of the template
        always stay.
        Raises: DataError where it is empty, or where not even the template fits.
        """
        ids = whole = self.prompt_ids(prompt)
        if not ids:
            raise DataError(f"{prompt.origin or 'a prompt'} has no tokens; remove it or give it text")
        if len(ids) <= max_tokens:
            return EncodedPrompt(prompt, self.prompt_text(prompt), tuple(ids), was_cut=False)
        short = self.shortened(prompt, max_tokens=max_tokens)
        ids = self.prompt_ids(short)
        if len(ids) > max_tokens:
            raise DataError(
                f"{prompt.origin or 'a prompt'} needs {len(ids)} tokens even when cut, and data.max_prompt_tokens "
                f"is {max_tokens}; raise it, or shorten the chat template"
            )
        lost = 1 - len(ids) / len(whole)
        return EncodedPrompt(short, self.prompt_text(short), tuple(ids), was_cut=True, share_lost=lost)

    def shortened(self, prompt: Prompt, *, max_tokens: int) -> Prompt:
        """The prompt, cut as `encode` cuts it; where nothing fits, the least that there can be."""
        return cut(prompt, lambda part: len(self.prompt_ids(part)) <= max_tokens)

    # ── responses ────────────────────────────────────────────────────────────────────────────────────────────────────

    def response_ids(self, prompt: Prompt, response: str, *, finished: bool = True) -> list[int]:
        """Token ids of a response, with what ends it where it is `finished`; see `joined`."""
        return self.joined(prompt, response, finished=finished)[1]

    def joined(self, prompt: Prompt, response: str, *, finished: bool = True) -> tuple[list[int], list[int]]:
        """(ids of the prompt, ids of the response) that together are what the template writes of both.

        response = the whole conversation - what it begins with in common with the prompt
        A response holds what the template writes around the assistant's words. It ends with what the template ends a
        turn with, or else begins the next one with; without either where it is not `finished`. Where a finished
        conversation lacks what the prompt ends with, as a "<think>", so do the ids of the prompt.
        Raises: DataError where the template refuses the conversation, or fails on it.
        """
        if isinstance(prompt.content, str):
            ids = self._encoded(response, split_special_tokens=True, is_beginning=False)
            return self.prompt_ids(prompt), [*ids, self.eos_id] if finished else ids
        asked = self._asked(prompt, prompt.content)
        text, has_ending = self._answered(prompt, prompt.content, response, finished=finished)
        prompt_ids = self._ids(asked)
        eos = [self.eos_ids[0]] if finished and not has_ending else []
        if not text.startswith(asked):
            ids = self._ids(text)
            shared = _num_shared(prompt_ids, ids)
            return ids[:shared], [*ids[shared:], *eos]
        ids = self._ids(text)
        if ids[: len(prompt_ids)] == prompt_ids:
            return prompt_ids, [*ids[len(prompt_ids) :], *eos]
        return prompt_ids, [*self._ids_after(text[len(asked) :]), *eos]  # where a token would cover both

    def earlier_turns(self, prompt: Prompt) -> list[tuple[int, int]]:
        """Where in the ids of the prompt the assistant's earlier turns stand, each with what ends it.

        Those that the template does not write are left out.
        """
        if isinstance(prompt.content, str) or all(message.role != "assistant" for message in prompt.content):
            return []
        text = self._asked(prompt, prompt.content)
        spans = list(self._spans(prompt, prompt.content, text))
        ids = self._ids(text)
        return [
            (_num_shared(self._ids(text[:start]), ids), _num_shared(self._ids(text[:end]), ids)) for start, end in spans
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response, without special tokens, and without what the template writes before the words."""
        words = [token for token in ids[self._num_before_words(ids) :] if token not in self._silent]
        return str(self.tokenizer.decode([*self._lead_in_ids, *words])).removeprefix(self._lead_in_text)

    # ── an environment's words ───────────────────────────────────────────────────────────────────────────────────────

    def observation(self, prompt: Prompt, observation: str) -> str:
        """What stands between a response to `prompt` and the next one, where an environment says `observation`.

        In a conversation the observation is the user's next turn, with the template's marks around it; text is appended
        as it stands.
        Raises: ConfigError where the template does not say what stands there.
        """
        return observation if isinstance(prompt.content, str) else _shown(self._observation(observation))

    def observation_ids(self, prompt: Prompt, observation: str, *, after: Sequence[int]) -> list[int]:
        """Token ids of `observation(…)` where a response with the ids `after` stands before it.

        They are made of this text alone: what was sampled is never encoded again. The ending of the turn is not said
        twice.
        Raises: as `observation`.
        """
        if isinstance(prompt.content, str):
            return self._encoded(observation, split_special_tokens=True, is_beginning=False)
        ids = self._ids_after(self._observation(observation))
        if not after:
            return ids
        written = self._last_mark(self.turns.earlier_ending)
        if written and after[-1] in self._last_mark(self.turns.closing) and written[0] in ids:
            return ids[ids.index(written[0]) + 1 :]
        return ids[1:] if ids[:1] == list(after[-1:]) and self._is_special(ids[0]) else ids

    def _observation(self, observation: str) -> str:
        if self.turns.earlier_fault:
            raise ConfigError(
                f"the user's next turn cannot be written by {self._whose}: {self.turns.earlier_fault}; set "
                "model.chat_template to one that writes all turns, or let the environment begin with text"
            )
        return f"{self.turns.between}{_spelled(self._special, observation)}{self.turns.after}"

    # ── renderings ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _whose(self) -> str:
        return f"the chat template of {self.name}" if self.name else "the chat template"

    def render(self, prompt: Prompt, messages: Conversation, *, generation: bool) -> str:
        """What the template writes of `messages`, which belong to the row of `prompt`.

        Raises: DataError where it refuses them, or fails on them.
        """
        try:
            return self.template.render(messages, generation=generation)
        except TemplateFailure as error:
            raise DataError(
                f"{prompt.origin or 'a conversation'} does not fit {self._whose} ({error}), its roles being "
                f"{[message.role for message in messages]}; change its turns, or give a template that takes them"
            ) from error

    def _asked(self, prompt: Prompt, messages: Conversation) -> str:
        """The prompt as the template writes it, with the tokens that people spelled parted."""
        return self.render(prompt, self._as_said(messages), generation=True) + self.turns.header

    def _answered(self, prompt: Prompt, messages: Conversation, response: str, *, finished: bool) -> tuple[str, bool]:
        """(the conversation up to the end of the response, whether the template wrote what ends it)."""
        if self.turns.head[-1:] == " " == response[:1]:
            response = response[1:]

        def rendered(words: str) -> str:
            return self.render(prompt, (*said, Message("assistant", words)), generation=False)

        said = self._as_said(messages)
        text = rendered(_spelled(self._special, response))
        tail, ending = self.turns.tail, self.turns.ending
        if self.turns.fault or not text.endswith(tail):
            # What it writes there depends on the row.
            tail = rendered(ANSWERED).rpartition(ANSWERED)[2]
            tail = tail if text.endswith(tail) else ""
            ending = ending if tail.startswith(ending) else ""
        end = len(text) - len(tail)
        return text[: end + (len(ending) if finished else 0)], bool(ending)

    def conversation_text(self, prompt: Prompt, response: str) -> str:
        """Prompt and response as the template writes them.

        Raises: DataError where it refuses the conversation, or fails on it.
        """
        if isinstance(prompt.content, str):
            return prompt.content + response
        return _shown(self._answered(prompt, prompt.content, response, finished=True)[0])

    def continuation_ids(self, text: str) -> list[int]:
        """Token ids of `text` where something stands before it; special tokens may be named."""
        return self._encoded(text, split_special_tokens=False, is_beginning=False)

    def tokens_with(self, text: str) -> set[int]:
        """Ids of all tokens that hold `text`, as two line breaks hold one; of a special token its own id alone."""
        ids = self.continuation_ids(text)
        if len(ids) == 1 and self._is_special(ids[0]):
            return set(ids)
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        return {*ids, *(token for token, words in enumerate(texts) if text in words and not self._is_special(token))}

    def _spans(self, prompt: Prompt, messages: Conversation, text: str) -> Iterator[tuple[int, int]]:
        """Where in `text`, the prompt, the assistant's turns stand; those that the template rewrites are left out."""
        said = self._as_said(messages)
        places = [index for index, message in enumerate(said) if message.role == "assistant"]
        for index in places:
            around = (*said[:index], Message("assistant", ANSWERED), *said[index + 1 :])
            before, has_words, after = (self.render(prompt, around, generation=True) + self.turns.header).partition(
                ANSWERED
            )
            if not has_words or not text.startswith(before) or not text.endswith(after):
                continue
            start, end = len(before), len(text) - len(after)
            if start < end:
                head, ending = self.turns.earlier_head, self.turns.earlier_ending
                start -= len(head) if before.endswith(head) else 0
                end += len(ending) if after.startswith(ending) else 0
                yield start, end

    def _as_said(self, messages: Conversation) -> Conversation:
        """The messages, in which the tokens that people spelled are parted."""
        return tuple(Message(role, _spelled(self._special, content)) for role, content in messages)

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ids(self, text: str) -> list[int]:
        """Token ids of what a template wrote: its special tokens are tokens, those that people spelled are letters."""
        if SPELLED not in text:
            return self._raw_ids(text)
        ids: list[int] = []
        for number, (part, is_spelled) in enumerate(_parts(text)):
            ids += self._encoded(part, split_special_tokens=is_spelled, is_beginning=number == 0)
        return ids

    def _ids_after(self, text: str) -> list[int]:
        """The same of a text that is no beginning."""
        return [
            token
            for part, is_spelled in _parts(text)
            for token in self._encoded(part, split_special_tokens=is_spelled, is_beginning=False)
        ]

    def _encoded(self, text: str, *, split_special_tokens: bool, is_beginning: bool) -> list[int]:
        if is_beginning:
            return self._raw_ids(text, split_special_tokens=split_special_tokens)
        for lead_in, lead_in_ids in self._lead_ins:
            ids = self._raw_ids(lead_in + text, split_special_tokens=split_special_tokens)
            if ids[: len(lead_in_ids)] == lead_in_ids:
                return ids[len(lead_in_ids) :]
        # Where it merges with all of them, the text is encoded alone.
        return self._raw_ids(text, split_special_tokens=split_special_tokens)

    def _raw_ids(self, text: str, *, add_special_tokens: bool = False, split_special_tokens: bool = False) -> list[int]:
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=add_special_tokens, split_special_tokens=split_special_tokens, verbose=False
        )["input_ids"]
        return ids

    @cached_property
    def _begins_with_bos(self) -> bool:
        """Whether the tokenizer itself puts BOS before a text."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self._raw_ids("a", add_special_tokens=True)[:1] == [bos]

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """Finds the tokens that tokenizers add for templates to mark turns with."""
        return _any_of({token.content for token in self.tokenizer.added_tokens_decoder.values()})

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Finds the tokens that only a template may name: those around turns.

        Of pairs that stand within a turn, as <think> and </think>, a person may write both.
        """
        tokens = self.tokenizer.added_tokens_decoder.values()
        special = {token.content for token in tokens if token.special}
        special -= {name for name in special if len(self._spelt(name)) == 1}
        opening = {name for name in special if f"</{name[1:]}" in special}
        paired = opening | {f"</{name[1:]}" for name in opening}
        own = {str(token) for token in (self.tokenizer.bos_token, self.tokenizer.eos_token) if token}
        return _any_of((special - paired) | (own & special))

    def _spelt(self, name: str) -> list[int]:
        """Token ids of the letters that the name of a special token consists of."""
        try:
            return self._raw_ids(name, split_special_tokens=True)
        except Exception:  # what `tokenizers` raises where it knows neither the letters nor an unknown token
            return []

    @cached_property
    def _silent(self) -> frozenset[int]:
        """Special tokens, which are no part of what is said; those that letters make too, as a PAD of "!", are."""
        return frozenset(
            token
            for token, added in self.tokenizer.added_tokens_decoder.items()
            if added.special and self._spelt(added.content) != [token]
        )

    def _last_mark(self, text: str) -> list[int]:
        """The id of the last mark in a text that a template writes; empty where there is none."""
        return [self.tokenizer.added_tokens_encoder[name] for name in self._marks.findall(text)[-1:]]

    def _is_special(self, token: int) -> bool:
        added = self.tokenizer.added_tokens_decoder.get(token)
        return added is not None and bool(added.special)

    def _num_before_words(self, ids: Sequence[int]) -> int:
        """How many ids of a sampled response the template writes before the assistant's words."""
        head = self.turns.head
        (last,) = self._last_mark(head) or (None,)
        if last is None or last not in ids:
            return 0
        rest = head[head.rindex(self._marks.findall(head)[-1]) + len(self._marks.findall(head)[-1]) :]
        # What a special token ends leaves words of its own behind where it is decoded; the last one counts.
        end = (len(ids) - list(reversed(ids)).index(last)) if self._is_special(last) else list(ids).index(last) + 1
        before = str(self.tokenizer.decode([*self._lead_in_ids, *ids[:end]])).removeprefix(self._lead_in_text)
        is_head = f"{before}{rest}".endswith(head) if self._is_special(last) else f"{before}{rest}" == head
        if not is_head:
            return 0
        blanks = self._ids_after(rest) if rest else []
        return end + len(blanks) if list(ids[end : end + len(blanks)]) == blanks else end


def _any_of(names: set[str]) -> re.Pattern[str]:
    chosen = sorted((name for name in names if name.strip()), key=lambda name: (-len(name), name))
    return re.compile("|".join(re.escape(name) for name in chosen) or "(?!)")


def _spelled(special: re.Pattern[str], text: str) -> str:
    """`text` with the special tokens that it spells parted after their first letter."""
    return special.sub(lambda found: f"{SPELLED}{found[0][0]}{SPELLED}{found[0][1:]}{SPELLED}", text)


def _shown(text: str) -> str:
    return text.replace(SPELLED, "")


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """(part, whether a person spelled it) of a text in which special tokens are parted."""
    if SPELLED not in text:
        yield text, False
        return
    pieces = text.split(SPELLED)
    if len(pieces) % 3 != 1:  # the template cut one of them in two
        yield _shown(text), False
        return
    # Each spelled token takes three marks: ordinary, first letter, the others, ordinary, …
    for place in range(0, len(pieces) - 1, 3):
        if pieces[place]:
            yield pieces[place], False
        yield pieces[place + 1] + pieces[place + 2], True
    if pieces[-1]:
        yield pieces[-1], False


def _num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of ids that two rows begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
