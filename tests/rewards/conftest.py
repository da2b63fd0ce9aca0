from collections.abc import Callable

import pytest

from rlhfkit.records import Prompt
from rlhfkit.rewards import ScoredText


@pytest.fixture
def make_episodes() -> Callable[..., list[ScoredText]]:
    """Episodes with these responses; each further keyword is a column with one value per episode."""

    def make(*responses: str, **columns: list[object]) -> list[ScoredText]:
        return [
            ScoredText(
                prompt=Prompt(
                    content=f"prompt {index}",
                    columns={name: values[index] for name, values in columns.items()},
                    origin=f"rows.jsonl:{index + 1}",
                ),
                prompt_text=f"prompt {index}",
                response=response,
            )
            for index, response in enumerate(responses)
        ]

    return make
