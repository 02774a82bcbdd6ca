"""Check that no layer of libshm includes a higher one, and that fuse/ and pymod/ include only the public header.

python tools/check_layers.py        exit status 1 and one line per offence
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["platform", "pages", "tree", "extents", "catalog", "txn", "tasks", "sync", "api"]
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
PUBLIC = "libshm/include/pagestone.h"


def allowed(path: Path, included: str) -> bool:
    parts = path.relative_to(ROOT).parts
    if included == PUBLIC or included.startswith("third_party/"):
        return True
    if parts[0] == "libshm":
        target = included.split("/")
        return target[0] == "libshm" and target[1] in LAYERS and LAYERS.index(target[1]) <= LAYERS.index(parts[1])
    return included.startswith(parts[0] + "/")  # pymod and fuse: their own headers


def main() -> int:
    offences = []
    names: dict[str, Path] = {}
    for top in ("libshm", "pymod", "fuse"):
        for path in sorted((ROOT / top).rglob("*.[ch]")):
            if path.relative_to(ROOT).parts[1] == "include":
                continue
            for included in INCLUDE.findall(path.read_text()):
                if not allowed(path, included):
                    offences.append(f"{path.relative_to(ROOT)}: must not include {included}")
            if top == "libshm" and path.name in names:
                offences.append(f"{path.relative_to(ROOT)}: name taken by {names[path.name].relative_to(ROOT)}")
            names[path.name] = path
    print("\n".join(offences) or "layers: clean")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
