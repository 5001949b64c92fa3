package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// A layer whose first sync failed, and that the disk turns out not to have, is fetched again though its image is in use; the other
// layer, which the disk has, is not.
func TestALayerThatTheDiskLostIsFetchedAgain(t *testing.T) {
	t.Parallel()
	content := noise(71, 3<<20)
	lost := image.NewLayer(image.Gzip, image.Entry{Name: "file", Body: content})
	bundle := image.Image{Layers: []image.Layer{lost, noiseLayer("other", 72, 1<<20)}}.Bundle()
	var registry *hub.Hub
	var n *node.Node
	var ref, chain string
	// What an earlier sync leaves that failed, before the one that silkd makes 5 s after the pull: where the machine was slower, another node.
	for begun, tries := (time.Time{}), 0; time.Since(begun) > 4*time.Second; tries++ {
		if tries == 10 {
			t.Fatal("the layer was not damaged in time, on any of ten nodes")
		}
		registry, n = hub.Start(t), node.Start(t, node.Options{Generation: node.Second})
		ref = registry.Add("app", "1", bundle)
		begun = time.Now()
		var err error
		if chain, err = n.PullChain(n.Context(), ref); err != nil {
			t.Fatal(err)
		}
		dirs, _ := filepath.Glob(filepath.Join(n.Dir, "silk/layers/sha256/*"))
		for _, dir := range dirs {
			if err := os.WriteFile(filepath.Join(dir, "unsynced"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		data := filepath.Join(n.Dir, "silk/layers/sha256", strings.TrimPrefix(lost.DiffID, "sha256:"), "data")
		if err := overwrite(data, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	ctx := n.Context()
	sent := func(layer int) int64 { return registry.Counts(bundle.LayerDigests[layer]).Bytes }
	lostBefore, otherBefore := sent(0), sent(1)
	n.Settled("the layer is here again", func() error {
		if sent(0) == lostBefore {
			return errors.New("it was not fetched again")
		}
		if err := whole(n, ref); err != nil {
			return err
		}
		return proved(ctx, n, chain, content)
	})
	if sent(1) != otherBefore {
		t.Errorf("the layer that the disk has was fetched again: %d bytes, then %d", otherBefore, sent(1))
	}
	if _, err := n.Silk("fsck"); err != nil {
		t.Error(err)
	}
}

// overwrite puts zeros where a page of a file was.
func overwrite(path string, at int64) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(make([]byte, 4096), at)
	return errors.Join(err, file.Close())
}

// proved reads the file of the image's tree as a new container would.
func proved(ctx context.Context, n *node.Node, chain string, content []byte) error {
	dir, undo, err := n.View(ctx, "silk", chain)
	if err != nil {
		return err
	}
	file, err := os.Open(filepath.Join(dir, "file"))
	if err != nil {
		return errors.Join(err, undo())
	}
	got, err := io.ReadAll(file)
	if err == nil && !bytes.Equal(got, content) {
		err = errors.New("a new container reads other bytes than the image's")
	}
	return errors.Join(err, file.Close(), undo())
}
