package e2e

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// Ten images are pulled at once, one of them from a registry that has fallen silent. One of the others shares a layer with it.
func TestASilentRegistryHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	besideNine(t, 0)
}

// One of them is from a registry that sends a byte ten times a second: it is never silent, and as good as.
func TestADrippingRegistryHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	besideNine(t, 100*time.Millisecond)
}

// besideOthers is what silkd may hold in a test that runs beside seven others, where its task that gives memory back may wait for a
// processor. Chosen: half as much again as memoryBudget and a little more; to that one memory_test.go holds it.
const besideOthers = 256 << 20

// besideNine pulls nine images, and one that shares a layer with the last, whose registry is held, at a byte each interval: the others become whole
// meanwhile, and that one does when its registry sends again. It has more layers than silkd decodes at once, and they come first.
func besideNine(t *testing.T, interval time.Duration) {
	const turns = 3
	quick, slow := hub.Start(t), hub.Start(t)
	bundles, sharing := tenImages(t)
	refs := []string{slow.Add("slow", "1", bundles[0]), quick.Add("sharing", "1", sharing)}
	for i, bundle := range bundles[1:] {
		refs = append(refs, quick.Add(fmt.Sprint("quick-", i), "1", bundle))
	}
	// Nobody gives a silent connection up here: what comes then, other tests show.
	n := node.Start(t, node.Options{Generation: node.Second, Stall: 300, PullExtra: fmt.Sprintf("layers_at_once = %d", turns)})
	release := make(chan struct{})
	open := sync.OnceFunc(func() { close(release) })
	defer open()
	slow.SetFault(hub.Silk(hub.Any(bundles[0].LayerDigests, hub.Held(release, interval))))
	pulled := make([]chan error, len(refs))
	start := time.Now()
	for i, ref := range refs {
		ctx := n.Context()
		pulled[i] = make(chan error, 1)
		go func() {
			_, err := n.Pull(ctx, ref, "silk")
			pulled[i] <- err
		}()
		if i == 0 {
			n.Eventually("the slow image has all turns", func() error { return asked(slow, bundles[0], turns) })
		}
	}
	for i, ref := range refs[1:] {
		if err := <-pulled[1+i]; err != nil {
			t.Fatalf("%s, beside one that is held: %v", ref, err)
		}
		ready(t, n, ref)
	}
	took := time.Since(start).Round(10 * time.Millisecond)
	if state, message := n.ImageState(refs[0]); state != "pulling" {
		t.Errorf("the image that is held is %q: %s", state, message)
	}
	if sent := slow.Total(); sent > sizeOf(bundles[0])/100 {
		t.Errorf("%d bytes of it were sent: it was not held", sent)
	}
	open()
	if err := <-pulled[0]; err != nil {
		t.Fatalf("%s, when its registry sends again: %v", refs[0], err)
	}
	ready(t, n, refs[0])
	peak, err := n.Silkd.PeakMemory()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ten images were whole after %v, the one that was held after %v, peak memory %d MiB",
		took, time.Since(start).Round(10*time.Millisecond), peak>>20)
	if peak > besideOthers {
		t.Errorf("silkd's peak memory is %d MiB, more than %d", peak>>20, besideOthers>>20)
	}
}

// tenImages are images of 40 MB on disk, 20 in a registry, in four layers each; and one more that shares a layer with the first.
func tenImages(t *testing.T) (bundles []image.Bundle, sharing image.Bundle) {
	t.Helper()
	dir := t.TempDir()
	bundles = make([]image.Bundle, 10)
	var group errgroup.Group
	group.SetLimit(2)
	for i := range bundles {
		group.Go(func() (err error) {
			layers := make([]image.Layer, 4)
			for j := range layers {
				if layers[j], err = largeLayer(filepath.Join(dir, fmt.Sprint(i, j)), int64(2000+10*i+j), 100); err != nil {
					return err
				}
			}
			bundles[i] = image.Image{Layers: layers}.Bundle()
			if i == 0 {
				sharing = image.Image{Layers: []image.Layer{layers[0], noiseLayer("own", 1, 1<<20)}}.Bundle()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return bundles, sharing
}

// asked says why not so many layers of an image were asked for.
func asked(registry *hub.Hub, bundle image.Bundle, layers int) error {
	count := 0
	for _, digest := range bundle.LayerDigests {
		if registry.Counts(digest).Requests > 0 {
			count++
		}
	}
	if count < layers {
		return fmt.Errorf("%d were", count)
	}
	return nil
}
