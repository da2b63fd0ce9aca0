"""Secrets: filled from the environment where a recipe names them, shown by their names, refused where they stand plain.

The one place that knows them. Whatever leaves the process as text for people (a message, the terminal, the manifest, a
traceback) passes `hidden`.
"""

import html
import json
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from rlhfkit.errors import ConfigError

__all__ = ["filled", "hidden", "hidden_in", "looks_secret", "remember", "secret_in"]

FROM_ENVIRONMENT = re.compile(r"\$\{(\w+)\}")
NAMED_SECRET = re.compile(r"TOKEN|SECRET|PASSW(OR)?D|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL", re.IGNORECASE)
FEWEST_CHARACTERS = 8
"""A shorter value of the environment is taken for a secret only where an address names it."""
SHORT = 4
"""So short a value is hidden within addresses only: elsewhere it is part of other words."""

PARAMETER = re.compile(
    r"token|secret|passw|passphrase|passcode|credential|auth|signature|bearer|session|jwt|apikey|pwd", re.IGNORECASE
)
PARAMETER_WORDS = {"key", "keys", "pass", "pw", "pin", "otp", "sid", "sig", "sign", "code", "pat", "psk", "hmac", "sas"}
PATHS_OF_LIBPQ = {"passfile", "sslkey", "require_auth"}
PREFIXES = re.compile(r"(gh[opsur]_|github_pat_|glpat-|hf_|sk-|xox[abpr]-|AKIA|ya29\.|SG\.|AIza|eyJ[\w-]+\.)[\w.-]*")
RANDOM_RUN = re.compile(r"[A-Za-z0-9]{20,}")

_remembered: dict[str, str] = {}


def remember(name: str, value: str) -> None:
    """Hide `value` from now on, and show `name`, an environment variable, in its place."""
    if value:
        _remembered[value] = name


def filled(text: str, *, of: str, encode: Callable[[str], str] = lambda value: value) -> str:
    """The text with each ${NAME} filled from the environment, and its value hidden from now on.

    Raises: ConfigError where a variable is not set; `of` is the setting that names it.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], "").strip()
        if not found:
            raise ConfigError(
                f"{of} names the environment variable {match[1]!r}, which is not set; export it, or write the "
                "address without it"
            )
        remember(match[1], found)
        return encode(found)

    return FROM_ENVIRONMENT.sub(value, text)


def hidden(text: str) -> str:
    """The text with the name in the place of every secret that is known, however it is encoded."""
    for pattern, shown in _patterns(tuple(_known().items())):
        text = pattern.sub(shown, text)
    return text


def hidden_in(value: Any) -> Any:
    """The same for all texts in lists and objects of JSON."""
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, Mapping):
        return {name: hidden_in(inner) for name, inner in value.items()}
    return [hidden_in(inner) for inner in value] if isinstance(value, list | tuple) else value


def _known() -> dict[str, str]:
    named = {
        value.strip(): name
        for name, value in os.environ.items()
        if NAMED_SECRET.search(name) and len(value.strip()) >= FEWEST_CHARACTERS
    }
    return named | _remembered


@lru_cache(maxsize=8)
def _patterns(known: tuple[tuple[str, str], ...]) -> list[tuple[re.Pattern[str], str]]:
    found = []
    for value, name in sorted(known, key=lambda pair: -len(pair[0])):
        forms = {value, quote(value), quote(value, safe=""), quote_plus(value), unquote(value)}
        forms |= {json.dumps(form)[1:-1] for form in tuple(forms)}
        forms |= {json.dumps(value, ensure_ascii=False)[1:-1], html.escape(value), repr(value)[1:-1]}
        listed = "|".join(_any_case_of_escapes(form) for form in sorted(forms, key=len, reverse=True))
        if len(value) < SHORT:
            listed = rf"(?<=[/:@?&=%#])(?:{listed})(?=[/:@?&=%#\s\"']|$)"
        elif len(value) < FEWEST_CHARACTERS or value.isdigit():
            listed = rf"(?<![A-Za-z0-9])(?:{listed})(?![A-Za-z0-9])"
        found.append((re.compile(listed), f"${{{name}}}"))
    return found


def _any_case_of_escapes(form: str) -> str:
    escaped = re.escape(form)
    return re.sub(r"%([0-9A-Fa-f]{2})", lambda code: f"%(?i:{code[1]})", escaped)


# ── what may not stand in an address ─────────────────────────────────────────────────────────────────────────────────


def secret_in(address: str) -> str | None:
    """What looks like a secret in an address, in words that do not show it; None where nothing does.

    What comes from the environment by ${NAME} is none.
    """
    plain = FROM_ENVIRONMENT.sub("", address)
    parts = urlsplit(plain)
    is_web = parts.scheme in ("http", "https")
    given = parse_qsl(parts.query, keep_blank_values=True) + parse_qsl(parts.fragment, keep_blank_values=True)
    given += [pair for segment in parts.path.split("/") for pair in parse_qsl(segment.partition(";")[2])]
    named = next((name for name, value in given if value and _is_secret_name(name)), None)
    user, has_password, _ = parts.netloc.rpartition("@")[0].partition(":")
    if parts.password or (has_password and parts.password is None):
        return "a password" if parts.password else None
    if ("@" in parts.path or "@" in parts.query) and ":" in parts.netloc and not _has_port(parts.netloc):
        return "a password"
    if user and (looks_secret(unquote(user)) or (is_web and not has_password)):
        return "a user name that may be a token"
    if named is not None:
        return f"the parameter {named!r}"
    words = [unquote(segment) for segment in parts.path.split("/")] if is_web else []
    words += [word for pair in given for word in pair]
    if any(looks_secret(word) for word in words):
        return "something that looks like a token"
    return None


def _has_port(netloc: str) -> bool:
    return netloc.rpartition(":")[2].isdigit()


def _is_secret_name(name: str) -> bool:
    if name.lower() in PATHS_OF_LIBPQ:
        return False
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+", name)
    return bool(PARAMETER.search(name)) or any(word.lower() in PARAMETER_WORDS for word in words)


def looks_secret(text: str) -> bool:
    """Whether a text is formed like a key: by a prefix that services use, or as a long run of mixed characters."""
    if PREFIXES.match(text):
        return True
    return any(
        sum(kind in {_kind(letter) for letter in run} for kind in "aA0") == 3 and sum(map(str.isdigit, run)) >= 2
        for run in RANDOM_RUN.findall(text)
    )


def _kind(letter: str) -> str:
    return "0" if letter.isdigit() else "A" if letter.isupper() else "a"
