"""Build of the extension module; everything else is in pyproject.toml."""

import os
from pathlib import Path

import numpy
from setuptools import Extension, setup

ROOT = Path(__file__).parent
LAYERS = ["platform", "pages", "tree", "extents", "catalog", "txn", "tasks", "sync", "api"]


def files(pattern: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


LIB = [f for layer in LAYERS for f in files(f"libshm/{layer}/*.c")]
HEADERS = [*files("libshm/*/*.h"), *files("pymod/*.h"), *files("third_party/**/*.h")]
TESTING = os.environ.get("PAGESTONE_TESTING_BUILD") == "1"  # kill points, injection, debug checks

setup(
    ext_modules=[
        Extension(
            "pagestone._core",
            sources=[*files("pymod/*.c"), *LIB],
            depends=HEADERS,
            include_dirs=[".", numpy.get_include()],
            define_macros=[("PGS_TESTING", None), ("PGS_DEBUG", None)] if TESTING else [],
            extra_compile_args=["-std=gnu11", "-O2", "-g", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"],
            extra_link_args=["-pthread"],
        )
    ],
)
