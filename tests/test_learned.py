"""What is particular to UW and IMTL-L: the parameter that the user's optimizer learns."""

from collections.abc import Callable

import pytest
import torch

from mtl_scalarize import IMTLL, UW, imtll_weights, uw_weights


@pytest.mark.parametrize("init", [0.1, torch.tensor([[0.1], [-2.0]], dtype=torch.float64)], ids=str)
@pytest.mark.parametrize(("method", "name"), [(UW, "log_var"), (IMTLL, "log_scale")])
def test_the_parameter_starts_at_init_and_reset_goes_back_to_it_with_all_digits(
    method: type[UW] | type[IMTLL], name: str, init: float | torch.Tensor
) -> None:
    scalarizer, wide = method((2, 1), init=init), torch.zeros(2, 1, dtype=torch.float64) + init
    parameter = scalarizer.get_parameter(name)
    assert torch.equal(parameter, wide.float())
    scalarizer(torch.tensor([[3.0], [5.0]])).backward()
    torch.optim.SGD(scalarizer.parameters(), lr=0.1).step()
    assert (parameter != wide.float()).all()
    scalarizer.reset()
    assert torch.equal(parameter, wide.float())
    scalarizer.double().reset()
    assert torch.equal(scalarizer.get_parameter(name), wide)


@pytest.mark.parametrize("method", [UW, IMTLL])
@pytest.mark.parametrize("eps", [0.5, torch.tensor(0.5, dtype=torch.float64)])
def test_eps_is_added_to_every_loss(
    method: type[UW] | type[IMTLL], eps: float | torch.Tensor
) -> None:
    for losses in (torch.tensor([3.0, 0.0]), torch.tensor(2.0)):
        found, expected = method(losses.shape, eps=eps)(losses), method(losses.shape)(losses + 0.5)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("weights", [uw_weights, imtll_weights])
def test_weights_of_half_precision_are_computed_in_single(
    weights: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    s = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.bfloat16)
    found = weights(s)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, weights(s.float()), rtol=0, atol=0)
