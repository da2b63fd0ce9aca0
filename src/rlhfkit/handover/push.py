"""A trained model on the Hugging Face hub, or a hub of one's own: what goes, what must not, and one commit or none."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhfkit.config.secrets import hidden, looks_secret
from rlhfkit.config.section import HUB_ID
from rlhfkit.errors import CheckpointError, ConfigError, HubError
from rlhfkit.report.model_card import MARK, render_model_card
from rlhfkit.rundir.directory import RunDir
from rlhfkit.wording import counted

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Push", "PushedFile", "model_directory", "pushed", "to_push"]

MODEL_FILES = {".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py", ".md", ".gguf"}
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".svg"}
READ_FOR_SECRETS = {".json", ".jinja", ".txt", ".py", ".md", ".svg"}
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"}
"""Files whose entries may look like keys; only secrets that are known are looked for there."""
MOST_BYTES_READ = 64 * 1024 * 1024
CARD = "README.md"


@dataclass(frozen=True, slots=True)
class PushedFile:
    """A file that goes out: where it will be, and its path here, or what it holds."""

    name: str
    content: Path | bytes

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True, slots=True)
class Push:
    """What would go out, from where and to where."""

    directory: Path
    repo: str
    files: tuple[PushedFile, ...]

    def __str__(self) -> str:
        """For people, in lines."""
        width = max(len(file.name) for file in self.files)
        lines = [f"  {file.name:<{width}}  {file.num_bytes:>15,} bytes" for file in self.files]
        total = sum(file.num_bytes for file in self.files)
        return "\n".join([f"{counted(len(self.files), 'file')} of {self.directory}, {total:,} bytes:", *lines])


def to_push(run_or_model: str | Path, repo: str) -> Push:
    """The files of a run's policy, or of a model's directory, that go out.

    The card of a run is what it would be now; nothing is written here.
    Raises: ConfigError, CheckpointError where there is no model, or something lies there that must not go out.
    """
    if not HUB_ID.fullmatch(repo) or "/" not in repo:
        raise ConfigError(f"{repo!r} is no name of a repository; expected OWNER/NAME, as the hub has it")
    run = RunDir(run_or_model)
    directory = model_directory(run)
    paths = sorted(path for path in directory.rglob("*") if not path.is_dir())
    _refuse_strangers(directory, paths)
    files = {path.relative_to(directory).as_posix(): PushedFile(path.relative_to(directory).as_posix(), path)
             for path in paths}  # fmt: skip
    if run.is_run() and _is_ours(directory / CARD):
        files[CARD] = PushedFile(CARD, render_model_card(run).encode("utf-8", "backslashreplace"))
    _refuse_secrets(files.values())
    return Push(directory, repo, tuple(files[name] for name in sorted(files)))


def model_directory(run: RunDir) -> Path:
    """The policy of a run, or the model's directory that was named in its place.

    Raises: ConfigError, CheckpointError where there is none.
    """
    if not run.is_run():
        if (run.path / "config.json").exists() or (run.path / "adapter_config.json").exists():
            return run.path
        raise CheckpointError(f"{run.path} is neither a run directory nor a model's; name one of the two")
    if run.is_control():
        raise ConfigError(f"{run.path} is a run of a control task, whose policy is no model that the hub knows")
    policy = run.model("policy")
    if not policy.is_dir():
        raise CheckpointError(f"{run.path} has no policy yet; finish it with: rlhfkit run, or name a model's directory")
    return policy


def _is_ours(card: Path) -> bool:
    return not card.exists() or MARK in card.read_text(encoding="utf-8", errors="replace")


# ── what must not go out ─────────────────────────────────────────────────────────────────────────────────────────────


def _refuse_strangers(directory: Path, paths: list[Path]) -> None:
    """Raises: ConfigError where something is no part of a model: data, votes, databases, pickles, keys, links."""
    strangers = [path for path in paths if _is_stranger(path, directory)]
    if strangers:
        names = ", ".join(str(path.relative_to(directory)) for path in strangers[:5])
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        raise ConfigError(
            f"{directory} holds {names}{more}, which is no part of a model; what people said, data and keys do not go "
            "out with one: move it elsewhere, and push again"
        )
    if not any(path.suffix in {".safetensors", ".gguf"} for path in paths):
        raise CheckpointError(f"{directory} holds no weights (*.safetensors); there is nothing to push")


def _is_stranger(path: Path, directory: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
    leads_out = not path.resolve().is_relative_to(directory.resolve())
    return is_hidden or leads_out or not path.is_file() or path.suffix.lower() not in MODEL_FILES | PICTURES


def _refuse_secrets(files: Iterable[PushedFile]) -> None:
    """Raises: ConfigError where a text holds a secret that is known, or what looks like a key."""
    for file in files:
        if Path(file.name).suffix not in READ_FOR_SECRETS or file.num_bytes > MOST_BYTES_READ:
            continue
        content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
            if what := _secret_of(line, is_vocabulary=Path(file.name).name in VOCABULARIES):
                raise ConfigError(f"{file.name}:{number} holds {what}; take it out before it goes out")


def _secret_of(line: str, *, is_vocabulary: bool) -> str | None:
    shown = hidden(line)
    if shown != line:
        return "the value of an environment variable that is a secret"
    words = () if is_vocabulary else line.replace('"', " ").replace("'", " ").replace("=", " ").split()
    return "what looks like a key or a token" if any(looks_secret(word.strip("`,;()<>")) for word in words) else None


# ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def pushed(push: Push, *, public: bool = False, message: str | None = None) -> str:
    """Address of the repository that the files are in now, by one commit; it is private unless `public`.

    Raises: HubError with what the hub said; its repository is then as it was before, but that it may be new and empty.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    from rlhfkit import __version__

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not get_token():
        raise HubError(
            f"nobody is logged in to {endpoint}: run hf auth login, or export HF_TOKEN with a token of yours"
        )
    api = HfApi(library_name="rlhfkit", library_version=__version__)
    with _words_for(push.repo, endpoint):
        _refuse_public(api, push.repo, public=public)
        address = str(api.create_repo(push.repo, private=not public, exist_ok=True))
        api.create_commit(
            push.repo,
            [CommitOperationAdd(file.name, file.content) for file in push.files],
            commit_message=message or f"Model trained with rlhfkit {__version__}",
        )
    return address


def _refuse_public(api: "HfApi", repo: str, *, public: bool) -> None:
    """Raises: HubError where everybody would see what is to be private."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        is_private = api.model_info(repo).private
    except RepositoryNotFoundError:
        return
    if not is_private and not public:
        raise HubError(f"{repo} exists and is public, so all would see the model; add --public, or choose another name")
    if is_private and public:
        raise HubError(f"{repo} exists and is private; change that in its settings, or leave --public out")


@contextmanager
def _words_for(repo: str, endpoint: str) -> Iterator[None]:
    """Raises: HubError in the place of what the library raises."""
    from huggingface_hub.errors import HfHubHTTPError

    again = "nothing of it is seen there; the same command goes on, and sends what is missing"
    try:
        yield
    except HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise HubError(
                f"{endpoint} refuses {repo} ({code}, {_said(error)}): expected a token that may write there; "
                "run hf auth login, or export HF_TOKEN"
            ) from error
        raise HubError(f"{endpoint} answers {code} for {repo} ({_said(error)}); {again}") from error
    except HubError:
        raise
    except Exception as error:  # which ones depends on the library below the library
        raise HubError(f"{endpoint} did not take {repo} ({_said(error)}); {again}") from error


def _said(error: BaseException) -> str:
    """The innermost reason, in one line."""
    server = getattr(error, "server_message", None)
    while error.__cause__ is not None:
        error = error.__cause__
    return hidden(" ".join(str(server or error).split())[:300]) or type(error).__name__
