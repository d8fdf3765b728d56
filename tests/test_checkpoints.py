"""State from elsewhere: torchjd's, other devices and dtypes, DWA without a shape."""

import copy
import io
import pickle

import pytest
import torch
import torchjd.scalarization as peer
from methods import STATEFUL, Method, learn, seeded
from torch import nn

from mtl_scalarize import DWA, FAMO, IMTLL, UW


@pytest.mark.parametrize(("ours", "theirs"), [(UW, peer.UW), (IMTLL, peer.IMTLL)])
def test_the_state_of_torchjd_loads(ours: type[UW | IMTLL], theirs: type[nn.Module]) -> None:
    source, target = theirs(3), ours(3)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += torch.tensor([1.0, -2.0, 0.5])
    target.load_state_dict(source.state_dict())
    losses = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(target(losses), source(losses))


@pytest.mark.parametrize("method", STATEFUL, ids=str)
def test_what_does_not_fit_is_named(method: Method) -> None:
    scalarizer = method.make((3,))
    learn(scalarizer, 0, (torch.ones(3), None))
    key, *_ = method.keys
    for damage, complaint in (
        ({key: torch.ones(4)}, "size mismatch"),
        ({"momentum": torch.ones(3)}, "Unexpected key"),
    ):
        with pytest.raises(RuntimeError, match=complaint):
            scalarizer.load_state_dict({**scalarizer.state_dict(), **damage})
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: .*"{key}"'):
        scalarizer.load_state_dict({k: v for k, v in scalarizer.state_dict().items() if k != key})


@pytest.mark.parametrize("method", STATEFUL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_assigned_state_keeps_its_dtype(method: Method, dtype: torch.dtype) -> None:
    source = method.make((3,)).to(dtype)
    learn(source, 0, (torch.ones(3, dtype=dtype), None))
    scalarizer = method.make((3,))
    scalarizer.load_state_dict(copy.deepcopy(source.state_dict()), assign=True)
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
    found, expected = (seeded(each, losses) for each in (scalarizer, source))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert scalarizer.weights.dtype == dtype


def trained_dwa() -> DWA:
    scalarizer = DWA(shape=2)
    for losses in ([4.0, 1.0], [2.0, 0.9]):
        scalarizer(torch.tensor(losses))
        scalarizer.step()
    return scalarizer


@pytest.mark.parametrize("inference", [False, True], ids=["", "in inference mode"])
def test_dwa_without_shape_takes_it_from_a_checkpoint(inference: bool) -> None:
    source, scalarizer = trained_dwa(), DWA()
    model = nn.ModuleDict({"net": nn.Linear(2, 2), "dwa": scalarizer})
    state = model.state_dict() | {f"dwa.{k}": v for k, v in source.double().state_dict().items()}
    with torch.inference_mode(inference):
        model.load_state_dict(state)
    assert scalarizer.last.dtype == torch.float64
    for each in (scalarizer, source):  # and it can be trained
        each(torch.tensor([1.0, 1.0], dtype=torch.float64))
        each.step()
    torch.testing.assert_close(scalarizer.state, source.state, rtol=0, atol=0)
    assert not pickle.loads(pickle.dumps(DWA())).mean.numel()


def test_dwa_without_shape_has_no_state_before_its_first_losses() -> None:
    scalarizer = DWA()
    scalarizer.step()
    scalarizer.load_state_dict(DWA().state_dict())
    assert not any(value.numel() for value in scalarizer.state_dict().values())
    with pytest.raises(RuntimeError, match="Missing key"):
        scalarizer.load_state_dict({"mean": torch.zeros(2)})


def test_hyperparameters_are_the_constructors() -> None:
    """A checkpoint does not overwrite them."""
    source = FAMO(2, 0.5, lr=0.5, weight_decay=0.5)
    target = FAMO(2, torch.tensor([0.1, 0.2]), lr=0.1, weight_decay=0.0)
    source(torch.ones(2))
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert target.min_losses.tolist() == torch.tensor([0.1, 0.2]).tolist()
    assert (target.lr, target.weight_decay) == (0.1, 0.0)
    dwa = DWA(temperature=0.1)
    dwa.load_state_dict(trained_dwa().state_dict())
    assert dwa.temperature == 0.1
