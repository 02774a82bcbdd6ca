"""Mounting a store as a file system: runs the program ``pagestone-fuse``, which lies in the package.

Nothing here touches a mount: the program reads the kernel's list, and asks file systems from throw-away processes with a time limit.
So these functions return, whatever state a server is in.
"""

from __future__ import annotations

import os
import subprocess
from typing import NamedTuple

_SECONDS = 40.0  # the longest that umount and status may take, with all their own limits


class MountError(Exception):
    """It could not be mounted or unmounted; one line with the cure."""


class Mounted(NamedTuple):
    """One mounted store. state: "answers", "no answer" (its server is stopped or busy), "dead", or an error."""

    directory: str
    store: str
    state: str


def server() -> str:
    """Path of the program."""
    path = os.environ.get("PAGESTONE_SERVER") or os.path.join(os.path.dirname(__file__), "bin", "pagestone-fuse")
    if not os.access(path, os.X_OK):
        raise MountError(f"the program {path} is not there: install pagestone again, or set PAGESTONE_SERVER")
    return path


def _run(*args: str, limit: float | None = _SECONDS) -> str:
    """Its output. In a process group of its own: Ctrl-C ends this process, and the program ends by itself."""
    p = subprocess.Popen(
        [server(), *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = p.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        p.kill()  # it may hang in the kernel: nobody waits for it
        raise MountError("no answer: look for a stopped server (pagestone umount --force DIR)") from None
    if p.returncode:
        lines = err.strip().splitlines()
        text = lines[-1] if lines else f"{server()} ended with status {p.returncode}"
        raise MountError(text.removeprefix("pagestone-fuse: ").removeprefix("error: "))
    return out


def _options(read_only: bool, allow_other: bool) -> list[str]:
    return [*(["--read-only"] if read_only else []), *(["--allow-other"] if allow_other else [])]


def mount(store: str, directory: str, *, read_only: bool = False, allow_other: bool = False) -> None:
    """Returns when the mount answers; its server runs on in the background."""
    _run("--view", *_options(read_only, allow_other), "--", store, directory, limit=None)


def mount_here(store: str, directory: str, *, read_only: bool = False, allow_other: bool = False) -> None:
    """Becomes the server, which runs until it is unmounted."""
    path = server()
    os.execv(path, [path, "--view", "--foreground", *_options(read_only, allow_other), "--", store, directory])


def umount(directory: str, *, lazy: bool = False, force: bool = False) -> None:
    """lazy: the name goes now, the rest with its last user. force: users get errors."""
    how = ["--force"] if force else ["--lazy"] if lazy else []
    _run("--umount", *how, "--", directory)


def mounts(directory: str | None = None) -> list[Mounted]:
    """The stores that are mounted, or that one."""
    lines = _run("--status", *(["--", directory] if directory else [])).splitlines()
    return [Mounted(*line.split("\t")) for line in lines if line.count("\t") == 2]


def can_mount() -> str:
    """What mounting would use; MountError says what is missing."""
    return _run("--can-mount").strip()
