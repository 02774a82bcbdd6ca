"""Pagestone: a versioned, copy-on-write, shared-memory store of arrays and objects for many processes.

>>> import numpy as np, pagestone as ps
>>> s = ps.open()                       # or ps.open("/dev/shm/demo.ps"): other processes open the same
>>> s["x"] = np.arange(4.0)
>>> s["x"].sum()                        # zero-copy
np.float64(6.0)
>>> with s.begin() as t:                # copy-on-write, atomic, conflicts detected
...     t["x"][0] = 10
>>> s.version, s.at(-2)["x"][0]
(2, np.float64(0.0))
"""

from ._core import Array
from ._core import library_version as __version__
from ._errors import (
    ClosedError,
    ConflictError,
    CorruptError,
    Error,
    ForkedError,
    FormatError,
    InternalError,
    LockedError,
    NotAStoreError,
    NotSupportedError,
    PickleRefusedError,
    ReadOnlyError,
    StaleStoreError,
    StoreFullError,
    StoreOSError,
    VersionExpiredError,
    WorkerLostError,
)
from ._group import Group
from ._handles import _load_array as _load_array
from ._handles import lease, share
from ._open import open
from ._store import Commit, Diff, Reader, Report, Snapshot, Stat, Store
from ._txn import Savepoint, Transaction


def get_include() -> str:
    """The directory of ``pagestone.h``, for C and Cython extensions."""
    from pathlib import Path

    here = Path(__file__).resolve().parent
    installed = here / "include"
    in_sources = here.parents[1] / "libshm" / "include"  # an editable install
    return str(installed if installed.is_dir() else in_sources)


__all__ = [
    "Array",
    "ClosedError",
    "Commit",
    "ConflictError",
    "CorruptError",
    "Diff",
    "Error",
    "ForkedError",
    "FormatError",
    "Group",
    "InternalError",
    "LockedError",
    "NotAStoreError",
    "NotSupportedError",
    "PickleRefusedError",
    "ReadOnlyError",
    "Reader",
    "Report",
    "Savepoint",
    "Snapshot",
    "StaleStoreError",
    "Stat",
    "Store",
    "StoreFullError",
    "StoreOSError",
    "Transaction",
    "VersionExpiredError",
    "WorkerLostError",
    "__version__",
    "get_include",
    "lease",
    "open",
    "share",
]
