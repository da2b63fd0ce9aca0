import pytest

from rlhfkit.errors import ConfigError
from rlhfkit.models import chat_template
from rlhfkit.models.chat_template import ChatTemplate, TemplateFailure, read_template
from rlhfkit.records import Message

TALK = (Message("user", "Hi"), Message("assistant", "Yo"))
GROWING = "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s OP ns.s %}{% endfor %}{{ ns.s }}"


def written(source: str) -> str:
    return ChatTemplate(source, {}).render(TALK, generation=True)


def test_a_template_may_use_what_transformers_knows(tmp_path):
    source = (
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% if loop.index > 0 %}{% break %}{% endif %}{% endfor %}"
    )
    (tmp_path / "known.jinja").write_text(source)
    assert written(read_template(str(tmp_path / "known.jinja"))) == "Hi"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 'a'|center(10**10) }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%10000000000d'|format(1) }}",
        "{{ '%*d' % (10000000000, 1) }}",
        "{{ ('a' * 10**6)|replace('a', 'b' * 10**6) }}",
        "{{ ('x' * 10**6).join('y' * 10**6) }}",
        "{{ 9**(9**9) }}",
        GROWING.replace("OP", "~"),
        GROWING.replace("OP", "+"),
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% set l = [1, 2] * 10**9 %}",
    ],
)
def test_a_template_that_would_fill_the_memory_is_refused(source):
    with pytest.raises(ConfigError, match=r"chat template does not come to an end.*set model\.chat_template"):
        written(source)


def test_a_template_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.05)
    with pytest.raises(ConfigError, match=r"takes more than 0\.05 seconds"):
        written("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ raise_exception('no users') }}", "no users"),
        ("{{ none + 'a' }}", "TypeError"),
        ("{{ messages[7]['content'].strip() }}", "undefined|no element"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_template_that_fails_in_any_way_says_why(source, why):
    with pytest.raises(TemplateFailure, match=why):
        written(source)
