package e2e

import (
	"fmt"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// After a stop or a kill, whole images are served without registry and credentials, and running containers notice nothing.
func TestRestart(t *testing.T) {
	eachGeneration(t, func(t *testing.T, generation node.Generation) {
		for _, rung := range []string{"file", "loop"} {
			t.Run(rung, func(t *testing.T) { restart(t, generation, rung) })
		}
	})
}

func restart(t *testing.T, generation node.Generation, rung string) {
	registry := hub.Start(t)
	n := withPods(t, registry, node.Options{Generation: generation, Rung: rung})
	ctx := node.Context(t, "k8s.io")
	layers := []image.Layer{noiseLayer("data/one", 21, 2<<20), noiseLayer("data/two", 22, 100)}
	ref := registry.Add("app", "1", runnable(t, layers...).Bundle())
	pod, sandbox, err := n.RunPod(ctx, "before")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.PullCRI(ctx, ref); err != nil {
		t.Fatal(err)
	}
	running, err := n.RunContainer(ctx, pod, sandbox, ref, "/guest", "reread", "/data/one")
	if err != nil {
		t.Fatal(err)
	}
	registry.SetDown(true)
	requests := registry.Requests()
	for _, end := range []struct {
		name string
		end  func() error
	}{{"stop", n.Silkd.Stop}, {"kill", func() error { n.Silkd.Kill(); return nil }}} {
		if err := end.end(); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Exec(ctx, running, "/guest", "sum", "/data/two"); err != nil {
			t.Errorf("%s: while silkd is away: %v", end.name, err)
		}
		n.StartSilkd()
		n.Eventually("silk status says ready", func() error {
			if state, message := n.ImageState(ref); state != "ready" {
				return fmt.Errorf("%q (%s)", state, message)
			}
			return nil
		})
		var pod string
		var sandbox *runtime.PodSandboxConfig
		// containerd 1.6 waits a moment before it connects again, and kubelet tries again.
		n.Eventually("a new pod", func() (err error) {
			pod, sandbox, err = n.RunPod(ctx, "after-"+end.name)
			return err
		})
		if _, err := n.RunContainer(ctx, pod, sandbox, ref, "/guest", "reread", "/data/one"); err != nil {
			t.Errorf("%s: a new container: %v", end.name, err)
		}
		if state := n.ContainerState(ctx, running); state != runtime.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%s: the container that ran before is %v", end.name, state)
		}
	}
	if more := registry.Requests() - requests; more != 0 {
		t.Errorf("the registry was asked %d times", more)
	}
}
