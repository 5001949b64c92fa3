package node

import (
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// Generation is a containerd that silk is tested with.
type Generation struct {
	Name string
	// Binary is the path of containerd; its shim lies beside it.
	Binary string
	config *template.Template
}

// Packaged is the containerd that Debian ships: 1.6 on Debian 12, 1.7 on Debian 13.
var Packaged = Generation{Name: "packaged", Binary: env("SILK_CONTAINERD_1", "/usr/bin/containerd"), config: versionTwo}

// Last is the last of containerd 1.x; it has no Binary where that is the packaged one.
var Last = Generation{Name: "1.7", Binary: os.Getenv("SILK_CONTAINERD_17"), config: versionTwo}

// Second is a containerd 2.x, by hack/lib/sid.sh.
var Second = Generation{Name: "second", Binary: env("SILK_CONTAINERD_2", newest("containerd-*/usr/bin/containerd")), config: versionThree}

// NewRunc is a runc that can map the volumes of pods in user namespaces (1.2 and later), by hack/lib/sid.sh.
var NewRunc = env("SILK_RUNC", newest("runc-*/usr/sbin/runc"))

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// newest finds a program among those that hack/lib/sid.sh unpacked.
func newest(program string) string {
	found, _ := filepath.Glob(filepath.Join(env("SILK_CACHE", "/var/cache/silk-dev"), "sid", program))
	if len(found) == 0 {
		return "/nonexistent: run hack/test once, it fetches " + program
	}
	return found[len(found)-1]
}

// Directories and addresses are those of the scratch folder; features that would touch the machine (NRI's socket, /opt) are off.
// restrict_oom_score_adj: a sandbox wants a score below its parent's, for which test machines lack CAP_SYS_RESOURCE.
var versionTwo = parse(`version = 2
root = "{{.Dir}}/c"
state = "{{.Dir}}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{{.Dir}}/containerd.sock"
[proxy_plugins.silk]
  type = "snapshot"
  address = "{{.Dir}}/silk.sock"
{{if .RemapIDs}}  capabilities = ["remap-ids"]
{{end}}  [proxy_plugins.silk.exports]
    root = "{{.Dir}}/silk"
[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Dir}}/opt"
{{if .KeepGarbage}}[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "1h"
{{end}}[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{.Sandbox}}"
  restrict_oom_score_adj = true
  stream_server_port = "0"
  stats_collect_period = 1
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "silk"
    disable_snapshot_annotations = false
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{{.Dir}}/cni"
    conf_dir = "{{.Dir}}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{{.Dir}}/certs.d"
`)

var versionThree = parse(`version = 3
root = "{{.Dir}}/c"
state = "{{.Dir}}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.blockfile"]
[grpc]
  address = "{{.Dir}}/containerd.sock"
[proxy_plugins.silk]
  type = "snapshot"
  address = "{{.Dir}}/silk.sock"
{{if .RemapIDs}}  capabilities = ["remap-ids"]
{{end}}  [proxy_plugins.silk.exports]
    root = "{{.Dir}}/silk"
    enable_remote_snapshot_annotations = "true"
[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Dir}}/opt"
{{if .KeepGarbage}}[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "1h"
{{end}}[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_port = "0"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{{or .Snapshotter "silk"}}"
  stats_collect_period = 1
  disable_snapshot_annotations = {{.Transfer}}
  use_local_image_pull = {{not .Transfer}}
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{{.Sandbox}}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{{.Dir}}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
{{if .Runc}}      BinaryName = "{{.Runc}}"
      Root = "{{.Dir}}/runc"
{{end}}[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{{.Dir}}/cni"]
  conf_dir = "{{.Dir}}/cni"
[plugins."io.containerd.transfer.v1.local"]
  config_path = "{{.Dir}}/certs.d"
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "silk"
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "overlayfs"
`)

// Deadlines are short so that a test of an outage ends soon; what they protect from is the same. But for the first contact's, for whose
// end no test waits: containerd pulls the image then. It is a little below the 5 s after which the snapshotter leaves an image to containerd.
var silkdConfig = parse(`root = "{{.Dir}}/silk"
address = "{{.Dir}}/silk.sock"
log = "info"
[containerd]
address = "{{.Dir}}/containerd.sock"
[registry]
hosts_dirs = ["{{.Dir}}/certs.d"]
docker_config = "{{.Dir}}/docker.json"
attempts = 3
retry_delay_ms = 100
stall_timeout_secs = {{or .Stall 2}}
response_timeout_secs = 5
give_up_after_secs = 15
[pull]
first_contact_millis = 4500
{{.PullExtra}}
[mount]
rung = "{{.Rung}}"
{{.Extra}}
`)

func parse(text string) *template.Template { return template.Must(template.New("").Parse(text)) }

func render(t *template.Template, data any) string {
	var out strings.Builder
	if err := t.Execute(&out, data); err != nil {
		panic(err) // the templates are above
	}
	return out.String()
}
