package e2e

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// noise is incompressible, and the same for the same seed.
func noise(seed int64, length int) []byte {
	data := make([]byte, length)
	rand.New(rand.NewSource(seed)).Read(data)
	return data
}

func noiseLayer(name string, seed int64, length int) image.Layer {
	return image.NewLayer(image.Gzip, image.Entry{Name: name, Body: noise(seed, length)})
}

// fetchedOnce checks at the registry that each layer's bytes were sent exactly once.
func fetchedOnce(t *testing.T, registry *hub.Hub, bundle image.Bundle) {
	t.Helper()
	sizes := map[string]int64{}
	for _, blob := range bundle.Blobs {
		sizes[blob.Digest] = blob.Size
	}
	for _, digest := range bundle.LayerDigests {
		if count := registry.Counts(digest); count.Bytes != sizes[digest] {
			t.Errorf("layer %s of %d bytes: %d sent, in %d requests", digest, sizes[digest], count.Bytes, count.Requests)
		}
	}
}

// Two pods of one image are started at once on an empty node.
func TestTwoPodsAtOnceFetchOnce(t *testing.T) {
	eachGeneration(t, func(t *testing.T, generation node.Generation) {
		registry := hub.Start(t)
		n := withPods(t, registry, node.Options{Generation: generation, Stall: node.Patient})
		bundle := runnable(t, noiseLayer("one", 1, 20<<20), noiseLayer("two", 2, 3<<20), noiseLayer("three", 3, 100)).Bundle()
		ref := registry.Add("app", "1", bundle)
		var group errgroup.Group
		for _, name := range []string{"left", "right"} {
			ctx := node.Context(t, "k8s.io")
			group.Go(func() error {
				pod, sandbox, err := n.RunPod(ctx, name)
				if err != nil {
					return err
				}
				if err := n.PullCRI(ctx, ref); err != nil {
					return err
				}
				_, err = n.RunContainer(ctx, pod, sandbox, ref)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		fetchedOnce(t, registry, bundle)
	})
}

// Two images with one base: it is fetched once, mounted once, and what one image reads of it the other has in memory.
func TestSharedBase(t *testing.T) {
	registry := hub.Start(t)
	n := node.Start(t, node.Options{Generation: node.Second, Stall: node.Patient})
	ctx := n.Context()
	base := noiseLayer("base/file", 7, 8<<20)
	one := image.Image{Layers: []image.Layer{base, noiseLayer("one", 8, 1<<20)}}.Bundle()
	two := image.Image{Layers: []image.Layer{base, noiseLayer("two", 9, 1<<20)}}.Bundle()
	var files []string
	for name, bundle := range map[string]image.Bundle{"one": one, "two": two} {
		chain, err := n.PullChain(ctx, registry.Add(name, "1", bundle))
		if err != nil {
			t.Fatal(err)
		}
		dir, undo, err := n.View(ctx, "silk", chain)
		if err != nil {
			t.Fatal(err)
		}
		defer undo()
		files = append(files, filepath.Join(dir, "base/file"))
	}
	fetchedOnce(t, registry, one)
	fetchedOnce(t, registry, two)
	if mounts := n.LayerMounts(); len(mounts) != 3 {
		t.Errorf("three layers, %d mounts: %v", len(mounts), mounts)
	}
	if pages := resident(t, files[1]); pages != 0 {
		t.Errorf("%d pages are cached before anybody read", pages)
	}
	if _, err := os.ReadFile(files[0]); err != nil {
		t.Fatal(err)
	}
	if pages, all := resident(t, files[1]), (8<<20)/os.Getpagesize(); pages != all {
		t.Errorf("after one image read the file, %d of its %d pages are cached for the other", pages, all)
	}
}

// What was read of a mounted layer comes through the page cache of its data file: when nobody reads any more, memory holds it
// once. What nobody has read stays where it was written.
func TestMemoryHoldsBytesOnce(t *testing.T) {
	// Beside no other test: what those write and read, the kernel makes room for.
	registry := hub.Start(t)
	n := node.Start(t, node.Options{Generation: node.Second})
	// The kernel drops a folio whole or not at all; on x86 they have up to 2 MiB.
	const read, unread, folio = 9 << 20, 2 << 20, 2 << 20
	layer := image.NewLayer(image.Gzip,
		image.Entry{Name: "read", Body: noise(11, read)}, image.Entry{Name: "unread", Body: noise(12, unread)})
	top := noiseLayer("top", 13, 1000)
	chain, err := n.PullChain(n.Context(), registry.Add("one", "1", image.Image{Layers: []image.Layer{layer, top}}.Bundle()))
	if err != nil {
		t.Fatal(err)
	}
	dir, undo, err := n.View(n.Context(), "silk", chain)
	if err != nil {
		t.Fatal(err)
	}
	defer undo()
	data := filepath.Join(n.Dir, "silk/layers/sha256", strings.TrimPrefix(layer.DiffID, "sha256:"), "data")
	// Long enough that silkd has found it quiet and unread.
	time.Sleep(5 * time.Second)
	if _, err := os.ReadFile(filepath.Join(dir, "read")); err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	if pages := resident(t, data); pages < (read+unread)/page {
		t.Fatalf("%d pages of the data file are in memory right after it was written and read", pages)
	}
	n.Settled("memory holds what was read once", func() error {
		if pages := resident(t, data); pages > (unread+folio)/page {
			return fmt.Errorf("%d pages of the data file are in memory", pages)
		}
		return nil
	})
	// It may share a page with what was read.
	if pages := resident(t, data); pages < unread/page-1 {
		t.Errorf("%d pages of the data file are left: what nobody has read went, too", pages)
	}
	// The kernel may take some back at any time.
	if pages := resident(t, filepath.Join(dir, "read")); pages < read/page*9/10 {
		t.Errorf("%d of %d pages of the file that was read are in memory", pages, read/page)
	}
}

// What is read of a layer while it fills is in the file that serves it, too, and in the data file: once it is whole and nobody reads,
// it is in neither.
func TestMemoryOfALazyStartHoldsBytesOnce(t *testing.T) {
	t.Parallel()
	registry, memory := hub.Start(t), node.StartRedis(t)
	options := node.Options{Generation: node.Second, Stall: node.Patient, Extra: memory.Config()}
	teacher, student := node.Start(t, options), node.Start(t, options)
	const size, folio = 9 << 20, 2 << 20
	bundle := image.Image{Layers: []image.Layer{noiseLayer("read", 71, size), noiseLayer("top", 72, 1000)}}.Bundle()
	ref := registry.Add("one", "1", bundle)
	if _, err := teacher.Pull(teacher.Context(), ref, "silk"); err != nil {
		t.Fatal(err)
	}
	teacher.Eventually("the fleet knows the image", func() error { return memory.Knows(teacher, ref) })

	release := make(chan struct{})
	open := sync.OnceFunc(func() { close(release) })
	defer open()
	registry.SetFault(hub.Silk(hub.Any(bundle.LayerDigests, hub.Held(release, 100*time.Millisecond))))
	chain, err := student.PullChain(student.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	dir, undo, err := student.View(student.Context(), "silk", chain)
	if err != nil {
		t.Fatal(err)
	}
	defer undo()
	open()
	if _, err := os.ReadFile(filepath.Join(dir, "read")); err != nil {
		t.Fatal(err)
	}
	digest := strings.TrimPrefix(bundle.DiffIDs[0], "sha256:")
	silk, page := filepath.Join(student.Dir, "silk"), os.Getpagesize()
	served, data := filepath.Join(silk, "fuse", digest), filepath.Join(silk, "layers/sha256", digest, "data")
	if pages := resident(t, served); pages < size/page/2 {
		t.Fatalf("%d pages of the file that was read through are in memory", pages)
	}
	student.Settled("memory holds what was read once", func() error {
		// Of either end a large folio may stay, which is in part of what nobody read.
		if served, data := resident(t, served), resident(t, data); max(served, data) > 2*folio/page {
			return fmt.Errorf("in memory: %d pages of the file that served it, %d of its data", served, data)
		}
		return nil
	})
}

// A second and a third image have all layers but their last in common with one that is mounted before it is here: while it fills
// and when it is whole, only their last layers are fetched.
func TestSharedLayersOfALazyImage(t *testing.T) {
	t.Parallel()
	oldAndNew(t, func(t *testing.T, generation node.Generation) {
		t.Parallel()
		registry, memory := hub.Start(t), node.StartRedis(t)
		options := node.Options{Generation: generation, Stall: node.Patient, Extra: memory.Config()}
		teacher, student := node.Start(t, options), node.Start(t, options)
		base := []image.Layer{noiseLayer("base/large", 31, 8<<20), noiseLayer("base/small", 32, 1<<20)}
		var bundles []image.Bundle
		var refs []string
		for i, name := range []string{"one", "two", "three"} {
			bundles = append(bundles, image.Image{Layers: append(slices.Clone(base), noiseLayer(name, 33+int64(i), 2<<20))}.Bundle())
			refs = append(refs, registry.Add(name, "1", bundles[i]))
		}
		if _, err := teacher.Pull(teacher.Context(), refs[0], "silk"); err != nil {
			t.Fatal(err)
		}
		teacher.Eventually("the fleet knows the first image", func() error { return memory.Knows(teacher, refs[0]) })
		shared, last := bundles[0].LayerDigests[:len(base)], len(base)
		sent := registry.Counts(shared[0]).Bytes + registry.Counts(shared[1]).Bytes

		release := make(chan struct{})
		open := sync.OnceFunc(func() { close(release) })
		defer open()
		registry.SetFault(hub.Silk(hub.Any(shared, hub.Held(release, 100*time.Millisecond))))
		for _, ref := range refs[:2] {
			if _, err := student.Pull(student.Context(), ref, "silk"); err != nil {
				t.Fatal(err)
			}
		}
		if err := whole(student, refs[0]); err == nil {
			t.Error("the first image is whole, and its base was not sent")
		}
		open()
		student.Eventually("the first image is whole", func() error { return whole(student, refs[0]) })
		size := base[0].Blob.Size + base[1].Blob.Size
		if got := registry.Counts(shared[0]).Bytes + registry.Counts(shared[1]).Bytes - sent; got > size+size/50 {
			t.Errorf("%d bytes of the shared layers came for two images, which have %d", got, size)
		}

		requests := registry.Counts(shared[0]).Requests + registry.Counts(shared[1]).Requests
		if _, err := student.Pull(student.Context(), refs[2], "silk"); err != nil {
			t.Fatal(err)
		}
		if more := registry.Counts(shared[0]).Requests + registry.Counts(shared[1]).Requests - requests; more != 0 {
			t.Errorf("shared layers that are here were asked for %d times", more)
		}
		for i := 1; i < len(bundles); i++ {
			digest := bundles[i].LayerDigests[last]
			if count := registry.Counts(digest); count.Bytes != sizeOf(image.Bundle{Blobs: bundles[i].Blobs[1+last:]}) {
				t.Errorf("of the last layer of %s %d bytes were sent, in %d requests", refs[i], count.Bytes, count.Requests)
			}
			ready(t, student, refs[i])
		}
	})
}

// resident counts the pages of a file that are in the page cache.
func resident(t *testing.T, path string) (pages int) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	memory, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(memory)
	present := make([]byte, (len(memory)+os.Getpagesize()-1)/os.Getpagesize())
	if err := mincore(memory, present); err != nil {
		t.Fatal(err)
	}
	for _, page := range present {
		pages += int(page & 1)
	}
	return pages
}
