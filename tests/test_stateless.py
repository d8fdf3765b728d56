"""What is particular to the methods without state, and to those that draw."""

import pytest
import torch
from methods import preference, seeded
from torch.utils.checkpoint import checkpoint

from mtl_scalarize import STCH, Constant, GeometricMean, LogSum, Random, Scalarizer, log_sum

L = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("scalarizer", [GeometricMean(), LogSum()], ids=repr)
def test_a_negative_loss_is_nan(scalarizer: Scalarizer) -> None:
    losses = torch.tensor([1.0, -2.0], requires_grad=True)
    scalar = scalarizer(losses)
    scalar.backward()
    assert scalar.isnan()
    for gradient in (losses.grad, scalarizer.weights):
        assert gradient[1].isnan()


def test_losses_above_their_bounds_may_be_negative() -> None:
    bounds = torch.tensor([-3.0, 0.0, 1.0])
    torch.testing.assert_close(LogSum(bounds)(L + bounds), log_sum(L))
    torch.testing.assert_close(LogSum(-3)(L - 3), log_sum(L))


@pytest.mark.parametrize(
    ("scalarizer", "names"),
    [
        (Constant(preference(3)), ["preference"]),
        (Constant({"a": 1.0, "b": 2.0, "c": 3.0}), ["preference"]),
        (LogSum(torch.tensor([-1.0, 0.0, 0.5])), ["min_losses"]),
        (STCH(0.5, preference(3), torch.ones(3)), ["preference", "reference"]),
    ],
    ids=["Constant", "Constant by name", "LogSum", "STCH"],
)
def test_a_preference_follows_the_module_and_is_in_no_checkpoint(
    scalarizer: Scalarizer, names: list[str]
) -> None:
    expected = scalarizer(L)
    assert not [*scalarizer.buffers(), *scalarizer.state_dict()]
    assert str(scalarizer.to("meta")(L.to("meta")).device) == "meta"
    assert {getattr(scalarizer, name).device.type for name in names} == {"meta"}
    assert type(scalarizer).__name__ in repr(scalarizer)  # reads no values
    scalarizer.to_empty(device="cpu").reset()
    assert torch.equal(scalarizer(L), expected)


def test_a_preference_is_the_scalarizers_own() -> None:
    weights = preference(3).double().requires_grad_()
    scalarizer = Constant(weights)
    with torch.no_grad():
        weights += 1
    assert torch.equal(scalarizer.preference, preference(3).double())
    assert Constant(torch.tensor([1, 2])).preference.dtype == torch.float32


def test_random_weights_are_new_in_every_training_call_and_equal_elsewhere() -> None:
    scalarizer = Random()
    drawn = []
    for _ in range(4):
        scalarizer(L)
        drawn.append(scalarizer.weights)
    assert len(torch.stack(drawn).unique()) == 12
    before = torch.get_rng_state()
    for training in (True, False):
        with torch.set_grad_enabled(not training):
            torch.testing.assert_close(scalarizer.train(training)(L), L.mean())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_random_state_resumes_the_draws() -> None:
    scalarizer = Random()
    scalarizer(L)
    state = torch.get_rng_state()
    first = scalarizer(L)
    torch.set_rng_state(state)
    assert torch.equal(Random()(L), first)


def test_activation_checkpointing_repeats_the_draw() -> None:
    gradients = []
    for call in (Random(), lambda losses: checkpoint(Random(), losses, use_reentrant=False)):
        losses = L.clone().requires_grad_()
        seeded(call, losses).backward()
        gradients.append(losses.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_a_map_says_whether_its_entries_share_a_draw(randomness: str) -> None:
    scalars = torch.vmap(Random(), randomness=randomness)(L.expand(2, 3))
    assert (scalars[0] == scalars[1]) == (randomness == "same")
