"""Ranks: processes that stand by, and run each job that they are given as one process group.

To import torch takes seconds, to form a group of processes that have done so milliseconds. Nothing
here can hang: a job that outlives its time is killed with its processes, a process that is gone is
replaced before the next job, and one whose parent is gone ends.
"""

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

#: How long a collective waits for the other ranks, which may be at compiling something. No test
#: waits for that: a rank that fails leaves the group at once, and takes the others with it.
PATIENCE = timedelta(seconds=60)


@dataclass(frozen=True)
class Returned:
    """What a rank's job returned."""

    value: Any


@dataclass(frozen=True)
class Failed:
    """A rank's job ended with an exception, after so many seconds."""

    error: str
    traceback: str
    seconds: float


@dataclass(frozen=True)
class Died:
    """A rank's process ended before its job did."""

    exitcode: int | None


Outcome = Returned | Failed | Died


class Ranks:
    """Up to ``most`` processes. A job is a function of a module that they can import."""

    def __init__(self, most: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._jobs = 0
        self._members = [_Member() for _ in range(most)]

    def run(self, job: Callable[..., Any], *arguments: Any, ranks: int, **limits: Any) -> list[Any]:
        """What ``job(*arguments)`` returns on each of so many ranks; it must fail on none."""
        outcomes = self.outcomes(job, *arguments, ranks=ranks, **limits)
        # The first rank to fail takes the others with it: the reason is its own.
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        if failures:
            raise RuntimeError(min(failures, key=lambda failure: failure.seconds).traceback)
        assert all(isinstance(outcome, Returned) for outcome in outcomes), outcomes
        return [outcome.value for outcome in outcomes if isinstance(outcome, Returned)]

    def outcomes(
        self,
        job: Callable[..., Any],
        *arguments: Any,
        ranks: int,
        timeout: float = 90,
        patience: timedelta = PATIENCE,
    ) -> list[Outcome]:
        """How ``job(*arguments)`` ended on each of so many ranks.

        Raises:
            TimeoutError: some rank had not ended after ``timeout`` seconds. All are killed then.
        """
        self._members = [m if m.process.is_alive() else _Member() for m in self._members]
        members = self._members[:ranks]
        self._jobs += 1
        store = str(Path(self._folder.name, f"store-{self._jobs}"))
        for rank, member in enumerate(members):
            member.connection.send_bytes(
                pickle.dumps((job, arguments, rank, ranks, store, patience))
            )
        deadline = time.monotonic() + timeout
        ended: dict[Connection, Outcome] = {}
        while len(ended) < ranks:
            waiting = [m.connection for m in members if m.connection not in ended]
            ready = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not ready:
                self._kill()
                raise TimeoutError(f"{len(waiting)} of {ranks} ranks run after {timeout} s.")
            for member in members:
                if member.connection in ready:
                    ended[member.connection] = member.receive()
        return [ended[member.connection] for member in members]

    def close(self) -> list[int | None]:
        """Let the processes end by themselves, and return their exit codes."""
        for member in self._members:
            member.connection.close()
        for member in self._members:
            member.process.join(10)
        self._kill()
        self._folder.cleanup()
        return [member.process.exitcode for member in self._members]

    def _kill(self) -> None:
        for member in self._members:
            member.process.kill()
        for member in self._members:
            member.process.join(10)

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


class _Member:
    """A process and the way to talk to it."""

    def __init__(self) -> None:
        # Spawned: a fork of a process that has threads, as torch's has, may inherit a held lock.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_stand_by, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def receive(self) -> Outcome:
        try:
            outcome: Outcome = pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.process.join(10)
            outcome = Died(self.process.exitcode)
        return outcome


def _stand_by(connection: Connection) -> None:
    """Run jobs until the parent closes the pipe, or is gone."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    # One compiler for all the ranks of a machine; by default each keeps one process a core.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        finally:
            _leave()  # not before all the others have ended: they may still be on their way in
        # By bytes: through a pipe torch would pass handles of memory that ends with this process.
        connection.send_bytes(pickle.dumps(_run(*pickle.loads(request))))


def _run(
    job: Callable[..., Any],
    arguments: tuple[Any, ...],
    rank: int,
    ranks: int,
    store: str,
    patience: timedelta,
) -> Outcome:
    begin = time.monotonic()
    try:
        files = dist.FileStore(store, ranks)
        dist.init_process_group("gloo", rank=rank, world_size=ranks, store=files, timeout=patience)
        return Returned(job(*arguments))
    except Exception as error:
        seconds = time.monotonic() - begin
        _leave()
        return Failed(f"{type(error).__name__}: {error}", traceback.format_exc(), seconds)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
