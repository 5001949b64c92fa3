# shellcheck shell=bash
# Programs newer than the machine's release, from Debian sid's packages: unpacked into the cache, never installed.
#
# The list of sid is kept apart from the machine's own lists, its repository is the one this machine already uses and its
# signature is checked with the machine's keyring. A program that needs a newer glibc than the machine has gets sid's glibc beside
# it: its ELF interpreter and library path are rewritten to the unpacked ones, so it runs like any other program.
# shellcheck source=hack/lib/deps.sh
. "$(dirname "${BASH_SOURCE[0]}")/deps.sh"

RELEASE=sid
SID=$SILK_CACHE/sid

# From now on packages are another release's: for a subshell.
sid_release() {
    RELEASE=$1
    SID=$SILK_CACHE/$1
}

sid_apt() {
    local command=$1
    shift
    "$command" -q -o Dir::Etc::SourceList="$SID/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$SID/apt/lists" -o Dir::Cache="$SID/apt/cache" -o APT::Sandbox::User=root \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null -o APT::Default-Release= \
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}

# Fetches sid's package list, at most once a day.
sid_lists() {
    [ -z "$(find "$SID/apt/updated" -mtime -1 2>/dev/null)" ] || return 0
    local uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    # shellcheck disable=SC2016  # apt's own variable
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sort -u | head -n1)
    [ -n "$uri" ] || die "apt knows no Debian repository here: run apt-get update"
    mkdir -p "$SID/apt/lists/partial" "$SID/apt/cache/archives/partial"
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$uri" "$RELEASE" >"$SID/apt/sources.list"
    # Without the option apt-get is content with a list that it could not fetch.
    if (quietly "fetching Debian $RELEASE's package list" sid_apt apt-get --error-on=any update); then
        touch "$SID/apt/updated"
    else
        [ -e "$SID/apt/updated" ] || exit 1
        say "going on with the list of $(date -r "$SID/apt/updated" +%F)"
    fi
}

sid_version() { sid_apt apt-cache show --no-all-versions "$1" | sed -n 's/^Version: //p'; }

# Prints the packages that $2... need to run, themselves included; those whose name matches $1 (and what only they need) are left out.
sid_closure() {
    local skip=$1
    shift
    # Of alternatives (the lines marked |) the first is taken; virtual packages (in angle brackets) are of no use here.
    sid_apt apt-cache depends --recurse --important "$@" | awk -v skip="$skip" -v wanted="$*" '
        /^[a-z0-9]/ { package = $1; alt = 0 }
        /Depends:/ { if (!alt && $2 !~ /^</) needs[package] = needs[package] " " $2; alt = /^ *\|/ }
        END {
            for (n = split(wanted, queue, " "); i < n;) {
                package = queue[++i]
                if (package in seen || package ~ skip) continue
                seen[package]; print package
                for (k = split(needs[package], more, " "); k > 0; k--) queue[++n] = more[k]
            }
        }'
}

# sid_unpack NAME SKIP PACKAGE...: unpacks the packages and all that they need into a tree, and prints its path.
# The tree is named after the first package's version; when it is there already nothing is done. A tree that is not complete is made anew:
# so each step says by itself that it failed, also where a caller goes on without (bash's -e does not hold there).
sid_unpack() {
    local name=$1 skip=$2 version tree list debs deb
    shift 2
    sid_lists
    version=$(sid_version "$1") || die "cannot ask for the version of $1 in Debian $RELEASE"
    [ -n "$version" ] || die "Debian $RELEASE has no package $1"
    tree=$SID/$name-$(tr -c 'A-Za-z0-9.\n' _ <<<"$version")
    if [ ! -e "$tree/.complete" ]; then
        say "unpacking $name from Debian $RELEASE ($*)"
        rm -rf "$tree"
        mkdir -p "$tree/.debs"
        list=$(sid_closure "$skip" "$@") || die "cannot tell what $* of Debian $RELEASE need"
        mapfile -t debs <<<"$list"
        (cd "$tree/.debs" && quietly "downloading $*" sid_apt apt-get download "${debs[@]}") || exit
        for deb in "$tree"/.debs/*.deb; do dpkg-deb -x "$deb" "$tree" || die "cannot unpack $deb"; done
        rm -rf "$tree/.debs"
        sid_fit "$tree" || die "cannot make the programs of $tree run here"
        touch "$tree/.complete"
    fi
    printf '%s\n' "$tree"
}

# True when the machine's own loader finds all that a program needs.
fits_here() {
    local needs
    needs=$(ldd "$1" 2>&1) || true
    [[ $needs != *'not found'* ]]
}

# Points the tree's dynamic programs at the tree's own loader and libraries when the machine's do not fit them.
sid_fit() {
    local tree=$1 libs loader program library
    libs=$(find "$tree/usr/lib" -name libc.so.6 | head -n1)
    [ -n "$libs" ] || return 0
    libs=$(dirname "$libs")
    for program in "$tree"/usr/bin/* "$tree"/usr/sbin/*; do
        if [ ! -f "$program" ] || [ -L "$program" ] || fits_here "$program"; then continue; fi
        loader=$(basename "$(patchelf --print-interpreter "$program")")
        patchelf --set-interpreter "$libs/$loader" --force-rpath --set-rpath "$libs" "$program" || return
    done
    # A library with a search path of its own is not helped by its program's.
    for library in "$libs"/*.so*; do
        [ -L "$library" ] || [ -z "$(patchelf --print-rpath "$library" 2>/dev/null)" ] ||
            patchelf --force-rpath --set-rpath "$libs" "$library" || return
    done
}
