"""The two doors for Python programs: the functions of the commands, in a program's words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhfkit.api.words import Words
from rlhfkit.handover import export, from_verl
from rlhfkit.handover.export import Exported
from rlhfkit.handover.from_verl import Imported

__all__ = ["export_to", "import_from"]

WORDS = Words()


@WORDS.of
def export_to(
    tool: str,
    run_or_recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    directory: str | Path | None = None,
    substitute: bool = False,
    gpus: int = 1,
    response_tokens: float | None = None,
) -> Exported:
    r"""PPO of a run, or of a recipe, for "openrlhf", "verl" or "nemo-rl": what was written, and what to know of it.

    For "gguf" (llama.cpp), "ollama" and "vllm" it is the trained model itself, of a run or of a model's directory.

    Example:
        >>> from pathlib import Path
        >>> from rlhfkit import export_to
        >>> _ = Path("prompts.jsonl").write_text('{"prompt": "Once upon a time"}\n')
        >>> settings = [f"model.path={model_dir}", 'data={path="prompts.jsonl", prompts={}}', 'stages=["ppo"]']
        >>> made = export_to("verl", "function", settings, directory=out_dir, substitute=True)
        >>> "launch.sh" in made.files
        True

    Args:
        tool: whose files they are.
        run_or_recipe: a run's directory, a shipped recipe's name, a TOML file, or a model's directory.
        overrides: settings that replace its own, as "ppo.iterations=20".
        directory: where to write; by default exported/NAME-TOOL.
        substitute: take what is nearest for what the tool cannot say; `substitutes` of the result lists it.
        gpus: GPUs of the machine that it will run on.
        response_tokens: mean length of a response, for a KL target per token; of a run by default what it has seen.

    Raises: ConfigError where the tool cannot say what the recipe says; all such settings are in its message.
    """
    return export.export_to(
        tool,
        run_or_recipe,
        overrides,
        directory=directory,
        substitute=substitute,
        gpus=gpus,
        response_tokens=response_tokens,
    )


@WORDS.of
def import_from(tool: str, config: str | Path | Mapping[str, Any], *, response_tokens: float | None = None) -> Imported:
    """The recipe, as TOML, that does what a configuration of "verl" says; and what of it was not understood.

    Example:
        >>> from rlhfkit import import_from
        >>> made = import_from("verl", {"algorithm": {"lam": 0.95, "use_pf_ppo": True}})
        >>> "gae_lambda = 0.95  # algorithm.lam" in made.text
        True
        >>> made.not_understood[-1]
        'algorithm.use_pf_ppo = true: nothing here says this'

    Args:
        tool: whose configuration it is.
        config: its YAML file, or what that says as a dictionary. What it does not say is as the tool has it by default.
        response_tokens: mean length of a response, for a KL target per token.

    Raises: ConfigError where it is no such configuration, or its algorithm is another one.
    """
    return from_verl.import_from(tool, config, response_tokens=response_tokens)
