# Create or update $root/.venv. The other scripts in this folder source this file and set `root`.
# PYTHON chooses the interpreter, TORCH_INDEX_URL another index for PyTorch (docs/deployment.md).

venv=$root/.venv

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die() {
    say "$*"
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

# A checksum of what the environment depends on: the requirements, and the folder its absolute paths point to.
wanted_stamp() {
    {
        printf '%s\n' "$root"
        cat "$root/pyproject.toml" "$root/requirements.txt"
    } | cksum
}

is_ready() {
    [ "$(cat "$venv/.installed-$1" 2>/dev/null)" = "$(wanted_stamp)" ] && [ -x "$venv/bin/python" ]
}

# Allow one set-up at a time. Closing descriptor 9 releases the lock, so a killed run cannot leave it behind.
lock_setup() {
    exec 9<"$root/pyproject.toml"
    "$1" - <<'PYTHON' || say "cannot lock $root; continuing without a lock"
import fcntl, sys

try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for another run to finish setting up .venv", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
PYTHON
}

make_venv() {
    if "$venv/bin/python" - "$venv" >/dev/null 2>&1 <<'PYTHON'; then
import os, sys
import pip

sys.exit(sys.version_info < (3, 11) or not os.path.samefile(sys.prefix, sys.argv[1]))
PYTHON
        return
    fi
    "$1" -m venv --clear "$venv" >&2 ||
        die "could not create $venv with $1; on Debian and Ubuntu, install python3-venv and run this again"
}

install_project() {
    local extras=$1
    # Remove the stamps first and write them last: if this is interrupted, the next run starts over.
    rm -f "$venv"/.installed-*
    (
        cd "$root" &&
            "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
                ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
                --constraint requirements.txt --editable ".$extras" </dev/null >&2
    ) || die "installing into $venv failed (see above); run this again to retry"
}

# ensure_env run|dev: `dev` adds the packages for tests and checks; it includes everything `run` needs.
ensure_env() {
    local kind=$1 extras='[int8]' python
    is_ready "$kind" && return
    python=$(find_python) ||
        die "no Python 3.11 or newer found; install it, or set PYTHON to its path"
    lock_setup "$python"
    if ! is_ready "$kind"; then
        say "setting up $venv (a few minutes the first time, because PyTorch is large)"
        if [ "$kind" = dev ] || [ -e "$venv/.installed-dev" ]; then kind=dev extras='[dev,heic,int8]'; fi
        make_venv "$python"
        install_project "$extras"
        wanted_stamp >"$venv/.installed-run"
        if [ "$kind" = dev ]; then wanted_stamp >"$venv/.installed-dev"; fi
    fi
    exec 9<&-
}
