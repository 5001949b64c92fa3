package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

const (
	kills     = 20
	killLayer = 6 << 20 // bytes of each of the layers below
	killCount = 5
)

// silkd is killed at random moments of pulls, counted in bytes that the registry sent, and started again; the client tries again, as
// kubelet does. Every pull must end with the right tree, and nothing may be left over at the end. SILK_SEED chooses other moments.
func TestKilledWhilePulling(t *testing.T) {
	t.Parallel()
	for _, rung := range []string{"file", "loop"} {
		t.Run(rung, func(t *testing.T) {
			t.Parallel()
			k := &killer{Node: node.Start(t, node.Options{Generation: node.Second, Rung: rung}), registry: hub.Start(t), random: chance(t)}
			for i := 0; k.killed < kills; i++ {
				k.pull(t, i)
			}
			if got, want := len(k.LayerMounts()), len(k.refs)*killCount; got > want {
				t.Errorf("%d layers, %d mounts", want, got)
			}
			nothingLeaks(t, k.Node, k.refs)
		})
	}
}

type killer struct {
	*node.Node
	registry *hub.Hub
	random   *rand.Rand
	killed   int
	refs     []string
}

// pull pulls a new image and kills silkd on the way as often as chance has it.
func (k *killer) pull(t *testing.T, number int) {
	var layers []image.Layer
	for i := range killCount {
		layers = append(layers, noiseLayer(fmt.Sprintf("file-%d", i), k.seed(number, i), killLayer))
	}
	ref := k.registry.Add(fmt.Sprintf("image-%d", number), "1", image.Image{Layers: layers}.Bundle())
	k.refs = append(k.refs, ref)
	ctx := k.Context()
	done := make(chan error, 1)
	go func() { done <- k.retry(ctx, ref) }()
	for pulling := true; pulling && k.killed < kills; {
		moment := k.registry.Total() + k.random.Int63n(killLayer*killCount)
		for pulling && k.registry.Total() < moment {
			select {
			case err := <-done:
				if pulling = false; err != nil {
					t.Fatal(err)
				}
			case <-time.After(time.Millisecond):
			}
		}
		k.Silkd.Kill()
		k.killed++
		k.StartSilkd()
		if !pulling {
			k.check(t, ctx, ref, number)
			return
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	k.check(t, ctx, ref, number)
}

func (k *killer) seed(number, layer int) int64 { return int64(1000*number + layer + 1) }

// retry pulls until it succeeds.
func (k *killer) retry(ctx context.Context, ref string) error {
	for {
		_, err := k.Pull(ctx, ref, "silk")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the pull never ended: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// check reads the image's files.
func (k *killer) check(t *testing.T, ctx context.Context, ref string, number int) {
	t.Helper()
	pulled, err := k.Client.GetImage(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := k.ChainID(ctx, pulled)
	if err != nil {
		t.Fatal(err)
	}
	k.Reconnected(ctx, chain)
	dir, undo, err := k.View(ctx, "silk", chain)
	if err != nil {
		t.Fatal(err)
	}
	for i := range killCount {
		got, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("file-%d", i)))
		if err != nil || !bytes.Equal(got, noise(k.seed(number, i), killLayer)) {
			t.Errorf("%s: file %d is wrong: %d bytes, %v", ref, i, len(got), err)
		}
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
}

// nothingLeaks removes all images and looks for what is left.
func nothingLeaks(t *testing.T, n *node.Node, refs []string) {
	t.Helper()
	ctx := n.Context()
	for _, ref := range refs {
		// Synchronously: containerd's scheduler overlooks what is deleted while a garbage collection removes snapshots.
		if err := n.Client.ImageService().Delete(ctx, ref, images.SynchronousDelete()); err != nil {
			t.Error(err)
		}
	}
	n.Settled("everything is given back", func() error {
		if _, err := n.Silk("gc", "--keep", "0"); err != nil {
			return err
		}
		files, _ := filepath.Glob(filepath.Join(n.Dir, "silk/layers/sha256/*/[dep]*")) // all but `toc` and `index`
		snapshots, _ := filepath.Glob(filepath.Join(n.Dir, "silk/snapshots/*"))
		if len(files)+len(snapshots)+len(n.LayerMounts())+len(n.Loops()) > 0 {
			return fmt.Errorf("files %v, snapshots %v, mounts %v, loop devices %v", files, snapshots, n.LayerMounts(), n.Loops())
		}
		return nil
	})
}
