"""`explain`: why a run's policy answers as it does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhfkit.api.given import gathered_prompts
from rlhfkit.distributed.joining import join_for_good
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline.explain import explain as explained
from rlhfkit.rundir.explanations import Explanation

__all__ = ["explain"]


def explain(
    run: str | Path,
    prompts: Sequence[Any] = (),
    *,
    num_prompts: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Explanation:
    """A response of a run's policy to each prompt, explained: what PPO changed and paid, and what the reward looks at.

    Example:
        >>> from rlhfkit import explain
        >>> def printed(run):
        ...     for one in explain(run, ["Once upon a time"]).prompts:
        ...         print(one.response, one.score, one.ref_kl)
        ...         for token, position in zip(one.tokens.text, one.positions):
        ...             print(token, position.kl, position.up[:1])

    `explanation.json` and `explanation.html` in the run directory are written too. A token's KL and probabilities are
    exact, in nats and at the sampling temperature. An attribution of the score may be trusted where its `may_be_drawn`
    is true.

    Args:
        run: directory of a run that PPO has finished.
        prompts: texts, conversations or rows; by default some of the recipe's test prompts.
        num_prompts: how many of those.
        seed: the same seed gives the same responses.
        progress: what shows notes, warnings and bars.

    Raises: CheckpointError where the run has no policy; ConfigError where it acts in an environment; RewardError where
        the reward fails.
    """
    join_for_good()
    given = gathered_prompts(prompts) if prompts else ()
    return explained(run, given, num_prompts=num_prompts, seed=seed, progress=progress)
