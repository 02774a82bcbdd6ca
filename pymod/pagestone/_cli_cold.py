"""The commands freeze and thaw."""

from __future__ import annotations

import argparse

import pagestone as ps

from . import _cli_out as out
from ._cli_find import keys_of, object_info, open_store
from ._cli_out import Fail, count, emit_json, safe, size


def _keys(store: ps.Store, args: argparse.Namespace) -> list[str]:
    with store.snapshot() as snapshot:
        keys: list[str] = []
        for name in args.keys or [""]:
            below = list(snapshot._iter("", False, "k")) if name == "" else keys_of(snapshot, name)
            if name and name in snapshot:
                keys.append(name)
            elif name == "" or (args.recursive and below):
                keys += below
            elif below:
                raise Fail(f"{safe(name)} is a group: -r takes all keys below it")
            else:
                object_info(snapshot, name, args.store)  # says that there is none
        return list(dict.fromkeys(keys))


def freeze_thaw(args: argparse.Namespace) -> int:
    done: dict[str, int] = {}
    with open_store(args, "r+") as store:
        before = store.stat().compressed
        with out.busy(args.command):
            for key in _keys(store, args):
                try:
                    done[key] = store.thaw(key) if args.command == "thaw" else store.freeze(key)
                except KeyError:  # removed meanwhile
                    pass
        after = store.stat().compressed
    total = sum(done.values())
    if args.json:
        what = "raw" if args.command == "thaw" else "saved"
        emit_json({"keys": done, what: total, "compressed": after})
        return 0
    verb = "made raw" if args.command == "thaw" else "saved"
    print(f"{count(len(done), 'key')}: {size(total)} {verb}, compressed {size(before)} -> {size(after)}")
    return 0
