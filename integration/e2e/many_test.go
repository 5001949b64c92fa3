package e2e

import (
	"fmt"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// What silkd may hold with two hundred layers that are mounted and not here.
const lazyBudget = 128 << 20

// Four images of fifty layers, known from another node, from a registry that hardly sends: all are mounted with holes.
func TestMemoryOfManyLazyLayers(t *testing.T) {
	const images, layers = 4, 50
	dir := t.TempDir()
	registry, memory := hub.Start(t), node.StartRedis(t)
	options := node.Options{Generation: node.Second, Extra: memory.Config()}
	teacher, student := node.Start(t, options), node.Start(t, options)
	refs := make([]string, images)
	var group errgroup.Group
	group.SetLimit(2)
	for i := range refs {
		group.Go(func() (err error) {
			made := make([]image.Layer, layers)
			for j := range made {
				// 100 files, 10 MB.
				if made[j], err = largeLayer(filepath.Join(dir, fmt.Sprint(i, j)), int64(1000+layers*i+j), 100); err != nil {
					return err
				}
			}
			refs[i] = registry.Add(fmt.Sprint("many-", i), "1", image.Image{Layers: made}.Bundle())
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
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
		for _, layer := range image.Layers {
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
	if resident > lazyBudget {
		t.Errorf("silkd holds %d MiB, more than %d", resident>>20, lazyBudget>>20)
	}
}
