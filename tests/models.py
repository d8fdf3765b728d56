"""The modules in plain NumPy: what each remembers from one verb to the next, and nothing of torch.

The formulas are those of `reference.py`. A model's `state` is what the module's `state_dict()`
should hold; a call in training `learn`s, and every call then `combine`s. `slack` is how far apart
rounding may have taken the two in the last verb: what it does not name is equal to the last bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike
from reference import (
    ADAM_EPS,
    BETA2,
    LOG_EPS,
    Array,
    Combined,
    DWAState,
    FAMOState,
    dwa,
    dwa_accumulate,
    dwa_init,
    dwa_step,
    famo,
    famo_delta,
    famo_update,
)

Shape = tuple[int, ...]
State = dict[str, Array]
Formula = Callable[[Array, Array, Array | None], tuple[Combined, Array]]


class Model(ABC):
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.state, self.slack = self.start(), {}

    @abstractmethod
    def start(self) -> State:
        """The state of a new module."""

    @abstractmethod
    def learn(self, losses: Array, mask: Array | None) -> None:
        """What a call in training does to the state, before it combines."""

    @abstractmethod
    def combine(self, losses: Array, mask: Array | None) -> Combined:
        """What a call gives, with the state as it is."""

    def adopt(self, state: State) -> None:
        """Go on from that very state: rounding then stays that of one verb."""
        self.state, self.slack = {name: value.copy() for name, value in state.items()}, {}

    def load(self, state: State, *, assign: bool) -> None:
        """Into the dtypes that are there, unless there are none or `assign` brings its own."""
        keep = self.state and not assign
        self.adopt(
            {
                name: value.astype(self.state[name].dtype) if keep else value
                for name, value in state.items()
            }
        )


class LearnedModel(Model):
    """UW and IMTL-L."""

    def __init__(self, name: str, formula: Formula, shape: Shape, init: float, eps: float) -> None:
        self.name, self.formula, self.shape = name, formula, shape
        self.init, self.eps = init, eps
        super().__init__()

    def start(self) -> State:
        return {self.name: np.full(self.shape, self.init)}

    def learn(self, losses: Array, mask: Array | None) -> None:
        pass  # the user's optimizer does

    def combine(self, losses: Array, mask: Array | None) -> Combined:
        return self.formula(losses + self.eps, self.state[self.name], mask)[0]

    def gradient(self, losses: Array, mask: Array | None) -> Array:
        """Of the scalar in the parameter."""
        return self.formula(losses + self.eps, self.state[self.name], mask)[1]


class DWAModel(Model):
    """DWA; without a shape the state is empty until the first losses to learn from."""

    def __init__(self, temperature: float, shape: Shape | None) -> None:
        self.temperature, self.shape = temperature, shape
        super().__init__()

    def start(self) -> State:
        return {} if self.shape is None else self.empty(self.shape, np.float64)

    def empty(self, shape: Shape, dtype: DTypeLike) -> State:
        counts, averages = np.zeros(shape, np.int64), np.zeros(shape, dtype)
        return DWAState(np.zeros(shape), counts, averages, averages, counts)._asdict()

    def learn(self, losses: Array, mask: Array | None) -> None:
        state = self.state or self.empty(losses.shape, losses.dtype)
        self.state = dwa_accumulate(DWAState(**state), losses, mask)._asdict()

    def combine(self, losses: Array, mask: Array | None) -> Combined:
        state = DWAState(**self.state) if self.state else dwa_init(losses.shape)
        averages = {name: getattr(state, name).astype(np.float64) for name in ("last", "previous")}
        return dwa(losses, state._replace(**averages), self.temperature, mask)

    def step(self) -> None:
        if self.state:
            self.state = dwa_step(DWAState(**self.state))._asdict()

    def double(self) -> None:
        """Counts stay counts."""
        averages = {name: self.state[name].astype(np.float64) for name in ("last", "previous")}
        self.state |= averages


class FAMOModel(Model):
    """FAMO, plain and amortized."""

    def __init__(
        self, min_losses: Array, lr: float, weight_decay: float, *, amortized: bool
    ) -> None:
        self.min_losses, self.lr, self.weight_decay = min_losses, lr, weight_decay
        self.amortized = amortized
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self.may_update = False

    def start(self) -> State:
        zeros = np.zeros(self.min_losses.shape)
        adam = FAMOState(zeros, zeros, zeros, zeros.astype(np.int64))
        never = np.full(zeros.shape, np.nan)
        return adam._asdict() | {"min_losses": self.min_losses, "previous_losses": never}

    def load(self, state: State, *, assign: bool) -> None:
        super().load(state, assign=assign)
        self.may_update = True  # a state does not tell whether it is from before the first call

    def learn(self, losses: Array, mask: Array | None) -> None:
        if self.amortized:
            self.update(losses, mask)
        present = np.ones(losses.shape, bool) if mask is None else mask
        if self.amortized:  # a task is compared with when it last had a loss
            absent, present = self.state["previous_losses"], present & np.isfinite(losses)
        else:  # a task that the last call did not see is passed over
            absent = np.full(losses.shape, np.nan)
        self.state["previous_losses"] = np.where(present, losses, absent)
        self.may_update = True

    def update(self, losses: Array, mask: Array | None) -> None:
        old = FAMOState(*(self.state[name] for name in FAMOState._fields))
        delta = fall(self.state["previous_losses"], losses, self.min_losses)
        new = famo_update(old, delta, self.lr, self.weight_decay, mask)
        self.state |= new._asdict()
        self.slack = self._rounding(old, new, delta)

    def _rounding(self, old: FAMOState, new: FAMOState, delta: Array) -> State:
        """The gradient is a difference of falls; Adam blows up what rounding leaves of a small one.

        A task that is passed over is equal to the last bit.
        """
        learned = new.step > old.step
        steepest = np.abs(delta[learned]).max(initial=0.0)
        size = steepest + np.abs(old.logits) + np.abs(old.exp_avg)
        noise = np.where(learned, 1e-14 * size + 1e-300, 0.0)
        spread = np.sqrt(new.exp_avg_sq / (1 - BETA2 ** np.maximum(new.step, 1)))
        relative = 1e-12 * learned + 10 * noise / (spread + ADAM_EPS)
        return {
            "logits": self.lr * relative + learned * 1e-15 * np.abs(old.logits),
            "exp_avg": noise,
            "exp_avg_sq": noise * (spread + noise) + learned * 1e-14 * new.exp_avg_sq,
        }

    @np.errstate(invalid="ignore")
    def combine(self, losses: Array, mask: Array | None) -> Combined:
        combined = famo(losses, self.state["logits"], self.min_losses, mask)
        gaps = losses - self.min_losses + LOG_EPS
        present = np.ones(gaps.shape, bool) if mask is None else mask
        if (gaps[present] > 0).all() and (gaps[present] < np.inf).sum() >= present.any():
            # A logarithm near 0 is as far off as one near 1.
            shares = combined.task_weights[present] * gaps[present]
            return combined._replace(magnitude=combined.magnitude + shares.sum())
        return Combined(np.nan, np.where(present, np.nan, 0.0), np.nan)  # there are no weights


@np.errstate(all="ignore")
def fall(before: Array, after: Array, min_losses: Array) -> Array:
    """FAMO's delta, to the last digits also where the losses are almost equal."""
    delta = famo_delta(before, after, min_losses)
    change = (before - after) / (after - min_losses + LOG_EPS)
    close = np.isfinite(delta) & (np.abs(change) < 0.5)
    return np.where(close, np.log1p(change), delta)
