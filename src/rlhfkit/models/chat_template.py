"""Chat templates: read, and rendered as transformers renders them, within limits of time and size.

A template is a program that comes with a model. It runs in transformers' own sandbox, and here it may loop, repeat and
join only so much: a template that never ends, or that fills the memory, is refused with its name.
"""

import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils.chat_template_utils import _compile_jinja_template

from rlhfkit.errors import ConfigError
from rlhfkit.records import Message

__all__ = [
    "TRANSCRIPT_TEMPLATE",
    "ChatTemplate",
    "TemplateFailure",
    "parse_template",
    "read_template",
    "transcript_template",
    "with_endings",
]


def transcript_template(*, bos: bool, eos: bool = True) -> str:
    """The template for a tokenizer that has none: transcripts in which the speakers are named, as in Anthropic's HH.

    `bos` and `eos` say whether the text begins, and each turn of the assistant ends, with these tokens. The line breaks
    are in expressions, since Jinja, as transformers sets it up, drops one that follows a tag.
    """
    return (
        f"{'{{ bos_token }}' if bos else ''}"
        "{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ m['content'] }}"
        "{% elif m['role'] == 'user' %}{{ '\\n\\nHuman: ' }}{{ m['content'] }}"
        "{% else %}{{ '\\n\\nAssistant: ' }}{{ m['content'] }}"
        f"{'{{ eos_token }}' if eos else ''}{{% endif %}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
    )


TRANSCRIPT_TEMPLATE = transcript_template(bos=False)


def with_endings(source: str) -> str:
    """The template, with EOS after what the assistant says, for one that writes nothing between turns but words.

    The line break is no output: Jinja, as transformers sets it up, drops it after a tag.
    """
    return (
        "{% set ended = namespace(turns=[]) %}{% for m in messages %}"
        "{% if m['role'] == 'assistant' and m['content'] is string and not m['tool_calls'] %}"
        "{% set ended.turns = ended.turns + [dict(m, content=m['content'] + eos_token)] %}"
        "{% else %}{% set ended.turns = ended.turns + [m] %}{% endif %}{% endfor %}"
        f"{{% set messages = ended.turns %}}\n{source}"
    )


MOST_TEMPLATE_BYTES = 2**20
MOST_STEPS = 200_000
MOST_CHARACTERS = 50_000_000
MOST_SECONDS = 5.0
"""Of computing: a machine that stands still meanwhile is no fault of the template."""
WIDE_FORMAT = re.compile(r"[%{][^%{}\n]{0,8}\d{8,}")


class TemplateFailure(Exception):
    """A template failed on a conversation, or refused it; the message says why."""


class _LimitReached(Exception):
    """A template did more than a chat template ever needs."""


@dataclass
class _Budget:
    """What one rendering may still do."""

    steps: int = MOST_STEPS
    characters: int = MOST_CHARACTERS
    deadline: float = field(default_factory=lambda: time.thread_time() + MOST_SECONDS)

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise _LimitReached(f"it takes more than {MOST_STEPS:,} steps")
        if time.thread_time() > self.deadline:
            raise _LimitReached(f"it takes more than {MOST_SECONDS:g} seconds")

    def write(self, num_characters: int) -> None:
        self.characters -= num_characters
        if self.characters < 0:
            raise _LimitReached(f"it makes more than {MOST_CHARACTERS:,} characters")


class _Counted(NodeTransformer):
    """A template whose loops, macros, joins and outputs report to the budget of the rendering."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, _reported(node))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, _reported(node))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            part if isinstance(part, nodes.TemplateData) else _call("written", [part], part.lineno)
            for part in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", list(node.nodes), node.lineno)


def _call(name: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
    call.set_lineno(lineno)
    return call


def _reported(node: nodes.For | nodes.Macro) -> nodes.ExprStmt:
    """The statement that reports one pass through the body, and the characters of the template itself in it."""
    fixed = sum(len(data.data) for part in node.body for data in part.find_all(nodes.TemplateData))
    statement = nodes.ExprStmt(_call("passed", [nodes.Const(fixed)], node.lineno))
    statement.set_lineno(node.lineno)
    return statement


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of transformers with a budget."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    budget: _Budget

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        counted: nodes.Template = _Counted().visit(tree)
        counted.set_environment(self)
        return counted

    def passed(self, num_characters: int) -> None:
        self.budget.step()
        self.budget.write(num_characters)

    def written(self, value: Any) -> Any:
        if isinstance(value, str):
            self.budget.write(len(value))
        return value

    def joined(self, *parts: Any) -> str:
        return str(self.written("".join(str(self.written(part)) for part in parts)))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """The value of an operation, once it is sure to be small enough."""
        self.budget.step()
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple) and isinstance(times, int):
                    self.budget.write(len(text) * max(0, times))
            _refuse_huge(left)
            _refuse_huge(right)
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            self.budget.write(len(left) + len(right))
        elif operator == "**":
            _refuse_power(left, right)
        elif operator == "%" and isinstance(left, str):
            _refuse_wide_format(left)
            _refuse_wide(right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: jinja2.runtime.Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a call, whose arguments and length are looked at."""
        self.budget.step()
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        receiver = getattr(method, "__self__", None)
        if isinstance(receiver, str):
            self._look_at(method.__name__, (receiver, *args, *kwargs.values()))
        return self.written(super().call(context, obj, *args, **kwargs))

    def _look_at(self, name: str, arguments: Sequence[Any]) -> None:
        """Refuse a method or filter of text whose result would be too long, before it makes it."""
        for value in arguments:
            _refuse_wide(value)
        if name.startswith("format"):
            _refuse_wide_format(arguments[0])
        sizes = [_size(value) for value in arguments]
        if name in ("replace", "join", "indent", "wordwrap") and len(sizes) > 1:
            product = sizes[0] * max(sizes[1:])
            if product > MOST_CHARACTERS and (name != "replace" or arguments[1] in arguments[0]):
                self.budget.write(product)
        elif name == "join":
            self.budget.write(sizes[0])

    def bounded_filter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, a filter, with its arguments and its result looked at."""

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            values = [value for value in (*args, *kwargs.values()) if isinstance(value, str | int | list | tuple)]
            self._look_at(function.__name__.removeprefix("sync_").removeprefix("do_"), values)
            return self.written(function(*args, **kwargs))

        return bounded


def _refuse_huge(value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > 1024:
        raise _LimitReached("it computes with numbers of more than 1,024 bits")


def _refuse_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and max(1, base.bit_length()) * exponent > 1024:
        raise _LimitReached("it computes with numbers of more than 1,024 bits")


def _size(value: Any) -> int:
    """Characters of a text, or of the texts in a list."""
    if isinstance(value, str):
        return len(value)
    return sum(len(part) for part in value if isinstance(part, str)) if isinstance(value, list | tuple) else 0


def _refuse_wide(value: Any) -> None:
    """Widths and counts that make a text longer than any prompt."""
    if isinstance(value, tuple):
        for part in value:
            _refuse_wide(part)
    if isinstance(value, int) and value > MOST_CHARACTERS:
        raise _LimitReached(f"it makes more than {MOST_CHARACTERS:,} characters")


def _refuse_wide_format(value: Any) -> None:
    if isinstance(value, str) and WIDE_FORMAT.search(value):
        raise _LimitReached(f"it makes more than {MOST_CHARACTERS:,} characters")


def _environment() -> _BoundedEnvironment:
    """Transformers' own environment, its extensions, filters and globals included, with a budget."""
    base = _compile_jinja_template("").environment
    environment = _BoundedEnvironment(
        trim_blocks=base.trim_blocks,
        lstrip_blocks=base.lstrip_blocks,
        extensions=[type(extension) for extension in base.extensions.values()],
    )
    environment.globals.update(base.globals)
    environment.filters = {name: environment.bounded_filter(function) for name, function in base.filters.items()}
    environment.budget = _Budget()
    return environment


def parse_template(source: str) -> jinja2.Template:
    """The template, as transformers would compile it.

    Raises: jinja2.TemplateSyntaxError.
    """
    return _environment().from_string(source)


def read_template(path: str) -> str:
    """The Jinja chat template in a file.

    Raises: ConfigError where the file is missing, too long, or is not Jinja.
    """
    subject = f"model.chat_template = {path!r}"
    try:
        if Path(path).is_file() and Path(path).stat().st_size > MOST_TEMPLATE_BYTES:
            raise ConfigError(f"{subject} has more than {MOST_TEMPLATE_BYTES:,} bytes; give a Jinja chat template")
        if Path(path).exists() and not Path(path).is_file():
            raise ConfigError(f"{subject} is no regular file; give a Jinja file")
        template = Path(path).read_text(encoding="utf-8")
        parse_template(template)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{subject} cannot be read ({error}); give a Jinja file") from error
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"model.chat_template {path}:{error.lineno} is not Jinja: {error.message}") from error
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise ConfigError(f"{subject} is too deeply nested to be read ({type(error).__name__}); simplify it") from error
    return template


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with the special tokens that it may name, and the date that it is given."""

    source: str
    special_tokens: Mapping[str, Any]
    now: datetime | None = None
    """What `strftime_now` says; None is the time of the rendering."""

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return parse_template(self.source)

    @property
    def reads_the_date(self) -> bool:
        """Whether what it writes may depend on the date."""
        return "strftime_now" in self.source

    def render(self, messages: Sequence[Message], *, generation: bool) -> str:
        """The conversation as text; with `generation` up to where the assistant begins to speak.

        Raises: TemplateFailure where the template fails in whatever way; ConfigError where it does not come to an end.
        """
        variables: dict[str, Any] = {**self.special_tokens, "tools": None, "documents": None}
        if self.now is not None:
            variables["strftime_now"] = self.now.strftime
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            environment = self._compiled.environment
            assert isinstance(environment, _BoundedEnvironment)
            environment.budget = budget = _Budget()
            pieces = []
            for piece in self._compiled.generate(messages=turns, add_generation_prompt=generation, **variables):
                budget.step()
                budget.write(len(piece))
                pieces.append(piece)
            return "".join(pieces)
        except (_LimitReached, MemoryError, RecursionError) as error:
            why = str(error) or type(error).__name__
            raise ConfigError(
                f"the chat template does not come to an end as one should: {why}; set model.chat_template to the "
                "template that the model was trained with"
            ) from error
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template is not Jinja (line {error.lineno}: {error.message}); correct it where it stands, "
                "as in chat_template.jinja, or set model.chat_template to another"
            ) from error
        except Exception as error:  # a template is a program of somebody else and may fail in any way
            reason = str(error).strip() or type(error).__name__
            raise TemplateFailure(
                reason if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {reason}"
            ) from error
