"""The toy problem of FAMO's paper: its formulas, its front, and who arrives there."""

import math
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from examples import digits
from mtl_scalarize import FAMO, IMTLL, UW

EXAMPLES = Path(digits.__file__).parent


@pytest.fixture(scope="module")
def toy() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)  # as when Python runs a program of that folder
        yield import_module("examples.famo_toy")


FAR_UP = 6 + math.log(2.5)  # of both losses at (0, 40), but for the factor


@pytest.mark.parametrize(
    ("x", "losses"),
    [
        ((0.0, 0.0), (0.0, 0.0)),
        ((7.0, -8.0), (-2 * math.tanh(4), -0.4 * math.tanh(4))),  # the lowest point of one bowl
        ((-7.0, -8.0), (-0.04 * math.tanh(4), -20 * math.tanh(4))),  # and of the other
        ((0.0, 40.0), (0.1 * FAR_UP, FAR_UP)),
        ((-5.0, 40.0), (0.1 * (6 + math.log(5e-6)), 6 + math.log(5))),  # in one valley
        ((5.0, 40.0), (0.1 * (6 + math.log(5)), 6 + math.log(5e-6))),  # and in the other
        (
            (3.0, 2.0),  # where the sign of each hyperbolic tangent shows
            (
                0.1 * math.tanh(1) * (6 + math.log(5 - math.tanh(2))),
                math.tanh(1) * (6 + math.log(2 - math.tanh(2))),
            ),
        ),
    ],
)
def test_the_losses_are_those_of_the_paper(
    x: tuple[float, float], losses: tuple[float, float], toy: ModuleType
) -> None:
    actual = toy.losses_of(torch.tensor(x, dtype=torch.float64))
    torch.testing.assert_close(actual, torch.tensor(losses, dtype=torch.float64))


def test_nothing_is_better_than_the_front(toy: ModuleType) -> None:
    front = toy.losses_of(toy.pareto_front())
    first, second = front.T
    assert (first.diff() < 0).all()  # along the front, one loss falls
    assert (second.diff() > 0).all()  # and the other rises
    plane = torch.linspace(-11, 11, 221, dtype=torch.float64)
    losses = toy.losses_of(torch.cartesian_prod(plane, plane))
    # The first point of the front with no more of the one loss has no more of the other, either.
    index = torch.searchsorted(-first, -losses[:, 0])
    assert index.max() < len(first)
    gap = losses[:, 1] - second[index]
    assert -0.05 < gap.min() < 0.05  # as far as its points are apart


@pytest.mark.parametrize("name", ["plain sum", "UW", "IMTL-L", "FAMO", "FAMO amortized"])
def test_all_starts_at_once_are_as_each_alone_with_the_modules(name: str, toy: ModuleType) -> None:
    steps = 100
    ends = toy.descend(toy.METHODS[name.removesuffix(" amortized")], steps)[-1]
    for start, end in zip(toy.STARTS, ends, strict=True):
        x = start.clone().requires_grad_()
        scalarizer = {
            "plain sum": lambda: None,
            "UW": lambda: UW(2).double(),
            "IMTL-L": lambda: IMTLL(2).double(),
        }.get(
            name,
            lambda: FAMO(
                2, toy.MIN_LOSSES, 0.025, weight_decay=0.0, amortized=name.endswith("amortized")
            ).double(),
        )()
        groups = [{"params": [x], "lr": 1e-3}]
        if isinstance(scalarizer, (UW, IMTLL)):
            groups.append({"params": scalarizer.parameters(), "lr": 0.025})
        optimizer = torch.optim.Adam(groups)
        for _ in range(steps):
            losses = toy.losses_of(x)
            optimizer.zero_grad()
            if scalarizer is None:
                losses.sum().backward()
            elif isinstance(scalarizer, FAMO):
                scalarizer(losses).backward()
            else:
                scalarizer(losses - toy.MIN_LOSSES).backward()
            optimizer.step()
            if name == "FAMO":
                with torch.no_grad():
                    scalarizer.update(toy.losses_of(x))
        # At (0, 0) the tasks are alike but for FAMO's eps: the first deltas differ by rounding and
        # little else, and Adam makes a whole step of it.
        tolerance = 1e-10 if start.any() else 1e-8
        torch.testing.assert_close(end, x.detach(), rtol=0, atol=tolerance)


def test_clip_limits_the_norm_of_the_gradient(toy: ModuleType) -> None:
    start = toy.Descent(toy.STARTS[2], toy.no_moments(toy.STARTS[2]), ())
    free, loose, clipped = (
        toy.take_step(toy.METHODS["plain sum"], clip, start).moments.mean / 0.1
        for clip in (math.inf, 1e3, 1e-3)
    )
    assert torch.equal(free, loose)
    torch.testing.assert_close(clipped, 1e-3 * free / free.norm())


def test_famo_arrives_from_all_starts_and_the_plain_sum_does_not(toy: ModuleType) -> None:
    front = toy.pareto_front()
    famo = toy.distance_to(front, toy.descend(toy.METHODS["FAMO"], toy.STEPS)[-1])
    plain = toy.distance_to(front, toy.descend(toy.METHODS["plain sum"], toy.STEPS)[-1])
    assert (famo < toy.REACHED).all()
    assert plain[2] > 5
    assert (plain[[0, 1, 3, 4]] < toy.REACHED).all()


def test_the_quick_run_prints_a_table_and_draws_a_picture(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "famo_toy.py", "--quick"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=tmp_path,
    )
    for text in ("plain sum", "(-7.5, -0.5)", "Reached, of 5 starts: plain sum 0, UW 0", "picture"):
        assert text in run.stdout
    assert "FAMO: 100%" in run.stderr
    assert (tmp_path / "famo_toy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--out", "missing/folder/toy.png"], "argument --out: cannot write"),
        (["--out", "toy.txt"], "argument --out: expected a .png, .pdf or .svg file"),
        (["--clip", "0"], "argument --clip: expected a number above 0, found '0'"),
        (["--clip", "one"], "argument --clip: expected a number above 0, found 'one'"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_bad_flag_gets_one_clear_line(
    flags: list[str], complaint: str, toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        toy.main(flags)
    assert stop.value.code == 2
    *usage, last = capsys.readouterr().err.splitlines()
    assert complaint in last
    assert "Traceback" not in "".join(usage)
