"""Ranks: processes that stand by, and run each job that they are given as one process group.

Importing torch takes seconds, forming a group of processes that have done so takes milliseconds.
Nothing here can hang: a job that outlives its time is killed with its processes, a process that is
gone is replaced before the next job, and one whose parent is gone ends.
"""

import gc
import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

# An optimizer imports it. Imported while there is a process group, it would keep that for ever.
import torch._dynamo
import torch.distributed as dist

#: Seconds that a collective waits for the other ranks, which may be compiling. No test waits so
#: long: a rank that fails leaves the group at once, and the collectives of the others fail with it.
PATIENCE = 60.0
#: Seconds until a job is killed.
TIMEOUT = 90.0


@dataclass(frozen=True)
class Failed:
    """A rank's job raised an exception or its process ended, after so many seconds."""

    reason: str
    seconds: float


class Ranks:
    """Up to ``most`` processes. A job is a function of a module that they can import."""

    def __init__(self, most: int, folder: Path) -> None:
        self._folder = folder
        self._jobs = 0
        self._members = [_Member() for _ in range(most)]

    def run(self, job: Callable[..., Any], *arguments: Any, ranks: int) -> list[Any]:
        """What ``job(*arguments)`` returns on each of so many ranks; it must fail on none."""
        outcomes = self.outcomes(job, *arguments, ranks=ranks)
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        if failures:  # the first one has the reason, the others fail because of it
            raise RuntimeError(min(failures, key=lambda failure: failure.seconds).reason)
        return outcomes

    def outcomes(self, job: Callable[..., Any], *arguments: Any, ranks: int) -> list[Any]:
        """What ``job(*arguments)`` returns on each of so many ranks, or how it `Failed`."""
        self._members = [m if m.process.is_alive() else _Member() for m in self._members]
        self._jobs += 1
        store = str(self._folder / f"store-{self._jobs}")
        begin = time.monotonic()
        members = {member.connection: member for member in self._members[:ranks]}
        for rank, connection in enumerate(members):
            connection.send_bytes(pickle.dumps((job, arguments, rank, ranks, store)))
        ended: dict[Any, Any] = {}
        while len(ended) < ranks:
            ready = wait(members.keys() - ended, max(0.0, begin + TIMEOUT - time.monotonic()))
            if not ready:
                self.close()
                raise TimeoutError(f"{ranks - len(ended)} of {ranks} ranks ran for {TIMEOUT} s.")
            for connection in ready:
                try:
                    ended[connection] = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionResetError):
                    process = members[connection].process
                    process.join(10)
                    reason = f"exit code {process.exitcode}"
                    ended[connection] = Failed(reason, time.monotonic() - begin)
        return [ended[connection] for connection in members]

    def close(self) -> None:
        for member in self._members:
            member.process.kill()
        for member in self._members:
            member.process.join(10)


class _Member:
    """A process and the way to talk to it."""

    def __init__(self) -> None:
        # Spawned: a fork of a process that has threads, as torch's has, may inherit a held lock.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_stand_by, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe


def _stand_by(connection: Connection) -> None:
    """Run jobs until the parent closes the pipe, or is gone."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    # One compiler for all the ranks of a machine; by default each keeps one process a core.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # Or a job that fails at once would end the connections of a rank still on its way in.
    os.environ["TORCH_DIST_INIT_BARRIER"] = "1"
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        finally:
            _leave()  # not before the others have ended: they may still be receiving
        # By bytes: through a pipe torch would pass handles of memory that ends with this process.
        connection.send_bytes(pickle.dumps(_run(*pickle.loads(request))))


def _run(job: Callable[..., Any], arguments: Any, rank: int, ranks: int, store: str) -> Any:
    begin = time.monotonic()
    files = dist.FileStore(store, ranks)
    patience = timedelta(seconds=PATIENCE)
    # Not in the `try`: where this fails, torch counts groups wrongly, and the process has to end.
    dist.init_process_group("gloo", rank=rank, world_size=ranks, store=files, timeout=patience)
    try:
        return job(*arguments)
    except Exception:
        failed = Failed(traceback.format_exc(), time.monotonic() - begin)
    _leave()
    gc.collect()  # the last reference to the group holds its connections
    return failed


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
