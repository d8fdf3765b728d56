"""Training that may be killed at any moment: what a checkpoint holds, how it is written and read.

The demo of `digits.py`, with any method, and with other parts of a real run: mixed precision, a
schedule of the learning rate, noise on the images. Started again with the same flags, it continues
from its newest whole checkpoint. The result is bit-identical to that of a run that never stopped.

    python examples/resume.py --method UW                # a few seconds; kill it, start it again
    python examples/resume.py --method DWA --amp float16 --every 25 --keep 5 --dir elsewhere
    python examples/resume.py --quick --dir quick

The first line, killed halfway, the newest checkpoint then cut short, and started again, prints:

passed over runs/resume/step-00000700.pt: File is not a zip file
resumed runs/resume/step-00000600.pt after 600 steps

       left digit right digit        sum  redrawing
method    % right     % right abs. error MSE x 1000
───────────────────────────────────────────────────
UW           96.6        95.2       1.73       17.2

A checkpoint appears under its name only once it is whole and on the disk, and only then are older
ones removed: a kill, or a power cut, costs the steps since the last one. A damaged checkpoint is
renamed to `.damaged`. If no whole one is left, or if the settings differ, the program says so and
stops: it never starts over in silence.

The state of the random numbers is that of torch. A program that also draws from `random` or NumPy,
or whose data loader has workers, has to save theirs, too.
"""

import argparse
import io
import math
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from digits import (
    BATCH_SIZE,
    METHODS,
    TASKS,
    Network,
    Pairs,
    available_device,
    count,
    load_pairs,
    make_optimizer,
    make_schedule,
    print_metrics,
    run_program,
    task_losses,
)
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.serialization import get_unsafe_globals_in_checkpoint
from tqdm import tqdm

from mtl_scalarize import Scalarizer

NOISE = 0.1  # standard deviation; the images are from 0 to 1
PRECISIONS = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Settings(NamedTuple):
    """A checkpoint of a training with other settings is refused."""

    method: str
    epochs: int
    batch_size: int
    seed: int
    amp: str
    device: str

    def steps(self, size: int) -> int:
        return self.epochs * math.ceil(size / self.batch_size)


class Order:
    """Shuffled batches of the indices below `size`, epoch after epoch."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size = size
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.ahead = torch.empty(0, dtype=torch.int64)  # the rest of the epoch

    def next(self) -> Tensor:
        if self.epoch_is_over():
            self.ahead = torch.randperm(self.size, generator=self.generator)
        batch, self.ahead = self.ahead.tensor_split([self.batch_size])
        return batch

    def epoch_is_over(self) -> bool:
        return len(self.ahead) == 0

    def state_dict(self) -> dict[str, Tensor]:
        # A clone, because with a slice torch saves the whole tensor behind it.
        return {"generator": self.generator.get_state(), "ahead": self.ahead.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
        self.ahead = state["ahead"]


class RandomNumbers:
    """The state of torch's default generators."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state_dict(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"])


class Training(NamedTuple):
    """Everything that a step changes."""

    network: Network
    scalarizer: Scalarizer
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    order: Order
    random_numbers: RandomNumbers

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._asdict().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._asdict().items():
            part.load_state_dict(state[name])


def begin(settings: Settings, size: int) -> Training:
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    network = Network().to(device)
    scalarizer = METHODS[settings.method](len(TASKS)).to(device)
    optimizer = make_optimizer(network, scalarizer)
    schedule = make_schedule(optimizer, settings.steps(size))
    # Needed in float16 alone: the other types can represent gradients that small.
    scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "float16")
    order = Order(size, settings.batch_size, settings.seed)
    return Training(network, scalarizer, optimizer, schedule, scaler, order, RandomNumbers(device))


def take_step(training: Training, index: int, pairs: Pairs, precision: torch.dtype | None) -> None:
    network, scalarizer, optimizer, schedule, scaler, order, _ = training
    device = pairs.image.device
    batch = pairs.take(order.next().to(device))
    image = batch.image + NOISE * torch.randn_like(batch.image)

    def losses() -> Tensor:
        with torch.autocast(device.type, precision, enabled=precision is not None):
            return task_losses(network(image), batch)

    optimizer.zero_grad()
    scaler.scale(scalarizer(losses())).backward()
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() >= scale:  # or there was no step: a gradient was not finite
        schedule.step()
    if index % 10 == 0:
        scalarizer.update(losses)
    if order.epoch_is_over():
        scalarizer.step()


def fail(message: str) -> NoReturn:
    sys.exit(f"{Path(sys.argv[0]).name}: error: {message}")


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def checkpoints(directory: Path) -> list[Path]:
    """The newest comes last."""
    return sorted(directory.glob(f"step-{'[0-9]' * 8}.pt"))


def save(checkpoint: dict[str, Any], path: Path, keep: int) -> None:
    """Make the file appear whole or not at all, and then remove all but the newest `keep`."""
    buffer = io.BytesIO()  # torch.save does not report a full disk; the write below does
    torch.save(checkpoint, buffer)
    aside = path.with_name(f"{path.name}.new")
    with aside.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    if os.name == "posix":  # other systems cannot open a directory
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)  # the new name is on the disk before the old files are removed
        os.close(directory)
    prune(path.parent, keep)


def prune(directory: Path, keep: int) -> None:
    for old in checkpoints(directory)[:-keep]:
        old.unlink()


def read(path: Path) -> dict[str, Any]:
    """The checkpoint, if it is whole; else a ValueError says in one line why not."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch.load compares no checksums
        if broken is not None:
            raise ValueError(f"the checksum of {broken} is wrong")
        if unsafe := get_unsafe_globals_in_checkpoint(path):
            raise ValueError(f"it holds {', '.join(unsafe)}, which weights_only=True refuses")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise almost anything
        raise ValueError(first_line(error)) from error
    if not isinstance(checkpoint, dict) or checkpoint.keys() != {"settings", "step", "training"}:
        raise ValueError("it is not of this program")
    return checkpoint


def resume(training: Training, directory: Path, settings: Settings) -> int:
    """Load the newest whole checkpoint, if there is any; return how many steps are behind it."""
    damaged = {}
    for path in reversed(checkpoints(directory)):
        try:
            checkpoint = read(path)
            break
        except ValueError as error:
            damaged[path] = error
    else:
        if damaged:
            reasons = "; ".join(f"{path}: {error}" for path, error in damaged.items())
            fail(f"no checkpoint is whole (to start over, remove them): {reasons}")
        return 0
    different = [
        f"{name} is {checkpoint['settings'].get(name)} there and {value} here"
        for name, value in settings._asdict().items()
        if checkpoint["settings"].get(name) != value
    ]
    if different:
        fail(f"{path} is of another training: {', '.join(different)}")
    try:
        training.load_state_dict(checkpoint["training"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        fail(f"{path} does not fit this program: {first_line(error)}")
    for newer, error in damaged.items():
        print(f"passed over {newer}: {error}")
        newer.replace(newer.with_suffix(".damaged"))
    print(f"resumed {path} after {checkpoint['step']} steps")
    return int(checkpoint["step"])


def open_directory(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for aside in directory.glob("step-*.pt.new"):  # of a run that was killed while it wrote
        aside.unlink()
    # Fail now, and not after the first steps, if it cannot be written to.
    tempfile.TemporaryFile(prefix="step-", suffix=".pt.new", dir=directory).close()


@contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fail(f"cannot keep checkpoints in {directory}: {error.strerror}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the digits demo; killed, it goes on.")
    parser.add_argument("--method", choices=METHODS, default="FAMO", help="default: FAMO")
    parser.add_argument("--quick", action="store_true", help="4 epochs")
    parser.add_argument("--epochs", type=count, help="default: 30")
    parser.add_argument("--batch-size", type=count, default=BATCH_SIZE, help="default: 200")
    parser.add_argument("--seed", type=count, default=1, help="default: 1")
    parser.add_argument("--amp", choices=PRECISIONS, default="none", help="default: none")
    devices = [torch.device("cpu"), torch.device("cuda")]
    parser.add_argument(
        "--device", type=available_device, choices=devices, default="cpu", help="default: cpu"
    )
    parser.add_argument("--every", type=count, default=100, help="steps; default: 100")
    parser.add_argument("--keep", type=count, default=3, help="checkpoints; default: 3")
    parser.add_argument("--dir", type=Path, default="runs/resume", help="default: runs/resume")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as in digits.py
    epochs = args.epochs or (4 if args.quick else 30)
    settings = Settings(args.method, epochs, args.batch_size, args.seed, args.amp, args.device.type)
    with writing_to(args.dir):
        open_directory(args.dir)
    train_pairs, test_pairs = load_pairs(args.seed, args.device)
    size = len(train_pairs.image)
    steps = settings.steps(size)
    training = begin(settings, size)
    with writing_to(args.dir):
        behind = resume(training, args.dir, settings)
        prune(args.dir, args.keep)  # a run may have been killed between save and prune
    with tqdm(total=steps, initial=behind, unit="step", mininterval=1) as bar:
        for step in range(behind + 1, steps + 1):
            take_step(training, step - 1, train_pairs, PRECISIONS[args.amp])
            weights = training.scalarizer.weights.tolist()
            shown = " ".join(f"{weight:.2g}" for weight in weights)
            bar.set_postfix_str(f"weights {shown}", refresh=False)
            bar.update()
            if step % args.every == 0 or step == steps:
                checkpoint = {
                    "settings": settings._asdict(),
                    "step": step,
                    "training": training.state_dict(),
                }
                with writing_to(args.dir):
                    save(checkpoint, args.dir / f"step-{step:08d}.pt", args.keep)

    print_metrics(args.method, training.network, test_pairs)


if __name__ == "__main__":
    run_program(main)
