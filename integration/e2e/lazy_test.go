package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/tree"
)

// Each image is read while its layers arrive, in random order, on some rungs by one reader and on others by sixteen, and again from a new mount
// when they are whole; always it is what containerd's overlayfs shows.
func TestLazyTreesEqualOverlayfs(t *testing.T) {
	t.Parallel()
	registry := hub.Start(t)
	var all []specimen
	for _, c := range image.Adversarial() {
		all = append(all, adversarial(registry, c))
	}
	for _, name := range []string{"debian", "python", "node"} {
		bundle := realImage(t, name)
		layers, err := bundle.Entries()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, specimen{name, registry.Add("real/"+name, "1", bundle), image.TimesMadeUp(layers...)})
	}
	want := map[string]tree.Tree{}
	fleet := node.StartRedis(t)
	teacher := node.Start(t, node.Options{Generation: node.Second, Extra: fleet.Config()})
	for nr, rung := range []string{"file", "loop", "tree"} {
		t.Run(rung, func(t *testing.T) {
			n := node.Start(t, node.Options{Generation: node.Second, Rung: rung, Extra: fleet.Config()})
			for i, s := range all {
				t.Run(s.name, func(t *testing.T) {
					ctx := node.Context(t, "e2e")
					registry.SetRate(0)
					if want[s.name] == nil {
						overlayfs, err := teacher.Tree(ctx, s.ref, "overlayfs")
						if err != nil {
							t.Fatal(err)
						}
						want[s.name] = overlayfs
						if _, err := teacher.Pull(ctx, s.ref, "silk"); err != nil {
							t.Fatal(err)
						}
						teacher.Eventually("the fleet knows its layers", func() error { return fleet.Knows(teacher, s.ref) })
					}
					registry.SetRate(30 << 20)
					readers := 1 + 15*((i+nr)%2)
					lazily(t, n, ctx, s, want[s.name], readers)
				})
			}
		})
	}
}

// lazily pulls a known image and reads it before and after it is whole.
func lazily(t *testing.T, n *node.Node, ctx context.Context, s specimen, want tree.Tree, readers int) {
	before := layersOf(t, n)
	pulled, err := n.Pull(ctx, s.ref, "silk")
	if err != nil {
		t.Fatal(err)
	}
	if state, message := n.ImageState(s.ref); state != "ready" {
		t.Fatalf("silk did not serve it: %s %s", state, message)
	}
	chain, err := n.ChainID(ctx, pulled)
	if err != nil {
		t.Fatal(err)
	}
	dir, undo, err := n.View(ctx, "silk", chain)
	if err != nil {
		t.Fatal(err)
	}
	shuffled(t, dir, readers)
	got, err := tree.Read(dir)
	if err != nil {
		t.Error(err)
	}
	for _, line := range tree.Diff(want, got, s.madeUp) {
		t.Error("lazily:", line)
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
	n.Eventually("every layer is whole", func() error { return whole(n, s.ref) })
	cameLazily(t, n, s.ref, before)
	got, err = n.ReadChain(ctx, "silk", chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range tree.Diff(want, got, s.madeUp) {
		t.Error("whole:", line)
	}
}

// layersOf are the diff IDs of the layers that silkd has.
func layersOf(t *testing.T, n *node.Node) map[string]bool {
	t.Helper()
	status, err := n.Status()
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for _, image := range status.Images {
		for _, layer := range image.Layers {
			has[layer.DiffID] = true
		}
	}
	return has
}

// cameLazily checks that each layer of an image filled, unless silkd had it before.
func cameLazily(t *testing.T, n *node.Node, ref string, before map[string]bool) {
	t.Helper()
	timing, err := n.Timing(ref)
	if err != nil || len(timing.Images) != 1 || len(timing.Images[0].Layers) == 0 {
		t.Fatalf("how did its layers come? %+v, %v", timing, err)
	}
	for _, layer := range timing.Images[0].Layers {
		if layer.Way != "filled" && !(layer.Way == "here" && before[layer.DiffID]) {
			t.Errorf("layer %s did not fill: it was %s", layer.DiffID, layer.Way)
		}
	}
}

// whole tells why an image is not served by silkd, or which of its layers is not all here.
func whole(n *node.Node, ref string) error {
	status, err := n.Status()
	if err != nil {
		return err
	}
	served := false
	for _, image := range status.Images {
		if image.Reference != ref {
			continue
		}
		for _, layer := range image.Layers {
			if served = true; layer.State != "whole" {
				return fmt.Errorf("layer %s is %s: %s", layer.DiffID, layer.State, layer.Error)
			}
		}
	}
	if !served {
		state, message := n.ImageState(ref)
		return fmt.Errorf("silkd has no layer of %s: it is %q: %s", ref, state, message)
	}
	return nil
}

// ready checks that silkd has an image, and all of it.
func ready(t *testing.T, n *node.Node, ref string) {
	t.Helper()
	if state, message := n.ImageState(ref); state != "ready" {
		t.Errorf("%s is %q: %s", ref, state, message)
	}
	if err := whole(n, ref); err != nil {
		t.Errorf("%s: %v", ref, err)
	}
}

// shuffled reads all regular files below a directory in random order, by several readers at once.
func shuffled(t *testing.T, dir string, readers int) {
	t.Helper()
	var files []string
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		// overlayfs lists a name of which a link in a layer above has taken the directory.
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && info.Mode().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	rand.New(rand.NewSource(1)).Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	var group errgroup.Group
	for reader := range readers {
		group.Go(func() error {
			for i := reader; i < len(files); i += readers {
				if _, err := os.ReadFile(files[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}
