"""Text into tokens, the same way for SFT, reward model, PPO and evaluation."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import jinja2
from transformers import PreTrainedTokenizerBase

from rlhfkit.errors import ConfigError, DataError
from rlhfkit.models.chat_template import TRANSCRIPT_TEMPLATE, ChatTemplate, read_template
from rlhfkit.models.turns import Turns, read_turns
from rlhfkit.records import Message, Prompt

__all__ = ["TRANSCRIPT_TEMPLATE", "EncodedPrompt", "Encoder", "read_template"]

TRANSCRIPT_MARKS = ("\n\nHuman: ", "\n\nAssistant:")


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the policy reads it."""

    prompt: Prompt
    text: str
    """Chat template included, as cut."""
    ids: tuple[int, ...]
    was_cut: bool


class Encoder:
    """A tokenizer and a chat template; knows where prompts may be cut and what ends a response."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None) -> None:
        """Use `chat_template`, or the tokenizer's own, or transcripts."""
        self.tokenizer = tokenizer
        self.chat_template = chat_template or tokenizer.chat_template or TRANSCRIPT_TEMPLATE
        if not isinstance(self.chat_template, str):
            raise ConfigError(
                f"the tokenizer has several chat templates ({', '.join(self.chat_template)}); "
                "write the one to use to a file and set model.chat_template to it"
            )
        self.uses_fallback = self.chat_template == TRANSCRIPT_TEMPLATE
        tokenizer.chat_template = self.chat_template
        self.pad_id = int(tokenizer.pad_token_id)
        self.eos_id = int(tokenizer.eos_token_id)
        # Tokenizers like Llama 2's put a space before a text and take it away again when they decode. A response is no
        # beginning, so there it is encoded and decoded after this.
        once = self._ids("a", add_special_tokens=False)
        is_plain = tokenizer.decode([*once, *once]) == 2 * str(tokenizer.decode(once))
        self._lead_in = "" if is_plain else "\n"
        self._lead_in_ids = self._ids(self._lead_in, add_special_tokens=False)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template, which renders."""
        return ChatTemplate(self.chat_template, self.tokenizer.special_tokens_map)

    @cached_property
    def turns(self) -> Turns:
        """What the template writes around turns."""
        return read_turns(self.template, self._marks)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a response: first the one that the template ends the assistant's turn with, then EOS."""
        written = self._marks.findall(self.turns.ending)
        ending = [self.tokenizer.added_tokens_encoder[name] for name in written[-1:]]
        return tuple(dict.fromkeys([*ending, self.eos_id]))

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """Finds the tokens that tokenizers add for templates to mark turns with."""
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        names = sorted((name for name in added if name.strip()), key=lambda name: (-len(name), name))
        return re.compile("|".join(re.escape(name) for name in names) or "(?!)")

    @property
    def template_hash(self) -> str:
        """Fingerprint of the chat template, kept with every model that was trained through it."""
        return hashlib.sha256(self.chat_template.encode()).hexdigest()[:16]

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as text; a conversation ends where the assistant begins to speak.

        Raises: DataError where the template refuses the conversation.
        """
        if isinstance(prompt.content, str):
            return prompt.content
        messages = [{"role": message.role, "content": message.content} for message in prompt.content]
        try:
            return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except jinja2.TemplateError as error:
            raise DataError(
                f"{prompt.origin or 'a conversation'} does not fit the chat template ({error}); its roles are "
                f"{[message.role for message in prompt.content]}"
            ) from error

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of the prompt, with BOS where the tokenizer wants one."""
        from_template = not isinstance(prompt.content, str) and not self.uses_fallback
        ids = self._ids(
            self.prompt_text(prompt), add_special_tokens=self._adds_bos(prompt), from_template=from_template
        )
        return ids[:-1] if self._adds_bos(prompt) and ids[-1:] == [self.eos_id] else ids

    def response_ids(self, prompt: Prompt, response: str, *, finished: bool = True) -> list[int]:
        """Token ids of a response, with the EOS that ends it where it is `finished`."""
        text = f" {response}" if self._wants_space(prompt, response) else response
        ids = self._ids_after(text)
        return [*ids, self.eos_id] if finished else ids

    def observation(self, prompt: Prompt, observation: str) -> str:
        """What stands between a response to `prompt` and the next one, where an environment says `observation`.

        In a conversation the observation is the user's next turn, with the template's marks around it; text is appended
        as it stands.
        """
        if isinstance(prompt.content, str):
            return observation
        before, after = self._turn_marks
        return f"{before}{observation}{after}"

    def observation_ids(self, prompt: Prompt, observation: str, *, after: Sequence[int]) -> list[int]:
        """Token ids of `observation(…)` where a response with the ids `after` stands before it.

        They are made of this text alone: what was sampled is never encoded again. Where the template's marks begin with
        the token that the response ended with, it is not said twice; an EOS that the template does not write stays.
        """
        from_template = not isinstance(prompt.content, str) and not self.uses_fallback
        ids = self._ids_after(self.observation(prompt, observation), from_template=from_template)
        is_said = from_template and ids[:1] == list(after[-1:]) and self._is_special(ids[0])
        return ids[1:] if is_said else ids

    def _is_special(self, token: int) -> bool:
        added = self.tokenizer.added_tokens_decoder.get(token)
        return added is not None and bool(added.special)

    def _ids_after(self, text: str, *, from_template: bool = False) -> list[int]:
        """Token ids of `text` that is no beginning."""
        ids = self._ids(self._lead_in + text, add_special_tokens=False, from_template=from_template)
        start = len(self._lead_in_ids)
        if ids[:start] == self._lead_in_ids:
            return ids[start:]
        # Where the two merge, as line breaks may, the text is encoded alone.
        return self._ids(text, add_special_tokens=False, from_template=from_template)

    @cached_property
    def _turn_marks(self) -> tuple[str, str]:
        """What the template writes after the assistant's turn and before the user's, and after that.

        Where a template cannot be parted so (it drops or rewrites earlier turns), the marks are a transcript's.
        """
        turns = [
            {"role": role, "content": text} for role, text in zip(("user", "assistant") * 3, "①②③④⑤⑥", strict=True)
        ]

        def rendered(num: int) -> str:
            messages = turns[:num]
            return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

        try:
            asked, longer, longest = rendered(1), rendered(3), rendered(5)
        except jinja2.TemplateError:
            return TRANSCRIPT_MARKS
        space = " " if self._spaces_responses else ""
        rest = longer.removeprefix(f"{asked}{space}②")
        before, _, after = rest.rpartition("③")
        is_split = rest != longer and "③" in rest
        return (before, after) if is_split and longest == f"{longer}{space}④{before}⑤{after}" else TRANSCRIPT_MARKS

    def _ids(self, text: str, *, add_special_tokens: bool, from_template: bool = False) -> list[int]:
        """Token ids of `text` without PAD, which has no probability.

        Only a template may name special tokens; in a person's text "<|endoftext|>" is thirteen characters.
        """
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=add_special_tokens, split_special_tokens=not from_template, verbose=False
        )["input_ids"]
        return [token for token in ids if token != self.pad_id]

    def _adds_bos(self, prompt: Prompt) -> bool:
        """Plain text and transcripts get the tokenizer's special tokens; a chat template writes its own."""
        return isinstance(prompt.content, str) or self.uses_fallback

    def _wants_space(self, prompt: Prompt, response: str) -> bool:
        """After "Assistant:" a response needs the space that its own text does not have."""
        return not isinstance(prompt.content, str) and self._spaces_responses and not response[:1].isspace()

    @cached_property
    def _spaces_responses(self) -> bool:
        """Whether the template has a space between where the assistant begins to speak and what it says."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            asked = self.tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
            answered = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        except jinja2.TemplateError:
            return False
        return answered.startswith(f"{asked} b")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response, without special tokens."""
        text = str(self.tokenizer.decode([*self._lead_in_ids, *ids], skip_special_tokens=True))
        return text.removeprefix(self._lead_in)

    def encode(self, prompt: Prompt, *, max_tokens: int) -> EncodedPrompt:
        """The prompt in at most `max_tokens` tokens.

        A conversation loses its oldest turns first, and then the end of the first turn that is left; plain text loses
        its beginning. Both are cut at a line if one is near, else at a word. The end of the template always stays.
        Raises: DataError where it is empty, or where not even the template fits.
        """
        ids = self.prompt_ids(prompt)
        if not ids:
            raise DataError(f"{prompt.origin or 'a prompt'} has no tokens; remove it or give it text")
        if len(ids) <= max_tokens:
            return EncodedPrompt(prompt, self.prompt_text(prompt), tuple(ids), was_cut=False)
        short = self._cut(prompt, max_tokens)
        ids = self.prompt_ids(short)
        if len(ids) > max_tokens:
            raise DataError(
                f"{prompt.origin or 'a prompt'} needs {len(ids)} tokens even when cut, and data.max_prompt_tokens "
                f"is {max_tokens}; raise it, or shorten the chat template"
            )
        return EncodedPrompt(short, self.prompt_text(short), tuple(ids), was_cut=True)

    def _cut(self, prompt: Prompt, max_tokens: int) -> Prompt:
        def fits(prompt: Prompt) -> bool:
            return len(self.prompt_ids(prompt)) <= max_tokens

        if isinstance(prompt.content, str):
            text = prompt.content

            def last(n: int) -> Prompt:
                return replace(prompt, content=text[-n:])

            keep = _most(len(text), lambda n: fits(last(n)))
            whole_words = last(len(_at_boundary_from_left(text, keep)))
            # Without the space before it, the first word may take more tokens.
            return whole_words if fits(whole_words) else last(keep)
        system = tuple(message for message in prompt.content[:1] if message.role == "system")
        turns = prompt.content[len(system) :]
        while len(turns) > 1 and not fits(replace(prompt, content=system + turns)):
            turns = turns[2:] if len(turns) > 2 else turns[1:]
        role, text = turns[0]

        def shortened(n: int) -> Prompt:
            return replace(prompt, content=(*system, Message(role, text[:n]), *turns[1:]))

        if fits(shortened(len(text))):
            return shortened(len(text))
        keep = _most(len(text), lambda n: fits(shortened(n)))
        whole_words = shortened(len(_at_boundary_from_right(text, keep)))
        return whole_words if fits(whole_words) else shortened(keep)


def _most(upper: int, fits: Callable[[int], bool]) -> int:
    """The largest n in 1..upper for which `fits(n)`, by bisection; 1 if none."""
    low, high = 1, upper
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _at_boundary_from_left(text: str, keep: int) -> str:
    """The last `keep` characters, less up to a quarter of them, so that they begin a line or else a word."""
    tail = text[-keep:]
    for mark in ("\n", " "):
        place = tail.find(mark)
        if 0 <= place < max(1, keep // 4):
            return tail[place + 1 :] or tail
    return tail


def _at_boundary_from_right(text: str, keep: int) -> str:
    """The first `keep` characters, less up to a quarter of them, so that they end a line or else a word."""
    head = text[:keep]
    for mark in ("\n", " "):
        place = head.rfind(mark)
        if place > keep - max(1, keep // 4):
            return head[:place] or head
    return head
