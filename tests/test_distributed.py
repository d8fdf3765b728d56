"""N ranks equal one process, on real process groups of gloo.

A job is a function that runs on every rank and returns tensors. A test compares them with those of
one process: of the same training on the concatenated batch, most of the time.
"""

import copy
import functools
import pickle
import re
import warnings
import weakref
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
from test_recipes import recipe
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mtl_scalarize import DWA, FAMO, IMTLL, UW, LogSum, Scalarizer, all_reduce_losses, distributed

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


def init_process_group() -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())


@pytest.fixture
def one_rank() -> Iterator[None]:
    """This process as a group of its own."""
    init_process_group()
    yield
    dist.destroy_process_group()


@pytest.fixture
def group(one_rank: None) -> Group:
    return dist.group.WORLD


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each collective has sent."""
    sizes, sum_over_ranks = [], distributed._sum_over_ranks

    def spy(tensor: Tensor, group: Group) -> Tensor:
        sizes.append(tensor.numel())
        return sum_over_ranks(tensor, group)

    monkeypatch.setattr(distributed, "_sum_over_ranks", spy)
    return sizes


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
    priorities: tuple[float, ...] | None = None

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

    def __init__(self, run_all: bool) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 8)
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(TASKS))
        self.run_all = run_all  # also the head of a task that no sample has

    def forward(self, features: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        hidden, samples = self.trunk(features).tanh(), present.sum(0)
        outputs = targets.clone()
        for task, head in enumerate(self.heads):
            if self.run_all or samples[task]:
                outputs[:, [task]] = head(hidden)
        errors = torch.where(present, outputs - targets, 0.0).square()
        return torch.where(samples > 0, errors.sum(0) / samples.clamp(min=1), torch.nan)


class Model(nn.Module):
    """A network and its scalarizer."""

    def __init__(self, run: Run, group: Group | None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network: nn.Module = Network(run_all=not run.named).double()
        self.scalarizer = METHODS[run.method].make(NAMES if run.named else TASKS).double()
        if run.priorities is not None:
            self.scalarizer.priorities = run.priorities
        if group is not None:
            self.scalarizer.synchronize(group)
        self.run = run
        self.group = group

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
    options = {"process_group": group, "find_unused_parameters": model.run.named}
    model.network = DistributedDataParallel(model.network, **options)
    return model


def around_the_model(model: Model, group: Group) -> Callable[..., Tensor]:
    return DistributedDataParallel(model, process_group=group)


def sharded_network(model: Model, group: Group) -> Callable[..., Tensor]:
    fully_shard(model.network, mesh=init_device_mesh("cpu", (group.size(),)))
    return model


def sharded_twice(model: Model, group: Group) -> Callable[..., Tensor]:
    """Hybrid sharding, whose dimensions are both data parallel."""
    shape, names = (2, group.size() // 2), ("replicate", "shard")
    fully_shard(model.network, mesh=init_device_mesh("cpu", shape, mesh_dim_names=names))
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
    "FSDP2 around the network": sharded_network,
    "HSDP around the network": sharded_twice,
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
        {"way": "FSDP2 around the network"},
        {"ranks": 4, "way": "HSDP around the network"},
        {"way": "one graph", "presence": "sparse"},
        {"ranks": 3, "presence": "lack in turns"},
        {"ranks": 3, "presence": "lack in turns", "named": True},
        {"ranks": 3, "presence": "sparse"},
        {"ranks": 3, "sizes": (1, 4, 7)},
        {"ranks": 3, "sizes": (1, 4, 7), "presence": "sparse"},
        {"sizes": (12, 0)},
        {"ranks": 3, "presence": "lack in turns", "priorities": (2.0, 0.0, 0.5)},
    ],
    ids=lambda options: ", ".join(f"{name}={value}" for name, value in options.items()) or "plain",
)
@each_method
def test_ranks_equal_one_process(method: str, options: dict[str, Any], ranks: Ranks) -> None:
    if METHODS[method].lazy and ("named" in options or "one graph" in options.values()):
        pytest.skip("needs a shape")
    run = Run(method, **options)
    assert_equal_to_one_process(ranks.run(train, run, ranks=run.ranks), alone(run))


@pytest.mark.parametrize("presence", [None, "lack in turns"])
@each_method
def test_a_broken_loss_on_one_rank_is_passed_over_by_all(
    method: str, presence: str | None, ranks: Ranks
) -> None:
    run = Run(method, 3, presence=presence, broken=True)
    expected = dict(alone(run))
    assert_equal_to_one_process(ranks.run(train, run, ranks=3), expected)
    assert not expected.pop("scalars").isfinite().all()
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


def train_a_half(run: Run, file: Path, second: bool) -> State:
    trainer = Trainer(run, dist.group.WORLD)
    parts = trainer.model, trainer.optimizer
    if second:
        for part, state in zip(parts, torch.load(file), strict=True):
            part.load_state_dict(state)
        return trainer.train(MIDWAY)
    trainer.train(0, MIDWAY)
    if trainer.rank == 0:
        torch.save([part.state_dict() for part in parts], file)
    return {}


@each_with_shape
def test_a_checkpoint_of_two_ranks_resumes_on_three(
    method: str, ranks: Ranks, tmp_path: Path
) -> None:
    run, file = Run(method), tmp_path / "checkpoint"
    ranks.run(train_a_half, run, file, False, ranks=2)
    resumed = ranks.run(train_a_half, replace(run, ranks=3), file, True, ranks=3)
    expected = {**alone(run), "scalars": alone(run)["scalars"][MIDWAY:]}
    assert_equal_to_one_process(resumed, expected)


# What makes no collective, and what is said.


def synchronized(method: str, group: Group | None = None) -> Scalarizer:
    scalarizer = METHODS[method].make(TASKS)
    scalarizer.synchronize(group)
    return scalarizer


def validate_on_the_first_rank(method: str) -> None:
    """The others have ended by then: a collective would fail."""
    scalarizer = synchronized(method)
    losses = torch.rand(TASKS)
    scalarizer(losses)
    if dist.get_rank() > 0:
        return
    before = copy.deepcopy(scalarizer.state_dict())
    expected = pickle.loads(pickle.dumps(scalarizer)).eval()(losses)
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


def train_alone(method: str, compiled: bool) -> tuple[list[tuple[str, str]], Tensor]:
    """What is warned of and where, and the weights of equal losses in the end."""
    torch.compiler.reset()
    scalarizer = METHODS[method].make(TASKS)
    one_graph = functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    call = one_graph(scalarizer) if compiled else scalarizer
    torch.manual_seed(dist.get_rank())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")
        for step in range(STEPS):
            losses = torch.rand(TASKS, requires_grad=True)
            learn(call, step, (losses, torch.arange(TASKS) != dist.get_rank()))
    scalarizer.eval()(torch.ones(TASKS))
    return [(str(each.message), each.filename) for each in caught], scalarizer.weights


@pytest.mark.parametrize("compiled", [False, True])
@each_with_shape
def test_ranks_that_are_not_synchronized_drift_apart_and_are_warned_once(
    method: str, compiled: bool, ranks: Ranks
) -> None:
    row = METHODS[method]
    outcomes = ranks.run(train_alone, method, compiled, ranks=2)
    for caught, _ in outcomes:
        # A compiled call warns while it is traced, and FAMO's `update` in eager mode by itself.
        once = row.make(TASKS).weights_depend_on != "nothing"
        assert once <= len(caught) <= once + (compiled and row.updates)
        for message, file in caught:
            assert re.match(rf"{method} is not synchronized: each of the 2 ranks", message)
            assert "Call `scalarizer.synchronize()` on every rank" in message
            assert file == learn.__code__.co_filename
    (_, weights), (_, others) = outcomes
    if row.keys and not row.parameters:  # its calls write state
        assert (weights - others).abs().max() > 1e-3


def call_in_a_group_of_the_first_rank(method: str) -> None:
    synchronized(method, dist.new_group([0]))(torch.ones(TASKS))


@each_method
def test_a_rank_outside_of_the_group_is_told_so(method: str, ranks: Ranks) -> None:
    inside, outside = ranks.outcomes(call_in_a_group_of_the_first_rank, method, ranks=2)
    assert inside is None
    assert "ValueError: `group` should be a process group that this rank" in outside.reason


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
@pytest.mark.parametrize("method", [row.name for row in methods.STATEFUL if not row.lazy])
def test_inside_of_fsdp1_in_half_precision_it_is_refused_by_name(method: str, group: Group) -> None:
    half = MixedPrecision(param_dtype=torch.bfloat16, buffer_dtype=torch.bfloat16)
    options = {"mixed_precision": half, "device_id": torch.device("cpu"), "use_orig_params": True}
    wrapped = FullyShardedDataParallel(Model(Run(method), group).float(), **options)
    state = "|".join(METHODS[method].keys)
    refused = rf"`({state}).dtype = torch.bfloat16`: keep the scalarizer outside of the module"
    with pytest.raises(ValueError, match=refused):
        wrapped(*Run(method).batch(0))


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
    options: dict[str, Any], group: Group, sent: list[int]
) -> None:
    """Those that are not finite, too, with their gradients. One collective of as many numbers."""
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
        ({"count": -1}, ValueError, "`count` should be non-negative"),
        ({"count": [1, 2, 3]}, TypeError, "`count` should be a number or a tensor. Found a list"),
        ({"group": 3}, ValueError, "`group` should be a process group .* Found 3"),
        (
            {"group": lambda: init_device_mesh("cpu", (1,))},
            ValueError,
            r"Found DeviceMesh.*: pass `mesh\.get_group\(\)`",
        ),
        (
            {"losses": lambda: distribute_tensor(torch.ones(3), init_device_mesh("cpu", (1,)))},
            TypeError,
            r"Found a DTensor: pass `losses\.full_tensor\(\)`",
        ),
    ],
)
def test_bad_arguments(
    options: dict[str, Any], error: type[Exception], message: str, group: Group
) -> None:
    made = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(error, match=message):
        all_reduce_losses(**{"losses": torch.ones(3), "group": group, **made})


def test_no_group_is_initialised() -> None:
    with pytest.raises(ValueError, match="`group` should be an initialised process group"):
        all_reduce_losses(torch.ones(TASKS))


# `synchronize`.


def synchronize_after_a_load(method: str) -> State:
    """Of a checkpoint, on the first rank alone. Afterwards all have its state."""
    scalarizer = METHODS[method].make(TASKS)
    if dist.get_rank() == 0:
        for step in range(EPOCH):
            learn(scalarizer, step, (torch.rand(TASKS, requires_grad=True), None))
    before = copy.deepcopy(scalarizer.state_dict())
    scalarizer.synchronize()
    if dist.get_rank() == 0:
        assert_same(scalarizer.state_dict(), before)
    return scalarizer.state_dict()


@pytest.mark.filterwarnings("ignore:.* is not synchronized")
@each_method
def test_all_ranks_take_the_state_of_the_first(method: str, ranks: Ranks) -> None:
    first, *others = ranks.run(synchronize_after_a_load, method, ranks=3)
    for other in others:
        assert_same(other, first)


#: What differs, a scalarizer on each of three ranks, and what is found.
UNLIKE: dict[str, tuple[Callable[[int], Scalarizer], str]] = {
    "names": (  # as they come out of a set
        lambda rank: UW(["b", "a"] if rank == 1 else ["a", "b"]),
        "('a', 'b') on rank 0 and ('b', 'a') on rank 1",
    ),
    "shape": (lambda rank: FAMO(3 + (rank == 2)), "(3,) on rank 0 and (4,) on rank 2"),
    "class": (lambda rank: (IMTLL if rank == 1 else UW)(3), "UW on rank 0 and IMTLL on rank 1"),
    "lr": (lambda rank: FAMO(3, lr=0.5 * (rank > 1)), "0.0 on rank 0 and 0.5 on rank 2"),
    "min_losses": (
        lambda rank: FAMO(2, torch.tensor([0.0, 0.5 * rank])),
        "[0.0, 0.0] on rank 0 and [0.0, 0.5] on rank 1",
    ),
    "priorities": (
        lambda rank: LogSum(priorities=None if rank else [1.0, 2.0], shape=2),
        "[1.0, 2.0] on rank 0 and 1.0 on rank 1",
    ),
    "dtype": (
        lambda rank: DWA(shape=3).to(torch.float64 if rank == 1 else torch.float32),
        "torch.float32 on rank 0 and torch.float64 on rank 1",
    ),
}


def synchronize_unlike(difference: str) -> None:
    UNLIKE[difference][0](dist.get_rank()).synchronize()


@pytest.mark.parametrize("difference", UNLIKE)
def test_ranks_that_differ_are_told_so_on_every_rank(difference: str, ranks: Ranks) -> None:
    for failed in ranks.outcomes(synchronize_unlike, difference, ranks=3):
        assert f"of the same {difference} on all ranks. Found " in failed.reason
        assert UNLIKE[difference][1] in failed.reason


@pytest.mark.usefixtures("one_rank")
def test_a_scalarizer_without_values_is_refused() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="call `to_empty` and `reset`"):
        synchronized("FAMO")


def count_batches() -> int:
    """Of a shard of 5, or of 4, by the function in the guide."""
    shard = range(5 - dist.get_rank())
    return len([*recipe("as_many_on_every_rank")["as_many_on_every_rank"](shard)])


def test_the_guide_takes_as_many_batches_on_every_rank(ranks: Ranks) -> None:
    assert ranks.run(count_batches, ranks=2) == [4, 4]


def train_by_epochs_of(batches: list[int]) -> State:
    scalarizer = synchronized("DWA")
    for _ in range(3):
        for step in range(batches[dist.get_rank()]):
            scalarizer(torch.rand(TASKS) + step)
        scalarizer.step()
    return scalarizer.state_dict()


@pytest.mark.parametrize("batches", [[5, 4], [4, 5]])
def test_an_epoch_of_unequal_length_is_noticed(batches: list[int], ranks: Ranks) -> None:
    outcomes = ranks.outcomes(train_by_epochs_of, batches, ranks=2)
    noticed = "ValueError: `step` should follow equally many calls on every rank"
    # The other rank may only see that this one has gone.
    assert any(noticed in outcome.reason for outcome in outcomes)
    assert all(outcome.seconds < PATIENCE / 2 for outcome in outcomes)


#: What the second of two ranks passes where the first passes ones, and no mask.
OTHERWISE = {
    "mask": (torch.ones(TASKS), torch.ones(TASKS) > 0),
    "nothing": (torch.ones(TASKS), torch.zeros(TASKS) > 0),
    "empty": ({}, None),
    "shape": (torch.ones(TASKS + 1), None),
    "no mask": (torch.ones(TASKS), torch.ones(TASKS)),
}


def call_otherwise_on_the_second(kind: str) -> Tensor:
    scalarizer = FAMO(NAMES)
    scalarizer.synchronize()
    arguments = OTHERWISE[kind] if dist.get_rank() else (torch.ones(TASKS), None)
    scalar = scalarizer(*arguments)
    scalarizer.update(*arguments)
    return scalar


@pytest.mark.parametrize("kind", ["mask", "nothing"])
def test_one_rank_may_pass_a_mask(kind: str, ranks: Ranks) -> None:
    first, second = ranks.run(call_otherwise_on_the_second, kind, ranks=2)
    assert_same(first, second)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "a mask that is False everywhere"),
        ("shape", "`losses` should have shape (3,)"),
        ("no mask", "`mask` should be a boolean tensor"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_other_rank_waiting(
    kind: str, message: str, ranks: Ranks
) -> None:
    other, failed = ranks.outcomes(call_otherwise_on_the_second, kind, ranks=2)
    assert message in failed.reason
    assert "gloo" in other.reason
    assert other.seconds < PATIENCE / 2


# A module and its group.


@pytest.mark.usefixtures("one_rank")
@each_method
def test_copies_share_the_group_and_pickling_drops_it(method: str, sent: list[int]) -> None:
    scalarizer = synchronized(method)
    scalarizer(torch.ones(TASKS))
    (twin,) = copy.deepcopy(nn.ModuleList([scalarizer]))
    for shared in (copy.copy(scalarizer), twin):
        del sent[:]
        shared(torch.ones(TASKS))
        assert sent == [2 * TASKS]  # with the mask, in one collective
    (loaded,) = pickle.loads(pickle.dumps(nn.ModuleList([twin])))
    assert_same(loaded.state_dict(), twin.state_dict())
    del sent[:]
    loaded(torch.ones(TASKS))
    assert not sent


@pytest.mark.parametrize("held", [False, True], ids=["held by nobody", "held by the user"])
@pytest.mark.usefixtures("one_rank")
@each_method
def test_a_group_that_was_destroyed_is_refused_and_not_kept(method: str, held: bool) -> None:
    scalarizer = synchronized(method)
    twin = copy.deepcopy(scalarizer)
    learn(scalarizer, EPOCH - 1, (torch.ones(TASKS, requires_grad=True), None))
    group = dist.group.WORLD if held else None
    reference = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    assert reference() is group
    init_process_group()
    for each in (scalarizer, twin):
        with pytest.raises(ValueError, match="destroyed"):
            each(torch.ones(TASKS))
        assert each.eval()(torch.ones(TASKS)).isfinite()
        each.train().synchronize()
        assert each(torch.ones(TASKS)).isfinite()


@pytest.mark.usefixtures("one_rank")
def test_update_takes_a_mask_of_its_own() -> None:
    grouped, plain = synchronized("FAMO"), FAMO(TASKS)
    after, two = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([False, True, True])
    grouped(torch.ones(TASKS), torch.tensor([True, True, True]))
    grouped.update(after, two)
    plain(torch.ones(TASKS), two)
    plain.update(after)
    assert_same(grouped.state_dict(), plain.state_dict())
