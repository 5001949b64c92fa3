package e2e

import (
	"strings"
	"testing"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// A broken image is pushed again with other blobs for the same diff IDs. containerd knows their snapshots until its garbage
// collection runs, which these tests keep from running, and so asks silkd for nothing new.
func TestPushedAgain(t *testing.T) {
	eachGeneration(t, func(t *testing.T, generation node.Generation) {
		pushedAgain(t, node.Options{Generation: generation})
	})
	t.Run("second, its transfer service", func(t *testing.T) {
		pushedAgain(t, node.Options{Generation: node.Second, Transfer: true})
	})
}

func pushedAgain(t *testing.T, options node.Options) {
	registry := hub.Start(t)
	options.KeepGarbage, options.Stall = true, node.Patient
	n := withPods(t, registry, options)
	ctx := node.Context(t, "k8s.io")
	for name, compression := range map[string]image.Compression{"gzip": image.GzipMembers, "zstd": image.Zstd} {
		pod, sandbox, err := n.RunPod(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		content := noise(51, 500_000)
		broken, mended := brokenAndMended(compression, image.Entry{Name: "data/" + name, Body: content})
		// It is not the last layer: its own Stat fails the pull.
		top := noiseLayer("top", 52, 10_000)
		ref := registry.Add(name, "1", runnable(t, broken, top).Bundle())
		if err = n.PullCRI(ctx, ref); err == nil || !strings.Contains(err.Error(), "silk cannot pull "+ref) {
			t.Fatalf("the pull of a broken image: %v", err)
		}
		registry.Add(name, "1", runnable(t, mended, top).Bundle())
		if err := n.PullCRI(ctx, ref); err != nil {
			t.Fatalf("after it was pushed again: %v", err)
		}
		if count := registry.Counts(mended.Blob.Digest); count.Bytes != mended.Blob.Size {
			t.Errorf("%d bytes of the new blob were sent, of %d", count.Bytes, mended.Blob.Size)
		}
		container, err := n.RunContainer(ctx, pod, sandbox, ref)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := n.Exec(ctx, container, "/guest", "sum", "/data/"+name); err != nil || got != image.Digest(content) {
			t.Errorf("the file in the container is %s, want %s (%v)", got, image.Digest(content), err)
		}
	}
}

// brokenAndMended is a layer whose blob was cut off, and the same layer with another blob.
func brokenAndMended(compression image.Compression, entry image.Entry) (broken, mended image.Layer) {
	tar := image.WriteTar(entry)
	broken = image.FromTar(image.Gzip, tar)
	broken.Blob = image.Bytes(readBlob(broken.Blob)[:broken.Blob.Size-1000])
	return broken, image.FromTar(compression, tar)
}

// A client of containerd sends no lease: silk asks containerd for all of them. The good image has another name here.
func TestPushedAgainForAClient(t *testing.T) {
	eachGeneration(t, func(t *testing.T, generation node.Generation) {
		registry := hub.Start(t)
		n := node.Start(t, node.Options{Generation: generation, KeepGarbage: true})
		broken, mended := brokenAndMended(image.Zstd, image.Entry{Name: "file", Body: noise(53, 500_000)})
		top := noiseLayer("top", 54, 10_000)
		ref := registry.Add("broken", "1", image.Image{Layers: []image.Layer{broken, top}}.Bundle())
		if _, err := n.Pull(n.Context(), ref, "silk"); err == nil || !strings.Contains(err.Error(), "silk cannot pull "+ref) {
			t.Fatalf("the pull of a broken image: %v", err)
		}
		other := registry.Add("mended", "1", image.Image{Layers: []image.Layer{mended, top}}.Bundle())
		if _, err := n.Pull(n.Context(), other, "silk"); err != nil {
			t.Fatalf("the pull of the good one: %v", err)
		}
		if layers := n.LayerData(); layers[broken.DiffID] == 0 {
			t.Errorf("the pull returned, but there is only %v", layers)
		}
	})
}
