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
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from mtl_scalarize import Constant, Scalarizer, sum_weights

NEEDED = "accelerate lightning matplotlib pandas rich sklearn tensorboard tqdm transformers"
for package in NEEDED.split():
    pytest.importorskip(package, reason="the examples need it: pip install '.[ci]'")

EXAMPLES = Path(__file__).parent.parent / "examples"
KILLS = int(os.environ.get("KILLS", "2"))
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
SPREAD = f"{NUMBER} ± {NUMBER}"
TWO_RANKS = "-m torch.distributed.run --standalone --nproc-per-node=2"
METRICS = rf"FAMO( +{NUMBER}){{4}}"  # all that a program prints which compares no methods

pytestmark = [
    pytest.mark.usefixtures("no_accelerator_left"),
    # Lightning's own code uses torch's deprecated LeafSpec.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # A test resumes into another directory.
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Program:
    """How a program is run, and what it prints: patterns, each of exactly one line."""

    def __init__(
        self,
        *lines: str,
        writes: str | None = "--out=picture.svg",
        flags: str = "--epochs=1",  # that make `--quick` quicker
        launcher: str = "-W error",
        prepare: Callable[[], object] = lambda: None,  # what it reads
    ) -> None:
        self.lines, self.writes, self.prepare = lines, writes, prepare
        self.flags, self.launcher = flags.split(), launcher.split()


def write_molecules() -> None:
    """Random ones in the form of qm9pack's files, which have more columns."""
    program, generator = import_module("qm9"), random.Random(0)

    def molecule() -> dict[str, Any]:
        elements = generator.choices("HCNOF", k=generator.randint(3, 9))
        places = [[generator.uniform(-4, 4) for _ in range(3)] for _ in elements]
        targets = {target.column: generator.uniform(-1, 1) for target in program.TARGETS}
        return {"SMILES": "", "Elements": str(elements), "XYZ_Ang": str(places), **targets}

    Path("molecules").mkdir()
    for part in (1, 2, 3):
        table = program.pd.DataFrame([molecule() for _ in range(40)])
        table.to_csv(f"molecules/qm9_part{part}.csv", index=False)


def write_compounds() -> None:
    """Random ones in the form of the files of `chemicals`."""
    program, generator = import_module("compounds"), random.Random(0)
    numbers = [f"{number}-00-0" for number in range(50, 350)]

    def values() -> list[float]:
        return [generator.uniform(300, 400) for _ in numbers]

    tables = {source: {"CAS": numbers} for source in program.SOURCES}
    for source, targets in program.SOURCES.items():
        tables[source] |= {target.column: values() for target in targets}
    tables[program.COMMON]["Vml"] = [1e-6 * value for value in values()]
    tables[program.CHEMSEP]["HeatOfFusionAtMeltingPoint"] = [1e5 * value for value in values()]
    for folder in ("Misc", "Phase Change", "Identifiers"):
        Path("chemicals", folder).mkdir(parents=True)
    for source, columns in tables.items():
        table, path = program.pd.DataFrame(columns), Path("chemicals", source)
        if source in (program.CHEMSEP, program.FUELS):
            table = table[::15]  # few labels
        if source == program.CHEMSEP:
            items = [
                "".join(f'<{name} value="{value}" />' for name, value in row.items())
                for row in table.to_dict("records")
            ]
            path.write_text(
                f"<compounds><compound>{'</compound><compound>'.join(items)}</compound></compounds>"
            )
        elif source == program.FUELS:
            for name in ("CETANE", "RON", "MON"):
                table[["CAS", name]].to_csv(str(path).format(name), sep="\t", index=False)
        else:
            table.to_csv(path, sep="\t", index=False)
    smiles = ["C" * generator.randint(1, 9) + generator.choice(["O", "N", "Cl"]) for _ in numbers]
    lines = [
        f"1\t{n}\tC3H7ClO\t94.5\t{s}\tInChI\tname" for n, s in zip(numbers, smiles, strict=True)
    ]
    for size in ("large", "small"):
        Path("chemicals", program.IDENTIFIERS.format(size)).write_text("\n".join(lines))


PROGRAMS = {
    "digits": Program(rf"FAMO(?: *{SPREAD}){{5}} +{NUMBER}"),
    "detection": Program(rf"UW( +{NUMBER}){{4}}", writes=None, flags="--method UW"),
    "compounds": Program(
        rf"LogSum, floor( +{SPREAD}){{3}} +{NUMBER}",
        rf"RON( +{NUMBER}){{8}}",
        rf"FAMO( +{SPREAD}){{5}}( +{NUMBER}){{2}}",
        flags="--data=chemicals --steps=2",
        prepare=write_compounds,
    ),
    "distributed": Program(
        METRICS,
        r"between any two ranks +0\.0e\+00 +0\.0e\+00",
        r"2 ranks - one process +\d\.\de-1\d +\d\.\de-1\d",
        writes="--checkpoint=run.pt",
        flags="--verify --epochs=2",
        launcher=TWO_RANKS,
    ),
    "famo_toy": Program(
        rf"IMTLL +\({NUMBER}, {NUMBER}\)( +{NUMBER}){{3}} +(yes|no)",
        r"Reached, of 5 starts: Sum \d, LogSum \d, STCH \d, UW \d, IMTLL \d, .*",
        flags="",
    ),
    "gradnorm_toy": Program(
        r"method +scale 1 +scale 4\.64 .*", rf"ReLoBRaLo( +{NUMBER}){{6}}", flags="--seeds=1"
    ),
    "helmholtz": Program(
        rf"fixed weight +weight 1( +{NUMBER}){{4}}",
        rf"relative L2 error {NUMBER} after Adam, {NUMBER} after L-BFGS",
        flags="--steps=2",
        # torch's own `jvp` scripts a function.
        launcher="-W error -W ignore:`torch.jit.script`",
    ),
    "hypergradient": Program(
        rf"logits, left digit( +{NUMBER}){{4}}",
        rf"FAMO +lr 0\.025, logits 0 0 0 0( +{NUMBER}){{2}}",
        flags="--iterations=2",
    ),
    "instances": Program(
        r"30 % wrong +% right .*",
        rf"UW by position( +{NUMBER}){{5}}",
        rf"UW by position( +{NUMBER}){{4}}",
        writes=None,
        flags="--epochs=2",
    ),
    "population": Program(
        rf"FAMO, paper's +lr 0\.025, decay 0\.001( +{NUMBER}){{5}}",
        rf"DWA, paper's +temperature 2( +{SPREAD}){{5}}",
        rf"FAMO +4( +{NUMBER} s){{2}} +{NUMBER}",
        flags="--side=2 --epochs=1",
    ),
    "priorities": Program(
        rf"LogSum, loss times p( +{NUMBER}){{5}}",
        rf"COSMOS +{NUMBER} +{NUMBER} % +{NUMBER}",
    ),
    "qm9": Program(
        rf"FAMO +{SPREAD}( +{NUMBER}){{4}}",
        rf"FAMO( +{NUMBER}){{11}}",
        rf" *0\.025 +0\.001( +{NUMBER}){{3}}",
        flags="--data=molecules --molecules=80 --epochs=1",
        prepare=write_molecules,
    ),
    "resume": Program(METRICS, writes="--dir=folder"),
    "worth": Program(
        r"digits, AdamW, width 64: 1 seeds, 1 epochs, 4 vectors",
        rf"best of 4 constant +{NUMBER} +4 +{NUMBER}",
        flags="--epochs=1 --vectors=4 --optimizer=AdamW",
        launcher="-W error -W ignore:`torch.jit.script",  # by torch's own compiler
    ),
    "with_accelerate": Program(
        r"processes: 2, .*: 0\.0e\+00",
        METRICS,
        writes="--dir=folder",
        launcher="-m accelerate.commands.launch --multi_gpu "
        "--num_processes=2 --main_process_port=0",
    ),
    "with_lightning": Program(METRICS, writes="--dir=folder", launcher=""),
    "with_tensorboard": Program(
        "tensorboard --logdir folder", writes="--dir=folder", flags="--method=UW --epochs=1"
    ),
    "with_transformers": Program(
        rf"FAMO( +{NUMBER}){{3}}", writes="--dir=folder", launcher=TWO_RANKS
    ),
}
WRITERS = {name: program.writes for name, program in PROGRAMS.items() if program.writes}
RESUMED = {  # from what the second epoch left, where a flag says so
    "distributed": None,
    "with_accelerate": "epoch-2",
    "with_lightning": "epoch=1.ckpt",
    "with_transformers": "checkpoint-20",
}

Load = Callable[[str], ModuleType]


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


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


def as_double(tree: Any) -> Any:
    return tree_map(lambda v: v.double() if v.is_floating_point() else v, tree)


# Every program.


def test_every_program_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs(name: str) -> None:
    program = PROGRAMS[name]
    program.prepare()
    flags = ["--quick", *program.flags, *filter(None, [program.writes])]
    command = [sys.executable, *program.launcher, EXAMPLES / f"{name}.py", *flags]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    for line in program.lines:
        assert len(re.findall(rf"^{line} *$", finished.stdout, flags=re.M)) == 1, line
    caution = "quick run: too short to compare methods"
    assert finished.stdout.count(caution) == (METRICS not in program.lines)
    if program.writes is not None:
        written = Path(program.writes.partition("=")[2])
        assert written.is_dir() or written.stat().st_size > 0
        if written.suffix == ".svg":  # in which the text is a comment
            assert caution in written.read_text()
            assert not re.search(r"<!-- (Results|\d of \d)", written.read_text())


def complaint(name: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which a program refuses to go on."""
    with pytest.raises(SystemExit) as stop:
        import_module(name).main(flags)
    if stop.value.code == 2:  # argparse has printed the usage and the line
        return capsys.readouterr().err.splitlines()[-1]
    assert "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize(
    ("name", "flag", "expected"),
    [
        *((name, "--fast", "unrecognized arguments: --fast$") for name in PROGRAMS),
        *((name, flag.replace("=", "=UW/"), r"cannot \w+ .*UW") for name, flag in WRITERS.items()),
        ("distributed", "--checkpoint=UW", "is not a checkpoint of this program"),
        ("instances", "--wrong=101", "--wrong: expected an integer from 0 to 100"),
        ("qm9", "--data=.", r"no qm9_part\*\.csv in"),
        ("with_accelerate", "--resume=.", "holds no checkpoint of --method FAMO"),
        ("with_lightning", "--resume=UW", "holds no checkpoint of --method FAMO"),
        ("with_tensorboard", "--dir=.", "UW is there already: remove it, or give"),
        ("with_transformers", "--resume=UW", "--resume: no checkpoint of this program at"),
    ],
)
def test_a_wrong_flag_or_value_gets_one_line(
    name: str, flag: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("UW").write_text("not a checkpoint")
    assert re.search(expected, complaint(name, [flag], capsys))


@pytest.mark.parametrize(
    "package", ["accelerate", "lightning", "torch.utils.tensorboard", "transformers"]
)
def test_a_missing_package_gets_one_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "with_" + package.rpartition(".")[2]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit, match=rf"^{name}\.py: error: needs (\w+): pip install \1$"):
        import_module(name)


# The loop that serves every method.


class Verbs(Scalarizer):
    """Keeps which of its verbs were called; an update wants other losses than those of the call."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def combine(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        self.called.append("call")
        self.losses = losses.detach()
        return super().combine(losses, mask)

    def weigh(self, losses: Tensor, mask: Tensor | None) -> Tensor:
        return sum_weights(losses, mask=mask)

    def update(self, losses: Callable[[], Tensor], mask: Tensor | None = None) -> None:
        with torch.no_grad():
            if (losses() != self.losses).any():
                self.called.append("update")

    def step(self) -> None:
        self.called.append("step")


@pytest.mark.parametrize(
    "name", ["digits", "gradnorm_toy", "instances", "qm9", "resume", "with_tensorboard", *RESUMED]
)
def test_the_loop_updates_after_every_tenth_step_and_steps_after_each_epoch(
    name: str, short: Load, monkeypatch: pytest.MonkeyPatch
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
        write_molecules()
        monkeypatch.setattr(program, "BATCH_SIZE", 20)
        data = program.split(program.load(Path("molecules"), 80), seed=0)
        program.train(data, range(11), "FAMO", {}, 1e-3, 0, epochs=2)
    else:
        program.main(["--method=FAMO", "--epochs=2", WRITERS[name]])
    steps = verbs.called.count("call") // 2
    assert steps > 1
    seldom = 1 if name in ("instances", "with_transformers") else 10
    rows = [["call", "update"][: 2 - (index % seldom > 0)] for index in range(steps)]
    assert verbs.called == 2 * [*chain.from_iterable(rows), "step"]


# Runs that stop and go on.


def saved(path: Path) -> dict[str, Any]:
    """What a program has left after the third epoch."""
    if path.is_file():
        return torch.load(path, weights_only=True)["training"]
    if (lightning := path / "epoch=2.ckpt").exists():
        checkpoint = torch.load(lightning, weights_only=True)
        return {part: checkpoint[part] for part in ("state_dict", "optimizer_states", "loops")}
    if (accelerate := path / "epoch-3").exists():
        path, parts = accelerate, ("custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.bin")
    else:
        path, parts = path / "checkpoint-30", ("scalarizer.pt", "optimizer.pt", "scheduler.pt")
    state = {part: torch.load(path / part, weights_only=True) for part in parts}
    return state | import_module("safetensors.torch").load_file(path / "model.safetensors")


@pytest.mark.parametrize("method", ["DWA", "FAMO"])
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_is_bit_identical(name: str, method: str, short: Load) -> None:
    program, flag = short(name), WRITERS[name].partition("=")[0]
    whole, parts = [f"--method={method}", f"{flag}=whole"], [f"--method={method}", f"{flag}=parts"]
    program.main([*whole, "--epochs=3"])
    if (checkpoint := RESUMED[name]) is None:
        program.main([*parts, "--epochs=2"])
    else:
        parts.append(f"--resume=whole/{checkpoint}")
    program.main([*parts, "--epochs=3"])
    assert_equal(saved(Path("parts")), saved(Path("whole")))


@pytest.mark.parametrize(
    "method", import_module("examples.digits").METHODS if "KILLS" in os.environ else ["DWA"]
)
def test_a_killed_run_is_bit_identical(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, directory = import_module("resume"), Path("killed")
    flags = [f"--method={method}", f"--epochs={KILLS + 4}", "--batch-size=800", "--every=1"]
    program.main([*flags, "--dir=whole"])
    flags.append("--dir=killed")
    for _ in range(KILLS):
        behind = program.checkpoints(directory)[-1:]
        command = [sys.executable, EXAMPLES / "resume.py", *flags]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while program.checkpoints(directory)[-1:] == behind:
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))  # a few steps, each with a save
        process.kill()
        assert process.wait() == -signal.SIGKILL
    capsys.readouterr()
    program.main(flags)
    assert capsys.readouterr().out.startswith("resumed ")
    (*_, expected), (*_, last) = map(program.checkpoints, (Path("whole"), directory))
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
)
def test_it_passes_over_a_damaged_checkpoint_and_stops_if_all_are(
    damage: Callable[[Path], object], reason: str, short: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    program = short("resume")
    program.main(SHORT)
    *_, older, newest = program.checkpoints(Path("runs/resume"))
    expected = program.read(newest)["training"]
    damage(newest)
    capsys.readouterr()
    program.main(SHORT)
    passed_over, resumed, *_ = capsys.readouterr().out.splitlines()
    assert passed_over.startswith(f"passed over {newest}: {reason}")
    assert resumed == f"resumed {older} after 9 steps"
    assert_equal(program.read(newest)["training"], expected)
    assert newest.with_suffix(".damaged").exists()
    for path in program.checkpoints(Path("runs/resume")):
        damage(path)
    assert "error: no checkpoint is whole" in complaint("resume", SHORT, capsys)


def test_other_settings_are_refused(short: Load, capsys: pytest.CaptureFixture[str]) -> None:
    short("resume").main(SHORT)
    line = complaint("resume", [*SHORT, "--seed=2"], capsys)
    assert re.search("is of another training: .*seed is 1 there and 2", line)


def test_qm9_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    program = import_module("qm9")

    class Stopped(program.tqdm):
        """A progress bar that does not live to see the seventh training."""

        def update(self, n: float | None = 1) -> bool | None:
            if self.unit == "training" and self.n == 6:
                raise KeyboardInterrupt
            return super().update(n)

    write_molecules()
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


@pytest.mark.parametrize(
    ("name", "flags", "shown", "prints"),
    [
        (
            "digits",
            "--epochs=1 --seeds=9999 --out=p.svg",
            "FAMO, seed 1",
            r"\nFAMO +\d",
        ),
        ("hypergradient", "--out=p.svg", "%", None),
        ("resume", "--epochs=9999", "%", None),
        ("with_lightning", "--epochs=9999", "Loading `train_dataloader`", None),
    ],
)
def test_ctrl_c_ends_with_one_line_after_what_is_finished(
    name: str, flags: str, shown: str, prints: str | None
) -> None:
    command = [sys.executable, EXAMPLES / f"{name}.py", *flags.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        printed = ""
        while shown not in printed:
            printed += process.stderr.read(1)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.endswith("\nstopped\n")
    assert prints is None or re.search(prints, output)


def test_no_handwritten_digit_is_both_trained_and_tested_on() -> None:
    pairs = import_module("digits").load_pairs(0)
    train, test = ({image.numpy().tobytes() for image in part.drawing} for part in pairs)
    assert min(len(train), len(test)) > 300
    assert not train & test


def test_tensorboard_shows_the_weights_that_the_demo_trains_with(short: Load) -> None:
    program = short("with_tensorboard")
    program.main(["--method=DWA", "--epochs=3", "--every=1"])
    events = import_module("tensorboard.backend.event_processing.event_accumulator")
    run = events.EventAccumulator("runs/tensorboard/DWA").Reload()
    curves = [run.Scalars(f"weight/{task.name}") for task in program.TASKS]
    shown = torch.tensor([[event.value for event in curve] for curve in curves])
    _, history = import_module("digits").train("DWA", program.load_pairs(1)[0], 3, seed=1)
    assert (history[-1] != 1).all()
    torch.testing.assert_close(shown.T.unflatten(0, (3, -1)).mean(dim=1), history)


@pytest.mark.parametrize("name", ["Sum", "LogSum", "UW", "IMTLL", "FAMO"])
def test_all_starts_at_once_end_as_each_with_a_module_and_torchs_adam(name: str) -> None:
    toy, make = import_module("famo_toy"), import_module("digits").METHODS[name]
    decay = {"weight_decay": 0.0} if "FAMO" in name else {}
    ends = toy.descend(toy.METHODS[name], 50)[-1]
    for x, end in zip(toy.STARTS.clone(), ends, strict=True):
        scalarizer = make(2, **decay).double()
        groups = [
            {"params": [x.requires_grad_()]},
            {"params": scalarizer.parameters(), "lr": 0.025},
        ]
        optimizer = torch.optim.Adam(groups, lr=1e-3)
        for _ in range(50):
            optimizer.zero_grad()
            scalarizer(toy.losses_of(x) - toy.MIN_LOSSES).backward()
            optimizer.step()
            scalarizer.update(lambda x=x: toy.losses_of(x) - toy.MIN_LOSSES)
        torch.testing.assert_close(x.detach(), end, rtol=0, atol=1e-6)


def test_famo_reaches_the_front_from_every_start() -> None:
    toy = import_module("famo_toy")
    ends = toy.descend(toy.METHODS["FAMO"], 30_000)[-1]
    assert (toy.distance_to(toy.pareto_front(), ends) < toy.REACHED).all()


def test_famo_leaves_no_task_behind() -> None:
    toy = import_module("gradnorm_toy")
    examples = toy.make_examples(0, 2000)
    plain, famo = (toy.train(method, *examples, 6, seed=0)[-1] for method in ("Sum", "FAMO"))
    assert plain.max() > 1.2  # worse than before the training
    assert famo.max() < 1
    assert famo.mean() < plain.mean() - 0.05


def test_instances_with_wrong_labels_weigh_little() -> None:
    program = import_module("instances")
    train, test = program.load(0, wrong=0.3)
    network, weights = program.train("FAMO", train, 60, seed=0)
    plain, _ = program.train("Mean", train, 60, seed=0)
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


def test_a_missing_label_has_no_effect_but_a_filled_one() -> None:
    program = import_module("compounds")
    write_compounds()
    data = program.split(program.load(Path("chemicals"), 300), 0)
    lacking = program.halved(data, 0)
    rows = program.np.isnan(lacking.train.targets)
    assert rows.sum() > program.np.isnan(data.train.targets).sum()
    ron = program.NAMES.index(program.HALVED)
    other = program.Compounds(lacking.train.features.copy(), lacking.train.targets)
    other.features[rows[:, ron]] += 1.0  # only other targets are known of these

    def train(train: Any, tasks: list[int], **options: bool) -> Any:
        split = lacking._replace(train=train)
        return program.train(split, tasks, "LogSum", 1e-3, 0, 8, **options).errors

    assert_equal(*map(torch.tensor, (train(lacking.train, [ron]), train(other, [ron]))))
    masked, filled = (train(lacking.train, [0, ron], filled=filled) for filled in (False, True))
    assert abs(masked - filled).max() > 1e-4


def test_elements_are_counted() -> None:
    program = import_module("compounds")
    counts = program.np.expm1(program.describe(["C2H5ClO", "CHNSi"], ["CC(O)Cl", "C"]))[:, :11]
    names = {
        name: number for name, number in zip(program.ELEMENTS, counts[0], strict=True) if number
    }
    assert names == pytest.approx({"C": 2, "H": 5, "Cl": 1, "O": 1})
    assert counts[1].tolist() == pytest.approx([1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1])


def test_energies_are_those_of_atomisation() -> None:
    program = import_module("qm9")
    methane = {target.column: [-40.47893] for target in program.TARGETS}
    methane |= {"Elements": ["['C','H','H','H','H']"], "XYZ_Ang": [str(torch.eye(5, 3).tolist())]}
    program.pd.DataFrame(methane).to_csv("qm9_part1.csv")
    energy = program.load(Path(), 1).targets[0, 6] / 1000  # in eV
    assert energy == pytest.approx(-395.999 / 23.0605, rel=1e-4)  # published in kcal/mol


@pytest.mark.parametrize("sweep", ["famo_sweep", "dwa_sweep"])
def test_each_member_of_a_population_is_trained_as_if_alone(sweep: str) -> None:
    program = import_module("population")
    everyone = getattr(program, sweep)(side=2)
    # In float64: Adam divides by the size of the gradient, and enlarges rounding errors.
    start, hyper = as_double((everyone.start, everyone.hyper))
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


@pytest.mark.parametrize("problem", ["digits", "QM9"])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_constant_weights_are_trained_together_as_each_alone(
    problem: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, qm9 = import_module("worth"), import_module("qm9")
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    monkeypatch.setattr(program, "MOLECULES", 80)
    monkeypatch.setattr(qm9, "packaged", lambda: Path("molecules"))
    load, sizes = program.load_parts, {1200: 300, 200: 100, 397: 100}
    monkeypatch.setattr(program, "load_parts", lambda seed, device, _: load(seed, device, sizes))
    write_molecules()
    of_tasks = program.PROBLEMS[problem]()
    setting = program.Setting(problem, optimizer, 16, (1e-3,), vectors=2, epochs=3)
    parts = of_tasks.load(0, "cpu")
    together = program.train_vectors(setting, parts, 0, lambda: None)[0]
    for weights, metrics in zip(program.draw_vectors(of_tasks, 2), together, strict=True):
        fixed = of_tasks._replace(methods={"fixed": lambda _, weights=weights: Constant(weights)})
        monkeypatch.setitem(program.PROBLEMS, problem, lambda fixed=fixed: fixed)
        alone = program.train_method("fixed", setting, 1e-3, parts, 0)
        torch.testing.assert_close(metrics, alone, rtol=1e-4, atol=1e-4)


# The physics-informed network.


@pytest.fixture
def double_precision() -> Iterator[None]:
    import_module("helmholtz")  # its constants stay in single precision
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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
def test_each_method_trains_a_population_as_its_module_trains_one_network() -> None:
    program = import_module("helmholtz")
    settings = program.Settings(steps=4, seeds=1)
    together = program.train(as_double(program.begin(1)), settings, Path(), every=4)
    values = [(m, value) for m in program.METHODS.values() for value in m.values.tolist()]
    for index, (method, value) in enumerate(values):
        network = program.make_network(0)
        program.train_alone(network, method.module(value), settings, lambda: None)
        member = {name: tensors[index] for name, tensors in together.parameters.items()}
        alone = {name: tensor.detach() for name, tensor in network.named_parameters()}
        torch.testing.assert_close(member, alone, rtol=1e-9, atol=1e-10)


def test_a_killed_population_is_bit_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    program = import_module("helmholtz")
    settings = program.Settings(steps=3, seeds=1)
    whole = program.train(program.begin(1), settings, Path("whole"), every=1)

    def save_and_die(checkpoint: dict[str, Any], *args: Any, **options: Any) -> None:
        save(checkpoint, *args, **options)
        steps.append(checkpoint["step"])
        if len(steps) < 3:
            raise KeyboardInterrupt

    save, steps = program.save, []
    monkeypatch.setattr(program, "save", save_and_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            program.train(program.begin(1), settings, Path("killed"), every=1)
    assert_equal(program.train(program.begin(1), settings, Path("killed"), every=1), whole)
    assert steps == [1, 2, 3]
