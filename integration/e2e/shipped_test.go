package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// The files in docs/ that are installed as they are.
const (
	unitFile    = "../../docs/systemd/silkd.service"
	sampleOfTwo = "../../docs/containerd/config-1.6.toml"
	sampleOfNew = "../../docs/containerd/config-2.x.toml"
)

// containerd forgets images whose snapshotter does not answer when it starts, so its start has to start silkd.
func TestUnitStartsWithContainerd(t *testing.T) {
	systemctl, err := exec.LookPath("systemctl")
	if err != nil {
		node.Cannot(t, "no systemd here")
	}
	root := t.TempDir()
	if out, err := exec.Command("install", "-D", "-m644", unitFile, filepath.Join(root, "etc/systemd/system/silkd.service")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command(systemctl, "--root="+root, "enable", "silkd.service").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, wanting := range []string{"multi-user.target", "containerd.service"} {
		if links, _ := filepath.Glob(filepath.Join(root, "etc/systemd/system", wanting+".wants/silkd.service")); len(links) != 1 {
			t.Errorf("%s does not start silkd", wanting)
		}
	}
}

// What the unit starts is ready on a machine that has nothing of silk but its two programs.
func TestUnitNeedsNoConfiguration(t *testing.T) {
	unit, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	var command []string
	for line := range strings.Lines(string(unit)) {
		if what, found := strings.CutPrefix(strings.TrimSpace(line), "ExecStart="); found {
			command = strings.Fields(what)
		}
	}
	if len(command) == 0 || command[0] != "/usr/local/bin/silkd" {
		t.Fatalf("the unit starts %q", command)
	}
	dir := t.TempDir()
	address := filepath.Join(dir, "notify")
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	// The machine's own files of silk, if it has any, stay out of sight and untouched.
	const bare = `set -e
mkdir "$0/over"
mount -t tmpfs tmpfs "$0/over"
mkdir "$0/over/upper" "$0/over/work"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$0/over/upper,workdir=$0/over/work" /etc
rm -rf /etc/silk
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
exec "$@"`
	silkd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", "sh", "-c", bare, dir, node.Silkd}, command[1:]...)...)
	silkd.Env = append(os.Environ(), "NOTIFY_SOCKET="+address)
	var said strings.Builder
	silkd.Stdout, silkd.Stderr = &said, &said
	silkd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := silkd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- silkd.Wait() }()
	defer syscall.Kill(-silkd.Process.Pid, syscall.SIGKILL)
	told := make(chan error, 1)
	go func() {
		message := make([]byte, 100)
		ready.SetReadDeadline(time.Now().Add(node.Deadline))
		n, err := ready.Read(message)
		if state := string(message[:n]); err == nil && state != "READY=1" {
			err = fmt.Errorf("it says %q", state)
		}
		told <- err
	}()
	select {
	case err := <-told:
		if err != nil {
			t.Fatal(err)
		}
	case err := <-ended:
		t.Fatalf("silkd ended: %v: %s", err, said.String())
	}
	syscall.Kill(silkd.Process.Pid, syscall.SIGTERM)
	if err := <-ended; err != nil {
		t.Errorf("silkd did not end well: %v: %s", err, said.String())
	}
}

// The samples of containerd's configuration: CRI gets silk, and so does who names it; who names no snapshotter, as ctr, has what it had
// without silk.
func TestSamplesOfContainerd(t *testing.T) {
	eachGeneration(t, func(t *testing.T, generation node.Generation) {
		file := sampleOfTwo
		if generation.Name == node.Second.Name {
			file = sampleOfNew
		}
		registry := hub.Start(t)
		n := node.Start(t, node.Options{Generation: generation, Config: sample(t, file)})
		add := func(name string, seed int64) string {
			return registry.Add(name, "1", image.Image{Layers: []image.Layer{guestLayer(t), noiseLayer("file", seed, 1<<20)}, Cmd: []string{"/guest", "sum", "/file"}}.Bundle())
		}

		byKubelet := add("kubelet", 51)
		n.Eventually("CRI pulls it", func() error { return n.PullCRI(node.Context(t, "k8s.io"), byKubelet) })
		ready(t, n, byKubelet)

		// Each has a layer of its own, which nobody has unpacked before.
		for i, snapshotter := range []string{"", "overlayfs", "silk"} {
			ref, seed := add("ctr-"+snapshotter, int64(52+i)), int64(52+i)
			named := []string{}
			if snapshotter != "" {
				named = []string{"--snapshotter", snapshotter}
			}
			if snapshotter == "silk" && generation.Name != node.Second.Name {
				// ctr of 1.x passes nothing of the image on.
				if said, err := n.Silk("pull", ref); err != nil {
					t.Fatal(err, said)
				}
			} else if said, err := ctr(t, n, append([]string{"images", "pull", "--plain-http"}, append(named, ref)...)...); err != nil {
				t.Errorf("ctr images pull %v: %v: %s", named, err, said)
				continue
			}
			said, err := ctr(t, n, append([]string{"run", "--rm", "--net-host"}, append(named, ref, fmt.Sprint("c", i))...)...)
			if want := image.Digest(noise(seed, 1<<20)); err != nil || strings.TrimSpace(said) != want {
				t.Errorf("ctr run %v: %v: the file is %s, want %s", named, err, said, want)
			}
			if state, _ := n.ImageState(ref); (state == "ready") != (snapshotter == "silk") {
				t.Errorf("ctr images pull %v: silk says that the image is %q", named, state)
			}
		}
	})
}

// sample is a file of docs/containerd with the paths of a test's node, and with what keeps it off the machine.
func sample(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for path, ours := range map[string]string{"/run/silk/silk.sock": "{{.Dir}}/silk.sock", "/var/lib/silk": "{{.Dir}}/silk"} {
		if !strings.Contains(text, path) {
			t.Fatalf("%s does not name %s", file, path)
		}
		text = strings.ReplaceAll(text, path, ours)
	}
	// Keys of no table come before the first.
	version, tables, found := strings.Cut(text, "\n\n")
	if !found {
		t.Fatalf("%s begins without its version", file)
	}
	return version + `
root = "{{.Dir}}/c"
state = "{{.Dir}}/state"
` + tables + `
[grpc]
  address = "{{.Dir}}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Dir}}/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
`
}
