"""Training in a framework is training in a plain loop: what it ends with, and after a restart."""

import csv
import gc
import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import methods
import pytest
import torch
import torch.distributed as dist
from functions import DEVICES, synchronization_forbidden
from ranks import Ranks
from test_docs import BLOCKS, run
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from mtl_scalarize import DWA, FAMO, UW, Constant, History, LogSum, Scalarizer, Sum

lightning = pytest.importorskip("lightning")
transformers = pytest.importorskip("transformers")

from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from lightning.pytorch.callbacks import (  # noqa: E402
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from lightning.pytorch.tuner import Tuner  # noqa: E402

from mtl_scalarize.integrations.lightning import MultiTaskModule  # noqa: E402
from mtl_scalarize.integrations.transformers import MultiTaskTrainer  # noqa: E402

NAMES = ("depth", "normals", "edges")
EPOCHS, STEPS, BATCH = 3, 4, 12
EVERY = 3  # steps from one of FAMO's second looks to the next
#: By name, which can be sent to a rank; the functions of a row cannot.
METHODS = {method.name: method for method in methods.METHODS}
#: Those of which a batch may be given in parts.
IN_PARTS = [n for n, row in METHODS.items() if row.make(NAMES).weights_depend_on != "losses"]

Batch = dict[str, Tensor]
State = dict[str, Tensor]

pytestmark = [
    pytest.mark.usefixtures("no_accelerator_left"),
    # Lightning's own code uses torch's deprecated LeafSpec.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
each_method = pytest.mark.parametrize("name", METHODS)
each_with_state = pytest.mark.parametrize("name", [row.name for row in methods.STATEFUL])


class Samples(Dataset[Batch]):
    def __init__(self, size: int = BATCH * STEPS) -> None:
        generator = torch.Generator().manual_seed(0)
        self.features = torch.randn(size, 4, generator=generator)
        self.labels = self.features[:, :3].cumsum(1) * torch.tensor([0.3, 1.0, 3.0])

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int | slice) -> Batch:
        return {"features": self.features[index], "labels": self.labels[index]}


class Stream(IterableDataset[Batch]):
    """Nobody can tell its length."""

    def __iter__(self) -> Iterator[Batch]:
        return map(Samples().__getitem__, range(BATCH * STEPS))


class Network(nn.Module):
    """In evaluation its losses are others. What it and the scalarizer draw is always the same."""

    seeds = True

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Any]:
        if self.seeds:
            torch.manual_seed(0)
        outputs = self.layers(features) * (1.0 if self.training else 0.5)
        return {"losses": (outputs - labels).square().mean(0), "logits": outputs}


class LacksTasks(Network):
    """A task without labels is not among the losses.

    It takes options. The Trainer would pass the number of labels, and leave the division to it.
    """

    def forward(self, features: Tensor, labels: Tensor, **options: Any) -> dict[str, Any]:
        errors = torch.where(labels.isnan(), 0.0, self.layers(features) - labels.nan_to_num())
        samples = (~labels.isnan()).sum(0)
        means = zip(NAMES, errors.square().sum(0) / samples, samples, strict=True)
        return {"losses": {name: loss for name, loss, number in means if number}}


class Counts(Network):
    """Means over the labels, which not every sample has, and how many they are."""

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Any]:
        torch.manual_seed(0)
        errors = torch.where(labels.isnan(), 0.0, self.layers(features) - labels.nan_to_num())
        number = (~labels.isnan()).sum(0)
        losses = errors.square().sum(0) / number
        return {"losses": (losses, number > 0, number)}


class WithoutLosses(Network):
    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Any]:
        return {"logits": self.layers(features)}


class ReturnsTuple(Network):
    def forward(self, features: Tensor, labels: Tensor) -> Any:
        return tuple(super().forward(features, labels).values())


def scalarizer_of(name: str) -> Scalarizer:
    return METHODS[name].make(NAMES)


def optimizer_of(network: nn.Module, scalarizer: nn.Module, lr: float) -> torch.optim.Optimizer:
    learned = {"params": scalarizer.parameters(), "lr": 2 * lr}
    return torch.optim.AdamW([{"params": network.parameters()}, learned], lr, weight_decay=0.0)


def state_of(network: nn.Module, scalarizer: nn.Module) -> State:
    return {**network.state_dict(), **scalarizer.state_dict()}


def assert_same(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def by_hand(name: str, max_norm: float = torch.inf, every: int = EVERY) -> State:
    network, scalarizer = Network(), scalarizer_of(name)
    optimizer = optimizer_of(network, scalarizer, lr=0.01)
    for epoch in range(EPOCHS):
        for index, batch in enumerate(DataLoader(Samples(), BATCH), start=epoch * STEPS):
            optimizer.zero_grad()
            scalarizer(network(**batch)["losses"]).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
            optimizer.step()
            if index % every == 0:
                scalarizer.update(lambda batch=batch: network(**batch)["losses"])
        scalarizer.step()
    return state_of(network, scalarizer)


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> Iterator[None]:
    """Accelerate collects garbage in every training: not among all that was imported, please."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with closing(Ranks(2, tmp_path_factory.mktemp("stores"))) as ranks:
        yield ranks


def as_torchrun_does() -> None:
    rank, size = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0"}
    os.environ |= {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


# Hugging Face.


def make_trainer(
    scalarizer: Scalarizer,
    folder: Path,
    model: nn.Module | None = None,
    data: Dataset[Batch] | None = None,
    optimizers: tuple[Any, Any] = (None, None),
    compute_loss_func: Any = None,
    update_every: int = EVERY,
    history: History | None = None,
    **options: Any,
) -> MultiTaskTrainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = {
        "per_device_train_batch_size": BATCH,
        "train_sampling_strategy": "sequential",
        "num_train_epochs": EPOCHS,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.1,
        "optim": "adamw_torch",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    settings |= options
    return MultiTaskTrainer(
        Network() if model is None else model,
        transformers.TrainingArguments(str(folder), **settings),
        train_dataset=Samples() if data is None else data,
        compute_loss_func=compute_loss_func,
        optimizers=optimizers,
        scalarizer=scalarizer,
        scalarizer_lr=2 * settings["learning_rate"],
        update_every=update_every,
        history=history,
    )


def by_trainer(
    name: str, folder: Path, data: Any = None, resume: str | None = None, **options: Any
) -> State:
    trainer = make_trainer(scalarizer_of(name), folder, data=data, **options)
    trainer.train(resume_from_checkpoint=None if resume is None else str(folder / resume))
    return state_of(trainer.model, trainer.scalarizer)


@each_method
def test_the_trainer_takes_the_steps_of_a_plain_loop(name: str, tmp_path: Path) -> None:
    assert_same(by_trainer(name, tmp_path), by_hand(name, max_norm=0.1))


def test_the_end_of_a_stream_is_the_end_of_an_epoch(tmp_path: Path) -> None:
    found = by_trainer("DWA", tmp_path, data=Stream(), max_steps=EPOCHS * STEPS)
    expected = by_hand("DWA", max_norm=0.1)
    # The last one is not closed: the training ends before.
    assert_same(
        *({key: state[key] for key in Network().state_dict()} for state in (found, expected))
    )


@each_method
def test_the_trainer_in_parts_takes_the_steps_of_the_whole_batch(name: str, tmp_path: Path) -> None:
    parts = {"per_device_train_batch_size": BATCH // 3, "gradient_accumulation_steps": 3}
    found = by_trainer(name, tmp_path, **parts)
    assert_same(found, by_hand(name, max_norm=0.1), tolerance=1e-5)


def test_parts_that_lack_tasks_take_the_steps_of_the_whole_batch(tmp_path: Path) -> None:
    """The last step of an epoch has fewer parts. Some parts lack a task, and so does a step."""
    data, found = Samples(BATCH * STEPS - 4), []
    data.labels[:4, 0] = torch.nan
    data.labels[BATCH : 2 * BATCH, 1] = torch.nan
    for parts in (1, 3):
        options = {"per_device_train_batch_size": BATCH // parts}
        options |= {"gradient_accumulation_steps": parts}
        trainer = make_trainer(FAMO(NAMES), tmp_path, LacksTasks(), data, **options)
        trainer.train()
        columns = ["loss", "grad_norm", *(f"loss_{name}" for name in NAMES)]
        logs = [[log[column] for column in columns] for log in trainer.state.log_history[:-1]]
        found.append((state_of(trainer.model, trainer.scalarizer), logs))
    assert_same(*found, tolerance=1e-5)


def few_labels() -> Samples:
    """So that the parts of a step have as many labels as they like, and a whole step none."""
    data = Samples()
    drawn = torch.rand(data.labels.shape, generator=torch.Generator().manual_seed(1))
    data.labels[drawn < torch.tensor([0.8, 0.4, 0.0])] = torch.nan
    data.labels[BATCH : 2 * BATCH] = torch.nan
    return data


@each_method
def test_parts_weigh_as_many_labels_as_they_have(name: str, tmp_path: Path) -> None:
    found = []
    for parts in (1, 3):
        options = {"per_device_train_batch_size": BATCH // parts}
        options |= {"gradient_accumulation_steps": parts}
        model, scalarizer = Counts(), scalarizer_of(name)
        trainer = make_trainer(scalarizer, tmp_path, model, few_labels(), **options)
        trainer.train()
        losses = [[log["loss"], log["grad_norm"]] for log in trainer.state.log_history[:-1]]
        found.append((state_of(model, scalarizer), losses))
    assert_same(*found, tolerance=1e-5)
    assert found[0][1][1][1] == 0  # of the step without labels


@pytest.mark.parametrize("step", [STEPS, STEPS + 1], ids=["end of an epoch", "within"])
@each_with_state
def test_the_trainer_resumes_bit_identically(name: str, step: int, tmp_path: Path) -> None:
    whole = by_trainer(name, tmp_path, save_strategy="steps", save_steps=1)
    assert_same(by_trainer(name, tmp_path, resume=f"checkpoint-{step}"), whole)


def test_a_training_that_ends_within_an_epoch_resumes_bit_identically(tmp_path: Path) -> None:
    by_trainer("DWA", tmp_path, max_steps=STEPS + 1, save_strategy="epoch")
    found = by_trainer("DWA", tmp_path, resume=f"checkpoint-{STEPS + 1}")
    assert_same(found, by_hand("DWA", max_norm=0.1))


def by_trainer_on_a_rank(name: str, folder: Path) -> State:
    as_torchrun_does()
    trainer = make_trainer(scalarizer_of(name), folder, per_device_train_batch_size=BATCH // 2)
    trainer.train()
    if dist.get_rank() == 0:  # evaluation makes no collective, or this one would find no other
        with torch.no_grad():
            trainer.compute_loss(trainer.model, Samples()[:])
    logs = trainer.state.log_history[0]
    logged = {name: torch.tensor(logs[f"loss_{name}"]) for name in trainer.scalarizer.names or ()}
    return state_of(trainer.model, trainer.scalarizer) | logged


@each_method
def test_the_trainer_on_two_ranks_equals_one(name: str, ranks: Ranks, tmp_path: Path) -> None:
    losses = dict(zip(NAMES, Network()(**Samples()[:BATCH])["losses"].detach(), strict=True))
    expected = by_hand(name, max_norm=0.1) | ({} if METHODS[name].lazy else losses)
    for state in ranks.run(by_trainer_on_a_rank, name, tmp_path, ranks=2):
        assert_same(state, expected, tolerance=1e-5)


def join_with_a_group_of_ones_own(folder: Path) -> bool:
    as_torchrun_does()
    group, scalarizer = dist.new_group(), FAMO(NAMES)
    scalarizer.synchronize(group)
    return make_trainer(scalarizer, folder).scalarizer._ranks.group is group


def test_a_synchronized_scalarizer_keeps_its_group(ranks: Ranks, tmp_path: Path) -> None:
    assert all(ranks.run(join_with_a_group_of_ones_own, tmp_path, ranks=2))


def test_the_trainer_looks_again_in_the_precision_of_the_call(tmp_path: Path) -> None:
    scalarizer = FAMO(NAMES, weight_decay=0.0)
    make_trainer(scalarizer, tmp_path, learning_rate=0.0, bf16=True).train()
    assert scalarizer.updates.tolist() == 3 * [EPOCHS * STEPS // EVERY]
    assert scalarizer.logits.tolist() == [0, 0, 0]


def test_the_trainer_logs_losses_and_weights_by_name(tmp_path: Path) -> None:
    trainer = make_trainer(scalarizer_of("DWA"), tmp_path)
    trainer.train()
    losses = Network()(**Samples()[:BATCH])["losses"].tolist()
    first, *_, last, _ = trainer.state.log_history
    assert [first[f"loss_{name}"] for name in NAMES] == pytest.approx(losses)
    assert [first[f"weight_{name}"] for name in NAMES] == [1, 1, 1]
    # Those of the step, after which the epoch was closed.
    weights = [last[f"weight_{name}"] for name in NAMES]
    assert weights != [1, 1, 1]
    scalar = sum(weight * last[f"loss_{name}"] for name, weight in zip(NAMES, weights, strict=True))
    assert last["loss"] == pytest.approx(scalar)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_trainer_logs_the_means_since_the_last_log(parts: int, tmp_path: Path) -> None:
    scalarizer = Constant(dict(zip(NAMES, (0.5, 1.0, 2.0), strict=True)))
    options = {"per_device_train_batch_size": BATCH // parts, "logging_steps": 3}
    history = History(scalarizer)
    options |= {"gradient_accumulation_steps": parts, "history": history}
    trainer = make_trainer(scalarizer, tmp_path, **options)
    trainer.train()
    logged = [[log[f"loss_{name}"] for name in NAMES] for log in trainer.state.log_history[:-1]]
    for log, losses in zip(trainer.state.log_history, logged, strict=False):
        assert log["loss"] == pytest.approx(torch.tensor(losses) @ scalarizer.priorities)
    recorded = history.losses.unflatten(0, (-1, 3 * parts)).mean(1)
    assert_same(torch.tensor(logged), recorded, tolerance=1e-5)


@pytest.mark.parametrize("model", [LacksTasks, Counts])
def test_evaluation_gives_each_tasks_loss_over_what_has_it(
    model: type[nn.Module], tmp_path: Path
) -> None:
    trainer = make_trainer(FAMO(NAMES), tmp_path, model(), per_device_eval_batch_size=BATCH)
    data = few_labels()
    metrics = trainer.evaluate([data[index] for index in range(BATCH * STEPS)])
    errors = (trainer.model.layers(data.features) - data.labels).square()
    if model is LacksTasks:  # it does not say how many labels a mean is over
        errors = errors.unflatten(0, (STEPS, BATCH)).nanmean(1)
    means = errors.nanmean(0).tolist()
    assert [metrics[f"eval_loss_{name}"] for name in NAMES] == pytest.approx(means, rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(sum(means), rel=1e-5)


class Plain(transformers.Trainer):
    def compute_loss(self, model: nn.Module, inputs: Batch, *_: Any, **__: Any) -> Tensor:
        return model(**inputs)["losses"].sum()


def test_going_on_from_a_plain_trainer_needs_no_state(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": STEPS}
    args = make_trainer(Sum(NAMES), tmp_path, **options).args
    Plain(Network(), args, train_dataset=Samples()).train()
    assert_same(
        by_trainer("Sum", tmp_path, resume=f"checkpoint-{STEPS}"), by_hand("Sum", max_norm=0.1)
    )
    with pytest.raises(ValueError, match=r"Found no scalarizer\.pt in it: .* load the model's wei"):
        by_trainer("DWA", tmp_path, resume=f"checkpoint-{STEPS}")


def test_the_state_is_there_before_the_folder_is_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, seen = make_trainer(FAMO(NAMES), tmp_path), []
    # In place of the Trainer's, which may push the folder, and makes none for a sharded model.
    monkeypatch.setattr(
        transformers.Trainer, "save_model", lambda _, folder: seen.append([*folder.iterdir()])
    )
    trainer.save_model(tmp_path / "new" / "folder")
    assert [path.name for path in seen[0]] == ["scalarizer.pt"]


def test_a_hidden_compute_loss_is_refused() -> None:
    with pytest.raises(TypeError, match="`Mine` hides `compute_loss` of `Plain`: override `comp"):
        type("Mine", (MultiTaskTrainer, Plain), {})


def test_learned_weights_are_refused_where_the_framework_steps_the_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in: FSDP2 cannot shard on these machines."""
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    make_trainer(FAMO(NAMES), tmp_path)
    with pytest.raises(ValueError, match="UW learns parameters of its own, which DeepSpeed and"):
        make_trainer(UW(NAMES), tmp_path)


def test_evaluation_gives_the_sum_and_changes_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(scalarizer_of("FAMO"), tmp_path)
    trainer.train()
    before = state_of(trainer.model, trainer.scalarizer)
    before = {key: value.clone() for key, value in before.items()}
    losses = trainer.model.eval()(**Samples()[:8])["losses"]
    samples = [Samples()[index] for index in range(8)]
    assert trainer.evaluate(samples)["eval_loss"] == pytest.approx(losses.sum().item())
    assert trainer.predict(samples).predictions.shape == (8, 3)
    assert_same(state_of(trainer.model, trainer.scalarizer), before)


def test_losses_are_no_predictions_where_labels_are_missing(tmp_path: Path) -> None:
    trainer = make_trainer(UW(NAMES), tmp_path, label_names=["more labels"])
    samples = [Samples()[index] for index in range(8)]
    assert trainer.predict(samples).predictions.shape == (8, 3)


def test_every_trial_of_a_search_begins_with_a_new_scalarizer(tmp_path: Path) -> None:
    trainer, states = make_trainer(scalarizer_of("FAMO"), tmp_path), []
    trainer.model_init = Network
    for _ in range(2):
        trainer.train()
        states.append(state_of(trainer.model, trainer.scalarizer))
        states[-1] = {key: value.clone() for key, value in states[-1].items()}
    assert_same(*states)


NOT_OF_UW = torch.optim.SGD(Network().parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"compute_loss_func": print}, "`compute_loss_func` and `label_smoothing_factor` have no"),
        ({"model": WithoutLosses()}, "should return a mapping with 'losses'.* Found 'logits'"),
        ({"model": ReturnsTuple()}, "should return a mapping with 'losses'.* Found a tuple"),
        ({"optimizers": (NOT_OF_UW, None)}, "`optimizers` should have `log_var` of UW"),
    ],
)
def test_the_trainer_refuses(options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        make_trainer(UW(NAMES), tmp_path, **options).train()


def test_the_trainer_refuses_a_class_as_scalarizer(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"should be a scalarizer, .* Found <class .*\.FAMO'>"):
        make_trainer(FAMO, tmp_path)


def test_the_trainer_refuses_several_gpus_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"one GPU\. Found 2: start the program by `torchrun"):
        make_trainer(UW(NAMES), tmp_path)


# Lightning.


class Module(MultiTaskModule, lightning.LightningModule):
    update_every = EVERY

    def __init__(self, scalarizer: Scalarizer, lr: float = 0.01) -> None:
        super().__init__()
        self.network, self.scalarizer, self.lr = Network(), scalarizer, lr

    def losses(self, batch: Batch) -> Tensor:
        return self.network(**batch)["losses"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self.network, self.scalarizer, self.lr)


class Takes(Module):
    """Its losses take the labels out of the batch, and log: once for each step."""

    def losses(self, batch: Batch) -> Tensor:
        self.log("steps", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
        return self.network(batch.pop("features"), batch.pop("labels"))["losses"]


class Normalised(Module):
    def __init__(self, scalarizer: Scalarizer) -> None:
        super().__init__(scalarizer)
        self.network.layers.append(nn.BatchNorm1d(3))


class ByLBFGS(Module):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=2)


class Validated(Module):
    def __init__(self, scalarizer: Scalarizer) -> None:
        super().__init__(scalarizer)
        self.network = Counts()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_losses(batch)


class Forgetful(Module):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.1)


class OwnStep(Module):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.scalarizer(self.losses(batch))


def fit(
    module: Module,
    folder: Path,
    resume: str | None = None,
    batch: int = BATCH,
    more: Sequence[Any] = (),
    **options: Any,
) -> State:
    checkpoints = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        callbacks=[checkpoints, *more],
        **{"accelerator": "cpu", "logger": False, "devices": 1, **options},
        use_distributed_sampler=False,  # it would shuffle
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data, path = Samples(), None if resume is None else str(folder / resume)
    order = DistributedSampler(data, trainer.world_size, trainer.global_rank, shuffle=False)
    trainer.fit(module, DataLoader(data, batch, sampler=order), ckpt_path=path)
    return state_of(module.network, module.scalarizer)


def by_lightning(name: str, folder: Path, update_every: int = EVERY, **options: Any) -> State:
    module = Module(scalarizer_of(name))
    module.update_every = update_every
    return fit(module, folder, **options)


@each_method
def test_lightning_takes_the_steps_of_a_plain_loop(name: str, tmp_path: Path) -> None:
    assert_same(by_lightning(name, tmp_path), by_hand(name))


@pytest.mark.parametrize("name", IN_PARTS)
def test_lightning_in_parts_takes_the_steps_of_the_whole_batch(name: str, tmp_path: Path) -> None:
    found = by_lightning(name, tmp_path, batch=BATCH // 3, accumulate_grad_batches=3)
    assert_same(found, by_hand(name), tolerance=1e-5)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - IN_PARTS))
def test_lightning_refuses_parts_of_what_needs_the_whole_batch(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`accumulate_grad_batches` should be 1 .* Found 3\."):
        by_lightning(name, tmp_path, accumulate_grad_batches=3)


@pytest.mark.filterwarnings("ignore:When using .Trainer.accumulate_grad_batches")
def test_lightning_refuses_parts_that_a_callback_begins(tmp_path: Path) -> None:
    callback = GradientAccumulationScheduler({1: 2})
    with pytest.raises(ValueError, match=r"`accumulate_grad_batches` should be 1 .* Found 2\."):
        by_lightning("LogSum", tmp_path, more=[callback])


@each_with_state
def test_lightning_resumes_bit_identically_from_the_last_step_of_an_epoch(
    name: str, tmp_path: Path
) -> None:
    whole = by_lightning(name, tmp_path)
    assert_same(by_lightning(name, tmp_path, resume=f"step={STEPS}.ckpt"), whole)


def with_logs(name: str, folder: Path, **options: Any) -> State:
    module = Module(scalarizer_of(name))
    state = fit(module, folder, **options)
    logged = module.trainer.callback_metrics
    return state | {key: value.cpu() for key, value in logged.items()}


def by_lightning_on_a_rank(name: str, folder: Path) -> State:
    as_torchrun_does()
    return with_logs(name, folder, batch=BATCH // 2, devices=2, strategy="ddp")


@each_method
def test_lightning_on_two_ranks_equals_one_process(name: str, ranks: Ranks, tmp_path: Path) -> None:
    one = with_logs(name, tmp_path)
    for state in ranks.run(by_lightning_on_a_rank, name, tmp_path, ranks=2):
        assert_same(state, one, tolerance=1e-5)


def test_lightning_looks_again_in_the_precision_of_the_call(tmp_path: Path) -> None:
    scalarizer = FAMO(NAMES, weight_decay=0.0)
    fit(Module(scalarizer, lr=0.0), tmp_path, precision="bf16-mixed")
    assert scalarizer.updates.tolist() == 3 * [EPOCHS * STEPS // EVERY]
    assert scalarizer.logits.tolist() == [0, 0, 0]


def test_lightning_logs_losses_and_weights_by_name(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(Module(scalarizer_of("Constant")), tmp_path, logger=logger, log_every_n_steps=1)
    with open(logger.experiment.metrics_file_path) as file:
        first = {name: float(text) for name, text in next(csv.DictReader(file)).items()}
    losses = Network()(**Samples()[:BATCH])["losses"].tolist()
    assert [first[f"loss/{name}"] for name in NAMES] == pytest.approx(losses)
    assert [first[f"weight/{name}"] for name in NAMES] == [0.5, 1.25, 2.0]


@each_method
def test_lightning_looks_again_at_a_whole_batch_and_logs_once(name: str, tmp_path: Path) -> None:
    module = Takes(scalarizer_of(name))
    assert_same(fit(module, tmp_path), by_hand(name))
    assert module.trainer.callback_metrics["steps"] == STEPS


@pytest.mark.parametrize("log_tasks", [True, False])
def test_a_compiled_module_is_trained_and_recorded(log_tasks: bool, tmp_path: Path) -> None:
    module = Module(FAMO(NAMES))
    module.log_tasks, module.history = log_tasks, History(module.scalarizer)
    module.network.seeds = False  # which breaks the graph
    assert_same(fit(torch.compile(module, backend="eager"), tmp_path), by_hand("FAMO"), 1e-5)
    assert len(module.history) == EPOCHS * STEPS
    found = {name for name in module.trainer.callback_metrics if name.startswith("loss/")}
    assert found == ({f"loss/{name}" for name in NAMES} if log_tasks else set())


def test_lightnings_averaging_of_weights_may_need_a_pass_for_batch_norm(tmp_path: Path) -> None:
    averaging = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1, device=None)
    module = Normalised(LogSum(shape=NAMES))
    fit(module, tmp_path, more=[averaging])
    assert module.trainer.state.finished
    assert averaging._average_model is not None


class Small(Module):
    """So that LogSum's scalar is negative."""

    def losses(self, batch: Batch) -> Tensor:
        return 1e-3 * super().losses(batch)


@pytest.mark.parametrize(("threshold", "steps"), [(4.0, 2), (None, 20)])
def test_the_search_for_a_rate_stops_at_negative_scalars_unless_told_not_to(
    threshold: float | None, steps: int, tmp_path: Path
) -> None:
    trainer = lightning.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=20,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    module, options = Small(LogSum(shape=NAMES)), {"early_stop_threshold": threshold}
    loader = DataLoader(Samples(), BATCH)
    found = Tuner(trainer).lr_find(module, loader, num_training=20, **options)
    assert len(found.results["loss"]) == steps


def test_lightning_refuses_lbfgs_for_a_method_that_learns_in_a_call(tmp_path: Path) -> None:
    fit(ByLBFGS(LogSum(shape=NAMES)), tmp_path)
    with pytest.raises(ValueError, match="should not be L-BFGS with DWA, which would learn at"):
        fit(ByLBFGS(DWA(shape=NAMES)), tmp_path)


def refused_beside_sharded_parameters(name: str) -> bool:
    as_torchrun_does()
    module = Module(scalarizer_of(name))
    fully_shard(module.network, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    module.trainer = lightning.Trainer(accelerator="cpu", logger=False)
    module.trainer.strategy.optimizers = [module.configure_optimizers()]
    try:
        module.on_fit_start()
    except ValueError as error:
        return "beside those that FSDP2 shards" in str(error)
    return False


def test_lightning_refuses_learned_weights_beside_sharded_ones(ranks: Ranks) -> None:
    assert all(ranks.run(refused_beside_sharded_parameters, "UW", ranks=2))
    assert not any(ranks.run(refused_beside_sharded_parameters, "LogSum", ranks=2))


def test_lightning_logs_each_tasks_loss_in_validation(tmp_path: Path) -> None:
    module, data = Validated(FAMO(NAMES)), few_labels()
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (metrics,) = trainer.validate(module, DataLoader(data, BATCH), verbose=False)
    means = (module.network.layers(data.features) - data.labels).square().nanmean(0).tolist()
    found = [metrics[f"val_loss/{name}"] for name in NAMES]
    assert found == pytest.approx(means, rel=1e-5)
    assert "val_loss" in metrics


def test_lightning_refuses_an_optimizer_without_the_learned_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`optimizers` should have `log_var` of UW"):
        fit(Forgetful(UW(NAMES)), tmp_path)


def test_lightning_refuses_a_training_step_that_hides_the_batch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`training_step` should call `super"):
        fit(OwnStep(FAMO(NAMES)), tmp_path)


def test_lightning_refuses_the_other_order_of_bases() -> None:
    with pytest.raises(TypeError, match="should come before `LightningModule` in `Reversed`"):
        type("Reversed", (lightning.LightningModule, MultiTaskModule), {})


# Both.

each_framework = pytest.mark.parametrize(
    ("train", "max_norm"),
    [(by_trainer, 0.1), (by_lightning, torch.inf)],
    ids=["trainer", "lightning"],
)


@pytest.mark.parametrize("every", [1, 5, MultiTaskModule.update_every])
@each_framework
def test_famo_looks_again_after_the_first_step_and_every_nth_from_there(
    train: Any, max_norm: float, every: int, tmp_path: Path
) -> None:
    found = train("FAMO", tmp_path, update_every=every)
    assert found["updates"].tolist() == 3 * [len(range(0, EPOCHS * STEPS, every))]
    assert_same(found, by_hand("FAMO", max_norm, every))


def test_every_tenth_step_is_the_default() -> None:
    default = inspect.signature(MultiTaskTrainer).parameters["update_every"].default
    assert default == MultiTaskModule.update_every == 10


@pytest.mark.parametrize("every", [0, 2.5])
@each_framework
def test_update_every_is_a_positive_int(
    train: Any, max_norm: float, every: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"`update_every` should be a positive int\. .* {every}"):
        train("FAMO", tmp_path, update_every=every)


# Accelerate.


def test_famo_learns_once_for_each_step_of_several_parts() -> None:
    (block,) = [block for block in BLOCKS.values() if "accelerator.accumulate(" in block]
    AcceleratorState._reset_state(reset_partial_state=True)
    scope = run(block.replace("steps % 10", "steps % 1"))
    assert scope["steps"] == 4
    assert scope["scalarizer"].updates.tolist() == [4, 4, 4]


# A GPU.


@pytest.mark.parametrize("device", DEVICES[1:])
@each_method
def test_what_the_integrations_add_does_not_wait_for_the_gpu(
    name: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = [
        (MultiTaskModule, "training_step"),
        (MultiTaskModule, "on_after_backward"),
        (MultiTaskTrainer, "compute_loss"),
    ]
    for owner, hook in hooks:
        monkeypatch.setattr(owner, hook, synchronization_forbidden()(getattr(owner, hook)))
    module = Module(scalarizer_of(name))
    module.history = History(module.scalarizer)
    fit(module, tmp_path, accelerator="gpu")
    scalarizer = scalarizer_of(name)
    history = History(scalarizer)
    make_trainer(scalarizer, tmp_path, history=history, use_cpu=False, logging_steps=100).train()
    for recorded in (module.history, history):
        assert len(recorded.losses) == EPOCHS * STEPS
