"""Findings as a table for people, and as JSON for programs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rlhfkit.doctor.findings import Finding, Verdict

__all__ = ["as_json", "summary", "table_of"]

STYLES: dict[Verdict, str] = {"ok": "green", "warning": "yellow", "fault": "bold red", "skipped": "dim"}
WORDS: dict[Verdict, str] = {"ok": "ok", "warning": "warning", "fault": "FAULT", "skipped": "skipped"}
NAME_WIDTH = 17


def table_of(findings: Sequence[Finding]) -> Group:
    """What rich prints: a table for each heading, and the verdicts counted."""
    parts: list[Any] = []
    for heading in dict.fromkeys(map(_heading, findings)):
        group = [finding for finding in findings if _heading(finding) == heading]
        parts += [Text(), Rule(Text(heading), align="left", style="dim", characters="─"), _table(group)]
    return Group(*parts, Text(), _closing(findings))


def _table(findings: Sequence[Finding]) -> Table:
    # Every table has columns of the same width, so that they stand one below the other.
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), expand=True)
    table.add_column(width=max(map(len, WORDS.values())), no_wrap=True)
    table.add_column(width=NAME_WIDTH, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    for finding in findings:
        style = STYLES[finding.verdict]
        words = Text(finding.seen, style="dim" if finding.verdict == "skipped" else "")
        if finding.remedy:
            words.append(f"\n→ {finding.remedy}", style=style)
        name = finding.name.partition(".")[2] or finding.name
        table.add_row(Text(WORDS[finding.verdict], style=style), Text(name.replace("_", " ")), words)
    return table


def _closing(findings: Sequence[Finding]) -> Text:
    by_verdict: dict[Verdict, list[str]] = {"fault": [], "warning": []}  # which have scrolled away
    for finding in findings:
        if finding.verdict in by_verdict:
            by_verdict[finding.verdict].append(finding.name.replace("_", " "))
    worst: Verdict = next((verdict for verdict, names in by_verdict.items() if names), "ok")
    text = Text(summary(findings), style=STYLES[worst])
    for verdict, names in by_verdict.items():
        if names:
            text.append(f"\n{WORDS[verdict]}: {', '.join(dict.fromkeys(names))}", style=STYLES[verdict])
    return text


def _heading(finding: Finding) -> str:
    return finding.name.partition(".")[0]


def summary(findings: Sequence[Finding]) -> str:
    """As "1 fault, 2 warnings; 30 ok, 4 skipped"."""
    num = Counter(finding.verdict for finding in findings)

    def counted(verdict: Verdict) -> str:
        return f"{num[verdict] or 'no'} {verdict}{'s' * (num[verdict] != 1)}"

    return f"{counted('fault')}, {counted('warning')}; {num['ok']} ok, {num['skipped']} skipped"


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """How many findings there are of each verdict, and all of them."""
    num = Counter(finding.verdict for finding in findings)
    counts = {verdict: num[verdict] for verdict in STYLES}
    return {"healthy": not num["fault"], "counts": counts, "findings": [asdict(finding) for finding in findings]}
