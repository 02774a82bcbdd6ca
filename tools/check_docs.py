"""Check that what the documents name is there: files, functions, macros, tests, links, and the bytes of structs.

python tools/check_docs.py          exit status 1 and one line per offence
python tools/check_docs.py FILE     the same for these files only

Names are looked for in code spans (`…`), where a name may be shortened in the ways that readers understand: `claim.h` and
`txn/claim.h` for libshm/txn/claim.h, `test_txn` for a test program, `ledger*.c` for a set, {a,b} for alternatives.

A table that begins with "| offset | bytes | field |" describes the struct that was named last before it. The compiler is asked for
each offset and size; each field of the struct but padding has a row; and if the struct is in shared memory, the signature of the
control file's layout (pages/control.c) covers it.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOPS = ["libshm", "pymod", "fuse", "tests", "tools", "bench", "examples", "docs", "third_party"]
SOURCES = {".c", ".h", ".py", ".pyi", ".md", ".sh"}
DOCUMENTS = ["ARCHITECTURE.md", "README.md", "CHANGELOG.md", "docs/**/*.md"]

# Designs that are written before their code; take out what is built.
PLANNED = {"docs/design/cold.md", "docs/design/view.md"}
# Names in spans that look like ours and are not.
ELSEWHERE = {"io_uring"}

SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
COMMENT = re.compile(r"/\*.*?\*/", re.S)
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
FILE = re.compile(r"(?<![\w.*/-])[\w.*?/{},-]*[\w*}]\.(?:c|h|py|pyi|md|sh)(?![\w.(])")
IDENTIFIER = re.compile(r"[a-z]+(?:_+[a-z0-9]+)+")  # a span that is nothing else
SYMBOL = re.compile(r"\b(?:pgs_|PGS_)\w+\*?")
TEST = re.compile(r"(?<![\w/.])(?:test|bench|fuzz)_[\w*]+(?![\w.*])")

TABLE = re.compile(r"^\| offset \| bytes \| field \|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", re.M)
ROW = re.compile(r"^\| (\d+) \| (?:(\d+) . )?(\d+) \| `(\w+)", re.M)
STRUCT = re.compile(r"`struct (pgs\w+)`")
SIZE = re.compile(r"`struct (pgs\w+)`\)?(?:,| \() ?(\d+) bytes")
FORMATS = ["pages/super_format.h", "pages/control_format.h", "txn/record_format.h", "tree/node_format.h"]
SHARED = {"pgs__root", "pgs__head_cell", "pgs__control", "pgs__lease", "pgs__slot"}


def tree_files() -> list[str]:
    found = [p.name for p in ROOT.iterdir() if p.is_file()]
    for top in TOPS:
        found += [str(p.relative_to(ROOT)) for p in (ROOT / top).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    return found


def alternatives(name: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", name)
    if not match:
        return [name]
    return [n for part in match[1].split(",") for n in alternatives(name[: match.start()] + part + name[match.end() :])]


class Tree:
    """What exists: files by every tail of their path, words of the sources."""

    def __init__(self) -> None:
        self.tails: set[str] = set()
        self.words: set[str] = set()
        for name in tree_files():
            parts = name.split("/")
            self.tails.update("/".join(parts[i:]) for i in range(len(parts)))
            path = ROOT / name
            self.words.add(path.stem)
            if path.suffix in SOURCES - {".md"} and path.name != Path(__file__).name:
                text = path.read_text(errors="replace")
                if path.suffix in {".c", ".h"}:
                    text = COMMENT.sub("", text)
                self.words.update(re.findall(r"\w+", text))

    def has_file(self, name: str) -> bool:
        if "*" in name or "?" in name:
            return any(fnmatch.fnmatchcase(tail, name) for tail in self.tails)
        return name in self.tails

    def has_word(self, name: str) -> bool:
        if name.endswith("*"):
            return any(word.startswith(name[:-1]) for word in self.words)
        return name in self.words or (name.endswith("_") and any(word.startswith(name) for word in self.words))

    def has_test(self, name: str) -> bool:
        return self.has_word(name) or any(self.has_file(name + end) for end in (".c", ".py"))


def line_of(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def offences(path: Path, tree: Tree) -> list[str]:
    text = path.read_text()
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    found = []

    def complain(at: int, what: str) -> None:
        found.append(f"{shown}:{line_of(text, at)}: {what}")

    for symbol in SYMBOL.finditer(text):  # everywhere, fences included
        if not tree.has_word(symbol[0]):
            complain(symbol.start(), f"no {symbol[0]} in the sources")
    for link in LINK.finditer(text):
        if "://" not in link[1] and not (path.parent / link[1]).exists():
            complain(link.start(), f"link to {link[1]}, which does not exist")
    found.extend(table_offences(path))
    blanked = FENCE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    for span in SPAN.finditer(blanked):
        inside = span[1]
        for name in FILE.finditer(inside):
            for one in alternatives(name[0]):
                if not tree.has_file(one):
                    complain(span.start(), f"no file {one}")
        word = inside.removesuffix("()")
        if IDENTIFIER.fullmatch(word) and word not in ELSEWHERE and not tree.has_word(word):
            complain(span.start(), f"no {inside} in the sources")
        for name in TEST.finditer(inside):
            if not tree.has_test(name[0]):
                complain(span.start(), f"no test {name[0]}")
    return found


def struct_fields(name: str) -> list[str]:
    for header in FORMATS:
        text = COMMENT.sub("", (ROOT / "libshm" / header).read_text())
        match = re.search(rf"struct {name} {{(.*?)\n}}", text, re.S)
        if match:
            names = re.findall(r"(\w+)(?:\[[^\];]*\])?\s*;", match[1])
            return [n for n in names if not re.fullmatch(r"pad\d*", n)]
    return []


def compiled(asserts: list[str]) -> str:
    """What the compiler says about them; "" also where there is none."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler or not asserts:
        return ""
    source = "".join(f'#include "libshm/{h}"\n' for h in FORMATS) + "#include <stddef.h>\n" + "\n".join(asserts) + "\n"
    command = [*compiler.split(), "-std=gnu11", "-fsyntax-only", f"-I{ROOT}", "-x", "c", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False).stderr


def table_offences(path: Path) -> list[str]:
    text, found, asserts = path.read_text(), [], []
    signed = set(re.findall(r"FIELD\((\w+), (\w+)\)", (ROOT / "libshm/pages/control.c").read_text()))
    for size in SIZE.finditer(text):
        where = f"{path.name}:{line_of(text, size.start())}: struct {size[1]} has not {size[2]} bytes"
        asserts.append(f'_Static_assert(sizeof(struct {size[1]}) == {size[2]}, "{where}");')
    for table in TABLE.finditer(text):
        line, named = line_of(text, table.start()), STRUCT.findall(text, 0, table.start())
        if not named:
            found.append(f"{path.name}:{line}: a table of bytes of no struct")
            continue
        struct, rows = named[-1], ROW.findall(table[1])
        for offset, times, size, field in rows:
            where = f"{path.name}:{line}: {struct}.{field} is not {size} bytes at {offset}"
            place = f"offsetof(struct {struct}, {field}) == {offset}"
            size_of = f"sizeof(((struct {struct} *)0)->{field}) == {int(times or 1) * int(size)}"
            asserts.append(f'_Static_assert({place} && {size_of}, "{where}");')
        missing = set(struct_fields(struct)) - {row[3] for row in rows}
        found += [f"{path.name}:{line}: no row for {struct}.{field}" for field in sorted(missing)]
        for row in rows:
            if struct in SHARED and (struct, row[3]) not in signed:
                found.append(f"libshm/pages/control.c: the layout's signature leaves out {struct}.{row[3]}")
    errors = compiled(asserts)
    found += sorted(set(re.findall(r'assertion failed:? "(.*?)"', errors))) or ([errors] if errors else [])
    return found


def main(arguments: list[str]) -> int:
    tree = Tree()
    planned = {ROOT / name for name in PLANNED}
    paths = [Path(a).resolve() for a in arguments]
    paths = paths or sorted({p for glob in DOCUMENTS for p in ROOT.glob(glob)} - planned)
    found = list(dict.fromkeys(line for path in paths for line in offences(path, tree)))
    print("\n".join(found) or f"documents: clean ({len(paths)})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
