"""Numbers, counts and lists in words, for report, diagnosis, command line and errors alike."""

from collections.abc import Iterable

__all__ = [
    "binary",
    "counted",
    "duration",
    "listed",
    "number",
    "percent",
    "score",
    "shortened",
]


def counted(num: int, one: str, several: str = "") -> str:
    """As "1 vote", "12 votes", "1,200 votes"; `several` where an s at the end does not make it."""
    return f"{num:,} {one if num == 1 else several or one + 's'}"


def shortened(text: str, most: int = 60) -> str:
    """`text`, of which at most so many characters are shown."""
    return text if len(text) <= most else f"{text[:most]}…"


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names with commas between them, at most so many: "a, b and 3 more"; "none" where there are none."""
    all_of_them = [shortened(name) or '""' for name in names]
    more = f" and {len(all_of_them) - most} more" if len(all_of_them) > most else ""
    return ", ".join(all_of_them[:most]) + more or "none"


def number(value: float | None, digits: int = 3) -> str:
    """`value` with so many significant digits, as people write it: "1.31", "−0.0004", "12 000"."""
    if value is None or value != value:
        return "–"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 10 ** (digits - 1):
        text = f"{size:,.0f}".replace(",", "\u202f")
    elif size >= 1e-4 or size == 0:
        text = f"{size:.{digits}g}"
    else:
        text = f"{size:.{max(0, digits - 2)}e}"
    return f"−{text}" if value < 0 and text.strip("0.") else text


def score(value: float | None) -> str:
    """A score with two decimals, so that scores under each other compare."""
    if value is None or not -1000 < value < 1000:
        return number(value)
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # + 0.0, for there is no minus zero


def percent(value: float | None) -> str:
    """A share as per cent: 0.712 → "71 %"; close to none or all with a decimal: 0.996 → "99.6 %"."""
    if value is None or value != value:
        return "–"
    return f"{100 * value:.{1 if 0 < value < 0.01 or 0.99 < value < 1 else 0}f}\u202f%"


def duration(seconds: float, *, digits: int | None = None) -> str:
    """As "45 s", "6 min 12 s", "2 h 05 min"; below a minute with so many significant digits."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole if digits is None else number(seconds, digits)} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def binary(num_bytes: float) -> str:
    """Memory, as "12.3 GiB", "310 MiB" or "12 KiB"."""
    if num_bytes >= 0.95 * 2**30:
        return f"{num_bytes / 2**30:.1f} GiB"
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes >= 2**20 or not num_bytes else f"{num_bytes / 2**10:.0f} KiB"
