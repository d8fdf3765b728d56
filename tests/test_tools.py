"""Tools that reach a scalarizer's state without asking it: it stays right, or an error says so."""

import inspect
import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import methods
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import Failed, Ranks
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from mtl_scalarize import DWA, History, Scalarizer

#: By name, which can be sent to a rank; the functions of a row cannot.
METHODS = {method.name: method for method in methods.METHODS}
NAMES = ("depth", "normals", "edges")
TASKS = len(NAMES)
EPOCH = 3
State = dict[str, Tensor]
Start = float | Tensor | None

each_method = pytest.mark.parametrize("name", METHODS)
each_with_shape = pytest.mark.parametrize("name", [n for n, row in METHODS.items() if not row.lazy])
#: What a state starts from, or what bounds a loss: the default, a number, a tensor.
each_start = pytest.mark.parametrize("start", [None, 0.5, torch.tensor([0.1, 0.2, 0.3])], ids=str)


def starting(name: str, start: Start) -> Callable[..., Scalarizer]:
    """Makes a scalarizer with this `init` or `min_losses`, if it takes one."""
    make = METHODS[name].make
    options = {"init", "min_losses"} & inspect.signature(make).parameters.keys()
    return partial(make, **{} if start is None else dict.fromkeys(options, start))


class Network:
    """What a model of any framework has in common: a network and a scalarizer of its losses."""

    def add(self, scalarizer: nn.Module) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Linear(2, TASKS)
        self.scalarizer = scalarizer

    def losses(self, features: Tensor) -> Tensor:
        return (self.net(features).float() - 3.1).square().mean(0)

    def forward(self, features: Tensor) -> Tensor:
        return self.scalarizer(self.losses(features))


class Model(Network, nn.Module):
    def __init__(self, scalarizer: Scalarizer) -> None:
        super().__init__()
        self.add(scalarizer)


def model_of(name: str, shape: Any = TASKS, **options: Any) -> Model:
    return Model(METHODS[name].make(shape, **options))


def train(
    model: Any,
    call: Callable[[Tensor], Tensor] | None = None,
    then: Callable[[Any], None] = lambda model: None,
) -> State:
    """Train for two epochs and a half; what that leaves behind, and the scalars on the way."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scalars = []
    for index in range(2 * EPOCH + 1):
        features = torch.randn(8, 2, generator=torch.Generator().manual_seed(index))
        optimizer.zero_grad()
        torch.manual_seed(index)  # for methods that draw
        scalars.append((call or model)(features.requires_grad_()))
        scalars[-1].backward()
        optimizer.step()
        model.scalarizer.update(partial(model.losses, features))
        if index % EPOCH == EPOCH - 1:
            model.scalarizer.step()
        then(model)
    return state_of(model) | {"scalars": torch.stack(scalars).detach()}


def state_of(module: nn.Module) -> State:
    """All that is in its memory, also where no checkpoint has it."""
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    return {name: getattr(t.detach(), "full_tensor", t.detach().clone)() for name, t in tensors}


def assert_same(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_trains_on(model: Model) -> None:
    assert train(model)["scalars"].isfinite().all()
    with torch.no_grad():
        model(torch.ones(4, 2))
    assert model.scalarizer.weights.isfinite().all()


# Checkpoints.


def by_dcp(source: nn.Module, target: nn.Module) -> None:
    """It writes into the tensors of the target's state_dict, and asks that for what to load."""
    state = {"model": target.state_dict()}
    with TemporaryDirectory() as folder:
        dcp.save({"model": source.state_dict()}, checkpoint_id=folder)
        dcp.load(state, checkpoint_id=folder)
    target.load_state_dict(state["model"])


def by_safetensors(source: nn.Module, target: nn.Module) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    target.load_state_dict(safetensors.load(safetensors.save(source.state_dict())))


alone = pytest.mark.filterwarnings("ignore:torch.distributed is")  # DCP's remark on one process


@alone
@pytest.mark.parametrize("resume", [by_dcp, by_safetensors])
@each_with_shape
def test_without_metadata_position_counts_every_time(
    name: str, resume: Callable[[nn.Module, nn.Module], None]
) -> None:
    source, turned, later = (model_of(name, names) for names in (NAMES, NAMES[::-1], NAMES[::-1]))
    train(source)
    for first, second in ((source, turned), (source, turned), (turned, later)):
        resume(first, second)
        assert_same(state_of(second), state_of(source))
        assert second.scalarizer.names == NAMES[::-1]


@each_with_shape
def test_torch_save_keeps_the_metadata_that_refuses_another_order(name: str) -> None:
    file = io.BytesIO()
    torch.save(model_of(name, NAMES).state_dict(), file)
    file.seek(0)
    with pytest.raises(ValueError, match="in this order"):
        model_of(name, NAMES[::-1]).load_state_dict(torch.load(file))


@alone
def test_dcp_does_not_pass_over_a_state_without_shape() -> None:
    source = Model(DWA())
    train(source)
    with pytest.raises(dcp.api.CheckpointException, match="Size mismatch"):
        by_dcp(source, Model(DWA()))


# Memory that nobody has written.


@pytest.mark.parametrize("reset", ["reset", "reset_parameters"])
@pytest.mark.parametrize("built_on", ["meta", "cpu"])
@each_start
@each_method
def test_a_model_from_the_meta_device_is_new(
    name: str, start: Start, built_on: str, reset: str
) -> None:
    with torch.device(built_on):
        scalarizer = starting(name, start)(TASKS).to("meta")
    scalarizer.to_empty(device="cpu")
    for tensor in itertools.chain(scalarizer.parameters(), scalarizer.buffers()):
        tensor.data.fill_(7)
    getattr(scalarizer, reset)()
    new = starting(name, start)(TASKS)
    assert_same(state_of(scalarizer), state_of(new))
    assert_same(train(Model(scalarizer)), train(Model(new)))


@pytest.mark.parametrize("name", ["UW", "IMTLL", "FAMO"])
def test_a_tensor_that_was_made_on_the_meta_device_has_no_values(name: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=r"`(init|min_losses)` should have"):
        starting(name, torch.ones(TASKS))(TASKS)


def pretrained(make: Callable[[int], nn.Module]) -> type[Any]:
    """A class of models as `transformers` saves and loads them."""
    transformers = pytest.importorskip("transformers")

    class Pretrained(Network, transformers.PreTrainedModel):
        config_class = transformers.PretrainedConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.add(make(TASKS))
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, Scalarizer):
                module.reset()

    return Pretrained


@pytest.mark.parametrize("saved", [True, False], ids=["in the checkpoint", "not in it"])
@each_start
@each_with_shape
def test_from_pretrained(name: str, start: Start, saved: bool, tmp_path: Path) -> None:
    """The scalarizer is the one that was saved, or else a new one."""
    make = starting(name, start)
    cls = pretrained(make if saved else lambda tasks: nn.Identity())
    source = cls(cls.config_class())
    if saved:
        train(source)
    source.save_pretrained(tmp_path)
    loaded = pretrained(make).from_pretrained(tmp_path, local_files_only=True).train()
    expected = source.scalarizer if saved else make(TASKS)
    assert_same(state_of(loaded.scalarizer), state_of(expected))
    losses = torch.ones(TASKS, requires_grad=True)
    assert_same(methods.seeded(loaded.scalarizer, losses), methods.seeded(expected, losses))


# Averages over a training.


@pytest.mark.parametrize("decay", [0.9, 0.9999])
@each_with_shape
def test_an_averaged_state_loads_and_trains_on(name: str, decay: float) -> None:
    model, resumed = model_of(name), model_of(name)
    average = AveragedModel(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(decay))
    train(model, then=average.update_parameters)
    resumed.load_state_dict(average.module.state_dict())
    assert_trains_on(resumed)


@pytest.mark.filterwarnings("ignore")  # Lightning has many of its own
@pytest.mark.parametrize("decay", [0.9, 0.9999])
@each_with_shape
def test_an_average_by_lightning_trains_on(name: str, decay: float, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Module(Network, lightning.LightningModule):
        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self(batch)

        def on_train_batch_end(self, outputs: Any, batch: Tensor, index: int) -> None:
            self.scalarizer.update(lambda: self.losses(batch))

        def on_train_epoch_end(self) -> None:
            self.scalarizer.step()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[EMAWeightAveraging(decay=decay)],
        **dict.fromkeys(quiet, False),
    )
    batches = torch.utils.data.DataLoader(torch.randn(24, 2), batch_size=8)
    module = Module()
    module.add(METHODS[name].make(TASKS))
    trainer.fit(module, batches)  # which ends with the average in the module
    assert_trains_on(module.train())


@pytest.mark.parametrize("position", [0, 1], ids=["before a layer", "behind it"])
def test_an_average_refuses_a_state_without_shape(position: int) -> None:
    """Otherwise torch would pair it with the buffers of another layer, or pass over it."""
    layers = nn.ModuleList([nn.BatchNorm1d(TASKS)])
    layers.insert(position, DWA())
    average = AveragedModel(layers, use_buffers=True)
    layers[position](torch.ones(TASKS, requires_grad=True))
    with pytest.raises(RuntimeError, match=r"size of tensor a \(0\)"):
        average.update_parameters(layers)


# Precision from outside.


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with closing(Ranks(2, tmp_path_factory.mktemp("stores"))) as ranks:
        yield ranks


@each_with_shape
def test_assigned_half_precision_is_widened(name: str) -> None:
    source, target = METHODS[name].make(TASKS), METHODS[name].make(TASKS)
    train(Model(source))

    def cast(state: State, dtype: torch.dtype) -> State:
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}

    half = cast(source.state_dict(), torch.float16)
    target.load_state_dict(half, assign=True)
    assert_same(dict(target.state_dict()), cast(half, torch.float32))
    assert_trains_on(Model(target))


def first_steps(model: Model, call: Callable[[Tensor], Tensor]) -> State:
    for _ in range(EPOCH):
        call(torch.ones(4, 2)).backward()
        model.scalarizer.update(torch.arange(1.0, TASKS + 1))
    return state_of(model.scalarizer)


def train_in_fsdp1(name: str, ignored: bool, **dtypes: torch.dtype) -> State:
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision

    model = model_of(name, process_group=dist.group.WORLD)
    wrapped = FullyShardedDataParallel(
        model,
        mixed_precision=MixedPrecision(**dtypes),
        ignored_modules=[model.scalarizer] if ignored else [],
        device_id=torch.device("cpu"),
        use_orig_params=True,
    )
    return first_steps(model, wrapped)


@pytest.mark.parametrize("name", [row.name for row in methods.STATEFUL if not row.lazy])
def test_fsdp1_in_half_precision_is_refused_by_name(name: str, ranks: Ranks) -> None:
    dtypes = {"param_dtype": torch.bfloat16, "buffer_dtype": torch.bfloat16}
    for outcome in ranks.outcomes(partial(train_in_fsdp1, **dtypes), name, False, ranks=2):
        assert isinstance(outcome, Failed)
        complaint = outcome.reason.splitlines()[-1]
        assert any(f"`{key}.dtype = torch.bfloat16`" in complaint for key in METHODS[name].keys)
        assert "keep the scalarizer outside of the module that is wrapped" in complaint


@each_with_shape
def test_what_fsdp1_ignores_stays_as_it_is(name: str, ranks: Ranks) -> None:
    """Only the buffers of the model around it are cast: its training is that without FSDP."""
    job = partial(train_in_fsdp1, buffer_dtype=torch.bfloat16)
    expected = first_steps(model := model_of(name), model)
    for state in ranks.run(job, name, True, ranks=2):
        assert_same(state, expected, tolerance=1e-6)


# FSDP2.


def sharded(model: Model, **options: Any) -> Model:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), **options)
    register_fsdp_forward_method(model, "losses")  # for FAMO's second forward pass
    return model


def load_own_state_in_fsdp2(name: str) -> list[State]:
    """That of a training, of another model that has loaded it, and of itself after a load."""
    model, other = (sharded(model_of(name, NAMES, process_group=dist.group.WORLD)) for _ in "ab")
    states = [train(model)]
    other.load_state_dict(model.state_dict())
    model.scalarizer.load_state_dict(model.scalarizer.state_dict())
    return [*states, state_of(other), state_of(model)]


@each_with_shape
def test_with_names_it_loads_its_own_state_in_fsdp2(name: str, ranks: Ranks) -> None:
    for trained, other, own in ranks.run(load_own_state_in_fsdp2, name, ranks=2):
        del trained["scalars"]
        assert_same(other, trained)
        assert_same(own, trained)


def reset_in_fsdp2(name: str, start: Start, device: str) -> State:
    with torch.device(device):
        model = sharded(Model(starting(name, start)(TASKS)))
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    model.scalarizer.reset()
    return state_of(model.scalarizer)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@each_start
@each_with_shape
def test_reset_in_fsdp2(name: str, start: Start, device: str, ranks: Ranks) -> None:
    for state in ranks.run(reset_in_fsdp2, name, start, device, ranks=2):
        assert_same(state, state_of(starting(name, start)(TASKS)))


def clip_gradients(name: str, in_fsdp2: bool) -> list[Tensor]:
    """Their norm before, and what they are afterwards."""
    model = sharded(model_of(name, process_group=dist.group.WORLD)) if in_fsdp2 else model_of(name)
    torch.manual_seed(0)  # for methods that draw
    model(torch.ones(4, 2)).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    gradients = [norm, *[parameter.grad for parameter in model.parameters()]]
    return [getattr(tensor, "full_tensor", tensor.clone)() for tensor in gradients]


@each_with_shape
def test_clip_grad_norm_in_fsdp2_is_that_of_one_process(name: str, ranks: Ranks) -> None:
    expected = clip_gradients(name, False)
    assert expected[0] > 1
    for found in ranks.run(clip_gradients, name, True, ranks=2):
        assert_same(found, expected, tolerance=1e-5)


def stand_still_in_fsdp2(name: str, own: bool) -> State:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = model_of(name, process_group=dist.group.WORLD)
    if own:
        fully_shard(model.scalarizer, mp_policy=policy)
    sharded(model, mp_policy=policy)
    features = torch.tensor([[0.3, 0.7]])
    for _ in range(3):
        model(features)
        model.scalarizer.update(lambda: model.losses(features))
    return state_of(model.scalarizer)


@pytest.mark.parametrize("own", [False, True], ids=["inside the root", "sharded itself"])
@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if "logits" in row.keys])
def test_in_fsdp2_unchanged_losses_are_no_change(name: str, own: bool, ranks: Ranks) -> None:
    """FSDP rounds the losses of a call, and not those of an update."""
    for state in ranks.run(stand_still_in_fsdp2, name, own, ranks=2):
        assert (state["updates"] > 0).all()
        assert state["logits"].tolist() == [0.0] * TASKS


# Calls that are not ordinary ones.


@each_method
def test_inference_mode_may_come_first(name: str) -> None:
    model, plain, resumed = (model_of(name) for _ in range(3))
    history = History(model.scalarizer)

    def record(model: Model) -> None:
        losses = model.losses(torch.ones(4, 2))
        model.scalarizer(losses)
        history.record(losses)

    with torch.inference_mode():
        record(model)
    assert_same(train(model), train(plain))
    with torch.inference_mode():
        resumed.load_state_dict(model.state_dict())
    assert_same(train(resumed), train(plain))
    record(model)
    assert len(history) == 2


@pytest.mark.parametrize("reentrant", [False, True])
@each_method
def test_activation_checkpointing_learns_once(name: str, reentrant: bool) -> None:
    """The backward pass makes the call again; `use_reentrant` makes it without gradients first."""
    model, plain = model_of(name), model_of(name)
    train(model, partial(checkpoint, model, use_reentrant=reentrant))
    train(plain)
    assert_same(state_of(model), state_of(plain))
