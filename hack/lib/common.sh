# shellcheck shell=bash
# Sourced by every script under hack/: strict mode, where things are, how to say what happens.
# Nothing here depends on a machine: what is learned (repositories, certificates) is asked of the machine's own configuration.
set -euo pipefail
# In command substitutions, too.
shopt -s inherit_errexit
umask 022

SILK_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# What is dear to fetch or build and safe to keep between runs: packages from Debian sid, built images.
SILK_CACHE=${SILK_CACHE:-/var/cache/silk-dev}
export SILK_TOP SILK_CACHE
export LC_ALL=C.UTF-8
# As root has them who became it by su, or runs without a login.
export HOME=${HOME:-/root} PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
# Images and nodes need a disk: Debian 13 has half of its memory there instead.
if [ -z "${TMPDIR:-}" ] && [ "$(stat -f -c %T /tmp)" = tmpfs ]; then
    export TMPDIR=/var/tmp
fi

say() { printf '== %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Runs a command quietly; its output is shown only when it fails. $1 names what it does.
quietly() {
    local what=$1 log
    shift
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        die "$what failed"
    fi
    rm -f "$log"
}

# True when version $1 is at least $2.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }

need_root() { [ "$(id -u)" = 0 ] || die "run as root: mounts, containers and packages need it"; }
