"""Reward functions to copy: `type = "function"` takes any that looks like these."""

__all__ = ["twelve_words", "variety"]


def twelve_words(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for a response of twelve words, less the more words it is away from that, down to -1."""
    return [max(-1.0, 1 - abs(len(response.split()) - 12) / 12) for response in responses]


def variety(prompts: list[str], responses: list[str]) -> list[float]:
    """Share of a response's words that it has not used before; 0 for an empty response."""
    words = [response.lower().split() for response in responses]
    return [len(set(found)) / len(found) if found else 0.0 for found in words]
