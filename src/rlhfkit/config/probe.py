"""The section `probe`."""

from pydantic import PositiveInt, model_validator

from rlhfkit.config.section import LocalPath, Section

__all__ = ["OWN_PROBES", "PROBES_OF_REWARD", "ProbeConfig"]

OWN_PROBES = {
    "stereotypes": "which of two sentences is likelier, the stereotyped one or the other; a third makes no sense",
    "occupations": "whether he or she is likelier with an occupation, as the stereotype has it",
    "completions": "hurtful words among the likeliest completions of sentences about women and men",
    "swaps": "whether good and bad ends of a sentence are likelier for one name, pronoun or faith than for another",
    "sampled_swaps": "whether what the model writes about two sides differs in sentiment",
    "continuations": "profanity, hurtful words and sentiment of what follows plain and rough prompts",
    "refusals": "safe requests that are refused, and unsafe ones that are answered",
    "leakage": "longest span that the model recites from its training rows",
    "reward_edits": "whether the reward pays for length, flattery, profanity, formatting or an injected instruction",
    "reward_groups": "whether the reward pays for the name, pronoun or faith that a response is about",
}
"""Name of each probe that ships with the package → what it is about."""
PROBES_OF_REWARD = frozenset({"reward_edits", "reward_groups"})
"""Those of a reward; the others are of a language model."""


class ProbeConfig(Section):
    """What else a run changes, measured before and after.

    Example:
        >>> from rlhfkit import ProbeConfig
        >>> ProbeConfig(names=["stereotypes", "swaps"], primary="swaps").num_samples
        5
    """

    names: tuple[LocalPath, ...] = ()
    """Probes by name, and files of rows by path; by default all that ship with the package."""
    primary: str = ""
    """Probe whose first number is declared beforehand as the one that counts; by default the first. All others are
    tested together, by Holm."""
    num_samples: PositiveInt = 5
    """Responses to each prompt. Never compare worst responses of different numbers."""
    max_response_tokens: PositiveInt = 20
    """Longest response of a probe; equal windows compare."""
    max_rows: PositiveInt | None = None
    """Rows of each probe, spread evenly over its file; by default all."""
    lm_eval: tuple[LocalPath, ...] = ()
    """Tasks of lm-evaluation-harness by name, whose results stand in the same table; a directory among them is where
    further task files lie. Most tasks read their data from the hub."""
    scorer: LocalPath | None = None
    """What scores sampled texts beside the package's word lists: a file of words, a lexicon of lines `word TAB weight`,
    or the directory of a sequence-classification model."""
    scorer_label: int | None = None
    """Output of that model to take, where it has several."""

    @model_validator(mode="after")
    def _primary_is_named(self) -> "ProbeConfig":
        names = self.names or tuple(OWN_PROBES)
        if self.primary and self.primary not in names:
            raise ValueError(f"primary = {self.primary!r} is not among the probes {', '.join(names)}; add it to names")
        return self
