"""Three tasks whose losses differ in scale: with the plain sum, and with LogSum."""

import torch
from torch.nn.functional import cross_entropy, mse_loss

from mtl_scalarize import History, LogSum, Sum

TASKS = ["size", "shade", "kind"]


def make_batches(number, seed):
    """Each is (features, size, shade, kind): two regressions and a classification."""
    mix = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    features = torch.randn(number, 64, 16, generator=torch.Generator().manual_seed(seed))
    size, shade, kind = (features @ mix).tanh().unbind(dim=-1)
    return [*zip(features, 10 * size, 0.1 * shade, (kind > 0).long(), strict=True)]


def train(scalarizer):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
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

    for batch in make_batches(600, seed=1):
        losses = losses_of(batch)
        optimizer.zero_grad()
        scalarizer(losses).backward()
        optimizer.step()
        history.record(losses)

    with torch.no_grad():
        test = [losses_of(batch) for batch in make_batches(20, seed=2)]
    return history, {task: torch.stack([losses[task] for losses in test]).mean() for task in TASKS}


for scalarizer in (Sum(shape=TASKS), LogSum(shape=TASKS)):
    history, test = train(scalarizer)
    print(scalarizer)
    for task in TASKS:
        first, weight = history.to_dict()[f"loss/{task}"][0], scalarizer.task_weights()[task]
        print(f"  {task:5}  first {first:8.4f}   test {test[task]:8.4f}   weight {weight:8.2f}")

history.plot().savefig("first_training.png")
