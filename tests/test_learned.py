"""What is particular to UW and IMTL-L: the parameter that the user's optimizer learns."""

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


@pytest.mark.parametrize("weights", [uw_weights, imtll_weights])
def test_weights_of_half_precision_are_computed_in_single(
    weights: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    s = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.bfloat16)
    found = weights(s)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, weights(s.float()), rtol=0, atol=0)
