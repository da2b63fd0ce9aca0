"""What is searched: the shipped knobs, what a recipe makes of them, and the settings that their values stand for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhfkit.config.control import ControlPpoConfig, ControlRecipe
from rlhfkit.config.load import with_overrides
from rlhfkit.config.ppo import AdaptiveKLConfig, PpoConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.tune import KnobConfig, KnobValue
from rlhfkit.errors import ConfigError
from rlhfkit.rundir.study import KnobRange
from rlhfkit.wording import listed

__all__ = [
    "Knob",
    "Params",
    "Settings",
    "kl_budget",
    "overrides",
    "settings_of",
    "space_of",
    "usual_params",
    "with_settings",
]

Params = Mapping[str, KnobValue]
Settings = dict[str, KnobValue]
AnyRecipe = Recipe | ControlRecipe

SEARCHED = ("ppo", "rollout")
"""Sections whose settings may be searched: what comes before PPO is made once, and shared by all trials."""
SEARCHED_CONTROL = ("ppo", "network")
NOT_SEARCHED = {
    "ppo.iterations": "it decides what a trial costs",
    "ppo.env_steps": "it decides what a trial costs",
    "ppo.max_ref_kl": "tune.kl is the budget",
    "ppo.end_with": "a trial ends with its best weights",
    "rollout.temperature": "it changes the policy that is trained and measured",
    "rollout.max_response_tokens": "it changes the task",
}
KL_WITHOUT_TARGET = 10.0
LEARNING_RATE_SPAN = 10.0
"""Rates are searched from that which fits the model's size, divided by this, to as many times it."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One thing that is searched."""

    name: str
    """A setting, or a ratio of `RATIOS`."""
    where: KnobConfig
    default: KnobValue | None
    """What the recipe says, where that is a number or a word."""

    def as_range(self) -> KnobRange:
        """For the page."""
        return KnobRange(**self.where.model_dump(), name=self.name, default=self.default)


# ── ratios: what is searched in place of a setting, because it means the same beside other settings ──────────────────


def _minibatches(recipe: AnyRecipe, value: KnobValue) -> Settings:
    """So many minibatches of a rollout; the nearest number below it that divides its episodes."""
    if isinstance(recipe, ControlRecipe):
        rollout = recipe.ppo.num_envs * recipe.ppo.rollout_steps
        return {"ppo.minibatch_steps": rollout // _divisor_below(rollout, int(value))}
    episodes = recipe.ppo.rollout_episodes
    return {"ppo.minibatch_episodes": episodes // _divisor_below(episodes, int(value))}


def _rollout_steps(recipe: AnyRecipe, value: KnobValue) -> Settings:
    """Steps in a rollout of all environments, with the number of minibatches that the recipe has."""
    assert isinstance(recipe, ControlRecipe)
    steps = max(1, min(int(value), recipe.ppo.env_steps) // recipe.ppo.num_envs)
    num = recipe.ppo.num_envs * recipe.ppo.rollout_steps // recipe.ppo.minibatch_steps
    rollout = steps * recipe.ppo.num_envs
    return {"ppo.rollout_steps": steps, "ppo.minibatch_steps": rollout // _divisor_below(rollout, num)}


def _divisor_below(number: int, most: int) -> int:
    return next(divisor for divisor in range(min(most, number), 0, -1) if number % divisor == 0)


RATIOS: dict[str, Callable[[AnyRecipe, KnobValue], Settings]] = {
    "minibatches": _minibatches,
    "rollout_steps": _rollout_steps,
    "one_minus_gamma": lambda recipe, value: {"ppo.gamma": 1 - float(value)},
    "one_minus_lambda": lambda recipe, value: {"ppo.gae_lambda": 1 - float(value)},
}
RATE_RATIO = "value_rate_ratio"
"""The critic's learning rate, as a multiple of the policy's; it is set once that is known."""


def settings_of(params: Params, recipe: AnyRecipe) -> Settings:
    """Dotted setting → value, for values of the knobs. A rollout's size comes before what divides it."""
    settings: Settings = {}
    for name in sorted(params, key=lambda name: name == "minibatches"):
        if name == RATE_RATIO:
            continue
        changed = with_settings(recipe, settings, name="the trial") if settings else recipe
        settings |= RATIOS[name](changed, params[name]) if name in RATIOS else {name: params[name]}
    if RATE_RATIO in params:
        settings["ppo.value.optim.learning_rate"] = float(
            f"{float(params['ppo.optim.learning_rate']) * float(params[RATE_RATIO]):.4g}"
        )
    return settings


def overrides(settings: Mapping[str, KnobValue]) -> list[str]:
    """As the command line takes them."""
    return [f"{name}={_toml(value)}" for name, value in settings.items()]


def with_settings(recipe: AnyRecipe, settings: Mapping[str, KnobValue], *, name: str) -> AnyRecipe:
    """The recipe with other settings. Raises: ConfigError, of `name`, where it does not take one."""
    return with_overrides(
        recipe.model_dump(mode="json", exclude_none=True), overrides(settings), name=name, is_resolved=True
    )


def _toml(value: KnobValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


# ── the space ────────────────────────────────────────────────────────────────────────────────────────────────────────


def kl_budget(recipe: AnyRecipe) -> float | None:
    """Nats per episode that a policy may be from its reference; None for a control task, which has none."""
    if isinstance(recipe, ControlRecipe):
        if recipe.tune.kl is not None:
            raise ConfigError(
                f"tune.kl = {recipe.tune.kl:g}: the control task {recipe.name} has no reference, and so no KL; leave "
                "it out"
            )
        return None
    if recipe.tune.kl is not None:
        return recipe.tune.kl
    kl = recipe.ppo.kl
    return kl.target if isinstance(kl, AdaptiveKLConfig) else KL_WITHOUT_TARGET


def space_of(recipe: AnyRecipe, rates: tuple[float, float]) -> tuple[Knob, ...]:
    """The knobs that are searched: those that ship for such a recipe, narrowed and extended by `tune.space`.

    `rates`: the learning rates of policy and critic that go by the model's size.
    Raises: ConfigError where a knob of the recipe cannot be searched, or nothing is left.
    """
    shipped = _shipped_control(recipe) if isinstance(recipe, ControlRecipe) else _shipped(recipe, rates[0])
    for name in recipe.tune.space:
        _refuse(name, recipe)
    where = {**shipped, **{name: knob for name, knob in recipe.tune.space.items() if isinstance(knob, KnobConfig)}}
    fixed = {name for name, knob in recipe.tune.space.items() if knob == "fixed"}
    if unknown := sorted(fixed - shipped.keys()):
        raise ConfigError(f'tune.space: {listed(unknown)} = "fixed" takes out what is not searched; leave it away')
    chosen = {name: knob for name, knob in where.items() if name not in fixed}
    if not chosen:
        raise ConfigError('tune.space leaves nothing to search; set fewer knobs to "fixed", or add one')
    if RATE_RATIO in chosen and "ppo.optim.learning_rate" not in chosen:
        raise ConfigError(f'tune.space: {RATE_RATIO} goes with ppo.optim.learning_rate; set it to "fixed" too')
    knobs = tuple(Knob(name, knob, _default(name, recipe, rates)) for name, knob in chosen.items())
    for knob in knobs:
        _try_ends(knob, recipe, rates)
    return knobs


def _shipped(recipe: Recipe, rate: float) -> dict[str, KnobConfig]:
    """Six or so that matter: docs/tune.md says which evidence there is for each."""
    budget, ppo = kl_budget(recipe), recipe.ppo
    assert budget is not None
    adaptive = isinstance(ppo.kl, AdaptiveKLConfig)
    low, high = rate / LEARNING_RATE_SPAN, rate * LEARNING_RATE_SPAN
    space = {
        "ppo.optim.learning_rate": KnobConfig(low=float(f"{low:.2g}"), high=float(f"{high:.2g}"), log=True),
        "ppo.epochs": KnobConfig(choices=(1, 2, 4)),
        "minibatches": KnobConfig(choices=(1, 2, 4, 8)),
        "ppo.kl.target" if adaptive else "ppo.kl.coef": (
            KnobConfig(low=budget / 4, high=float(budget), log=True)
            if adaptive
            else KnobConfig(low=0.01, high=0.3, log=True)
        ),
    }
    if ppo.value_optim is not None:
        space[RATE_RATIO] = KnobConfig(low=1.0, high=15.0, log=True)
    if ppo.estimator == "gae":
        space["ppo.gae_lambda"] = KnobConfig(choices=(0.9, 0.95, 0.97, 1.0))
    return space


def _shipped_control(recipe: ControlRecipe) -> dict[str, KnobConfig]:
    """The space of RL Baselines3 Zoo for PPO, so that results can be compared, without the network's widths.

    Source: github.com/DLR-RM/rl-baselines3-zoo, rl_zoo3/hyperparams_opt.py (sample_ppo_params).
    """
    longest = max(64, min(4096, recipe.ppo.env_steps // 8))
    return {
        "rollout_steps": KnobConfig(choices=tuple(2**power for power in range(5, 13) if 2**power <= longest)),
        "minibatches": KnobConfig(choices=(1, 2, 4, 8, 16)),
        "ppo.optim.learning_rate": KnobConfig(low=1e-5, high=2e-3, log=True),
        "ppo.epochs": KnobConfig(choices=(1, 5, 10, 20)),
        "one_minus_gamma": KnobConfig(low=1e-4, high=0.03, log=True),
        "one_minus_lambda": KnobConfig(low=1e-4, high=0.1, log=True),
        "ppo.entropy_coef": KnobConfig(low=1e-8, high=0.1, log=True),
        "ppo.clip_range": KnobConfig(choices=(0.1, 0.2, 0.3, 0.4)),
        "ppo.optim.max_grad_norm": KnobConfig(low=0.3, high=2.0),
        "network.activation": KnobConfig(choices=("tanh", "relu")),
    }


def _refuse(name: str, recipe: AnyRecipe) -> None:
    """Raises: ConfigError where a knob is no setting of PPO, or one that must not be searched."""
    if name in NOT_SEARCHED:
        raise ConfigError(f"tune.space: {name} cannot be searched: {NOT_SEARCHED[name]}; leave it out")
    if name in RATIOS or name == RATE_RATIO:
        return
    sections = SEARCHED_CONTROL if isinstance(recipe, ControlRecipe) else SEARCHED
    if name.partition(".")[0] not in sections or "." not in name:
        raise ConfigError(
            f"tune.space: {name} cannot be searched; expected a setting of {' or '.join(sections)}, for what comes "
            f"before is made once for all trials, or one of {listed([*RATIOS, RATE_RATIO])}"
        )


def usual_params(knobs: Sequence[Knob], recipe: AnyRecipe, rates: tuple[float, float]) -> Params:
    """What would be trained with if the recipe said nothing of these knobs: rates by the model's size, usual settings.

    Each brought to the nearest value that is searched.
    """
    ppo = ControlPpoConfig() if isinstance(recipe, ControlRecipe) else PpoConfig(kl=type(recipe.ppo.kl)())
    usual = recipe.model_copy(update={"ppo": ppo})
    found = {knob.name: _within(_default(knob.name, usual, rates), knob) for knob in knobs}
    return {name: value for name, value in found.items() if value is not None}


def _within(value: KnobValue | None, knob: Knob) -> KnobValue | None:
    """The nearest value that is searched; None where there is no value."""
    where = knob.where
    if value is None:
        return None
    numbers = [choice for choice in where.choices if isinstance(choice, int | float)]
    if isinstance(value, str) or len(numbers) < len(where.choices):
        return value if value in where.choices else where.choices[0]
    if numbers:
        return min(numbers, key=lambda choice: abs(choice - value))
    assert where.low is not None and where.high is not None
    return min(max(value, where.low), where.high)


def _default(name: str, recipe: AnyRecipe, rates: tuple[float, float]) -> KnobValue | None:
    """What the recipe says, with numbers in place of "auto"; None where it is no number and no word."""
    rate = _number(recipe.ppo.optim.learning_rate, rates[0])
    if name == "ppo.optim.learning_rate":
        return rate
    if name in RATIOS or name == RATE_RATIO:
        return _default_ratio(name, recipe, rate, rates[1])
    value: Any = recipe
    for key in name.split("."):
        value = getattr(value, key, None)
    return value if isinstance(value, bool | int | float | str) else None


def _default_ratio(name: str, recipe: AnyRecipe, rate: float, value_rate: float) -> KnobValue | None:
    ppo = recipe.ppo
    if name == RATE_RATIO:
        optim = ppo.value_optim
        return None if optim is None else _number(optim.learning_rate, value_rate) / rate
    if name == "one_minus_gamma":
        return 1 - ppo.gamma
    if name == "one_minus_lambda":
        return 1 - ppo.gae_lambda
    if isinstance(recipe, ControlRecipe):
        steps = recipe.ppo.num_envs * recipe.ppo.rollout_steps
        return steps if name == "rollout_steps" else steps // recipe.ppo.minibatch_steps
    return recipe.ppo.rollout_episodes // recipe.ppo.minibatch_episodes


def _number(rate: float | str, by_size: float) -> float:
    return by_size if isinstance(rate, str) else rate


def _try_ends(knob: Knob, recipe: AnyRecipe, rates: tuple[float, float]) -> None:
    """Raises: ConfigError where a value of the knob is none that the recipe takes."""
    where = knob.where
    ends = where.choices or tuple(end for end in (where.low, where.high) if end is not None)
    for end in ends:
        params = {"ppo.optim.learning_rate": rates[0], knob.name: end}
        with_settings(recipe, settings_of(params, recipe), name=f"tune.space: {knob.name} = {end!r}")
