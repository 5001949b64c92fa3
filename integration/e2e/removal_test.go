package e2e

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"golang.org/x/sys/unix"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// Images of all sizes are removed: the snapshots are gone when the call returns, and on a node that keeps no unused layers the disk
// itself, not only the names of its files, has the space again.
func TestRemovalGivesTheDiskBack(t *testing.T) {
	t.Parallel()
	dir, registry, address := t.TempDir(), hub.Start(t), freeAddress(t)
	n := node.Start(t, node.Options{
		Generation: node.Second, DiskSize: 2 << 30,
		Extra: fmt.Sprintf("[store]\ncache_bytes = 0\nkeep_free_percent = 0\n[metrics]\naddress = %q\n", address),
	})
	for _, c := range []struct {
		name          string
		layers, files int // files of 100 kB a layer
	}{{"small", 1, 1}, {"of many layers", 60, 10}, {"large", 2, 2000}} {
		made := make([]image.Layer, c.layers)
		for i := range made {
			var err error
			if made[i], err = largeLayer(filepath.Join(dir, fmt.Sprint(c.name, i)), int64(c.files+i), c.files); err != nil {
				t.Fatal(err)
			}
		}
		ref := registry.Add(strings.ReplaceAll(c.name, " ", "-"), "1", image.Image{Layers: made}.Bundle())
		t.Run(c.name, func(t *testing.T) { removeImage(t, n, address, ref, int64(c.layers*c.files)*100_000) })
	}
}

func removeImage(t *testing.T, n *node.Node, address, ref string, size int64) {
	ctx := node.Context(t, "e2e")
	before := freeOn(t, n)
	chain, err := n.PullChain(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	// Somebody has read it: what silkd and the kernel hold of it is in the way of giving it back.
	if _, err := n.ReadChain(ctx, "silk", chain); err != nil {
		t.Fatal(err)
	}
	n.Eventually("the image takes space on the disk", func() error {
		if took := before - freeOn(t, n); took < size*9/10 {
			return fmt.Errorf("%d bytes of %d", took, size)
		}
		return nil
	})
	earlier := scrape(t, address)
	start := time.Now()
	if err := n.Client.ImageService().Delete(ctx, ref, images.SynchronousDelete()); err != nil {
		t.Fatal(err)
	}
	returned := time.Since(start)
	// kubelet looks at the disk right after it removed images, and evicts pods if it is still full. Cleanup waits for 10 s.
	prompt := returned < 9*time.Second
	if data := n.LayerData(); len(data) > 0 && prompt {
		t.Errorf("containerd says that the image is gone, and its data is not: %v", data)
	}
	if !prompt && size < 1_000_000 {
		t.Errorf("removing a small image took %v: it was not looked whether its data goes before the call returns", returned)
	}
	if _, err := n.Client.SnapshotService("silk").Stat(ctx, chain); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("the image's snapshot is still there: %v", err)
	}
	// Names and index of the layers stay known, and ext4 keeps some blocks that directories and the database grew to.
	allowed := 4<<20 + size/100
	n.Settled("the disk has the space again", func() error {
		if lost := before - freeOn(t, n); lost > allowed {
			return fmt.Errorf("%d bytes are missing, of %d that the image had", lost, size)
		}
		// What a small image had is less than what is allowed.
		if data, mounts := n.LayerData(), n.LayerMounts(); len(data)+len(mounts) > 0 {
			return fmt.Errorf("data %v, mounts %v", data, mounts)
		}
		return nil
	})
	freed := time.Since(start)
	calls := scrape(t, address)
	for name := range calls {
		calls[name] -= earlier[name]
	}
	t.Logf("%d MB: removed in %v, on the disk after %v; %v Remove calls, their median at most %v s", size/1e6,
		returned.Round(time.Millisecond), freed.Round(time.Millisecond),
		calls[`silk_snapshotter_call_seconds_count{method="remove"}`], median(calls, "silk_snapshotter_call_seconds", "remove"))
}

// freeOn is what the file system of silkd's root has left, and what the database took of it: it has more blocks than it needs, and
// not always the same.
func freeOn(t *testing.T, n *node.Node) int64 {
	t.Helper()
	var fs unix.Statfs_t
	var database unix.Stat_t
	if err := unix.Statfs(filepath.Join(n.Dir, "silk"), &fs); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(filepath.Join(n.Dir, "silk/silk.redb"), &database); err != nil {
		t.Fatal(err)
	}
	return int64(fs.Bfree)*fs.Bsize + database.Blocks*512
}

// median is the upper bound of the bucket that has it.
func median(calls samples, name, method string) float64 {
	half, found := calls[name+fmt.Sprintf("_count{method=%q}", method)]/2, math.Inf(1)
	for sample, count := range calls {
		var bound float64
		if _, labels, ok := strings.Cut(sample, name+"_bucket{"); ok && strings.Contains(labels, fmt.Sprintf("method=%q", method)) {
			_, quoted, _ := strings.Cut(labels, `le="`)
			if _, err := fmt.Sscanf(quoted, "%g", &bound); err == nil && count >= half {
				found = min(found, bound)
			}
		}
	}
	return found
}
