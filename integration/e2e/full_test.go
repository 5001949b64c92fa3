package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// On a disk without a free byte silkd starts again, after a stop and after a reboot of the machine took the mounts, and serves the
// image's container.
func TestStartOnAFullDisk(t *testing.T) {
	for _, rung := range []string{"file", "loop"} {
		t.Run(rung, func(t *testing.T) { fullDisk(t, rung) })
	}
}

func fullDisk(t *testing.T, rung string) {
	registry := hub.Start(t)
	n := node.Start(t, node.Options{Generation: node.Second, Rung: rung, DiskSize: 64 << 20})
	ctx := n.Context()
	content := noise(61, 3<<20)
	layers := []image.Layer{image.NewLayer(image.Gzip, image.Entry{Name: "file", Body: content}), noiseLayer("other", 62, 10_000)}
	ref := registry.Add("app", "1", image.Image{Layers: layers}.Bundle())
	chain, err := n.PullChain(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	service := n.Client.SnapshotService("silk")
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "e2e"})
	if _, err := service.Prepare(ctx, "container", chain, root); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(n.Dir, "silk/filler")
	fill(t, filler)
	for _, reboot := range []bool{false, true} {
		if !reboot {
			if err := n.Silkd.Stop(); err != nil {
				t.Fatal(err)
			}
		} else {
			n.Silkd.Kill()
			for _, target := range n.LayerMounts() {
				if err := unix.Unmount(target, 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		n.StartSilkd()
		if state, message := n.ImageState(ref); state != "ready" {
			t.Errorf("silk status says %q: %s", state, message)
		}
		n.Reconnected(ctx, "container")
		mounts, err := service.Mounts(ctx, "container")
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := mount.All(mounts, dir); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got, content) {
			t.Errorf("the container's file has %d bytes that are not the image's (%v)", len(got), err)
		}
		if err := mount.UnmountAll(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.Silk("fsck"); err != nil {
		t.Error(err)
	}
	// A new container needs directories of its own.
	if _, err := service.Prepare(ctx, "refused", chain, root); err == nil || !strings.Contains(err.Error(), "No space left") {
		t.Errorf("a new container on a full disk: %v", err)
	}
	if err := service.Remove(ctx, "container"); err != nil {
		t.Errorf("nothing can be removed from a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if _, err := service.Prepare(ctx, "new", chain, root); err != nil {
		t.Errorf("a new container once there is space: %v", err)
	}
}

// fill writes a file until the file system has no block left.
func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for err == nil {
			_, err = file.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		err = file.Sync()
	}
}
