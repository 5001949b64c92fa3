# shellcheck shell=bash
# Real images for tests, demo and benchmarks, built from the recipes under hack/images and kept in the cache as OCI layouts.
#
# A recipe is a folder with a Containerfile; all but `debian` start from `debian`, which is made by debootstrap. Instead of a
# Containerfile it may have a file `recompress` that names another recipe and a compression (of=NAME, format=zstd). Builds reach packages
# as this machine does: its Debian repositories, its certificates, its proxy and index settings are mounted in and leave no trace.
# shellcheck source=hack/lib/deps.sh
. "$(dirname "${BASH_SOURCE[0]}")/deps.sh"

RECIPES=$SILK_TOP/hack/images

# Lines `URI SUITE COMPONENT` of the Debian repositories that this machine uses.
debian_repositories() {
    local uri list rest
    # shellcheck disable=SC2016  # apt's own variables
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' |
        while read -r uri rest; do
            # A list of mirrors on this machine, as Debian's cloud images have it: debootstrap and a build know only what stands in it.
            if [[ $uri == mirror+file:* ]]; then
                list=${uri#mirror+file:}
                uri=$(awk '!/^#/ && NF { print $1; exit }' "${list%/}")
            fi
            printf '%s %s\n' "$uri" "$rest"
        done | sort -u
}

# Writes into folder $1 what a build needs of this machine: apt/ (mounted at /etc/apt) and env/ (at /run/build).
write_machine() {
    local name
    mkdir -p "$1/apt/preferences.d" "$1/env"
    debian_repositories | sed 's/^/deb /' >"$1/apt/sources.list"
    for name in apt.conf.d auth.conf auth.conf.d trusted.gpg.d; do
        [ ! -e "/etc/apt/$name" ] || cp -rL "/etc/apt/$name" "$1/apt/"
    done
    mkdir -p "$1/apt/apt.conf.d"
    # Else it would be read after ours.
    [ ! -e /etc/apt/apt.conf ] || cp -L /etc/apt/apt.conf "$1/apt/apt.conf.d/00machine"
    cp -L /etc/ssl/certs/ca-certificates.crt "$1/env/"
    # Hooks call programs of this machine, such as apt-listchanges.
    cat >"$1/apt/apt.conf.d/zz-build" <<'END'
Acquire::https::CAInfo "/run/build/ca-certificates.crt";
APT::Keep-Downloaded-Packages "false";
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear APT::Update;
END
    {
        printf 'export %s=/run/build/ca-certificates.crt\n' SSL_CERT_FILE PIP_CERT NODE_EXTRA_CA_CERTS NPM_CONFIG_CAFILE
        for name in http_proxy https_proxy no_proxy PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_DEFAULT_TIMEOUT NPM_CONFIG_REGISTRY; do
            [ -z "${!name:-}" ] || printf 'export %s=%q\n' "$name" "${!name}"
        done
    } >"$1/env/env"
    # pip keeps its index in a file on some machines; credentials in users' own files are not taken.
    [ ! -r /etc/pip.conf ] || { cp /etc/pip.conf "$1/env/" && echo 'export PIP_CONFIG_FILE=/run/build/pip.conf' >>"$1/env/env"; }
}

# The proxy that apt has by its configuration; nothing for none.
apt_proxy() {
    local proxy=''
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    [ "$proxy" = DIRECT ] || printf '%s\n' "$proxy"
}

# Makes the tar of a minimal system of the machine's own release.
debian_rootfs() {
    local target=$1 tar=$2 uri suite
    suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    uri=$(debian_repositories | awk -v suite="$suite" '$2 == suite { print $1; exit }')
    # It takes apt's proxy from the environment only.
    http_proxy=${http_proxy:-$(apt_proxy)} quietly "debootstrap" debootstrap --variant=minbase "$suite" "$target" "$uri"
    rm -rf "$target"/var/lib/apt/lists/* "$target"/var/cache/apt/archives/*.deb "$target"/var/log/*
    tar -C "$target" --numeric-owner --sort=name --xattrs -cf "$tar" .
}

# A build's identity: its recipe, its base and the release it is made on. Packages' versions are those of the day it was built.
recipe_hash() {
    {
        cat /etc/os-release "${BASH_SOURCE[0]}"
        # Relative names: every clone on a machine finds what another has built.
        (cd "$RECIPES" && find debian "$1" ${2:+"$2"} -type f -print0 | sort -z | xargs -0 sha256sum)
    } | sha256sum | cut -c1-16
}

# build_image NAME: builds the image unless the cache has it; prints the path of its OCI layout (tag latest).
build_image() {
    local name=$1 layout from=() base of='' format=''
    [ -d "$RECIPES/$name" ] || die "no recipe $name under hack/images"
    # shellcheck source=/dev/null
    [ ! -e "$RECIPES/$name/recompress" ] || . "$RECIPES/$name/recompress"
    layout=$SILK_CACHE/images/$name-$(recipe_hash "$name" "$of")
    if [ ! -e "$layout" ]; then
        if [ "$name" != debian ]; then
            base=oci:$(build_image "${of:-debian}"):latest
            from=(--from "$base")
        fi
        say "building image $name"
        if [ -n "$of" ]; then
            recompress "$name" "$layout" "$base" "$format"
        else
            make_layout "$name" "$layout" "${from[@]}"
        fi
    fi
    printf '%s\n' "$layout"
}

# make_layout NAME LAYOUT [--from BASE]: in a process of its own, so that however it ends its work folder goes.
make_layout() (
    name=$1 layout=$2
    shift 2
    work_folder
    cp -r "$RECIPES/$name" "$work/context"
    [ "$name" != debian ] || debian_rootfs "$work/rootfs" "$work/context/rootfs.tar"
    write_machine "$work"
    # shellcheck disable=SC2046  # words of options
    run_buildah "$work" bud --layers --isolation chroot --network host --pull-never "$@" --tag "$name" \
        $(same_limits) \
        -v "$work/apt:/etc/apt" -v "$work/env:/run/build:ro" "$work/context"
    run_buildah "$work" push --format oci "$name" "oci:$work/layout:latest"
    keep_layout "$work/layout" "$layout"
)

# recompress NAME LAYOUT IMAGE FORMAT: the same image with its layers compressed anew.
recompress() (
    name=$1 layout=$2
    work_folder
    quietly "compressing $name" skopeo --insecure-policy copy --dest-compress-format "$4" "$3" "oci:$work/layout:latest"
    keep_layout "$work/layout" "$layout"
)

# A folder in $work that goes when the subshell ends.
work_folder() {
    mkdir -p "$SILK_CACHE/images"
    work=$(mktemp -d "$SILK_CACHE/images/.build-XXXXXX")
    trap 'umount -Rq "$work/storage/overlay" || true; rm -rf "$work"' EXIT
}

# keep_layout FROM TO: moves a layout into the cache, in place of what an older recipe of that name made.
keep_layout() {
    # Not NAME-*, which is other recipes' too: a hash has no dash.
    find "$SILK_CACHE/images" -maxdepth 1 -regex "${2%-*}-[0-9a-f]*" -exec rm -rf {} +
    mv "$1" "$2"
}

# Options for a build under limits that need not be raised, which would take CAP_SYS_RESOURCE: buildah's own wishes lie above this
# machine's. 32768 processes are what older ones set themselves first.
same_limits() {
    local name value
    for name in nproc:u nofile:n; do
        value=$(ulimit -H"${name#*:}")
        if [ "$value" = unlimited ] || [ "$value" -gt 32768 ]; then value=32768; fi
        printf -- '--ulimit %s=%s:%s ' "${name%:*}" "$value" "$value"
    done
}

# Buildah with storage of its own, so that nothing of the machine's is touched. Policy: what we built ourselves needs no signature.
run_buildah() {
    local work=$1
    shift
    echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$work/policy.json"
    quietly "buildah $1" buildah --root "$work/storage" --runroot "$work/run" --storage-driver overlay "$1" \
        --signature-policy "$work/policy.json" "${@:2}"
}
