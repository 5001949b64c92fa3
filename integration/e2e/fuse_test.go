package e2e

import (
	"path/filepath"
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
