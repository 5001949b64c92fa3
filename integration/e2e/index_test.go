package e2e

import (
	"fmt"
	"strings"
	"testing"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
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
		registry.SetRate(30 << 20)
		firstPullIsLazy(t, n, s, "redis unix:", "no key is configured")
	})
	t.Run("referrers", func(t *testing.T) {
		registry := node.StartRegistry(t)
		s := specimen{"python", registry.Push("real/python", "1", bundle), image.TimesMadeUp(layers...)}
		n := node.Start(t, node.Options{Generation: node.Second, Extra: signpost})
		index(t, n, s, "referrers ")
		firstPullIsLazy(t, n, s, "referrers of "+registry.Host, "trust_unsigned allows")
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

// firstPullIsLazy pulls an image and asks silkd at once: each layer has its names from somebody else, for a reason.
func firstPullIsLazy(t *testing.T, n *node.Node, s specimen, from, why string) {
	t.Helper()
	ctx := node.Context(t, "e2e")
	want, err := n.Tree(ctx, s.ref, "overlayfs")
	if err != nil {
		t.Fatal(err)
	}
	pulled, err := n.Pull(ctx, s.ref, "silk")
	if err != nil {
		t.Fatal(err)
	}
	if err := lazyNow(n, s.ref, from, why); err != nil {
		t.Fatal(err)
	}
	out, err := n.Silk("explain", s.ref)
	if err != nil || !strings.Contains(out, why) || !strings.Contains(out, "shared through ") {
		t.Errorf("%v:\n%s", err, out)
	}
	chain, err := n.ChainID(ctx, pulled)
	if err != nil {
		t.Fatal(err)
	}
	same(t, n, ctx, s, chain, want, "lazily")
	n.Eventually("every layer is whole", func() error { return whole(n, s.ref) })
	same(t, n, ctx, s, chain, want, "whole")
}

// lazyNow says what is not as after a lazy pull: small layers may be whole by now, the largest is not.
func lazyNow(n *node.Node, ref, from, why string) error {
	status, err := n.Status()
	if err != nil {
		return err
	}
	filling := 0
	for _, image := range status.Images {
		for _, layer := range image.Layers {
			switch {
			case image.Reference != ref || layer.State == "whole":
			case layer.State != "filling":
				return fmt.Errorf("layer %s is %s", layer.DiffID, layer.State)
			case !strings.HasPrefix(layer.NamesFrom, from) || !strings.Contains(layer.NamesFrom, why):
				return fmt.Errorf("layer %s is known from %q", layer.DiffID, layer.NamesFrom)
			default:
				filling++
			}
		}
	}
	if filling == 0 {
		return fmt.Errorf("no layer of %s is filling: %+v", ref, status.Images)
	}
	if len(status.Backends) != 1 || !status.Backends[0].Up || status.Backends[0].Hits == 0 {
		return fmt.Errorf("backends: %+v", status.Backends)
	}
	return nil
}
