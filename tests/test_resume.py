"""The example that may be killed: at any moment, by any method, it ends as if it never had been.

KILLS=50 kills each run fifty times instead of three; KILL_SEED repeats the draw of the moments.
"""

import errno
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch
from torch.utils._pytree import keystr, tree_leaves_with_path

EXAMPLES = Path(__file__).parent.parent / "examples"
KILLS = int(os.environ.get("KILLS", "3"))
KILL_SEED = int(os.environ.get("KILL_SEED", time.time_ns()))
LINES_OF_WRITES = range(6, 26)  # from the second write on: there is something to resume
RUNS = {
    "UW": ["--method=UW"],
    "IMTL-L": ["--method=IMTL-L"],
    "DWA": ["--method=DWA"],
    "FAMO": ["--method=FAMO"],
    "FAMO amortized": ["--method=FAMO amortized"],
    "UW in float16": ["--method=UW", "--amp=float16", "--epochs=2"],  # slow on a CPU
}
PARTS = ["network", "scalarizer", "optimizer", "schedule", "scaler", "order", "random_numbers"]
# Ten steps an epoch: most checkpoints are in the middle of one, and DWA's weights come into play.
SHORT = ["--epochs=4", "--batch-size=800", "--every=3"]
SHORTEST = ["--epochs=1", "--batch-size=800", "--every=3", "--method=UW"]

Launch = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)  # as when Python runs a program of that folder
        yield import_module("examples.resume")


@pytest.fixture(scope="module")
def launch(example: ModuleType) -> Iterator[Launch]:
    """Start a function in a process of its own, forked from one that has imported the program.

    The imports take several times as long as the training.
    """
    if sys.platform != "linux":
        pytest.skip("forks")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([example.__name__, "torch._dynamo", __name__])

    def start(target: Callable[..., None], *args: object) -> BaseProcess:
        process = context.Process(target=target, args=args, daemon=True)
        process.start()
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")
        start(time.sleep, 0).join()  # the first one waits for the imports
        yield start


def kill_in_save(example: ModuleType, line: int, amid_write: bool) -> None:
    """Kill this process before it runs that line, counted over all calls of `save`.

    Amid a write, only those lines count at which there is a file aside. If that is open, it is cut
    in half.
    """
    lines = itertools.count()

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code is not example.save.__code__:
            return None
        file, aside = frame.f_locals.get("file"), frame.f_locals.get("aside")
        counts = not amid_write or (aside is not None and aside.exists())
        if event == "line" and counts and next(lines) == line:
            if file is not None and not file.closed:
                os.truncate(file.fileno(), os.fstat(file.fileno()).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def live(flags: Sequence[str], log: Path, line_of_write: int | None) -> None:
    """One life of the program."""
    example = import_module("examples.resume")
    with log.open("a", buffering=1) as sys.stdout, log.open("a", buffering=1) as sys.stderr:
        if line_of_write is not None:
            kill_in_save(example, line_of_write, amid_write=True)
        example.main(flags)


def differences(one: Path, other: Path) -> list[str]:
    """What the two checkpoints do not have in common, to the bit."""
    flat = []
    for path in (one, other):
        leaves = tree_leaves_with_path(torch.load(path, weights_only=True))
        flat.append({keystr(key): bits(leaf) for key, leaf in leaves})
    names = flat[0].keys() | flat[1].keys()
    return sorted(name for name in names if flat[0].get(name) != flat[1].get(name))


def bits(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.dtype, leaf.shape, leaf.numpy().tobytes()
    return repr(leaf)


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_where_one_that_was_never_stopped_does(
    name: str, example: ModuleType, launch: Launch, tmp_path: Path
) -> None:
    print(f"KILL_SEED={KILL_SEED}")
    dice = random.Random(f"{KILL_SEED} {name}")
    log = tmp_path / "log"

    def start(directory: Path, line_of_write: int | None = None) -> BaseProcess:
        flags = [*SHORT, *RUNS[name], f"--dir={directory}"]
        return launch(live, flags, log, line_of_write)

    before = time.perf_counter()
    whole = start(tmp_path / "whole")
    whole.join(60)
    duration = time.perf_counter() - before
    assert whole.exitcode == 0, log.read_text()
    (*_, expected) = example.checkpoints(tmp_path / "whole")

    kills = runs = 0
    while kills < KILLS:
        runs += 1
        directory = tmp_path / f"run {runs}"
        process = None
        while process is None or process.exitcode != 0:  # until a life comes to its end
            amid_write = kills % 2 == 0
            if kills == KILLS:
                process = start(directory)
            elif amid_write:
                process = start(directory, dice.choice(LINES_OF_WRITES))
            else:
                process = start(directory)
                process.join(dice.uniform(0, duration))
                process.kill()
            process.join(60)
            assert process.exitcode in {0, -signal.SIGKILL}, log.read_text()
            if process.exitcode != 0:
                kills += 1
                assert any(directory.glob("*.new")) or not amid_write
        (*_, last) = example.checkpoints(directory)
        assert differences(last, expected) == []
        assert len(list(directory.iterdir())) == 3, "of --keep, and nothing else"
        shutil.rmtree(directory)
    resumed = log.read_text().count("resumed")
    print(f"{name}: {kills} kills, every other one amid a write; {resumed} times resumed;")
    print(f"all {runs} runs, of {duration:.2f} s, ended as the one that was never stopped")
    assert kills == KILLS
    assert resumed > 0


def save_three(directory: Path, line: int) -> None:
    example = import_module("examples.resume")
    kill_in_save(example, line, amid_write=False)
    for step in (1, 2, 3):
        checkpoint = {"settings": {}, "step": step, "training": {}}
        example.save(checkpoint, directory / f"step-{step:08d}.pt", keep=2)


def test_before_whichever_line_a_save_is_killed_it_leaves_enough_whole_checkpoints(
    example: ModuleType, launch: Launch, tmp_path: Path
) -> None:
    seen = []
    for line in itertools.count():
        directory = tmp_path / str(line)
        directory.mkdir()
        process = launch(save_three, directory, line)
        process.join(60)
        seen.append([example.read(path)["step"] for path in example.checkpoints(directory)])
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    distinct = [steps for steps, _ in itertools.groupby(seen)]
    assert distinct == [[], [1], [1, 2], [1, 2, 3], [2, 3]]


@pytest.fixture(scope="module")
def trained(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints after 3, 6, 9 and 10 steps of 10."""
    directory = tmp_path_factory.mktemp("trained")
    example.main([*SHORTEST, "--keep=4", f"--dir={directory}"])
    return directory


@pytest.fixture
def directory(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "checkpoints")


def flip_a_bit(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


def replace_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, 100_000), "File is not a zip file"),
    "empty": (lambda path: os.truncate(path, 0), "File is not a zip file"),
    "garbage": (lambda path: path.write_bytes(bytes(range(256))), "File is not a zip file"),
    "a flipped bit": (flip_a_bit, "the checksum of archive/data/"),
    "a directory": (replace_by_a_directory, "[Errno 21] Is a directory"),
    "an object": (
        lambda path: torch.save({"step": Path()}, path),
        "it holds pathlib.PosixPath, which weights_only=True refuses",
    ),
    "another program's": (lambda path: torch.save({"step": 10}, path), "it is not of this program"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_it_goes_on_from_the_newest_whole_checkpoint_and_says_what_it_passed_over(
    example: ModuleType,
    trained: Path,
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    reason: str,
) -> None:
    older, newest = example.checkpoints(directory)[-2:]
    damage(newest)
    example.main([*SHORTEST, f"--dir={directory}"])
    passed_over, resumed, *_ = capsys.readouterr().out.splitlines()
    assert passed_over.startswith(f"passed over {newest}: {reason}")
    assert resumed == f"resumed {older} after 9 steps"
    assert differences(newest, trained / newest.name) == []
    assert newest.with_suffix(".damaged").exists()


def test_a_damaged_checkpoint_does_not_count_among_those_to_keep(
    example: ModuleType, directory: Path
) -> None:
    newest = example.checkpoints(directory)[-1]
    newest.write_bytes(b"")
    example.main([*SHORTEST, "--every=1", "--keep=1", f"--dir={directory}"])
    assert example.checkpoints(directory) == [newest]
    assert example.read(newest)["step"] == 10


def test_it_does_not_start_over_where_no_checkpoint_is_whole(
    example: ModuleType, directory: Path
) -> None:
    paths = example.checkpoints(directory)
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        example.main([*SHORTEST, f"--dir={directory}"])
    complaint = one_line(stop)
    assert complaint.startswith("resume.py: error: no checkpoint is whole")
    assert all(str(path) in complaint for path in paths)
    assert sorted(directory.iterdir()) == paths


def one_line(stop: "pytest.ExceptionInfo[SystemExit]") -> str:
    assert isinstance(stop.value.code, str)  # which Python writes to stderr, and exits with 1
    assert "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize(
    ("flag", "difference"),
    [
        ("--method=FAMO", "method is UW there and FAMO here"),
        ("--epochs=2", "epochs is 1 there and 2 here"),
        ("--batch-size=100", "batch_size is 800 there and 100 here"),
        ("--seed=2", "seed is 1 there and 2 here"),
        ("--amp=bfloat16", "amp is none there and bfloat16 here"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    example: ModuleType, directory: Path, flag: str, difference: str
) -> None:
    newest = example.checkpoints(directory)[-1]
    with pytest.raises(SystemExit) as stop:
        example.main([*SHORTEST, flag, f"--dir={directory}"])
    complaint = f"resume.py: error: {newest} is of another training: {difference}"
    assert one_line(stop) == complaint


def test_a_checkpoint_that_does_not_fit_is_refused(example: ModuleType, directory: Path) -> None:
    newest = example.checkpoints(directory)[-1]
    checkpoint = torch.load(newest, weights_only=True)
    del checkpoint["training"]["network"]["heads.bias"]
    torch.save(checkpoint, newest)
    with pytest.raises(SystemExit) as stop:
        example.main([*SHORTEST, f"--dir={directory}"])
    assert f"{newest} does not fit this program" in one_line(stop)


@pytest.mark.parametrize(
    ("run", "parts"),
    [
        *((name, ["scalarizer"]) for name in RUNS if name != "UW in float16"),
        ("UW in float16", PARTS),
    ],
)
def test_without_any_part_of_its_checkpoint_a_run_ends_elsewhere(
    example: ModuleType, tmp_path: Path, run: str, parts: Sequence[str]
) -> None:
    flags = [*SHORT, *RUNS[run], "--keep=100"]
    example.main([*flags, f"--dir={tmp_path / 'whole'}"])
    saved = example.checkpoints(tmp_path / "whole")
    middle, last = saved[len(saved) // 2], saved[-1]
    checkpoint = example.read(middle)
    size = len(example.load_pairs(seed=0)[0].image)
    new = example.begin(example.Settings(**checkpoint["settings"]), size).state_dict()
    assert new.keys() == set(PARTS)
    for part in (None, *parts):
        directory = tmp_path / f"without {part}"
        directory.mkdir()
        state = {name: new[name] if name == part else checkpoint["training"][name] for name in new}
        torch.save({**checkpoint, "training": state}, directory / middle.name)
        example.main([*flags, f"--dir={directory}"])
        different = differences(directory / last.name, last)
        if part is None:
            assert different == []
        else:
            assert "['training']['network']['heads.weight']" in different, part


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_checkpoints_are_kept_and_nothing_else(
    example: ModuleType, tmp_path: Path, keep: int
) -> None:
    (tmp_path / "step-00000003.pt.new").write_bytes(b"of a run that was killed")
    example.main([*SHORTEST, f"--keep={keep}", f"--dir={tmp_path}"])
    names = ["step-00000009.pt", "step-00000010.pt"][-keep:]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_finished_run_prints_its_results_again(
    example: ModuleType, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for _ in range(2):
        example.main([*SHORTEST, f"--dir={directory}"])
        resumed, *table = capsys.readouterr().out.splitlines()
        assert resumed == f"resumed {directory / 'step-00000010.pt'} after 10 steps"
        tables.append(table)
    assert tables[0] == tables[1]
    assert tables[0][-1].startswith("UW ")


def test_a_run_killed_before_it_removed_the_last_old_checkpoint_does_it_when_resumed(
    example: ModuleType, directory: Path
) -> None:
    newest = example.checkpoints(directory)[-3:]
    example.main([*SHORTEST, "--keep=3", f"--dir={directory}"])
    assert sorted(directory.iterdir()) == newest


def test_a_full_disk_gets_one_clear_line_and_leaves_the_checkpoints_before(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    def fill(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    *older, newest = example.checkpoints(directory)
    newest.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fill)
        with pytest.raises(SystemExit) as stop:
            example.main([*SHORTEST, f"--dir={directory}"])
    complaint = f"cannot keep checkpoints in {directory}: No space left on device"
    assert one_line(stop) == f"resume.py: error: {complaint}"
    assert example.checkpoints(directory) == older
    example.main([*SHORTEST, f"--dir={directory}"])
    assert sorted(directory.iterdir()) == [*older[1:], newest]


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_directory_that_cannot_be_gets_one_clear_line(
    example: ModuleType, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        example.main([f"--dir={tmp_path / name}"])
    assert one_line(stop).startswith(
        f"resume.py: error: cannot keep checkpoints in {tmp_path / name}: "
    )


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--keep=0", "argument --keep: expected an integer from 1"),
        ("--every=often", "argument --every: expected an integer from 1"),
        ("--seed=-1", "argument --seed: expected an integer from 1"),
        ("--method=guess", "argument --method: invalid choice: 'guess'"),
        ("--amp=float8", "argument --amp: invalid choice: 'float8'"),
        ("--device=abacus", "argument --device: no device 'abacus' on this machine"),
        ("--fast", "unrecognized arguments: --fast"),
    ],
)
def test_a_bad_flag_gets_one_clear_line(
    example: ModuleType, capsys: pytest.CaptureFixture[str], flag: str, complaint: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        example.main([flag])
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]
