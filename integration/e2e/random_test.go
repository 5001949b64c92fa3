package e2e

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/tree"
)

// Random images: what containerd's overlayfs shows is what silk shows, as the first node that streams them in and as the next that fills them
// lazily. What containerd refuses does silk no harm. SILK_SEED and SILK_SEEDS choose others and more.
func TestRandomTreesEqualOverlayfs(t *testing.T) {
	t.Parallel()
	first, _ := strconv.ParseUint(os.Getenv("SILK_SEED"), 10, 64)
	count, _ := strconv.ParseUint(os.Getenv("SILK_SEEDS"), 10, 64)
	if count == 0 {
		count = 24
	}
	registry := hub.Start(t)
	var refs []string
	for seed := first; seed < first+count; seed++ {
		refs = append(refs, registry.Add("random", fmt.Sprint(seed), image.Random(seed).Bundle()))
	}
	for _, rung := range []string{"file", "loop", "tree"} {
		t.Run(rung, func(t *testing.T) {
			fleet := node.StartRedis(t)
			options := node.Options{Generation: node.Second, Rung: rung, Extra: fleet.Config()}
			teacher, n := node.Start(t, options), node.Start(t, options)
			compared := 0
			for i, ref := range refs {
				t.Run(fmt.Sprint(first+uint64(i)), func(t *testing.T) {
					if random(t, fleet, teacher, n, ref) {
						compared++
					}
				})
			}
			// Two of three are accepted, over thousands of seeds.
			if len(refs) >= 12 && compared < len(refs)/3 {
				t.Errorf("containerd took %d of %d images: they are too odd to compare", compared, len(refs))
			}
			checkMetadata(t, teacher)
		})
	}
}

// random compares one image; whether containerd takes it.
func random(t *testing.T, fleet *node.Redis, teacher, n *node.Node, ref string) bool {
	ctx, began := node.Context(t, "e2e"), time.Now().Unix()
	want, refused := teacher.Tree(ctx, ref, "overlayfs")
	got, err := teacher.Tree(ctx, ref, "silk")
	switch {
	case refused != nil:
		t.Logf("containerd: %v; silk: %v", refused, err)
		return false
	case err != nil:
		t.Fatal(err)
	}
	ready(t, teacher, ref)
	s := specimen{ref: ref, madeUp: madeSince(want, began)}
	for _, line := range tree.Diff(want, got, s.madeUp) {
		t.Error("streamed:", line)
	}
	teacher.Eventually("the fleet knows its layers", func() error { return fleet.Knows(teacher, ref) })
	lazily(t, n, ctx, s, want, 2)
	return true
}

// madeSince names what has the time of the unpacking: no layer tells one.
func madeSince(all tree.Tree, began int64) map[string]bool {
	names := map[string]bool{}
	for name, node := range all {
		names[name] = node.Mtime[0] >= began && node.Mtime[0] <= time.Now().Unix()
	}
	return names
}
