package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// What containerd's own unpacking refuses and silk does: there is no overlayfs to compare with, so the content is checked.
func TestBeyondOverlayfs(t *testing.T) {
	for _, rung := range []string{"file", "loop"} {
		t.Run(rung, func(t *testing.T) {
			registry := hub.Start(t)
			n := node.Start(t, node.Options{Generation: node.Second, Rung: rung})
			t.Run("a hard link into a lower layer", func(t *testing.T) { lowerHardLink(t, n, registry) })
			t.Run("a sparse file as GNU tar wrote it once", func(t *testing.T) { oldSparse(t, n, registry) })
			checkMetadata(t, n)
		})
	}
}

func view(t *testing.T, n *node.Node, ref string) string {
	t.Helper()
	ctx := n.Context()
	chain, err := n.PullChain(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	dir, undo, err := n.View(ctx, "silk", chain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := undo(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func lowerHardLink(t *testing.T, n *node.Node, registry *hub.Hub) {
	content := noise(11, 70_001)
	dir := view(t, n, registry.Add("hard", "1", image.Image{Layers: []image.Layer{
		image.NewLayer(image.Gzip, image.Entry{Name: "lower", Body: content, Mode: 0o4751, UID: 12, GID: 13,
			Pax: map[string]string{"SCHILY.xattr.user.kept": "yes"}}),
		image.NewLayer(image.Gzip, image.Entry{Name: "between"}),
		// A link's header repeats its target's attributes, as tar writes it; where it differs it decides.
		image.NewLayer(image.Gzip, image.Entry{Name: "upper", Type: image.Hard, Link: "lower", Mode: 0o4751, UID: 12, GID: 13},
			image.Entry{Name: "again", Type: image.Hard, Link: "upper", Mode: 0o4751, UID: 12, GID: 13}),
	}}.Bundle()))
	var lower, upper, again unix.Stat_t
	for name, st := range map[string]*unix.Stat_t{"lower": &lower, "upper": &upper, "again": &again} {
		if err := unix.Stat(filepath.Join(dir, name), st); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s has %d bytes that are not the target's (%v)", name, len(got), err)
		}
	}
	if upper.Ino != again.Ino || upper.Nlink != 2 {
		t.Errorf("the two names of the upper layer are no hard links: %+v, %+v", upper, again)
	}
	if upper.Mode != lower.Mode || upper.Uid != 12 || upper.Gid != 13 || upper.Mtim != lower.Mtim {
		t.Errorf("the link is %+v, its target %+v", upper, lower)
	}
	value := make([]byte, 10)
	if size, err := unix.Getxattr(filepath.Join(dir, "upper"), "user.kept", value); err != nil || string(value[:size]) != "yes" {
		t.Errorf("the link's xattr is %q, %v", value, err)
	}
}

func oldSparse(t *testing.T, n *node.Node, registry *hub.Hub) {
	entry, content := image.OldSparse("sparse")
	after := image.Entry{Name: "after", Body: []byte("next")}
	dir := view(t, n, registry.Add("sparse", "1", image.Image{Layers: []image.Layer{image.NewLayer(image.Gzip, entry, after)}}.Bundle()))
	for name, want := range map[string][]byte{"sparse": content, "after": after.Body} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s has %d bytes, not the %d that were packed (%v)", name, len(got), len(want), err)
		}
	}
}
