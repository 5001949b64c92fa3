package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// knownTo starts a node that can mount an image of one file before its bytes are there.
func knownTo(t *testing.T, registry *hub.Hub, ref string) *node.Node {
	t.Helper()
	fleet := node.StartRedis(t)
	teacher := node.Start(t, node.Options{Generation: node.Second, Extra: fleet.Config()})
	if _, err := teacher.Pull(teacher.Context(), ref, "silk"); err != nil {
		t.Fatal(err)
	}
	teacher.Eventually("the fleet knows its layers", func() error { return fleet.Knows(teacher, ref) })
	return node.Start(t, node.Options{Generation: node.Second, Extra: fleet.Config()})
}

// A silkd whose FUSE mount somebody took away ends, and the next one mounts known images again.
func TestUnmountedFUSE(t *testing.T) {
	registry := hub.Start(t)
	ref := registry.Add("app", "1", image.Image{Layers: []image.Layer{noiseLayer("file", 71, 3<<20)}}.Bundle())
	n := knownTo(t, registry, ref)
	if err := unix.Unmount(filepath.Join(n.Dir, "silk/fuse"), 0); err != nil {
		t.Fatal(err)
	}
	// Fails, or silkd has noticed before.
	_, _ = n.Pull(n.Context(), ref, "silk")
	select {
	case <-n.Silkd.Exited():
	case <-time.After(2 * time.Minute):
		t.Fatal("silkd goes on without its mount")
	}
	n.StartSilkd()
	n.Eventually("a pull", func() error {
		_, err := n.Pull(n.Context(), ref, "silk")
		return err
	})
	ready(t, n, ref)
}

// A damaged layer that fsck drops is read anew by who mounts it next, also where a container has read the damage through silkd.
func TestDamageIsNotKeptByFUSE(t *testing.T) {
	registry := hub.Start(t)
	content := noise(72, 3<<20)
	layer := image.NewLayer(image.Gzip, image.Entry{Name: "file", Body: content})
	ref := registry.Add("app", "1", image.Image{Layers: []image.Layer{layer}}.Bundle())
	n := knownTo(t, registry, ref)
	ctx := n.Context()
	registry.SetRate(300 << 10)
	chain, err := n.PullChain(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	first, _, err := n.View(ctx, "silk", chain)
	if err != nil {
		t.Fatal(err)
	}
	if whole(n, ref) == nil {
		t.Fatal("the layer was whole before it was mounted")
	}
	registry.SetRate(0)
	n.Eventually("every layer is whole", func() error { return whole(n, ref) })
	for id := range n.LayerData() {
		path := filepath.Join(n.Dir, "silk/layers/sha256", strings.TrimPrefix(id, "sha256:"), "data")
		if err := overwrite(path, 2<<20); err != nil {
			t.Fatal(err)
		}
	}
	if damaged, err := os.ReadFile(filepath.Join(first, "file")); err != nil || bytes.Equal(damaged, content) {
		t.Fatalf("the damage is not seen: %v", err)
	}
	registry.SetRate(300 << 10)
	if out, err := n.Silk("fsck"); err == nil {
		t.Fatalf("fsck finds nothing: %s", out)
	}
	n.Eventually("the layer is fetched again", func() error {
		status, err := n.Status()
		if err == nil && status.Images[0].Layers[0].State != "filling" {
			err = fmt.Errorf("it is %s", status.Images[0].Layers[0].State)
		}
		return err
	})
	second, _, err := n.View(ctx, "silk", chain)
	if err != nil {
		t.Fatal(err)
	}
	registry.SetRate(0)
	if got, err := os.ReadFile(filepath.Join(second, "file")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("a new container reads what was damaged (%v)", err)
	}
	n.Eventually("every layer is whole", func() error { return whole(n, ref) })
}
