package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// What the start of a container touched on one node, where its image had streamed in, is fetched first on the next, where it
// is mounted before it is here; that start, read through silkd, teaches as well.
func TestStartsAreLearnedAndFetchedFirst(t *testing.T) {
	registry := hub.Start(t)
	fleet := node.StartRedis(t)
	options := node.Options{Generation: node.Second, Extra: fleet.Config()}
	teacher, pupil := withPods(t, registry, options), withPods(t, registry, options)
	large := image.NewLayer(image.Gzip,
		image.Entry{Name: "before", Body: noise(61, 12<<20)},
		image.Entry{Name: "wanted", Body: noise(62, 2<<20)},
		image.Entry{Name: "behind", Body: noise(63, 12<<20)})
	app := runnable(t, large)
	app.Cmd = []string{"/guest", "reread", "/wanted"}
	bundle := app.Bundle()
	ref := registry.Add("app", "1", bundle)
	_, manifest, _ := strings.Cut(image.Digest(bundle.Root.Body), ":")

	runs(t, teacher, ref)
	var shown string
	teacher.Eventually("the start was seen", func() (err error) {
		shown, err = teacher.Silk("profile", "show", ref)
		return err
	})
	if !strings.Contains(shown, "guest #") || !strings.Contains(shown, "1 start,") {
		t.Errorf("the profile does not name the start:\n%s", shown)
	}
	teacher.Eventually("the fleet knows it", func() error {
		if known, err := fleet.Do("EXISTS", "silk:1:profile:"+manifest); err != nil || known != "1" {
			return fmt.Errorf("%s, %v", known, err)
		}
		return fleet.Knows(teacher, ref)
	})

	registry.SetRate(1 << 20) // a connection
	if err := pupil.PullCRI(node.Context(t, "k8s.io"), ref); err != nil {
		t.Fatal(err)
	}
	var profile, demand uint64
	pupil.Eventually("the start's bytes come", func() (err error) {
		profile, demand, _, err = arrived(pupil, ref)
		if err == nil && profile < 2<<20 {
			err = fmt.Errorf("%d bytes", profile)
		}
		return err
	})
	runs(t, pupil, ref)
	_, demand, all, err := arrived(pupil, ref)
	if err != nil {
		t.Fatal(err)
	}
	if demand > 1<<20 || profile > 10<<20 {
		t.Errorf("%d bytes by profile, %d on demand, of %d", profile, demand, all)
	}
	registry.SetRate(0)
	pupil.Eventually("it is learned from", func() error {
		shown, err := pupil.Silk("profile", "show", ref)
		if err == nil && !strings.Contains(shown, "2 starts,") {
			err = fmt.Errorf("%s", shown)
		}
		return err
	})
	next := runnable(t, large, noiseLayer("news", 65, 1<<20))
	next.Cmd = app.Cmd
	newVersion(t, registry, fleet, teacher, options, next, large.DiffID)
	exported(t, teacher, ref)
}

// newVersion is an image of the same repository that nobody has started: what was touched of the layer that both have comes first, and the start
// teaches all of it again.
func newVersion(t *testing.T, registry *hub.Hub, fleet *node.Redis, teacher *node.Node, options node.Options, app image.Image, shared string) {
	ref := registry.Add("app", "2", app.Bundle())
	if err := teacher.PullCRI(node.Context(t, "k8s.io"), ref); err != nil {
		t.Fatal(err)
	}
	teacher.Eventually("the fleet knows the new version", func() error { return fleet.Knows(teacher, ref) })
	n := withPods(t, registry, options)
	registry.SetRate(1 << 20)
	if err := n.PullCRI(node.Context(t, "k8s.io"), ref); err != nil {
		t.Fatal(err)
	}
	n.Eventually("what the version before touched comes", func() error {
		status, err := n.Status()
		if err != nil {
			return err
		}
		for _, image := range status.Images {
			for _, layer := range image.Layers {
				if image.Reference == ref && layer.DiffID == shared && layer.ProfileBytes >= 2<<20 {
					return nil
				}
			}
		}
		return fmt.Errorf("it has not")
	})
	if said, err := n.Silk("profile", "show", ref); err == nil {
		t.Errorf("nobody has started it, and it has a profile of its own: %s", said)
	}
	registry.SetRate(0)
	runs(t, n, ref)
	_, digest, _ := strings.Cut(shared, ":")
	n.Eventually("all that it touches is learned", func() error {
		said, err := n.Silk("profile", "show", ref)
		if err != nil {
			return err
		}
		for line := range strings.Lines(said) {
			var layer, unit string
			var size float64
			if _, err := fmt.Sscan(line, &layer, &size, &unit); err == nil && strings.HasPrefix(digest, layer) && unit == "MB" && size >= 2 {
				return nil
			}
		}
		return fmt.Errorf("%s", said)
	})
}

// The kernel keeps a trace that nobody reads, and all of them make the reads of every container dearer: a silkd that stops
// takes its own away, and the next one those of a silkd that was killed, whatever its root.
func TestTracesEndWithSilkd(t *testing.T) {
	registry := hub.Start(t)
	first, second := withPods(t, registry, node.Options{Generation: node.Second}), withPods(t, registry, node.Options{Generation: node.Second})
	if status, err := first.Status(); err != nil {
		t.Fatal(err)
	} else if status.Rung != "file" {
		node.Cannot(t, fmt.Sprintf("reads of layers on the rung %q are not traced", status.Rung))
	}
	ref := registry.Add("app", "1", runnable(t, noiseLayer("one", 64, 1<<20)).Bundle())
	// Each ends at once: a start is watched for some seconds only.
	watched := func(n *node.Node) {
		runs(t, n, ref)
		n.Eventually("the start is watched", func() error {
			if len(traces(t, n)) == 0 {
				return fmt.Errorf("no trace")
			}
			return nil
		})
	}
	watched(first)
	if err := first.Silkd.Stop(); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, first); len(left) != 0 {
		t.Errorf("a silkd that was stopped left %q", left)
	}
	watched(second)
	second.Silkd.Kill()
	if left := traces(t, second); len(left) == 0 {
		t.Error("a silkd that was killed left none: this test shows nothing")
	}
	first.StartSilkd()
	if left := traces(t, second); len(left) != 0 {
		t.Errorf("another silkd let stay %q", left)
	}
}

// traces names the kernel's traces of a node's silkd.
func traces(t *testing.T, n *node.Node) []string {
	t.Helper()
	tracefs := t.TempDir()
	if err := unix.Mount("tracefs", tracefs, "tracefs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(tracefs, 0)
	var root unix.Stat_t
	if err := unix.Stat(filepath.Join(n.Dir, "silk"), &root); err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(tracefs, "instances", fmt.Sprintf("silk-%x-%x-*", root.Dev, root.Ino)))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// exported takes a profile away and brings it back.
func exported(t *testing.T, n *node.Node, ref string) {
	file := filepath.Join(n.Dir, "profile")
	before, err := n.Silk("profile", "show", "--ranges", ref)
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range [][]string{{"export", ref, file}, {"drop", ref}} {
		if _, err := n.Silk(append([]string{"profile"}, words...)...); err != nil {
			t.Fatal(err)
		}
	}
	if said, err := n.Silk("profile", "show", ref); err == nil || !strings.Contains(err.Error(), "no start profile") {
		t.Errorf("it is dropped, and still shown: %s (%v)", said, err)
	}
	if _, err := n.Silk("profile", "import", ref, file); err != nil {
		t.Fatal(err)
	}
	after, err := n.Silk("profile", "show", "--ranges", ref)
	if err != nil || after != before {
		t.Errorf("it came back as\n%s(%v)\nand was\n%s", after, err, before)
	}
	if err := os.WriteFile(file, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Silk("profile", "import", ref, file); err == nil || !strings.Contains(err.Error(), "no start profile of silk") {
		t.Errorf("rubbish is taken: %v", err)
	}
}

// runs starts a container that reads and says so.
func runs(t *testing.T, n *node.Node, ref string) {
	t.Helper()
	ctx := node.Context(t, "k8s.io")
	pod, sandbox, err := n.RunPod(ctx, "start")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.PullCRI(ctx, ref); err != nil {
		t.Fatal(err)
	}
	if _, err := n.RunContainer(ctx, pod, sandbox, ref); err != nil {
		t.Fatal(err)
	}
}

// arrived sums what came of an image's layers while they fill.
func arrived(n *node.Node, ref string) (profile, demand, all uint64, err error) {
	status, err := n.Status()
	if err != nil {
		return 0, 0, 0, err
	}
	for _, image := range status.Images {
		for _, layer := range image.Layers {
			if image.Reference == ref {
				profile += layer.ProfileBytes
				demand += layer.DemandBytes
				all += layer.ProfileBytes + layer.DemandBytes + layer.BackgroundBytes
			}
		}
	}
	return profile, demand, all, nil
}
