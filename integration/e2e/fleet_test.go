package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/tree"
)

// fleet is a node that has learned an image of one's own, and an empty one beside it.
type fleet struct {
	registry *hub.Hub
	memory   *node.Redis
	teacher  *node.Node
	student  *node.Node
	bundle   image.Bundle
	ref      string
}

const large = 40 << 20

func startFleet(t *testing.T) fleet {
	t.Helper()
	return startFleetOf(t, node.Second)
}

func startFleetOf(t *testing.T, generation node.Generation) fleet {
	t.Helper()
	f := fleet{registry: hub.Start(t), memory: node.StartRedis(t)}
	options := node.Options{Generation: generation, Stall: node.Patient, Extra: f.memory.Config()}
	f.teacher = node.Start(t, options)
	f.student = withPods(t, f.registry, options)
	f.bundle = runnable(t, noiseLayer("data/large", 77, large), noiseLayer("data/small", 78, 1000)).Bundle()
	f.ref = f.registry.Add("app", "1", f.bundle)
	if _, err := f.teacher.Pull(node.Context(t, "e2e"), f.ref, "silk"); err != nil {
		t.Fatal(err)
	}
	f.teacher.Eventually("the fleet knows the image", func() error { return f.memory.Knows(f.teacher, f.ref) })
	return f
}

// The registry goes away when the pull has returned: a container that reads waits for it, and goes on.
func TestReadersWaitForTheRegistry(t *testing.T) {
	f := startFleet(t)
	ctx := node.Context(t, "k8s.io")
	pod, sandbox, err := f.student.RunPod(ctx, "waits")
	if err != nil {
		t.Fatal(err)
	}
	// Some 13 s for all of it: far from whole when the registry goes.
	f.registry.SetRate(512 << 10)
	if err := f.student.PullCRI(ctx, f.ref); err != nil {
		t.Fatal(err)
	}
	id, err := f.student.RunContainer(ctx, pod, sandbox, f.ref)
	if err != nil {
		t.Fatal(err)
	}
	f.registry.SetDown(true)
	sum := make(chan error, 1)
	go func() {
		got, err := f.student.Exec(ctx, id, "/guest", "sum", "/data/large")
		if want := image.Digest(noise(77, large)); err == nil && got != want {
			err = fmt.Errorf("the file in the container is %s, want %s", got, want)
		}
		sum <- err
	}()
	f.student.Eventually("silk status says what is wrong", func() error {
		if err := whole(f.student, f.ref); err == nil || !strings.Contains(err.Error(), "503") {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
	select {
	case err := <-sum:
		t.Fatalf("the reader did not wait: %v", err)
	default:
	}
	f.registry.SetRate(0)
	f.registry.SetDown(false)
	if err := <-sum; err != nil {
		t.Fatal(err)
	}
}

// What Redis has of a layer is damaged: it is not believed, its source is named, and the pull succeeds as a first one.
func TestDamagedValueInRedis(t *testing.T) {
	f := startFleet(t)
	for _, blob := range f.bundle.Blobs {
		_, hex, _ := strings.Cut(blob.Digest, ":")
		key := "silk:1:layer:" + hex
		if length, err := f.memory.Do("STRLEN", key); err != nil || length == "0" {
			continue // the configuration
		}
		if _, err := f.memory.Do("SETRANGE", key, "150", "\x00\xff\x00"); err != nil {
			t.Fatal(err)
		}
	}
	ctx := node.Context(t, "e2e")
	want, err := f.teacher.Tree(ctx, f.ref, "silk")
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.student.Tree(ctx, f.ref, "silk")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range tree.Diff(want, got, nil) {
		t.Error(line)
	}
	if err := whole(f.student, f.ref); err != nil {
		t.Errorf("it was not streamed: %v", err)
	}
	if log := f.student.Silkd.Tail(); !strings.Contains(log, "redis") || !strings.Contains(log, "not believed") {
		t.Errorf("the log does not name who lied: %s", log)
	}
}

// Redis is gone: pulls are first pulls.
func TestWithoutRedis(t *testing.T) {
	f := startFleet(t)
	f.memory.Kill()
	if _, err := f.student.Pull(node.Context(t, "e2e"), f.ref, "silk"); err != nil {
		t.Fatal(err)
	}
	if err := whole(f.student, f.ref); err != nil {
		t.Error(err)
	}
}

// A node knows what it had: after the data was dropped, a pull returns although no byte of a blob can come.
func TestKnownAfterEviction(t *testing.T) {
	registry := hub.Start(t)
	n := node.Start(t, node.Options{Generation: node.Second})
	ctx := node.Context(t, "e2e")
	ref := registry.Add("app", "1", image.Image{Layers: []image.Layer{noiseLayer("large", 79, large)}}.Bundle())
	want, err := n.Tree(ctx, ref, "silk")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Client.ImageService().Delete(ctx, ref, images.SynchronousDelete()); err != nil {
		t.Fatal(err)
	}
	n.Eventually("silk gc drops the data", func() error {
		if said, err := n.Silk("gc", "--keep", "0"); err != nil {
			return fmt.Errorf("%w: %s", err, said)
		}
		if data := n.LayerData(); len(data) > 0 {
			return fmt.Errorf("%d layers have data", len(data))
		}
		return nil
	})
	// Whatever silk asks of a blob stalls; manifest and configuration come.
	registry.SetFault(hub.Silk(hub.Stall(0)))
	pulled, err := n.Pull(ctx, ref, "silk")
	if err != nil {
		t.Fatal(err)
	}
	if said, err := n.Silk("explain", ref); err != nil || !strings.Contains(said, "served by silkd through FUSE") {
		t.Errorf("silk explain says %q, %v", said, err)
	}
	registry.SetFault(nil)
	chain, err := n.ChainID(ctx, pulled)
	if err != nil {
		t.Fatal(err)
	}
	got, err := n.ReadChain(ctx, "silk", chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range tree.Diff(want, got, nil) {
		t.Error(line)
	}
}
