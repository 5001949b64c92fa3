# shellcheck shell=bash
# Debian's packages that the build, the tests and the demo use; installed once, and nothing is asked when all are there.
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -y -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 "$@"
}

# Installs the packages that are missing. Services of theirs are not started: silk starts its own, in scratch directories.
install_packages() {
    local missing=() p
    for p in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    need_root
    say "installing ${missing[*]}"
    quietly "apt-get update" apt_update
    (
        without_services
        # Docker's own containerd, say, is not to go for Debian's.
        quietly "apt-get install" apt_get install --no-install-recommends --no-remove "${missing[@]}"
    )
}

# A machine that has just started may be fetching the lists by itself, and apt-get waits for no lock of these.
apt_update() {
    local i said
    for ((i = 0; i < 60; i++)); do
        if said=$(apt_get update 2>&1); then return 0; fi
        [[ $said == *'Could not get lock'* ]] || break
        sleep 2
    done
    printf '%s\n' "$said"
    return 1
}

# Until this subshell ends, however it does, the machine starts no service that is installed, unless it has a policy of its own.
without_services() {
    policy=/usr/sbin/policy-rc.d
    local ours='# of silk, while it installs packages'
    # One of ours that is there already was left by a run that was killed.
    if [ ! -e "$policy" ] || grep -qxF "$ours" "$policy"; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\n%s\nexit 101\n' "$ours" >"$policy"
        chmod 755 "$policy"
    fi
}

# gcc and libc6-dev: linking, and the C in some crates. patchelf: lib/sid.sh. jq, python3, shellcheck: the checks.
install_build_packages() {
    install_packages ca-certificates curl git gcc g++ libc6-dev make pkg-config patchelf jq python3 shellcheck
}

# What silk is run with. Buildah 1.39 looks for netavark even when it makes no network. systemd: its systemctl checks the unit, nothing is run by it.
install_run_packages() {
    install_packages containerd runc docker-registry redis-server buildah netavark skopeo debootstrap debian-archive-keyring \
        xz-utils zstd e2fsprogs xfsprogs procps util-linux systemd
}
