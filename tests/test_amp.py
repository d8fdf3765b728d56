"""Mixed precision as people run it: autocast, GradScaler with its skipped steps, a cast model."""

import copy

import pytest
import torch
from functions import DEVICES
from methods import NAMED, seeded
from torch import Tensor, nn

from mtl_scalarize import Scalarizer

TASKS = 3


@pytest.fixture(params=NAMED, ids=str)
def scalarizer(request: pytest.FixtureRequest) -> Scalarizer:
    return request.param.make(TASKS)


class Training:
    """A network with one output a task, whose targets differ in scale by a factor of 100."""

    def __init__(self, scalarizer: Scalarizer, device: str, dtype: torch.dtype | None) -> None:
        torch.manual_seed(0)
        self.scalarizer = scalarizer.to(device)
        self.network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, TASKS)).to(device)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.network.parameters()},
                {"params": scalarizer.parameters(), "weight_decay": 0.0},
            ],
            lr=1e-2,
        )
        # Such a first scale overflows float16, and GradScaler skips steps until it has halved it.
        self.scaler = torch.amp.GradScaler(
            device, init_scale=2.0**30, enabled=dtype is torch.float16
        )
        self.device, self.dtype = device, dtype
        self.features = torch.randn(32, 4, device=device)
        scales = torch.tensor([0.1, 1.0, 10.0], device=device)
        self.targets = scales * torch.randn(32, TASKS, device=device)

    def losses(self) -> Tensor:
        with torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None):
            errors = self.network(self.features) - self.targets
        return errors.square().mean(dim=0)

    def step(self) -> bool:
        """Whether the optimizer's step was made and not skipped."""
        before = [parameter.detach().clone() for parameter in self.network.parameters()]
        self.optimizer.zero_grad()
        with torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None):
            scalar = self.scalarizer(self.losses())
        assert scalar.dtype == torch.float32
        self.scaler.scale(scalar).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scalarizer.update(self.losses)
        after = self.network.parameters()
        return any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def floating_state(scalarizer: Scalarizer) -> dict[str, Tensor]:
    state = scalarizer.state_dict()
    return {name: value.clone() for name, value in state.items() if value.is_floating_point()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_training_under_autocast(scalarizer: Scalarizer, dtype: torch.dtype, device: str) -> None:
    training = Training(scalarizer, device, dtype)
    first = training.losses()
    made = []
    for index in range(60):
        made.append(training.step())
        if index % 10 == 9:
            scalarizer.step()
    assert training.losses()[-1] < first[-1]  # the largest, which every method lowers
    assert all(value.isfinite().all() for value in floating_state(scalarizer).values())
    assert {value.dtype for value in floating_state(scalarizer).values()} <= {torch.float32}
    skipped = made.count(False)
    assert skipped > 0 if dtype is torch.float16 else skipped == 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_skipped_step_teaches_nothing(scalarizer: Scalarizer, device: str) -> None:
    """The learned parameters stay, and FAMO sees losses that did not fall: its logits stay at 0."""
    training = Training(scalarizer, device, torch.float16)
    learned = {name: value.clone() for name, value in scalarizer.named_parameters()}
    assert not training.step()
    torch.testing.assert_close(dict(scalarizer.named_parameters()), learned, rtol=0, atol=0)
    if hasattr(scalarizer, "logits"):
        assert scalarizer.logits.tolist() == [0.0] * TASKS
    if hasattr(scalarizer, "count"):  # DWA averages the losses of all batches
        assert scalarizer.count.tolist() == [1] * TASKS


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_cast_whole_keeps_its_scalarizer(
    scalarizer: Scalarizer, dtype: torch.dtype, device: str
) -> None:
    """On the same losses it does what a scalarizer that was never cast does."""
    scalarizer.to(device)
    twin = copy.deepcopy(scalarizer)
    model = nn.ModuleDict({"network": nn.Linear(4, TASKS), "scalarizer": scalarizer})
    model.to(device, dtype)
    assert model["network"].weight.dtype == dtype
    torch.manual_seed(0)
    for features in torch.randn(6, 8, 4, device=device, dtype=dtype):
        losses = model["network"](features).square().mean(dim=0)
        scalars = []
        for each in (scalarizer, twin):
            each.zero_grad()
            scalars.append(seeded(each, losses))
            scalars[-1].backward(retain_graph=True)
            torch.optim.SGD([*each.parameters(), torch.zeros(1)], lr=0.1).step()
            each.update(0.9 * losses.detach())
            each.step()
        torch.testing.assert_close(*scalars, rtol=0, atol=0)
    torch.testing.assert_close(floating_state(scalarizer), floating_state(twin), rtol=0, atol=0)
