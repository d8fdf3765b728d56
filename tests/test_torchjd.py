"""The peer as oracle: whatever torchjd 0.18.0 computes, the modules compute.

Both run in float64 and should differ by rounding only. RELATIVE allows what a hundred steps,
each of which feeds the rounding of the one before into a network and into Adam's quotient, may
make of it; no step is compared more loosely than the last one.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods import METHODS, Method, preference
from torch import Tensor, nn
from torchjd import scalarization as peer

import mtl_scalarize as mtl

RELATIVE = 1e-10
F64 = torch.float64
TASKS = 3
BOUNDS = torch.tensor([-0.5, 0.0, 0.01], dtype=F64)  # FAMO's min_losses
NOTHING = torch.empty(0, dtype=F64)


def cases() -> Iterator[Any]:
    """Theirs and ours: every method that torchjd has, and its hyperparameters."""
    variants: dict[type[nn.Module], list[dict[str, Any]]] = {
        peer.DWA: [{"temperature": 0.3}],
        peer.STCH: [{"weights": preference(TASKS), "reference": BOUNDS}],
        peer.FAMO: [{"min_losses": BOUNDS}, {"lr": 0.1, "weight_decay": 1e-2}],
    }
    for method in METHODS:
        if method.peer is not None:
            kind = type(method.peer(TASKS))
            for options in [{}, *variants.get(kind, [])]:
                theirs = partial(method.peer, TASKS, **options)
                ours = partial(method.make, TASKS, **options)
                yield pytest.param(theirs, ours, id=f"{method} {' '.join(options)}".strip())


every_method = pytest.mark.parametrize(("theirs", "ours"), list(cases()))


Trajectory = dict[str, Tensor]


def learned_state(scalarizer: nn.Module) -> Tensor:
    """Log-variances, log-scales or logits; nothing of a method without."""
    names = [name for name in ("log_var", "log_scale", "_w", "logits") if hasattr(scalarizer, name)]
    return torch.cat([getattr(scalarizer, name).detach().flatten() for name in names] or [NOTHING])


def train(
    scalarizer: Any,
    losses_at: Callable[[int], Tensor],
    steps: int,
    epoch: int,
    network: nn.Module | None = None,
    lr: float = 0.01,
) -> Trajectory:
    """An ordinary training loop; `losses_at(i)` are the losses of batch i as they are now.

    Without a network the losses after a step are those of the next batch.
    """
    torch.manual_seed(0)
    scalarizer = scalarizer.double()
    trained = [] if network is None else list(network.parameters())
    # By name, since torchjd's FAMO lists its logits among its parameters.
    scales = [p for name, p in scalarizer.named_parameters() if name.startswith("log_")]
    optimizer = torch.optim.SGD([*trained, *scales, torch.zeros(0)], lr=lr)
    rows = []
    for step in range(steps):
        losses = losses_at(step).requires_grad_()
        losses.retain_grad()
        optimizer.zero_grad()
        scalar = scalarizer(losses)
        scalar.backward()
        optimizer.step()
        if hasattr(scalarizer, "update"):
            scalarizer.update(losses_at(step if network else step + 1).detach())
        if hasattr(scalarizer, "step") and (step + 1) % epoch == 0:
            scalarizer.step()
        rows.append((scalar.detach(), losses.grad, learned_state(scalarizer)))
    columns = zip(("scalars", "task weights", "learned"), zip(*rows, strict=True), strict=True)
    final = torch.cat([parameter.detach().flatten() for parameter in trained] or [NOTHING])
    return {name: torch.stack(column) for name, column in columns} | {"network": final}


def assert_same(ours: Trajectory, theirs: Trajectory, tolerance: float = RELATIVE) -> None:
    """Relative to the largest entry: a scalar may cross zero, a logit starts there."""
    for name, expected in theirs.items():
        largest = expected.abs().max().item() if expected.numel() else 0.0
        torch.testing.assert_close(
            ours[name],
            expected,
            rtol=tolerance,
            atol=tolerance * largest,
            msg=lambda message, name=name: f"{name}: {message}",
        )


@every_method
def test_a_hundred_training_steps_are_those_of_torchjd(
    theirs: Callable[[], Any], ours: Callable[[], Any]
) -> None:
    def trajectory(scalarizer: nn.Module) -> Trajectory:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, TASKS)).double()
        features = torch.randn(20, 16, 4, dtype=F64)
        targets = torch.randn(20, 16, TASKS, dtype=F64) * torch.tensor([0.3, 1.0, 3.0])

        def losses_at(step: int) -> Tensor:
            return (network(features[step % 20]) - targets[step % 20]).square().mean(0)

        start = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        end = train(scalarizer, losses_at, steps=100, epoch=20, network=network, lr=0.05)
        assert end["scalars"].isfinite().all()
        assert (end["network"] - start).norm() > 0.1 * start.norm()  # it did train
        return end

    assert_same(trajectory(ours()), trajectory(theirs()))


def assert_same_on(ours: Any, theirs: Any, losses: Tensor, epoch: int) -> None:
    trajectories = [
        train(each, lambda step: losses[step].clone(), steps=len(losses) - 1, epoch=epoch)
        for each in (ours, theirs)
    ]
    # Both keep PBI's root from 0 by a millionth: torchjd of 1, ours of the largest loss.
    assert_same(*trajectories, 1e-5 if isinstance(ours, mtl.PBI) else RELATIVE)


@every_method
@given(
    # Seeds, since losses drawn one by one are often all alike: the deltas then cancel, FAMO's
    # gradient is a rounding error, and Adam makes a step of it (see test_reference.py).
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0.1, 1.0),
    steps=st.integers(1, 20),
    epoch=st.integers(1, 5),
)
def test_any_sequence_of_losses_gives_the_trajectory_of_torchjd(
    theirs: Callable[[], Any],
    ours: Callable[[], Any],
    seed: int,
    spread: float,
    steps: int,
    epoch: int,
) -> None:
    normal = torch.randn(steps + 1, TASKS, generator=torch.Generator().manual_seed(seed), dtype=F64)
    losses = 0.02 + (spread * normal).exp()  # above every entry of BOUNDS
    assert_same_on(ours(), theirs(), losses, epoch)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize("method", [m for m in METHODS if m.peer is not None], ids=str)
def test_losses_of_any_shape_give_the_trajectory_of_torchjd(
    method: Method, shape: tuple[int, ...]
) -> None:
    losses = 0.1 + torch.rand(7, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert_same_on(method.make(shape), method.peer(shape), losses, epoch=2)


@pytest.mark.parametrize("library", [peer, mtl], ids=["torchjd", "mtl_scalarize"])
@given(losses=st.lists(st.floats(0.01, 100.0), min_size=TASKS, max_size=TASKS))
def test_famo_in_float32_sees_no_change_in_float64_losses_that_did_not_change(
    library: Any, losses: list[float]
) -> None:
    """Stored as float32, the losses before the step would differ from those after it.

    Adam makes a step of nearly `lr` of a delta as small as that rounding.
    """
    famo = library.FAMO(TASKS)
    famo(torch.tensor(losses, dtype=F64))
    famo.update(torch.tensor(losses, dtype=F64))
    assert torch.equal(learned_state(famo), torch.zeros(TASKS))
