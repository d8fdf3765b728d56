from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from mtl_scalarize import FAMO, check_optimizer

TASKS = ["depth", "normals", "edges"]
device = "cuda" if torch.cuda.is_available() else "cpu"
autocast = torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16)
generator = torch.Generator().manual_seed(0)
features = torch.randn(12, 32, 8, generator=generator)  # batches of 32 samples
labelled = torch.rand(12, 32, 3, generator=generator) < torch.tensor([1.0, 0.5, 0.1])
targets = features[..., :3].cumsum(-1) * torch.tensor([0.1, 1.0, 3.0])
batches = list(zip(features, targets, labelled, strict=True))
training, validation = batches[:10], batches[10:]


def sums_of(model, part):
    """The sum of each task's loss over the samples that have a label for it."""
    features, targets, labelled = (tensor.to(device) for tensor in part)
    with autocast:
        outputs = model(features)
    return torch.where(labelled, outputs - targets, 0.0).square().sum(dim=0)


def number_of_labels(parts):
    return sum(labelled.sum(dim=0).to(device) for _, _, labelled in parts)


@torch.no_grad()
def evaluate(model):
    sums = sum(sums_of(model, batch) for batch in validation)
    return (sums / number_of_labels(validation)).sum().item()


@torch.no_grad()
def mean_losses(model, parts):
    """The losses of the whole batch: no part has them."""
    return sum(sums_of(model, part) for part in parts) / number_of_labels(parts).clamp(min=1)


def train(epochs, folder, parts=4, make=FAMO):
    torch.manual_seed(0)
    layers = torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3)
    model = torch.nn.Sequential(*layers).to(device)
    scalarizer = make(TASKS).to(device)  # beside the model: neither averaged nor clipped
    groups = [
        {"params": model.parameters()},
        # The parameters of UW and IMTL-L. The other methods have none.
        {"params": scalarizer.parameters(), "lr": 1e-2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    check_optimizer(scalarizer, optimizer)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)
    scaler = torch.amp.GradScaler(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    saved = {
        "model": model,
        "scalarizer": scalarizer,
        "optimizer": optimizer,
        "schedule": schedule,
        "scaler": scaler,
        "average": average,
    }
    step, best, waited = 0, float("inf"), 0
    file = Path(folder, "last.pt")
    if file.exists():
        checkpoint = torch.load(file, weights_only=True)
        step, best, waited = checkpoint.pop("progress")
        torch.set_rng_state(checkpoint.pop("random"))
        for name, state in checkpoint.items():
            saved[name].load_state_dict(state)
    writer = SummaryWriter(folder)
    while step < epochs * len(training) and waited < 3:
        for batch in training:
            split = list(zip(*(tensor.chunk(parts) for tensor in batch), strict=True))
            count = number_of_labels(split)
            optimizer.zero_grad()
            losses = mean_losses(model, split).requires_grad_()
            scaler.scale(scalarizer(losses, count > 0)).backward()
            weights = losses.grad / count.clamp(min=1)  # scaled: the parts are not scaled again
            for part in split:
                (weights * sums_of(model, part)).sum().backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            average.update_parameters(model)
            if step % 10 == 0:  # only for FAMO
                scalarizer.update(lambda model=model, split=split: mean_losses(model, split))
            step += 1
        scalarizer.step()  # the epoch ends: only for DWA
        loss = evaluate(average)  # the sum: the scalar changes its meaning with the weights
        writer.add_scalar("validation", loss, step)
        writer.add_scalars("weight", scalarizer.task_weights(), step)
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        states = {name: each.state_dict() for name, each in saved.items()}
        others = {"progress": (step, best, waited), "random": torch.get_rng_state()}
        torch.save(states | others, file)
    writer.close()
    return saved, best


if __name__ == "__main__":
    print(train(20, "runs")[1])
