"""What is particular to UW and IMTL-L: the parameter that the user's optimizer learns."""

import copy
from collections.abc import Callable

import pytest
import torch

from mtl_scalarize import IMTLL, UW, imtll_weights, uw_weights


@pytest.mark.parametrize(("method", "name"), [(UW, "log_var"), (IMTLL, "log_scale")])
def test_the_parameter_starts_at_init_and_reset_goes_back_to_it(
    method: type[UW] | type[IMTLL], name: str
) -> None:
    scalarizer = method((2, 1), init=-0.5)
    parameter = scalarizer.get_parameter(name)
    assert parameter.tolist() == [[-0.5], [-0.5]]
    scalarizer(torch.tensor([[3.0], [1.0]])).backward()
    torch.optim.SGD(scalarizer.parameters(), lr=0.1).step()
    assert (parameter != -0.5).all()
    scalarizer.reset()
    assert parameter.tolist() == [[-0.5], [-0.5]]


@pytest.mark.parametrize(("method", "name"), [(UW, "log_var"), (IMTLL, "log_scale")])
def test_init_may_be_of_each_task(method: type[UW] | type[IMTLL], name: str) -> None:
    init = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True) * 1
    scalarizer = copy.deepcopy(method(2, init=init))
    parameter = scalarizer.get_parameter(name)
    assert parameter.dtype == torch.float32
    assert parameter.tolist() == [1.0, -2.0]
    with torch.no_grad():
        parameter += 1
    assert init.tolist() == [1.0, -2.0]
    scalarizer.reset()
    assert parameter.tolist() == [1.0, -2.0]
    assert method(2, init=torch.tensor(0.5)).get_parameter(name).tolist() == [0.5, 0.5]
    wide = method(2, init=0.1).double()
    wide.reset()
    assert wide.get_parameter(name).tolist() == [0.1, 0.1]  # all its digits


@pytest.mark.parametrize("method", [UW, IMTLL])
def test_init_of_another_shape_is_refused(method: type[UW] | type[IMTLL]) -> None:
    with pytest.raises(ValueError, match=r"`init` should have shape \(3,\), the shape of `log_"):
        method(3, init=torch.ones(2))
    with pytest.raises(TypeError, match=r"`init` should be a number or a tensor\. Found a list"):
        method(3, init=[1.0, 1.0, 1.0])


@pytest.mark.parametrize("method", [UW, IMTLL])
@pytest.mark.parametrize("eps", [0.5, torch.tensor(0.5, dtype=torch.float64)])
def test_eps_is_added_to_every_loss(
    method: type[UW] | type[IMTLL], eps: float | torch.Tensor
) -> None:
    for losses in (torch.tensor([3.0, 0.0]), torch.tensor(2.0)):
        floored, plain = (method(losses.shape, eps=e)(losses) for e in (eps, 0.0))
        expected = method(losses.shape, eps=0.0)(losses + 0.5)
        torch.testing.assert_close(floored, expected, rtol=0, atol=0)
        assert floored != plain


@pytest.mark.parametrize("weights", [uw_weights, imtll_weights])
def test_weights_of_half_precision_are_computed_in_single(
    weights: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    s = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.bfloat16)
    found = weights(s)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, weights(s.float()), rtol=0, atol=0)
