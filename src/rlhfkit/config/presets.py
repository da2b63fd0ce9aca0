"""Members of the family of policy gradients by name: settings of PPO that belong together."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel

__all__ = ["PRESETS", "PresetName", "open_to_a_preset", "preset_words", "with_preset"]

PresetName = Literal["ppo", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "reinforce++"]

_GROUPS = {"estimator": "grpo", "objective": "clip", "ratio": "token", "group_size": 8}
_NO_KL = {"coef": 0.0}  # for rewards that are rules: a reward model without a leash is soon fooled

PRESETS: Mapping[PresetName, Mapping[str, Any]] = {
    "ppo": {"estimator": "gae", "objective": "clip", "ratio": "token", "loss_aggregation": "token"},
    "rloo": {**_GROUPS, "estimator": "rloo", "group_size": 4, "loss_aggregation": "token", "epochs": 1},
    "grpo": {
        **_GROUPS,
        "normalize_std": True,
        "loss_aggregation": "sequence",
        "epochs": 1,
        "kl": {"place": "loss", "coef": 0.04},
    },
    "dr_grpo": {**_GROUPS, "normalize_std": False, "loss_aggregation": "constant", "epochs": 1, "kl": _NO_KL},
    "dapo": {
        **_GROUPS,
        "normalize_std": True,
        "clip_range": 0.2,
        "clip_range_high": 0.28,
        "loss_aggregation": "token",
        "resample_rounds": 3,
        "kl": _NO_KL,
    },
    "gspo": {
        **_GROUPS,
        "ratio": "sequence",
        "normalize_std": True,
        "clip_range": 3e-4,
        "clip_range_high": 4e-4,
        "loss_aggregation": "sequence",
        "kl": _NO_KL,
    },
    "cispo": {
        **_GROUPS,
        "objective": "cispo",
        "normalize_std": True,
        "clip_range": 1.0,
        "clip_range_high": 0.28,  # the paper gives no number; this is DAPO's
        "loss_aggregation": "token",
        "kl": _NO_KL,
    },
    "reinforce++": {
        "estimator": "reinforce++",
        "objective": "clip",
        "ratio": "token",
        "group_size": 1,
        "loss_aggregation": "token",
    },
}
"""Settings of `ppo` that each name stands for, as its source has them. Sources: docs/method.md."""

IDENTITY = ("estimator", "objective", "ratio")
"""What makes a member this one: a recipe cannot name it and set another of these."""


def with_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A table of settings of PPO with those of its `preset` beneath; what the table says itself stays as it is.

    A clip range of its own replaces both of the preset's, and an adaptive KL takes no coefficient from it.
    Raises: ValueError where the table has another estimator, objective or ratio than the preset.
    """
    name = settings.get("preset")
    found = next((table for known, table in PRESETS.items() if known == name), None)
    if found is None:
        return dict(settings)  # none, or one that the field refuses
    preset = dict(found)
    for key in IDENTITY:
        if settings.get(key, preset[key]) != preset[key]:
            raise ValueError(
                f'preset "{name}" is {key} "{preset[key]}", and not "{settings[key]}"; leave {key} out, or set it '
                "alike, or leave the preset out"
            )
    if "clip_range" in settings:
        preset.pop("clip_range_high", None)
    own_kl = _table_of(settings.get("kl", {}))
    kl = {
        key: value for key, value in preset.get("kl", {}).items() if own_kl.get("type") != "adaptive" or key != "coef"
    }
    return {**preset, **settings, "kl": {**kl, **own_kl}}


def _table_of(section: Any) -> dict[str, Any]:
    """What a table or a section made in Python says itself."""
    if isinstance(section, BaseModel):
        said = section.model_fields_set | {"type"} & set(type(section).model_fields)
        return {name: getattr(section, name) for name in said}
    return dict(section) if isinstance(section, Mapping) else {"type": section}


def open_to_a_preset(resolved: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved table of settings of PPO without those that a preset may set, where nobody has set them by hand.

    There every setting stands, and would win over any preset: those that are the default, or what the table's own
    preset has made of them, are left out. `defaults` is the resolved table of a recipe that sets nothing.
    """
    own = dict(_flat(next((table for name, table in PRESETS.items() if name == resolved.get("preset")), {})))
    kept = dict(resolved)
    kl, default_kl = dict(kept.get("kl", {})), defaults["kl"]
    if (kl.get("place"), kl.get("estimator")) in (("reward", "k1"), ("loss", "k2")):
        kl.pop("estimator")  # the usual one, which goes by the place
    for key in {key for preset in PRESETS.values() for key, _ in _flat(preset)}:
        table, usual, name = (kl, default_kl, key[3:]) if key.startswith("kl.") else (kept, defaults, key)
        if name in table and table[name] in (usual.get(name), own.get(key, usual.get(name))):
            table.pop(name)
    return {**kept, "kl": kl}


def preset_words(config: Any) -> str | None:
    """What the preset of a `PpoConfig` has set, and which of its settings the recipe has changed; None without one."""
    if config.preset is None:
        return None
    found = [(key, value, _value(config, key)) for key, value in _flat(PRESETS[config.preset])]
    took = ", ".join(f"{key} = {_shown(value)}" for key, value, now in found if now == value)
    own = ", ".join(f"{key} = {_shown(now)}" for key, value, now in found if now != value)
    return f"preset {config.preset}: {took}" + (f"; by the recipe: {own}" if own else "")


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(config: Any, name: str) -> Any:
    for key in name.split("."):
        config = getattr(config, key)
    return config


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
