"""A user's code, for the type checkers: each line marked `wrong` has to be an error, no other.

It is checked and never run.
"""

import torch
from torch import Tensor, nn

import mtl_scalarize as mtl
from mtl_scalarize import DWA, FAMO, IMTLL, UW, DWAState, FAMOState, History, Scalarizer

losses: Tensor = torch.ones(3)
mask: Tensor = losses > 0
by_name: dict[str, Tensor] = {"depth": losses[0]}


def train(scalarizer: Scalarizer, model: nn.Module) -> Tensor:
    optimizer = torch.optim.AdamW(scalarizer.parameters())
    mtl.check_optimizer(model, optimizer)
    scalar: Tensor = scalarizer(losses, mask)
    scalar.backward()  # type: ignore[no-untyped-call]  # torch's own
    weights: Tensor = scalarizer.weights
    scalarizer.reset()
    return scalar + weights.sum()


train(UW(3), nn.Linear(2, 2))
train(IMTLL((3,), init=0.5, eps=1e-3), nn.Linear(2, 2))
train(DWA(temperature=2.0, shape=[3]), nn.Linear(2, 2))
train(FAMO(["depth", "normals"], amortized=True), nn.Linear(2, 2))

named = UW(("depth", "normals"))
named(by_name)
weights_by_name: dict[str, Tensor] = named.task_weights()
history = History(named, capacity=100)
history.record(by_name)
log_var: nn.Parameter = named.log_var

dwa = DWA()
dwa.step()
dwa.temperature = 1.0
dwa_state: DWAState = dwa.state

famo = FAMO(3, torch.zeros(3), lr=0.1, weight_decay=0.0)
famo.update(losses)
famo_state: FAMOState = famo.state

scalar: Tensor = mtl.uw_loss(losses, losses, mask=mask) + mtl.imtll_loss(losses, losses)
state = mtl.dwa_step(mtl.dwa_accumulate(mtl.dwa_init(3), losses))
scalar = mtl.dwa_combine(losses, state, torch.tensor(2.0))
famo_state = mtl.famo_update(mtl.famo_init((3,)), mtl.famo_delta(losses, losses), lr=0.1)
scalar = mtl.famo_combine(losses, famo_state.logits, 0.5)
scalar = mtl.all_reduce_losses(losses, count=8)

UW()  # wrong
UW(2.5)  # wrong
UW(3, 0.5)  # wrong
IMTLL(3, decay=0.1)  # wrong
DWA("2")  # wrong
FAMO(3, min_losses=[0.0])  # wrong
named(1.0)  # wrong
named(by_name, mask=[True])  # wrong
dwa.step(losses)  # wrong
named.step()  # wrong
famo.update()  # wrong
dwa.temperature = "2"  # wrong
UW(3).task_weights()[0]  # wrong
history.record(losses, weights=losses)  # wrong
mtl.uw_loss(losses, losses, mask)  # wrong
mtl.dwa_init()  # wrong
mtl.dwa_step(famo_state)  # wrong
mtl.famo_update(famo_state, losses, learning_rate=0.1)  # wrong
mtl.check_optimizer(named, named)  # wrong
mtl.check_optimiser(named)  # wrong
