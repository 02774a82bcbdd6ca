"""The command line: what each command prints, writes and returns, and that it fails in one line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import pty
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pagestone as ps
import pytest
from pagestone import _cli, _cli_io, _cli_values, _mount
from pagestone._cli_out import safe, size

ROOT = Path(__file__).resolve().parent.parent.parent


class Result:
    def __init__(self, code: int, out: bytes, err: str):
        self.code, self.raw, self.err = code, out, err

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


@pytest.fixture
def cli(capfdbinary, monkeypatch):
    """Run one command in this process: ``cli("ls", path)``."""
    monkeypatch.delenv("PAGESTONE_DEBUG", raising=False)

    def call(*args: object, code: int = 0) -> Result:
        capfdbinary.readouterr()
        try:
            got = _cli.main([str(a) for a in args])
        except SystemExit as e:
            got = int(e.code or 0)
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        r = Result(got, out, err.decode())
        assert got == code, f"exit {got}: {r.err or r.out}"
        if code:
            assert r.err.count("\n") == 1 and r.err.startswith("pagestone"), r.err
        else:
            assert r.err == ""
        return r

    return call


def command(*args: object, **kw: Any) -> subprocess.CompletedProcess[bytes]:
    """Run one command as a process."""
    return subprocess.run([sys.executable, "-m", "pagestone", *map(str, args)], capture_output=True, timeout=60, **kw)


@pytest.fixture
def path(tmp_path):
    """A store with an array of three versions, bytes, plain values and a pickle."""
    where = tmp_path / "s.ps"
    with ps.open(where, "x", durability="none", history="all", allow_pickle=True) as s:
        s["a/x"] = np.arange(6.0).reshape(2, 3)
        s["a/y"] = b"\0\1\2"
        s["conf"] = {"n": 1, "f": 1.0, "l": [True, None, "s"]}
        s["note"] = "two\nlines"
        s["pickled"] = {1, 2}
        with s.begin(message="set one element") as t:
            t["a/x"][1, 1] = 40
    return where


# --- the program -----------------------------------------------------------------------------------------------------


def test_importing_pagestone_does_not_import_the_command_line():
    code = (
        "import sys, pagestone; print([m for m in sys.modules if '_cli' in m or m in ('argparse', 'tarfile', 'csv')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).stdout == b"[]\n"


def test_help_names_every_command_of_the_contract_and_no_other():
    r = command("--help")
    listed = re.findall(r"^    ([a-z]+) ", r.stdout.decode(), re.M)
    assert listed == [
        "ls",
        "info",
        "cat",
        "get",
        "put",
        "rm",
        "cp",
        "mv",
        "log",
        "diff",
        "at",
        "tag",
        "untag",
        "revert",
        "stat",
        "readers",
        "check",
        "gc",
        "compact",
        "freeze",
        "thaw",
        "export",
        "import",
        "doctor",
        "mount",
        "umount",
    ]
    assert r.returncode == 0 and not r.stderr


def test_the_version_is_that_of_the_module(cli):
    assert cli("--version").out == f"pagestone {ps.__version__}\n"


@pytest.mark.parametrize("args", [["nonsense"], ["ls"], ["ls", "a", "b", "c"], ["rm", "s"], ["log", "s", "-n", "x"]])
def test_wrong_usage_is_exit_code_2_in_one_line(cli, args):
    assert "--help" in cli(*args, code=2).err


def test_no_command_prints_the_help_and_fails():
    r = command()
    assert r.returncode == 2 and b"commands:" in r.stderr and not r.stdout


def test_every_command_has_json_and_its_own_help(cli):
    for name in _cli.make_parser()[1]:
        assert "--json" in cli(name, "--help").out


def test_a_missing_store_is_named_with_the_cure(cli, tmp_path):
    err = cli("ls", tmp_path / "none.ps", code=1).err
    assert "none.ps" in err and "put" in err
    for args in (["rm", "K"], ["tag"], ["gc"], ["check"], ["log"], ["export", tmp_path / "x.tar"]):
        cli(args[0], tmp_path / "none.ps", *args[1:], code=1)
    assert not list(tmp_path.iterdir())


def test_something_else_than_a_store_is_refused(cli, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_text("x")
    cli("ls", tmp_path / "d", code=1)


def test_a_traceback_is_shown_only_on_request(path):
    env = {**os.environ, "PAGESTONE_DEBUG": "1"}
    assert b"Traceback" in command("cat", path, "none", env=env).stderr
    env.pop("PAGESTONE_DEBUG")
    assert b"Traceback" not in command("cat", path, "none", env=env).stderr


def test_a_closed_pipe_is_quiet(path):
    with ps.open(path) as s:
        s["big"] = b"x" * 3_000_000
    p = subprocess.Popen(
        [sys.executable, "-m", "pagestone", "cat", path, "big"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert p.stdout is not None and p.stderr is not None
    p.stdout.read(10)
    p.stdout.close()
    assert p.stderr.read() == b"" and p.wait(30) == 141
    p.stderr.close()


@pytest.mark.parametrize("target", [">/dev/full", ">&-"])
def test_output_that_cannot_be_written_is_a_failure(path, target):
    if "full" in target and not Path("/dev/full").is_char_device():
        pytest.skip("/dev/full is not there")
    r = subprocess.run(f"{shlex.quote(sys.executable)} -m pagestone ls {shlex.quote(str(path))} {target}", shell=True,
                       capture_output=True, timeout=60)  # fmt: skip
    assert r.returncode == 1 and r.stderr.count(b"\n") == 1 and r.stderr.startswith(b"pagestone: ")


@pytest.mark.usefixtures("proc")
def test_ctrl_c_is_exit_code_130_and_changes_nothing(path):
    p = subprocess.Popen(
        [sys.executable, "-m", "pagestone", "put", path, "k", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert p.stdin is not None and p.stderr is not None
    p.stdin.write(b"half")
    p.stdin.flush()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # until it has the store open
        if any("s.ps" in os.readlink(f) for f in Path(f"/proc/{p.pid}/fd").iterdir() if f.is_symlink()):
            break
        time.sleep(0.02)
    time.sleep(0.1)
    p.send_signal(signal.SIGINT)
    assert p.wait(30) == 130
    assert p.stderr.read() == b"pagestone: interrupted\n"
    p.stdin.close()
    p.stderr.close()
    with ps.open(path, "r") as s:
        assert "k" not in s


def test_colours_only_on_a_terminal_and_not_with_no_color(path):
    def shown(**env: str) -> bytes:
        try:
            master, slave = pty.openpty()
        except OSError:  # a bare chroot
            pytest.skip("no pseudo-terminals here")
        e = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
        p = subprocess.Popen(
            [sys.executable, "-m", "pagestone", "log", path], stdout=slave, env={**e, "TERM": "xterm", **env}
        )
        os.close(slave)
        out = b""
        try:
            while data := os.read(master, 65536):
                out += data
        except OSError:  # EIO: the other end is closed
            pass
        os.close(master)
        assert p.wait(30) == 0
        return out

    assert b"\x1b[" in shown()
    assert b"\x1b[" not in shown(NO_COLOR="1")
    assert b"\x1b[" not in command("log", path).stdout


def test_long_work_shows_progress_on_a_terminal_only(tmp_path, monkeypatch):
    from pagestone import _cli_out

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(_cli_out, "QUIET_S", 0)
    for stream, seen in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with _cli_out.Progress("export", 1000) as bar:
            bar._last = 0
            bar.step(500)
        with _cli_out.busy("check"):
            time.sleep(0.05)
        assert ("50 %" in stream.getvalue()) is seen
        assert ("check …" in stream.getvalue()) is seen
        assert not seen or stream.getvalue().endswith("\r\x1b[K")  # nothing stays


def test_control_characters_of_a_key_do_not_reach_the_terminal(cli, path):
    with ps.open(path) as s:
        s["evil\x1b[2J\nx"] = 1
    assert "evil\\x1b[2J\\nx" in cli("ls", path).out
    assert "\x1b" not in cli("log", path).out
    assert {k["key"] for k in cli("ls", path, "--json").json["keys"]} >= {"evil\x1b[2J\nx"}


def test_sizes_are_in_powers_of_1000():
    shown = [size(n) for n in (0, 999, 1000, 1234567, 99_950_000, 10**12, 10**15)]
    assert shown == ["0 B", "999 B", "1.0 kB", "1.2 MB", "100 MB", "1.0 TB", "1.0 PB"]
    assert safe("a\x9b\u202eb") == "a\\x9b\\u202eb"


# --- reading ---------------------------------------------------------------------------------------------------------


def test_ls_lists_keys_in_order(cli, path):
    assert cli("ls", path).out.split() == ["a/x", "a/y", "conf", "note", "pickled"]
    assert cli("ls", path, "a").out.split() == ["a/x", "a/y"]
    assert cli("ls", path, "a/").out.split() == ["a/x", "a/y"]
    assert cli("ls", path, "a/x").out.split() == ["a/x"]
    assert cli("ls", path, "no").out.split() == ["note"]
    assert cli("ls", path, "--at", 1).out.split() == ["a/x"]
    assert "zzz" in cli("ls", path, "zzz", code=1).err


def test_ls_long_has_kind_dtype_shape_bytes_and_version(cli, path):
    line = cli("ls", path, "-l").out.splitlines()[0]
    assert line.split() == ["array", "<f8", "2x3", "48", "B", "v6", "a/x"]
    entry = cli("ls", path, "a/x", "--json").json
    assert entry["version"] == 6
    d = entry["keys"][0]
    assert d.pop("stored") >= 0
    assert d == {
        "key": "a/x",
        "kind": "array",
        "dtype": "<f8",
        "shape": [2, 3],
        "order": "C",
        "bytes": 48,
        "version": 6,
    }


def test_ls_of_an_empty_store_prints_nothing(cli, tmp_path):
    ps.open(tmp_path / "e.ps").close()
    assert cli("ls", tmp_path / "e.ps").out == ""
    assert cli("ls", "-l", tmp_path / "e.ps").out == ""
    assert cli("ls", tmp_path / "e.ps", "--json").json == {"version": 0, "keys": []}


def test_info_of_a_store_and_of_a_key(cli, path):
    about = cli("info", path, "--json").json
    assert about["version"] == 6 and about["keys"] == 5 and about["durability"] == "none" and about["size"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", about["time"])
    assert "no quota" in cli("info", path).out
    key = cli("info", path, "a/x", "--json").json
    assert key["dtype"] == "<f8" and key["version"] == 6 and key["time"]
    assert cli("info", path, "a/x", "--at", 1, "--json").json["version"] == 1
    assert "is a group" in cli("info", path, "a", code=1).err
    assert "no key" in cli("info", path, "b", code=1).err


def test_cat_of_each_kind(cli, path):
    assert cli("cat", path, "a/x").out == "[[ 0.  1.  2.]\n [ 3. 40.  5.]]\n"
    assert cli("cat", path, "a/x", "--at", 1).out.endswith("[3. 4. 5.]]\n")
    assert cli("cat", path, "a/y").raw == b"\0\1\2"
    assert cli("cat", path, "note").out == "two\nlines\n"
    assert cli("cat", path, "note", "--format", "raw").out == "two\nlines"
    assert cli("cat", path, "conf").json == {"n": 1, "f": 1.0, "l": [True, None, "s"]}


def test_cat_formats_of_an_array(cli, path):
    assert cli("cat", path, "a/x", "--format", "csv").out == "0.0,1.0,2.0\n3.0,40.0,5.0\n"
    assert np.load(io.BytesIO(cli("cat", path, "a/x", "--format", "npy").raw)).tolist() == [[0, 1, 2], [3, 40, 5]]
    assert np.frombuffer(cli("cat", path, "a/x", "--format", "raw").raw).tolist() == [0, 1, 2, 3, 40, 5]
    assert cli("cat", path, "a/x", "--json").json["value"] == [[0, 1, 2], [3, 40, 5]]
    assert "no array" in cli("cat", path, "conf", "--format", "npy", code=1).err


def test_cat_csv_of_a_table_and_of_times(cli, path):
    with ps.open(path) as s:
        s["t"] = np.array([(1, "a,b", 2.5), (2, "c", np.nan)], [("n", "i4"), ("s", "U3"), ("x", "f8")])
        s["m"] = np.array(["2026-01-02", "NaT"], "M8[D]")
        s["d3"] = np.zeros((2, 2, 2))
        s["nested"] = np.zeros(2, [("n", "i4"), ("v", "f4", (2,))])
    assert cli("cat", path, "t", "--format", "csv").out == 'n,s,x\n1,"a,b",2.5\n2,c,nan\n'
    assert cli("cat", path, "m", "--format", "csv").out == "2026-01-02\nNaT\n"
    assert "3 dimensions" in cli("cat", path, "d3", "--format", "csv", code=1).err
    refused = cli("cat", path, "nested", "--format", "csv", code=1)
    assert "'v'" in refused.err and refused.out == ""  # not a header and then nothing
    assert cli("cat", path, "t", "--json").json["value"][1] == [2, "c", {"$float": "nan"}]


def test_a_pickle_is_printed_only_when_allowed(cli, path):
    assert "--allow-pickle" in cli("cat", path, "pickled", code=1).err
    assert "--allow-pickle" in cli("cat", path, "pickled", "--json", code=1).err
    assert cli("cat", path, "pickled", "--allow-pickle").out == "{1, 2}\n"
    assert cli("cat", path, "pickled", "--allow-pickle", "--json").json["repr"] == "{1, 2}"


def test_missing_versions_and_tags_are_named(cli, path):
    assert "no tag" in cli("ls", path, "--at", "nope", code=1).err
    cli("ls", path, "--at", 99, code=1)
    assert "is no version" in cli("ls", path, "--at", "2026-99", code=2).err
    assert cli("ls", path, "--at", "2100-01-01T00:00Z", "--json").json["version"] == 6


# --- put and get -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.array(3.5),
        np.zeros((0, 4), "i2"),
        np.array([(1, b"x")], [("a", ">i4"), ("b", "S3")]),
        np.array(["2026-01-01"], "M8[us]"),
        np.array(["ä", "b"]),
        np.array([True, False]),
        np.zeros(3, {"names": ["a", "b"], "formats": ["u1", "f8"], "offsets": [0, 8], "itemsize": 24}),
        np.arange(5, dtype="c16")[::2],
    ],
    ids=lambda a: f"{a.dtype.kind}{a.ndim}",
)
def test_an_array_goes_through_put_and_get(cli, tmp_path, value):
    np.save(tmp_path / "in.npy", value)
    cli("put", tmp_path / "s.ps", "g/k", tmp_path / "in.npy")
    with ps.open(tmp_path / "s.ps", "r") as s:
        a = s["g/k"]
        assert a.dtype == value.dtype and a.shape == value.shape and a.tobytes() == value.tobytes()
        assert a.flags.f_contiguous == (value.flags.f_contiguous or not value.flags.forc) or value.ndim < 2
    cli("get", tmp_path / "s.ps", "g/k", tmp_path / "out.npy")
    back = np.load(tmp_path / "out.npy")
    assert back.dtype == value.dtype and back.shape == value.shape and back.tobytes() == value.tobytes()
    assert back.flags.fnc == value.flags.fnc


def test_put_kinds(cli, tmp_path):
    store = tmp_path / "s.ps"
    (tmp_path / "f").write_text('{"a": [1, 2.0, null, {"$complex": [1.0, 2.0]}]}')
    cli("put", store, "b", tmp_path / "f", "-m", "as bytes")
    cli("put", store, "t", tmp_path / "f", "--text")
    assert cli("put", store, "p", tmp_path / "f", "--plain", "--json").json["kind"] == "plain"
    (tmp_path / "x.npy").write_bytes(b"no array")
    cli("put", store, "x", tmp_path / "x.npy", "--bytes")
    assert cli("put", store, "a//b", tmp_path / "f", code=1).err.startswith("pagestone: a key has")
    assert "no NPY" in cli("put", store, "y", tmp_path / "x.npy", code=1).err
    with ps.open(store, "r") as s:
        assert s["b"] == (tmp_path / "f").read_bytes() and s["t"] == (tmp_path / "f").read_text()
        assert s["p"] == {"a": [1, 2.0, None, 1 + 2j]} and type(s["p"]["a"][1]) is float
        assert s["x"] == b"no array" and "y" not in s
        assert s.log()[-1].message == "as bytes"


def test_put_from_stdin_and_get_to_stdout(tmp_path):
    store = tmp_path / "s.ps"
    data = os.urandom(300_000)
    assert command("put", store, "k", "-", input=data).returncode == 0
    assert command("get", store, "k", "-").stdout == data
    f = io.BytesIO()
    np.save(f, np.arange(5))
    assert command("put", store, "n", "-", "--npy", input=f.getvalue()).returncode == 0
    assert command("put", store, "e", "-", input=b"").returncode == 0
    with ps.open(store, "r") as s:
        assert s["n"].tolist() == [0, 1, 2, 3, 4] and s["e"] == b""


def test_long_bytes_go_through_without_being_held_in_memory(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(_cli_io, "IN_MEMORY", 1000)
    data = os.urandom(100_000)
    (tmp_path / "f").write_bytes(data)
    cli("put", tmp_path / "s.ps", "k", tmp_path / "f")
    with open(tmp_path / "f", "rb") as f:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(f))
        cli("put", tmp_path / "s.ps", "p", "-")
    with ps.open(tmp_path / "s.ps", "r") as s:
        assert s["k"] == data and s["p"] == data


def test_a_broken_file_changes_nothing(cli, path, tmp_path):
    np.save(tmp_path / "a.npy", np.arange(1000))
    whole = (tmp_path / "a.npy").read_bytes()
    with ps.open(path, "r") as s:
        version = s.version
        for bad in (whole[:-1], whole + b"x", whole[:50], b"", b"\x93NUMPY\x09\0", whole.replace(b"<i8", b"|O8"),
                    whole.replace(b"(1000,)", b"(-100,)"), whole.replace(b"(1000,)", b"(10**9)")):  # fmt: skip
            (tmp_path / "bad.npy").write_bytes(bad)
            cli("put", path, "a/x", tmp_path / "bad.npy", code=1)
        (tmp_path / "bad").write_bytes(b"\xff")
        assert "UTF-8" in cli("put", path, "a/x", tmp_path / "bad", "--text", code=1).err
        assert "JSON" in cli("put", path, "a/x", tmp_path / "bad", "--plain", code=1).err or True
        (tmp_path / "bad").write_text('{"$bytes": "*"}')
        assert "$bytes" in cli("put", path, "a/x", tmp_path / "bad", "--plain", code=1).err
        (tmp_path / "bad").write_text("[" * 90 + "]" * 90)
        assert "nested" in cli("put", path, "a/x", tmp_path / "bad", "--plain", code=1).err
        assert "No such file" in cli("put", path, "a/x", tmp_path / "none", code=1).err
        assert s.version == version
    assert "--csv" in cli("put", path, "a/x", tmp_path / "bad", "--dtype", "f8", code=2).err


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("1,2\n3,4\n", [], np.array([[1, 2], [3, 4]])),
        ("1\n2.5\n", [], np.array([1, 2.5])),
        ("1,2\n", [], np.array([[1, 2]])),
        ("1,\n3,4\n", [], np.array([[1, np.nan], [3, 4]])),
        ("1,2\n3,4\n", ["--dtype", "f4"], np.array([[1, 2], [3, 4]], "f4")),
        ("n,name\n1,\"a,b\"\n2,c\n", [], np.array([(1, "a,b"), (2, "c")], [("n", "i8"), ("name", "U3")])),
        ("x\n1\n", [], np.array([(1,)], [("x", "i8")])),
        ("a\nb\n", ["--header", "no"], np.array(["a", "b"])),
        ("1,2\n3,4\n", ["--header", "yes"], np.array([(3, 4)], [("1", "i8"), ("2", "i8")])),
        ("1,a\n2,b\n", [], np.array([(1, "a"), (2, "b")], [("f0", "i8"), ("f1", "U1")])),
        ("ok\nTrue\nFalse\n", [], np.array([(True,), (False,)], [("ok", "?")])),
        ("99999999999999999999\n", [], np.array([1e20])),
        ("\ufeff1\n", [], np.array([1])),
    ],
)  # fmt: skip
def test_csv_becomes_an_array(cli, tmp_path, text, options, expected):
    (tmp_path / "t.csv").write_text(text)
    cli("put", tmp_path / "s.ps", "k", tmp_path / "t.csv", "--csv", *options)
    with ps.open(tmp_path / "s.ps", "r") as s:
        assert s["k"].dtype == expected.dtype and s["k"].shape == expected.shape
        assert s["k"].tolist() == expected.tolist() or np.array_equal(s["k"], expected, equal_nan=True)


@pytest.mark.parametrize("text", ["", "1,2\n3\n", "a,a\n1,2\n"])
def test_a_malformed_table_is_refused(cli, tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    cli("put", tmp_path / "s.ps", "k", tmp_path / "t.csv", "--csv", code=1)


def test_csv_out_and_in_again(cli, tmp_path):
    rng = np.random.default_rng(1)
    table = np.empty(300, [("n", "i8"), ("x", "f8"), ("s", "U5")])
    table["n"], table["x"], table["s"] = np.arange(300), rng.normal(size=300), 'a"b,'
    with ps.open(tmp_path / "s.ps") as s:
        s["t"] = table
    (tmp_path / "t.csv").write_bytes(cli("cat", tmp_path / "s.ps", "t", "--format", "csv").raw)
    cli("put", tmp_path / "s.ps", "u", tmp_path / "t.csv", "--csv")
    with ps.open(tmp_path / "s.ps", "r") as s:
        assert all(np.array_equal(s["u"][n], table[n]) for n in table.dtype.names)


def test_get_names_files_after_keys_and_replaces_none_unasked(cli, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("get", path, "a/x").out == "x.npy\n"
    assert cli("get", path, "note").out == "note.json\n"
    assert cli("get", path, "a/y", tmp_path).out == f"{tmp_path}/y.bin\n"
    assert "-f" in cli("get", path, "a/x", code=1).err
    cli("get", path, "a/x", "-f", "--at", 1)
    assert np.load("x.npy")[1, 1] == 4
    assert cli("get", path, "pickled", "p.pkl", "--json").json["file"] == "p.pkl"
    with open("p.pkl", "rb") as f:
        assert pickle.load(f) == {1, 2}
    assert not list(tmp_path.glob(".*"))
    assert "stdout" in cli("get", path, "note", "-", "--json", code=2).err


def test_a_failed_get_leaves_the_old_file(path, tmp_path, monkeypatch):
    (tmp_path / "f").write_text("old")
    with pytest.raises(RuntimeError), _cli_io.replacing(str(tmp_path / "f")) as f:
        f.write(b"new")
        raise RuntimeError
    assert (tmp_path / "f").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "s.ps"]


def test_a_pickle_with_buffers_becomes_one_stream_that_plain_pickle_reads(cli, tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": np.arange(5000.0), "b": ["x"] * 5000, "c": pd.date_range("2026", periods=5000)})
    frozen = np.arange(3000)
    frozen.flags.writeable = False
    value = OrderedDict(frame=frame, twice=[frozen, frozen], raw=np.arange(9000, dtype="u1"), text="s" * 70000)
    with ps.open(tmp_path / "s.ps", allow_pickle=True) as s:
        s["k"] = value
    cli("get", tmp_path / "s.ps", "k", tmp_path / "k.pkl")
    back = pickle.loads((tmp_path / "k.pkl").read_bytes())
    assert list(back) == list(value) and back["frame"].equals(frame) and back["text"] == value["text"]
    assert back["twice"][0] is back["twice"][1] and np.array_equal(back["twice"][0], frozen)
    assert np.array_equal(back["raw"], value["raw"]) and back["raw"].flags.writeable


# --- rm, cp, mv ------------------------------------------------------------------------------------------------------


def test_rm_is_one_transaction(cli, path):
    with ps.open(path, "r") as s:
        before = s.version
        assert "nothing was removed" in cli("rm", path, "conf", "none", code=1).err
        assert s.version == before and "conf" in s
        assert cli("rm", path, "conf", "note", "--json").json == {"removed": ["conf", "note"], "version": before + 1}
        assert "-r" in cli("rm", path, "a", code=1).err
        cli("rm", path, "-r", "a")
        assert list(s) == ["pickled"]
        cli("rm", "-f", path, "none")
        assert s.version == before + 2


def test_cp_shares_pages_and_does_not_replace_unasked(cli, path):
    with ps.open(path) as s:
        s["big"] = np.arange(1_000_000)
        size_before = s.stat().live
        cli("cp", path, "big", "copy")
        assert s["copy"].tolist()[-1] == 999_999 and s.stat().live < size_before + 1_000_000
        assert "-f" in cli("cp", path, "conf", "copy", code=1).err
        cli("cp", "-f", path, "conf", "copy")
        assert s["copy"] == s["conf"]
        assert "-r" in cli("cp", path, "a", "b", code=1).err
        assert cli("cp", "-r", path, "a", "b", "--json").json["copied"][0] == {"from": "a/x", "to": "b/x"}
        assert np.array_equal(s["b/x"], s["a/x"])
        cli("cp", path, "note", "b")
        assert s["b/note"] == "two\nlines"
        cli("cp", path, "none", "x", code=1)
        cli("cp", path, "note", "note", code=1)
        cli("cp", path, "note", "a/../x", code=1)


def test_mv_renames_keys_and_groups(cli, path):
    cli("mv", path, "conf", "new/")
    cli("mv", path, "a", "new/a")
    with ps.open(path, "r") as s:
        assert list(s) == ["new/a/x", "new/a/y", "new/conf", "note", "pickled"]
        assert "-f" in cli("mv", path, "note", "new/conf", code=1).err
        cli("mv", "-f", path, "note", "new/conf", "-m", "renamed")
        assert s["new/conf"] == "two\nlines" and "note" not in s
        assert s.log()[0].message == "renamed"
        assert "inside" in cli("mv", path, "new", "new/deeper", code=1).err


# --- versions --------------------------------------------------------------------------------------------------------


def test_log_lists_commits_newest_first(cli, path):
    commits = cli("log", path, "--json").json
    assert [c["version"] for c in commits] == [6, 5, 4, 3, 2, 1]
    assert (
        commits[0]["message"] == "set one element"
        and commits[0]["keys"] == ["a/x"]
        and commits[0]["pid"] == os.getpid()
    )
    assert [c["version"] for c in cli("log", path, "a/x", "--json").json] == [6, 1]
    assert [c["version"] for c in cli("log", path, "a", "--json").json] == [6, 2, 1]
    assert [c["version"] for c in cli("log", path, "-n", 1, "a/x", "--json").json] == [6]
    assert len(cli("log", path, "-n", 2).out.splitlines()) == 2
    assert cli("log", path).out.splitlines()[0].count("  a/x  — set one element  (") == 1
    cli("log", path, "-n", 0, code=2)


def test_log_of_a_key_that_never_was_says_so(cli, tmp_path):
    path = str(tmp_path / "log.ps")
    with ps.open(path, history="all") as s:
        s.update({f"many/{i:05}": 1 for i in range(5000)})  # more keys than a log entry names
        s["gone"] = 1
        del s["gone"]
    for key in ("none", "man", "many/5"):
        for more in ((), ("--json",)):
            answer = cli("log", path, key, *more, code=1)
            assert answer.out == "" and answer.err.count("\n") == 1 and f"no key '{key}'" in answer.err
    assert [c["version"] for c in cli("log", path, "gone", "--json").json] == [3, 2, 1]
    assert [c["version"] for c in cli("log", path, "many/04999", "--json").json] == [1]
    assert [c["version"] for c in cli("log", path, "many/", "--json").json] == [1]


def test_one_thing_is_not_called_many(cli, tmp_path):
    path = str(tmp_path / "one.ps")
    with ps.open(path, history=0) as s:
        s["g/x"] = 1
    assert "a group of 1 key:" in cli("rm", path, "g", code=1).err
    assert "a group of 1 key:" in cli("cp", path, "g", "h", code=1).err
    assert cli("check", path).out.startswith("ok: 1 object, 1 version, ")
    assert "the only one that is kept" in cli("diff", path, code=1).err


def test_diff_names_keys_and_elements(cli, path):
    assert cli("diff", path, 1, 6, "--json").json == {
        "from": 1, "to": 6, "added": ["a/y", "conf", "note", "pickled"], "removed": [], "changed": {"a/x": [[4, 5]]}
    }  # fmt: skip
    assert cli("diff", path).out == "~ a/x  1 element: 4:5\n"
    assert cli("diff", path, -1, 5).out == "~ a/x  1 element: 4:5\n"
    assert cli("diff", path, 2, 1).out.splitlines() == ["- a/y"]
    assert cli("diff", path, 6, 6).out == ""


def test_at_shows_a_version(cli, path):
    cli("tag", path, "good", 5)
    a = cli("at", path, "good", "--json").json
    assert a["version"] == 5 and a["tags"] == ["good"] and a["newest"] == 6 and a["commit"]["keys"] == ["pickled"]
    assert cli("at", path, a["time"], "--json").json["version"] == 5
    assert "set one element" in cli("at", path, -1).out
    assert "no tag" in cli("at", path, "bad", code=1).err


def test_tags_are_listed_made_and_removed(cli, path):
    cli("tag", path, "now")
    assert cli("tag", path, "old", -6, "--json").json == {"tag": "old", "version": 1}
    assert cli("tag", path).out == "v6  now\nv1  old\n"
    assert cli("tag", path, "--json").json == {"now": 6, "old": 1}
    assert "[now]" in cli("log", path, "-n", 1).out
    cli("tag", path, "now", 3, code=1)
    cli("untag", path, "now")
    assert "no tag" in cli("untag", path, "now", code=1).err
    assert cli("tag", path, "--json").json == {"old": 1}


def test_revert_brings_old_content_back(cli, path):
    assert cli("revert", path, "a/x", 1, "--json").json == {"key": "a/x", "from": 1, "version": 7}
    with ps.open(path, "r") as s:
        assert s["a/x"][1, 1] == 4 and s.at(6)["a/x"][1, 1] == 40
    assert "no key" in cli("revert", path, "conf", 1, code=1).err


# --- upkeep ----------------------------------------------------------------------------------------------------------


def test_stat_and_gc_and_compact(cli, path):
    st = cli("stat", path, "--json").json
    assert st["objects"] == 5 and st["version"] == 6 and st["live"] > 0
    assert "objects" in cli("stat", path).out
    assert set(cli("gc", path, "--json").json) == {"before", "after"}
    assert cli("compact", path).out.startswith("free ")
    cli("check", path)


def test_readers_lists_other_processes(cli, path):
    code = f"import pagestone, sys; s = pagestone.open({str(path)!r}); n = s.at(2); print('on', flush=True); sys.stdin.read()"
    p = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert p.stdout is not None and p.stdin is not None
    p.stdout.readline()
    found = cli("readers", path, "--json").json
    assert [r["versions"] for r in found if r["pid"] == p.pid] == [[2]]
    assert "v2" in cli("readers", path).out
    p.stdin.close()
    p.stdout.close()
    p.wait(30)
    assert cli("readers", path, "--json").json == []


def test_check_is_silent_about_a_sound_store_and_fails_on_damage(cli, tmp_path):
    where = tmp_path / "s.ps"
    with ps.open(where, "x", durability="ordered", history=0) as s:
        s["k"] = os.urandom(100_000)
        s["b"] = list(range(3000))
    assert cli("check", where).out.startswith("ok: 2 objects")
    assert cli("check", where, "--no-data", "--json").json["ok"] is True
    page_file = max((p for p in where.iterdir() if p.is_file()), key=lambda p: p.stat().st_blocks)
    with ps.open(where, "r") as s:
        content = s["k"]
    data = page_file.read_bytes()
    at = data.index(content[:4096])
    with page_file.open("r+b") as f:
        f.seek(at + 10)
        f.write(bytes([data[at + 10] ^ 1]))
    capture = command("check", where)
    assert capture.returncode == 1 and b"k" in capture.stdout and b"problem" in capture.stdout and not capture.stderr
    report = json.loads(command("check", where, "--json").stdout)
    assert report["ok"] is False and report["errors"][0]["object"]


# --- export and import -----------------------------------------------------------------------------------------------


class Point:
    """Pickled by reference."""

    def __init__(self, x: int):
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x


EVERYTHING: dict[str, Any] = {
    "arrays/c": np.arange(12.0).reshape(3, 4),
    "arrays/f": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "arrays/empty": np.zeros((3, 0), "i1"),
    "arrays/scalar": np.array(2.5, ">f4"),
    "arrays/text": np.array(["ä", "bcd"]),
    "arrays/time": np.array(["2026-01-01", "NaT"], "M8[ns]"),
    "arrays/table": np.array([(1, 2.0, b"x")], np.dtype([("a", "u1"), ("b", "f8"), ("c", "S2")], align=True)),
    "arrays/overlap": np.zeros(2, {"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 2], "itemsize": 8}),
    "arrays/void": np.array([b"ab"], "V2"),
    "arrays/width0": np.zeros(3, "S0"),
    "bytes": bytes(range(256)) * 3,
    "bytes.npy": b"",
    "plain/none": None,
    "plain/numbers": [True, 1, -(2**80), 1.0, float("inf"), -0.0, 1 + 2j, 2**5000],
    "plain/text": "ä\x1b\ud800" + "\n",
    "plain/bytes": [b"\0\xff", {"$x": b"", "y": [{"$float": 1}]}],
    "plain/numpy": [np.float32(1.5), np.datetime64("2026-01-01", "D"), np.bool_(True), np.str_("x"), np.int64(3)],
    "pickle/set": {1, "a"},
    "pickle/frozen": (1, [2, np.arange(2000)]),
    "deep/" + "/".join(["d" * 100] * 9): 1,
    "long/" + "n" * 249: b"x",
    "odd/ spaces\tand\\backslash\n": 1,
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        layout = a.ndim < 2 or a.flags.fnc == b.flags.fnc
        return (
            a.dtype == b.dtype
            and a.dtype.isalignedstruct == b.dtype.isalignedstruct
            and a.shape == b.shape
            and layout
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and (a == b or a != a) and repr(a) == repr(b)


def test_the_json_of_plain_values_keeps_types():
    for key, value in EVERYTHING.items():
        if key.startswith("plain"):
            text = json.dumps(_cli_values.to_json(value))
            assert same(_cli_values.from_json(json.loads(text)), value), key


@pytest.mark.parametrize("form", ["x.tar", "folder", "-"])
def test_everything_survives_export_and_import(cli, tmp_path, form, monkeypatch):
    store, other, target = tmp_path / "s.ps", tmp_path / "t.ps", tmp_path / form
    with ps.open(store, allow_pickle=True) as s:
        s.update(EVERYTHING)
        s.create("lazy", (3000, 1000), "f8")
        with s.begin() as t:
            t["lazy"][2000, 500] = 7
    if form == "-":
        tar = command("export", store, "-")
        assert tar.returncode == 0 and not tar.stderr
        r = command("import", other, "-", "--allow-pickle", input=tar.stdout)
        assert r.returncode == 0, r.stderr
    else:
        out = cli("export", store, target, "--json").json
        assert out["objects"] == len(EVERYTHING) + 1 and out["version"] == 3
        assert "--allow-pickle" in cli("import", other, target, code=1).err
        assert not other.exists()
        cli("import", other, target, "--allow-pickle", "-m", "restored")
    with ps.open(store, "r", allow_pickle=True) as a, ps.open(other, "r", allow_pickle=True) as b:
        assert list(a) == list(b) and b.version == 1
        for key in EVERYTHING:
            assert same(a[key], b[key]), key
            assert a.snapshot()._info(key)["kind"] == b.snapshot()._info(key)["kind"], key
        assert b["lazy"][2000, 500] == 7 and b["lazy"].sum() == 7
        assert b.check().ok


def test_an_export_is_plain_files_that_other_tools_read(cli, path, tmp_path):
    cli("export", path, tmp_path / "e")
    files = sorted(str(p.relative_to(tmp_path / "e")) for p in (tmp_path / "e").rglob("*") if p.is_file())
    assert files == [
        "data/a/x.npy",
        "data/a/y.bin",
        "data/conf.json",
        "data/note.json",
        "data/pickled.pkl",
        "manifest.json",
    ]
    assert np.load(tmp_path / "e/data/a/x.npy")[1, 1] == 40
    assert json.loads((tmp_path / "e/data/conf.json").read_text()) == {"n": 1, "f": 1.0, "l": [True, None, "s"]}
    manifest = json.loads((tmp_path / "e/manifest.json").read_text())
    assert manifest["format"] == "pagestone-export" and manifest["format_version"] == 1 and manifest["version"] == 6
    for e in manifest["objects"]:
        assert hashlib.sha256((tmp_path / "e" / e["file"]).read_bytes()).hexdigest() == e["sha256"]
    assert manifest["objects"][0]["dtype"] == "<f8" and manifest["objects"][0]["shape"] == [2, 3]


def test_export_takes_an_old_version(cli, path, tmp_path):
    cli("export", path, tmp_path / "e.tar", "--at", 1)
    cli("import", tmp_path / "o.ps", tmp_path / "e.tar")
    with ps.open(tmp_path / "o.ps", "r") as s:
        assert list(s) == ["a/x"] and s["a/x"][1, 1] == 4


def test_export_replaces_nothing_unasked_and_leaves_no_half_file(cli, path, tmp_path, monkeypatch):
    cli("export", path, tmp_path / "e.tar")
    assert "-f" in cli("export", path, tmp_path / "e.tar", code=1).err
    cli("export", "-f", path, tmp_path / "e.tar")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x").write_text("")
    assert "not empty" in cli("export", path, tmp_path / "d", code=1).err

    def broken(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_cli_io, "_entry", broken)
    assert "No space" in cli("export", path, tmp_path / "f.tar", code=1).err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "e.tar", "s.ps"]


def test_import_replaces_nothing_unasked_and_is_one_transaction(cli, path, tmp_path):
    cli("rm", path, "pickled")
    cli("export", path, tmp_path / "e.tar")
    with ps.open(tmp_path / "o.ps", history="all") as s:
        s["conf"] = "mine"
        assert "conf" in cli("import", tmp_path / "o.ps", tmp_path / "e.tar", code=1).err
        assert s.version == 1 and list(s) == ["conf"]
        cli("import", "-f", tmp_path / "o.ps", tmp_path / "e.tar", "-m", "all of it")
        assert s.version == 2 and s["conf"]["n"] == 1 and s.log()[0].message == "all of it"
        cli("import", "-f", tmp_path / "o.ps", tmp_path / "e.tar", "--batch", 3)
        assert len(s.log()[0].keys) <= 3
    cli("import", path, tmp_path / "e.tar", "--batch", -1, code=2)


def exported(tmp_path: Path, cli: Any) -> Path:
    with ps.open(tmp_path / "src.ps") as s:
        s["a"] = np.arange(100)
        s["b"] = b"bytes"
        s["c"] = {"x": 1}
    cli("export", tmp_path / "src.ps", tmp_path / "e")
    return tmp_path / "e"


def edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["objects"][0].update(changes)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../outside.npy"}, {"file": "/etc/passwd"}, {"file": "data/../../x"}, {"file": "data//a.npy"}, {"file": ""},
        {"file": "data/a\0.npy"}, {"file": "data/none.npy"}, {"file": "data"}, {"file": 3},
        {"sha256": "0" * 64}, {"size": 5}, {"size": 10**15}, {"size": -1}, {"shape": [99]}, {"shape": "x"}, {"order": "F"},
        {"dtype": "<f8"}, {"dtype": "|O"}, {"dtype": "nonsense"}, {"dtype": "{'a': __import__('os')}"},
        {"kind": "dir"}, {"kind": "plain"}, {"kind": None}, {"key": "b"}, {"key": "../x"}, {"key": ""}, {"key": 1}, {"key": "c/d"},
    ],
)  # fmt: skip
def test_a_damaged_or_malicious_manifest_imports_nothing(cli, tmp_path, changes):
    folder = exported(tmp_path, cli)
    (tmp_path / "outside.npy").write_bytes((folder / "data/a.npy").read_bytes())
    edit(folder, **changes)
    cli("import", tmp_path / "o.ps", folder, code=1)
    if (tmp_path / "o.ps").exists():
        with ps.open(tmp_path / "o.ps", "r") as s:
            assert len(s) == 0 and s.version == 0


def test_links_in_an_export_are_not_followed(cli, tmp_path):
    folder = exported(tmp_path, cli)
    (folder / "data").rename(tmp_path / "elsewhere")
    (folder / "data").symlink_to(tmp_path / "elsewhere")
    assert "links" in cli("import", tmp_path / "o.ps", folder, code=1).err
    (folder / "data").unlink()
    (tmp_path / "elsewhere").rename(folder / "data")
    (folder / "data/a.npy").rename(tmp_path / "a.npy")
    (folder / "data/a.npy").symlink_to(tmp_path / "a.npy")
    assert "links" in cli("import", tmp_path / "o.ps", folder, code=1).err
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        for name in ("data", "manifest.json"):
            tar.add(folder / name, arcname=name)
    assert "regular" in cli("import", tmp_path / "o.ps", tmp_path / "l.tar", code=1).err
    (folder / "data/a.npy").unlink()
    os.mkfifo(folder / "data/a.npy")
    assert "regular" in cli("import", tmp_path / "o.ps", folder, code=1).err


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format": "pagestone-export", "format_version": 2, "objects": []}',
                                     b'{"format": "pagestone-export", "format_version": 1}', b"[" * 100000])  # fmt: skip
def test_an_unfinished_export_is_refused(cli, tmp_path, content):
    folder = exported(tmp_path, cli)
    (folder / "manifest.json").write_bytes(content)
    cli("import", tmp_path / "o.ps", folder, code=1)
    (folder / "manifest.json").unlink()
    assert "not finished" in cli("import", tmp_path / "o.ps", folder, code=1).err
    (tmp_path / "x").write_bytes(content)
    cli("import", tmp_path / "o.ps", tmp_path / "x", code=1)
    assert not (tmp_path / "o.ps").exists()


def test_a_pickle_is_not_loaded_before_its_checksum_holds(cli, tmp_path):
    with ps.open(tmp_path / "src.ps", allow_pickle=True) as s:
        s["p"] = {1}
    cli("export", tmp_path / "src.ps", tmp_path / "e")
    marker = tmp_path / "ran"
    (tmp_path / "e/data/p.pkl").write_bytes(b"cos\nmkdir\n(S'" + str(marker).encode() + b"'\ntR.")
    cli("import", tmp_path / "o.ps", tmp_path / "e", "--allow-pickle", code=1)
    assert not marker.exists()


@pytest.mark.usefixtures("proc")
@pytest.mark.skipif(
    "map_write" in os.environ.get("PAGESTONE_WITHOUT", ""), reason="new arrays are made in memory without map_write"
)
def test_export_and_import_take_bounded_memory(tmp_path):
    """Objects of 100 MB each pass through a process that may have 90 MB more than after its imports."""
    with ps.open(tmp_path / "s.ps", durability="none") as s:
        with s.begin() as t:
            t.empty("a", 12_500_000)[...] = 3
            t.empty("b", (5000, 2500), order="F")[...] = 4
        s["c"] = bytes(100_000_000)
    code = """
import sys, tarfile, threading, pagestone._cli_commands
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024
before, most, done = anonymous(), 0, threading.Event()
def watch():
    global most
    while not done.wait(0.002):
        most = max(most, anonymous())
thread = threading.Thread(target=watch)
thread.start()
if sys.argv[1] == "grab":
    grabbed, rc = bytearray(b"x") * 100_000_000, int(done.wait(0.1))
else:
    rc = pagestone._cli.main(sys.argv[1:])
done.set()
thread.join()
print(rc, most - before, file=sys.stderr)
"""

    def memory(*args: object) -> int:
        """The most anonymous memory that the command had."""
        call = [sys.executable, "-c", "import pagestone._cli\n" + code, *map(str, args)]
        r = subprocess.run(call, capture_output=True, timeout=120)
        rc, n = r.stderr.split()[-2:]
        assert rc == b"0", r.stderr
        return int(n)

    assert memory("grab") > 90_000_000  # it would be seen
    assert memory("export", tmp_path / "s.ps", tmp_path / "e.tar") < 90_000_000
    assert memory("import", tmp_path / "o.ps", tmp_path / "e.tar") < 90_000_000
    assert memory("get", tmp_path / "o.ps", "c", tmp_path / "c") < 90_000_000
    assert memory("put", tmp_path / "o.ps", "d", tmp_path / "c") < 90_000_000
    with ps.open(tmp_path / "o.ps", "r") as s:
        assert s["a"][1000] == 3 and s["b"][7, 7] == 4 and s["b"].flags.f_contiguous
        assert len(s["c"]) == 100_000_000 and s["d"] == s["c"]


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_of_a_sound_machine_and_store(cli, path):
    report = cli("doctor", path, "--json").json
    assert report["ok"] is True
    names = [c["name"] for c in report["checks"]]
    assert {
        "pagestone",
        "python",
        "kernel",
        "page size",
        "vm.max_map_count",
        "a store in memory",
        "file system",
        "owner and mode",
        "opens",
        "readers",
        "metadata",
    } <= set(names)
    assert any(n.startswith("can ") for n in names)
    assert all(c["status"] in ("ok", "warn", "fail") for c in report["checks"])
    assert "a store in memory" in cli("doctor").out


def test_doctor_names_what_is_switched_off_with_its_cure():
    r = command("doctor", "--json", env={**os.environ, "PAGESTONE_WITHOUT": "pagemap_scan"})
    line = next(c for c in json.loads(r.stdout)["checks"] if c["name"] == "can pagemap_scan")
    assert line["status"] == "warn" and "PAGESTONE_WITHOUT" in line["cure"]


def test_doctor_warns_of_a_store_that_others_can_write(path):
    path.chmod(0o777)
    r = command("doctor", path)
    assert b"chmod go-w" in r.stdout


def test_doctor_fails_on_what_is_no_store(tmp_path):
    r = command("doctor", tmp_path / "none")
    assert r.returncode == 1 and b"fail" in r.stdout and b"Traceback" not in r.stderr


def test_doctor_does_not_hang_where_a_look_does(monkeypatch):
    code = (
        "import time, pagestone._cli_doctor as d;"
        "d._shm = lambda: (time.sleep(60) for _ in [1]);"
        "d.doctor(None, 0.5, False)"
    )
    start = time.monotonic()
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=50)
    assert time.monotonic() - start < 40 and r.returncode == 1
    assert b"gave no answer within 0.5 s" in r.stdout and b"a store in memory" in r.stdout


# --- bench -----------------------------------------------------------------------------------------------------------


def test_the_benchmarks_run(tmp_path):
    """That they run and what they count; no time is tested."""
    call = [sys.executable, ROOT / "bench/bench_store.py", "--quick", "--json", "--dir", tmp_path, "--only", "snapshot"]
    r = subprocess.run([*map(str, call)], capture_output=True, timeout=120)
    assert r.returncode == 0, r.stderr
    (row,) = json.loads(r.stdout)["rows"]
    assert row["name"] == "s.snapshot()" and row["value"] > 0 and row["target"] == 1
    assert "0.00 system calls" in row["note"] or "no strace" in row["note"]


# --- docs/cli.md -----------------------------------------------------------------------------------------------------


def examples() -> list[tuple[str, str]]:
    """(command, expected output) of every console block of docs/cli.md, in order."""
    text = (ROOT / "docs/cli.md").read_text()
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            line, _, expected = part.partition("\n")
            found.append((line, expected))
    return found


def mountable() -> bool:
    try:
        return bool(_mount.can_mount())
    except _mount.MountError:
        return False


def test_the_examples_in_the_docs_print_what_they_say(tmp_path):
    wrapper = tmp_path / "bin/pagestone"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pagestone "$@"\n')
    wrapper.chmod(0o755)
    (tmp_path / "bin/python").symlink_to(sys.executable)
    work = tmp_path / "work"
    work.mkdir()
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    shown = set()
    can_mount = mountable()
    try:
        for line, expected in examples():
            shown.update(re.findall(r"pagestone ([a-z]+)", line))
            if not can_mount and re.search(r"\bmnt\b|pagestone mount", line):
                continue
            r = subprocess.run(line.replace("python ", shlex.quote(sys.executable) + " ", 1) if line.startswith("python ") else line,
                               shell=True, cwd=work, env=env, capture_output=True, timeout=60)  # fmt: skip
            got = (r.stdout + r.stderr).decode()
            pattern = ".*?".join(map(re.escape, expected.split("…")))
            assert re.fullmatch(pattern, got, re.S), f"$ {line}\n{got}\nexpected:\n{expected}"
    finally:
        if can_mount:
            subprocess.run([_mount.server(), "--umount", "--lazy", work / "mnt"], capture_output=True, timeout=60)
    commands = set(_cli.make_parser()[1])
    assert shown >= commands, f"without an example: {commands - shown}"
