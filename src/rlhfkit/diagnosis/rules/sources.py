"""Where the rules are known from."""

__all__ = ["DETAILS", "HUANG", "SCHULMAN", "TOO_FAST", "ZIEGLER"]

ZIEGLER = "Ziegler et al. 2019, arXiv 1909.08593"
SCHULMAN = "Schulman et al. 2017, arXiv 1707.06347"
HUANG = "Huang et al. 2024, arXiv 2403.17031"
DETAILS = "Huang et al. 2022, The 37 Implementation Details of PPO"

TOO_FAST = frozenset({"approx_kl_high", "clip_fraction_high"})
"""Rules of updates that are too large, from which nearly everything may follow."""
