"""A user's code, for the type checkers: each line marked `wrong` has to be an error, no other.

It is checked and never run.
"""

import torch
from torch import Tensor, nn

import mtl_scalarize as mtl
from mtl_scalarize import DWA, FAMO, IMTLL, UW, DWAState, FAMOState, History, Scalarizer
from mtl_scalarize.functional import fill_absent

losses: Tensor = torch.ones(3)
mask: Tensor = losses > 0
by_name: dict[str, Tensor] = {"depth": losses[0]}


class Logarithms(Scalarizer):
    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return fill_absent(losses, 1.0, mask=mask).log().sum()

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return fill_absent(1 / losses, 0.0, mask=mask)


def train(scalarizer: Scalarizer, model: nn.Module) -> Tensor:
    optimizer = torch.optim.AdamW(scalarizer.parameters())
    mtl.check_optimizer(model, optimizer)
    scalar: Tensor = scalarizer(losses, mask)
    scalar.backward()  # type: ignore[no-untyped-call]  # torch's own
    scalarizer.update(lambda: losses, mask)
    scalarizer.step()
    weights: Tensor = scalarizer.weights
    scalarizer.reset()
    return scalar + weights.sum()


train(UW(3), nn.Linear(2, 2))
train(IMTLL((3,), init=0.5, eps=1e-3), nn.Linear(2, 2))
train(FAMO(["depth", "normals"], [0.0, 0.1], eps=1e-6), nn.Linear(2, 2))
train(Logarithms(), nn.Linear(2, 2))
train(mtl.Constant({"depth": 0.5, "normals": 2}), nn.Linear(2, 2))
train(mtl.STCH(0.1, losses, reference=losses, shape=3), nn.Linear(2, 2))

named = UW(("depth", "normals"))
named(by_name)
named.update(lambda: by_name)
history = History(named, capacity=100)
history.record(by_name)

dwa = DWA(temperature=2.0, shape=[3])
dwa.temperature = 1.0
famo = FAMO(3, torch.zeros(3), lr=0.1, weight_decay=0.0)
famo.update(losses)
scalar: Tensor = mtl.uw_loss(losses, losses, mask=mask) + mtl.imtll_loss(losses, losses, eps=0.1)
state: DWAState = mtl.dwa_step(mtl.dwa_accumulate(dwa.state, losses), torch.tensor(2.0))
famo_state: FAMOState = mtl.famo_update(famo.state, mtl.famo_delta(losses, losses), lr=0.1)
reduced, present = mtl.all_reduce_losses(losses, count=8)
scalar = mtl.uw_loss(reduced, losses, mask=present)

UW()  # wrong
DWA("2")  # wrong
FAMO(3, min_losses="0")  # wrong
Scalarizer(3)  # wrong
named(1.0)  # wrong
named.update(lambda: 1.0)  # wrong
dwa.step(losses)  # wrong
famo.update()  # wrong
dwa.temperature = "2"  # wrong
named.task_weights()[0]  # wrong
history.record(losses, weights=losses)  # wrong
mtl.uw_loss(losses, losses, mask)  # wrong
mtl.uw_loss(mtl.all_reduce_losses(losses), losses)  # wrong
mtl.dwa_step(famo_state)  # wrong
mtl.check_optimizer(named, named)  # wrong
