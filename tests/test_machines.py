"""Every module against a plain NumPy model of it, through its verbs in any order.

The long run is 20,000 orders for each of the six:

    python -m pytest tests/test_machines.py -p no:randomly --hypothesis-profile=long \
        --hypothesis-seed=20261120
"""

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import TestCase

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from models import DWAModel, FAMOModel, LearnedModel, Model, Shape, State
from numpy.typing import ArrayLike
from reference import Array, Combined, imtll, uw
from strategies import magnitudes, not_finite, temperatures
from torch import Tensor, nn

from mtl_scalarize import DWA, FAMO, IMTLL, UW, Scalarizer

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}

Context = Callable[[], AbstractContextManager[None]]
Numbers = list[float]
Presence = list[bool]
History = list[tuple[Numbers, Presence | None]]
Misfit = Callable[[dict[str, Any], str], None]

# Numbers and masks fill the shape of the moment, over again where it has more tasks.
shapes = st.sampled_from([(), (0,), (1,), (2,), (4,), (2, 2)])
positive = magnitudes | st.floats(0.1, 10.0)
losses = st.lists(positive, min_size=1, max_size=4)
odd = st.sampled_from([0.0, -0.0, 5e-324, -1e-8]) | st.floats(-5.0, 5.0) | not_finite
odd_losses = st.lists(positive | odd, min_size=1, max_size=4)
maybe_losses = st.none() | losses
presences = st.lists(st.booleans(), min_size=1, max_size=4)
maybe_presences = st.none() | presences
rates = st.just(0.0) | st.floats(1e-4, 0.5)
dtypes = st.sampled_from([torch.float64, torch.float32])
contexts = st.sampled_from([nullcontext, torch.no_grad, torch.inference_mode])

BAD_ARGUMENTS: dict[str, Callable[[Shape], tuple[Any, Any]]] = {
    "losses of another shape": lambda shape: (torch.ones(*shape, 2), None),
    "integer losses": lambda shape: (torch.ones(shape, dtype=torch.int64), None),
    "a list of losses": lambda shape: ([1.0], None),
    "a mask of another shape": lambda shape: (torch.ones(shape), torch.ones(*shape, 2) > 0),
    "a floating mask": lambda shape: (torch.ones(shape), torch.ones(shape)),
    "a list for a mask": lambda shape: (torch.ones(shape), [True]),
}
histories = st.lists(st.tuples(losses, maybe_presences), max_size=4)
bad_arguments = st.sampled_from(list(BAD_ARGUMENTS))


def of_another_shape(state: dict[str, Any], key: str) -> None:
    state[key] = torch.stack([state[key], state[key]])


def of_another_kind(state: dict[str, Any], key: str) -> None:
    value = state[key]
    state[key] = value.long() if value.is_floating_point() else value.double()


def complex_(state: dict[str, Any], key: str) -> None:
    state[key] = torch.complex(state[key].double(), state[key].double())


def not_a_tensor(state: dict[str, Any], key: str) -> None:
    state[key] = [1.0]


def of_a_later_release(state: dict[str, Any], key: str) -> None:
    state._metadata[""]["version"] += 1


def with_a_key_too_few(state: dict[str, Any], key: str) -> None:
    del state[key]


def with_a_key_too_many(state: dict[str, Any], key: str) -> None:
    state["another"] = state[key]


PARTIAL = [of_another_shape, of_another_kind, complex_, not_a_tensor, of_a_later_release]
misfits = st.sampled_from([*PARTIAL, with_a_key_too_few, with_a_key_too_many])


def pickled(scalarizer: Scalarizer) -> Scalarizer:
    return pickle.loads(pickle.dumps(scalarizer))


def numpy_state(scalarizer: Scalarizer) -> State:
    return {name: value.numpy().copy() for name, value in scalarizer.state_dict().items()}


def assert_equal(found: Any, expected: ArrayLike) -> None:
    """To the last bit."""
    assert np.array_equal(found, expected, equal_nan=True), f"{found} != {expected}"


def assert_close(found: Any, expected: ArrayLike, tolerance: Any) -> None:
    """A nan is close to a nan, and an infinity to the same infinity."""
    with np.errstate(invalid="ignore"):
        distance = np.abs(np.asarray(found, np.float64) - expected)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    near = np.isfinite(distance) & (distance <= tolerance)
    assert (same | near).all(), f"{found} != {expected} by {tolerance}"


class Machine(RuleBasedStateMachine):
    """What all the modules promise."""

    module: Scalarizer
    model: Model
    shape: Shape

    def __init__(self) -> None:
        super().__init__()
        self.weights: Array | None = None  # of the last call
        self.read: Tensor | None = None  # and what was read as such
        self.left_behind: list[tuple[Scalarizer, State]] = []

    def start(self, model: Model, shape: Shape, history: History) -> None:
        """Most orders begin amid a training."""
        self.model, self.shape = model, shape
        self.module = self.new()
        for numbers, presence in history:
            self.train_on(numbers, presence)
        self.save()

    def train_on(self, numbers: Numbers, presence: Presence | None) -> None:
        """The least that changes what comes next."""
        raise NotImplementedError

    def new(self) -> Scalarizer:
        """A new module, with the hyperparameters of this one."""
        raise NotImplementedError

    def losses_of(self, numbers: Numbers, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(np.resize(numbers, self.shape), dtype=dtype, requires_grad=True)

    def mask_of(self, presence: Presence | None) -> Tensor | None:
        return None if presence is None else torch.tensor(np.resize(presence, self.shape))

    # Calls

    @rule(numbers=losses, dtype=dtypes)
    def call(self, numbers: Numbers, dtype: torch.dtype) -> None:
        self.check_a_call(numbers, None, dtype)

    @rule(numbers=losses, presence=presences)
    def call_with_a_mask(self, numbers: Numbers, presence: Presence) -> None:
        self.check_a_call(numbers, presence)

    @rule(numbers=odd_losses, presence=maybe_presences)
    def call_on_odd_losses(self, numbers: Numbers, presence: Presence | None) -> None:
        self.check_a_call(numbers, presence)

    @rule(
        numbers=odd_losses,
        presence=maybe_presences,
        context=st.sampled_from([torch.no_grad, torch.inference_mode]),
    )
    def validate(self, numbers: Numbers, presence: Presence | None, context: Context) -> None:
        self.check_a_call(numbers, presence, context=context)

    def check_a_call(
        self,
        numbers: Numbers,
        presence: Presence | None,
        dtype: torch.dtype = torch.float64,
        context: Context = nullcontext,
    ) -> None:
        losses, mask = self.losses_of(numbers, dtype), self.mask_of(presence)
        with context():
            scalar = self.module(losses, mask)
        exact, present = losses.detach().numpy(), None if mask is None else mask.numpy()
        if self.module.training and context is nullcontext:
            self.model.learn(exact, present)
        self.state_is_that_of_the_model()
        exact = exact.astype(np.float64)
        expected = self.model.combine(exact, present)
        self.read = self.module.weights
        self.weights = self.read.numpy().copy()
        assert scalar.dtype is self.read.dtype is self.dtype_with(losses)
        rounding = ROUNDING[scalar.dtype]
        assert_close(scalar.detach().numpy(), expected.scalar, rounding * expected.magnitude)
        assert_close(self.weights, expected.task_weights, rounding * expected.task_weights)
        if context is nullcontext:
            self.check_gradients(scalar, losses, exact, present, expected)

    def dtype_with(self, losses: Tensor) -> torch.dtype:
        """In which arithmetic runs."""
        states = [value for value in self.module.state_dict().values() if value.is_floating_point()]
        return torch.promote_types(losses.dtype, states[-1].dtype) if states else losses.dtype

    def check_gradients(
        self, scalar: Tensor, losses: Tensor, exact: Array, mask: Array | None, expected: Combined
    ) -> None:
        (gradient,) = torch.autograd.grad(scalar, losses, retain_graph=True)
        tolerance = ROUNDING[losses.dtype] * expected.task_weights + torch.finfo(losses.dtype).tiny
        assert_close(gradient.numpy(), expected.task_weights, tolerance)

    @rule(bad=bad_arguments)
    def call_with_bad_arguments(self, bad: str) -> None:
        if self.model.state or bad != "losses of another shape":
            with pytest.raises((TypeError, ValueError)):
                self.module(*BAD_ARGUMENTS[bad](self.shape))

    # States

    @rule()
    def save(self) -> None:
        file = io.BytesIO()
        torch.save(self.module.state_dict(), file)
        self.checkpoint = file.getvalue(), copy.deepcopy(self.model.state)

    @rule(assign=st.booleans(), then=maybe_losses)
    def go_back(self, assign: bool, then: Numbers | None) -> None:
        """To the last checkpoint."""
        file, expected = self.checkpoint
        state = torch.load(io.BytesIO(file), weights_only=True)
        self.check_a_load(state, expected, assign)
        if then is not None:
            self.check_a_call(then, None)

    @rule(assign=st.booleans(), to_now=st.booleans(), then=maybe_losses)
    def resume(self, assign: bool, to_now: bool, then: Numbers | None) -> None:
        """In a new module, as after a restart."""
        if to_now:
            self.save()
        self.module, self.weights = self.new(), None
        self.model.reset()
        self.go_back(assign, then)

    def check_a_load(self, state: dict[str, Any], expected: State, assign: bool) -> None:
        self.module.load_state_dict(state, assign=assign)
        self.model.load(expected, assign=assign)

    @rule(misfit=misfits, which=st.integers(0, 5), assign=st.booleans(), within=st.booleans())
    def load_a_misfit(self, misfit: Misfit, which: int, assign: bool, within: bool) -> None:
        within &= misfit in PARTIAL  # of a larger model torch loads what it can of the keys
        state = self.foreign_state()
        misfit(state, list(state)[which % len(state)])
        module: nn.Module = self.module
        if within:
            module = nn.ModuleDict({"scalarizer": self.module})
            metadata = {f"scalarizer{k and '.' + k}": v for k, v in state._metadata.items()}
            state = type(state)({f"scalarizer.{key}": value for key, value in state.items()})
            state._metadata = metadata
        with pytest.raises(RuntimeError):
            module.load_state_dict(state, assign=assign)

    def foreign_state(self) -> dict[str, Any]:
        """Of another run: each value differs from what is here."""
        state = self.fitting().state_dict()
        for value in state.values():
            value.copy_(torch.full_like(value, 7.0))
        return state

    def fitting(self) -> Scalarizer:
        return self.new()

    @rule(copied=st.sampled_from([copy.deepcopy, pickled]))
    def go_on_with_a_copy(self, copied: Callable[[Scalarizer], Scalarizer]) -> None:
        self.left_behind.append((self.module, numpy_state(self.module)))
        self.module = copied(self.module)

    @rule(
        casts=st.lists(
            st.sampled_from(["half", "bfloat16", "float", "double", "cpu"]), min_size=1, max_size=4
        )
    )
    def cast_a_copy(self, casts: list[str]) -> None:
        """Into float32: from there on, nothing loses a bit."""
        twin = copy.deepcopy(self.module).float()
        expected = numpy_state(twin)
        for name, value in self.model.state.items():
            keeps = name == "loss_sum" or not np.issubdtype(value.dtype, np.floating)
            assert_equal(expected[name], value if keeps else value.astype(np.float32))
        for cast in casts:
            twin = getattr(twin, cast)()
            for name, value in numpy_state(twin).items():
                assert_equal(value, expected[name])
                assert value.dtype == expected[name].dtype or value.dtype == np.float64

    @rule(train=st.integers(0, 3).map(bool))
    def train(self, train: bool) -> None:
        self.module.train(train)

    @precondition(lambda self: self.weights is not None)
    @rule()
    def reset(self) -> None:
        self.module.reset()
        self.model.reset()
        self.weights = None

    # At all times

    @invariant()
    def state_is_that_of_the_model(self) -> None:
        found, expected, slack = numpy_state(self.module), self.model.state, self.model.slack
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype, name
            if name in slack:
                assert_close(found[name], value, slack[name])
            else:
                assert_equal(found[name], value)
        self.model.adopt(found)

    @invariant()
    def weights_are_those_of_the_last_call(self) -> None:
        if self.weights is None:
            with pytest.raises(ValueError, match="no call so far"):
                _ = self.module.weights
        else:
            assert_equal(self.module.weights.numpy(), self.weights)
            assert_equal(self.read.numpy(), self.weights)

    def teardown(self) -> None:
        for module, state in self.left_behind:
            for name, value in numpy_state(module).items():
                assert_equal(value, state[name])


class LearnedMachine(Machine):
    """UW and IMTL-L: the user's optimizer moves the parameter."""

    make: Callable[..., Scalarizer]
    name: str
    formula: Callable[..., tuple[Combined, Array]]

    @initialize(
        shape=shapes,
        init=st.floats(-3.0, 3.0, width=32),  # that a module is made in
        eps=st.sampled_from([1e-30, 0.0, 1e-3]),
        history=histories,
    )
    def begin(self, shape: Shape, init: float, eps: float, history: History) -> None:
        model = LearnedModel(self.name, type(self).formula, shape, init, eps)
        self.start(model, shape, history)

    def new(self) -> Scalarizer:
        return type(self).make(self.shape, init=self.model.init, eps=self.model.eps).double()

    def check_gradients(
        self, scalar: Tensor, losses: Tensor, exact: Array, mask: Array | None, expected: Combined
    ) -> None:
        super().check_gradients(scalar, losses, exact, mask, expected)
        (gradient,) = torch.autograd.grad(scalar, list(self.module.parameters()))
        with np.errstate(invalid="ignore"):
            sizes = 1.0 + np.abs(expected.task_weights * (exact + self.model.eps))
        self.gradient = gradient.numpy()
        assert_close(
            self.gradient, self.model.gradient(exact, mask), ROUNDING[torch.float64] * sizes
        )

    @rule(numbers=odd_losses, presence=maybe_presences)
    def train_on(self, numbers: Numbers, presence: Presence | None) -> None:
        """A step of gradient descent, clipped as one does and skipped where it is not a number."""
        self.check_a_call(numbers, presence)
        step = np.asarray(0.5 * np.clip(np.nan_to_num(self.gradient), -1.0, 1.0))
        (parameter,) = self.module.parameters()
        with torch.no_grad():
            parameter -= torch.from_numpy(step)
        self.model.state[self.name] = self.model.state[self.name] - step


class UWMachine(LearnedMachine):
    make, name, formula = UW, "log_var", uw


class IMTLLMachine(LearnedMachine):
    make, name, formula = IMTLL, "log_scale", imtll


class BufferMachine(Machine):
    """DWA and FAMO: what they learn is no part of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.graph: tuple[Tensor, Tensor, Array] | None = None

    def check_gradients(
        self, scalar: Tensor, losses: Tensor, exact: Array, mask: Array | None, expected: Combined
    ) -> None:
        super().check_gradients(scalar, losses, exact, mask, expected)
        (gradient,) = torch.autograd.grad(scalar, losses, retain_graph=True)
        self.graph = scalar, losses, gradient.numpy()

    @precondition(lambda self: self.graph is not None)
    @rule()
    def go_back_through_the_last_call(self) -> None:
        """Whatever came after it."""
        scalar, losses, expected = self.graph
        (gradient,) = torch.autograd.grad(scalar, losses, retain_graph=True)
        assert_equal(gradient.numpy(), expected)


class DWAMachine(BufferMachine):
    @initialize(shape=shapes, temperature=temperatures, history=histories)
    def begin(self, shape: Shape, temperature: float, history: History) -> None:
        self.start(DWAModel(temperature, shape), shape, history)

    def new(self) -> DWA:
        return DWA(self.model.temperature, shape=self.shape).double()

    @rule(context=contexts)
    def step(self, context: Context) -> None:
        with context():
            self.module.step()
        self.model.step()

    @rule(numbers=losses, presence=maybe_presences)
    def train_on(self, numbers: Numbers, presence: Presence | None) -> None:
        """An epoch of one batch."""
        self.check_a_call(numbers, presence)
        self.step(nullcontext)

    @rule(temperature=temperatures)
    def set_temperature(self, temperature: float) -> None:
        self.module.temperature = self.model.temperature = temperature

    @rule(temperature=st.sampled_from([0.0, -1.0, torch.nan, "2"]))
    def set_a_bad_temperature(self, temperature: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            self.module.temperature = temperature


class DWAWithoutShapeMachine(DWAMachine):
    """It takes shape and dtype from the first losses that it learns from, until it is reset."""

    @initialize(shape=shapes, temperature=temperatures, history=histories)
    def begin(self, shape: Shape, temperature: float, history: History) -> None:
        self.start(DWAModel(temperature, None), shape, history)

    def new(self) -> DWA:
        return DWA(self.model.temperature)

    def fitting(self) -> DWA:
        return DWA(shape=self.shape)

    @precondition(lambda self: not self.model.state)
    @rule(shape=shapes)
    def take_another_shape(self, shape: Shape) -> None:
        self.shape = shape

    @precondition(lambda self: self.model.state)
    @rule()
    def cast_to_double(self) -> None:
        self.module.double()
        self.model.double()

    def check_a_load(self, state: dict[str, Any], expected: State, assign: bool) -> None:
        shape = expected["last"].shape if expected else None
        if self.model.state and self.shape != shape:
            with pytest.raises(RuntimeError):
                self.module.load_state_dict(state, assign=assign)
        else:
            super().check_a_load(state, expected, assign)
            self.shape = self.shape if shape is None else shape


class FAMOMachine(BufferMachine):
    amortized = False

    @initialize(
        shape=shapes,
        bounds=st.just([0.0]) | st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=4),
        lr=rates,
        weight_decay=rates,
        history=histories,
    )
    def begin(
        self, shape: Shape, bounds: Numbers, lr: float, weight_decay: float, history: History
    ) -> None:
        min_losses = np.resize(bounds, shape)
        model = FAMOModel(min_losses, lr, weight_decay, amortized=self.amortized)
        self.start(model, shape, history)

    def new(self) -> FAMO:
        model = self.model
        min_losses = torch.tensor(model.min_losses)
        return FAMO(
            self.shape, min_losses, model.lr, model.weight_decay, amortized=self.amortized
        ).double()

    @rule(numbers=odd_losses, presence=maybe_presences, context=contexts, dtype=dtypes)
    def update(
        self, numbers: Numbers, presence: Presence | None, context: Context, dtype: torch.dtype
    ) -> None:
        losses, mask = self.losses_of(numbers, dtype), self.mask_of(presence)
        if self.amortized or not self.model.may_update:
            with pytest.raises(ValueError, match="`update`"):
                self.module.update(losses, mask)
            return
        with context():
            self.module.update(losses, mask)
        self.model.update(losses.detach().double().numpy(), None if mask is None else mask.numpy())
        self.state_is_that_of_the_model()

    @rule(bad=bad_arguments)
    def update_with_bad_arguments(self, bad: str) -> None:
        with pytest.raises((TypeError, ValueError)):
            self.module.update(*BAD_ARGUMENTS[bad](self.shape))

    @rule(numbers=losses, presence=maybe_presences)
    def train_on(self, numbers: Numbers, presence: Presence | None) -> None:
        """A call, and an update by the same losses in another order."""
        self.check_a_call(numbers, presence)
        self.update(numbers[::-1], None, nullcontext, torch.float64)


class FAMOAmortizedMachine(FAMOMachine):
    amortized = True


def orders_of(machine: type[Machine]) -> type[TestCase]:
    machine.TestCase.settings = settings(
        max_examples=2 * settings.default.max_examples,
        stateful_step_count=10,
        suppress_health_check=list(HealthCheck),
    )
    return machine.TestCase


TestUW = orders_of(UWMachine)
TestIMTLL = orders_of(IMTLLMachine)
TestDWA = orders_of(DWAMachine)
TestDWAWithoutShape = orders_of(DWAWithoutShapeMachine)
TestFAMO = orders_of(FAMOMachine)
TestFAMOAmortized = orders_of(FAMOAmortizedMachine)
