"""Recorded dialogues as an environment: the user goes on as recorded, whatever the policy answered."""

from collections.abc import Sequence
from dataclasses import replace

from rlhfkit.envs.text import TextStep
from rlhfkit.errors import DataError
from rlhfkit.records import Message, Prompt

__all__ = ["ReplayEnv"]


class ReplayEnv:
    """The user's turns of one dialogue after the other.

    The recorded answers are left out: the policy gives its own. A user who does not hear them may talk past them, which
    is the price of a recording; what is rewarded is each answer in the conversation as it went. The environment pays
    nothing itself.
    """

    def __init__(self, dialogues: Sequence[Prompt], *, max_turns: int) -> None:
        """Replay at most the first `max_turns` turns of the user.

        Raises: DataError where a prompt is no conversation.
        """
        plain = next((prompt for prompt in dialogues if isinstance(prompt.content, str)), None)
        if plain is not None or not dialogues:
            raise DataError(
                f'env.type = "replay" needs conversations, and {plain.origin if plain else "the list"} has none; give '
                "rows with messages, or with Human/Assistant transcripts, or choose another env.type"
            )
        self.dialogues, self.max_turns = dialogues, max_turns
        self._rest: list[str] = []

    def reset(self, seed: int) -> Prompt:
        """The first turn of dialogue number `seed`, counted around, with the system's words before it."""
        dialogue = self.dialogues[seed % len(self.dialogues)]
        turns = [turn for turn in dialogue.content if isinstance(turn, Message)]
        system = tuple(turn for turn in turns[:1] if turn.role == "system")
        first, *rest = [turn.content for turn in turns if turn.role == "user"]
        self._rest = rest[: self.max_turns - 1]
        return replace(dialogue, content=(*system, Message("user", first)))

    def step(self, response: str) -> TextStep:
        """The user's next turn; terminated after the last one."""
        if not self._rest:
            return TextStep("", 0.0, terminated=True)
        return TextStep(self._rest.pop(0), 0.0, terminated=False)
