"""The package: what importing costs, what a wheel holds, where the header is, what the types say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pagestone as ps
import pytest

ROOT = Path(__file__).parents[2]


def test_the_header_compiles_without_python(tmp_path):
    header = Path(ps.get_include()) / "pagestone.h"
    assert header.is_file()
    (tmp_path / "a.c").write_text('#include "pagestone.h"\nint main(void) { return PGS_OK; }\n')
    for compiler in ("cc", "c++"):
        lang = ["-x", "c++"] if compiler == "c++" else []
        if subprocess.run(["which", compiler], capture_output=True).returncode:
            continue
        subprocess.run(
            [
                compiler,
                *lang,
                "-Wall",
                "-Wextra",
                "-Werror",
                "-I",
                ps.get_include(),
                "-fsyntax-only",
                str(tmp_path / "a.c"),
            ],
            check=True,
        )


def test_importing_loads_nothing_heavy():
    code = """
import sys, numpy
before = set(sys.modules)
import pagestone
new = {m for m in set(sys.modules) - before if not m.startswith("pagestone")}
print(sorted(new))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {
        "multiprocessing",
        "concurrent",
        "asyncio",
        "subprocess",
        "logging",
        "pandas",
        "argparse",
        "tarfile",
        "hashlib",
        "inspect",
        "dataclasses",
        "json",
        "tempfile",
    }
    assert not heavy & {m.split(".")[0] for m in eval(out)}


def test_the_version_is_one():
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{ps.__version__}"' in text


def test_public_names_are_documented_and_there():
    for name in ps.__all__:
        thing = getattr(ps, name)
        if name != "__version__":
            assert thing.__doc__, name
    for cls in (ps.Store, ps.Snapshot, ps.Transaction, ps.Group, ps.Savepoint):
        for name in dir(cls):
            if (
                not name.startswith("_")
                and callable(getattr(cls, name))
                and name not in ("get", "keys", "items", "values")
            ):
                assert getattr(cls, name).__doc__, f"{cls.__name__}.{name}"


def test_examples_in_docstrings_run():
    import doctest

    modules = [
        m
        for n, m in sys.modules.items()
        if n.startswith("pagestone.") and n.split(".")[1] in ("_open", "_store", "_txn", "_handles", "_group")
    ]
    for m in [ps, *modules]:
        result = doctest.testmod(m, optionflags=doctest.ELLIPSIS)
        assert result.failed == 0, m


@pytest.mark.parametrize("name", ["accepted.py", "refused.py"])
def test_the_types(name, tmp_path):
    if not importlib.util.find_spec("mypy"):
        pytest.skip("mypy is not installed")
    file = ROOT / "tests" / "typing" / name
    r = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(tmp_path), str(file)],
        capture_output=True, text=True, cwd=ROOT, timeout=300, env={**os.environ, "MYPYPATH": "pymod"},
    )  # fmt: skip
    got = {int(m[1]): m[2] for m in re.finditer(rf"{name}:(\d+): error:.*\[([\w-]+)\]", r.stdout)}
    lines = file.read_text().splitlines()
    want = {n: m[1] for n, line in enumerate(lines, 1) if (m := re.search(r"# error: ([\w-]+)", line))}
    assert got == want, r.stdout + r.stderr
    assert (name == "accepted.py") == (not want)


def test_a_wheel_holds_what_it_should(tmp_path):
    """Builds one; slow, so only where asked for."""
    if os.environ.get("PAGESTONE_TEST_WHEEL") != "1":
        pytest.skip("set PAGESTONE_TEST_WHEEL=1 to build a wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(ROOT)],
        check=True,
        timeout=600,
    )
    (wheel,) = tmp_path.glob("pagestone-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "pagestone/__init__.py",
        "pagestone/_core.pyi",
        "pagestone/py.typed",
        "pagestone/include/pagestone.h",
    } <= names
    assert any(re.fullmatch(r"pagestone/_core\..*\.so", n) for n in names)
    assert not any(n.endswith((".c", ".o")) or n.startswith(("tests", "libshm")) for n in names)
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(target), str(wheel)],
        check=True,
        timeout=600,
    )
    code = "import pagestone as ps, os; s = ps.open(); s['a'] = 1; print(ps.__file__, os.listdir(ps.get_include()), s['a'])"
    env = {**os.environ, "PYTHONPATH": str(target)}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, cwd=tmp_path
    ).stdout
    assert out.startswith(str(target)) and "['pagestone.h']" in out and out.rstrip().endswith("1")
