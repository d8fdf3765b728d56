"""The programs in examples/: each runs, refuses what it cannot do, and does what it claims.

KILLS=50 kills `resume.py` fifty times with each method, instead of twice with one.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

from mtl_scalarize import Scalarizer
from mtl_scalarize.functional import fill_absent

NEEDED = "accelerate lightning matplotlib pandas rich sklearn tensorboard tqdm transformers"
for package in NEEDED.split():
    pytest.importorskip(package, reason="the examples need it: pip install '.[ci]'")

EXAMPLES = Path(__file__).parent.parent / "examples"
KILLS = int(os.environ.get("KILLS", "2"))
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
SPREAD = f"{NUMBER} ± {NUMBER}"
METRICS = rf"FAMO( +{NUMBER}){{4}}"

pytestmark = [
    pytest.mark.usefixtures("no_accelerator_left"),
    # Lightning's own code uses torch's deprecated LeafSpec.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # A test resumes into another directory.
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@dataclass(frozen=True)
class Program:
    """How a program is run, and what it prints."""

    lines: tuple[str, ...]  # patterns, each of exactly one line of the output
    writes: str | None = "--out=picture.svg"
    compares: bool = True  # methods, for which a quick run is too short
    flags: tuple[str, ...] = ()  # that make `--quick` quicker
    launcher: tuple[str, ...] = ("-W", "error")
    prepare: Callable[[Path], object] = lambda folder: None  # what it reads there


def write_molecules(folder: Path) -> None:
    """Random ones in the form of qm9pack's files, which have more columns."""
    program, generator = import_module("qm9"), random.Random(0)

    def molecule() -> dict[str, Any]:
        elements = generator.choices("HCNOF", k=generator.randint(3, 9))
        places = [[generator.uniform(-4, 4) for _ in range(3)] for _ in elements]
        targets = {target.column: generator.uniform(-1, 1) for target in program.TARGETS}
        return {"SMILES": "", "Elements": str(elements), "XYZ_Ang": str(places), **targets}

    (folder / "molecules").mkdir()
    for part in (1, 2, 3):
        table = program.pd.DataFrame([molecule() for _ in range(40)])
        table.to_csv(folder / "molecules" / f"qm9_part{part}.csv", index=False)


PROGRAMS = {
    "digits": Program((rf"FAMO amortized(?: *{SPREAD}){{5}} +{NUMBER}",), flags=("--epochs=1",)),
    "distributed": Program(
        (
            METRICS,
            r"between any two ranks +0\.0e\+00 +0\.0e\+00",
            r"2 ranks - one process +\d\.\de-1\d +\d\.\de-1\d",
        ),
        writes="--checkpoint=run.pt",
        compares=False,
        flags=("--verify", "--epochs=2"),
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    ),
    "famo_toy": Program(
        (
            rf"IMTL-L +\({NUMBER}, {NUMBER}\)( +{NUMBER}){{3}} +(yes|no)",
            r"Reached, of 5 starts: plain sum \d, LogSum \d, STCH \d, UW \d, IMTL-L \d, .*",
        )
    ),
    "gradnorm_toy": Program(
        (r"method +scale 1 +scale 4\.64 .*", rf"ReLoBRaLo( +{NUMBER}){{6}}"), flags=("--seeds=1",)
    ),
    "helmholtz": Program(
        (
            rf"fixed weight +weight 1( +{NUMBER}){{4}}",
            rf"relative L2 error {NUMBER} after Adam, {NUMBER} after L-BFGS",
        ),
        flags=("--steps=2",),
        # torch's own `jvp` scripts a function.
        launcher=("-W", "error", "-W", "ignore:`torch.jit.script`:DeprecationWarning"),
    ),
    "hypergradient": Program(
        (
            rf"logits, left digit( +{NUMBER}){{4}}",
            rf"FAMO +lr 0\.025, logits 0 0 0 0( +{NUMBER}){{2}}",
        ),
        flags=("--iterations=2",),
    ),
    "instances": Program(
        (
            r"30 % wrong +% right .*",
            rf"UW by position( +{NUMBER}){{5}}",
            rf"UW by position( +{NUMBER}){{4}}",
        ),
        writes=None,
        flags=("--epochs=2",),
    ),
    "population": Program(
        (
            rf"FAMO, paper's +lr 0\.025, decay 0\.001( +{NUMBER}){{5}}",
            rf"DWA, paper's +temperature 2( +{SPREAD}){{5}}",
            rf"FAMO +4( +{NUMBER} s){{2}} +{NUMBER}",
        ),
        flags=("--side=2", "--epochs=1"),
    ),
    "qm9": Program(
        (
            rf"FAMO +{SPREAD}( +{NUMBER}){{4}}",
            rf"FAMO amortized( +{NUMBER}){{11}}",
            rf" *0\.025 +0\.001( +{NUMBER}){{3}}",
        ),
        flags=("--data=molecules", "--molecules=80", "--epochs=1"),
        prepare=write_molecules,
    ),
    "resume": Program((METRICS,), writes="--dir=folder", compares=False, flags=("--epochs=1",)),
    "with_accelerate": Program(
        (r"processes: 2, .*: 0\.0e\+00", METRICS),
        writes="--dir=folder",
        compares=False,
        flags=("--epochs=1",),
        launcher=(
            *("-m", "accelerate.commands.launch", "--multi_gpu"),
            *("--num_processes=2", "--main_process_port=0"),
        ),
    ),
    "with_lightning": Program(
        (METRICS,), writes="--dir=folder", compares=False, flags=("--epochs=1",), launcher=()
    ),
    "with_tensorboard": Program(
        (r"tensorboard --logdir folder",),
        writes="--dir=folder",
        flags=("--method=UW", "--epochs=1"),
    ),
    "with_transformers": Program(
        (rf"FAMO( +{NUMBER}){{3}}", "quick run: too short to compare methods"),
        writes="--dir=folder",
        flags=("--epochs=1",),
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    ),
}
WRITERS = {name: program.writes for name, program in PROGRAMS.items() if program.writes}
RESUMED = ("distributed", "with_accelerate", "with_lightning", "with_transformers")

Load = Callable[[str], ModuleType]


@pytest.fixture(scope="module", autouse=True)
def where_the_programs_are() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        patch.setenv("ACCELERATE_USE_CPU", "1")
        for name in LAUNCHER:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import a program, and give it so few digits or sentences that an epoch has ten steps."""

    def load(name: str) -> ModuleType:
        program = import_module(name)
        pairs = partial(import_module("digits").load_pairs, train_size=2000, test_size=200)
        monkeypatch.setattr(program, "load_pairs", pairs, raising=False)
        monkeypatch.setattr(program, "SENTENCES", 640, raising=False)
        return program

    return load


def assert_equal(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


# Every program.


def test_every_program_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    program.prepare(tmp_path)
    finished = subprocess.run(
        [
            *(sys.executable, *program.launcher, EXAMPLES / f"{name}.py", "--quick"),
            *program.flags,
            *filter(None, [program.writes]),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    for line in program.lines:
        assert len(re.findall(rf"^{line} *$", finished.stdout, flags=re.M)) == 1, line
    caution = "quick run: too short to compare methods"
    assert finished.stdout.count(caution) == program.compares
    if program.writes is not None:
        written = tmp_path / program.writes.partition("=")[2]
        assert written.is_dir() or written.stat().st_size > 0
        if written.suffix == ".svg":  # in which the text is a comment
            assert caution in written.read_text()
            assert not re.search(r"<!-- (Results|\d of \d)", written.read_text())


def complaint(name: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which a program refuses to go on."""
    with pytest.raises(SystemExit) as stop:
        import_module(name).main(flags)
    assert stop.value.code not in (None, 0)
    if not isinstance(stop.value.code, str):  # argparse has printed the usage and the line
        return capsys.readouterr().err.splitlines()[-1]
    assert "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_unknown_flag_gets_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(name, ["--fast"], capsys).endswith("unrecognized arguments: --fast")


@pytest.mark.parametrize("name", WRITERS)
def test_a_path_that_cannot_be_written_gets_one_line(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    flag, _, below = WRITERS[name].partition("=")
    line = complaint(name, [f"{flag}={file / below}"], capsys)
    assert re.search(rf"cannot (write|keep).*{re.escape(str(file))}", line)


@pytest.mark.parametrize(
    ("name", "flag", "expected"),
    [
        ("digits", "--epochs=0", "--epochs: expected an integer from 1"),
        ("digits", "--seeds=many", "--seeds: expected an integer from 1"),
        ("digits", "--device=abacus", "--device: no device 'abacus' on this machine"),
        ("digits", "--out=picture.txt", "--out: expected a .png, .pdf or .svg file"),
        ("distributed", "--batch-size=9999", "--batch-size should be a multiple of 1"),
        ("distributed", "--checkpoint={file}", "is not a checkpoint of this program"),
        ("famo_toy", "--clip=0", "--clip: expected a number above 0, found '0'"),
        ("instances", "--wrong=101", "--wrong: expected an integer from 0 to 100"),
        ("population", "--side=33", "--side: expected an integer from 1 to 32, found '33'"),
        ("qm9", "--molecules=79", "--molecules: expected an integer from 80 to 130831"),
        ("qm9", "--data={file.parent}", "error: no qm9_part*.csv in"),
        ("resume", "--amp=float8", "--amp: invalid choice: 'float8'"),
        ("with_accelerate", "--resume=nothing", "--resume: no directory 'nothing'"),
        ("with_accelerate", "--resume={file.parent}", "holds no checkpoint of --method FAMO"),
        ("with_lightning", "--devices=1000", "--devices: invalid choice: 1000"),
        ("with_lightning", "--resume={file}", "holds no checkpoint of --method FAMO"),
        ("with_transformers", "--accumulate=3", "--accumulate: invalid choice: 3"),
        ("with_transformers", "--resume={file}", "--resume: no checkpoint of this program at"),
        ("with_tensorboard", "--method=guess", "--method: invalid choice: 'guess'"),
        ("with_tensorboard", "--dir={file.parent}", "UW is there already: remove it, or give"),
    ],
)
def test_a_bad_value_gets_one_line(
    name: str,
    flag: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "UW"
    file.write_text("not a checkpoint")
    assert expected in complaint(name, [flag.format(file=file)], capsys)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (["WORLD_SIZE"], "WORLD_SIZE is set, but RANK and MASTER_ADDR and MASTER_PORT not"),
        (LAUNCHER, "the ranks do not find each other: invalid literal"),
    ],
)
def test_a_wrong_launcher_gets_one_line(
    variables: Sequence[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in variables:
        monkeypatch.setenv(name, "x")
    assert expected in complaint("distributed", [], capsys)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("with_accelerate", "accelerate"),
        ("with_lightning", "lightning"),
        ("with_tensorboard", "torch.utils.tensorboard"),
        ("with_transformers", "transformers"),
    ],
)
def test_a_missing_package_gets_one_line(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit, match=rf"^{name}\.py: error: needs (\w+): pip install \1$"):
        import_module(name)


def test_missing_molecules_get_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import_module("qm9")
    monkeypatch.setattr(sys, "path", [str(EXAMPLES)])  # without the package that holds them
    monkeypatch.chdir(tmp_path)
    line = complaint("qm9", [], capsys)
    assert line.endswith(": error: needs qm9pack: pip install qm9pack")


# The loop that serves every method.


class Verbs(Scalarizer):
    """Keeps which of its verbs were called; an update wants other losses than those of the call."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        self.called.append("call")
        self.losses = losses.detach()
        self.report(fill_absent, torch.ones_like(losses), 0.0, mask=mask)
        return losses.sum()

    def update(self, losses: Callable[[], Tensor], mask: Tensor | None = None) -> None:
        with torch.no_grad():
            if (losses() != self.losses).any():
                self.called.append("update")

    def step(self) -> None:
        self.called.append("step")


@pytest.mark.parametrize(
    "name", ["digits", "gradnorm_toy", "instances", "qm9", "resume", "with_tensorboard", *RESUMED]
)
def test_the_loop_updates_after_each_step_and_steps_after_each_epoch(
    name: str, short: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, verbs = short(name), Verbs()
    monkeypatch.setitem(program.METHODS, "FAMO", lambda *args, **options: verbs)
    if name == "digits":
        program.train("FAMO", program.load_pairs(0)[0], 2, seed=0)
    elif name == "gradnorm_toy":
        program.train("FAMO", *program.make_examples(0, 400), 2, seed=0)
    elif name == "instances":
        program.train("FAMO", program.load(0, wrong=0.3)[0], 2, seed=0)
    elif name == "qm9":
        write_molecules(tmp_path)
        monkeypatch.setattr(program, "BATCH_SIZE", 20)
        data = program.split(program.load(tmp_path / "molecules", 80), seed=0)
        program.train(data, range(11), "FAMO", {}, 1e-3, 0, epochs=2)
    else:
        flag, _, path = WRITERS[name].partition("=")
        program.main(["--method=FAMO", "--epochs=2", f"{flag}={tmp_path / path}"])
    steps = verbs.called.count("call") // 2
    assert steps > 1
    assert verbs.called == 2 * [*steps * ["call", "update"], "step"]


# Runs that stop and go on.


def saved(path: Path) -> dict[str, Any]:
    """What a program has left after the third epoch."""
    if path.is_file():
        return torch.load(path, weights_only=True)["training"]
    if (lightning := path / "epoch=2.ckpt").exists():
        checkpoint = torch.load(lightning, weights_only=True)
        return {part: checkpoint[part] for part in ("state_dict", "optimizer_states", "loops")}
    if (path / "epoch-3").exists():
        path, parts = (
            path / "epoch-3",
            ("custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.bin"),
        )
    else:
        path, parts = path / "checkpoint-30", ("scalarizer.pt", "optimizer.pt", "scheduler.pt")
    state = {part: torch.load(path / part, weights_only=True) for part in parts}
    load_file = import_module("safetensors.torch").load_file
    return state | load_file(path / "model.safetensors")


@pytest.mark.parametrize("method", ["DWA", "FAMO"])
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_is_bit_identical_to_one_that_never_stopped(
    name: str, method: str, short: Load, tmp_path: Path
) -> None:
    program, flag = short(name), WRITERS[name].partition("=")[0]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    resume = {
        "with_lightning": [f"--resume={whole}/epoch=1.ckpt"],
        "with_accelerate": [f"--resume={whole}/epoch-2"],
        "with_transformers": [f"--resume={whole}/checkpoint-20"],
        "distributed": [],
    }[name]
    program.main([f"--method={method}", "--epochs=3", f"{flag}={whole}"])
    if not resume:
        program.main([f"--method={method}", "--epochs=2", f"{flag}={parts}"])
    program.main([f"--method={method}", "--epochs=3", f"{flag}={parts}", *resume])
    assert_equal(saved(parts), saved(whole))


@pytest.mark.parametrize(
    "method", import_module("examples.digits").METHODS if "KILLS" in os.environ else ["DWA"]
)
def test_a_killed_run_ends_as_one_that_was_never_stopped(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = import_module("resume")
    flags = [f"--method={method}", f"--epochs={KILLS + 4}", "--batch-size=800", "--every=1"]
    program.main([*flags, f"--dir={tmp_path / 'whole'}"])
    directory = tmp_path / "killed"
    for _ in range(KILLS):
        behind = program.checkpoints(directory)[-1:]
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / "resume.py", *flags, f"--dir={directory}"],
            stderr=subprocess.DEVNULL,
        )
        while program.checkpoints(directory)[-1:] == behind:
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))  # a few steps, each with a save
        process.kill()
        assert process.wait() == -signal.SIGKILL
    capsys.readouterr()
    program.main([*flags, f"--dir={directory}"])
    assert capsys.readouterr().out.startswith("resumed ")
    (*_, expected), (*_, last) = map(program.checkpoints, (tmp_path / "whole", directory))
    assert last.name == expected.name
    assert_equal(program.read(last)["training"], program.read(expected)["training"])
    assert not list(directory.glob("*.new"))


SHORT = ["--method=UW", "--epochs=1", "--every=3"]


def flip_a_bit(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: os.truncate(path, 100_000), "File is not a zip file"),
        (flip_a_bit, "the checksum of archive/data/"),
        (lambda path: torch.save({"step": Path()}, path), "it holds pathlib."),
        (lambda path: torch.save({"step": 10}, path), "it is not of this program"),
    ],
    ids=["cut", "bit", "object", "other"],
)
def test_it_passes_over_a_damaged_checkpoint_and_stops_if_all_are(
    damage: Callable[[Path], object],
    reason: str,
    short: Load,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    program, flags = short("resume"), [*SHORT, f"--dir={tmp_path}"]
    program.main(flags)
    *_, older, newest = program.checkpoints(tmp_path)
    expected = program.read(newest)["training"]
    damage(newest)
    capsys.readouterr()
    program.main(flags)
    passed_over, resumed, *_ = capsys.readouterr().out.splitlines()
    assert passed_over.startswith(f"passed over {newest}: {reason}")
    assert resumed == f"resumed {older} after 9 steps"
    assert_equal(program.read(newest)["training"], expected)
    assert newest.with_suffix(".damaged").exists()
    for path in program.checkpoints(tmp_path):
        damage(path)
    assert "error: no checkpoint is whole" in complaint("resume", flags, capsys)


def test_a_checkpoint_of_other_settings_is_refused(
    short: Load, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = [*SHORT, f"--dir={tmp_path}"]
    short("resume").main(flags)
    for flag, difference in (
        ("--seed=2", "seed is 1 there and 2"),
        ("--method=DWA", "is UW there"),
    ):
        line = complaint("resume", [*flags, flag], capsys)
        assert "is of another training" in line
        assert difference in line


class Stopped(tqdm):
    """A progress bar that does not live to see the seventh training."""

    def update(self, n: float | None = 1) -> bool | None:
        if self.unit == "training" and self.n == 6:
            raise KeyboardInterrupt
        return super().update(n)


def test_molecules_go_on_where_they_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program = import_module("qm9")
    write_molecules(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags = ["--quick", "--method=DWA", *PROGRAMS["qm9"].flags]
    program.main([*flags, "--cache=whole"])
    whole = capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(program, "tqdm", Stopped)
        with pytest.raises(KeyboardInterrupt):
            program.main([*flags, "--cache=parts"])
    before = {path: path.stat().st_mtime_ns for path in Path("parts").rglob("output.pkl")}
    program.main([*flags, "--cache=parts"])
    assert capsys.readouterr().out == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(before) == 7


# What a program claims.


def test_no_handwritten_digit_is_both_trained_and_tested_on() -> None:
    pairs = import_module("digits").load_pairs(0)
    train, test = ({image.numpy().tobytes() for image in part.drawing} for part in pairs)
    assert min(len(train), len(test)) > 300
    assert not train & test


def test_tensorboard_shows_the_weights_that_the_demo_trains_with(
    short: Load, tmp_path: Path
) -> None:
    program = short("with_tensorboard")
    program.main(["--method=DWA", "--epochs=3", "--every=1", f"--dir={tmp_path}"])
    events = import_module("tensorboard.backend.event_processing.event_accumulator")
    run = events.EventAccumulator(str(tmp_path / "DWA")).Reload()
    curves = [run.Scalars(f"weight/{task.name}") for task in program.TASKS]
    shown = torch.tensor([[event.value for event in curve] for curve in curves])
    _, history = import_module("digits").train("DWA", program.load_pairs(1)[0], 3, seed=1)
    assert (history[-1] != 1).all()
    torch.testing.assert_close(shown.T.unflatten(0, (3, -1)).mean(dim=1), history)


def alone(toy: ModuleType, scalarizer: Scalarizer, start: Tensor, steps: int) -> Tensor:
    """Where a descent of the toy problem ends, by a module and torch's Adam."""
    x = start.clone().requires_grad_()
    groups = [{"params": [x], "lr": 1e-3}, {"params": scalarizer.parameters(), "lr": 0.025}]
    optimizer = torch.optim.Adam(groups)

    def losses() -> Tensor:
        return toy.losses_of(x) - toy.MIN_LOSSES

    for _ in range(steps):
        optimizer.zero_grad()
        scalarizer(losses()).backward()
        optimizer.step()
        scalarizer.update(losses)
    return x.detach()


@pytest.mark.parametrize("name", ["plain sum", "LogSum", "UW", "IMTL-L", "FAMO", "FAMO amortized"])
def test_all_starts_at_once_end_as_each_alone(name: str) -> None:
    toy, make = import_module("famo_toy"), import_module("digits").METHODS[name]
    decay = {"weight_decay": 0.0} if "FAMO" in name else {}
    ends = toy.descend(toy.METHODS[name.removesuffix(" amortized")], 50)[-1]
    expected = [alone(toy, make(2, **decay).double(), start, 50) for start in toy.STARTS]
    torch.testing.assert_close(ends, torch.stack(expected), rtol=0, atol=1e-6)


def test_famo_reaches_the_front_from_every_start() -> None:
    toy = import_module("famo_toy")
    ends = toy.descend(toy.METHODS["FAMO"], 30_000)[-1]
    assert (toy.distance_to(toy.pareto_front(), ends) < toy.REACHED).all()


def test_famo_leaves_no_task_behind() -> None:
    toy = import_module("gradnorm_toy")
    examples = toy.make_examples(0, 2000)
    plain, famo = (toy.train(method, *examples, 6, seed=0)[-1] for method in ("plain sum", "FAMO"))
    assert plain.max() > 1.2  # worse than before the training
    assert famo.max() < 1
    assert famo.mean() < plain.mean() - 0.05


def test_instances_with_wrong_labels_weigh_little() -> None:
    program = import_module("instances")
    train, test = program.load(0, wrong=0.3)
    network, weights = program.train("FAMO amortized", train, 60, seed=0)
    plain, _ = program.train("plain mean", train, 60, seed=0)
    assert weights[train.is_wrong].mean() < 0.05 * weights[~train.is_wrong].mean()
    assert program.evaluate(network, test)[1] < program.evaluate(plain, test)[1] / 2


@pytest.mark.parametrize("index", [0, 2])  # FAMO, and DWA from a temperature of 0.1
def test_the_gradient_through_training_is_right_and_lowers_the_loss(index: int) -> None:
    program = import_module("hypergradient")
    experiment = program.make_experiments(program.make_problem())[index]
    gradient = grad(experiment.loss)(experiment.start)
    differences = program.central_differences(experiment.loss, experiment.start)
    torch.testing.assert_close(gradient, differences, rtol=1e-6, atol=1e-9)
    descent = program.tune(experiment, iterations=4)
    assert descent.validation[-1] < descent.validation[0] - 5e-3


def test_a_molecule_may_be_moved_turned_and_renumbered() -> None:
    program, elements = import_module("qm9"), ["C", "O", "N", "H", "F"]
    places = 2 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    turned = places @ torch.linalg.qr(torch.randn(3, 3)).Q + 1
    kinds = [str(elements), str(elements[::-1]), str(elements)]
    points = [str(values.tolist()) for values in (places, turned.flip(0), places.flip(0))]
    one, same, other = program.describe(kinds, points)
    torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-3)
    assert (one - other).abs().max() > 0.1


def test_energies_are_those_of_atomisation(tmp_path: Path) -> None:
    program = import_module("qm9")
    methane = {target.column: [-40.47893] for target in program.TARGETS}
    methane |= {"Elements": ["['C','H','H','H','H']"], "XYZ_Ang": [str(torch.eye(5, 3).tolist())]}
    program.pd.DataFrame(methane).to_csv(tmp_path / "qm9_part1.csv")
    energy = program.load(tmp_path, 1).targets[0, 6] / 1000  # in eV
    assert energy == pytest.approx(-395.999 / 23.0605, rel=1e-4)  # published in kcal/mol


@pytest.mark.parametrize("sweep", ["famo_sweep", "dwa_sweep"])
def test_each_member_of_a_population_is_trained_as_if_alone(sweep: str) -> None:
    program = import_module("population")
    everyone = getattr(program, sweep)(side=2)
    # In float64: Adam divides by the size of the gradient, and enlarges rounding errors.
    start, hyper = tree_map(
        lambda v: v.double() if v.is_floating_point() else v, (everyone.start, everyone.hyper)
    )
    pairs = program.load_pairs(0, train_size=200, test_size=1)[0].double()
    epochs = 4  # the temperature has an effect from the third on
    method = everyone.method
    together = program.train(method.of_population(), start, hyper, pairs, epochs)
    singles = [
        program.train(method, *program.take((start, hyper), index), pairs, epochs)
        for index in range(len(start.step))
    ]
    tree_map(
        partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10), together, program.stack(singles)
    )
    ends = torch.cat([field[:: everyone.runs] for field in together.state], dim=1)
    assert (torch.pdist(ends.double()) > 1e-6).all()  # each configuration ends elsewhere


# The physics-informed network.


@pytest.fixture
def double_precision() -> Iterator[None]:
    import_module("helmholtz")  # its constants stay in single precision
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def as_double(tree: Any) -> Any:
    return tree_map(lambda v: v.double() if v.is_floating_point() else v, tree)


@pytest.mark.usefixtures("double_precision")
def test_the_solution_has_no_residual_and_twice_the_solution_has_the_source() -> None:
    program = import_module("helmholtz")
    points = program.draw_points(torch.Generator().manual_seed(0))
    exact = vmap(partial(program.residual, program.solution))(points.inside)
    twice = vmap(partial(program.residual, lambda p: 2 * program.solution(p)))(points.inside)
    source = (1 - 17 * torch.pi**2) * program.solution(points.inside)
    torch.testing.assert_close(exact, torch.zeros_like(exact), rtol=0, atol=1e-12)
    torch.testing.assert_close(twice, source, rtol=0, atol=1e-12)
    assert program.solution(points.edges).abs().max() < 1e-14
    assert {*points.edges.abs().amax(dim=2).flatten().tolist()} == {1.0}


@pytest.mark.usefixtures("double_precision")
def test_each_method_trains_a_population_as_its_module_trains_one_network(tmp_path: Path) -> None:
    program = import_module("helmholtz")
    settings = program.Settings(steps=4, seeds=1)
    together = program.train(as_double(program.begin(1)), settings, tmp_path, every=4)
    values = [(m, value) for m in program.METHODS.values() for value in m.values.tolist()]
    for index, (method, value) in enumerate(values):
        network = program.make_network(0)
        program.train_alone(network, method.module(value), settings, lambda: None)
        member = {name: tensors[index] for name, tensors in together.parameters.items()}
        alone = {name: tensor.detach() for name, tensor in network.named_parameters()}
        torch.testing.assert_close(member, alone, rtol=1e-9, atol=1e-10)


def test_a_killed_population_ends_as_one_that_was_never_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = import_module("helmholtz")
    settings = program.Settings(steps=3, seeds=1)
    whole = program.train(program.begin(1), settings, tmp_path / "whole", every=1)

    def save_and_die(*args: Any, **options: Any) -> None:
        save(*args, **options)
        raise KeyboardInterrupt

    save = program.save
    monkeypatch.setattr(program, "save", save_and_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            program.train(program.begin(1), settings, tmp_path / "killed", every=1)
    monkeypatch.undo()
    assert_equal(program.train(program.begin(1), settings, tmp_path / "killed", every=1), whole)
