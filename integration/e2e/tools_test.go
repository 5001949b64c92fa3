package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/tree"
)

// A real image as skopeo makes it for others: with Docker's manifest, out of the tars of a `docker save`, and with layers of zstd in one frame or,
// as zstd:chunked, in one a file with a table behind. Streamed on one node and read lazily on the next, it is what overlayfs shows.
func TestImagesOfOtherTools(t *testing.T) {
	bundle := realImage(t, "debian")
	layers, err := bundle.Entries()
	if err != nil {
		t.Fatal(err)
	}
	madeUp := image.TimesMadeUp(layers...)
	original := "oci:" + realLayout(t, "debian") + ":latest"
	saved := "docker-archive:" + filepath.Join(t.TempDir(), "saved.tar") + ":saved:1"
	skopeo(t, "copy", "-q", original, saved)
	fleet := node.StartRedis(t)
	var want tree.Tree
	for _, of := range []struct {
		name, from string
		args       []string
		// What the manifest has when it is such an image.
		mark string
	}{
		{"docker", original, []string{"--format", "v2s2"}, "vnd.docker.distribution.manifest.v2+json"},
		{"saved", saved, nil, "vnd.docker.distribution.manifest.v2+json"},
		{"zstd", saved, []string{"--format", "oci", "--dest-compress-format", "zstd"}, "tar+zstd"},
		{"chunked", saved, []string{"--format", "oci", "--dest-compress-format", "zstd:chunked"}, "zstd-chunked.manifest-position"},
	} {
		t.Run(of.name, func(t *testing.T) {
			// Of its own: skopeo compresses nothing that a registry has already, however that is compressed.
			ref := node.StartRegistry(t).Host + "/tools/" + of.name + ":1"
			skopeo(t, append([]string{"copy", "-q", "--dest-tls-verify=false", of.from, "docker://" + ref}, of.args...)...)
			if manifest := skopeo(t, "inspect", "--raw", "--tls-verify=false", "docker://"+ref); !strings.Contains(manifest, of.mark) {
				t.Fatalf("no %s in %s", of.mark, manifest)
			}
			// Their layers are the same ones, in other blobs: each image has nodes of its own.
			options := node.Options{Generation: node.Second, Extra: fleet.Config()}
			teacher, learner, ctx := node.Start(t, options), node.Start(t, options), node.Context(t, "e2e")
			if want == nil {
				if want, err = teacher.Tree(ctx, ref, "overlayfs"); err != nil {
					t.Fatal(err)
				}
			}
			got, err := teacher.Tree(ctx, ref, "silk")
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range tree.Diff(want, got, madeUp) {
				t.Error("streamed:", line)
			}
			ready(t, teacher, ref)
			teacher.Eventually("the fleet knows its layers", func() error { return fleet.Knows(teacher, ref) })
			lazily(t, learner, ctx, specimen{of.name, ref, madeUp}, want, 4)
		})
	}
}

func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("skopeo", append([]string{"--insecure-policy"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo %v: %v: %s", args, err, out)
	}
	return string(out)
}
