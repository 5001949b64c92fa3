package e2e

import (
	"strings"
	"testing"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/tree"
)

// A root file system that both snapshotters are to show alike.
type specimen struct {
	name   string
	ref    string
	madeUp map[string]bool
}

// specimens are the adversarial images in the test's own registry, and the real ones in Debian's.
func specimens(t *testing.T) (all []specimen) {
	registry, debian := hub.Start(t), node.StartRegistry(t)
	for _, c := range image.Adversarial() {
		all = append(all, adversarial(registry, c))
	}
	for _, name := range []string{"debian", "python", "node"} {
		bundle := realImage(t, name)
		layers, err := bundle.Entries()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, specimen{name, debian.Push("real/"+name, "1", bundle), image.TimesMadeUp(layers...)})
	}
	return all
}

func adversarial(registry *hub.Hub, c image.Case) specimen {
	ref := registry.Add("adversarial/"+strings.ReplaceAll(strings.ToLower(c.Name), " ", "-"), "1", c.Image.Bundle())
	var layers [][]image.Entry
	for _, layer := range c.Image.Layers {
		layers = append(layers, layer.Entries)
	}
	return specimen{c.Name, ref, image.TimesMadeUp(layers...)}
}

// Each image's root file system is read from containerd's overlayfs and from silk, on each rung, and must be the same.
func TestTreesEqualOverlayfs(t *testing.T) {
	t.Parallel()
	all := specimens(t)
	oldAndNew(t, func(t *testing.T, generation node.Generation) {
		want := map[string]tree.Tree{}
		rungs := []string{"file", "loop", "tree"}
		if generation.Name != node.Second.Name {
			// What a rung shows does not depend on who asks for it: here it is to be seen that the older one asks for the same.
			rungs = rungs[:1]
		}
		for _, rung := range rungs {
			t.Run(rung, func(t *testing.T) {
				n := node.Start(t, node.Options{Generation: generation, Rung: rung})
				for _, s := range all {
					t.Run(s.name, func(t *testing.T) {
						ctx := node.Context(t, "e2e")
						if want[s.name] == nil {
							overlayfs, err := n.Tree(ctx, s.ref, "overlayfs")
							if err != nil {
								t.Fatal(err)
							}
							want[s.name] = overlayfs
						}
						got, err := n.Tree(ctx, s.ref, "silk")
						if err != nil {
							t.Fatal(err)
						}
						if state, message := n.ImageState(s.ref); state != "ready" {
							t.Errorf("silk did not serve it: %s %s", state, message)
						}
						for _, line := range tree.Diff(want[s.name], got, s.madeUp) {
							t.Error(line)
						}
					})
				}
				checkMetadata(t, n)
			})
		}
	})
}
