"""``pagestone doctor``: what this machine can do, how a store is, and what to do about it.

Every look runs in a thread of its own with a time limit: a dead network mount or a stopped process makes a line, not a hang.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

from ._cli_out import color, count, emit_json, local, safe, size

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "orangefs", "beegfs"}  # fmt: skip
_REQUIRED = {"ofd": "use a kernel of Linux 3.15 or newer"}
_COST = {
    "pagemap_scan": "commits look for changed pages the slower way (Linux 6.7 has it)",
    "pagemap": "commits compare whole arrays to find what changed",
    "collapse": "huge pages form more slowly (Linux 6.1 has it)",
    "big_window": "stores are mapped piece by piece",
    "proc_fd": "stores without a path lie in a directory of their own in /dev/shm, $TMPDIR or /tmp",
    "map_write": "data is written by system calls",
    "avx2": "checksums are slower",
    "memory_limit": "a store in memory without a quota may fill the memory, and the kernel then kills a process",
    "avx512": "",
}


class Line(NamedTuple):
    """One finding: status is "ok", "warn" or "fail"; cure is "" when there is nothing to do."""

    name: str
    status: str
    text: str
    cure: str = ""


def _read(path: str) -> str:
    with open(path) as f:
        return f.read().strip()


# --- the machine -----------------------------------------------------------------------------------------------------


def _python() -> Iterator[Line]:
    import numpy

    from . import __version__

    yield Line("pagestone", "ok", f"{__version__} in {os.path.dirname(__file__)}")
    v = sys.version_info
    text = f"{platform.python_implementation()} {platform.python_version()}, NumPy {numpy.__version__}"
    old = v < (3, 9)
    yield Line("python", "warn" if old else "ok", text, "use Python 3.9 or newer" if old else "")


def _kernel() -> Iterator[Line]:
    machine = platform.machine()
    known = machine in ("x86_64", "aarch64")
    yield Line(
        "kernel",
        "ok" if sys.platform == "linux" and known else "warn",
        f"{platform.system()} {platform.release()}, {machine}",
        "" if known else "x86-64 and arm64 are what Pagestone is written for",
    )
    page = os.sysconf("SC_PAGE_SIZE")
    good = page == 4096
    yield Line(
        "page size",
        "ok" if good else "fail",
        f"{page} B",
        "" if good else "boot a kernel with pages of 4 KiB: stores need it",
    )


def _capabilities() -> Iterator[Line]:
    from ._core import capabilities

    for name, (on, reason) in capabilities().items():
        if on:
            yield Line(f"can {name}", "ok", "yes")
        elif name in _REQUIRED:
            yield Line(f"can {name}", "fail", f"no ({reason})", _REQUIRED[name])
        else:
            cost = _COST.get(name, "slower")
            cure = "unset PAGESTONE_WITHOUT" if "PAGESTONE_WITHOUT" in reason else ""
            yield Line(f"can {name}", "warn" if cost else "ok", f"no ({reason})" + (f": {cost}" if cost else ""), cure)


def _shm() -> Iterator[Line]:
    path = "/dev/shm"
    if not os.path.isdir(path):
        yield Line(
            path, "warn", "is not there", "mount a tmpfs there; stores without a path (pagestone.open()) work without"
        )
        return
    use = shutil.disk_usage(path)
    fs = file_system(path)
    text = f"{fs}, {size(use.total)}, {size(use.free)} free"
    if fs != "tmpfs":
        yield Line(path, "warn", text, "it is not in memory: mount a tmpfs there")
    elif not os.access(path, os.W_OK):
        yield Line(path, "warn", f"{text}, not writable", "chmod 1777 /dev/shm as root, or use stores without a path")
    elif use.free < 1 << 28:
        yield Line(
            path,
            "warn",
            text,
            "remove what is not needed, or make it larger: mount -o remount,size=8G /dev/shm; docker run --shm-size=8g",
        )
    else:
        yield Line(path, "ok", text)


def _kernel_limits() -> Iterator[Line]:
    if not os.path.exists("/proc/sys/vm"):
        yield Line("vm.max_map_count", "warn", "unknown", "mount /proc to see the kernel's limits")
        return
    n = int(_read("/proc/sys/vm/max_map_count"))
    low = n < 65530
    yield Line(
        "vm.max_map_count",
        "warn" if low else "ok",
        str(n),
        "sysctl vm.max_map_count=65530: each view may need a mapping" if low else "",
    )
    if int(_read("/proc/sys/vm/overcommit_memory")) == 2:
        yield Line(
            "vm.overcommit_memory",
            "warn",
            "2",
            "sysctl vm.overcommit_memory=0: writable views of large arrays are charged in full otherwise",
        )


def _limits() -> Iterator[Line]:
    yield from _kernel_limits()
    for name, what, cure in (
        ("RLIMIT_AS", "address space", "ulimit -v unlimited: stores map far more than they use"),
        ("RLIMIT_FSIZE", "file size", "ulimit -f unlimited: a store is one large sparse file"),
    ):
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY:
            yield Line(f"limit of {what}", "warn", size(soft), cure)
    yield from _memory()


def _memory() -> Iterator[Line]:
    from ._core import memory_limit

    found = memory_limit()
    if found is None:
        yield Line("memory for stores", "warn", "not limited: a store in memory without a quota may fill it all")
        return
    by, left, kept, total = found
    low = left < 1 << 28
    yield Line(
        "memory for stores",
        "warn" if low else "ok",
        f"{size(left)} may be taken by stores without a quota, of {size(total)} ({by}); {size(kept)} stay free",
        ("free memory" if by == "machine" else "raise the limit of the cgroup, or free memory") if low else "",
    )


def _fuse() -> Iterator[Line]:
    from . import _mount

    name = "can mount"
    try:
        yield Line(name, "ok", f"yes: stores as file systems, cold data page by page ({_mount.can_mount()})")
    except _mount.MountError as e:
        text, _, cure = str(e).partition(": ")
        yield Line(name, "warn", f"no: {text}; cold data is decompressed when it is opened", cure)
        return
    for m in _mount.mounts():
        text = f"{m.store}, {m.state}"
        if m.state == "answers":
            yield Line(f"mount {m.directory}", "ok", text)
        else:
            force = " --force" if m.state == "no answer" else ""
            yield Line(
                f"mount {m.directory}", "warn", text, f"pagestone umount{force} {m.directory}, then mount it again"
            )


def _works() -> Iterator[Line]:
    import numpy as np

    import pagestone as ps

    with ps.open() as s:
        s["x"] = np.arange(3)
        with s.begin() as t:
            t["x"][1] = 7
        good = s["x"].tolist() == [0, 7, 2] and s.check().ok
    yield Line(
        "a store in memory",
        "ok" if good else "fail",
        "works" if good else "gave wrong data",
        "" if good else "please report it, with this output",
    )


# --- a store ---------------------------------------------------------------------------------------------------------


def file_system(path: str) -> str:
    """The type of the file system that holds `path`, from /proc/self/mountinfo: no system call that can hang."""
    path = os.path.abspath(path)
    best, fs = "", "unknown"
    if not os.path.exists("/proc/self/mountinfo"):
        return fs
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].encode().decode("unicode_escape")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, fs = point, right.split()[0]
    return fs


def _place(path: str) -> Iterator[Line]:
    fs = file_system(path)
    if fs in _NETWORK:
        yield Line(
            "file system", "fail", fs, "move the store to a local disk or tmpfs: network file systems are refused"
        )
        return
    use = shutil.disk_usage(path)
    low = use.free < 1 << 26
    yield Line(
        "file system",
        "warn" if low else "ok",
        f"{fs}, {size(use.total)}, {size(use.free)} free",
        "make room: commits will fail" if low else "",
    )


def _owner(path: str) -> Iterator[Line]:
    st = os.stat(path)
    me = os.geteuid()
    text = f"{stat.filemode(st.st_mode)}, uid {st.st_uid}, gid {st.st_gid}; you are uid {me}"
    cure = ""
    if st.st_uid not in (me, 0):
        cure = "it belongs to another user: pickled objects are refused unless you open it with allow_pickle=True"
    elif st.st_mode & 0o022:
        cure = (
            f"others can write it, so pickled objects are refused: chmod go-w {path}, or open it with allow_pickle=True"
        )
    if not os.access(path, os.W_OK):
        text += ", read only for you"
    yield Line("owner and mode", "warn" if cure else "ok", text, cure)


def _opens(path: str, timeout: float) -> Iterator[Line]:
    import pagestone as ps

    with ps.open(path, "r", timeout=timeout) as s:
        info, st = s.info(), s.stat()
        kept = count(st.versions, "version")
        yield Line(
            "opens",
            "ok",
            f"version {s.version}, {count(st.objects, 'object')}, {kept}, durability {info['durability']}",
        )
        if info["size"]:
            used = st.live + st.history + st.pinned + st.meta
            full = used > 0.9 * info["size"]
            yield Line(
                "quota",
                "warn" if full else "ok",
                f"{size(used)} of {size(info['size'])} used",
                "raise it (pagestone.open(path, size=…)) or keep less history" if full else "",
            )
        yield from _readers(s)
        if st.leaked:
            yield Line("leaked", "warn", size(st.leaked), f"pagestone gc {path}")
        report = s.check(data=False)
        if report.ok:
            yield Line("metadata", "ok", count(report.pages, "page"))
        for obj, problem in report.errors[:20]:
            yield Line(
                "metadata",
                "fail",
                f"{obj or 'the store'}: {problem}",
                f"pagestone check {path}, then restore: pagestone export what is readable",
            )


def _readers(s: Any) -> Iterator[Line]:
    others = [r for r in s.readers() if r.pid != os.getpid()]
    held = sum(r.bytes for r in others)
    if not others:
        yield Line("readers", "ok", "none")
        return
    oldest = min(
        others, key=lambda r: r.since.timestamp() if r.since else float("inf")
    )  # None: a reader without write permission
    text = f"{len(others)}, the oldest {oldest.command or 'read only'}[{oldest.pid or '-'}] since {local(oldest.since) if oldest.since else 'some time'}; {size(held)} kept alive only by readers"
    much = held > 1 << 30
    yield Line(
        "readers",
        "warn" if much else "ok",
        text,
        "end the readers that are not needed, or let them take new snapshots" if much else "",
    )


# --- running them ----------------------------------------------------------------------------------------------------


def _look(name: str, look: Callable[[], Iterator[Line]], timeout: float) -> tuple[list[Line], bool]:
    """The lines of one look, and whether it is stuck."""
    lines: list[Line] = []

    def body() -> None:
        try:
            for line in look():
                lines.append(line)
        except BaseException as e:
            text = " ".join(str(e).split()) or type(e).__name__
            lines.append(Line(name, "fail", f"{type(e).__name__}: {text}"))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        return [
            *lines,
            Line(
                name,
                "fail",
                f"gave no answer within {timeout:g} s",
                "look for a dead mount or a stopped process; --timeout waits longer",
            ),
        ], True
    return lines, False


def doctor(store: str | None, timeout: float, as_json: bool) -> int:
    """Print the findings; 1 if something fails."""
    looks: list[tuple[str, Callable[[], Iterator[Line]]]] = [
        ("python", _python), ("kernel", _kernel), ("capabilities", _capabilities), ("/dev/shm", _shm), ("limits", _limits),
        ("file systems", _fuse), ("a store in memory", _works),
    ]  # fmt: skip
    if store is not None:
        path = os.path.abspath(store)
        looks += [
            ("file system", lambda: _place(path)),
            ("owner and mode", lambda: _owner(path)),
            ("opens", lambda: _opens(path, timeout / 2)),
        ]
    stuck = False
    lines: list[Line] = []
    for name, look in looks:
        found, hangs = _look(name, look, timeout)
        stuck |= hangs
        lines += found
        if not as_json:
            for line in found:
                _show(line)
    failed = any(line.status == "fail" for line in lines)
    if as_json:
        emit_json({"ok": not failed, "checks": [line._asdict() for line in lines]})
    if stuck:  # a thread may never come back, and would keep the process from ending
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    return 1 if failed else 0


def _show(line: Line) -> None:
    mark = color(f"{line.status:<4}", {"ok": "green", "warn": "yellow", "fail": "red"}[line.status])
    print(f"{mark}  {line.name:<20}  {safe(line.text)}", flush=True)
    if line.cure:
        print(f"{'':<4}  {'':<20}  {color('->', 'bold')} {safe(line.cure)}", flush=True)
