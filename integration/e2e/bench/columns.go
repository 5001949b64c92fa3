package main

import (
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"silk.invalid/integration/e2e/internal/node"
)

// column is a way to get an image.
type column struct {
	name string
	// says is the sentence about it below the table.
	says string
	// snapshotter is what containerd calls it.
	snapshotter string
	// socket is where a proxy snapshotter of the operator's answers.
	socket string
	// tuned gives containerd more connections and ranges.
	tuned bool
	// fleet is how nodes tell each other what they know: "", "redis" or "referrers". With one, another node has pulled the image before.
	fleet string
	// profile makes that other node start a container too, so that what a start touches is known; without, it is kept from being known.
	profile bool
	// sibling makes it start one of an earlier build of the image, which has another last layer.
	sibling bool
}

func (c column) silk() bool { return c.snapshotter == "silk" }

// tells is whether anybody can say when an image is whole.
func (c column) tells() bool { return c.socket == "" }

// The one that all others are compared with.
const baseline = "overlayfs"

var columns = []column{
	{name: baseline, snapshotter: "overlayfs", says: "containerd's overlayfs snapshotter as installed, igzip in the PATH"},
	{name: "overlayfs-tuned", snapshotter: "overlayfs", tuned: true,
		says: "the same with 20 connections and ranges of 16 MiB (`max_concurrent_downloads`, `concurrent_layer_fetch_buffer`), and as many layers unpacked at once " +
			"as there are processors (`max_concurrent_unpacks`, which containerd before 2.2 does not know)"},
	{name: "erofs", snapshotter: "erofs",
		says: "containerd's EROFS snapshotter and differ, with mkfs.erofs of Debian sid and the options that containerd's page on EROFS prefers (`-T0 --mkfs-time --sort=none`)"},
	{name: "silk", snapshotter: "silk", says: "silk, the first pull of the image anywhere"},
	{name: "silk-redis", snapshotter: "silk", fleet: "redis", says: "silk on an empty node, after another node pulled the image; told through Redis"},
	{name: "silk-referrers", snapshotter: "silk", fleet: "referrers", says: "the same, told through OCI referrers"},
	{name: "silk-redis-profile", snapshotter: "silk", fleet: "redis", profile: true,
		says: "silk-redis, and the other node has started a container of it"},
	{name: "silk-redis-sibling", snapshotter: "silk", fleet: "redis", sibling: true,
		says: "silk-redis, and the other node has started a container of an earlier build, which has another last layer"},
	{name: "silk-referrers-profile", snapshotter: "silk", fleet: "referrers", profile: true,
		says: "silk-referrers, and the other node has started a container of it"},
}

// pickColumns finds the columns of a comma-separated list; empty is all. A name=socket is a proxy snapshotter.
func pickColumns(list, proxies string) (picked []column, err error) {
	if list == "" {
		picked = slices.Clone(columns)
	}
	for _, name := range split(list) {
		found := false
		for _, c := range columns {
			if c.name == name {
				picked, found = append(picked, c), true
			}
		}
		if !found {
			return nil, fmt.Errorf("no column %q", name)
		}
	}
	for _, proxy := range split(proxies) {
		name, socket, ok := strings.Cut(proxy, "=")
		if !ok || !filepath.IsAbs(socket) {
			return nil, fmt.Errorf("%q is not name=/path/to/socket", proxy)
		}
		if slices.ContainsFunc(slices.Concat(columns, picked), func(c column) bool { return c.name == name }) {
			return nil, fmt.Errorf("there is a column %q already: give the snapshotter at %s another name", name, socket)
		}
		picked = append(picked, column{name: name, snapshotter: name, socket: socket, says: "the proxy snapshotter at " + socket + "; the layers are plain gzip or zstd, of which stargz, SOCI or nydus load nothing lazily unless they are converted or indexed"})
	}
	return picked, nil
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// options describes an empty node for a column; settings is what silkd's configuration says of the fleet.
func (c column) options(settings, rung string, talks bool) node.Options {
	log := "warn"
	if talks {
		log = "info,silk_pull=debug,silk_share=debug,silkd=debug,silk_snapshotter=debug,silk_mount=debug,silk_store=debug"
	}
	return node.Options{
		Generation: node.Second, Alone: !c.silk(), Config: c.containerd(),
		Settings: fmt.Sprintf(silkSettings, log) + "[mount]\nrung = \"" + rung + "\"\n" + settings,
	}
}

// Everything that is not said is silkd's default.
const silkSettings = `root = "{{.Dir}}/silk"
address = "{{.Dir}}/silk.sock"
log = %q
[containerd]
address = "{{.Dir}}/containerd.sock"
`

// containerd is its configuration. All pulls go through the transfer service, as those of CRI do: so that what is tuned there counts.
func (c column) containerd() string {
	var text strings.Builder
	text.WriteString(`version = 3
root = "{{.Dir}}/c"
state = "{{.Dir}}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
  address = "{{.Dir}}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Dir}}/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.transfer.v1.local"]
`)
	if c.tuned {
		// containerd warns of a key that it does not know, and goes on.
		fmt.Fprintf(&text, "  max_concurrent_downloads = 20\n  concurrent_layer_fetch_buffer = 16777216\n  max_concurrent_unpacks = %d\n", runtime.NumCPU())
	}
	text.WriteString("  [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n    platform = \"linux\"\n")
	fmt.Fprintf(&text, "    snapshotter = %q\n", c.snapshotter)
	switch {
	case c.snapshotter == "erofs":
		// Since erofs-utils 1.8.2 (docs/snapshotters/erofs.md of containerd).
		text.WriteString("    differ = \"erofs\"\n[plugins.\"io.containerd.service.v1.diff-service\"]\n  default = [\"erofs\", \"walking\"]\n" +
			"[plugins.\"io.containerd.differ.v1.erofs\"]\n  mkfs_options = [\"-T0\", \"--mkfs-time\", \"--sort=none\"]\n")
	case c.silk():
		text.WriteString(proxyConfig("silk", "{{.Dir}}/silk.sock"))
	case c.socket != "":
		text.WriteString(proxyConfig(c.snapshotter, c.socket))
	}
	return text.String()
}

func proxyConfig(name, socket string) string {
	return fmt.Sprintf("[proxy_plugins.%s]\n  type = \"snapshot\"\n  address = %q\n  [proxy_plugins.%s.exports]\n    enable_remote_snapshot_annotations = \"true\"\n",
		name, socket, name)
}
