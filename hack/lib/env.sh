# shellcheck shell=bash
# A scratch node: a registry, a containerd and silkd as plain processes, everything under one folder.
#
# env_begin makes the folder and sees to it that leaving the script, however it ends, stops what was started and undoes every mount
# and loop device below the folder. Then env_registry, env_containerd and env_silkd start what is wanted.
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

env_begin() {
    SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/silk-demo-XXXXXX")
    ENV_PIDS=()
    trap env_end EXIT
    trap 'exit 130' INT TERM
}

# Starts a program in the background with its output in $SCRATCH/NAME.log; its process ID is left in $STARTED.
env_start() {
    local name=$1
    shift
    "$@" >"$SCRATCH/$name.log" 2>&1 </dev/null &
    STARTED=$!
    ENV_PIDS+=("$STARTED")
}

# Waits, at most 30 s, until a command succeeds; $1 names the log to show when it does not.
env_wait() {
    local name=$1 i
    shift
    for ((i = 0; i < 300; i++)); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    tail -n 20 "$SCRATCH/$name.log" >&2
    die "$name does not answer"
}

# A registry with its store in the scratch folder, on a free loopback port: $REGISTRY is its host and port.
env_registry() {
    local port
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    REGISTRY=127.0.0.1:$port
    cat >"$SCRATCH/registry.yml" <<CONFIG
version: 0.1
storage: {filesystem: {rootdirectory: $SCRATCH/registry}}
http: {addr: "$REGISTRY"}
log: {level: error}
CONFIG
    env_start registry docker-registry serve "$SCRATCH/registry.yml"
    env_wait registry curl -fsS --noproxy '*' "http://$REGISTRY/v2/"
}

# Pushes an OCI layout (tag latest) as NAME:latest.
env_push() {
    quietly "pushing $2" skopeo --insecure-policy copy --dest-tls-verify=false "oci:$1:latest" "docker://$REGISTRY/$2:latest"
}

# env_containerd BINARY: a containerd that knows silkd under the name "silk"; $CTR is its ctr, with the address set.
env_containerd() {
    local binary=$1
    cat >"$SCRATCH/containerd.toml" <<CONFIG
version = 2
root = "$SCRATCH/c"
state = "$SCRATCH/state"
[grpc]
  address = "$SCRATCH/containerd.sock"
[proxy_plugins.silk]
  type = "snapshot"
  address = "$SCRATCH/silk.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$SCRATCH/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
CONFIG
    env_start containerd "$binary" --config "$SCRATCH/containerd.toml"
    CTR=("$(dirname "$binary")/ctr" --address "$SCRATCH/containerd.sock")
    env_wait containerd "${CTR[@]}" version
}

# env_silkd SILKD SILK: silkd on the scratch folder; $SILK is the operator's tool with the address set.
env_silkd() {
    cat >"$SCRATCH/silkd.toml" <<CONFIG
root = "$SCRATCH/silk"
address = "$SCRATCH/silk.sock"
[containerd]
address = "$SCRATCH/containerd.sock"
CONFIG
    env_start silkd "$1" --config "$SCRATCH/silkd.toml"
    # shellcheck disable=SC2034  # for the script that measures
    SILKD_PID=$STARTED
    SILK=("$2" --address "$SCRATCH/silk.sock" --containerd "$SCRATCH/containerd.sock" --config "$SCRATCH/silkd.toml")
    env_wait silkd "${SILK[@]}" status
}

# Ends containers, then the daemons in the order opposite to their start, then undoes mounts and loop devices.
env_end() {
    local rc=$? i pid
    trap - EXIT
    trap '' INT TERM
    set +e
    env_kill_containers
    for ((i = ${#ENV_PIDS[@]} - 1; i >= 0; i--)); do
        pid=${ENV_PIDS[i]}
        kill "$pid" 2>/dev/null
        timeout 20 tail --pid="$pid" -f /dev/null || kill -9 "$pid" 2>/dev/null
    done
    awk -v below="$SCRATCH/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | tac | xargs -r umount -l
    losetup -n -O NAME,BACK-FILE | awk -v below="$SCRATCH/" 'index($2, below) == 1 { print $1 }' | xargs -r losetup -d
    rm -rf "$SCRATCH"
    exit "$rc"
}

# Shims outlive containerd: those that were given our address are ours.
env_kill_containers() {
    local id pid
    [ -n "${CTR+set}" ] || return 0
    for id in $("${CTR[@]}" tasks ls -q 2>/dev/null); do "${CTR[@]}" tasks rm -f "$id" >/dev/null 2>&1 || true; done
    grep -laF "$SCRATCH/containerd.sock" /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3 | while read -r pid; do
        if grep -qa containerd-shim "/proc/$pid/cmdline" 2>/dev/null; then kill -9 "$pid" 2>/dev/null || true; fi
    done
}
