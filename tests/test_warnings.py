"""Mistakes that would silently waste a training: each warns once, at the user's line."""

import linecache
import re
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from methods import METHODS, Method, learn
from torch import Tensor

from mtl_scalarize import DWA, FAMO, IMTLL, STCH, UW, LogSum, Scalarizer

L = torch.ones(3)


def needing_grad() -> Tensor:
    return torch.ones(3, requires_grad=True)


#: What a mistake is, where it is made, and what the warning says.
MISTAKES: dict[str, tuple[Callable[[], Scalarizer], Callable[[Scalarizer], object], str]] = {
    "UW, no gradient": (lambda: UW(3), lambda s: s(L), r"torch\.stack"),
    "IMTL-L, no gradient": (
        lambda: IMTLL(["a"]),
        lambda s: s({"a": torch.tensor(1.0)}),
        "The losses carry no gradient",
    ),
    "UW, frozen": (
        lambda: UW(3).requires_grad_(False),
        lambda s: s(needing_grad()),
        r"parameters of UW are frozen.*scalarizer\.requires_grad_\(\)",
    ),
    "UW, frozen later": (
        lambda: UW(3),
        lambda s: [s(needing_grad()), s.log_var.requires_grad_(False), s(needing_grad())],
        "parameters of UW are frozen",
    ),
    "LogSum of a sum": (LogSum, lambda s: s(needing_grad().sum()), r"single loss.*torch\.stack"),
    "LogSum of one": (LogSum, lambda s: s(needing_grad()[:1]), r"shape \(1,\): a single loss"),
    "a batch": (
        LogSum,
        lambda s: s(needing_grad().expand(2, 3)),
        r"each entry is a task.*the mean",
    ),
    "FAMO, update by the losses of the call": (
        lambda: FAMO(3),
        lambda s: [s(losses := needing_grad()), s.update(losses)],
        "given the losses of the last call: compute the losses",
    ),
    "DWA of a sum": (DWA, lambda s: s(needing_grad().sum()), "single loss"),
    "DWA, eval": (
        lambda: DWA(shape=3).eval(),
        lambda s: s(needing_grad()),
        "DWA does not learn in `ev",
    ),
    "FAMO, eval": (
        lambda: FAMO(3).eval(),
        lambda s: s(needing_grad()),
        "FAMO does not learn in `eval",
    ),
    "FAMO, no update": (
        lambda: FAMO(3),
        lambda s: [s(needing_grad()) for _ in range(100)],
        r"FAMO learned nothing from its last 100 calls.*`scalarizer\.update\(",
    ),
    "FAMO, an update forgotten": (
        lambda: FAMO(3),
        lambda s: [s(L), s.update(0.5 * L), [s(L) for _ in range(100)]],
        "FAMO learned nothing from its last 100 calls",
    ),
    "FAMO, update in eval": (
        lambda: FAMO(3),
        lambda s: [s.train()(L), s.eval().update(L)],
        r"`update` did nothing.*scalarizer\.train\(\)",
    ),
    "DWA, step in eval": (
        lambda: DWA(shape=3),
        lambda s: [s.train()(L), s.eval().step()],
        r"`step` did nothing.*scalarizer\.train\(\)",
    ),
    "a zero in place of an absent task": (
        lambda: DWA(shape=["a", "b"]),
        lambda s: s({"a": torch.ones((), requires_grad=True), "b": torch.zeros(())}),
        "'b' carries no gradient.*leave it out of the mapping",
    ),
}

#: Those that change what a graph depends on, and one that is not looked for in a graph.
RECOMPILED = {"UW, frozen later", "DWA of a sum", "FAMO, update by the losses of the call"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_warns_once_at_the_line_of_the_user(mistake: str) -> None:
    make, use, message = MISTAKES[mistake]
    scalarizer = make()
    with pytest.warns(UserWarning, match=message) as seen:
        [use(scalarizer) for _ in range(3)]
    (warning,) = [warning for warning in seen if re.search(message, str(warning.message))]
    if "mutmut" not in sys.modules:  # whose frames stand between the two
        assert warning.filename == __file__
        assert "lambda s" in linecache.getline(__file__, warning.lineno)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_an_honest_training_with_validation_is_silent(method: Method) -> None:
    scalarizer = method.make((3,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(6):
            learn(scalarizer, index, (needing_grad(), None))
            with torch.no_grad():
                scalarizer(L)  # in training mode
                scalarizer.eval()(needing_grad())
            scalarizer.eval()(L)
            torch.func.grad(scalarizer)(L)
            scalarizer.train()


@pytest.mark.parametrize("mistake", [name for name in MISTAKES if name not in RECOMPILED])
def test_a_compiled_mistake_warns_too_and_costs_no_second_graph(mistake: str) -> None:
    make, use, message = MISTAKES[mistake]
    torch.compiler.reset()
    compiled = torch.compile(make(), fullgraph=True, backend="aot_eager")
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        warnings.catch_warnings(record=True) as seen,
    ):
        warnings.simplefilter("always")
        [use(compiled) for _ in range(3)]
    found = [each.filename for each in seen if re.search(message, str(each.message))]
    assert found == ([] if "100 calls" in message else [__file__])  # a graph does not count


def test_famo_may_wait_99_calls_for_an_update() -> None:
    scalarizer = FAMO(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            for _ in range(99):
                scalarizer(needing_grad())
                with torch.no_grad():
                    scalarizer(L)  # does not count
            scalarizer.update(0.5 * L)


@pytest.mark.parametrize("make", [DWA, LogSum, STCH])
def test_a_count_in_place_of_another_argument_warns(make: type[Scalarizer]) -> None:
    with pytest.warns(UserWarning, match=f"{make.__name__} has the .* pass `shape=3`"):
        make(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [make(number) for number in (3.0, 1)]
        make(3, shape=3)
        DWA(2)  # the default
