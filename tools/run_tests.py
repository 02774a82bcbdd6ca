"""Run every test suite, two at a time, and close with one line: ``N passed, M failed, K skipped``.

    python tools/run_tests.py --unit DIR [--jobs 2] [--only TEXT] [--no-second-pass]

A suite is a C test program, a shell script or one file of Python tests; each has a time limit. The second pass runs everything
again with every run-time capability switched off (PAGESTONE_WITHOUT), as on an old kernel; the Python tests then import the testing
build of the module, which has kill points and debug checks.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WITHOUT = "pagemap_scan,pagemap,collapse,big_window,map_write,proc_fd,avx2,avx512,memory_limit"
COUNTS = re.compile(r"(\d+) (passed|failed|skipped|error)")
LIMIT_S = 600


class Suite(NamedTuple):
    name: str
    command: list[str]
    env: dict[str, str]


class Result(NamedTuple):
    suite: Suite
    passed: int
    failed: int
    skipped: int
    seconds: float
    output: str


def count(output: str, word: str) -> int:
    """The number before `word` in the last line that has counts."""
    for line in reversed(output.splitlines()):
        found = {w: int(n) for n, w in COUNTS.findall(line)}
        if found:
            return found.get(word, 0)
    return 0


def run(suite: Suite) -> Result:
    start = time.monotonic()
    try:
        p = subprocess.run(
            suite.command,
            cwd=ROOT,
            env={**os.environ, **suite.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_S,
        )
        output, rc = p.stdout.decode(errors="replace"), p.returncode
    except subprocess.TimeoutExpired as e:
        output, rc = (e.stdout or b"").decode(errors="replace") + f"\ntimed out after {LIMIT_S} s", -1
    passed, failed, skipped = (count(output, w) for w in ("passed", "failed", "skipped"))
    failed += count(output, "error")
    if rc != 0 and not (rc == 5 and not passed and not failed) and failed == 0:
        failed = 1  # it died
    return Result(suite, passed, failed, skipped, time.monotonic() - start, output)


def suites(unit: Path, only: str, second: bool, testing_module: Path | None) -> list[Suite]:
    python = [sys.executable, "-m", "pytest", "-rs", "--tb=short"]
    c = sorted(p for p in unit.glob("test_*") if os.access(p, os.X_OK) and not p.suffix)
    scripts = sorted((ROOT / "tests").glob("*/*.test.sh"))
    py = sorted(
        p
        for folder in ("py", "isolated", "typing", "crash", "mp", "fuse")
        for p in (ROOT / "tests" / folder).glob("test_*.py")
    )
    passes: list[tuple[str, dict[str, str]]] = [("", {"PAGESTONE_TEST_WHEEL": "1"})]  # once: it builds a wheel
    if second:
        passes.append((" (old kernel)", {"PAGESTONE_WITHOUT": WITHOUT}))
        if testing_module:
            passes[-1][1]["PYTHONPATH"] = str(testing_module.resolve())
    found = []
    for label, env in passes:
        found += [Suite(p.name + label, [str(p)], env) for p in c]
        found += [Suite(p.name + label, ["sh", str(p), str(unit)], env) for p in scripts if not label]
        found += [
            Suite(p.name + label, [*python, str(p)], {**env, "PAGESTONE_UNIT_DIR": str(unit)})
            for p in py
            if not (label and p.parent.name == "typing")
        ]
    return [s for s in found if only in s.name]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unit", type=Path, default=ROOT / "build/unit", help="folder of the C test programs")
    parser.add_argument("--testing-module", type=Path, help="folder of the module's testing build, for the second pass")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="suites whose name contains this")
    parser.add_argument("--no-second-pass", action="store_true", help="skip the pass with capabilities off")
    args = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # started in the background it is ignored, and so by all tests
    todo = suites(args.unit.resolve(), args.only, not args.no_second_pass, args.testing_module)
    lock = threading.Lock()
    results: list[Result] = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run, s) for s in todo]):
            r = future.result()
            results.append(r)
            with lock:
                mark = "FAILED" if r.failed else "ok"
                print(
                    f"[{len(results)}/{len(todo)}] {mark:6} {r.suite.name:<48} {r.passed} passed, {r.failed} failed, {r.skipped} skipped  {r.seconds:.1f} s",
                    flush=True,
                )
                if r.failed:
                    print("\n".join(r.output.splitlines()[-80:]), flush=True)
    reasons = sorted(
        {line.strip() for r in results for line in r.output.splitlines() if line.startswith(("SKIPPED", "skipped:"))}
    )
    if reasons:
        print("skipped, and why:")
        print("\n".join(f"  {line[:200]}" for line in reasons))
    passed, failed, skipped = (sum(getattr(r, f) for r in results) for f in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
