"""N ranks equal one process, on real process groups of gloo.

A job is a function that runs on every rank and returns tensors. A test compares them with those of
one process: of the same training on the concatenated batch, most of the time.
"""

import copy
import functools
import os
import pickle
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import methods
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from methods import learn
from ranks import PATIENCE, Ranks
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial
from torch.nn.parallel import DistributedDataParallel

from mtl_scalarize import DWA, FAMO, IMTLL, UW, all_reduce_losses

Group = dist.ProcessGroup
State = Mapping[str, Tensor]
Batch = tuple[Tensor, Tensor, Tensor]

#: By name, which can be sent to a rank; the functions of a row cannot.
METHODS = {method.name: method for method in methods.METHODS}
NAMES = ("depth", "normals", "edges")
TASKS = len(NAMES)
#: Samples of a step on all ranks together.
BATCH = 12
EPOCH = 4
STEPS = 3 * EPOCH
MIDWAY = EPOCH + EPOCH // 2

each_method = pytest.mark.parametrize("method", METHODS)
each_with_shape = pytest.mark.parametrize(
    "method", [name for name in METHODS if not METHODS[name].lazy]
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with closing(Ranks(4, tmp_path_factory.mktemp("stores"))) as ranks:
        yield ranks


@pytest.fixture
def group() -> Iterator[Group]:
    """This process as a group of its own."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


# A training, on one rank of a group or in one process.


@dataclass(frozen=True)
class Run:
    """A training, and how the ranks share it."""

    method: str
    ranks: int = 2
    way: str = "DDP around the network"
    #: Which tasks a rank has at a step, a key of `PRESENCE`. None: all, and no mask is passed.
    presence: str | None = None
    #: Whether the losses are passed by name instead of with a mask.
    named: bool = False
    #: How many samples each rank has, and says that it has. None: equally many.
    sizes: tuple[int, ...] | None = None
    #: Whether a loss of some rank is not finite in some steps.
    broken: bool = False
    seed: int = 0

    @property
    def split(self) -> list[int]:
        return list(self.sizes or [BATCH // self.ranks] * self.ranks)

    def batch(self, step: int) -> Batch:
        """The samples of all ranks: features, targets, and which targets are there."""
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        features = torch.randn(BATCH, 3, generator=generator, dtype=torch.float64)
        targets = features.cumsum(1).sin() * torch.tensor([0.3, 1.0, 3.0])
        if self.broken and step % 3 == 2:
            targets[step, 0] = (torch.nan, torch.inf)[step % 2]
        present = torch.ones(self.ranks, TASKS, dtype=torch.bool)
        if self.presence is not None:
            present = PRESENCE[self.presence](step, torch.arange(self.ranks)[:, None])
        return features, targets, present.repeat_interleave(torch.tensor(self.split), dim=0)


def lack_in_turns(step: int, rank: Tensor) -> Tensor:
    """Each rank lacks another task, and one of them none."""
    return torch.arange(TASKS) != (step + rank) % (TASKS + 1)


def sparse(step: int, rank: Tensor) -> Tensor:
    """Some ranks have no task, some tasks are on no rank, and at some steps there is none."""
    generator = torch.Generator().manual_seed(step)
    return (torch.rand(len(rank), TASKS, generator=generator) < 0.4) & (step % EPOCH > 0)


PRESENCE = {"lack in turns": lack_in_turns, "sparse": sparse}


class Network(nn.Module):
    """From a batch to the losses of its tasks: each a mean over the samples, nan over none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, TASKS))

    def forward(self, features: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        errors = torch.where(present, self.layers(features) - targets, 0.0).square()
        samples = present.sum(0)
        return torch.where(samples > 0, errors.sum(0) / samples.clamp(min=1), torch.nan)


class Model(nn.Module):
    """A network and its scalarizer."""

    def __init__(self, run: Run, group: Group | None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network: nn.Module = Network()
        self.scalarizer = METHODS[run.method].make(NAMES if run.named else TASKS)
        self.scalarizer.process_group = group
        self.run = run
        self.group = group
        self.double()

    def losses(self, *batch: Tensor) -> tuple[Tensor | dict[str, Tensor], Tensor | None]:
        """The losses to balance, and which there are."""
        present = batch[2].any(0)
        losses, mask = self.network(*batch), None if self.run.presence is None else present
        if self.group is not None and self.run.sizes is not None:
            return all_reduce_losses(losses, self.group, mask=mask, count=len(batch[0]))
        if self.group is not None and self.run.named:
            return {NAMES[i]: losses[i] for i in range(TASKS) if present[i]}, None
        return losses, mask

    def forward(self, *batch: Tensor) -> Tensor:
        return self.scalarizer(*self.losses(*batch))


def around_the_network(model: Model, group: Group) -> Callable[..., Tensor]:
    model.network = DistributedDataParallel(model.network, process_group=group)
    return model


def around_the_model(model: Model, group: Group) -> Callable[..., Tensor]:
    return DistributedDataParallel(model, process_group=group)


def sharded(model: Model, group: Group) -> Callable[..., Tensor]:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    fully_shard(model, mesh=init_device_mesh("cpu", (group.size(),)))
    register_fsdp_forward_method(model, "losses")  # for FAMO's second forward pass
    return model


def in_one_graph(model: Model, group: Group) -> Callable[..., Tensor]:
    """Without DDP, at which the graph would break: the gradients are averaged by hand."""

    def average(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=group)
        return gradient / group.size()

    for parameter in model.network.parameters():
        parameter.register_hook(average)
    torch.compiler.reset()
    compiled = functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    model.scalarizer.update = compiled(model.scalarizer.update)
    return compiled(model)


#: How a model is made to train on several ranks: from a model to what is called on a batch.
WAYS = {
    "DDP around the network": around_the_network,
    "DDP around the model": around_the_model,
    "FSDP2": sharded,
    "one graph": in_one_graph,
}


class Trainer:
    """A training on one rank of a group, or without a group by one process alone."""

    def __init__(self, run: Run, group: Group | None = None) -> None:
        self.run = run
        self.rank = None if group is None else dist.get_rank(group)
        self.model = Model(run, group)
        self.network = self.model.network  # before DDP wraps it
        self.call = self.model if group is None else WAYS[run.way](self.model, group)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02)

    def step(self, index: int) -> Tensor:
        batch = self.run.batch(index)
        if self.rank is not None:
            batch = tuple(tensor.split(self.run.split)[self.rank] for tensor in batch)
        self.optimizer.zero_grad()
        torch.manual_seed(index + 1000 * (self.rank or 0))  # the first rank draws what one would
        scalar = self.call(*batch)
        scalar.backward()
        if scalar.isfinite():
            self.optimizer.step()
        self.model.scalarizer.update(lambda: self.model.losses(*batch)[0])
        if index % EPOCH == EPOCH - 1:
            self.model.scalarizer.step()
        return scalar.detach()

    def train(self, start: int = 0, stop: int = STEPS) -> State:
        """What the training shows, and what it leaves behind."""
        scalars = torch.stack([self.step(index) for index in range(start, stop)])
        states = {"network": self.network, "scalarizer": self.model.scalarizer}
        return {"scalars": scalars, "weights": self.model.scalarizer.weights} | {
            f"{part}.{name}": getattr(tensor, "full_tensor", tensor.clone)()
            for part, module in states.items()
            for name, tensor in module.state_dict().items()
        }


def train(run: Run) -> State:
    return Trainer(run, dist.group.WORLD).train()


@functools.cache
def alone(run: Run) -> State:
    """The training by one process."""
    return Trainer(run).train()


def assert_same(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_equal_to_one_process(states: list[State], expected: State) -> None:
    for state in states:
        assert_same(state, states[0])
    assert_same(states[0], expected, tolerance=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ranks": 4},
        {"way": "DDP around the model"},
        {"way": "FSDP2"},
        {"ranks": 3, "presence": "lack in turns"},
        {"ranks": 3, "presence": "sparse"},
        {"ranks": 3, "sizes": (1, 4, 7)},
        {"ranks": 3, "sizes": (1, 4, 7), "presence": "sparse"},
        {"sizes": (12, 0)},
    ],
    ids=lambda options: ", ".join(f"{name}={value}" for name, value in options.items()) or "plain",
)
@each_method
def test_ranks_equal_one_process(method: str, options: dict[str, Any], ranks: Ranks) -> None:
    run = Run(method, **options)
    assert_equal_to_one_process(ranks.run(train, run, ranks=run.ranks), alone(run))


@each_with_shape
def test_losses_by_name_may_differ_between_ranks(method: str, ranks: Ranks) -> None:
    run = Run(method, 3, presence="lack in turns", named=True)
    assert_equal_to_one_process(ranks.run(train, run, ranks=3), alone(run))


@pytest.mark.parametrize("presence", [None, "lack in turns"])
@each_method
def test_a_broken_loss_on_one_rank_is_passed_over_by_all(
    method: str, presence: str | None, ranks: Ranks
) -> None:
    run = Run(method, 3, presence=presence, broken=True)
    expected = dict(alone(run))
    assert_equal_to_one_process(ranks.run(train, run, ranks=3), expected)
    assert not expected.pop("scalars").isfinite().all()
    expected.pop("scalarizer.previous_losses", None)  # nan where there are none
    if not METHODS[method].keys:  # the weights are functions of the broken losses
        del expected["weights"]
    assert all(tensor.isfinite().all() for tensor in expected.values())


def train_in_halves(run: Run) -> State:
    """Two ranks train on other data than the other two."""
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    half = dist.get_rank() // 2
    return Trainer(replace(run, seed=half), halves[half]).train()


@each_method
def test_a_group_of_some_ranks_equals_one_process(method: str, ranks: Ranks) -> None:
    run = Run(method)
    states = ranks.run(train_in_halves, run, ranks=4)
    assert_equal_to_one_process(states[:2], alone(run))
    assert_equal_to_one_process(states[2:], alone(replace(run, seed=1)))


@each_with_shape
def test_a_compiled_model_is_one_graph(method: str, ranks: Ranks) -> None:
    run = Run(method, way="one graph", presence="sparse")
    assert_equal_to_one_process(ranks.run(train, run, ranks=2), alone(run))


# A checkpoint, and a rank that is gone.


def train_a_half(run: Run, folder: Path, second: bool) -> State:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    trainer = Trainer(run, dist.group.WORLD)
    trained = {} if second else trainer.train(0, MIDWAY)
    model, optimizer = get_state_dict(trainer.model, trainer.optimizer)
    access = dcp.load if second else dcp.save
    access({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
    set_state_dict(
        trainer.model, trainer.optimizer, model_state_dict=model, optim_state_dict=optimizer
    )
    return trainer.train(MIDWAY) if second else trained


@each_with_shape
def test_a_checkpoint_of_two_ranks_resumes_on_three(
    method: str, ranks: Ranks, tmp_path: Path
) -> None:
    run = Run(method)
    ranks.run(train_a_half, run, tmp_path, False, ranks=2)
    resumed = ranks.run(train_a_half, replace(run, ranks=3), tmp_path, True, ranks=3)
    expected = {**alone(run), "scalars": alone(run)["scalars"][MIDWAY:]}
    assert_equal_to_one_process(resumed, expected)


def train_until_a_rank_fails(killed: bool) -> None:
    trainer = Trainer(Run("FAMO", 3), dist.group.WORLD)
    trainer.train(0, MIDWAY)
    if dist.get_rank() == 1:
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        trainer.model.scalarizer(torch.ones(TASKS), torch.ones(TASKS))
    trainer.train(MIDWAY)


@pytest.mark.parametrize(
    ("killed", "reason"), [(True, "exit code -9"), (False, "`mask` should be a boolean tensor")]
)
def test_a_rank_that_fails_leaves_no_other_waiting(killed: bool, reason: str, ranks: Ranks) -> None:
    first, failed, last = ranks.outcomes(train_until_a_rank_fails, killed, ranks=3)
    assert reason in failed.reason
    for other in (first, last):
        assert "gloo" in other.reason
        assert other.seconds < PATIENCE / 2


# What makes no collective, and what is said.


def validate_on_the_first_rank(method: str) -> None:
    """The others have ended by then: a collective would fail."""
    scalarizer = METHODS[method].make(TASKS, process_group=dist.group.WORLD)
    losses = torch.rand(TASKS)
    scalarizer(losses)
    if dist.get_rank() > 0:
        return
    before = copy.deepcopy(scalarizer.state_dict())
    own = copy.deepcopy(scalarizer)
    own.process_group = None
    expected = own.eval()(losses)
    for training, gradients in ((False, True), (True, False), (False, False)):
        scalarizer.train(training)
        with torch.set_grad_enabled(gradients):
            assert_same(scalarizer(losses), expected)
    scalarizer.update(losses)
    scalarizer.step()
    assert_same(scalarizer.state_dict(), before)


@each_method
def test_one_rank_may_validate_alone(method: str, ranks: Ranks) -> None:
    ranks.run(validate_on_the_first_rank, method, ranks=2)


def drifts(method: methods.Method) -> bool:
    """Whether its calls write state."""
    return bool(method.keys) and not method.parameters


def train_without_a_group(method: str) -> tuple[list[str], Tensor]:
    """The files that are warned of, and the weights of equal losses in the end."""
    scalarizer = METHODS[method].make(TASKS)
    torch.manual_seed(dist.get_rank())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(STEPS):
            losses = torch.rand(TASKS, requires_grad=True)
            learn(scalarizer, step, (losses, torch.arange(TASKS) != dist.get_rank()))
    assert all("process_group=torch.distributed.group.WORLD" in str(w.message) for w in caught)
    scalarizer.eval()(torch.ones(TASKS))
    return [w.filename for w in caught], scalarizer.weights


@each_method
def test_ranks_without_a_group_drift_apart_and_are_warned_once(method: str, ranks: Ranks) -> None:
    (files, weights), (others, other_weights) = ranks.run(train_without_a_group, method, ranks=2)
    fixed = METHODS[method].make(TASKS).fixed_weights
    assert files == others == ([] if fixed else [learn.__code__.co_filename])
    assert not drifts(METHODS[method]) or (weights - other_weights).abs().max() > 1e-3


def call_compiled_without_a_group(method: str) -> list[str]:
    scalarizer = METHODS[method].make(TASKS)
    compiled = torch.compile(scalarizer, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            compiled(torch.rand(TASKS, requires_grad=True))
    return [str(warning.message) for warning in caught]


@each_with_shape
def test_a_compiled_rank_without_a_group_is_warned_too(method: str, ranks: Ranks) -> None:
    for messages in ranks.run(call_compiled_without_a_group, method, ranks=2):
        assert len(messages) == (not METHODS[method].make(TASKS).fixed_weights)
        assert all("process_group=torch.distributed.group.WORLD" in text for text in messages)


def call_in_a_group_of_the_first_rank(method: str) -> None:
    METHODS[method].make(TASKS, process_group=dist.new_group([0]))(torch.ones(TASKS))


@each_method
def test_a_rank_outside_of_the_group_is_told_so(method: str, ranks: Ranks) -> None:
    inside, outside = ranks.outcomes(call_in_a_group_of_the_first_rank, method, ranks=2)
    assert inside is None
    assert "ValueError: `group` should be a process group that this rank" in outside.reason


# `all_reduce_losses`.

Share = tuple[Tensor, Tensor | None, Tensor | None]


@st.composite
def shares(draw: st.DrawFn) -> Share:
    """The losses of some ranks, which of them are there, and the samples behind each."""
    ranks, tasks = draw(st.integers(2, 4)), draw(st.integers(1, 4))

    def filled(elements: st.SearchStrategy[Any], columns: int = tasks) -> st.SearchStrategy[Tensor]:
        row = st.lists(elements, min_size=columns, max_size=columns)
        return st.lists(row, min_size=ranks, max_size=ranks).map(torch.tensor)

    losses = draw(filled(st.floats(0.1, 10.0))).double()
    samples = st.integers(0, 100)
    counts = draw(st.none() | filled(samples, columns=1) | filled(samples))
    return losses, draw(st.none() | filled(st.booleans())), counts


def uneven(losses: Tensor) -> Tensor:
    """A scalar that is not linear in the losses, and has another slope for each task."""
    return (torch.arange(1, len(losses) + 1) * losses.square()).sum()


def reduce_a_share(
    losses: Tensor, presence: Tensor | None, counts: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The losses and the mask of all ranks, and this rank's gradient in a factor of its losses."""
    rank = dist.get_rank()
    shared = torch.ones(losses.shape[1], dtype=torch.float64, requires_grad=True)
    own, mask, count = shared * losses[rank], None, None
    if presence is not None:
        mask = presence[rank]
        own = torch.where(mask, own, torch.nan)
    if counts is not None:
        count = counts[rank].squeeze() if counts.shape[1] == 1 else counts[rank]
    reduced, mask = all_reduce_losses(own, mask=mask, count=count)
    return reduced.detach(), mask, torch.autograd.grad(uneven(reduced), shared)[0]


@settings(max_examples=30)
@given(share=shares())
def test_the_mean_gradient_of_the_ranks_is_that_of_one_process(share: Share, ranks: Ranks) -> None:
    """DDP takes the mean over the ranks of the gradients of what they share: here, a factor."""
    losses, presence, counts = share
    found = ranks.run(reduce_a_share, *share, ranks=len(losses))
    weights = torch.ones_like(losses)
    for factor in (presence, counts):
        weights = weights if factor is None else weights * factor
    shared = torch.ones(losses.shape[1], dtype=torch.float64, requires_grad=True)
    expected = (weights * shared * losses).sum(0) / weights.sum(0).clamp(min=1)
    gradient = torch.autograd.grad(uneven(expected), shared)[0]
    mask = None if presence is None and counts is None else weights.sum(0) > 0
    for reduced, any_rank, _ in found:
        assert_same(reduced, expected.detach(), tolerance=1e-12)
        assert_same(reduced, found[0][0])
        assert (any_rank is None) if mask is None else any_rank.equal(mask)
    assert_same(torch.stack([own for *_, own in found]).mean(0), gradient, tolerance=1e-12)


def compiled_and_not(masked: bool) -> list[tuple[Tensor, Tensor]]:
    """Values and gradients."""
    losses = (1.0 + torch.arange(TASKS) + dist.get_rank()).requires_grad_()
    mask = lack_in_turns(1, torch.tensor(dist.get_rank())) if masked else None
    results = []
    for reduce in (torch.compile(all_reduce_losses, fullgraph=True), all_reduce_losses):
        reduced, _ = reduce(losses, dist.group.WORLD, mask=mask)
        results.append((reduced.detach(), torch.autograd.grad(uneven(reduced), losses)[0]))
    return results


@pytest.mark.parametrize("masked", [False, True], ids=["all present", "masked"])
def test_inductor_compiles_the_reduction_to_the_same(masked: bool, ranks: Ranks) -> None:
    """It reuses memory where the compiler of the other tests does not."""
    for compiled, eager in ranks.run(compiled_and_not, masked, ranks=2):
        assert_same(compiled, eager, tolerance=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": torch.tensor([True, True, True, False])},
        {"count": torch.tensor([3, 1, 2, 0])},
        {"mask": torch.tensor([True, True, True, False]), "count": 8},
    ],
    ids=["all present", "mask", "count", "both"],
)
def test_a_rank_alone_keeps_its_losses(
    options: dict[str, Any], group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are not finite, too, with their gradients. One collective of as many numbers."""
    sent, all_reduce = [], collectives.all_reduce

    def spy(tensor: Tensor, *arguments: Any) -> Tensor:
        sent.append(tensor.numel())
        return all_reduce(tensor, *arguments)

    monkeypatch.setattr(collectives, "all_reduce", spy)
    losses = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan], requires_grad=True)
    present = torch.tensor([True, True, True, not options])
    reduced, mask = all_reduce_losses(losses, group, **options)
    assert_same(reduced, torch.where(present, losses, 0.0))
    assert mask.equal(present) if options else mask is None
    (gradient,) = torch.autograd.grad(reduced.sum(), losses)
    assert_same(gradient, present.float())
    assert sent == [8 if options else 4]


def test_losses_in_half_precision_are_reduced_in_single(group: Group) -> None:
    losses = torch.tensor([1.0, 3.0], dtype=torch.bfloat16, requires_grad=True)
    count = torch.tensor([2.0, 5.0], dtype=torch.float64)
    for reduced, _ in (all_reduce_losses(losses), all_reduce_losses(losses, count=count)):
        assert reduced.dtype == torch.float32
        (gradient,) = torch.autograd.grad(reduced.prod(), losses)
        assert_same(gradient, torch.tensor([3.0, 1.0], dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"losses": torch.ones(3, dtype=torch.int64)}, TypeError, "`losses` should be a floating"),
        ({"mask": torch.ones(3)}, ValueError, "`mask` should be a boolean tensor"),
        ({"mask": torch.ones(2) > 0}, ValueError, r"`mask` should have shape \(3,\)"),
        ({"count": torch.ones(2)}, ValueError, r"`count` should have shape \(3,\).* \(2,\)`"),
        ({"count": [1, 2, 3]}, TypeError, "`count` should be a number or a tensor. Found a list"),
        ({"group": 3}, ValueError, "`group` should be a process group .* Found 3"),
        ({"group": "mesh"}, ValueError, r"Found DeviceMesh.*: pass `mesh\.get_group\(\)`"),
    ],
)
def test_bad_arguments(
    options: dict[str, Any], error: type[Exception], message: str, group: Group
) -> None:
    if options.get("group") == "mesh":
        options = {"group": init_device_mesh("cpu", (1,))}
    with pytest.raises(error, match=message):
        all_reduce_losses(**{"losses": torch.ones(3), "group": group, **options})


def test_no_group_is_initialised() -> None:
    with pytest.raises(ValueError, match="`group` should be an initialised process group"):
        all_reduce_losses(torch.ones(TASKS))


# Giving a group.


def give_the_group(method: str, how: str) -> State:
    """Each rank begins with another state; afterwards all have that of the first."""
    rank, make = dist.get_rank(), METHODS[method].make
    options = {"init": 1.0 * rank} if METHODS[method].parameters else {}
    if how == "to the constructor":
        return make(TASKS, **options, process_group=dist.group.WORLD).state_dict()
    scalarizer = make(TASKS, **options)
    if rank == 0:  # as after a load of a checkpoint on this rank alone
        for step in range(EPOCH):
            learn(scalarizer, step, (torch.rand(TASKS, requires_grad=True), None))
    before = copy.deepcopy(scalarizer.state_dict())
    scalarizer.process_group = dist.group.WORLD
    if rank == 0:
        assert_same(scalarizer.state_dict(), before)
    return scalarizer.state_dict()


@pytest.mark.filterwarnings("ignore:.*no process group")
@pytest.mark.parametrize("how", ["to the constructor", "after a load on the first rank"])
@each_method
def test_who_gives_a_group_takes_the_state_of_its_first_rank(
    method: str, how: str, ranks: Ranks
) -> None:
    first, *others = ranks.run(give_the_group, method, how, ranks=3)
    for other in others:
        assert_same(other, first)


def make_unlike(difference: str) -> None:
    rank, group = dist.get_rank(), dist.group.WORLD
    if difference == "names":  # as they come out of a set
        UW(["a", "b"] if rank == 0 else ["b", "a"], process_group=group)
    elif difference == "shape":
        FAMO(3 + (rank == 2), process_group=group)
    elif difference == "amortized":
        FAMO(3, amortized=rank == 0, process_group=group)
    elif difference == "min_losses":
        FAMO(2, torch.tensor([0.0, 0.5 * rank]), process_group=group)
    elif difference == "class":
        (IMTLL if rank == 1 else UW)(3, process_group=group)
    else:
        scalarizer = DWA(shape=3).to(torch.float64 if rank == 1 else torch.float32)
        scalarizer.process_group = group


@pytest.mark.parametrize(
    ("difference", "found"),
    [
        ("names", r"\('a', 'b'\) on rank 0 and \('b', 'a'\) on rank 1"),
        ("shape", r"\(3,\) on rank 0 and \(4,\) on rank 2"),
        ("class", "UW on rank 0 and IMTLL on rank 1"),
        ("amortized", "True on rank 0 and False on rank 1"),
        ("min_losses", r"\[0.0, 0.0\] on rank 0 and \[0.0, 0.5\] on rank 1"),
        ("dtype", "torch.float32 on rank 0 and torch.float64 on rank 1"),
    ],
)
def test_ranks_that_differ_are_told_so_on_every_rank(
    difference: str, found: str, ranks: Ranks
) -> None:
    for failed in ranks.outcomes(make_unlike, difference, ranks=3):
        assert re.search(rf"ValueError: .* the same {difference} .*Found {found}", failed.reason)


def give_a_group_on_meta() -> None:
    with torch.device("meta"):
        scalarizer = FAMO(TASKS)
    scalarizer.process_group = dist.group.WORLD


def reduce_a_dtensor() -> None:
    mesh = init_device_mesh("cpu", (2,))
    all_reduce_losses(DTensor.from_local(torch.ones(TASKS), mesh, [Partial("avg")]))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (give_a_group_on_meta, r"ValueError: .*call `to_empty` and `reset` before"),
        (reduce_a_dtensor, r"TypeError: .*Found a DTensor: pass `losses\.full_tensor\(\)`"),
    ],
)
def test_what_cannot_be_reduced_is_refused_on_every_rank(
    job: Callable[[], None], message: str, ranks: Ranks
) -> None:
    for failed in ranks.outcomes(job, ranks=2):
        assert re.search(message, failed.reason)


def train_by_epochs_of(batches: list[int]) -> State:
    scalarizer = DWA(shape=TASKS, process_group=dist.group.WORLD)
    for _ in range(3):
        for step in range(batches[dist.get_rank()]):
            scalarizer(torch.rand(TASKS) + step)
        scalarizer.step()
    return scalarizer.state_dict()


@pytest.mark.parametrize("batches", [[5, 4], [4, 5]])
def test_an_epoch_of_unequal_length_is_noticed(batches: list[int], ranks: Ranks) -> None:
    outcomes = ranks.outcomes(train_by_epochs_of, batches, ranks=2)
    first = min(outcomes, key=lambda failed: failed.seconds)
    assert "ValueError: `step` should follow equally many calls on every rank" in first.reason
    assert all(outcome.seconds < PATIENCE / 2 for outcome in outcomes)


def call_with_unlike_losses(kind: str) -> Tensor:
    """Ranks that differ in what they pass, as they may."""
    rank = dist.get_rank()
    scalarizer = FAMO(NAMES, process_group=dist.group.WORLD)
    losses = torch.ones(TASKS, dtype=torch.float64 if kind == "dtype" and rank else torch.float32)
    mask = torch.ones(TASKS, dtype=torch.bool) if kind == "mask" and rank else None
    if kind == "nothing" and rank:
        mask = torch.zeros(TASKS, dtype=torch.bool)
    if kind == "empty" and rank:
        return scalarizer({})
    if kind == "shape" and rank:
        return scalarizer(torch.ones(TASKS + 1))
    scalar = scalarizer(losses, mask)
    scalarizer.update(losses, mask)
    return scalar


@pytest.mark.parametrize("kind", ["dtype", "mask", "nothing"])
def test_ranks_may_pass_losses_of_other_dtypes_or_without_a_mask(kind: str, ranks: Ranks) -> None:
    first, second = ranks.run(call_with_unlike_losses, kind, ranks=2)
    assert_same(first, second)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("empty", "a mask that is False everywhere"), ("shape", r"`losses` should have shape \(3,\)")],
)
def test_losses_that_do_not_fit_are_refused_before_the_collective(
    kind: str, message: str, ranks: Ranks
) -> None:
    other, failed = ranks.outcomes(call_with_unlike_losses, kind, ranks=2)
    assert re.search(message, failed.reason)
    assert other.seconds < PATIENCE / 2


# A module and its group.


@each_method
def test_copies_share_the_group_and_pickling_drops_it(method: str, group: Group) -> None:
    scalarizer = METHODS[method].make(TASKS, process_group=group)
    scalarizer(torch.ones(TASKS))
    assert copy.copy(scalarizer).process_group is group
    (twin,) = copy.deepcopy(nn.ModuleList([scalarizer]))
    assert twin.process_group is group
    (loaded,) = pickle.loads(pickle.dumps(nn.ModuleList([scalarizer])))
    assert loaded.process_group is None
    assert_same(loaded.state_dict(), scalarizer.state_dict())


@each_method
def test_a_group_that_was_destroyed_is_refused(method: str, group: Group) -> None:
    scalarizer = METHODS[method].make(TASKS, process_group=group)
    dist.destroy_process_group()
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    with pytest.raises(ValueError, match="Found one that was destroyed"):
        scalarizer(torch.ones(TASKS))
    scalarizer.process_group = dist.group.WORLD
    assert scalarizer(torch.ones(TASKS)).isfinite()


def test_update_takes_a_mask_of_its_own(group: Group) -> None:
    """Otherwise that of the last call, which is forgotten where a state is loaded."""
    grouped, plain = FAMO(TASKS, process_group=group), FAMO(TASKS)
    after = torch.tensor([0.9, 0.5, 0.2])
    two = torch.tensor([False, True, True])
    grouped(torch.ones(TASKS), torch.tensor([True, True, True]))
    grouped.update(after, two)
    plain(torch.ones(TASKS), two)
    plain.update(after)
    assert_same(grouped.state_dict(), plain.state_dict())
    grouped(torch.ones(TASKS), two)
    plain(torch.ones(TASKS))
    grouped.load_state_dict(plain.state_dict())
    for scalarizer in (grouped, plain):
        scalarizer.update(after)
    assert_same(grouped.state_dict(), plain.state_dict())
