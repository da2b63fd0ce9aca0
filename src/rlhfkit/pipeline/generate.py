"""What `rlhfkit generate` does: responses of a run's model, or of any other, to prompts that a person gives."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.errors import ConfigError, ModelError
from rlhfkit.machine.device import choose_device
from rlhfkit.machine.dtype import choose_dtype
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.inspection import context_of, inspect_model
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.loading import load_causal_lm, load_tokenizer
from rlhfkit.records import Message, Prompt
from rlhfkit.rollout.generation import generate as sample
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.resume import recipe_of

__all__ = ["generate"]


def generate(
    directory: str | Path,
    prompts: Iterable[str | Prompt],
    *,
    chat: bool = False,
    max_response_tokens: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Responses to `prompts`, one at a time, from a run's newest model or from a model directory.

    Length and temperature are by default the run's, or 128 tokens (half the context where that is less) at temperature
    1 for another model; temperature 0 takes the likeliest token.
    Raises: ModelError where there is no model.
    """
    run_dir = RunDir(directory)
    rollout = None
    source = PretrainedModelConfig(path=str(directory))
    if run_dir.is_run():
        recipe = recipe_of(run_dir)
        if isinstance(recipe, ControlRecipe):
            raise ModelError(
                f"{directory} is a run of the control task {recipe.env.id}, whose policy writes no text; "
                f"measure it with: rlhfkit evaluate {directory}"
            )
        made = run_dir.newest_model()
        if made is None:
            raise ModelError(f"{directory} has no model yet; finish it with the command that began it")
        rollout, source = recipe.rollout, source.model_copy(update={"path": str(made)})
    subject = source.path if rollout else f"{directory} (no run directory)"
    context = context_of(inspect_model(source.path, subject=subject)) or 1 << 20
    rollout = rollout or RolloutConfig(max_response_tokens=min(128, context // 2))
    rollout = rollout.model_copy(
        update={
            "max_response_tokens": max_response_tokens or rollout.max_response_tokens,
            "temperature": temperature or rollout.temperature,
        }
    )
    is_greedy = temperature == 0
    device = choose_device("auto")
    tokenizer, _ = load_tokenizer(source)
    encoder = Encoder(tokenizer)
    model, _ = load_causal_lm(source, tokenizer, device=device, dtype=choose_dtype("auto", device).dtype)
    language_model = LanguageModel(model, encoder)
    room = context - rollout.max_response_tokens
    if room < 1:
        raise ConfigError(
            f"max_response_tokens = {rollout.max_response_tokens} leaves no room for a prompt in the model's context "
            f"of {context} tokens; give a smaller number"
        )
    for number, given in enumerate(prompts):
        content = given.content if isinstance(given, Prompt) else given
        if chat and isinstance(content, str):
            content = (Message("user", content),)
        prompt = Prompt(content, origin=f"prompt {number + 1}")
        encoded = encoder.encode(prompt, max_tokens=room)
        if encoded.was_cut:
            Progress().warn(f"prompt {number + 1} is longer than the {room} tokens that there is room for, and was cut")
        seeds = None if is_greedy else [derive_seed(seed, "generate", number)]
        (response,) = sample(language_model, [encoded.ids], rollout, seeds=seeds)
        yield encoder.decode(response.ids)
