package e2e

import (
	"fmt"
	"testing"
	"time"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// How long the registry is away: longer than silkd tries a request here before it gives up (give_up_after_secs, and 3 attempts).
const outage = 30 * time.Second

// The registry ends while a container of an image that is not here starts: its program cannot even be loaded. The start waits, and
// goes on when the registry is back. Once the image is whole, containers start from it without any registry.
func TestStartWaitsForTheRegistry(t *testing.T) {
	t.Parallel()
	oldAndNew(t, func(t *testing.T, generation node.Generation) {
		t.Parallel()
		f := startFleetOf(t, generation)
		ctx := node.Context(t, "k8s.io")
		pod, sandbox, err := f.student.RunPod(ctx, "waits")
		if err != nil {
			t.Fatal(err)
		}
		never := make(chan struct{})
		defer close(never)
		f.registry.SetFault(hub.Silk(hub.Any(f.bundle.LayerDigests, hub.Held(never, 100*time.Millisecond))))
		if err := f.student.PullCRI(ctx, f.ref); err != nil {
			t.Fatal(err)
		}
		started := make(chan error, 1)
		go func() {
			_, err := f.student.RunContainer(ctx, pod, sandbox, f.ref, "/guest", "reread", "/data/large")
			started <- err
		}()
		f.student.Eventually("the container's start waits for bytes", func() error { return waits(f.student, f.ref) })
		f.registry.SetGone(true)
		f.registry.SetFault(nil)
		select {
		case err := <-started:
			t.Fatalf("the container's start did not wait for the registry: %v", err)
		case <-time.After(outage):
		}
		if refused := f.registry.Refused(); refused < 2 {
			t.Errorf("silkd tried %d times in %v", refused, outage)
		}
		if err := waits(f.student, f.ref); err != nil {
			t.Errorf("at the outage's end: %v", err)
		}
		back := time.Now()
		f.registry.SetGone(false)
		if err := <-started; err != nil {
			t.Fatalf("the registry is back: %v", err)
		}
		t.Logf("ready %v after the registry was back", time.Since(back).Round(10*time.Millisecond))

		f.student.Eventually("every layer is whole", func() error { return whole(f.student, f.ref) })
		f.registry.SetGone(true)
		pod, sandbox, err = f.student.RunPod(ctx, "whole")
		if err != nil {
			t.Fatal(err)
		}
		id, err := f.student.RunContainer(ctx, pod, sandbox, f.ref, "/guest", "reread", "/data/large")
		if err != nil {
			t.Fatalf("a container of a whole image, without the registry: %v", err)
		}
		want := image.Digest(noise(78, 1000))
		if got, err := f.student.Exec(ctx, id, "/guest", "sum", "/data/small"); err != nil || got != want {
			t.Errorf("the file in the container is %s, want %s (%v)", got, want, err)
		}
	})
}

// waits says why no read of an image's layers waits for bytes.
func waits(n *node.Node, ref string) error {
	status, err := n.Status()
	if err != nil {
		return err
	}
	for _, image := range status.Images {
		for _, layer := range image.Layers {
			if image.Reference == ref && layer.ReadsWaiting > 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("no read waits, of %+v", status.Images)
}
