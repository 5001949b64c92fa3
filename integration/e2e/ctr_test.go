package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// `silk pull`, then `ctr run`: the way of those who use ctr.
func TestSilkPullAndCtrRun(t *testing.T) {
	eachGeneration(t, func(t *testing.T, generation node.Generation) {
		registry := hub.Start(t)
		n := node.Start(t, node.Options{Generation: generation})
		bundle := runnable(t, noiseLayer("file", 31, 1<<20)).Bundle()
		ref := registry.Add("app", "1", bundle)
		if said, err := n.Silk("pull", ref); err != nil {
			t.Fatal(err, said)
		}
		fetchedOnce(t, registry, bundle)
		run := ctrCommand(n, "run", "--rm", "--net-host", "--snapshotter", "silk", ref, "app")
		out, err := run.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var complaints strings.Builder
		run.Stderr = &complaints
		if err := run.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || line != "ready\n" {
			t.Errorf("the container said %q (%v): %s", line, err, complaints.String())
		}
		if said, err := ctr(t, n, "tasks", "kill", "--signal", "KILL", "app"); err != nil {
			t.Errorf("ctr tasks kill: %v: %s", err, said)
		}
		run.Wait()
		if said, err := n.Silk("explain", ref); err != nil || !strings.Contains(said, "whole") {
			t.Errorf("silk explain says %q, %v", said, err)
		}
	})
}

// What is removed at once, containerd's garbage collection included, `silk gc` gives back at once.
func TestSpaceComesBackAtOnce(t *testing.T) {
	eachGeneration(t, func(t *testing.T, generation node.Generation) {
		registry := hub.Start(t)
		n := node.Start(t, node.Options{Generation: generation})
		ref := registry.Add("app", "1", image.Image{Layers: []image.Layer{noiseLayer("one", 41, 1<<20), noiseLayer("two", 42, 1000)}}.Bundle())
		if said, err := n.Silk("pull", ref); err != nil {
			t.Fatal(err, said)
		}
		if layers := n.LayerData(); len(layers) != 2 {
			t.Fatalf("after the pull there are %v", layers)
		}
		if out, err := ctr(t, n, "images", "rm", "--sync", ref); err != nil {
			t.Fatalf("ctr images rm: %v: %s", err, out)
		}
		said, err := n.Silk("gc", "--keep", "0")
		if layers := n.LayerData(); err != nil || len(layers) > 0 {
			t.Errorf("silk gc says %q (%v) and leaves %v", said, err, layers)
		}
		if mounts := n.LayerMounts(); len(mounts) > 0 {
			t.Errorf("still mounted: %v", mounts)
		}
	})
}

// ctr runs the tool of the node's containerd and returns what it printed.
func ctr(t *testing.T, n *node.Node, args ...string) (string, error) {
	t.Helper()
	out, err := ctrCommand(n, args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return string(out), err
}

// ctrCommand is a call of that tool.
func ctrCommand(n *node.Node, args ...string) *exec.Cmd {
	program := filepath.Join(filepath.Dir(n.Generation.Binary), "ctr")
	return exec.CommandContext(n.Context(), program, append([]string{"--address", filepath.Join(n.Dir, "containerd.sock")}, args...)...)
}
