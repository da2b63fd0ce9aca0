"""A Modelfile of Ollama's: the chat template in its language, what ends a response, and how to sample.

A chat template is a program in Jinja, and Ollama's language is another one. What a template writes around the messages
of each role is found by rendering it; where messages rendered by these pieces are not what the template makes of them,
it says more than that, and there is no Modelfile for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlhfkit.errors import ConfigError, RlhfkitError

__all__ = ["ChatPieces", "chat_pieces", "modelfile"]

Message = Mapping[str, str]
Render = Callable[[Sequence[Message], bool], str]
"""What a template makes of messages, with or without the beginning of a response after them."""
MARK = "\x02content\x03"
TRIALS: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
)


@dataclass(frozen=True, slots=True)
class ChatPieces:
    """What a template writes before and after each message of a role, at the beginning, and before the response."""

    start: str
    around: Mapping[str, tuple[str, str]]
    response: str

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt, up to where the response begins."""
        turns = (before + message["content"] + after for message in messages
                 for before, after in (self.around[message["role"]],))  # fmt: skip
        return "".join([self.start, *turns, self.response])


def chat_pieces(template: str, *, bos: str, eos: str, adds_bos: bool) -> ChatPieces:
    """The pieces of a chat template; BOS at the beginning is left to who makes tokens of the text, if it `adds_bos`.

    Raises: ConfigError where the template does more than write something around each message.
    """
    render = _renderer(template, bos=bos, eos=eos)
    pieces = _pieces(render)
    if pieces is None:
        raise ConfigError(
            "the chat template does more than write something around each message, which is all that a Modelfile is "
            "written for here; export --to gguf holds the template itself, which llama.cpp's server runs"
        )
    if adds_bos and bos and pieces.start.startswith(bos):
        return ChatPieces(pieces.start.removeprefix(bos), pieces.around, pieces.response)
    return pieces


def _renderer(template: str, *, bos: str, eos: str) -> Render:
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(message: str) -> None:
        raise RlhfkitError(message)

    environment.globals["raise_exception"] = refuse
    compiled = environment.from_string(template)

    def render(messages: Sequence[Message], asks: bool) -> str:
        try:
            return compiled.render(messages=messages, add_generation_prompt=asks, bos_token=bos, eos_token=eos)
        except TemplateError as error:
            raise RlhfkitError(f"the chat template cannot be rendered: {error}") from error

    return render


def _pieces(render: Render) -> ChatPieces | None:
    """Found by renderings that differ in one thing, and tried on longer ones; None where these come out otherwise."""

    def texts(*roles: str, asks: bool = True) -> list[str]:
        return render([{"role": role, "content": MARK} for role in roles], asks).split(MARK)

    one, asked = texts("user", asks=False), texts("user")
    three, five = texts("user", "assistant", "user"), texts("user", "assistant", "user", "assistant", "user")
    if [len(one), len(asked), len(three), len(five)] != [2, 2, 4, 6] or not asked[1].startswith(one[1]):
        return None
    response = asked[1][len(one[1]) :]
    between, again = three[2], five[2]  # of an answer's end and the next question's beginning
    first, after = three[0], one[1]
    if between != again or not three[1].startswith(after):
        return None
    # What comes before every question is what is common to the end of `between` and to the very beginning.
    shared = next(length for length in range(min(len(first), len(between)), -1, -1)
                  if between.endswith(first[len(first) - length :]))  # fmt: skip
    user_before = first[len(first) - shared :]
    start, assistant_after = first[: len(first) - shared], between[: len(between) - shared]
    around = {"user": (user_before, after), "assistant": (three[1][len(after) :], assistant_after)}
    around |= _system_piece(render, around, start, response)
    pieces = ChatPieces(start, around, response)
    return pieces if _holds(pieces, render) else None


def _system_piece(
    render: Render, around: Mapping[str, tuple[str, str]], start: str, response: str
) -> dict[str, tuple[str, str]]:
    """What is around the words of the system; nothing where the template refuses them, or leaves them out."""
    try:
        text = render([{"role": "system", "content": MARK}, {"role": "user", "content": MARK}], True)
    except RlhfkitError:  # as a template says that it knows no such role
        return {}
    before, found, rest = text.partition(MARK)
    end = around["user"][0] + MARK + around["user"][1] + response
    if not found or not before.startswith(start) or not rest.endswith(end):
        return {}
    return {"system": (before[len(start) :], rest[: len(rest) - len(end)])}


def _holds(pieces: ChatPieces, render: Render) -> bool:
    """Whether the pieces make of other words and more turns what the template makes of them."""
    prefix = ("system",) if "system" in pieces.around else ()
    for roles in (*TRIALS, *((*prefix, *trial) for trial in TRIALS if prefix)):
        messages = [{"role": role, "content": f"{role} says {number}"} for number, role in enumerate(roles)]
        if pieces.render(messages) != render(messages, True):
            return False
    return True


# ── Ollama's language ────────────────────────────────────────────────────────────────────────────────────────────────


def modelfile(
    weights: str,
    pieces: ChatPieces | None,
    *,
    stops: Sequence[str],
    sampling: Mapping[str, float],
    context_tokens: int,
) -> str:
    """The text of a Modelfile beside the file `weights`; a model without chat template goes on with the prompt."""
    lines = [f"FROM ./{weights}", f'TEMPLATE """{_template(pieces)}"""']
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    lines += [f"PARAMETER {name} {value:g}" for name, value in sampling.items()]
    # As it was trained: Ollama's own defaults cut the distribution further, and punish repetition.
    lines += ["PARAMETER min_p 0", "PARAMETER repeat_penalty 1", f"PARAMETER num_ctx {context_tokens}"]
    return "\n".join(lines) + "\n"


def _template(pieces: ChatPieces | None) -> str:
    if pieces is None:
        return "{{ .Prompt }}"
    cases = [
        f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}'
        f"{_literal(after)}"
        for number, (role, (before, after)) in enumerate(pieces.around.items())
    ]
    turns = "".join(cases) + "{{ end }}"
    return f"{_literal(pieces.start)}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{_literal(pieces.response)}"


def _literal(text: str) -> str:
    """A text as a template of Go's writes it; quotes that would end the Modelfile's are a string of Go's too."""
    text = text.replace("{{", '{{ "{{" }}')
    return text.replace('"""', '{{ "\\"\\"\\"" }}')


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
