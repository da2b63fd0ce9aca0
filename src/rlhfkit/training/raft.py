"""Rejection-sampling fine-tuning: a policy learns the best of its own responses, as SFT learns demonstrations."""

from collections.abc import Callable, Mapping, Sequence

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.config.training import RaftConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.metrics import Metrics
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import LanguageModel
from rlhfkit.rewards.source import RewardSource, ScoredText, check_scores
from rlhfkit.rollout.engine import Sample, shared_out
from rlhfkit.rollout.generation import Response
from rlhfkit.rollout.text_experience import as_scored_text
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.rates import decided
from rlhfkit.training.sft import LearntText, learn
from rlhfkit.training.supervised import SupervisedTask, train_supervised

__all__ = ["sampled", "train_raft"]


def sampled(
    model: LanguageModel,
    prompts: Sequence[EncodedPrompt],
    num: int,
    *,
    sample: Sample,
    rollout: RolloutConfig,
    seeds: Sequence[int],
    on_finished: Callable[[int], None] | None = None,
) -> tuple[list[Response], list[ScoredText]]:
    """`num` responses to each prompt, those to one prompt side by side, and the same as a reward reads them.

    Response k to prompt i is drawn by `seeds[i * num + k]`.
    """
    repeated = [prompt for prompt in prompts for _ in range(num)]
    responses = shared_out(sample)(
        model, [prompt.ids for prompt in repeated], rollout, seeds=seeds, on_finished=on_finished
    )
    episodes = [
        as_scored_text(prompt, response, model.encoder.decode(response.ids))
        for prompt, response in zip(repeated, responses, strict=True)
    ]
    return responses, episodes


def train_raft(
    model: LanguageModel,
    prompts: Sequence[EncodedPrompt],
    config: RaftConfig,
    *,
    reward: RewardSource,
    rollout: RolloutConfig,
    sample: Callable[[], Sample],
    stage: str,
    seed: int,
    log: RunLog,
    checkpoints: Checkpoints,
    progress: Progress,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """Train `model`: each update learns, of some responses to each of its prompts, the one with the highest score.

    loss = - sum over the tokens of the best responses of log p(token | tokens before) / their number

    It is RAFT with a batch of one minibatch, so that every update learns from the weights of now, and a killed run
    needs no samples of before. `sample` gives what samples by these. Of equal scores the first drawn counts.
    Raises: RewardError where the reward fails; TrainingError where the loss or a gradient is not finite.
    Source: Dong et al. 2023, arXiv 2304.06767, algorithm 1.
    """
    config = config.model_copy(update={"optim": decided(config.optim, model, "raft")})
    num = config.num_responses

    def backward(rows: Sequence[int], metrics: Metrics) -> None:
        asked = [prompts[row % len(prompts)] for row in rows]
        seeds = [derive_seed(seed, "raft", row, which) for row in rows for which in range(num)]
        responses, episodes = sampled(model, asked, num, sample=sample(), rollout=rollout, seeds=seeds)
        scores = check_scores(reward.score(episodes), episodes, source="the reward source").view(-1, num)
        best = scores.argmax(1)
        texts = [
            LearntText([*prompt.ids, *responses[place * num + which].ids], len(prompt.ids))
            for place, (prompt, which) in enumerate(zip(asked, best.tolist(), strict=True))
        ]
        if ranks().is_first:  # all have scored the same
            metrics.add("score", scores.sum(), scores.numel())
            metrics.add("best_score", scores.gather(1, best[:, None]).sum(), len(scores))
        learn(model, texts, metrics, tokens_per_pass=config.tokens_per_pass, width=None)

    task = SupervisedTask(
        stage=stage,
        what="policy",
        module=model,
        num_rows=config.epochs * len(prompts),  # a prompt that comes back gets other responses
        minibatch_rows=config.minibatch_prompts,
        backward=backward,
        validate=lambda metrics: None,
        detail=lambda metrics: f"score {metrics['score']:.2f}, best {metrics['best_score']:.2f}",
        evaluate=evaluate,
    )
    once = config.model_copy(update={"epochs": 1})
    return train_supervised(task, once, seed=seed, log=log, checkpoints=checkpoints, progress=progress)
