package e2e

import (
	"strings"
	"testing"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// A broken image is pushed again with other blobs for the same diff IDs. containerd knows their snapshots until its garbage
// collection runs, and so asks silkd for nothing new.
func TestPushedAgain(t *testing.T) {
	eachGeneration(t, func(t *testing.T, generation node.Generation) {
		registry := hub.Start(t)
		n := withPods(t, registry, node.Options{Generation: generation, KeepGarbage: true})
		ctx := node.Context(t, "k8s.io")
		for name, compression := range map[string]image.Compression{"gzip": image.GzipMembers, "zstd": image.Zstd} {
			pod, sandbox, err := n.RunPod(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			// The broken layer is not the last: its own Stat fails the pull.
			tar := image.WriteTar(image.Entry{Name: "data/" + name, Body: noise(51, 500_000)})
			top := noiseLayer("top", 52, 10_000)
			broken := image.FromTar(image.Gzip, tar)
			broken.Blob = image.Bytes(readBlob(broken.Blob)[:broken.Blob.Size-1000])
			ref := registry.Add(name, "1", runnable(t, broken, top).Bundle())
			err = n.PullCRI(ctx, ref)
			if err == nil || !strings.Contains(err.Error(), "silk cannot pull "+ref) {
				t.Fatalf("the pull of a broken image: %v", err)
			}
			mended := image.FromTar(compression, tar)
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
			want := image.Digest(noise(51, 500_000))
			if got, err := n.Exec(ctx, container, "/guest", "sum", "/data/"+name); err != nil || got != want {
				t.Errorf("the file in the container is %s, want %s (%v)", got, want, err)
			}
		}
	})
}
