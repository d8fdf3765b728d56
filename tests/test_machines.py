"""Every module through its verbs in any order, against a model that consists of pure functions.

The functions are held against the papers in `test_reference.py`. Here it is what a module remembers
from one verb to the next, and everything is equal to the last bit. The long run:

    python -m pytest tests/test_machines.py -p no:randomly --hypothesis-profile=long
"""

import io
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from methods import STATEFUL, Method
from models import (
    DWAModel,
    FAMOModel,
    IMTLLModel,
    LazyDWAModel,
    Model,
    ReLoBRaLoModel,
    Shape,
    UWModel,
)
from strategies import magnitudes, not_finite, temperatures
from torch import Tensor

from mtl_scalarize import Scalarizer

Drawn = tuple[list[float], list[bool] | None, torch.dtype]
Batch = tuple[Tensor, Tensor | None]
Context = Callable[[], AbstractContextManager[None]]

F32, F64 = torch.float32, torch.float64
dtypes = st.sampled_from([F32, F64])
contexts = st.sampled_from([nullcontext, torch.no_grad, torch.inference_mode])
# As many as the largest shape has.
odd = st.just(0.0) | st.floats(-1.0, 1.0) | not_finite
numbers = st.lists(magnitudes(F32) | odd, min_size=4, max_size=4)
presences = st.none() | st.lists(st.booleans(), min_size=4, max_size=4)
batches = st.tuples(numbers, presences, dtypes)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """To the last bit."""
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)


class Machine(RuleBasedStateMachine):
    method: Method
    model_of: type[Model]
    options: dict[str, Any]  # the hyperparameters that are not at their defaults

    @initialize(shape=st.sampled_from([(), (1,), (3,), (2, 2)]), dtype=dtypes)
    def begin(self, shape: Shape, dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.model, self.module = self.new()
        self.last: Batch | None = None  # the last call's
        self.graph: tuple[Tensor, Tensor, Tensor] | None = None  # of the last call that had one
        self.checkpoint: tuple[bytes, dict[str, Tensor]] | None = None

    def new(self) -> tuple[Model, Scalarizer]:
        module = self.method.make(self.shape, **self.options).to(self.dtype)
        return self.model_of(self.shape, self.dtype, **self.options), module

    def in_shape(
        self, values: list[float], presence: list[bool] | None, dtype: torch.dtype
    ) -> Batch:
        """Losses and mask."""
        tasks = math.prod(self.shape)
        losses = torch.tensor(values[:tasks], dtype=dtype).reshape(self.shape).requires_grad_()
        if presence is None:
            return losses, None
        return losses, (torch.tensor(presence[:tasks]) > 0).reshape(self.shape)

    @rule(batch=batches, context=contexts)
    def call(self, batch: Drawn, context: Context) -> None:
        losses, mask = self.in_shape(*batch)
        with context(), torch.random.fork_rng(devices=[]):
            scalar = self.module(losses, mask)
        with torch.no_grad():
            self.model.meet(losses)
            if self.module.training and context is nullcontext:
                self.model.learn(losses, mask)
            expected = self.model.combine(losses, mask)
        self.last = losses.detach(), mask
        assert_equal(scalar.detach(), expected)
        if context is nullcontext:
            (gradient,) = torch.autograd.grad(scalar, losses, retain_graph=True)
            self.graph = scalar, losses, gradient

    @precondition(lambda self: self.graph is not None)
    @rule()
    def go_back_through_the_last_call(self) -> None:
        """Whatever came after it."""
        scalar, losses, expected = self.graph
        (gradient,) = torch.autograd.grad(scalar, losses, retain_graph=True)
        assert_equal(gradient, expected)

    @precondition(lambda self: self.graph is not None)
    @rule()
    def descend(self) -> None:
        """As an optimizer does, and no further than 0.5."""
        for name, parameter in self.module.named_parameters():
            (gradient,) = torch.autograd.grad(self.graph[0], parameter, retain_graph=True)
            step = gradient.nan_to_num().clamp(-0.5, 0.5)
            parameter.data -= step
            self.model.state[name] = self.model.state[name] - step

    @rule(batch=batches, context=contexts)
    def update(self, batch: Drawn, context: Context) -> None:
        losses, mask = self.in_shape(*batch)
        with torch.no_grad():
            if self.module.training:
                self.model.update(losses, mask)
        with context():
            self.module.update(losses, mask)

    @rule(context=contexts)
    def step(self, context: Context) -> None:
        with context():
            self.module.step()
        if self.module.training:
            self.model.step()

    @rule(train=st.booleans())
    def train(self, train: bool) -> None:
        self.module.train(train)

    @rule()
    def reset(self) -> None:
        self.module.reset()
        self.model.reset()
        self.last = None

    @precondition(lambda self: self.model.shape == self.shape)
    @rule()
    def save(self) -> None:
        file = io.BytesIO()
        torch.save(self.module.state_dict(), file)
        self.checkpoint = file.getvalue(), dict(self.model.state)

    @precondition(lambda self: self.checkpoint is not None)
    @rule(restart=st.booleans())
    def load(self, restart: bool) -> None:
        """Into this module, or as after a restart into a new one."""
        if restart:
            self.model, self.module = self.new()
            self.graph = self.last = None
        file, state = self.checkpoint
        self.module.load_state_dict(torch.load(io.BytesIO(file), weights_only=True))
        self.model.load(state)

    @precondition(lambda self: hasattr(self.model, "temperature"))
    @rule(temperature=temperatures)
    def set_temperature(self, temperature: float) -> None:
        self.module.temperature = self.model.temperature = temperature

    @rule(values=st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=4, max_size=4))
    def set_priorities(self, values: list[float]) -> None:
        priorities = torch.tensor(values[: math.prod(self.shape)]).reshape(self.shape)
        self.module.priorities = self.model.priorities = priorities

    @invariant()
    def state_is_that_of_the_model(self) -> None:
        state = self.module.state_dict()
        assert list(state) == list(self.model.state)
        for name, value in self.model.state.items():
            assert_equal(state[name], value)

    @invariant()
    def weights_are_those_of_the_last_call_by_the_state_as_it_is(self) -> None:
        assert hasattr(self.module, "weights") == (self.last is not None)
        if self.last is not None:
            expected = self.model.weigh(*self.last).to(self.last[0].dtype)
            assert_equal(self.module.weights, expected)


MODELS: dict[str, tuple[type[Model], dict[str, Any]]] = {
    "UW": (UWModel, {"init": 0.5, "eps": 1e-3}),
    "IMTLL": (IMTLLModel, {"init": 0.5, "eps": 1e-3}),
    "DWA": (DWAModel, {}),
    "DWA without shape": (LazyDWAModel, {}),
    "FAMO": (FAMOModel, {"min_losses": -0.5, "lr": 0.1, "weight_decay": 0.01, "eps": 1e-3}),
    "ReLoBRaLo": (ReLoBRaLoModel, {"alpha": 0.9}),
}


@pytest.mark.parametrize("method", STATEFUL, ids=str)
def test_the_verbs_in_any_order(method: Method) -> None:
    model_of, options = MODELS[method.name]
    parts = {"method": method, "model_of": model_of, "options": options}
    machine = type(f"{model_of.__name__}Machine", (Machine,), parts)
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=20))
