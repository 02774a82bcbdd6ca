"""Anonymous stores where memfds cannot be opened again (no /proc): a directory that nobody has to know, gone with its last process."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pagestone as ps
import pytest

PROLOGUE = """
import multiprocessing as mp, os, pickle, signal, sys, threading
import numpy as np, pagestone as ps

def directory(s):
    "Where the store lies, which no interface tells."
    name = "pagestone-anonymous-" + s.info()["uuid"]
    found = [p for d in ("/dev/shm", os.environ.get("TMPDIR"), "/tmp") if d and os.path.isdir(p := f"{d}/{name}")]
    assert len(found) == 1, found
    return found[0]
"""


def environment(**more: str) -> dict[str, str]:
    without = ",".join(filter(None, [os.environ.get("PAGESTONE_WITHOUT"), "proc_fd"]))
    folder = os.path.dirname(os.path.dirname(ps.__file__))
    return {**os.environ, "PYTHONPATH": folder, "PAGESTONE_WITHOUT": without, **more}


def run(tmp_path: Path, code: str, *prefix: str, **env: str) -> str:
    """Of a file, because spawned children import it."""
    script = tmp_path / "script.py"
    script.write_text(PROLOGUE + code)
    p = subprocess.run(
        [*prefix, sys.executable, script], capture_output=True, text=True, timeout=120, env=environment(**env)
    )
    assert p.returncode == 0, p.stderr
    return p.stdout


def test_modes_and_what_the_user_sees(tmp_path):
    code = """
for mode in ("a", "w", "x"):
    with ps.open(None, mode) as s:
        i = s.info()
        assert s.path is None and i["path"] is None and i["durability"] == "none" and i["allow_pickle"]
        assert list(s) == [] and s.version == 0
        s["x"] = np.arange(100_000); s["o"] = {"a": 1}
        assert s["x"][-1] == 99_999 and s["o"] == {"a": 1} and s.check().ok
        d = directory(s)
    del s
    assert not os.path.exists(d)
for mode in ("r", "r+"):
    try: ps.open(None, mode)
    except ValueError: print("refused")
"""
    assert run(tmp_path, code) == "refused\nrefused\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_share_it_by_handle(tmp_path, method):
    code = f"""
def work(queue, s, x, n):
    t = threading.Thread(target=s.__setitem__, args=("thread", n)); t.start(); t.join()
    for i in range(20): s[f"k{{n}}/{{i}}"] = x[i:i + 5]
    queue.put(float(x.sum()))

def hang(s, ready):
    t = s.begin(); t["x"][0] = 77
    ready.set(); signal.pause()

if __name__ == "__main__":
    mp.set_start_method({method!r})
    s = ps.open(); d = directory(s)
    s["x"] = np.arange(1000.0)
    assert len(pickle.dumps(s["x"])) <= 300
    queue, ready = mp.Queue(), mp.Event()
    killed = mp.Process(target=hang, args=(s, ready)); killed.start(); assert ready.wait(60)
    workers = [mp.Process(target=work, args=(queue, s, s["x"], n)) for n in range(3)]
    for p in workers: p.start()
    os.kill(killed.pid, signal.SIGKILL); killed.join()
    for p in workers: assert queue.get(timeout=60) == 499500.0
    for p in workers: p.join(); assert p.exitcode == 0
    assert s.version == 1 + 3 * 21 and s["x"][0] == 0 and s["k2/19"][0] == 19
    assert s.check().ok and os.path.isdir(d)
    del s, p, workers, killed
    print(d)
"""
    assert not os.path.exists(run(tmp_path, code).strip())


def test_an_unrelated_process_opens_it_and_may_outlive_the_first(tmp_path):
    code = """
s = ps.open(); s["x"] = np.arange(1000)
sys.stdout.buffer.write(pickle.dumps((s["x"], directory(s)))); sys.stdout.flush()
sys.stdin.read()
"""
    (tmp_path / "first.py").write_text(PROLOGUE + code)
    p = subprocess.Popen(
        [sys.executable, tmp_path / "first.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    assert p.stdin is not None and p.stdout is not None
    x, folder = pickle.load(p.stdout)  # this process may well have /proc/self/fd
    assert x.sum() == 499500 and os.path.isdir(folder)
    handle = pickle.dumps(x)
    p.stdin.close()
    assert p.wait(60) == 0
    p.stdout.close()
    x.store["y"] = x[3:]
    assert pickle.loads(handle).store["y"][0] == 3 and os.path.isdir(folder)
    del x
    assert not os.path.exists(folder)
    with pytest.raises(FileNotFoundError, match="gone"):
        pickle.loads(handle)


def test_what_killed_processes_left_goes_with_the_next_store(tmp_path):
    code = """
s = ps.open(); s["x"] = np.arange(100_000)
if os.fork() == 0:
    s["y"] = 1
    print(directory(s), flush=True); signal.pause()
signal.pause()
"""
    script = tmp_path / "script.py"
    script.write_text(PROLOGUE + code)
    p = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, env=environment(), start_new_session=True, text=True
    )
    assert p.stdout is not None
    folder = p.stdout.readline().strip()
    run(tmp_path, "ps.open()")
    assert os.path.isdir(folder)
    os.killpg(p.pid, signal.SIGKILL)
    p.stdout.read()  # until both are gone
    p.wait()
    p.stdout.close()
    run(tmp_path, "ps.open()")
    assert not os.path.exists(folder)


def test_without_memory_in_dev_shm_it_lies_in_tmpdir(tmp_path):
    (tmp_path / "shm").mkdir()
    (tmp_path / "tmp").mkdir()
    mount = ["unshare", "-m", "sh", "-c", f"mount --bind '{tmp_path}/shm' /dev/shm && exec \"$@\"", "sh"]
    if os.stat("/dev/shm").st_dev == os.stat("/").st_dev:
        mount = []  # it is no memory anyway
    elif subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    code = """
s = ps.open(); s["x"] = np.arange(100_000)
assert s.info()["durability"] == "none"
print(directory(s))
"""
    for tmp in (str(tmp_path / "tmp"), "relative", "/nowhere"):
        where = tmp if tmp.startswith(str(tmp_path)) else "/tmp"
        folder = run(tmp_path, code, *mount, TMPDIR=tmp).strip()
        assert folder.startswith(where + "/pagestone-anonymous-") and not os.path.exists(folder)


def test_arrays_of_share_too(tmp_path):
    code = """
x = ps.share(np.arange(100_000))
assert directory(x.store) and pickle.loads(pickle.dumps(x))[5] == 5
"""
    run(tmp_path, code)
    assert np.all(ps.share(np.arange(3)) == np.arange(3))
