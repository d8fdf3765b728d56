"""The loops of the guides `recipes.md`, `tuning.md` and `distributed.md`, by their own functions.

What they train is compared with a plain training: one process, one call a step, the whole batch.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from methods import METHODS, NAMED, STATEFUL, Method
from ranks import Ranks
from test_docs import BLOCKS
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mtl_scalarize import FAMO

NAMES = ("depth", "normals", "edges")
TASKS = len(NAMES)
EPOCHS = 3
#: Samples in each part of a batch.
PARTS = (5, 4, 1, 2)
SAMPLES = sum(PARTS)

#: Gives the backward pass of a step, and returns what computes its losses again.
Backward = Callable[["Training", int], Callable[[], Any]]

each_method = pytest.mark.parametrize("method", METHODS, ids=str)


@cache
def recipe(function: str) -> dict[str, Any]:
    """The functions of the block of a guide that has this one, without its training."""
    (block,) = [block for block in BLOCKS.values() if f"def {function}(" in block]
    tree, scope = ast.parse(block), {}
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef)
    tree.body = [statement for statement in tree.body if isinstance(statement, kinds)]
    exec(compile(tree, "block", "exec"), scope)
    return scope


class Training:
    """A model with its scalarizer and optimizer."""

    def __init__(self, method: Method, model: Callable[[], nn.Module], **options: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = model().double()
        self.scalarizer = method.make(NAMES, **options).double()
        self.optimizer = self.adam(self.model, self.scalarizer)

    def adam(self, *modules: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam([{"params": module.parameters()} for module in modules], lr=0.02)

    def train(self, backward: Backward, batches: Callable[[int], Iterable[int]]) -> list[Tensor]:
        """The state that it ends with, of the model and the scalarizer."""
        for epoch in range(EPOCHS):
            for index in batches(epoch):
                self.optimizer.zero_grad()
                torch.manual_seed(index)  # for methods that draw
                again = backward(self, index)
                self.optimizer.step()
                self.scalarizer.update(again)
            self.scalarizer.step()
        states = [*self.model.state_dict().values(), *self.scalarizer.state_dict().values()]
        return [getattr(tensor, "full_tensor", tensor.clone)() for tensor in states]


def three_a_time(epoch: int) -> range:
    return range(3 * epoch, 3 * epoch + 3)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, TASKS))


def trained(method: Method, backward: Backward) -> list[Tensor]:
    return Training(method, network).train(backward, three_a_time)


def batch_at(index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, targets, and which targets are labels: in some parts, none is for some task.

    At one step a task has none in the whole batch, and at another no task has any.
    """
    generator = torch.Generator().manual_seed(index)
    features = torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64)
    labelled = torch.rand(SAMPLES, TASKS, generator=generator) < 0.4
    labelled[:, 1] &= index != 2
    labelled &= index != 4
    return features, features[:, :TASKS].cumsum(1) * torch.tensor([0.3, 1.0, 3.0]), labelled


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


# Gradient accumulation.


def in_one_call(training: Training, index: int) -> Callable[[], Tensor]:
    """Each loss is the mean over the samples with a label, nan over none."""
    features, targets, labelled = batch_at(index)

    def losses_of() -> Tensor:
        errors = torch.where(labelled, training.model(features) - targets, 0.0).square().sum(0)
        return torch.where(labelled.any(0), errors / labelled.sum(0).clamp(min=1), torch.nan)

    training.scalarizer(losses_of(), labelled.any(0)).backward()
    return losses_of


def in_parts(training: Training, index: int, function: str) -> Callable[[], Tensor]:
    scope = recipe(function)
    scope["model"] = training.model
    parts = list(zip(*(tensor.split(PARTS) for tensor in batch_at(index)), strict=True))
    scope[function](training.scalarizer, parts)
    return lambda: scope["mean_losses"](parts)


def linear(method: Method) -> bool:
    """Whether the weights are the same for all losses, and in all calls of a step."""
    if method.draws:
        return False
    first = torch.ones(TASKS), None
    weights = [method.functional([first, (row, None)])[1][1] for row in torch.eye(TASKS) + 1]
    return all(torch.equal(weight, weights[0]) for weight in weights)


@each_method
def test_a_scalarizer_says_whether_it_is_linear(method: Method) -> None:
    assert method.make(TASKS).linear == linear(method)


@pytest.mark.parametrize("method", [*filter(linear, METHODS)], ids=str)
def test_parts_equal_the_whole_batch(method: Method) -> None:
    found = trained(method, partial(in_parts, function="backward_in_parts"))
    assert_same(found, trained(method, in_one_call))


@each_method
def test_parts_in_two_passes_equal_the_whole_batch(method: Method) -> None:
    found = trained(method, partial(in_parts, function="backward_in_two_passes"))
    assert_same(found, trained(method, in_one_call))


# Several closures in a step, and a second point.


def losses_at(training: Training, index: int) -> Callable[[], Tensor]:
    features, targets, _ = batch_at(index)
    return lambda: (training.model(features) - targets).square().mean(0)


def plain(training: Training, index: int) -> Callable[[], Tensor]:
    losses_of = losses_at(training, index)
    training.scalarizer(losses_of()).backward()
    return losses_of


def uphill(training: Training, index: int, rho: float = 0.0) -> Callable[[], Tensor]:
    losses_of = losses_at(training, index)
    function = recipe("backward_uphill")["backward_uphill"]
    function(training.scalarizer, training.model, losses_of, rho)
    return losses_of


def lbfgs(*modules: nn.Module) -> torch.optim.Optimizer:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe")


def closures(training: Training, index: int, make: Any = None) -> Callable[[], Tensor]:
    """By a second optimizer, which has the model alone."""
    if index == 0:
        training.second = (make or training.adam)(training.model)
    losses_of = losses_at(training, index)
    function = recipe("step_with_closures")["step_with_closures"]
    function(training.scalarizer, training.second, losses_of)
    training.model.zero_grad()  # nothing is left for the first one
    return losses_of


@pytest.mark.parametrize("way", [uphill, closures], ids=["SAM at no distance", "one closure"])
@each_method
def test_the_simplest_case_is_the_plain_training(method: Method, way: Any) -> None:
    assert_same(trained(method, way), trained(method, plain))


@pytest.mark.parametrize(
    "way", [partial(uphill, rho=0.1), partial(closures, make=lbfgs)], ids=["SAM", "LBFGS"]
)
@each_method
def test_the_scalarizer_is_called_once_a_step(method: Method, way: Any) -> None:
    training, calls = Training(method, network), []
    before = losses_at(training, 0)().sum().detach()
    training.scalarizer.register_forward_hook(lambda *call: calls.append(call))
    training.train(way, three_a_time)
    assert len(calls) == 3 * EPOCHS
    # With its weights of the first point, a maximum may lift the others in a line search.
    assert method.is_maximum or losses_at(training, 0)().sum() < before


@pytest.mark.filterwarnings("ignore:FAMO learned nothing")
@pytest.mark.parametrize("method", STATEFUL, ids=str)
def test_in_every_closure_all_but_the_learned_methods_learn_too_often(method: Method) -> None:
    once, often = Training(method, network), Training(method, network)
    closures(once, 0, lbfgs)
    optimizer, totals = lbfgs(often.model, often.scalarizer), []

    def closure() -> Tensor:
        optimizer.zero_grad()
        totals.append(often.scalarizer(losses_at(often, 0)()))
        totals[-1].backward()
        return totals[-1]

    optimizer.step(closure)
    if method.parameters:
        assert totals[-1] < totals[0]
    else:
        states = [training.scalarizer.state_dict().values() for training in (once, often)]
        assert not all(map(torch.equal, *states))


# A loss at its bound.


def test_a_hinge_loss_at_its_bound_stops_the_regression_beside_it() -> None:
    """The ends of the table in the guide."""
    train = recipe("train_beside_a_hinge")["train_beside_a_hinge"]
    losses, weights = train(FAMO(2))
    assert losses[0] == 0
    assert losses[1] > 3
    assert weights[1] < 1e-7
    losses, weights = train(FAMO(2, min_losses=torch.tensor([-0.1, 0.0])))
    assert losses.max() < 0.02
    assert weights[1] > 0.5


# Ranks.


class Heads(nn.Module):
    """A head for each task. The head of a task that is not asked for does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in NAMES})

    def forward(self, features: Tensor, targets: Tensor, names: list[str]) -> dict[str, Tensor]:
        columns = {name: targets[:, [NAMES.index(name)]] for name in names}
        return {
            name: (self.heads[name](features.tanh()) - column).square().mean()
            for name, column in columns.items()
        }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with closing(Ranks(2, tmp_path_factory.mktemp("stores"))) as ranks:
        yield ranks


def share_at(index: int, rank: int, lacking: bool) -> tuple[Tensor, Tensor, list[str]]:
    """A rank's half of a batch, and the tasks that it has: all, or all but one of four."""
    halves = [tensor.chunk(2)[rank] for tensor in batch_at(index)[:2]]
    return *halves, [name for i, name in enumerate(NAMES) if not lacking or i != (index + rank) % 4]


def by_hand(training: Training, index: int, lacking: bool) -> Callable[[], Any]:
    """One process: each loss is the mean over the ranks that have it."""

    def losses_of() -> Any:
        both = [training.model(*share_at(index, rank, lacking)) for rank in range(2)]
        owned = {name: [own[name] for own in both if name in own] for name in NAMES}
        return torch.stack([torch.stack(losses).mean() for losses in owned.values()])

    training.scalarizer(losses_of()).backward()
    return losses_of


def on_a_rank(training: Training, index: int, lacking: bool) -> Callable[[], Any]:
    def losses_of() -> Any:
        losses = training.parallel(*share_at(index, dist.get_rank(), lacking))
        return losses if lacking else torch.stack(list(losses.values()))

    training.scalarizer(losses_of()).backward()
    return losses_of


def train_on_a_rank(name: str, way: str, lacking: bool) -> list[Tensor]:
    """On a shard of 5 batches, or of 4."""
    (method,) = [method for method in METHODS if method.name == name]
    mesh = init_device_mesh("cpu", (2,))

    def model() -> nn.Module:
        return Heads() if way == "DDP" else fully_shard(Heads(), mesh=mesh)

    training = Training(method, model, process_group=mesh.get_group())
    training.parallel = training.model
    if way == "DDP":
        training.parallel = DistributedDataParallel(training.model, find_unused_parameters=lacking)
    shard = range(5 - dist.get_rank())
    batches = recipe("as_many_on_every_rank")["as_many_on_every_rank"]
    return training.train(partial(on_a_rank, lacking=lacking), lambda epoch: batches(shard))


@pytest.mark.parametrize("way", ["DDP", "FSDP"])
@each_method
def test_shards_of_unequal_size_equal_one_process(method: Method, way: str, ranks: Ranks) -> None:
    expected = Training(method, Heads).train(partial(by_hand, lacking=False), lambda _: range(4))
    for state in ranks.run(train_on_a_rank, method.name, way, False, ranks=2):
        assert_same(state, expected)


@pytest.mark.parametrize("method", NAMED, ids=str)
def test_heads_that_some_ranks_do_not_run_equal_one_process(method: Method, ranks: Ranks) -> None:
    expected = Training(method, Heads).train(partial(by_hand, lacking=True), lambda _: range(4))
    for state in ranks.run(train_on_a_rank, method.name, "DDP", True, ranks=2):
        assert_same(state, expected)
