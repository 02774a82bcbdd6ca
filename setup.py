"""Build of the extension module and what goes beside it; everything else is in pyproject.toml."""

import os
import shutil
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
LAYERS = ["platform", "pages", "tree", "extents", "catalog", "txn", "tasks", "sync", "api"]
PUBLIC = ROOT / "libshm" / "include"


def files(pattern: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


LIB = [f for layer in LAYERS for f in files(f"libshm/{layer}/*.c")]
HEADERS = [*files("libshm/*/*.h"), *files("pymod/*.h"), *files("third_party/**/*.h")]
TESTING = os.environ.get("PAGESTONE_TESTING_BUILD") == "1"  # kill points, injection, debug checks


class BuildPy(build_py):
    """Puts the public header into the package; an editable install finds it where it is."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "pagestone" / "include"
            target.mkdir(parents=True, exist_ok=True)
            for name in os.listdir(PUBLIC):
                shutil.copy2(PUBLIC / name, target / name)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        target = Path(self.build_lib) / "pagestone" / "include"
        return [*super().get_outputs(include_bytecode), *(str(target / name) for name in os.listdir(PUBLIC))]


setup(
    cmdclass={"build_py": BuildPy},
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
