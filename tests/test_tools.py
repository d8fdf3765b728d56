"""Tools that reach a scalarizer's state without asking it: it stays right, or an error says so."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from methods import EPOCH, METHODS, NAMED, STATEFUL, Method, seeded
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mtl_scalarize import DWA, History, LogSum, Scalarizer

NAMES = ("depth", "normals", "edges")
TASKS = len(NAMES)
State = dict[str, Tensor]

each_method = pytest.mark.parametrize("method", METHODS, ids=str)
each_with_shape = pytest.mark.parametrize("method", NAMED, ids=str)


class Network:
    """What a model of any framework has in common: a network and a scalarizer of its losses."""

    def add(self, scalarizer: nn.Module) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Linear(2, TASKS)
        self.scalarizer = scalarizer

    def losses(self, features: Tensor) -> Tensor:
        return (self.net(features) - 3.1).square().mean(0)

    def forward(self, features: Tensor) -> Tensor:
        return self.scalarizer(self.losses(features))


class Model(Network, nn.Module):
    def __init__(self, scalarizer: Scalarizer) -> None:
        super().__init__()
        self.add(scalarizer)


def model_of(method: Method, shape: Any = TASKS) -> Model:
    return Model(method.make(shape))


def train(model: Any, then: Callable[[Any], None] = lambda model: None) -> State:
    """Train for two epochs and a half; what that leaves behind, and the scalars on the way."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scalars = []
    for index in range(2 * EPOCH + 1):
        features = torch.randn(8, 2, generator=torch.Generator().manual_seed(index))
        optimizer.zero_grad()
        torch.manual_seed(index)  # for methods that draw
        scalars.append(model(features))
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
    return {name: tensor.detach().clone() for name, tensor in tensors}


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)


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
    method: Method, resume: Callable[[nn.Module, nn.Module], None]
) -> None:
    source, turned, later = (model_of(method, names) for names in (NAMES, NAMES[::-1], NAMES[::-1]))
    train(source)
    for first, second in ((source, turned), (source, turned), (turned, later)):
        resume(first, second)
        assert_same(state_of(second), state_of(source))
        assert second.scalarizer.names == NAMES[::-1]


@alone
def test_dcp_does_not_pass_over_a_state_without_shape() -> None:
    source = Model(DWA())
    train(source)
    with pytest.raises(dcp.api.CheckpointException, match="Size mismatch"):
        by_dcp(source, Model(DWA()))


# Memory that nobody has written.


@pytest.mark.parametrize("built_on", ["meta", "cpu"])
@each_method
def test_a_model_from_the_meta_device_is_new(method: Method, built_on: str) -> None:
    with torch.device(built_on):
        scalarizer = method.make(TASKS).to("meta")
    scalarizer.to_empty(device="cpu")
    for tensor in itertools.chain(scalarizer.parameters(), scalarizer.buffers()):
        tensor.data.fill_(7)
    scalarizer.reset()
    new = method.make(TASKS)
    assert_same(state_of(scalarizer), state_of(new))
    assert_same(train(Model(scalarizer)), train(Model(new)))


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
@each_with_shape
def test_from_pretrained(method: Method, saved: bool, tmp_path: Path) -> None:
    """The scalarizer is the one that was saved, or else a new one."""
    cls = pretrained(method.make if saved else lambda tasks: nn.Identity())
    source = cls(cls.config_class())
    if saved:
        train(source)
    source.save_pretrained(tmp_path)
    loaded = pretrained(method.make).from_pretrained(tmp_path, local_files_only=True).train()
    expected = source.scalarizer if saved else method.make(TASKS)
    assert_same(state_of(loaded.scalarizer), state_of(expected))
    losses = torch.ones(TASKS, requires_grad=True)
    assert_same(seeded(loaded.scalarizer, losses), seeded(expected, losses))


# Averages over a training.


@pytest.mark.parametrize("decay", [0.9, 0.9999])
@each_with_shape
def test_an_averaged_state_loads_and_trains_on(method: Method, decay: float) -> None:
    model, resumed = model_of(method), model_of(method)
    average = AveragedModel(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(decay))
    train(model, then=average.update_parameters)
    resumed.load_state_dict(average.module.state_dict())
    assert_trains_on(resumed)


@pytest.mark.filterwarnings("ignore")  # Lightning has many of its own
@pytest.mark.parametrize("decay", [0.9, 0.9999])
@each_with_shape
def test_an_average_by_lightning_trains_on(method: Method, decay: float, tmp_path: Path) -> None:
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
    module.add(method.make(TASKS))
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


# What is not asked.


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("method", [row for row in STATEFUL if not row.lazy], ids=str)
def test_a_state_assigned_in_half_precision_is_refused(method: Method, called: bool) -> None:
    scalarizer = method.make(TASKS)
    if called:
        scalarizer(torch.ones(TASKS))
    state = {
        k: v.half() if v.is_floating_point() else v for k, v in scalarizer.state_dict().items()
    }
    scalarizer.load_state_dict(state, assign=True)
    generator = torch.get_rng_state()
    for call in (scalarizer, scalarizer.update) if method.updates else (scalarizer,):
        with pytest.raises(ValueError, match=r"at least float32\. Found .*torch\.float16"):
            call(torch.ones(TASKS))
    assert torch.equal(torch.get_rng_state(), generator)
    torch.testing.assert_close(dict(scalarizer.state_dict()), state, rtol=0, atol=0)


def test_a_hyperparameter_moved_in_inference_mode_can_be_trained_with() -> None:
    scalarizer = LogSum(torch.zeros(TASKS))
    with torch.inference_mode():
        scalarizer(torch.ones(TASKS, device="meta"))
    assert scalarizer.min_losses.is_meta
    assert not scalarizer.min_losses.is_inference()


@each_method
def test_inference_mode_may_come_first(method: Method) -> None:
    model, plain, resumed = (model_of(method) for _ in range(3))
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
