"""What all sections of a recipe are made of."""

import os
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["LocalPath", "OpenShare", "Section", "Share", "type_or"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
OpenShare = Annotated[float, Field(gt=0.0, le=1.0)]
LocalPath = Annotated[str, AfterValidator(os.path.expanduser)]  # no shell expands the ~ of model.path=~/models/mine


class Section(BaseModel):
    """A table of the recipe: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


def type_or(default: str) -> Callable[[object], str]:
    """Read the `type` key of a union, which may be left out where one member is the usual one."""

    def read(value: object) -> str:
        return str(value.get("type", default) if isinstance(value, dict) else getattr(value, "type", default))

    return read
