"""What a checkpoint may do to a scalarizer: bring it back whole, or leave it as it was."""

import copy
import io
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchjd.scalarization as peer
from methods import METHODS, Method, learn
from torch import Tensor, nn

from mtl_scalarize import DWA, FAMO, IMTLL, UW, Scalarizer

#: Of each method a state in the middle of its training, and what the next steps gave. Written by
#: this file, as a program, by the first release; it must load for ever.
STORED = Path(__file__).parent / "states_version_1.pt"

State = dict[str, Any]


@pytest.fixture(params=METHODS, ids=str)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


def trained(method: Method, steps: int = 7) -> Scalarizer:
    scalarizer = method.make((3,))
    go_on(scalarizer, range(steps))
    return scalarizer


def go_on(scalarizer: Scalarizer, steps: range) -> list[tuple[Tensor, Tensor]]:
    """Learn from one batch of losses a step: the scalars and the weights."""
    generator = torch.Generator().manual_seed(0)
    losses = 0.1 + torch.rand(steps.stop, 3, generator=generator)
    present = torch.rand(steps.stop, 3, generator=generator) < 0.8
    return [learn(scalarizer, i, (losses[i], present[i])) for i in steps]


def unchanged(scalarizer: Scalarizer) -> Callable[[], None]:
    """A check that the state is still what it is now, and that the next steps are the same."""
    twin = copy.deepcopy(scalarizer)

    def check() -> None:
        torch.testing.assert_close(
            scalarizer.state_dict(), twin.state_dict(), rtol=0, atol=0, equal_nan=True
        )
        found, expected = (go_on(each, range(7, 14)) for each in (scalarizer, twin))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    return check


def without_a_key(state: State) -> str:
    key = next(iter(state))
    del state[key]
    return key


def with_another_shape(state: State) -> str:
    key = list(state)[-1]
    state[key] = state[key].new_ones(4)
    return key


def with_a_number(state: State) -> str:
    key = list(state)[-1]
    state[key] = 1.0
    return key


def with_another_kind_of_tensor(state: State) -> str:
    key = list(state)[-1]
    state[key] = state[key].to(
        torch.int64 if state[key].is_floating_point() else torch.float32, copy=True
    )
    return key


def with_complex_numbers(state: State) -> str:
    key = next(iter(state))
    state[key] = state[key].to(torch.complex64)
    return key


def with_an_unknown_key(state: State) -> str:
    state["momentum"] = torch.ones(3)
    return "momentum"


def of_a_later_release(state: State) -> str:
    state._metadata = copy.deepcopy(state._metadata)
    state._metadata[""]["version"] = 2
    return "version 1 or less. Found version 2"


MISFITS = [
    with_another_shape,
    with_a_number,
    with_another_kind_of_tensor,
    with_complex_numbers,
    of_a_later_release,
]
#: In a model, torch loads all that fits before it complains of keys.
KEYS = [without_a_key, with_an_unknown_key]


@pytest.mark.parametrize(
    ("damage", "within_a_model"),
    [(damage, False) for damage in MISFITS + KEYS] + [(damage, True) for damage in MISFITS],
)
def test_a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing(
    method: Method, damage: Callable[[State], str], within_a_model: bool
) -> None:
    state = trained(method, steps=9).state_dict()
    named = damage(state)
    scalarizer = trained(method)
    check = unchanged(scalarizer)
    module: nn.Module = scalarizer
    if within_a_model:
        module = nn.ModuleDict({"scalarizer": scalarizer})
        metadata = {f"scalarizer{'.' if k else ''}{k}": v for k, v in state._metadata.items()}
        state = OrderedDict((f"scalarizer.{key}", value) for key, value in state.items())
        state._metadata = OrderedDict(metadata)
    with pytest.raises(RuntimeError, match=named):
        module.load_state_dict(state)
    check()


def test_a_misfit_is_found_behind_what_is_missing(method: Method) -> None:
    state = trained(method, steps=9).state_dict()
    scalarizer = trained(method)
    check = unchanged(scalarizer)
    *_, last = state
    with pytest.raises(RuntimeError, match=f"`{last}` should be a tensor"):
        scalarizer.load_state_dict({last: 1.0}, strict=False)
    check()
    scalarizer.load_state_dict({last: state[last]}, strict=False)  # the others may be missing
    torch.testing.assert_close(
        scalarizer.state_dict()[last], state[last], rtol=0, atol=0, equal_nan=True
    )


def test_what_torch_cannot_copy_is_refused_by_name() -> None:
    scalarizer = UW(3)
    check = unchanged(scalarizer)
    with pytest.raises(RuntimeError, match="log_var"):
        scalarizer.load_state_dict({"log_var": torch.ones(3, device="meta")})
    check()


def test_dwa_without_shape_takes_none_from_a_misfit_within_a_model() -> None:
    state = DWA(shape=3).state_dict()
    state["count"] = 1.0
    model = nn.ModuleDict({"scalarizer": DWA()})
    with pytest.raises(RuntimeError, match=r"`scalarizer.count` should be a tensor"):
        model.load_state_dict({f"scalarizer.{key}": value for key, value in state.items()})
    assert list(model.state_dict()) == []


@pytest.mark.parametrize("damage", [without_a_key, with_another_shape, with_an_unknown_key])
def test_dwa_without_shape_takes_none_from_a_state_that_does_not_fit(
    damage: Callable[[State], str],
) -> None:
    trained_dwa, scalarizer = DWA(shape=3), DWA()
    go_on(trained_dwa, range(7))
    state = trained_dwa.state_dict()
    damage(state)
    with pytest.raises(RuntimeError):
        scalarizer.load_state_dict(state)
    assert list(scalarizer.state_dict()) == []
    scalarizer(torch.ones(5))  # any shape is still welcome


@pytest.mark.parametrize(("module", "other"), [(UW, IMTLL), (IMTLL, UW), (FAMO, IMTLL), (UW, FAMO)])
def test_the_state_of_another_method_is_refused(
    module: Callable[[int], Scalarizer], other: Callable[[int], Scalarizer]
) -> None:
    scalarizer = module(3)
    check = unchanged(scalarizer)
    with pytest.raises(RuntimeError, match=r"Missing key.*(?s:.)*Unexpected key"):
        scalarizer.load_state_dict(other(3).state_dict())
    check()


@pytest.mark.parametrize("what", [None, [1.0], 3.0])
def test_what_is_not_a_state_is_refused(method: Method, what: object) -> None:
    scalarizer = trained(method)
    check = unchanged(scalarizer)
    with pytest.raises(TypeError, match="dict"):
        scalarizer.load_state_dict(what)
    check()


def test_a_scalar_is_not_the_first_of_many() -> None:
    """As nn.Module has it, for the sake of checkpoints of 2017."""
    with pytest.raises(RuntimeError, match=r"`log_var` should have shape \(\)"):
        UW(()).load_state_dict(UW(3).state_dict())


def test_update_still_wants_a_call_after_a_state_that_did_not_fit() -> None:
    scalarizer = FAMO(3)
    with pytest.raises(RuntimeError):
        scalarizer.load_state_dict({**FAMO(3).state_dict(), "unknown": torch.ones(3)})
    with pytest.raises(ValueError, match="Found no call so far"):
        scalarizer.update(torch.ones(3))


def test_strict_false_loads_what_there_is(method: Method) -> None:
    state = trained(method, steps=9).state_dict()
    scalarizer = trained(method)
    missing, unexpected = scalarizer.load_state_dict(
        {**state, "unknown": torch.ones(3)}, strict=False
    )
    assert (missing, unexpected) == ([], ["unknown"])
    torch.testing.assert_close(scalarizer.state_dict(), state, rtol=0, atol=0, equal_nan=True)


def test_assign_takes_the_tensors_themselves(method: Method) -> None:
    state = copy.deepcopy(trained(method).state_dict())
    scalarizer, twin = method.make((3,)), method.make((3,))
    twin.load_state_dict(state)
    scalarizer.load_state_dict(state, assign=True)
    for name, value in scalarizer.state_dict().items():
        assert value.data_ptr() == state[name].data_ptr()
    found, expected = (go_on(each, range(7, 14)) for each in (scalarizer, twin))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("ours", "theirs"), [(UW, peer.UW), (IMTLL, peer.IMTLL)])
def test_a_checkpoint_of_torchjd_loads(
    ours: Callable[[int], Scalarizer], theirs: Callable[[int], nn.Module]
) -> None:
    written = theirs(3)
    with torch.no_grad():
        for parameter in written.parameters():
            parameter.copy_(torch.tensor([-1.0, 0.5, 2.0]))
    file = io.BytesIO()
    torch.save(written.state_dict(), file)
    file.seek(0)
    scalarizer = ours(3)
    scalarizer.load_state_dict(torch.load(file, weights_only=True))
    losses = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(scalarizer(losses), written(losses))


def test_the_state_carries_its_version(method: Method) -> None:
    file = io.BytesIO()
    torch.save(trained(method).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state._metadata[""] == {"version": 1}


def test_a_state_without_a_version_loads(method: Method) -> None:
    """As `torch.distributed.checkpoint` and `{**state}` make them."""
    scalarizer = trained(method)
    check = unchanged(scalarizer)
    scalarizer.load_state_dict(dict(scalarizer.state_dict()))
    check()


def test_the_states_of_version_1_still_load(method: Method) -> None:
    stored = torch.load(STORED, weights_only=True)[method.name]
    scalarizer = method.make((3,))
    scalarizer.load_state_dict(stored["state"])
    assert list(scalarizer.state_dict()) == list(stored["state"])
    for name, value in scalarizer.state_dict().items():
        assert value.dtype == stored["state"][name].dtype
    found = go_on(scalarizer, range(7, 14))
    torch.testing.assert_close(found, stored["next"], rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    stored = {}
    for each in METHODS:
        scalarizer = trained(each)
        state = copy.deepcopy(scalarizer.state_dict())
        stored[each.name] = {"state": state, "next": go_on(scalarizer, range(7, 14))}
    torch.save(stored, STORED)
