"""The supervisor: workers may die at any instruction, and nobody hangs whatever dies or is missing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import Server, mounted

pytestmark = pytest.mark.usefixtures("needs_fuse")

READER = """
import mmap, os, random, sys, time
import numpy as np
path, seconds, seed, how = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
factor, r, end, n = np.uint64(0x9E3779B97F4A7C15), random.Random(seed), time.monotonic() + seconds, 0
while time.monotonic() < end:
    fd = os.open(path, os.O_RDONLY)  # each open drops what the kernel has cached
    for _ in range(20):
        off = r.randrange(0, (1 << 30) - (4 << 20)) & -4096
        if how == "read":
            b = os.pread(fd, 1 << 20, off)
        else:
            b = mmap.mmap(fd, 1 << 20, mmap.MAP_SHARED, mmap.PROT_READ, offset=off)
        a = np.frombuffer(b, "u8")
        i = np.arange(off // 8, off // 8 + (1 << 17), dtype="u8")
        assert a.nbytes == 1 << 20 and np.array_equal(a, i * factor), (off, a.nbytes)
        n += 1
    os.close(fd)
print(n)
"""


@pytest.fixture
def point(folder: Path) -> Path:
    path = folder / "mnt"
    path.mkdir()
    return path


def run(*command: object, timeout: float = 30, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A throw-away process with a time limit."""
    return subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}
    )


def read(path: Path) -> str:
    p = run("cat", path)
    assert p.returncode == 0, p.stderr
    return p.stdout


# --- deaths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["read", "mmap"])
def test_a_worker_killed_100_times_under_load_costs_no_read(toy: Path, point: Path, servers: list[Server], how: str):
    s = Server(toy, "/tmp", point)
    servers.append(s)
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, point / "data", "13", str(i), how], stdout=subprocess.PIPE)
        for i in range(2)
    ]
    rnd = random.Random(how)
    for _ in range(100):
        s.kill_worker()
        time.sleep(rnd.uniform(0.03, 0.15))
    for r in readers:
        out, _ = r.communicate(timeout=60)
        assert r.returncode == 0
        assert int(out) > 100
    starts, resent = map(int, read(point / "starts").split())
    assert starts == 101
    assert resent > 0  # else this test did not test what it says


def test_what_a_worker_kept_outlives_it(toy: Path, point: Path, servers: list[Server]):
    s = Server(toy, "/tmp", point)
    servers.append(s)
    assert run("sh", "-c", 'echo "for the next one" > "$0"', point / "note").returncode == 0
    for _ in range(3):
        s.kill_worker()
        assert read(point / "note") == "for the next one\n"


def test_a_request_that_kills_each_worker_ends_the_mount(toy: Path, point: Path, servers: list[Server]):
    s = Server(toy, "/tmp", point)
    servers.append(s)
    p = run("tail", "-c", "10", point / "data")
    assert p.returncode != 0
    assert s.process.wait(10) == 1
    assert "again and again" in s.messages()
    assert s.messages().count("died: it was killed by signal 6") == 6


def test_without_resend_a_death_is_an_error_and_no_hang(toy: Path, point: Path, servers: list[Server]):
    s = Server(toy, "/tmp", point, env={"PAGESTONE_WITHOUT": "avx2,resend"})
    servers.append(s)
    assert read(point / "starts") == "1 0\n"
    s.kill_worker()
    assert s.process.wait(10) == 1
    p = run("cat", point / "starts")
    assert "not connected" in p.stderr
    assert "Linux 6.9" in s.messages()


def test_supervisor_and_worker_killed_then_mounted_again(toy: Path, point: Path, servers: list[Server]):
    s = Server(toy, "/tmp", point)
    servers.append(s)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, point / "data", "30", "1", "read"], stderr=subprocess.PIPE, text=True
    )
    time.sleep(0.5)
    worker = s.worker
    s.process.kill()
    os.kill(worker, signal.SIGKILL)
    _, err = reader.communicate(timeout=20)
    assert reader.returncode != 0 and ("not connected" in err or "aborted" in err or "(" in err)
    assert run(toy, "--status", point).stdout == f"{point}\t/tmp\tdead\n"
    again = Server(toy, "/tmp", point)  # takes the stale mount away by itself
    servers.append(again)
    assert read(point / "starts") == "1 0\n"
    assert run(toy, "--status", point).stdout == f"{point}\t/tmp\tanswers\n"


def test_a_killed_supervisor_leaves_a_worker_that_serves_on(toy: Path, point: Path, servers: list[Server]):
    s = Server(toy, "/tmp", point)
    servers.append(s)
    worker = s.worker
    s.process.kill()
    s.process.wait()
    assert run("sh", "-c", ': > "$0"', point / "note").returncode == 0  # nobody keeps it, nobody will need it
    assert read(point / "starts") == "1 0\n"
    assert run(toy, "--umount", point).returncode == 0
    for _ in range(500):
        stat = Path(f"/proc/{worker}/stat")
        if not stat.exists() or ") Z " in stat.read_text():
            return
        time.sleep(0.01)
    raise AssertionError("the worker did not end")


def test_a_stopped_worker_hangs_nobody_who_looks(toy: Path, point: Path, servers: list[Server]):
    s = Server(toy, "/tmp", point)
    servers.append(s)
    worker = s.worker
    os.kill(worker, signal.SIGSTOP)
    start = time.monotonic()
    assert run(toy, "--status", point).stdout == f"{point}\t/tmp\tno answer\n"
    p = run(toy, "--view", "/tmp", point)
    assert p.returncode == 1 and "--force" in p.stderr
    assert time.monotonic() - start < 10
    reader = subprocess.Popen(["cat", point / "starts"], stdout=subprocess.PIPE)
    time.sleep(0.2)
    os.kill(worker, signal.SIGCONT)
    assert reader.communicate(timeout=10)[0] == b"1 0\n"


def test_a_stopped_server_is_unmounted_by_force(toy: Path, point: Path, servers: list[Server]):
    s = Server(toy, "/tmp", point)
    servers.append(s)
    os.kill(s.worker, signal.SIGSTOP)
    reader = subprocess.Popen(["cat", point / "starts"], stderr=subprocess.PIPE)
    time.sleep(0.3)
    p = run(toy, "--umount", "--force", point)
    assert p.returncode == 0, p.stderr
    reader.communicate(timeout=10)
    assert reader.returncode == 1
    assert not mounted(point)


# --- orderly ends ----------------------------------------------------------------------------------------------------


def test_unmounting_ends_the_server(toy: Path, point: Path, servers: list[Server]):
    s = Server(toy, "/tmp", point)
    servers.append(s)
    p = run(toy, "--umount", point)
    assert (p.returncode, p.stderr) == (0, "")
    assert s.process.wait(10) == 0
    p = run(toy, "--umount", point)
    assert p.returncode == 1 and p.stderr == f"pagestone-fuse: nothing is mounted at {point}\n"


def test_what_is_open_keeps_a_mount_until_it_is_closed(toy: Path, point: Path, servers: list[Server]):
    s = Server(toy, "/tmp", point)
    servers.append(s)
    with open(point / "starts", "rb", buffering=0) as f:
        p = run(toy, "--umount", point)
        assert p.returncode == 1 and "in use" in p.stderr and "--lazy" in p.stderr
        assert run(toy, "--umount", "--lazy", point).returncode == 0
        assert not mounted(point)
        assert f.read() == b"1 0\n"
        assert s.process.poll() is None
    assert s.process.wait(10) == 0


def test_a_signal_unmounts_and_a_second_one_ends(toy: Path, point: Path, servers: list[Server]):
    s = Server(toy, "/tmp", point)
    servers.append(s)
    fd = os.open(point / "starts", os.O_RDONLY)
    s.process.send_signal(signal.SIGINT)
    for _ in range(500):
        if not mounted(point):
            break
        time.sleep(0.01)
    assert os.pread(fd, 10, 0) == b"1 0\n"
    s.process.send_signal(signal.SIGTERM)
    assert s.process.wait(10) == 1
    with pytest.raises(OSError):
        os.pread(fd, 10, 0)
    with contextlib.suppress(OSError):
        os.close(fd)


def test_in_the_background_it_returns_when_it_answers(toy: Path, point: Path):
    p = run(toy, "--view", "/tmp", point)
    try:
        assert (p.returncode, p.stdout, p.stderr) == (0, "", "")
        assert read(point / "starts") == "1 0\n"
    finally:
        assert run(toy, "--umount", point).returncode == 0


# --- what is missing -------------------------------------------------------------------------------------------------


def refused(p: subprocess.CompletedProcess[str], *words: str) -> None:
    assert p.returncode == 1
    assert p.stderr.count("\n") == 1, p.stderr
    for word in words:
        assert word in p.stderr


def test_each_missing_piece_is_one_line_that_names_the_cure(toy: Path, point: Path, folder: Path):
    refused(run(toy, "--view", "/tmp/broken", point), "/tmp/broken is no store")
    assert not mounted(point)
    refused(run(toy, "--view", "/tmp", folder / "nowhere"), "nowhere is not there")
    refused(run(toy, "--view", "/tmp", toy), "is not a directory")
    refused(
        run(toy, "--view", "/tmp", point, env={"PAGESTONE_LIBFUSE": "/nowhere.so"}), "libfuse3", "apt install fuse3"
    )
    refused(run(toy, "--can-mount", env={"PAGESTONE_LIBFUSE": "/nowhere.so"}), "apt install fuse3")
    assert run(toy, "--view", "/tmp").returncode == 2


def test_a_second_mount_on_a_living_one_is_refused(toy: Path, point: Path, servers: list[Server]):
    servers.append(Server(toy, "/tmp", point))
    refused(run(toy, "--view", "/tmp", point), "already", "pagestone umount")


NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def as_nobody(*command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=30, user=NOBODY, group=NOBODY, extra_groups=[],
        env={**os.environ, **(env or {})}, cwd="/",
    )  # fmt: skip


@pytest.fixture
def for_nobody(toy: Path, folder: Path) -> Path:
    """A mount point and a copy of the program that another user reaches."""
    folder.chmod(0o755)
    point = folder / "theirs"
    point.mkdir()
    os.chown(point, NOBODY, NOBODY)
    program = folder / "toy"
    program.write_bytes(toy.read_bytes())
    program.chmod(0o755)
    return point


@pytest.fixture
def open_device():
    """/dev/fuse for everybody, as distributions have it, while a test runs."""
    mode = os.stat("/dev/fuse").st_mode & 0o777
    os.chmod("/dev/fuse", 0o666)
    yield
    os.chmod("/dev/fuse", mode)


@needs_root
def test_a_device_that_may_not_be_opened_is_one_line(for_nobody: Path):
    if os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
        pytest.skip("/dev/fuse is open to everybody")
    refused(as_nobody(for_nobody.parent / "toy", "--view", "/tmp", for_nobody), "no permission", "chmod 666 /dev/fuse")


@needs_root
def test_an_ordinary_user_mounts_with_fusermount3(for_nobody: Path, open_device: None):
    program = for_nobody.parent / "toy"
    p = as_nobody(program, "--view", "/tmp", for_nobody)
    assert (p.returncode, p.stderr) == (0, "")
    try:
        assert as_nobody("cat", for_nobody / "starts").stdout == "1 0\n"
        assert as_nobody(program, "--status", for_nobody).stdout == f"{for_nobody}\t/tmp\tanswers\n"
        assert run("cat", for_nobody / "starts").returncode == 1  # not even root, without --allow-other
        supervisor = server_of(for_nobody.parent)
        os.kill(int(Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text()), signal.SIGKILL)
        assert as_nobody("cat", for_nobody / "starts").stdout == "2 0\n"
    finally:
        p = as_nobody(program, "--umount", for_nobody)
    assert (p.returncode, p.stderr) == (0, "")
    assert not mounted(for_nobody)


def server_of(folder: Path) -> int:
    for p in Path("/proc").glob("[0-9]*"):
        try:
            if (p / "comm").read_text() == "pgs-supervisor\n" and str(folder) in (p / "cmdline").read_text():
                return int(p.name)
        except OSError:
            pass
    raise AssertionError("no supervisor")


@needs_root
def test_without_fusermount3_an_ordinary_user_is_told(for_nobody: Path, open_device: None, tmp_path_factory):
    if not os.path.exists("/usr/bin/unshare"):
        pytest.skip("no unshare")
    # A mount namespace in which /usr/bin/fusermount3 is a file that nobody can execute.
    script = (
        'mount --bind /etc/hostname "$(readlink -f "$(command -v fusermount3)")" && '
        f'exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "$0" --view /tmp "$1"'
    )
    p = run("unshare", "-m", "sh", "-c", script, for_nobody.parent / "toy", for_nobody)
    if "unshare" in p.stderr or "setpriv" in p.stderr or "mount:" in p.stderr:
        pytest.skip(p.stderr.strip())
    refused(p, "fusermount3", "fuse3")


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_mounts_lists_and_unmounts(point: Path, folder: Path):
    import pagestone as ps

    pagestone = [sys.executable, "-m", "pagestone"]
    with ps.open(str(folder / "s.ps"), "w") as s:
        s["a/x"] = np.arange(10)
    p = run(*pagestone, "mount", folder / "s.ps", point)
    assert (p.returncode, p.stdout, p.stderr) == (0, "", "")
    try:
        check = "import numpy, sys; assert (numpy.load(sys.argv[1], mmap_mode='r') == numpy.arange(10)).all()"
        assert run(sys.executable, "-c", check, point / "head/a/x.npy").returncode == 0
        assert f"{point}  {folder / 's.ps'}  answers" in run(*pagestone, "mount").stdout
        listed = run(*pagestone, "mount", "--json").stdout
        assert f'"directory": "{point}"' in listed and '"state": "answers"' in listed
        doctor = run(*pagestone, "doctor", timeout=60).stdout
        assert "can mount" in doctor and str(point) in doctor
    finally:
        p = run(*pagestone, "umount", point)
    assert (p.returncode, p.stdout, p.stderr) == (0, "", "")
    p = run(*pagestone, "umount", point)
    assert (p.returncode, p.stderr) == (1, f"pagestone: nothing is mounted at {point}\n")
    p = run(*pagestone, "mount", folder / "none.ps", point)
    assert p.returncode == 1 and p.stderr.count("\n") == 1 and "no store at" in p.stderr
    p = run(*pagestone, "mount", folder / "s.ps", point, env={"PAGESTONE_SERVER": "/nowhere"})
    assert p.returncode == 1 and "PAGESTONE_SERVER" in p.stderr


def test_doctor_does_not_hang_on_a_stopped_server(toy: Path, point: Path, servers: list[Server]):
    s = Server(toy, "/tmp", point)
    servers.append(s)
    os.kill(s.worker, signal.SIGSTOP)
    p = run(sys.executable, "-m", "pagestone", "doctor", timeout=60)
    assert "no answer" in p.stdout and f"pagestone umount --force {point}" in p.stdout


def test_many_files_open_and_close_while_workers_die(toy: Path, point: Path, servers: list[Server]):
    s = Server(toy, "/tmp", point)
    servers.append(s)
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.05):
            s.kill_worker()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        loop = 'for i in $(seq 300); do cat "$0" > /dev/null || exit 1; done'
        p = run("sh", "-c", loop, point / "starts", timeout=60)
    finally:
        stop.set()
        killer.join()
    assert p.returncode == 0, p.stderr


def test_a_starter_that_is_dead_when_the_server_is_ready_leaves_no_mount(toy: Path, point: Path):
    ready, told = os.pipe()
    held, hold = os.pipe()
    os.close(ready)  # as if the starter had been killed: the line "ready" meets a broken pipe
    command = [toy, "--view", "--foreground", "--ready-fd", str(told), "--hold-fd", str(held), "/tmp", point]
    p = subprocess.Popen(command, pass_fds=[told, held], stderr=subprocess.DEVNULL)
    os.close(told)
    os.close(held)
    try:
        deadline = time.monotonic() + 20
        while not mounted(point) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        os.close(hold)
        assert p.wait(20) == 0
        assert not mounted(point)
    finally:
        p.kill()
        run(toy, "--umount", "--force", point)
