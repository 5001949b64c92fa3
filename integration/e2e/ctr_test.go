package e2e

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"silk.invalid/integration/e2e/internal/hub"
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
		ctr := []string{"--address", filepath.Join(n.Dir, "containerd.sock")}
		run := exec.CommandContext(n.Context(), filepath.Join(filepath.Dir(generation.Binary), "ctr"),
			append(ctr, "run", "--rm", "--net-host", "--snapshotter", "silk", ref, "app")...)
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
		kill := exec.Command(run.Path, append(ctr, "tasks", "kill", "--signal", "KILL", "app")...)
		if said, err := kill.CombinedOutput(); err != nil {
			t.Errorf("ctr tasks kill: %v: %s", err, said)
		}
		run.Wait()
		if said, err := n.Silk("explain", ref); err != nil || !strings.Contains(said, "whole") {
			t.Errorf("silk explain says %q, %v", said, err)
		}
	})
}
