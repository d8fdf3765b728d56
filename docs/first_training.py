"""Three tasks whose losses differ in scale: with the sum, and with LogSum."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from mtl_scalarize import History, LogSum, Sum

TASKS = ["size", "shade", "kind"]


def make_batches(number, samples, seed):
    """Each is (features, size, shade, kind): two regressions and a classification."""
    mix = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(number, samples, 16, generator=generator)
    size, shade, kind = (features @ mix).tanh().unbind(dim=-1)
    return [*zip(features, 10 * size, 0.1 * shade, (kind > 0).long(), strict=True)]


def train(scalarizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = History(scalarizer)

    def losses_of(batch):
        features, size, shade, kind = batch
        outputs = model(features)
        return {
            "size": mse_loss(outputs[:, 0], size),
            "shade": mse_loss(outputs[:, 1], shade),
            "kind": cross_entropy(outputs[:, 2:], kind),
        }

    for batch in make_batches(600, 64, seed=1):
        losses = losses_of(batch)
        optimizer.zero_grad()
        scalarizer(losses).backward()
        history.record(losses)
        optimizer.step()

    (batch,) = make_batches(1, 2000, seed=2)
    with torch.no_grad():
        return history, losses_of(batch)


for scalarizer in (Sum(shape=TASKS), LogSum(shape=TASKS)):
    history, test = train(scalarizer)
    recorded, weights = history.to_dict(), scalarizer.task_weights()
    print(scalarizer)
    for task in TASKS:
        first = f"first {recorded[f'loss/{task}'][0]:8.4f}"
        print(f"  {task:5}  {first}   test {test[task]:8.4f}   weight {weights[task]:8.2f}")

history.plot(smooth=20).savefig("first_training.png")
