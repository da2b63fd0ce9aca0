"""Builds the documentation site, in English and Chinese, from the pages as they stand: `python docs/make_site.py`.

The pages are written for a code host: their links are paths between files of the repository. Here they are copied into
a tree for each language, with links that hold there, and given to the generator (Zensical, the extra `docs`), which
stops at links and anchors that lead nowhere. Nothing is asked of the net. What has no Chinese form stands in English in
both trees.

`--stage DIR` only writes the two trees. Order and titles are in docs/site/nav.toml.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SITE = DOCS / "site"
LANGUAGES = ("en", "zh")
ABOVE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages at the top of the repository."""
SHOWN_AS_CODE = {".py": "python", ".yaml": "yaml", ".sh": "sh", ".cff": "yaml", "": "text"}
COPIED = {".png", ".svg", ".ipynb"}
ENGLISH_ONLY = '!!! note "本页暂无中文版"\n    以下为英文原文。\n\n'

LINK = re.compile(r"(\]\()([^)\s]+)(\))")
HEADING = re.compile(r"(#+)\s+(.*?)\s*")
OTHER_LANGUAGE = re.compile(r"\[(English|简体中文)\]\(README[\w.-]*\)")
FENCE = re.compile(r"\s*```.*")
FENCE_OPTIONS = re.compile(r"(\s*```\w+) .*")
"""What stands behind a fence's language is for tests; the generator knows some of it, and takes others for no fence."""

CONFIG = """\
[project]
site_name = "rlhfkit"
site_description = "{description}"
docs_dir = "{docs_dir}"
site_dir = "{site_dir}"
use_directory_urls = false
extra_css = ["extra.css"]
extra_javascript = ["switch.js"]
nav = [
{nav}]

[project.theme]
language = "{language}"
variant = "classic"
font = false
custom_dir = "{overrides}"
features = ["content.code.copy", "navigation.footer", "navigation.top", "toc.follow", "search.highlight"]

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"
primary = "teal"
accent = "teal"
toggle.icon = "lucide/sun"
toggle.name = "{dark}"

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"
primary = "teal"
accent = "teal"
toggle.icon = "lucide/moon"
toggle.name = "{light}"

[project.extra]
generator = false
homepage = "index.html"
alternate = [
    {{ name = "English", link = "{english}", lang = "en" }},
    {{ name = "中文", link = "{chinese}", lang = "zh" }},
]

[project.markdown_extensions]
admonition = {{}}
attr_list = {{}}
md_in_html = {{}}
tables = {{}}
pymdownx.highlight = {{}}
pymdownx.superfences = {{}}

[project.markdown_extensions.toc]
permalink = true
toc_depth = 3
slugify = {{ object = "pymdownx.slugs.slugify", kwds = {{ case = "lower" }} }}
"""
WORDS = {
    "en": {
        "description": "From a pre-trained language model to one that people prefer.",
        "dark": "To the dark page",
        "light": "To the light page",
        "english": "index.html",
        "chinese": "zh/index.html",
    },
    "zh": {
        "description": "从预训练语言模型，到人们更喜欢的模型。",
        "dark": "切换到深色",
        "light": "切换到浅色",
        "english": "../index.html",
        "chinese": "index.html",
    },
}


class LinkError(Exception):
    """A link leads nowhere."""


def sources() -> dict[Path, str]:
    """File of the repository → its path in the tree of a language. Several files may lead to one page."""
    pages = {DOCS / page.name: page.name for page in sorted(DOCS.glob("*.md"))}
    pages |= {ROOT / name: name.lower() for name in ABOVE}
    pages |= {chinese: name for page, name in pages.items() if (chinese := chinese_form(page)).exists()}
    pages |= {ROOT / "CITATION.cff": "citation.md", ROOT / "examples" / "README.md": "examples/index.md"}
    pages |= {ROOT / "LICENSE": "license.md"}
    pages |= {file: file.name for file in sorted(DOCS.iterdir()) if file.suffix in COPIED}
    for file in sorted((ROOT / "examples").rglob("*")):
        if file.suffix and (file.suffix in SHOWN_AS_CODE or file.suffix in COPIED):
            name = file.relative_to(ROOT).as_posix()
            pages[file] = name if file.suffix in COPIED else f"{name}.md"
    return pages


def chinese_form(page: Path) -> Path:
    """Where the Chinese form of an English page stands, or would stand."""
    return DOCS / "zh" / page.name if page.parent == DOCS else page.with_name(f"{page.stem}.zh-CN.md")


def is_chinese(page: Path) -> bool:
    """Whether a page is the Chinese form of another."""
    return page.parent == DOCS / "zh" or page.name.endswith(".zh-CN.md")


def english_form(page: Path) -> Path:
    """The English page of a Chinese one."""
    return DOCS / page.name if page.parent == DOCS / "zh" else page.with_name(page.name.replace(".zh-CN", ""))


def without_chinese() -> list[Path]:
    """The pages that are shown in English in both trees."""
    pages = sources()
    return [page for page in pages if page.suffix == ".md" and not is_chinese(page) and chinese_form(page) not in pages]


def stage(directory: Path) -> None:
    """Write the pages of both languages, with links that hold there, to `directory`/en and `directory`/zh."""
    pages = sources()
    for language in LANGUAGES:
        tree = directory / language
        shutil.rmtree(tree, ignore_errors=True)
        for source, name in pages.items():
            if is_chinese(source):
                continue  # written in the place of their English page
            target = tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix in COPIED:
                shutil.copyfile(source, target)
            elif source.suffix in SHOWN_AS_CODE:
                code = f"````{SHOWN_AS_CODE[source.suffix]}\n{source.read_text(encoding='utf-8')}````"
                target.write_text(f"# {source.name}\n\n{code}\n", encoding="utf-8")
            else:
                target.write_text(text_of(source, language, pages), encoding="utf-8")
        for name in ("extra.css", "switch.js"):
            shutil.copyfile(SITE / name, tree / name)


def text_of(source: Path, language: str, pages: dict[Path, str]) -> str:
    """A page in a language, with links and anchors of the site."""
    chinese = chinese_form(source)
    page = chinese if language == "zh" and chinese in pages else source
    ids = iter(anchors(source))
    lines = []
    for line, is_code in lines_of(page):
        if is_code:
            lines.append(FENCE_OPTIONS.sub(r"\1", line))
            continue
        if OTHER_LANGUAGE.fullmatch(line):
            continue  # the site has a switch of its own
        line = LINK.sub(lambda found: found[1] + moved(found[2], page, pages) + found[3], line)
        # A Chinese heading has the anchor of the English one: links hold in both trees, and so do those from outside.
        if page != source and HEADING.fullmatch(line):
            line = f"{line} {{ #{next(ids)} }}"
        lines.append(line)
    text = "\n".join(lines) + "\n"
    if language == "zh" and page == source:
        title, _, rest = text.partition("\n")
        text = f"{title}\n\n{ENGLISH_ONLY}{rest}"
    return text


def moved(link: str, page: Path, pages: dict[Path, str]) -> str:
    """The link on the site, as seen from a page that lies where `page` leads to."""
    if re.match(r"[a-z]+:", link):
        return link
    path, _, anchor = link.partition("#")
    target = Path(os.path.normpath(page.parent / path)) if path else page
    if target not in pages:
        raise LinkError(f"{page.relative_to(ROOT)}: the link {link} leads to a file that is not on the site")
    if anchor:
        here = anchors(target)
        if anchor not in here:
            raise LinkError(f"{page.relative_to(ROOT)}: the link {link} leads to a heading that is not there")
        anchor = anchors(english_form(target))[here.index(anchor)] if is_chinese(target) else anchor
    name = os.path.relpath(pages[target], Path(pages[page]).parent) if path else ""
    return f"{name}#{anchor}" if anchor else name


@cache
def anchors(page: Path) -> tuple[str, ...]:
    """The anchors of a page's headings, in order, as a code host and the site make them."""
    found = [HEADING.fullmatch(line) for line, is_code in lines_of(page) if not is_code]
    return tuple(re.sub(r"[^\w\- ]", "", match[2].lower()).replace(" ", "-") for match in found if match)


def lines_of(page: Path) -> Iterator[tuple[str, bool]]:
    """Lines, and whether each belongs to a fenced block."""
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if FENCE.fullmatch(line):
            inside = not inside
            yield line, True
        else:
            yield line, inside


def config(language: str, *, docs_dir: str, site_dir: str, overrides: str) -> str:
    """The generator's configuration for one language, in TOML."""
    nav = ""
    for section in tomllib.loads((SITE / "nav.toml").read_text(encoding="utf-8"))["sections"]:
        entries = ", ".join(f'{{ "{page[language]}" = "{page["page"]}.md" }}' for page in section["pages"])
        nav += f'    {{ "{section[language]}" = [{entries}] }},\n'
    places = {"docs_dir": docs_dir, "site_dir": site_dir, "overrides": overrides}
    return CONFIG.format(language=language, nav=nav, **places, **WORDS[language])


def build(site: Path, scratch: Path) -> None:
    """Both languages into `site`: English at its top, Chinese in zh/."""
    stage(scratch)
    shutil.copytree(SITE / "overrides", scratch / "overrides", dirs_exist_ok=True)
    shutil.rmtree(site, ignore_errors=True)
    for language in LANGUAGES:  # English first: the generator empties the directory that it writes
        written = scratch / f"{language}.toml"
        made = f"site-{language}"
        written.write_text(config(language, docs_dir=language, site_dir=made, overrides="overrides"), encoding="utf-8")
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(written)]
        if subprocess.run(command, env={**os.environ, "NO_COLOR": "1"}).returncode:
            raise SystemExit(f"the site in {language} was not built; its pages are in {scratch / language}")
        shutil.copytree(scratch / made, site if language == "en" else site / language)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, default=ROOT / "build" / "site", help="where the site goes")
    parser.add_argument("--stage", type=Path, help="only write the pages of both languages here")
    given = parser.parse_args()
    try:
        if given.stage:
            stage(given.stage)
            return
        build(given.site, ROOT / "build" / "site-pages")
    except LinkError as error:
        raise SystemExit(str(error)) from None
    print(f"in English only: {', '.join(page.name for page in without_chinese())}")
    print(f"the site is in {given.site}: open {given.site / 'index.html'}, or make docs-serve")


if __name__ == "__main__":
    main()
