"""Language as an environment: it says something, the policy responds, it says something else, until it is over."""

import math
import numbers
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rlhfkit.config.callables import shown_error, switches_kept
from rlhfkit.errors import EnvError, RlhfkitError
from rlhfkit.records import Message, Prompt

__all__ = [
    "TextEnv",
    "TextEnvFactory",
    "TextStep",
    "TurnLimit",
    "begin",
    "faults_of_prompt",
    "faults_of_reward",
    "faults_of_step",
    "guarded",
    "name_of",
    "proceed",
    "refuse",
    "shown",
]


@dataclass(frozen=True, slots=True)
class TextStep:
    """What an environment answers to a response."""

    observation: str
    """What the policy reads next: the user's next turn, or text that is appended as it stands."""
    reward: float
    """Reward of the response, on top of all that came before."""
    terminated: bool
    """Whether the episode came to its end: nothing that is worth anything follows."""
    truncated: bool = False
    """Whether it was cut off, as by a time limit, though it could have gone on."""
    won: bool | None = None
    """At the end: whether the policy won, where there is such a thing. Only counted, never learnt from."""


class TextEnv(Protocol):
    """A world of words. One episode at a time; a new one begins with `reset`."""

    def reset(self, seed: int) -> Prompt | str:
        """The first prompt; the same seed, and the same responses after it, give the same episode.

        Text is continued as it stands. A conversation ends with the user's turn, and each observation becomes a
        further one.
        """
        ...

    def step(self, response: str) -> TextStep:
        """What comes of the response: text without special tokens; in a conversation, without the blanks around it.

        Any text may come, the empty one too. After a terminated step it raises, or says again that it is over.
        """
        ...


TextEnvFactory = Callable[[], TextEnv]
"""Makes an environment of its own for each episode that is played at the same time."""


class TurnLimit:
    """An environment whose episodes are cut off, truncated, after so many responses."""

    def __init__(self, env: TextEnv, max_turns: int) -> None:
        """Limit `env`, which may never end by itself."""
        self.env, self.max_turns = env, max_turns
        self._num_turns = 0

    def reset(self, seed: int) -> Prompt | str:
        """The first prompt of `env`."""
        self._num_turns = 0
        return self.env.reset(seed)

    def step(self, response: str) -> TextStep:
        """What `env` says; truncated, if it is not over by now."""
        step = self.env.step(response)
        self._num_turns += 1
        if not isinstance(step, TextStep):
            return step  # for `faults_of_step` to say what it is
        if step.terminated or step.truncated or self._num_turns < self.max_turns:
            return step
        return TextStep(step.observation, step.reward, terminated=False, truncated=True, won=step.won)


def begin(env: TextEnv, seed: int) -> Prompt:
    """The first prompt of the episode `seed`.

    Raises: EnvError where the environment fails, or does not return a prompt.
    """
    prompt = guarded(lambda: env.reset(seed), f"{name_of(env)}.reset({seed})")
    refuse(faults_of_prompt(prompt), env)
    return Prompt(prompt, origin=f"{name_of(env)}, seed {seed}") if isinstance(prompt, str) else prompt


def proceed(env: TextEnv, response: str) -> TextStep:
    """What comes of `response`.

    Raises: EnvError where the environment fails, or does not return a step whose reward is a finite number.
    """
    step: TextStep = guarded(lambda: env.step(response), f"{name_of(env)}.step({response[:60]!r})")
    refuse(faults_of_step(step), env)
    return step


def faults_of_prompt(prompt: Any) -> list[str]:
    """What is wrong with what `reset` returned, each with what to change."""
    if isinstance(prompt, str):
        if not prompt.strip():
            return ["reset returned an empty prompt; return text for the policy to continue"]
        return _faults_of_text(prompt, "the prompt of reset")
    if not isinstance(prompt, Prompt):
        return [f"reset returned {shown(prompt)}; expected a text or a rlhfkit.records.Prompt; return one of the two"]
    if isinstance(prompt.content, str):
        return faults_of_prompt(prompt.content)
    odd = next((turn for turn in prompt.content if not isinstance(turn, Message)), None)
    if odd is not None:
        return [f"reset returned a conversation that holds {shown(odd)}; make it a rlhfkit.records.Message"]
    if not prompt.content or prompt.content[-1].role != "user" or not prompt.content[-1].content.strip():
        return ["reset returned a conversation that does not end with words of the user; add the turn to be answered"]
    return [fault for turn in prompt.content for fault in _faults_of_text(turn.content, "a turn of reset's prompt")]


def _faults_of_text(text: str, what: str) -> list[str]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        return [
            f"{what} holds half a character, {half}, which no tokenizer reads; take it out, or decode the text anew"
        ]
    return []


def faults_of_step(step: Any) -> list[str]:
    """What is wrong with what `step` returned, each with what to change."""
    if not isinstance(step, TextStep):
        return [f"step returned {shown(step)}; expected a TextStep; return TextStep(observation, reward, terminated)"]
    faults = []
    if not isinstance(step.observation, str):
        faults.append(f"the observation of a step is {shown(step.observation)}; expected text; return a str, if empty")
    else:
        faults += _faults_of_text(step.observation, "the observation of a step")
    faults += faults_of_reward(step.reward)
    for name in ("terminated", "truncated"):
        if not isinstance(getattr(step, name), bool):
            faults.append(
                f"{name} of a step is {shown(getattr(step, name))}; expected True or False; wrap it in bool()"
            )
    if isinstance(step.observation, str) and not step.observation and not (step.terminated or step.truncated):
        faults.append("a step that does not end the episode has an empty observation; say something to respond to")
    return faults


def faults_of_reward(reward: Any) -> list[str]:
    """What is wrong with a reward, and what to change."""
    if isinstance(reward, bool) or not isinstance(reward, numbers.Real):
        return [f"the reward of a step is {shown(reward)}; expected a number; return a float"]
    if not math.isfinite(reward):
        return [f"the reward of a step is {reward}; expected a finite number; look for a division by zero"]
    return []


def guarded(call: Callable[[], Any], what: str, *, must: str = "it must take any response, and any seed") -> Any:
    """What `call` returns.

    Raises: EnvError where it raises, with the place in the environment's code, and what an environment `must` do.
    """
    try:
        with switches_kept():
            return call()
    except RlhfkitError:  # it has its words already
        raise
    except (Exception, SystemExit) as error:  # sys.exit() there would end the run as if it were done
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise EnvError(
            f"{what} raised {shown_error(error)} (at {frame.filename}:{frame.lineno}); fix the environment: {must}"
        ) from error


def refuse(faults: list[str], env: object) -> None:
    """Raise one error for all faults, if there are any.

    Raises: EnvError with each of them, on a line of its own where there are several.
    """
    if len(faults) == 1:
        raise EnvError(f"{name_of(env)}: {faults[0]}")
    if faults:
        raise EnvError(f"{name_of(env)} has {len(faults)} faults:" + "".join(f"\n  {fault}" for fault in faults))


def name_of(env: object) -> str:
    """The environment's class, for messages."""
    return type(env.env if isinstance(env, TurnLimit) else env).__name__  # the user's, not what is around it


def shown(value: object) -> str:
    """A value with its type, cut short, for messages."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '…'} ({type(value).__name__})"
