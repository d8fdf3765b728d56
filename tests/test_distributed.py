"""N ranks equal one process: on real process groups, of gloo, and at last on simulated ones.

A job, a function that runs on every rank, returns tensors; the test compares them here with those
of the same training by one process on the concatenated batch.
"""

import copy
import functools
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from ranks import Died, Failed, Ranks, Returned
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import mtl_scalarize.distributed
from mtl_scalarize import DWA, FAMO, IMTLL, UW, Scalarizer, all_reduce_losses

Group = dist.ProcessGroup
State = dict[str, Tensor]

TASKS = 3
#: Samples of a step on all ranks together: 2, 3 and 4 ranks get equally many.
BATCH = 12
#: Steps between two calls of `DWA.step`.
EPOCH = 5
#: Micro-batches of a step, where gradients are accumulated.
MICRO = 2
TOLERANCE = 1e-10

METHODS: dict[str, Callable[..., Scalarizer]] = {
    "UW": functools.partial(UW, TASKS),
    "IMTLL": functools.partial(IMTLL, TASKS),
    "DWA": functools.partial(DWA, shape=TASKS),
    "DWA without shape": DWA,
    "FAMO": functools.partial(FAMO, TASKS),
    "FAMO amortized": functools.partial(FAMO, TASKS, amortized=True),
}
#: Those whose scalar is linear in the losses, with weights that one step does not change.
LINEAR = ("UW", "IMTLL", "DWA")
#: Those whose every way is tried; DWA finds its shape in the first losses whatever the way.
SHAPED = tuple(name for name in METHODS if name != "DWA without shape")
LEARNING_FROM_LOSSES = tuple(name for name in METHODS if name not in ("UW", "IMTLL"))

#: Which rank has which task at which step, of shape (ranks, TASKS).
PRESENCE: dict[str, Callable[[int, int], Tensor]] = {
    "each rank lacks another task": lambda step, ranks: torch.stack(
        [torch.arange(TASKS) != (step + rank) % TASKS for rank in range(ranks)]
    ),
    "each rank has another task": lambda step, ranks: torch.stack(
        [torch.arange(TASKS) == (step + rank) % TASKS for rank in range(ranks)]
    ),
    "no rank has the first": lambda step, ranks: (torch.arange(TASKS) > 0).repeat(ranks, 1),
    "at random": lambda step, ranks: torch.rand(ranks, TASKS, generator=drawn(step)) < 0.5,
    "some steps without any": lambda step, ranks: torch.full((ranks, TASKS), step % 3 > 0),
}


def drawn(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(seed) % 2**32)


@dataclass(frozen=True)
class Run:
    """A training, and how the ranks share it."""

    method: str
    ranks: int
    way: str = "outside DDP"
    steps: int = 3 * EPOCH
    #: A key of `PRESENCE`. None: no mask is passed.
    presence: str | None = None
    #: How many samples each rank has. None: equally many.
    sizes: tuple[int, ...] | None = None
    #: Whether the ranks say how many.
    counted: bool = False
    #: What the losses of one of the ranks are at every fifth step, the last one included.
    broken: float | None = None
    #: How micro-batches are accumulated, a key of `ACCUMULATE`. None: there are none.
    accumulate: str | None = None
    grouped: bool = True
    seed: int = 0

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The samples of a step, those of all ranks."""
        generator = drawn(self.seed, step)
        features = torch.randn(BATCH, 3, generator=generator, dtype=torch.float64)
        targets = features.cumsum(1).sin() * torch.tensor([0.3, 1.0, 3.0])
        if self.broken is not None and step % 5 == 4:
            rank = step % self.ranks
            present = torch.ones(TASKS, dtype=torch.bool)
            if self.presence is not None:
                present = PRESENCE[self.presence](step, self.ranks)[rank]
            targets.split(self.split())[rank][0, present] = self.broken
        return features, targets

    def split(self) -> list[int]:
        return list(self.sizes or [BATCH // self.ranks] * self.ranks)


class Network(nn.Module):
    """From a batch to the losses of its tasks, each the mean over the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, TASKS))

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        return (self.layers(features) - targets).square().mean(0)


class Model(nn.Module):
    """A network and its scalarizer, on one rank."""

    def __init__(self, run: Run, group: Group | None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network: nn.Module = Network()
        self.scalarizer = METHODS[run.method](process_group=group if run.grouped else None)
        self.run = run
        self.group = group
        self.double()

    def losses(
        self, features: Tensor, targets: Tensor, mask: Tensor | None, count: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The losses to balance, and where there are any."""
        losses = self.network(features, targets)
        if mask is not None:
            losses = torch.where(mask, losses, torch.nan)  # nobody may look there
        if count is not None:
            losses = all_reduce_losses(losses, self.group, mask=mask, count=count)
            mask = None if mask is None else ~losses.isnan()
        return losses, mask

    def forward(self, *batch: Any) -> Tensor:
        return self.scalarizer(*self.losses(*batch))


class WholeModel(Model):
    """The same in one process, on the batches of all ranks."""

    def losses(
        self, features: Tensor, targets: Tensor, mask: Tensor | None, count: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if mask is None and self.run.sizes is None:
            return self.network(features, targets), None
        if mask is None and count is not None:  # every sample weighs the same
            return self.network(features, targets), None
        parts = zip(features.split(self.run.split()), targets.split(self.run.split()), strict=True)
        losses = torch.stack([self.network(*part) for part in parts])
        present = torch.ones_like(losses, dtype=torch.bool) if mask is None else mask
        weights = present * (torch.ones(len(losses)) if count is None else count)[:, None].double()
        total = torch.where(present, losses, 0.0).mul(weights).sum(0)
        return total / weights.sum(0), None if mask is None else mask.any(0)


def in_ddp(**options: bool) -> Callable[[Model, Group], Callable[..., Tensor]]:
    def wrap(model: Model, group: Group) -> Callable[..., Tensor]:
        model.network = DistributedDataParallel(model.network, process_group=group, **options)
        return model

    return wrap


def scalarizer_in_ddp(**options: bool) -> Callable[[Model, Group], Callable[..., Tensor]]:
    def wrap(model: Model, group: Group) -> Callable[..., Tensor]:
        return DistributedDataParallel(model, process_group=group, **options)

    return wrap


def in_fsdp(model: Model, group: Group) -> Callable[..., Tensor]:
    fully_shard(model.network, mesh=init_device_mesh("cpu", (group.size(),)))
    return model


def scalarizer_in_fsdp(model: Model, group: Group) -> Callable[..., Tensor]:
    fully_shard(model, mesh=init_device_mesh("cpu", (group.size(),)))
    register_fsdp_forward_method(model, "losses")  # for FAMO's second forward pass
    return model


def compiled_step(model: Model, group: Group) -> Callable[..., Tensor]:
    """DDP is where its graph breaks."""
    return compiled(in_ddp()(model, group))


def compiled_in_one_graph(model: Model, group: Group) -> Callable[..., Tensor]:
    """Without DDP: the gradients are averaged by hand."""

    def average(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=group)
        return gradient / group.size()

    for parameter in model.network.parameters():
        parameter.register_hook(average)
    return compiled(model, fullgraph=True)


def compiled_scalarizer(model: Model, group: Group) -> Callable[..., Tensor]:
    for name in ("forward", "update", "step"):
        verb = getattr(model.scalarizer, name, None)
        if callable(verb):  # FAMO's `step` is a buffer
            setattr(model.scalarizer, name, compiled(verb, fullgraph=True))
    return in_ddp()(model, group)


def compiled(function: Callable[..., Any], **options: bool) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, **options)


#: How a model is made to train on several ranks: from a model to what is called on a batch.
WAYS: dict[str, Callable[[Model, Group], Callable[..., Tensor]]] = {
    "outside DDP": in_ddp(),
    "outside DDP, static_graph": in_ddp(static_graph=True),
    "outside DDP, gradient_as_bucket_view": in_ddp(gradient_as_bucket_view=True),
    "outside DDP, find_unused_parameters": in_ddp(find_unused_parameters=True),
    "inside DDP": scalarizer_in_ddp(),
    "inside DDP, static_graph": scalarizer_in_ddp(static_graph=True),
    "inside DDP, gradient_as_bucket_view": scalarizer_in_ddp(gradient_as_bucket_view=True),
    "inside DDP, find_unused_parameters": scalarizer_in_ddp(find_unused_parameters=True),
    "outside FSDP2": in_fsdp,
    "inside FSDP2": scalarizer_in_fsdp,
    "compiled step": compiled_step,
    "compiled in one graph": compiled_in_one_graph,
    "compiled scalarizer": compiled_scalarizer,
}


class Trainer:
    """A training on one rank of a group, or without a group by one process alone."""

    def __init__(self, run: Run, group: Group | None = None) -> None:
        self.run = run
        self.rank = None if group is None else dist.get_rank(group)
        self.model = (WholeModel if group is None else Model)(run, group)
        self.network = self.model.network
        self.scalarizer = self.model.scalarizer
        self.forward = self.model if group is None else WAYS[run.way](self.model, group)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """Features, targets, mask and count: of this rank, or of all."""
        features, targets = self.run.batch(step)
        sizes = self.run.split()
        presence = self.run.presence
        mask = None if presence is None else PRESENCE[presence](step, self.run.ranks)
        count = torch.tensor(sizes) if self.run.counted else None
        if self.rank is None:
            return features, targets, mask, count
        return (
            features.split(sizes)[self.rank],
            targets.split(sizes)[self.rank],
            None if mask is None else mask[self.rank],
            None if count is None else sizes[self.rank],
        )

    def step(self, index: int) -> tuple[Tensor, Tensor]:
        """A step of the training: its scalar, and whether the optimizer took it."""
        batch = self.batch(index)
        self.optimizer.zero_grad()
        if self.run.accumulate is None or self.rank is None:
            scalar = self.forward(*batch)
            scalar.backward()
        else:
            scalar = ACCUMULATE[self.run.accumulate](self, *batch[:2])
        sound = scalar.detach().isfinite()
        if sound:
            self.optimizer.step()
        if isinstance(self.scalarizer, FAMO) and not self.scalarizer.amortized:
            with torch.no_grad():
                self.scalarizer.update(self.model.losses(*batch)[0])
        if isinstance(self.scalarizer, DWA) and index % EPOCH == EPOCH - 1:
            self.scalarizer.step()
        return scalar.detach(), sound

    def train(self, start: int = 0, stop: int | None = None) -> State:
        """Everything that the training shows, and leaves behind."""
        steps = [self.step(index) for index in range(start, stop or self.run.steps)]
        scalars, sound = (torch.stack(column) for column in zip(*steps, strict=True))
        shown = {"scalars": scalars, "sound": sound, "weights": self.scalarizer.weights}
        return shown | self.state()

    def state(self) -> State:
        """The parameters of the network, and all that the scalarizer holds."""
        modules = {"network": self.network, "scalarizer": self.scalarizer}
        return {
            f"{prefix}.{name}": whole(tensor)
            for prefix, module in modules.items()
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        }

    def synchronised(self, yes: bool) -> Any:
        """A context in which DDP averages the gradients, or does not."""
        ddp = self.forward if self.run.way.startswith("inside") else self.model.network
        return nullcontext() if yes else ddp.no_sync()


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def micro_batches(*batch: Tensor) -> list[tuple[bool, tuple[Tensor, ...]]]:
    """Whether it is the last one, and its part of each tensor."""
    parts = list(zip(*(tensor.chunk(MICRO) for tensor in batch), strict=True))
    return [(index == MICRO - 1, part) for index, part in enumerate(parts)]


def a_call_each(trainer: Trainer, *batch: Tensor) -> Tensor:
    """What costs the memory of one micro-batch: the scalars are added up."""
    scalars = []
    for last, part in micro_batches(*batch):
        with trainer.synchronised(last):
            scalar = trainer.forward(*part, None, None) / MICRO
            scalar.backward()
        scalars.append(scalar.detach())
    return torch.stack(scalars).sum()


def one_call(trainer: Trainer, *batch: Tensor) -> Tensor:
    """What holds for every method: the losses are added up, in the memory of all micro-batches."""
    losses = []
    for last, part in micro_batches(*batch):
        with trainer.synchronised(last):
            losses.append(trainer.model.network(*part) / MICRO)
    scalar = trainer.scalarizer(torch.stack(losses).sum(0))
    scalar.backward()
    return scalar


ACCUMULATE = {"a call each": a_call_each, "one call": one_call}


# What runs on every rank.


def train(run: Run) -> State:
    return Trainer(run, dist.group.WORLD).train()


# What the tests compare.


@functools.cache
def alone(run: Run) -> State:
    """The training by one process."""
    return Trainer(replace(run, way="alone")).train()


def largest_difference(found: State, expected: State) -> float:
    """Of two states with the same entries and nans in the same places."""
    assert found.keys() == expected.keys()
    differences = [0.0]
    for name, value in expected.items():
        torch.testing.assert_close(found[name].isnan(), value.isnan(), msg=name)
        assert found[name].dtype == value.dtype, name
        difference = found[name].double() - value.double()
        differences += difference.abs().nan_to_num(0.0).flatten().tolist()
    return max(differences)


def assert_identical(states: list[State]) -> None:
    """Bit for bit."""
    bits = [{name: value.numpy().tobytes() for name, value in state.items()} for state in states]
    for rank, other in enumerate(bits):
        assert [name for name in bits[0] if other.get(name) != bits[0][name]] == [], rank
        assert other.keys() == bits[0].keys()


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(4) as ranks:
        yield ranks


def assert_equal_to_one_process(states: list[State], expected: State) -> float:
    assert_identical(states)
    difference = largest_difference(states[0], expected)
    assert difference <= TOLERANCE
    return difference


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_ranks_equal_one_process(
    method: str, size: int, ranks: Ranks, record_property: Callable[[str, object], None]
) -> None:
    run = Run(method, size, steps=100)
    difference = assert_equal_to_one_process(ranks.run(train, run, ranks=size), alone(run))
    record_property("largest difference", difference)
    print(f"{method} on {size} ranks: {difference:.1e}")


@pytest.mark.parametrize("way", [way for way in WAYS if way != "outside DDP"])
@pytest.mark.parametrize("method", SHAPED)
def test_ways(method: str, way: str, ranks: Ranks) -> None:
    run = Run(method, 2, way)
    assert_equal_to_one_process(ranks.run(train, run, ranks=2), alone(run))


@pytest.mark.parametrize("method", METHODS)
def test_ranks_without_a_group_drift_apart(method: str, ranks: Ranks) -> None:
    """What the group is for."""
    run = Run(method, 2, grouped=False)
    first, second = ranks.run(train, run, ranks=2)
    state = [name for name in first if name.startswith("scalarizer.")]
    assert max((first[name] - second[name]).abs().max() for name in state) > 1e-4


def train_in_halves(run: Run) -> State:
    """Two ranks train on other data than the other two."""
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    half = dist.get_rank() // 2
    return Trainer(replace(run, seed=half), halves[half]).train()


@pytest.mark.parametrize("way", ["outside DDP", "inside DDP"])
@pytest.mark.parametrize("method", SHAPED)
def test_a_sub_group_equals_one_process(method: str, way: str, ranks: Ranks) -> None:
    run = Run(method, 2, way)
    states = ranks.run(train_in_halves, run, ranks=4)
    for half in range(2):
        expected = alone(replace(run, seed=half))
        assert_equal_to_one_process(states[2 * half : 2 * half + 2], expected)
    assert largest_difference(states[0], states[2]) > 1e-3


# Masks.


@pytest.mark.parametrize("presence", PRESENCE)
@pytest.mark.parametrize("method", SHAPED)
def test_ranks_with_some_tasks_each_equal_one_process(
    method: str, presence: str, ranks: Ranks
) -> None:
    run = Run(method, 3, presence=presence)
    assert_equal_to_one_process(ranks.run(train, run, ranks=3), alone(run))


@pytest.mark.parametrize("way", ["inside DDP, find_unused_parameters", "compiled in one graph"])
@pytest.mark.parametrize("method", SHAPED)
def test_ways_with_a_mask(method: str, way: str, ranks: Ranks) -> None:
    run = Run(method, 2, way, presence="at random")
    assert_equal_to_one_process(ranks.run(train, run, ranks=2), alone(run))


def mask_on_the_first_rank_only() -> Tensor:
    mask = torch.ones(TASKS, dtype=torch.bool) if dist.get_rank() == 0 else None
    return all_reduce_losses(torch.ones(TASKS), mask=mask)


NAMED: dict[str, Callable[..., Scalarizer]] = {
    "UW": UW,
    "IMTLL": IMTLL,
    "DWA": lambda names, **options: DWA(shape=names, **options),
    "FAMO": FAMO,
    "FAMO amortized": functools.partial(FAMO, amortized=True),
}


def by_name_and_by_mask(method: str) -> list[State]:
    """On each rank another task is missing, and in one step on the first rank none."""
    names, rank = [f"task {i}" for i in range(TASKS)], dist.get_rank()
    named = NAMED[method](names, process_group=dist.group.WORLD)
    positional = METHODS[method](process_group=dist.group.WORLD)
    for step in range(6):
        losses = 0.1 + torch.rand(TASKS, generator=drawn(step, rank))
        present = torch.arange(TASKS) != (step + rank) % TASKS
        if step == 3 and rank == 0:
            present = torch.ones(TASKS, dtype=torch.bool)
        given = {name: losses[i] for i, name in enumerate(names) if present[i]}
        named(given)
        positional(losses, present)
        assert named.weights.equal(positional.weights)
        for scalarizer in (named, positional):
            if isinstance(scalarizer, DWA):
                scalarizer.step()
        if isinstance(named, FAMO) and not named.amortized:
            named.update({name: 0.9 * loss for name, loss in given.items()})
            positional.update(0.9 * losses)
    states = [dict(scalarizer.state_dict()) for scalarizer in (named, positional)]
    del states[0]["task_names"]
    return states


@pytest.mark.parametrize("method", NAMED)
def test_losses_by_name_may_differ_between_ranks(method: str, ranks: Ranks) -> None:
    for named, positional in ranks.run(by_name_and_by_mask, method, ranks=2):
        assert_identical([named, positional])


def test_a_mask_on_one_rank_only_does_not_go_unnoticed(ranks: Ranks) -> None:
    """Gloo ends the job or the process, by which of the two messages comes first."""
    outcomes = ranks.outcomes(mask_on_the_first_rank_only, ranks=2)
    assert not any(isinstance(outcome, Returned) for outcome in outcomes)


# Losses that are not finite.


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("presence", [None, "each rank lacks another task"])
@pytest.mark.parametrize("method", SHAPED)
def test_a_broken_loss_on_one_rank_is_passed_over_by_all(
    method: str, presence: str | None, broken: float, ranks: Ranks
) -> None:
    run = Run(method, 3, broken=broken, presence=presence)
    expected = alone(run)
    assert expected["sound"].double().mean() == 0.8
    assert_equal_to_one_process(ranks.run(train, run, ranks=3), expected)
    assert expected["network.layers.0.weight"].isfinite().all()


# Batches of unequal size.


@pytest.mark.parametrize("presence", [None, "at random"])
@pytest.mark.parametrize("counted", [False, True], ids=["mean of means", "counted"])
@pytest.mark.parametrize("method", SHAPED)
def test_unequal_batches(method: str, counted: bool, presence: str | None, ranks: Ranks) -> None:
    """Counted, every sample weighs the same; not counted, every rank does."""
    run = Run(method, 3, sizes=(1, 4, 7), counted=counted, presence=presence)
    assert_equal_to_one_process(ranks.run(train, run, ranks=3), alone(run))


def test_counts_matter() -> None:
    run = Run("UW", 3, sizes=(1, 4, 7))
    assert largest_difference(alone(run), alone(replace(run, counted=True))) > 1e-3


@pytest.mark.parametrize("method", SHAPED)
def test_a_rank_without_samples_counts_nothing(method: str, ranks: Ranks) -> None:
    run = Run(method, 2, sizes=(12, 0), counted=True)
    assert_equal_to_one_process(ranks.run(train, run, ranks=2), alone(run))


# Gradient accumulation.


@pytest.mark.parametrize(
    ("method", "accumulate", "way"),
    [
        *((method, "a call each", "inside DDP") for method in LINEAR),
        *((method, "a call each", "outside DDP") for method in LINEAR),
        *((method, "one call", "outside DDP") for method in METHODS),
    ],
)
def test_accumulated_gradients_equal_one_process(
    method: str, accumulate: str, way: str, ranks: Ranks
) -> None:
    run = Run(method, 2, way, accumulate=accumulate)
    assert_equal_to_one_process(ranks.run(train, run, ranks=2), alone(run))


@pytest.mark.parametrize("method", ["FAMO", "FAMO amortized"])
def test_a_call_of_famo_each_micro_batch_is_another_training(method: str, ranks: Ranks) -> None:
    """Its weights depend on the losses; the ranks still agree."""
    run = Run(method, 2, accumulate="a call each")
    states = ranks.run(train, run, ranks=2)
    assert_identical(states)
    found, expected = (state["weights"] for state in (states[0], alone(run)))
    assert (found - expected).abs().max() > 1e-3


# Checkpoints.


def written_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that is whole whenever it is there."""
    aside = path.with_suffix(".partial")
    write(aside)
    os.replace(aside, path)


def save_by_torch(trainer: Trainer, folder: Path) -> None:
    state = {
        name: getattr(trainer, name).state_dict() for name in ("network", "scalarizer", "optimizer")
    }
    if trainer.rank in (0, None):
        written_aside(folder / "checkpoint.pt", functools.partial(torch.save, state))
    if trainer.rank is not None:
        dist.barrier()


def load_by_torch(trainer: Trainer, folder: Path) -> None:
    for name, state in torch.load(folder / "checkpoint.pt", weights_only=True).items():
        getattr(trainer, name).load_state_dict(state)


def save_by_dcp(trainer: Trainer, folder: Path) -> None:
    model, optimizer = get_state_dict(trainer.model, trainer.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)


def load_by_dcp(trainer: Trainer, folder: Path) -> None:
    model, optimizer = get_state_dict(trainer.model, trainer.optimizer)
    state = {"model": model, "optimizer": optimizer}
    dcp.load(state, checkpoint_id=folder, no_dist=trainer.rank is None)
    set_state_dict(
        trainer.model,
        trainer.optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )


FORMATS = {
    "torch.save": (save_by_torch, load_by_torch),
    "torch.distributed.checkpoint": (save_by_dcp, load_by_dcp),
}
#: In the middle of an epoch.
MIDWAY = EPOCH + EPOCH // 2


def train_and_save(run: Run, folder: Path, form: str) -> State:
    trainer = Trainer(run, dist.group.WORLD)
    trainer.train(0, MIDWAY)
    FORMATS[form][0](trainer, folder)
    return trainer.train(MIDWAY)


def resume(run: Run, folder: Path, form: str) -> State:
    group = dist.group.WORLD if dist.is_initialized() else None
    trainer = Trainer(run, group)
    FORMATS[form][1](trainer, folder)
    return trainer.train(MIDWAY)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # as one process is told to be
@pytest.mark.parametrize(
    ("method", "form"),
    [
        (method, form)
        for form in FORMATS
        for method in METHODS
        # It loads into what is there already, and without a shape there is nothing.
        if (method, form) != ("DWA without shape", "torch.distributed.checkpoint")
    ],
)
def test_a_checkpoint_of_four_ranks_resumes_on_any_number(
    method: str, form: str, ranks: Ranks, tmp_path: Path
) -> None:
    run = Run(method, 4)
    states = ranks.run(train_and_save, run, tmp_path, form, ranks=4)
    assert_identical(states)
    for size in (4, 2):
        resumed = ranks.run(resume, replace(run, ranks=size), tmp_path, form, ranks=size)
        assert_equal_to_one_process(resumed, states[0])
    assert_equal_to_one_process([resume(run, tmp_path, form)], states[0])


# A rank that is gone.


def train_until_killed(run: Run, folder: Path, victim: int, writing: bool) -> None:
    """Rank `victim` ends as by the kernel: in its backward pass, or as it writes."""

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(path: Path) -> None:
        path.write_bytes(b"half of a checkpoint")
        kill()

    trainer = Trainer(run, dist.group.WORLD)
    for index in range(run.steps):
        if index == MIDWAY and dist.get_rank() == victim:
            if writing:
                written_aside(folder / "checkpoint.pt", write_half)
            next(trainer.network.parameters()).register_hook(kill)
        trainer.step(index)
        if index < MIDWAY:
            save_by_torch(trainer, folder)


@pytest.mark.parametrize(
    ("victim", "writing"), [(1, False), (0, True)], ids=["in its step", "as it writes"]
)
def test_a_rank_is_killed(victim: int, writing: bool, ranks: Ranks, tmp_path: Path) -> None:
    run = Run("FAMO", 3)
    patience = timedelta(seconds=10)
    outcomes = ranks.outcomes(
        train_until_killed, run, tmp_path, victim, writing, ranks=3, patience=patience
    )
    assert outcomes.pop(victim) == Died(-signal.SIGKILL)
    for outcome in outcomes:
        assert isinstance(outcome, Failed)
        assert outcome.seconds < 2 * patience.seconds
    assert (tmp_path / "checkpoint.partial").exists() == writing
    resumed = resume(run, tmp_path, "torch.save")
    expected = alone(run)
    resumed["scalars"] = torch.cat([expected["scalars"][:MIDWAY], resumed["scalars"]])
    resumed["sound"] = torch.cat([expected["sound"][:MIDWAY], resumed["sound"]])
    assert_equal_to_one_process([resumed], expected)


# `torch.compile`.


def compiled_reduction(masked: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Values and gradients, compiled and not."""
    results = []
    for reduce in (compiled(all_reduce_losses, fullgraph=True), all_reduce_losses):
        row = []
        for step in range(3):
            losses = torch.rand(TASKS, generator=drawn(step, dist.get_rank())).requires_grad_()
            mask = PRESENCE["at random"](step, 2)[dist.get_rank()] if masked else None
            reduced = reduce(losses, dist.group.WORLD, mask=mask)
            (gradient,) = torch.autograd.grad(reduced.log().nansum(), losses)
            row += [reduced.detach(), gradient]
        results.append(row)
    return results[0], results[1]


@pytest.mark.parametrize("masked", [False, True], ids=["all present", "masked"])
def test_the_compiled_reduction_equals_the_reduction(masked: bool, ranks: Ranks) -> None:
    for compiled, eager in ranks.run(compiled_reduction, masked, ranks=2):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=0.0, equal_nan=True)


# Validation.


def first_rank_validates(method: str, way: str) -> Tensor | None:
    """The others have ended by then: a collective would wait in vain."""
    trainer = Trainer(Run(method, 2, way), dist.group.WORLD)
    trainer.train(0, EPOCH)
    before = trainer.state()
    if dist.get_rank() > 0:
        return None
    scalars = []
    for training, gradients in ((False, True), (True, False), (False, False)):
        trainer.scalarizer.train(training)
        with torch.set_grad_enabled(gradients):
            losses = trainer.network(*trainer.batch(0)[:2])
            scalars.append(trainer.scalarizer(losses).detach())
    assert_identical([before, trainer.state()])
    return torch.stack(scalars)


@pytest.mark.parametrize("way", ["outside DDP", "inside DDP"])
@pytest.mark.parametrize("method", METHODS)
def test_one_rank_may_validate_alone(method: str, way: str, ranks: Ranks) -> None:
    patience = timedelta(seconds=10)
    scalars, nothing = ranks.run(first_rank_validates, method, way, ranks=2, patience=patience)
    assert nothing is None
    assert scalars.isfinite().all()
    assert (scalars == scalars[0]).all()


# What is said to the user.


def warnings_of_two_calls(method: str) -> list[str]:
    scalarizer = METHODS[method]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            scalarizer(torch.ones(TASKS))
            if isinstance(scalarizer, FAMO) and not scalarizer.amortized:
                scalarizer.update(torch.ones(TASKS))
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_what_would_drift_apart_warns_once(method: str, size: int, ranks: Ranks) -> None:
    drifts = method in LEARNING_FROM_LOSSES and size > 1
    for messages in ranks.run(warnings_of_two_calls, method, ranks=size):
        assert len(messages) == drifts
        if drifts:
            assert "process_group=torch.distributed.group.WORLD" in messages[0]


@pytest.fixture
def group() -> Iterator[Group]:
    """This process as a group of its own."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("method", METHODS)
def test_a_module_without_its_process_group_is_as_any_other(method: str, group: Group) -> None:
    scalarizer = METHODS[method](process_group=group)
    plain = METHODS[method]()
    scalarizer(torch.ones(TASKS))
    plain(torch.ones(TASKS))
    assert repr(scalarizer) == repr(plain)
    assert_identical([scalarizer.state_dict(), plain.state_dict()])
    model = nn.ModuleList([scalarizer])
    (twin,) = copy.deepcopy(model)
    assert twin.process_group is group
    (loaded,) = pickle.loads(pickle.dumps(model))
    assert loaded.process_group is None
    assert_identical([scalarizer.state_dict(), twin.state_dict(), loaded.state_dict()])


@pytest.mark.parametrize("call", [all_reduce_losses, FAMO(TASKS, process_group=object())])
def test_no_group_is_initialised(call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="`group` should be an initialised process group"):
        call(torch.ones(TASKS))


@pytest.mark.parametrize(
    ("losses", "options", "error", "message"),
    [
        (torch.ones(3, dtype=torch.int64), {}, TypeError, "`losses` should be a floating-point"),
        (torch.ones(3), {"mask": torch.ones(3)}, ValueError, "`mask` should be a boolean tensor"),
        (
            torch.ones(3),
            {"mask": torch.ones(2, dtype=torch.bool)},
            ValueError,
            r"`mask` should have shape \(3,\)",
        ),
        (
            torch.ones(3),
            {"count": torch.ones(2)},
            ValueError,
            r"`count` should have shape \(3,\).* `count.shape = \(2,\)`",
        ),
        (
            torch.ones(3),
            {"count": [1, 2, 3]},
            TypeError,
            "`count` should be a number or a tensor. Found a list",
        ),
    ],
)
def test_bad_arguments(
    losses: Tensor, options: dict[str, Any], error: type[Exception], message: str, group: Group
) -> None:
    with pytest.raises(error, match=message):
        all_reduce_losses(losses, group, **options)


def test_losses_in_half_precision_are_reduced_in_single(group: Group) -> None:
    losses = torch.tensor([1.0, 3.0], dtype=torch.bfloat16, requires_grad=True)
    reduced = all_reduce_losses(losses)
    reduced.prod().backward()
    assert reduced.dtype == torch.float32
    torch.testing.assert_close(losses.grad, torch.tensor([3.0, 1.0], dtype=torch.bfloat16))
    samples = torch.tensor([2.0, 5.0], dtype=torch.float64)
    assert all_reduce_losses(losses, count=samples).dtype == torch.float32


@pytest.mark.parametrize("reduced_by", ["all_reduce_losses", "all_reduce_losses_and_mask"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": torch.tensor([True, True, True, False])},
        {"mask": None, "count": torch.tensor([3, 1, 2, 0])},
        {"mask": torch.tensor([True, True, True, False]), "count": 8},
    ],
    ids=["all present", "mask", "count", "both"],
)
def test_a_rank_alone_keeps_its_losses(
    options: dict[str, Any], reduced_by: str, group: Group
) -> None:
    """Those that are not finite, too, with their gradients; and of an absent task nothing."""
    losses = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan], requires_grad=True)
    present = torch.tensor([True, True, True, not options])
    if reduced_by == "all_reduce_losses":
        reduced, mask = all_reduce_losses(losses, group, **options), None
        expected = losses.detach()
    else:
        reduced, mask = mtl_scalarize.distributed.all_reduce_losses_and_mask(
            losses, group, **{"mask": None, **options}
        )
        expected = torch.where(present, losses.detach(), 0.0)
    assert mask is None if not options or reduced_by == "all_reduce_losses" else mask.equal(present)
    torch.testing.assert_close(reduced, expected, rtol=0, atol=0, equal_nan=True)
    reduced.sum().backward()
    torch.testing.assert_close(losses.grad, present.float(), rtol=0, atol=0)


# Any number of ranks, one after the other in this process.


class Simulated:
    """A group of ranks that run one after the other: first what each gives, then what it gets."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.sent: list[Tensor] = []

    def size(self) -> int:
        return self.ranks

    def run(self, job: Callable[[int], Any]) -> list[Any]:
        """What `job(rank)`, with one collective, returns on each rank."""

        def send(tensor: Tensor, group: object) -> Tensor:
            self.sent.append(tensor)
            return tensor

        def receive(tensor: Tensor, group: object) -> Tensor:
            return torch.stack(self.sent).sum(0)

        self.sent.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mtl_scalarize.distributed, "_initialised", lambda group: group)
            for collective in (send, receive):
                patch.setattr(mtl_scalarize.distributed, "_sum_over_ranks", collective)
                returned = [job(rank) for rank in range(self.ranks)]
        return returned


Share = tuple[Tensor, Tensor | None, Tensor | None]


@st.composite
def shares(draw: st.DrawFn) -> Share:
    """The losses of any number of ranks, which of them are there, and the samples behind each."""
    ranks, tasks = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    losses = torch.rand(ranks, tasks, generator=drawn(draw(st.integers(0, 99)))).double() + 0.1

    def filled(elements: st.SearchStrategy[Any], columns: int) -> st.SearchStrategy[Tensor]:
        row = st.lists(elements, min_size=columns, max_size=columns)
        return st.lists(row, min_size=ranks, max_size=ranks).map(torch.tensor)

    presence = draw(st.none() | filled(st.booleans(), tasks))
    samples = st.integers(1, 100)
    counts = draw(st.none() | filled(samples, 1) | filled(samples, tasks))
    return losses, presence, counts


def of_one_process(losses: Tensor, presence: Tensor | None, counts: Tensor | None) -> Tensor:
    """The losses on the whole batch; nan where there are none."""
    weights = torch.ones_like(losses)
    for factor in (presence, counts):
        weights = weights if factor is None else weights * factor
    total = weights.sum(0)
    mean = (weights * losses).sum(0) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, mean, torch.nan)


def uneven(losses: Tensor) -> Tensor:
    """A scalar of the losses that is not linear, and has another slope for each task."""
    slopes = torch.arange(1, len(losses) + 1)
    return (slopes * losses.log())[~losses.isnan()].sum()


@given(shares())
def test_the_mean_gradient_of_the_ranks_is_that_of_one_process(share: Share) -> None:
    """DDP takes the mean over the ranks of the gradients of what they share: here, a factor."""
    losses, presence, counts = share
    group = Simulated(len(losses))

    def factors() -> Tensor:
        return torch.ones(losses.shape[1], dtype=torch.float64, requires_grad=True)

    def job(rank: int) -> tuple[Tensor, Tensor]:
        shared = factors()
        own, mask, count = shared * losses[rank], None, None
        if presence is not None:
            mask = presence[rank]
            own = torch.where(mask, own, torch.nan)
        if counts is not None:
            count = counts[rank].squeeze() if counts.shape[1] == 1 else counts[rank]
        reduced = all_reduce_losses(own, group, mask=mask, count=count)
        return reduced.detach(), torch.autograd.grad(uneven(reduced), shared)[0]

    values, gradients = (torch.stack(column) for column in zip(*group.run(job), strict=True))
    shared = factors()
    expected = of_one_process(shared * losses, presence, counts)
    assert len({value.numpy().tobytes() for value in values}) == 1
    torch.testing.assert_close(values, expected.detach().expand_as(values), equal_nan=True)
    torch.testing.assert_close(gradients.mean(0), torch.autograd.grad(uneven(expected), shared)[0])
    numbers = losses.shape[1] * (1 if presence is None and counts is None else 2)
    assert [sent.numel() for sent in group.sent] == [numbers] * len(losses)


SOMEWHERE = torch.tensor([[True, True, False], [True, False, False]])


@pytest.mark.parametrize("masked", [False, True], ids=["all present", "masked"])
@pytest.mark.parametrize("method", METHODS)
def test_every_module_balances_what_the_ranks_have_together(method: str, masked: bool) -> None:
    """In training; in validation, what the rank has by itself."""
    group, losses = Simulated(2), torch.tensor([[1.0, 2.0, 3.0], [3.0, 5.0, 1.0]])
    masks = SOMEWHERE if masked else [None, None]
    together = of_one_process(losses, SOMEWHERE if masked else None, None).nan_to_num()
    expected = METHODS[method]()(together, SOMEWHERE.any(0) if masked else None)
    for scalar in group.run(
        lambda rank: METHODS[method](process_group=group)(losses[rank], masks[rank])
    ):
        torch.testing.assert_close(scalar, expected)
    for rank in range(2):
        validating = METHODS[method](process_group=object()).eval()
        alone = METHODS[method]().eval()(losses[rank], masks[rank])
        assert validating(losses[rank], masks[rank]) == alone


def test_update_remembers_which_tasks_this_rank_had() -> None:
    group, names = Simulated(2), ["first", "second"]
    before = [{"first": torch.tensor(1.0), "second": torch.tensor(4.0)}, {"first": torch.ones(())}]
    after = torch.tensor([[0.5, 3.0], [0.7, torch.nan]])

    def call(rank: int) -> FAMO:
        scalarizer = FAMO(names, process_group=group)
        scalarizer(before[rank])
        return scalarizer

    def updated(mask: Tensor | None) -> list[Tensor]:
        def update(rank: int) -> Tensor:
            scalarizer = copy.deepcopy(called[rank])
            scalarizer.update(after[rank], mask)
            return scalarizer.logits

        return group.run(update)

    called = group.run(call)
    expected = FAMO(2)
    expected(torch.tensor([1.0, 4.0]))
    expected.update(torch.tensor([0.6, 3.0]))
    for logits in updated(mask=None):
        torch.testing.assert_close(logits, expected.logits)
    for logits in updated(mask=torch.tensor([True, False])):  # unless it is told
        assert logits.tolist() == [0.0, 0.0]  # one task alone has the average fall


def test_a_state_brings_no_mask_from_before_it(group: Group) -> None:
    scalarizer = FAMO(2, process_group=group)
    scalarizer(torch.ones(2), torch.tensor([True, False]))
    source = FAMO(2)
    source(torch.ones(2))
    scalarizer.load_state_dict(source.state_dict())
    for each in (scalarizer, source):
        each.update(torch.tensor([0.9, 0.5]))
    assert_identical([scalarizer.state_dict(), source.state_dict()])


def test_a_rank_outside_of_the_group_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="`group` should be a process group that this rank"):
        all_reduce_losses(torch.ones(TASKS), dist.GroupMember.NON_GROUP_MEMBER)
