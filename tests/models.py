"""The modules as programs of pure functions: what each remembers from one verb to the next."""

from typing import Any, ClassVar

import torch
from torch import Tensor

import mtl_scalarize as mtl

State = dict[str, Tensor]
Shape = tuple[int, ...]


class Model:
    """What a module should remember, and make of it. `state` is what its `state_dict` holds."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.reset()

    def reset(self) -> None:
        self.state, self.called = self.start(), False

    def load(self, state: State) -> None:
        self.state, self.called = dict(state), True  # a state does not tell of a call

    def new(self) -> mtl.Scalarizer:
        """The module that this is a model of."""
        raise NotImplementedError

    def start(self) -> State:
        """The state of a new module."""
        raise NotImplementedError

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        """What a call in training does to the state, before it combines."""

    def combine(self, losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What a call gives, and its task weights, with the state as it is."""
        raise NotImplementedError

    def update(self, losses: Tensor, mask: Tensor | None) -> bool:
        """In training. Whether there is a call that it can follow."""
        return True

    def step(self) -> None:
        """In training."""


class LearnedModel(Model):
    """UW and IMTL-L: what the user's optimizer makes of the parameter, the machine says."""

    make: Any
    name: str
    functions: tuple[Any, Any]

    def new(self) -> mtl.Scalarizer:
        return self.make(self.shape, init=0.5, eps=1e-3)

    def start(self) -> State:
        return {self.name: torch.full(self.shape, 0.5, dtype=self.dtype)}

    def combine(self, losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        loss, weights = self.functions
        parameter = self.state[self.name]
        return loss(losses, parameter, eps=1e-3, mask=mask), weights(parameter, mask=mask)


class UWModel(LearnedModel):
    make, name, functions = mtl.UW, "log_var", (mtl.uw_loss, mtl.uw_weights)


class IMTLLModel(LearnedModel):
    make, name, functions = mtl.IMTLL, "log_scale", (mtl.imtll_loss, mtl.imtll_weights)


class DWAModel(Model):
    temperature = 2.0

    def new(self) -> mtl.DWA:
        return mtl.DWA(self.temperature, shape=self.shape)

    def start(self) -> State:
        return self.named(mtl.dwa_init(self.shape, dtype=self.dtype))

    def named(self, state: mtl.DWAState) -> State:
        return dict(zip(("mean", "count", "last", "previous", "epoch_weights"), state, strict=True))

    def before(self, losses: Tensor) -> mtl.DWAState:
        """The state before these losses."""
        return mtl.DWAState(*self.state.values())

    def combine(self, losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        state = self.before(losses)
        weights = state.weights if mask is None else torch.where(mask, state.weights, 0.0)
        return mtl.dwa_combine(losses, state, mask=mask), weights

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        self.state = self.named(mtl.dwa_accumulate(self.before(losses), losses, mask=mask))

    def step(self) -> None:
        state = mtl.DWAState(*self.state.values())
        self.state = self.named(mtl.dwa_step(state, self.temperature))


class LazyDWAModel(DWAModel):
    """DWA without shape: the first losses to learn from bring the state."""

    def new(self) -> mtl.DWA:
        return mtl.DWA(self.temperature)

    def start(self) -> State:
        dtype = self.state["mean"].dtype if hasattr(self, "state") else self.dtype
        return self.named(mtl.dwa_init(0, dtype=dtype))

    def before(self, losses: Tensor) -> mtl.DWAState:
        if self.state["mean"].shape == (0,):
            return mtl.dwa_init(losses.shape, dtype=losses.dtype)
        return super().before(losses)


class ReLoBRaLoModel(Model):
    """Each call draws from the generator as the module does."""

    options: ClassVar[dict[str, float]] = {"temperature": 0.5, "alpha": 0.9}
    rho = 0.5

    def new(self) -> mtl.ReLoBRaLo:
        return mtl.ReLoBRaLo(self.shape, rho=self.rho, **self.options)

    def start(self) -> State:
        return self.named(mtl.relobralo_init(self.shape, dtype=self.dtype))

    def named(self, state: mtl.ReLoBRaLoState) -> State:
        return dict(zip(("running_weights", "first", "last"), state, strict=True))

    def combine(self, losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        weights = self.state["running_weights"]
        shown = weights if mask is None else torch.where(mask, weights, 0.0)
        return mtl.constant_combine(losses, weights, mask=mask), shown

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        old, lookback = mtl.ReLoBRaLoState(*self.state.values()), torch.rand(()) >= self.rho
        new = mtl.relobralo_update(old, losses.detach(), lookback, mask=mask, **self.options)
        self.state = self.named(new)


class FAMOModel(Model):
    bound, lr, weight_decay, amortized = -0.5, 0.1, 0.01, False
    #: Of the losses in the last call that learned: an update rounds its own alike.
    call_dtype: torch.dtype | None = None

    def reset(self) -> None:
        super().reset()
        self.call_dtype = None

    def load(self, state: State) -> None:
        super().load(state)
        self.call_dtype = None

    def new(self) -> mtl.FAMO:
        return mtl.FAMO(
            self.shape, self.bound, self.lr, self.weight_decay, amortized=self.amortized
        )

    def start(self) -> State:
        state = mtl.famo_init(self.shape, dtype=self.dtype)
        return state._asdict() | {"previous_losses": torch.full_like(state.logits, torch.nan)}

    def combine(self, losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        arguments = losses, self.state["logits"], self.bound
        return mtl.famo_combine(*arguments, mask=mask), mtl.famo_weights(*arguments, mask=mask)

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        never = torch.full_like(self.state["logits"], torch.nan)
        self.remember(losses, mask, otherwise=never)
        self.call_dtype = losses.dtype

    def remember(self, losses: Tensor, mask: Tensor | None, otherwise: Tensor) -> None:
        seen = losses.isfinite() if mask is None else losses.isfinite() & mask
        self.state["previous_losses"] = torch.where(seen, losses, otherwise).to(self.dtype)

    def update(self, losses: Tensor, mask: Tensor | None) -> bool:
        previous = self.state["previous_losses"]
        if not self.called:
            return False
        self.fall(losses, mask)
        self.state["previous_losses"] = torch.full_like(previous, torch.nan)
        return True

    def fall(self, losses: Tensor, mask: Tensor | None) -> None:
        *fields, previous = self.state.values()
        losses = losses.to(self.call_dtype or self.dtype).to(self.dtype)
        delta = mtl.famo_delta(previous, losses, self.bound)
        old, rates = mtl.FAMOState(*fields), {"lr": self.lr, "weight_decay": self.weight_decay}
        self.state |= mtl.famo_update(old, delta, mask=mask, **rates)._asdict()


class AmortizedFAMOModel(FAMOModel):
    amortized = True

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        self.fall(losses, mask)
        self.remember(losses, mask, otherwise=self.state["previous_losses"])

    def update(self, losses: Tensor, mask: Tensor | None) -> bool:
        return True
