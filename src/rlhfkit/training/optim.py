"""AdamW over float32 masters, with clipping and a schedule."""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from rlhfkit.config.training import OptimConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.distributed.sharding import is_parted, like_parameter, own_part, own_rows
from rlhfkit.errors import TrainingError
from rlhfkit.machine.seeding import derive_seed

__all__ = ["Optimizer", "dithered", "learning_rate_factor"]


# Of a gradient that is added, or a master that is made.
ROWS_AT_A_TIME = 1024
# torch divides by the norm and this.
CLIP_EPS = 1e-6


def dithered(weight: Tensor, dice: torch.Generator) -> Tensor:
    """Float32 numbers that round to the bfloat16 numbers `weight`, each somewhere in the interval of those that do.

    Masters that began at the weights themselves, in the middle of it, would have to go half an interval before any
    weight moved: dozens of updates at small learning rates. From random places some weights move with every update, in
    the mean over many as far as their masters do (as dither does for sound; Schuchman 1964). Zeros stay zeros, where
    numbers are close together.
    """
    assert weight.dtype == torch.bfloat16
    master = weight.detach().float()
    for part in torch.split(master if master.dim() else master[None], ROWS_AT_A_TIME):
        # The lower half of a float32's bits is what bfloat16 lacks. At both ends of the interval it would be a tie.
        offset = torch.randint(-(2**15) + 1, 2**15, part.shape, generator=dice, dtype=torch.int32).to(part.device)
        part.view(torch.int32).add_(offset.masked_fill_((part == 0) | ~part.isfinite(), 0))
    return master


def _master(name: str, parameter: Tensor, *, what: str, seed: int) -> Tensor:
    """What updates are added to: float32 rows of this rank, those of the weight itself where that is float32."""
    if is_parted(parameter):
        return own_rows(parameter).requires_grad_()
    if parameter.dtype == torch.float32:
        return parameter
    return master_of(name, parameter, what=what, seed=seed).requires_grad_()


def master_of(name: str, parameter: Tensor, *, what: str, seed: int) -> Tensor:
    """The float32 master that a bfloat16 weight begins with; it follows from its name, what it is of, and the seed."""
    return dithered(parameter, torch.Generator().manual_seed(derive_seed(seed, "masters", what, name)))


def learning_rate_factor(config: OptimConfig, update: int, num_updates: int) -> float:
    """Factor on the learning rate of update 0 … num_updates - 1: rises over the warm-up, then follows the schedule."""
    warmup = round(config.warmup_share * num_updates)
    if update < warmup:
        return (update + 1) / (warmup + 1)
    left = 1 - (update - warmup) / max(1, num_updates - warmup)
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            return left
        case "cosine":
            return 0.5 * (1 - math.cos(math.pi * left))
        case "step":
            return config.step_factor ** ((update - warmup) // config.step_updates)


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) of the parameters that require a gradient.

    Weights below float32 get float32 masters, which the updates are added to: at small learning rates a bfloat16
    weight would round every update away. The masters begin `dithered`. Gradients go to them as soon as a backward pass
    has made them, so that those of several microbatches add up in float32.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        *,
        num_updates: int,
        what: str,
        seed: int,
    ) -> None:
        """Plan for `num_updates` updates; `what` is the name that errors use, `seed` decides where masters begin.

        Raises: ValueError where `config` still says "auto"; `decided` puts numbers there.
        """
        self.config, self.num_updates, self.what = config, num_updates, what
        self._highest_rate, eps = config.numbers()
        self.parameters = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
        self.masters = {
            name: _master(name, parameter, what=what, seed=seed) for name, parameter in self.parameters.items()
        }
        for name, parameter in self.parameters.items():
            if parameter.dtype != torch.float32:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    self._to_master(self.masters[name])
                )
        decaying = [p for p in self.masters.values() if p.dim() >= 2 and config.weight_decay]
        others = [p for p in self.masters.values() if p.dim() < 2 or not config.weight_decay]
        groups = [
            {"params": decaying, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self._highest_rate,
            betas=config.adam_betas,
            eps=eps,
            fused=True,
        )
        self.updates_done = 0
        """Place in the schedule: updates that were made, or left out."""
        self.factor = 1.0
        """On the learning rate of the schedule, for whoever finds it too high in between."""

    @staticmethod
    def _to_master(master: Tensor) -> Callable[[Tensor], None]:
        """What adds a weight's gradient to that of its master, and takes it from the weight."""

        def move(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            if master.grad is None:
                master.grad = gradient.float()
            else:
                # By parts, since torch makes a float32 copy of what it adds.
                for sums, part in zip(*(torch.split(t, ROWS_AT_A_TIME) for t in (master.grad, gradient)), strict=True):
                    sums.add_(part)
            parameter.grad = None

        return move

    def _gather_gradients(self) -> None:
        """Give every master the gradient of all ranks: parted weights have it already, of this rank's rows."""
        whole_here = []
        for name, parameter in self.parameters.items():
            if not is_parted(parameter):
                whole_here.append(self.masters[name])
            elif parameter.grad is not None:
                self.masters[name].grad = own_rows(parameter.grad)
        ranks().add_up_gradients(whole_here)

    def _total_norm(self) -> Tensor:
        """Norm of the whole gradient, a scalar."""
        parted = {name for name, parameter in self.parameters.items() if is_parted(parameter)}
        gradients = {name: master.grad for name, master in self.masters.items() if master.grad is not None}
        norm = nn.utils.get_total_norm([gradient for name, gradient in gradients.items() if name not in parted])
        if not parted:
            return norm
        rows = nn.utils.get_total_norm([gradient for name, gradient in gradients.items() if name in parted])
        squared = rows.square().reshape(1).float()
        ranks().add_up([squared])
        return (norm.square() + squared[0]).sqrt()

    def forget_gradients(self, concerned: Callable[[str], bool]) -> None:
        """Drop what has gathered for the weights whose names are `concerned`."""
        for name in filter(concerned, self.parameters):
            self.parameters[name].grad = self.masters[name].grad = None

    def skip_to(self, update: int) -> None:
        """Go on in the schedule with this update, where fewer were made than planned; never back."""
        self.updates_done = max(self.updates_done, update)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        planned = self._highest_rate * learning_rate_factor(self.config, self.updates_done, self.num_updates)
        return self.factor * planned

    def step(self) -> float:
        """One update with the gradients that have gathered, which are then gone; their norm before clipping.

        Of several ranks each brings the gradients of its rows, and all make the same update.
        Raises: TrainingError where the norm is not finite; the weights are still the old ones.
        """
        self._gather_gradients()
        total = self._total_norm()
        norm = float(total)
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient of the {self.what} is {norm} at update {self.updates_done}, which was not made; lower "
                "the learning rate, or look for extreme scores in the metrics"
            )
        if norm + CLIP_EPS > self.config.max_grad_norm:  # else the factor is 1, and to multiply by it costs a pass
            nn.utils.clip_grads_with_norm_(self.masters.values(), self.config.max_grad_norm, total)
        for group in self.adamw.param_groups:
            group["lr"] = self.learning_rate
        self.adamw.step()
        self.updates_done += 1
        with torch.no_grad():
            for name, master in self.masters.items():
                if self.parameters[name].dtype != torch.float32:
                    self.parameters[name].copy_(master)
                self.parameters[name].grad = None
                master.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything but the parameters themselves, as tensors by name; those of parted weights are parted alike."""
        tensors = {"updates_done": torch.tensor(self.updates_done)}
        for name, master in self.masters.items():
            parameter = self.parameters[name]
            for key, value in self.adamw.state[master].items():
                tensors[f"{name}/{key}"] = like_parameter(value, parameter) if value.dim() else value
            if parameter.dtype != torch.float32:
                tensors[f"{name}/master"] = master.detach()
        return tensors

    def load_state(
        self, tensors: Mapping[str, Tensor], *, weights: Mapping[str, Tensor] = MappingProxyType({})
    ) -> None:
        """Continue from what `state` gave; `weights` are those that were saved with it, by name.

        Where weights were parted they are float32 there, and so the masters of weights that are whole here.
        """
        self.updates_done = int(tensors["updates_done"])
        saved: dict[str, dict[str, str]] = {}
        for key in tensors:
            name, _, field = key.rpartition("/")
            saved.setdefault(name, {})[field] = key
        for name, master in self.masters.items():
            parameter, fields = self.parameters[name], saved.get(name, {})
            with torch.no_grad():
                if "master" in fields:
                    master.copy_(own_part(tensors[fields.pop("master")], parameter))
                elif parameter.dtype != torch.float32:
                    master.copy_(weights[name])
            # Without moments in the checkpoint there were none yet: those of later updates must not stay.
            self.adamw.state.pop(master, None)
            if fields:
                self.adamw.state[master] = {
                    field: own_part(tensors[key], parameter).to(master.device, copy=True)
                    for field, key in fields.items()
                }
