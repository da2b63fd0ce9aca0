"""Whether the code in a response passes the tests that the prompt's row gives."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from rlhfkit.config.rewards import UnitTestsRewardConfig
from rlhfkit.distributed.ranks import on_first
from rlhfkit.errors import ConfigError, RewardError
from rlhfkit.records import Prompt
from rlhfkit.rewards.answer import texts_of_rows
from rlhfkit.rewards.sandbox import Limits, SandboxError, examine, why_none_here
from rlhfkit.rewards.source import Detailed, ScoredText, check_scores

__all__ = ["UnitTestsReward", "code_of"]

FENCED = re.compile(
    r"^```[ \t]*(?:python|python3|py)?[ \t]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE
)


class UnitTestsReward:
    """score = 1 where all tests of the row pass, 0 elsewhere; or the share that passes.

    Code and tests run in two processes apart from each other and from all else (see `confined.py`), so that no code can
    say of itself that it has passed. Code that fails, does not end or takes too much scores 0; a sandbox that fails,
    and tests that cannot be run, stop the run.
    """

    type = "unit_tests"

    def __init__(self, config: UnitTestsRewardConfig) -> None:
        """Try whether code can be confined here. Raises: ConfigError where it cannot."""
        self._config = config
        self._limits = Limits(
            config.timeout_seconds, config.memory_mib, processes=config.max_processes, file_mib=config.file_mib
        )
        if (why := why_none_here()) is not None:
            raise ConfigError(
                f'reward.type = "unit_tests" runs code of a model, and {why}; it takes Linux 5.12 or newer and the '
                "right to make namespaces: unprivileged ones (sysctl kernel.unprivileged_userns_clone, "
                "kernel.apparmor_restrict_unprivileged_userns), or in a container CAP_SYS_ADMIN. Allow it, or score by "
                'an endpoint that has a sandbox of its own (type = "http")'
            )

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """Scores (B,) from 0 to 1. Raises: as `score_in_detail`."""
        return self.score_in_detail(episodes)[0]

    def score_in_detail(self, episodes: Sequence[ScoredText]) -> Detailed:
        """Scores (B,), and `tests_passed` (B,), the share of its tests that each response passes.

        Of several ranks the first one tests, for all rows.
        Raises: RewardError where a row has no tests, or they cannot be run.
        """
        return on_first(lambda: self._score(episodes))

    def check_rows(self, prompts: Sequence[Prompt], *, setting: str) -> list[tuple[str, ...]]:
        """The tests of each prompt's row.

        Raises: RewardError, naming `setting` and the row, where there are none or they are no tests.
        """
        tests = texts_of_rows(prompts, self._config.column, wanted_by=f'{setting}.type = "unit_tests"')
        for prompt, listed in zip(prompts, tests, strict=True):
            for test in listed:
                try:
                    if not compile(test, "tests.py", "exec").co_names:
                        raise SyntaxError("it names nothing of the response")
                except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                    raise RewardError(
                        f'{setting}.type = "unit_tests": a test of the row {_row(prompt)} is none ({error}): '
                        f"{test[:60]!r}; correct the row"
                    ) from None
        return tests

    def _score(self, episodes: Sequence[ScoredText]) -> Detailed:
        tests = self.check_rows([episode.prompt for episode in episodes], setting="reward")
        workers = self._config.concurrency or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(workers) as pool:
            passed = torch.tensor(list(pool.map(self._share, episodes, tests)), dtype=torch.float32)
        scores = passed if self._config.partial else (passed == 1).float()
        return check_scores(scores, episodes, source="unit tests"), {"tests_passed": passed}

    def _share(self, episode: ScoredText, tests: Sequence[str]) -> float:
        try:
            passed = examine(code_of(episode.response), tests, self._limits)
        except SandboxError as error:
            raise RewardError(f"unit tests of the row {_row(episode.prompt)}: {error}") from error
        return sum(passed) / len(passed)


def code_of(response: str) -> str:
    r"""The code of a response: its last fenced block of Python, or all of it where there is none.

    Example:
        >>> code_of("So:\n```python\nx = 1\n```\nDone.")
        'x = 1\n'
    """
    blocks = FENCED.findall(response.replace("\r\n", "\n"))
    return str(blocks[-1]) if blocks else response


def _row(prompt: Prompt) -> str:
    return prompt.origin or "of a prompt"
