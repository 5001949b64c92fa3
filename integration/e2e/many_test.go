package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sync/errgroup"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// What silkd may hold with two hundred layers that are mounted, here or not.
const restBudget = 128 << 20

// Four images of fifty layers, known from another node, from a registry that hardly sends: all are mounted with holes.
func TestMemoryOfManyLazyLayers(t *testing.T) {
	const images, layers = 4, 50
	registry, memory := hub.Start(t), node.StartRedis(t)
	options := node.Options{Generation: node.Second, Extra: memory.Config()}
	teacher, student := node.Start(t, options), node.Start(t, options)
	// 100 files, 10 MB a layer.
	refs := manyLayers(t, registry, images, layers, 100)
	for _, ref := range refs {
		if _, err := teacher.Pull(teacher.Context(), ref, "silk"); err != nil {
			t.Fatal(err)
		}
		teacher.Eventually("the fleet knows the image", func() error { return memory.Knows(teacher, ref) })
	}
	registry.SetRate(32 << 10)
	for _, ref := range refs {
		if _, err := student.Pull(student.Context(), ref, "silk"); err != nil {
			t.Fatal(err)
		}
	}
	status, err := student.Status()
	if err != nil {
		t.Fatal(err)
	}
	filling := 0
	for _, image := range status.Images {
		// The one with the guest program is every image's.
		for _, layer := range image.Layers[1:] {
			if layer.State == "filling" {
				filling++
			}
		}
	}
	if filling != images*layers {
		t.Errorf("%d layers are filling, not %d", filling, images*layers)
	}
	resident, err := student.Silkd.Memory()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d layers, %d MiB", filling, resident>>20)
	if resident > restBudget {
		t.Errorf("silkd holds %d MiB, more than %d", resident>>20, restBudget>>20)
	}
}

// manyLayers adds images to a registry that have so many layers of so many files of 100 kB each, above the one with the guest program.
func manyLayers(t *testing.T, registry *hub.Hub, images, layers, files int) []string {
	t.Helper()
	dir, base, refs := t.TempDir(), guestLayer(t), make([]string, images)
	var group errgroup.Group
	group.SetLimit(2)
	for i := range refs {
		group.Go(func() (err error) {
			made := make([]image.Layer, layers)
			for j := range made {
				if made[j], err = largeLayer(filepath.Join(dir, fmt.Sprint(i, j)), int64(1000+layers*i+j), files); err != nil {
					return err
				}
			}
			app := image.Image{Layers: append([]image.Layer{base}, made...), Cmd: []string{"/guest", "hello"}}
			refs[i] = registry.Add(fmt.Sprint("many-", i), "1", app.Bundle())
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return refs
}

// Two hundred layers are mounted and a hundred containers run from them.
func TestMemoryAtRest(t *testing.T) {
	t.Parallel()
	const images, layers, containers = 4, 50, 100
	registry := hub.Start(t)
	n := node.Start(t, node.Options{Generation: node.Second})
	refs := manyLayers(t, registry, images, layers, 10)
	// From here on: the layers are made without it. A hundred containers start four at a time, beside other tests.
	ctx := node.ContextFor(t, "e2e", 10*time.Minute)
	pulled := make([]containerd.Image, images)
	for i, ref := range refs {
		var err error
		if pulled[i], err = n.Pull(ctx, ref, "silk"); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	tasks := make([]containerd.Task, containers)
	var group errgroup.Group
	group.SetLimit(4)
	for i := range tasks {
		group.Go(func() (err error) {
			tasks[i], err = n.RunTask(ctx, fmt.Sprint("rest-", i), pulled[i%images])
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d containers were ready after %v", containers, time.Since(start).Round(100*time.Millisecond))
	for _, ref := range refs {
		ready(t, n, ref)
	}
	if mounts := n.LayerMounts(); len(mounts) < images*layers {
		t.Errorf("%d layers are mounted, not %d", len(mounts), images*layers)
	}
	for i, task := range tasks {
		if status, err := task.Status(ctx); err != nil || status.Status != containerd.Running {
			t.Errorf("container %d is %v (%v)", i, status.Status, err)
		}
	}
	resident, err := n.Silkd.Memory()
	if err != nil {
		t.Fatal(err)
	}
	peak, err := n.Silkd.PeakMemory()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d mounts, %d containers: %d MiB, peak %d MiB", len(n.LayerMounts()), containers, resident>>20, peak>>20)
	if resident > restBudget {
		t.Errorf("silkd holds %d MiB, more than %d", resident>>20, restBudget>>20)
	}
}
