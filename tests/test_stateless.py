"""What is particular to the methods without state, and to those that draw."""

import pytest
import torch
from torch import Tensor

from mtl_scalarize import GeometricMean, LogSum, Random, Scalarizer, log_sum

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


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_a_map_says_whether_its_entries_share_a_draw(randomness: str) -> None:
    scalars = torch.vmap(Random(), randomness=randomness)(L.expand(2, 3))
    assert (scalars[0] == scalars[1]) == (randomness == "same")


def test_an_error_in_weigh_is_seen() -> None:
    class Wrong(Scalarizer):
        def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
            return losses.sum()

        def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
            return losses.no_such_method()

    scalarizer = Wrong()
    scalarizer(torch.ones(3))
    with pytest.raises(AttributeError, match="no_such_method"):
        _ = scalarizer.weights
