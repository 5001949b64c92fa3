package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"golang.org/x/sys/unix"

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
	return startFleetWith(t, node.Options{Generation: generation})
}

func startFleetWith(t *testing.T, options node.Options) fleet {
	t.Helper()
	f := fleet{registry: hub.Start(t), memory: node.StartRedis(t)}
	options.Stall, options.Extra = node.Patient, f.memory.Config()
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

// With share.key_file the layers that a node with this key has taught fill; those of a node with another key stream in, and silkd says why.
func TestFleetsKey(t *testing.T) {
	registry, memory := hub.Start(t), node.StartRedis(t)
	keyed := func(key string) *node.Node {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte(strings.Repeat(key, 32)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		extra := fmt.Sprintf("[share]\nkey_file = %q\n%s", path, memory.Config())
		return node.Start(t, node.Options{Generation: node.Second, Stall: node.Patient, Extra: extra})
	}
	teacher, fellow, stranger := keyed("a"), keyed("a"), keyed("b")
	layers := []image.Layer{noiseLayer("large", 80, 4<<20), noiseLayer("small", 81, 100_000)}
	ref := registry.Add("app", "1", image.Image{Layers: layers}.Bundle())
	ctx := node.Context(t, "e2e")
	want, err := teacher.Tree(ctx, ref, "silk")
	if err != nil {
		t.Fatal(err)
	}
	teacher.Eventually("the fleet knows the image", func() error { return memory.Knows(teacher, ref) })
	for _, n := range []*node.Node{fellow, stranger} {
		got, err := n.Tree(ctx, ref, "silk")
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range tree.Diff(want, got, nil) {
			t.Error(line)
		}
	}
	cameLazily(t, fellow, ref, nil)
	timing, err := stranger.Timing(ref)
	if err != nil || len(timing.Images) != 1 {
		t.Fatalf("%+v, %v", timing, err)
	}
	for _, layer := range timing.Images[0].Layers {
		if layer.Way != "streamed" {
			t.Errorf("layer %s of a node with another key was %s", layer.DiffID, layer.Way)
		}
	}
	status, err := stranger.Status()
	if err != nil || len(status.Backends) != 1 || status.Backends[0].Refused < 2 || !strings.Contains(status.Backends[0].Trouble, "its seal is wrong") {
		t.Errorf("silk status does not say why: %+v, %v", status.Backends, err)
	}
	if status, err := fellow.Status(); err != nil || len(status.Backends) != 1 || status.Backends[0].Refused > 0 || status.Backends[0].Trouble != "" {
		t.Errorf("the fleet's own values: %+v, %v", status.Backends, err)
	}
}

// silkd is killed while an image fills that a container stands on: what the container has not read is refused within seconds, and never
// zeros; what it has read is right if it is still there. The next silkd fills the layers.
func TestKilledBelowAContainer(t *testing.T) {
	for _, rung := range []string{"file", "loop"} {
		t.Run(rung, func(t *testing.T) { killedBelow(t, rung) })
	}
}

func killedBelow(t *testing.T, rung string) {
	f := startFleetWith(t, node.Options{Generation: node.Second, Rung: rung})
	n, ctx := f.student, node.Context(t, "e2e")
	// Some 20 s for all of it.
	f.registry.SetRate(256 << 10)
	pulled, err := n.Pull(ctx, f.ref, "silk")
	if err != nil {
		t.Fatal(err)
	}
	task, err := n.RunTask(ctx, "before", pulled)
	if err != nil {
		t.Fatal(err)
	}
	content := map[string][]byte{"data/large": noise(77, large), "data/small": noise(78, 1000)}
	if got, err := readIn(t, task, "data/small"); err != nil || !bytes.Equal(got, content["data/small"]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if err := whole(n, f.ref); err == nil {
		t.Fatal("it is whole already")
	}
	n.Silkd.Kill()
	if got, err := readIn(t, task, "data/large"); !errors.Is(err, unix.EIO) || !bytes.HasPrefix(content["data/large"], got) {
		t.Errorf("a file that was not read: %d bytes, %v", len(got), err)
	}
	if got, err := readIn(t, task, "data/small"); err == nil && !bytes.Equal(got, content["data/small"]) || err != nil && !errors.Is(err, unix.EIO) {
		t.Errorf("a file that was read: %d bytes, %v", len(got), err)
	}
	f.registry.SetRate(0)
	n.StartSilkd()
	n.Eventually("the next silkd fills it", func() error { return whole(n, f.ref) })
	chain, err := n.ChainID(ctx, pulled)
	if err != nil {
		t.Fatal(err)
	}
	n.Reconnected(ctx, chain)
	if task, err = n.RunTask(ctx, "after", pulled); err != nil {
		t.Fatal(err)
	}
	for name, want := range content {
		if got, err := readIn(t, task, name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s in a new container: %d bytes, %v", name, len(got), err)
		}
	}
}

// readIn reads a file as a container has it, and ends the test when that hangs.
func readIn(t *testing.T, task containerd.Task, name string) ([]byte, error) {
	t.Helper()
	type answer struct {
		data []byte
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/%s", task.Pid(), name))
		done <- answer{data, err}
	}()
	select {
	case got := <-done:
		return got.data, got.err
	case <-time.After(20 * time.Second):
		t.Fatalf("reading %s hangs", name)
		return nil, nil
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
