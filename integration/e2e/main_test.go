// Package e2e drives silkd with a real containerd, real registries and real mounts. It needs root, and what hack/test prepares: the
// binaries (SILKD, SILK), containerd of two generations (SILK_CONTAINERD_1, SILK_CONTAINERD_2; SILK_CONTAINERD_17 if wanted), a runc
// that runs pods in user namespaces (SILK_RUNC), and the real images (SILK_IMAGES).
// What a machine cannot do is skipped, unless SILK_E2E_ALL is set.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "run as root: these tests mount and run containers")
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(guestDir)
	os.Exit(code)
}

// eachGeneration runs a test against each containerd.
func eachGeneration(t *testing.T, test func(t *testing.T, generation node.Generation)) {
	oldAndNew(t, test)
	if node.Last.Binary != "" {
		t.Run(node.Last.Name, func(t *testing.T) { test(t, node.Last) })
	}
}

// oldAndNew runs a test that takes minutes against the packaged containerd and one of the second generation.
func oldAndNew(t *testing.T, test func(t *testing.T, generation node.Generation)) {
	for _, generation := range []node.Generation{node.Packaged, node.Second} {
		t.Run(generation.Name, func(t *testing.T) { test(t, generation) })
	}
}

var guestDir string

// guest is the static program of ./guest.
var guest = sync.OnceValues(func() ([]byte, error) {
	var err error
	if guestDir, err = os.MkdirTemp("", "silk-guest-"); err != nil {
		return nil, err
	}
	binary := filepath.Join(guestDir, "guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "./guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the guest: %w: %s", err, out)
	}
	return os.ReadFile(binary)
})

// guestLayer is a layer with the guest program at /guest.
func guestLayer(t testing.TB) image.Layer {
	t.Helper()
	program, err := guest()
	if err != nil {
		t.Fatal(err)
	}
	return image.NewLayer(image.Gzip, image.Entry{Name: "guest", Mode: 0o755, Body: program})
}

// runnable is an image with the guest program as its base and further layers above.
func runnable(t testing.TB, layers ...image.Layer) image.Image {
	return image.Image{Layers: append([]image.Layer{guestLayer(t)}, layers...), Cmd: []string{"/guest", "hello"}}
}

// withPods starts a node that can run pods: its sandbox image is in the registry.
func withPods(t testing.TB, registry *hub.Hub, options node.Options) *node.Node {
	t.Helper()
	options.Sandbox = registry.Add("pause", "1", image.Image{Layers: []image.Layer{guestLayer(t)}, Cmd: []string{"/guest", "pause"}}.Bundle())
	return node.Start(t, options)
}

// realImage reads one of the images that hack/images builds.
func realImage(t testing.TB, name string) image.Bundle {
	t.Helper()
	bundle, err := image.ReadLayout(realLayout(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}

// realLayout is its folder.
func realLayout(t testing.TB, name string) string {
	t.Helper()
	// A name, a dash and a hash: name+"-*" would be other images' too.
	found, _ := filepath.Glob(filepath.Join(os.Getenv("SILK_IMAGES"), name+"-"+strings.Repeat("[0-9a-f]", 16)))
	if len(found) == 0 {
		t.Fatalf("no image %s: set SILK_IMAGES to the folder where hack/images/build puts them", name)
	}
	return found[len(found)-1]
}
