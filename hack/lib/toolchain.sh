# shellcheck shell=bash
# cargo and go, new enough for this repository: those on PATH if they are, else Debian sid's (lib/sid.sh), which need nothing but
# the package repository that the machine already uses. Debian 12 and 13 package older ones.
# shellcheck source=hack/lib/sid.sh
. "$(dirname "${BASH_SOURCE[0]}")/sid.sh"

NEED_CARGO=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$SILK_TOP/Cargo.toml")
# The newest that a go.mod under integration/ asks for.
NEED_GO=$(find "$SILK_TOP/integration" -name go.mod -exec sed -n 's/^go //p' {} + | sort -V | tail -n1)

# What cargo's and rustc's packages name but a machine with a C compiler has: not unpacked a second time.
HAVE_ALREADY='^(gcc|g[+][+]|cpp|binutils|libc-dev|libc6-dev|linux-libc-dev|clang|debconf|openssl-provider|ca-certificates)'

use_cargo() {
    local tree have
    for have in "" "$HOME/.cargo/bin"; do
        PATH=${have:+$have:}$PATH
        if have=$(cargo --version 2>/dev/null | cut -d' ' -f2) && at_least "${have:-0}" "$NEED_CARGO"; then return 0; fi
    done
    tree=$(sid_unpack rust "$HAVE_ALREADY" cargo rustc rust-clippy rustfmt)
    PATH=$tree/usr/bin:$PATH
    cargo --version >/dev/null || die "cargo of $tree does not run here"
}

use_go() {
    local have tree newest
    for have in "" /usr/local/go/bin; do
        PATH=$PATH${have:+:$have}
        if have=$(go env GOVERSION 2>/dev/null) && at_least "${have#go}" "$NEED_GO"; then return 0; fi
    done
    sid_lists
    newest=$(sid_apt apt-cache depends --important golang-go | sed -n 's/.*Depends: \(golang-[0-9.]*-go\)/\1/p' | head -n1)
    tree=$(sid_unpack go "$HAVE_ALREADY" "$newest")
    PATH=$(dirname "$(find "$tree/usr/lib" -path '*/bin/go' | head -n1)"):$PATH
    go version >/dev/null || die "go of $tree does not run here"
}
