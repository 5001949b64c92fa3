package e2e

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// The budget that silkd promises for a pull, in bytes.
const memoryBudget = 160 << 20

// An image of 400 MB in registries, 800 MB on disk, one layer of half of it and smaller ones: pulled to the machine's disk, and to one
// that is far slower than the registry and the decoders.
func TestMemoryOfALargePull(t *testing.T) {
	dir := t.TempDir()
	layers := make([]image.Layer, 9)
	var group errgroup.Group
	group.SetLimit(2)
	for i := range layers {
		group.Go(func() (err error) {
			files := 500
			if i == 0 {
				files = 4000
			}
			layers[i], err = largeLayer(filepath.Join(dir, fmt.Sprint(i)), int64(i), files)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	var compressed int64
	for _, layer := range layers {
		compressed += layer.Blob.Size
	}
	if compressed < 400e6 {
		t.Fatalf("the image has %d MB, not 400", compressed/1e6)
	}
	registry := hub.Start(t)
	ref := registry.Add("large", "1", image.Image{Layers: layers}.Bundle())
	for name, rate := range map[string]int64{"fast disk": 0, "slow disk": 40 << 20} {
		t.Run(name, func(t *testing.T) {
			n := node.Start(t, node.Options{Generation: node.Second, DiskRate: rate})
			start := time.Now()
			if _, err := n.Pull(n.Context(), ref, "silk"); err != nil {
				t.Fatal(err)
			}
			took := time.Since(start).Round(100 * time.Millisecond)
			ready(t, n, ref)
			peak, err := n.Silkd.PeakMemory()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d MB pulled in %v, peak memory %d MiB", compressed/1e6, took, peak>>20)
			if peak > memoryBudget {
				t.Errorf("silkd's peak memory is %d MiB, more than %d", peak>>20, memoryBudget>>20)
			}
		})
	}
}

// An image of 200,000 small files in one layer, as node_modules of a large application: the node that it streams in to, and the next one, which
// mounts it by the names that it is told.
func TestMemoryOfManyFiles(t *testing.T) {
	layer, err := fileLayer(filepath.Join(t.TempDir(), "layer"), func(archive *tar.Writer) error {
		return manyFiles(archive, 200_000)
	})
	if err != nil {
		t.Fatal(err)
	}
	registry := hub.Start(t)
	fleet := node.StartRedis(t)
	ref := registry.Add("many", "1", image.Image{Layers: []image.Layer{layer}}.Bundle())
	for _, name := range []string{"streamed", "known"} {
		t.Run(name, func(t *testing.T) {
			n := node.Start(t, node.Options{Generation: node.Second, Extra: fleet.Config()})
			if _, err := n.Pull(n.Context(), ref, "silk"); err != nil {
				t.Fatal(err)
			}
			n.Eventually("it is whole", func() error { return whole(n, ref) })
			n.Eventually("the fleet knows it", func() error { return fleet.Knows(n, ref) })
			peak, err := n.Silkd.PeakMemory()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("peak memory %d MiB", peak>>20)
			if peak > memoryBudget {
				t.Errorf("silkd's peak memory is %d MiB, more than %d", peak>>20, memoryBudget>>20)
			}
		})
	}
}

// manyFiles writes packages of 18 files of 20 bytes, each in two folders, with paths as pnpm makes them.
func manyFiles(archive *tar.Writer, count int) error {
	body := []byte("module.exports = {};")
	for nr := 0; nr < count; nr++ {
		folder := fmt.Sprintf("app/node_modules/.pnpm/package-%d@1.2.3/node_modules/package-%d/lib/", nr/18, nr/18)
		if nr%18 == 0 {
			if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder, Mode: 0o755}); err != nil {
				return err
			}
		}
		header := tar.Header{Name: fmt.Sprintf("%smodule-%02d.d.ts", folder, nr%18), Mode: 0o644, Size: int64(len(body))}
		if err := archive.WriteHeader(&header); err != nil {
			return err
		}
		if _, err := archive.Write(body); err != nil {
			return err
		}
	}
	return nil
}

// largeLayer writes a layer of files of 100 kB that compress to about a half.
func largeLayer(path string, seed int64, files int) (image.Layer, error) {
	return fileLayer(path, func(archive *tar.Writer) error {
		random := rand.New(rand.NewSource(seed))
		body := make([]byte, 100_000)
		for i := range files {
			random.Read(body)
			for j := range body {
				body[j] = 'a' + body[j]&15
			}
			header := tar.Header{Name: fmt.Sprintf("dir-%d/file-%d-%d", i/100, seed, i), Mode: 0o644, Size: int64(len(body))}
			if err := archive.WriteHeader(&header); err != nil {
				return err
			}
			if _, err := archive.Write(body); err != nil {
				return err
			}
		}
		return nil
	})
}

// fileLayer writes a gzip layer to a file, with what `fill` puts into its tar.
func fileLayer(path string, fill func(*tar.Writer) error) (layer image.Layer, err error) {
	out, err := os.Create(path)
	if err != nil {
		return layer, err
	}
	defer out.Close()
	blob, diff := sha256.New(), sha256.New()
	buffered := bufio.NewWriterSize(io.MultiWriter(out, blob), 1<<20)
	zipped, err := gzip.NewWriterLevel(buffered, gzip.HuffmanOnly)
	if err != nil {
		return layer, err
	}
	archive := tar.NewWriter(io.MultiWriter(zipped, diff))
	if err := fill(archive); err != nil {
		return layer, err
	}
	for _, closer := range []func() error{archive.Close, zipped.Close, buffered.Flush} {
		if err := closer(); err != nil {
			return layer, err
		}
	}
	info, err := out.Stat()
	if err != nil {
		return layer, err
	}
	layer.DiffID = digestOf(diff)
	layer.Blob = image.Blob{Digest: digestOf(blob), Size: info.Size(), Open: func() (io.ReadSeekCloser, error) { return os.Open(path) }}
	return layer, nil
}

func digestOf(hash hash.Hash) string { return "sha256:" + hex.EncodeToString(hash.Sum(nil)) }
