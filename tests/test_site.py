"""The documentation site: every page has its place, both languages keep step, and nothing is loaded from elsewhere."""

import importlib.util
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def loaded(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site = loaded("make_site")
CHINESE = [page for page in site.sources() if site.is_chinese(page)]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    """Fenced blocks, each with its fences."""
    return re.findall(r"^ *```.*?^ *```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def levels(page):
    found = [site.HEADING.fullmatch(line) for line, is_code in site.lines_of(page) if not is_code]
    return [len(match[1]) for match in found if match]


def test_every_page_is_in_the_navigation():
    sections = tomllib.loads((ROOT / "docs/site/nav.toml").read_text(encoding="utf-8"))["sections"]
    shown = [page["page"] for section in sections for page in section["pages"]]
    pages = {name.removesuffix(".md") for source, name in site.sources().items() if source.suffix == ".md"}
    assert sorted(shown) == sorted(pages), "say in docs/site/nav.toml where the page stands"


@pytest.mark.parametrize("page", CHINESE, ids=name_of)
def test_chinese_page_keeps_step_with_the_english_one(page):
    english = site.english_form(page)
    assert english.exists()
    assert levels(page) == levels(english)
    assert blocks(page) == blocks(english)


@pytest.mark.parametrize("page", CHINESE, ids=name_of)
def test_chinese_page_links_to_chinese_pages(page):
    """Where there is one; the English page is linked to where there is none."""
    text = page.read_text(encoding="utf-8")
    targets = [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s:]+\.md)[^)]*\)", text)]
    english = [target for target in targets if not site.is_chinese(target) and target != site.english_form(page)]
    assert [name_of(target) for target in english if site.chinese_form(target).exists()] == []


@pytest.mark.parametrize("page", CHINESE, ids=name_of)
def test_bold_ends_before_the_mark_that_follows_it(page):
    """A code host takes the stars of `**……。**……` for stars."""
    prose = "\n".join(line for line, is_code in site.lines_of(page) if not is_code)
    spans = re.finditer(r"(\*+)([^*\n]+)\1(.?)", prose)
    assert [
        each[0] for each in spans if re.match(r".*[。，；：？！”）]$", each[2]) and re.match(r"[一-龥`\[]", each[3])
    ] == []


def test_both_trees_have_all_pages(tmp_path):
    """A link that leads nowhere ends it with an error."""
    site.stage(tmp_path)
    english, chinese = (
        {file.relative_to(tmp_path / tree): file for file in (tmp_path / tree).rglob("*")} for tree in site.LANGUAGES
    )
    assert english.keys() == chinese.keys()
    pages = {name.as_posix(): file.read_text() for name, file in chinese.items() if name.suffix == ".md"}
    in_english = {name for name, text in pages.items() if site.ENGLISH_ONLY in text}
    assert in_english == {site.sources()[page] for page in site.without_chinese()}


def test_links_and_anchors_are_those_of_the_site():
    pages = site.sources()
    assert site.moved("../CONTRIBUTING.md#checks", ROOT / "docs/start.md", pages) == "contributing.md#checks"
    assert site.moved("docs/label.png", ROOT / "README.md", pages) == "label.png"
    assert site.moved("../docs/api.md", ROOT / "examples/README.md", pages) == "../api.md"
    with pytest.raises(site.LinkError, match=r"docs/start\.md: the link data\.md#no leads to a heading"):
        site.moved("data.md#no", ROOT / "docs/start.md", pages)


@pytest.mark.thorough
def test_the_page_of_commands_is_what_they_say():
    made = runpy.run_path(str(ROOT / "docs/make_commands.py"))
    assert made["page"]() == (ROOT / "docs/commands.md").read_text(), "run python docs/make_commands.py"


LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|object|embed|link)\b[^>]*?\b(?:src|srcset|data|href)=[\"']?((?:https?:)?//[^\s\"'>]+)"
    r"|(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\s\"')]+)"
)
"""Addresses that a browser asks by itself, unlike those of links to click."""


def test_an_outside_address_would_be_found():
    assert LOADED.search('<link rel="stylesheet" href="https://fonts.example/css">')
    assert LOADED.search("<script async src=//cdn.example/a.js>")
    assert LOADED.search("src: url(https://fonts.example/a.woff2)")
    assert not LOADED.search('<a href="https://example.org">')


@pytest.mark.thorough
def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path):
    pythons = [Path(sys.executable), ROOT / ".venv-docs/bin/python"]
    with_generator = [
        python
        for python in pythons
        if python.exists() and not subprocess.run([python, "-c", "import zensical"], capture_output=True).returncode
    ]
    if not with_generator:
        pytest.skip("the generator of the site is not installed; make docs installs it")
    command = [with_generator[0], "docs/make_site.py", "--site", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    found = {
        f"{file.relative_to(tmp_path)}: {address}"
        for file in (tmp_path / "site").rglob("*")
        if file.suffix in {".html", ".css"}
        for address in LOADED.findall(file.read_text(encoding="utf-8"))
    }
    assert found == set()
    assert (tmp_path / "site/zh/data.html").exists()


def test_the_generator_sees_no_options_of_fences():
    """It takes some fences with options for none, and then what follows for code, headings included."""
    data = site.text_of(ROOT / "docs/data.md", "en", site.sources())
    fences = [line.strip() for line in data.splitlines() if line.strip().startswith("```")]
    assert "```jsonl" in fences and "```csv" in fences
    assert [fence for fence in fences if " " in fence] == []


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
IN_WORDS = re.compile("[十百千万亿成月]")
"""What a number of the English page may have become in Chinese."""


def tables_of(page):
    """Rows of each table."""
    found, is_table = [], False
    for line, is_code in site.lines_of(page):
        if line.startswith("|") and not is_code:
            found = found if is_table else [*found, []]
            found[-1].append(line)
        is_table = line.startswith("|") and not is_code
    return found


def numbers_of(row):
    return sorted(number.replace(",", "") for number in NUMBER.findall(re.sub(r"\]\([^)]*\)", "]", row)))


@pytest.mark.parametrize("page", CHINESE, ids=name_of)
def test_tables_have_the_same_rows_and_numbers(page):
    chinese, english = tables_of(page), tables_of(site.english_form(page))
    assert [len(table) for table in chinese] == [len(table) for table in english]
    rows = [rows for both in zip(english, chinese, strict=True) for rows in zip(*both, strict=True)]
    differ = [pair for pair in rows if numbers_of(pair[0]) != numbers_of(pair[1]) and not IN_WORDS.search(pair[1])]
    assert not differ, "\n".join(f"{english}\n{chinese}" for english, chinese in differ)
