"""Mounts for tests: each has a time limit after which its connection is aborted, and is taken away whatever happened."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pagestone as ps
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SERVER = Path(ps.__file__).parent / "bin" / "pagestone-fuse"
LIMIT = 150  # seconds after which a mount's users get errors


def why_not() -> str | None:
    """The reason to skip everything here, or None."""
    if not SERVER.exists():
        return f"{SERVER} is not built"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as e:
        return f"/dev/fuse cannot be opened: {e.strerror}"
    p = subprocess.run([SERVER, "--can-mount"], capture_output=True, text=True)
    return p.stderr.strip() or None


class Server:
    """A server in the foreground, and where it is mounted."""

    def __init__(self, program: Path, store: str, directory: Path, *options: str, env: dict[str, str] | None = None):
        self.program, self.directory = program, directory
        self.err_path = directory.parent / f"{directory.name}.stderr"
        ready, told = os.pipe()
        with open(self.err_path, "ab") as err:
            self.process = subprocess.Popen(
                [program, "--view", "--foreground", "--ready-fd", str(told), *options, store, directory],
                stdin=subprocess.DEVNULL, stderr=err, env={**os.environ, **(env or {})}, pass_fds=[told],
            )  # fmt: skip
        os.close(told)
        # In a process of its own: a page fault on a hanging mount stops every thread of this one that wants the interpreter.
        self.watchdog = subprocess.Popen(
            ["sh", "-c", f'sleep {LIMIT}; exec "$0" --umount --force "$1"', program, directory],
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        with open(ready) as f:
            line = f.read()
        assert line == "ready\n", line + self.messages()

    def messages(self) -> str:
        return self.err_path.read_text(errors="replace")

    @property
    def worker(self) -> int:
        """The pid of the worker that lives; waits for one."""
        pid = self.process.pid
        for _ in range(1000):
            with contextlib.suppress(OSError):
                found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                if found:
                    return int(found[0])
            time.sleep(0.005)
        raise AssertionError("no worker comes")

    def kill_worker(self) -> None:
        os.kill(self.worker, signal.SIGKILL)

    def end(self) -> None:
        for pid in (self.process.pid, *children(self.process.pid)):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        for how in ("--lazy", "--force"):
            if mounted(self.directory):
                subprocess.run([self.program, "--umount", how, self.directory], capture_output=True, timeout=60)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
                break
        else:
            for pid in (*children(self.process.pid), self.process.pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(10)
        with contextlib.suppress(OSError):
            os.killpg(self.watchdog.pid, signal.SIGKILL)
        self.watchdog.wait(10)


def children(pid: int) -> list[int]:
    try:
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def mounted(directory: Path) -> bool:
    return any(line.split()[1] == str(directory) for line in Path("/proc/self/mounts").read_text().splitlines())


@pytest.fixture(scope="session")
def needs_fuse() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def toy(needs_fuse: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server with a program of a hundred lines in the view's place."""
    compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("toy") / "toy"
    own = [
        ROOT / "fuse" / f"{f}.c" for f in ("lib", "mount", "unmount", "child", "keep", "worker", "supervise", "main")
    ]
    command = [compiler, "-std=gnu11", "-g", "-O1", "-Wall", "-Werror", f"-I{ROOT}", ROOT / "tests/fuse/toy.c", *own]
    subprocess.run([*command, "-pthread", "-ldl", "-o", path], check=True)
    return path


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short-lived and private; goes away with what is in it."""
    path = Path(tempfile.mkdtemp(prefix="pagestone-fuse-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Servers put here are ended after the test."""
    all_: list[Server] = []
    yield all_
    for s in all_:
        s.end()
