"""What all sections of a recipe are made of."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rlhfkit.errors import ConfigError

__all__ = [
    "HUB_ID",
    "MAY_CHANGE",
    "LocalPath",
    "OpenShare",
    "Section",
    "Share",
    "divisor_near",
    "may_change",
    "type_or",
]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
OpenShare = Annotated[float, Field(gt=0.0, le=1.0)]
HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
"""What the Hugging Face hub calls a model or a dataset; those of its first years have no owner."""
LocalPath = Annotated[str, AfterValidator(os.path.expanduser)]  # no shell expands the ~ of model.path=~/models/mine


@dataclass(frozen=True, slots=True)
class _MayChange:
    """A mark in the type of a setting."""


MAY_CHANGE = _MayChange()
"""Marks a setting, or all of a section, that may change in the middle of a stage, since no result depends on it: it is
about memory, time and faults, or only shown. Any other setting is fixed for the stages that have read it."""


class Section(BaseModel):
    """A table of the recipe: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    def __init__(self, **settings: Any) -> None:
        """A section made in Python. Raises: ConfigError, which names the class and what of it is wrong."""
        try:
            super().__init__(**settings)
        except ValidationError as error:
            from rlhfkit.config.faults import faults_of

            raise ConfigError("; ".join(faults_of(error, {}, type(self), in_python=True))) from None

    @classmethod
    def public_name(cls) -> str:
        """The name under which Python programs import the class: `PPOConfig`, not `PpoConfig`."""
        return cls.__name__.replace("Ppo", "PPO").replace("Sft", "SFT").replace("Dpo", "DPO")

    def __repr_name__(self) -> str:
        return self.public_name()

    # So that pydantic goes on making the sections inside of others by itself, and names them in one error.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def divisor_near(wanted: int, number: int) -> int:
    """The divisor of `number` that is nearest to `wanted` by ratio: what a minibatch is where nobody has set it."""
    divisors = (divisor for divisor in range(1, number + 1) if number % divisor == 0)
    return min(divisors, key=lambda divisor: max(divisor / wanted, wanted / divisor), default=wanted)


def type_or(default: str) -> Callable[[object], str]:
    """Read the `type` key of a union, which may be left out where one member is the usual one."""

    def read(value: object) -> str:
        return str(value.get("type", default) if isinstance(value, dict) else getattr(value, "type", default))

    return read


def may_change(section: BaseModel, name: str) -> bool:
    """Whether the setting of this dotted name below `section`, or a section that it is in, has the mark MAY_CHANGE."""
    key, _, rest = name.partition(".")
    field = type(section).model_fields.get(key)
    if field is None or MAY_CHANGE in field.metadata:
        return field is not None
    inner = getattr(section, key)
    return bool(rest) and isinstance(inner, BaseModel) and may_change(inner, rest)
