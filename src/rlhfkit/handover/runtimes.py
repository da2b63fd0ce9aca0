"""A trained model for what serves models: GGUF for llama.cpp, a Modelfile for Ollama, a directory for vLLM."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhfkit.errors import ConfigError
from rlhfkit.handover.gguf import Tokens, require_gguf, write_gguf
from rlhfkit.handover.ollama import chat_pieces, modelfile
from rlhfkit.handover.push import model_directory
from rlhfkit.rundir.atomic import read_json, write_atomically, write_directory_atomically
from rlhfkit.rundir.contents import read_facts
from rlhfkit.rundir.directory import RunDir

__all__ = ["RUNTIMES", "export_model"]

RUNTIMES = ("gguf", "ollama", "vllm")
OF_A_MODEL = {".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py", ".md"}


def export_model(tool: str, run_or_model: str | Path, directory: Path) -> tuple[tuple[str, ...], str, str]:
    """Write the policy of a run, or a model, for a runtime: names of the files, a remark, and what to do next.

    The directory appears whole or not at all.
    Raises: ConfigError, CheckpointError where there is no model, or the runtime's form cannot say what it does.
    """
    run = RunDir(run_or_model)
    model = model_directory(run)
    if (model / "adapter_config.json").exists() and not (model / "config.json").exists():
        raise ConfigError(f"{model} holds adapters alone; merge them into their model first (peft's merge_and_unload)")
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is there already; remove it, or choose another place with --directory")
    name = (run.path if run.is_run() else model).resolve().name
    if tool != "vllm":
        require_gguf()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with write_directory_atomically(directory) as room:
        remark, follow = _WRITERS[tool](model, room, name, _sampling(run))
    files = sorted(path.name + "/" * path.is_dir() for path in directory.iterdir())
    return tuple(files), remark, follow.replace("@DIR@", str(directory))


def _sampling(run: RunDir) -> dict[str, float]:
    """How the policy was sampled while it was trained; from its whole distribution where nothing says."""
    usual = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    if not run.is_run():
        return usual
    facts = read_facts(run)
    return {name: float(facts.setting("rollout", name) or value) for name, value in usual.items()}


def _gguf(model: Path, room: Path, name: str, sampling: Mapping[str, float]) -> tuple[str, str]:
    write_gguf(model, room / f"{name}.gguf", name=name)
    return (
        f"the weights are as they were saved; llama-quantize makes smaller files of {name}.gguf",
        f"llama-cli -m @DIR@/{name}.gguf --temp {sampling['temperature']:g} --top-k {sampling['top_k']:g} "
        f"--top-p {sampling['top_p']:g} --min-p 0",
    )


def _ollama(model: Path, room: Path, name: str, sampling: Mapping[str, float]) -> tuple[str, str]:
    tokens = write_gguf(model, room / f"{name}.gguf", name=name)
    config = read_json(model / "config.json")
    text = modelfile(
        f"{name}.gguf",
        _pieces(tokens),
        stops=tokens.eos_texts,
        sampling=sampling,
        context_tokens=int(config.get("max_position_embeddings") or config["n_positions"]),
    )
    write_atomically(room / "Modelfile", text)
    return (
        "the chat template is said in Ollama's language" if tokens.chat_template else "the model has no chat template",
        f"ollama create {name} -f @DIR@/Modelfile",
    )


def _pieces(tokens: Tokens) -> Any:
    if tokens.chat_template is None:
        return None
    bos = "" if tokens.bos is None else tokens.texts[tokens.bos]
    return chat_pieces(tokens.chat_template, bos=bos, eos=tokens.eos_texts[0], adds_bos=tokens.adds_bos)


def _vllm(model: Path, room: Path, name: str, sampling: Mapping[str, float]) -> tuple[str, str]:
    for path in sorted(model.iterdir()):
        if path.is_file() and path.suffix in OF_A_MODEL:
            shutil.copyfile(path, room / path.name)
    config = read_json(model / "config.json")
    context = int(config.get("max_position_embeddings") or config.get("n_positions") or 0)
    most = f" --max-model-len {context}" if context else ""
    return (
        f"PPO sampled with {', '.join(f'{key} {value:g}' for key, value in sampling.items())}: a request has to say so",
        f"vllm serve @DIR@ --served-model-name {name}{most}",
    )


_WRITERS = {"gguf": _gguf, "ollama": _ollama, "vllm": _vllm}
