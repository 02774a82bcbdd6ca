"""The parser and the main function of the command ``pagestone``.

Exit codes: 0, 1 (it failed: one line on stderr), 2 (wrong usage), 130 (Ctrl-C), 141 (the reader of the output is gone). With
PAGESTONE_DEBUG=1 a failure shows its traceback. Commands and NumPy are imported when one runs, not for help.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

_EPILOG = """\
STORE is a directory, as given to pagestone.open(). V is a version: a number (negative ones count from the
newest, as in a list), a tag, or a time such as 2026-11-20T10:00 (local, or with an offset): the newest version
not later. --json gives one JSON document; times in it are ISO 8601 in UTC.
Exit codes: 0, 1 (it failed), 2 (wrong usage)."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message} (see {self.prog} --help)\n")
        sys.exit(2)


class _Commands:
    """Adds one subcommand at a time."""

    def __init__(self, sub: Any):
        self._sub = sub

    def __call__(
        self, name: str, text: str, *, at: bool = False, message: bool = False, store: bool = True
    ) -> argparse.ArgumentParser:
        p: argparse.ArgumentParser = self._sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        p.set_defaults(command=name)
        p.add_argument("--json", action="store_true", help="one JSON document on stdout")
        if at:
            p.add_argument("--at", metavar="V", help="of this version (default: the newest)")
        if message:
            p.add_argument("-m", "--message", help="for the log")
        if store:
            p.add_argument("store", metavar="STORE", nargs="?" if name in ("doctor", "mount") else None)
        return p


def _reading(add: _Commands) -> None:
    p = add("ls", "list keys", at=True)
    p.add_argument(
        "-l", "--long", action="store_true", help="kind, dtype, shape, bytes and the version that last changed it"
    )
    p.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="a key, a group, or how keys begin")
    p = add("info", "show what a store is, or what a key holds", at=True)
    p.add_argument("key", metavar="KEY", nargs="?")
    p = add("cat", "print a value: arrays and plain values as text, bytes as they are", at=True)
    p.add_argument("key", metavar="KEY")
    p.add_argument(
        "--format",
        choices=("text", "csv", "npy", "raw"),
        help="text: as NumPy prints it; csv: all of it; raw: the bytes",
    )
    p.add_argument(
        "--allow-pickle", action="store_true", help="load a pickled object (this runs its code) and print its repr"
    )
    p = add("get", "write a value to a file: .npy, .bin, .json, .pkl", at=True)
    p.add_argument("key", metavar="KEY")
    p.add_argument(
        "file", metavar="FILE", nargs="?", help="or a directory, or - for stdout; default: named as the key, here"
    )
    p.add_argument("-f", "--force", action="store_true", help="replace a file that is there under the default name")


def _writing(add: _Commands) -> None:
    p = add("put", "store a file; makes the store if there is none", message=True)
    p.add_argument("key", metavar="KEY")
    p.add_argument("file", metavar="FILE", help="- for stdin; *.npy becomes an array, anything else bytes")
    kind = p.add_mutually_exclusive_group()
    kind.add_argument("--npy", action="store_true", help="the input is NPY")
    kind.add_argument("--csv", action="store_true", help="the input is a table: becomes an array")
    kind.add_argument("--text", action="store_true", help="the input is UTF-8: becomes a str")
    kind.add_argument("--plain", action="store_true", help="the input is JSON: becomes a plain value, types kept")
    kind.add_argument("--bytes", action="store_true", help="bytes, whatever the name")
    p.add_argument(
        "--header", choices=("auto", "yes", "no"), default="auto", help="whether the first row of --csv has names"
    )
    p.add_argument("--dtype", help="of all cells of --csv")
    p = add("rm", "remove keys, all in one transaction", message=True)
    p.add_argument("keys", metavar="KEY", nargs="+")
    p.add_argument("-r", "--recursive", action="store_true", help="groups, with all keys below")
    p.add_argument("-f", "--force", action="store_true", help="no complaint about what is not there")
    for name, text in (("cp", "copy a key; shares its pages"), ("mv", "rename a key or a group")):
        p = add(name, text, message=True)
        p.add_argument("source", metavar="FROM")
        p.add_argument("target", metavar="TO", help="a key; a group or with a final slash: into it")
        p.add_argument("-f", "--force", action="store_true", help="replace a key that is there")
        if name == "cp":
            p.add_argument("-r", "--recursive", action="store_true", help="a group, with all keys below")


def _versions(add: _Commands) -> None:
    p = add("log", "list commits, newest first")
    p.add_argument("-n", type=int, metavar="N", help="at most N")
    p.add_argument("key", metavar="KEY", nargs="?", help="only those that changed it, or keys below it")
    p = add("diff", "what changed from version A to version B")
    p.add_argument("a", metavar="A", nargs="?", help="default: the newest but one")
    p.add_argument("b", metavar="B", nargs="?", default="-1", help="default: the newest")
    p = add("at", "show which version that is")
    p.add_argument("version", metavar="V")
    p = add("tag", "list tags, or keep a version under a name")
    p.add_argument("name", metavar="NAME", nargs="?")
    p.add_argument("version", metavar="V", nargs="?", help="default: the newest")
    p = add("untag", "remove a tag")
    p.add_argument("name", metavar="NAME")
    p = add("revert", "make the old content of a key the newest again; copies no data")
    p.add_argument("key", metavar="KEY")
    p.add_argument("version", metavar="V")


def _upkeep(add: _Commands) -> None:
    add("stat", "where the bytes are")
    add("readers", "who keeps which versions")
    p = add("check", "verify everything; exit code 1 if there is damage")
    p.add_argument("--no-data", action="store_true", help="not the bytes of arrays")
    add("gc", "reclaim what nobody needs, now")
    add("compact", "move data together and give the rest of the file back")
    for name, text in (
        ("freeze", "compress keys in place; they read as before"),
        ("thaw", "make compressed keys raw again"),
    ):
        p = add(name, text)
        p.add_argument("keys", metavar="KEY", nargs="*", help="default: all keys of the store")
        p.add_argument("-r", "--recursive", action="store_true", help="groups, with all keys below")
    p = add("export", "write all objects of a version to a tar file or a directory", at=True)
    p.add_argument("target", metavar="TARGET", help="FILE.tar, a new directory, or - for a tar on stdout")
    p.add_argument("-f", "--force", action="store_true", help="replace FILE.tar")
    p = add("import", "put what export wrote into a store, in one transaction", message=True)
    p.add_argument("source", metavar="SOURCE", help="a tar file or directory from export, or - for a tar on stdin")
    p.add_argument("-f", "--force", action="store_true", help="replace keys that are there")
    p.add_argument("--batch", type=int, default=0, metavar="N", help="a transaction for every N objects")
    p.add_argument("--allow-pickle", action="store_true", help="load pickled objects: this runs their code")
    p = add("doctor", "look at this machine, and at a store if named, and say what to do")
    p.add_argument("--timeout", type=float, default=10, metavar="S", help="longest wait for each look (default: 10)")


def _mounting(add: _Commands) -> None:
    p = add("mount", "show a store as a file system; without STORE list what is mounted")
    p.add_argument("dir", metavar="DIR", nargs="?", help="an empty directory")
    p.add_argument("--foreground", action="store_true", help="stay, and say on stderr what goes wrong")
    p.add_argument("--read-only", action="store_true", help="nothing can be written through it")
    p.add_argument("--allow-other", action="store_true", help="for all users, not only this one")
    p = add("umount", "end that", store=False)
    p.add_argument("dir", metavar="DIR")
    how = p.add_mutually_exclusive_group()
    how.add_argument(
        "--lazy", action="store_true", help="the name goes now, the rest when nothing there is open any more"
    )
    how.add_argument("--force", action="store_true", help="also if its server does not answer: programs get errors")


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and that of each command."""
    parser = _Parser(
        prog="pagestone",
        description="Look into and change Pagestone stores.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", dest="show_version", action="store_true", help="print the version")
    sub = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=_Parser)
    add = _Commands(sub)
    _reading(add)
    _writing(add)
    _versions(add)
    _upkeep(add)
    _mounting(add)
    return parser, dict(sub.choices)


def _explain(e: BaseException) -> str:
    """One line about an exception that came up to here."""
    from ._cli_out import safe

    if isinstance(e, KeyError) and e.args:  # str() of one is the repr of its argument
        return safe(e.args[0])
    if isinstance(e, OSError) and e.strerror:
        return safe(f"{e.filename}: {e.strerror}" if e.filename else e.strerror)
    if isinstance(e, MemoryError):
        return safe(e) if str(e) else "out of memory: free some, or take less at a time"
    return safe(" ".join(str(e).split())) or type(e).__name__


def _close_stdout() -> None:
    """Nothing more can be written; keep Python from trying so at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser, commands = make_parser()
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in commands:  # by itself, so that options may stand between and behind the arguments
        args = commands[words[0]].parse_intermixed_args(words[1:])
    else:
        args = parser.parse_args(words)
        if args.show_version:
            from . import __version__

            print(f"pagestone {__version__}")
            return 0
        parser.print_help(sys.stderr)
        return 2
    if sys.stderr is None:  # closed: Python has none then
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        sys.stderr.write("pagestone: stdout is closed\n")
        return 1
    try:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        from ._cli_commands import run
        from ._cli_out import Usage

        try:
            code = run(args)
            sys.stdout.flush()
            return code
        except Usage as e:
            sys.stderr.write(f"pagestone {args.command}: {e} (see pagestone {args.command} --help)\n")
            return 2
    except BrokenPipeError:
        if os.environ.get("PAGESTONE_DEBUG") == "1":
            raise
        _close_stdout()
        return 141
    except KeyboardInterrupt:
        sys.stderr.write("\npagestone: interrupted\n" if sys.stderr.isatty() else "pagestone: interrupted\n")
        return 130
    except Exception as e:
        if os.environ.get("PAGESTONE_DEBUG") == "1":
            raise
        sys.stderr.write(f"pagestone: {_explain(e)}\n")
        try:
            sys.stdout.flush()  # what was printed before the error
        except OSError:
            _close_stdout()
        return 1
