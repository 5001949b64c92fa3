package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/tree"
)

// signpost lets anybody's unsigned artifacts be read and written.
const signpost = "[share.referrers]\ndiscover = true\npublish = true\ntrust_unsigned = true\n"

// `silk index` teaches a fleet an image that no node has pulled: the first pull of it is a lazy one, and shows the same tree.
func TestIndexAheadOfTime(t *testing.T) {
	bundle := realImage(t, "python")
	layers, err := bundle.Entries()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("redis", func(t *testing.T) {
		registry, fleet := hub.Start(t), node.StartRedis(t)
		s := specimen{"python", registry.Add("real/python", "1", bundle), image.TimesMadeUp(layers...)}
		n := node.Start(t, node.Options{Generation: node.Second, Extra: fleet.Config()})
		index(t, n, s, "redis ")
		// Slow enough that a layer is still on its way when silkd is asked.
		registry.SetRate(5 << 20)
		firstPullIsLazy(t, n, s, learned{from: "redis unix:", why: "no key is configured", filling: 1})
	})
	t.Run("referrers", func(t *testing.T) {
		registry := node.StartRegistry(t)
		s := specimen{"python", registry.Push("real/python", "1", bundle), image.TimesMadeUp(layers...)}
		n := node.Start(t, node.Options{Generation: node.Second, Extra: signpost})
		index(t, n, s, "referrers ")
		firstPullIsLazy(t, n, s, learned{from: "referrers of " + registry.Host, why: "trust_unsigned allows"})
	})
}

// index runs the command twice: the second one has nothing left to do. n gives the configuration, and no more.
func index(t *testing.T, n *node.Node, s specimen, place string) {
	t.Helper()
	for _, said := range []string{place, "has it"} {
		out, err := n.Silk("index", s.ref)
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(out, said); lines == 0 || !strings.Contains(out, "indexed "+s.ref) {
			t.Fatalf("%q stands in %d lines of:\n%s", said, lines, out)
		}
	}
	status, err := n.Status()
	if err != nil || len(status.Images) != 0 {
		t.Fatalf("silkd has had part in it: %+v, %v", status, err)
	}
}

// learned is how a node knows the layers of an image that it is pulling for the first time.
type learned struct {
	from, why string
	// filling is how many layers at least are not whole when the pull returns.
	filling int
}

// firstPullIsLazy pulls an image and asks silkd at once: each layer has its names from somebody else, for a reason.
func firstPullIsLazy(t *testing.T, n *node.Node, s specimen, l learned) {
	t.Helper()
	ctx := node.Context(t, "e2e")
	want, err := n.Tree(ctx, s.ref, "overlayfs")
	if err != nil {
		t.Fatal(err)
	}
	before := layersOf(t, n)
	pulled, err := n.Pull(ctx, s.ref, "silk")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.check(n, s.ref); err != nil {
		t.Fatal(err)
	}
	out, err := n.Silk("explain", s.ref)
	if err != nil || !strings.Contains(out, "shared through ") || l.filling > 0 && !strings.Contains(out, l.why) {
		t.Errorf("%v:\n%s", err, out)
	}
	chain, err := n.ChainID(ctx, pulled)
	if err != nil {
		t.Fatal(err)
	}
	same(t, n, ctx, s, chain, want, "lazily")
	n.Eventually("every layer is whole", func() error { return whole(n, s.ref) })
	cameLazily(t, n, s.ref, before)
	same(t, n, ctx, s, chain, want, "whole")
}

// check says what is not as after such a pull.
func (l learned) check(n *node.Node, ref string) error {
	status, err := n.Status()
	if err != nil {
		return err
	}
	filling, layers := 0, map[string]bool{}
	for _, image := range status.Images {
		for _, layer := range image.Layers {
			layers[layer.BlobDigest] = true
			switch {
			case image.Reference != ref || layer.State == "whole":
			case layer.State != "filling":
				return fmt.Errorf("layer %s is %s", layer.DiffID, layer.State)
			case !strings.HasPrefix(layer.NamesFrom, l.from) || !strings.Contains(layer.NamesFrom, l.why):
				return fmt.Errorf("layer %s is known from %q", layer.DiffID, layer.NamesFrom)
			default:
				filling++
			}
		}
	}
	if filling < l.filling {
		return fmt.Errorf("%d layers of %s are filling: %+v", filling, ref, status.Images)
	}
	// Some are whole by now; that they were looked up and found stays.
	if len(status.Backends) != 1 || !status.Backends[0].Up || status.Backends[0].Hits < uint64(len(layers)) {
		return fmt.Errorf("backends: %+v, of %d layers", status.Backends, len(layers))
	}
	return nil
}

func same(t *testing.T, n *node.Node, ctx context.Context, s specimen, chain string, want tree.Tree, when string) {
	t.Helper()
	got, err := n.ReadChain(ctx, "silk", chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range tree.Diff(want, got, s.madeUp) {
		t.Error(when+":", line)
	}
}
