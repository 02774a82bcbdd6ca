"""Build of the extension module and what goes beside it; everything else is in pyproject.toml."""

import os
import shutil
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
LAYERS = ["platform", "pages", "tree", "extents", "catalog", "txn", "tasks", "sync", "api"]
PUBLIC = ROOT / "libshm" / "include"


def files(pattern: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


LIB = [*(f for layer in LAYERS for f in files(f"libshm/{layer}/*.c")), "third_party/zstd/zstd.c"]
SERVER = files("fuse/*.c")  # a program of its own: the file-system view and the pager
HEADERS = [*files("libshm/*/*.h"), *files("pymod/*.h"), *files("fuse/*.h"), *files("third_party/**/*.h")]
HIDE_ZSTD = ["ZSTDLIB_VISIBLE", "ZSTDLIB_STATIC_API", "ZDICTLIB_VISIBLE", "ZDICTLIB_STATIC_API", "ZSTDERRORLIB_VISIBLE"]
TESTING = os.environ.get("PAGESTONE_TESTING_BUILD") == "1"  # kill points, injection, debug checks


class BuildExt(build_ext):
    """Links the server, too, from the objects that the module was made of; it lies in pagestone/bin."""

    def build_extension(self, ext: Extension) -> None:
        super().build_extension(ext)
        if not SERVER:
            return
        target = Path(self.get_ext_fullpath(ext.name)).parent / "bin" / "pagestone-fuse"
        target.parent.mkdir(parents=True, exist_ok=True)
        objects = self.compiler.compile(
            SERVER,
            output_dir=self.build_temp,
            macros=ext.define_macros,
            include_dirs=["."],
            extra_postargs=ext.extra_compile_args,
            depends=HEADERS,
        )
        library = self.compiler.object_filenames(LIB, output_dir=self.build_temp)
        self.compiler.link_executable([*objects, *library], str(target), libraries=["dl"], extra_postargs=["-pthread"])
        target.chmod(0o755)

    def copy_extensions_to_source(self) -> None:
        """In place and editable: beside the Python files."""
        super().copy_extensions_to_source()
        if SERVER:
            inplace = Path(self.get_finalized_command("build_py").get_package_dir("pagestone"))
            (inplace / "bin").mkdir(exist_ok=True)
            built = Path(self.build_lib) / "pagestone" / "bin" / "pagestone-fuse"
            new = inplace / "bin" / "pagestone-fuse.new"
            shutil.copy2(built, new)
            new.replace(inplace / "bin" / "pagestone-fuse")  # a server that runs keeps its file

    def get_outputs(self) -> list[str]:
        bins = [str(Path(self.get_ext_fullpath("pagestone._core")).parent / "bin" / "pagestone-fuse")] if SERVER else []
        return [*super().get_outputs(), *bins]


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
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    ext_modules=[
        Extension(
            "pagestone._core",
            sources=[*files("pymod/*.c"), *LIB],
            depends=HEADERS,
            include_dirs=[".", numpy.get_include()],
            define_macros=[
                *((name, "") for name in HIDE_ZSTD),
                *([("PGS_TESTING", None), ("PGS_DEBUG", None)] if TESTING else []),
            ],
            extra_compile_args=["-std=gnu11", "-O2", "-g", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"],
            extra_link_args=["-pthread"],
        )
    ],
)
