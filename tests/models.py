"""The methods with state as programs of pure functions: what each remembers between its verbs."""

from typing import Any

import torch
from torch import Tensor

import mtl_scalarize as mtl
from mtl_scalarize.functional import fill_absent

State = dict[str, Tensor]
Shape = tuple[int, ...]


class Model:
    """What a module should remember, and make of it. `state` is what its `state_dict` holds."""

    priorities: float | Tensor = 1.0

    def __init__(self, shape: Shape, dtype: torch.dtype, **options: Any) -> None:
        self.shape, self.dtype = shape, dtype
        self.__dict__ |= options  # the hyperparameters that are not as below
        self.reset()

    def reset(self) -> None:
        self.state = self.start()

    def load(self, state: State) -> None:
        self.state = {name: value.to(self.state[name].dtype) for name, value in state.items()}

    def start(self) -> State:
        raise NotImplementedError

    def meet(self, losses: Tensor) -> None:
        """What any call does to the state."""

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        """What a call in training does to the state, before it combines."""

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError

    def descend(self, losses: Tensor, mask: Tensor | None) -> None:
        """A step of gradient descent on what the user's optimizer learns."""

    def update(self, losses: Tensor, mask: Tensor | None) -> None:
        """In training."""

    def step(self) -> None:
        """In training."""


class UWModel(Model):
    init, eps = 0.0, 0.0
    name, loss, weights = "log_var", staticmethod(mtl.uw_loss), staticmethod(mtl.uw_weights)

    @property
    def options(self) -> dict[str, Any]:
        return {"priorities": self.priorities, "eps": self.eps}

    def start(self) -> State:
        return {self.name: torch.full(self.shape, self.init, dtype=self.dtype)}

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return self.loss(losses, self.state[self.name], **self.options, mask=mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return self.weights(self.state[self.name], priorities=self.priorities, mask=mask)

    def descend(self, losses: Tensor, mask: Tensor | None) -> None:
        parameter = self.state[self.name]
        slope = torch.func.grad(self.loss, argnums=1)
        gradient = slope(losses, parameter, **self.options, mask=mask)
        self.state[self.name] = parameter - 0.1 * gradient


class IMTLLModel(UWModel):
    name, loss = "log_scale", staticmethod(mtl.imtll_loss)
    weights = staticmethod(mtl.imtll_weights)


class DWAModel(Model):
    temperature = 2.0

    def start(self) -> State:
        return mtl.dwa_init(self.shape, dtype=self.dtype)._asdict()

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        self.state = mtl.dwa_accumulate(mtl.DWAState(**self.state), losses, mask=mask)._asdict()

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        state = mtl.DWAState(**self.state)
        return mtl.dwa_combine(losses, state, priorities=self.priorities, mask=mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        weights = self.state["epoch_weights"]
        return mtl.constant_weights(weights, priorities=self.priorities, mask=mask)

    def step(self) -> None:
        self.state = mtl.dwa_step(mtl.DWAState(**self.state), self.temperature)._asdict()


class LazyDWAModel(DWAModel):
    """DWA without shape: the first losses, or a checkpoint, bring the state."""

    def __init__(self, shape: Shape, dtype: torch.dtype, **options: Any) -> None:
        super().__init__((0,), dtype, **options)

    def load(self, state: State) -> None:
        self.meet(state["mean"])
        super().load(state)

    def step(self) -> None:
        if self.shape != (0,):
            super().step()

    def meet(self, losses: Tensor) -> None:
        if self.shape == (0,):
            self.shape, self.dtype = losses.shape, losses.dtype
            self.reset()


class ReLoBRaLoModel(Model):
    """Each call draws from the generator as the module does."""

    temperature, alpha, rho = 0.5, 0.5, 0.5

    def start(self) -> State:
        return mtl.relobralo_init(self.shape, dtype=self.dtype)._asdict()

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        old, lookback = mtl.ReLoBRaLoState(**self.state), torch.rand(()) >= self.rho
        options = {"temperature": self.temperature, "alpha": self.alpha, "mask": mask}
        self.state = mtl.relobralo_update(old, losses, lookback, **options)._asdict()

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        weights = self.state["running_weights"]
        return mtl.constant_combine(losses, weights, priorities=self.priorities, mask=mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        weights = self.state["running_weights"]
        return mtl.constant_weights(weights, priorities=self.priorities, mask=mask)


class FAMOModel(Model):
    min_losses, lr, weight_decay, eps = 0.0, 0.025, 1e-3, 1e-8

    def start(self) -> State:
        state = mtl.famo_init(self.shape, dtype=self.dtype)
        zero = torch.zeros_like(state.logits)
        return state._asdict() | {"previous_losses": zero, "pending": zero.bool()}

    def learn(self, losses: Tensor, mask: Tensor | None) -> None:
        losses = fill_absent(losses, torch.nan, mask=mask).to(self.dtype)
        self.state["pending"] = losses.isfinite()
        self.state["previous_losses"] = torch.where(losses.isfinite(), losses, 0.0)

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "eps": self.eps, "mask": mask}
        return mtl.famo_combine(losses, self.state["logits"], self.min_losses, **options)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        options = {"priorities": self.priorities, "eps": self.eps, "mask": mask}
        return mtl.famo_weights(losses, self.state["logits"], self.min_losses, **options)

    def update(self, losses: Tensor, mask: Tensor | None) -> None:
        *fields, previous, pending = self.state.values()
        mask = pending if mask is None else pending & mask
        delta = mtl.famo_delta(previous, losses.to(self.dtype), self.min_losses, eps=self.eps)
        options = {"lr": self.lr, "weight_decay": self.weight_decay, "mask": mask}
        options["priorities"] = self.priorities
        self.state |= mtl.famo_update(mtl.FAMOState(*fields), delta, **options)._asdict()
        self.state |= {"previous_losses": torch.zeros_like(previous)}
        self.state |= {"pending": torch.zeros_like(pending)}
