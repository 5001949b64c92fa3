package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// Twenty pods are started at once on an empty node, and each asks for the image by itself, as kubelet does for each pod.
const twenty = 20

// Nobody knows the image: it streams in once for all of them.
func TestTwentyPodsStreamOnce(t *testing.T) {
	t.Parallel()
	oldAndNew(t, func(t *testing.T, generation node.Generation) {
		t.Parallel()
		registry := hub.Start(t)
		options := node.Options{Generation: generation, Stall: node.Patient}
		many, alone := withPods(t, registry, options), withPods(t, registry, options)
		// Slow enough that all twenty ask while it comes.
		registry.SetRate(20 << 20)
		bundle := runnable(t, noiseLayer("data/large", 77, large), noiseLayer("data/small", 78, 1000)).Bundle()
		ref := registry.Add("app", "1", bundle)
		pods, took := startAtOnce(t, many, twenty, ref)
		fetchedOnce(t, registry, bundle)
		pods.sum(t, "/data/large", image.Digest(noise(77, large)))
		_, one := startAtOnce(t, alone, 1, ref)
		t.Logf("streamed: %d pods were ready after %v, one after %v", twenty, took, one)
	})
}

// The fleet knows the image: all of them are ready while its large layer is not here, and read it while it comes.
func TestTwentyPodsFetchKnownLayersOnce(t *testing.T) {
	t.Parallel()
	oldAndNew(t, func(t *testing.T, generation node.Generation) {
		t.Parallel()
		f := startFleetOf(t, generation)
		alone := withPods(t, f.registry, f.teacher.Options)
		release := make(chan struct{})
		open := sync.OnceFunc(func() { close(release) })
		defer open()
		// More often than silkd loses its patience with a silent registry.
		f.registry.SetFault(hub.Silk(hub.Only(f.bundle.LayerDigests[1], hub.Held(release, 100*time.Millisecond))))
		sent := f.registry.Total()
		pods, took := startAtOnce(t, f.student, twenty, f.ref)
		if err := whole(f.student, f.ref); err == nil {
			t.Error("the image is whole, and its large layer was not sent")
		}
		// What the twenty fetched is counted before another node fetches for the comparison.
		open()
		pods.sum(t, "/data/large", image.Digest(noise(77, large)))
		f.student.Eventually("every layer is whole", func() error { return whole(f.student, f.ref) })
		if got, size := f.registry.Total()-sent, sizeOf(f.bundle); got > size+size/50 {
			t.Errorf("%d bytes came for an image of %d", got, size)
		}
		f.student.Eventually("mounts that were replaced are gone", func() error {
			if left := node.MountsBelow(filepath.Join(f.student.Dir, "silk/aside")); len(left) > 0 {
				return fmt.Errorf("%d are left", len(left))
			}
			return nil
		})
		_, one := startAtOnce(t, alone, 1, f.ref)
		t.Logf("known: %d pods were ready after %v, one after %v", twenty, took, one)
	})
}

// started are pods whose containers are ready.
type started struct {
	n          *node.Node
	ctx        context.Context
	containers []string
}

// startAtOnce makes sandboxes, then lets each pod pull the image and start its container, all at once. It returns when all said that
// they are ready, and how long that took without the sandboxes.
func startAtOnce(t *testing.T, n *node.Node, count int, ref string) (started, time.Duration) {
	t.Helper()
	s := started{n, node.Context(t, "k8s.io"), make([]string, count)}
	pods, sandboxes := make([]string, count), make([]*runtime.PodSandboxConfig, count)
	var prepare, group errgroup.Group
	prepare.SetLimit(4)
	for i := range count {
		prepare.Go(func() (err error) {
			pods[i], sandboxes[i], err = n.RunPod(s.ctx, fmt.Sprintf("pod-%d", i))
			return err
		})
	}
	if err := prepare.Wait(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for i := range count {
		group.Go(func() (err error) {
			if err := n.PullCRI(s.ctx, ref); err != nil {
				return err
			}
			s.containers[i], err = n.RunContainer(s.ctx, pods[i], sandboxes[i], ref)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return s, time.Since(begin).Round(10 * time.Millisecond)
}

// sum lets all containers read a file at once, and compares.
func (s started) sum(t *testing.T, path, want string) {
	t.Helper()
	var group errgroup.Group
	for _, id := range s.containers {
		group.Go(func() error {
			if got, err := s.n.Exec(s.ctx, id, "/guest", "sum", path); err != nil || got != want {
				return fmt.Errorf("the file in the container is %s, want %s (%v)", got, want, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// sizeOf is what an image has in a registry.
func sizeOf(bundle image.Bundle) (size int64) {
	for _, blob := range bundle.Blobs {
		size += blob.Size
	}
	return size
}
