package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	transferregistry "github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/platforms"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/scope"
)

// figures are what one measurement gives. Times are since the pull began.
type figures struct {
	Image  string `json:"image"`
	Column string `json:"column"`
	Round  int    `json:"round"`
	// Busy tells that something else used the machine when the measurement began.
	Busy bool `json:"busy"`

	Pull   time.Duration `json:"pull"`   // containerd's pull returned
	Ready  time.Duration `json:"ready"`  // the container printed its line
	Whole  time.Duration `json:"whole"`  // every byte is on this node
	Proved time.Duration `json:"proved"` // and was checked against the image's digests
	Warm   time.Duration `json:"warm"`   // a second container, from its start to its line

	UntilReady traffic `json:"until_ready"`
	UntilWhole traffic `json:"until_whole"`

	// Limit is the word of silkd for what limited the pull until the image was whole.
	Limit string `json:"limit,omitempty"`

	Containerd use `json:"containerd"`
	Silkd      use `json:"silkd"`
}

// traffic is what the origin was asked for.
type traffic struct {
	Requests int   `json:"requests"`
	Bytes    int64 `json:"bytes"`
}

// use is what a daemon needed until the image was whole; containerd's helpers (igzip, mkfs.erofs) count as its own.
type use struct {
	Memory int64         `json:"memory"` // the most resident bytes
	CPU    time.Duration `json:"cpu"`
}

// bench is what all measurements share.
type bench struct {
	scope.Scope
	settings
	origin *hub.Hub
	fleets map[string]*fleet
	turn   *turn
}

// measure takes the figures of an image on an empty node.
func (b *bench) measure(s subject, c column, round int) (f figures, err error) {
	f = figures{Image: s.name, Column: c.name, Round: round}
	f.Busy = busy()
	failed := scope.Run(func(t scope.Scope) {
		n := b.emptyNode(t, c, fmt.Sprintf("%s-%s-%d", s.name, c.name, round), s)
		ctx := within(t, b.deadline(s))
		if err := b.pullAndRun(ctx, n, s, c, &f); err != nil {
			t.Fatal(err)
		}
	})
	if failed != nil {
		return f, fmt.Errorf("%s with %s: %w", s.name, c.name, failed)
	}
	return f, nil
}

// emptyNode is one on which images will be pulled, with cold caches. A snapshotter of the operator's must be empty, too, and is again at the end.
func (b *bench) emptyNode(t scope.Scope, c column, measurement string, subjects ...subject) *node.Node {
	var settings string
	for _, s := range subjects {
		var err error
		if settings, err = b.join(s, c); err != nil {
			t.Fatal(err)
		}
	}
	if c.socket != "" {
		if err := vacant(within(t, time.Minute), c); err != nil {
			t.Fatal(err)
		}
	}
	n := node.Start(t, c.options(settings, b.rung, b.logs != ""))
	t.Cleanup(func() { b.keepLog(n, measurement) })
	if c.socket != "" {
		t.Cleanup(func() {
			if err := forget(n, c.snapshotter); err != nil {
				t.Error(err)
			}
		})
	}
	if err := cold(subjects...); err != nil {
		t.Fatal(err)
	}
	return n
}

// keepLog keeps what silkd said during a measurement, where somebody wants it.
func (b *bench) keepLog(n *node.Node, measurement string) {
	if b.logs == "" || n.Silkd == nil {
		return
	}
	log, err := os.ReadFile(n.Silkd.Log)
	if err == nil {
		err = os.WriteFile(filepath.Join(b.logs, measurement+".log"), log, 0o644)
	}
	if err != nil {
		b.Error(err)
	}
}

// repository is the image's for one column: what a column's nodes push beside the image is not for others.
func repository(s subject, c column) string { return c.name + "/" + s.name }

func reference(origin *hub.Hub, s subject, c column) string {
	return origin.Host + "/" + repository(s, c) + ":latest"
}

func (b *bench) traffic() traffic { return traffic{b.origin.Requests(), b.origin.Total()} }

func (t traffic) since(before traffic) traffic {
	return traffic{t.Requests - before.Requests, t.Bytes - before.Bytes}
}

func (b *bench) pullAndRun(ctx context.Context, n *node.Node, s subject, c column, f *figures) error {
	ref := reference(b.origin, s, c)
	before, start := b.traffic(), time.Now()
	if err := pull(ctx, n, ref, c.snapshotter); err != nil {
		return err
	}
	f.Pull = time.Since(start)
	ready, whole := make(chan struct{}), make(chan error, 1)
	go func() { whole <- b.awaitWhole(ctx, n, ref, c, start, before, f, ready) }()
	ended, err := run(ctx, n, ref, c.snapshotter, "first")
	if err != nil {
		return err
	}
	f.Ready, f.UntilReady = time.Since(start), b.traffic().since(before)
	close(ready)
	if err := <-whole; err != nil {
		return err
	}
	if err := ended(); err != nil {
		return err
	}
	start = time.Now()
	if ended, err = run(ctx, n, ref, c.snapshotter, "second"); err != nil {
		return err
	}
	f.Warm = time.Since(start)
	return ended()
}

// awaitWhole notes when the image is whole and proved, and what it took until then. Who unpacks has it whole when the pull returns; what
// an operator's snapshotter has is not known, and all of that stays zero.
func (b *bench) awaitWhole(
	ctx context.Context, n *node.Node, ref string, c column, start time.Time, before traffic, f *figures, ready <-chan struct{},
) error {
	if !c.tells() {
		return nil
	}
	if !c.silk() {
		f.Whole, f.Proved = f.Pull, f.Pull
	}
	wait := duringStarts
	for c.silk() && (f.Whole == 0 || f.Proved == 0) {
		whole, proved, err := state(n, ref)
		if err != nil {
			return err
		}
		if whole && f.Whole == 0 {
			f.Whole = time.Since(start)
		}
		if proved && f.Proved == 0 {
			f.Proved = time.Since(start)
		}
		if !whole || !proved {
			select {
			case <-ready:
				wait, ready = betweenLooks, nil
			default:
			}
			if err := pause(ctx, wait, ready); err != nil {
				return err
			}
		}
	}
	f.UntilWhole = b.traffic().since(before)
	var err error
	if c.silk() {
		if f.Limit, err = limit(n, c, ref); err != nil {
			return err
		}
	}
	if f.Containerd, err = usage(n.Containerd); err == nil && n.Silkd != nil {
		f.Silkd, err = usage(n.Silkd)
	}
	return err
}

// Between two looks at whether an image is whole. A look starts a program: while the container starts they are few, as twenty a second took 2 % of
// both processors for that program alone (a Python service's start).
const (
	betweenLooks = 50 * time.Millisecond
	duringStarts = 500 * time.Millisecond
)

// pause waits until the next look, or until early is closed.
func pause(ctx context.Context, wait time.Duration, early <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("not whole: %w", ctx.Err())
	case <-early:
	case <-time.After(wait):
	}
	return nil
}

// state asks silkd whether every layer of an image is whole, and proved. What silkd left to containerd is a failure.
func state(n *node.Node, ref string) (whole, proved bool, err error) {
	status, err := n.Status()
	if err != nil {
		return false, false, err
	}
	for _, image := range status.Images {
		if image.Reference != ref {
			continue
		}
		if image.Error != "" {
			return false, false, fmt.Errorf("silk: the image is %s: %s", image.State, image.Error)
		}
		whole, proved = len(image.Layers) > 0, len(image.Layers) > 0
		for _, layer := range image.Layers {
			whole = whole && layer.State == "whole"
			proved = proved && layer.Proved
		}
		return whole, proved, nil
	}
	return false, false, fmt.Errorf("silk does not know %s", ref)
}

// limit asks silkd what limited the pull of an image, if it is whole. Not to have known it where the fleet does is a failure.
func limit(n *node.Node, c column, ref string) (string, error) {
	timing, err := n.Timing(ref)
	if err != nil {
		return "", err
	}
	return limitOf(timing, c, ref)
}

func limitOf(timing node.Timing, c column, ref string) (string, error) {
	for _, image := range timing.Images {
		if image.Reference != ref {
			continue
		}
		streamed := 0
		for _, layer := range image.Layers {
			if layer.Way == "streamed" {
				streamed++
			}
		}
		if c.fleet != "" && streamed > 0 {
			return "", fmt.Errorf("the fleet knows %s, and silk streamed %d of its %d layers: it was not told, or not in time", ref, streamed, len(image.Layers))
		}
		return image.Limit, nil
	}
	return "", fmt.Errorf("silk does not know %s", ref)
}

// served fails when silk did not serve an image as its column says, whether it is whole or not.
func served(n *node.Node, c column, ref string) error {
	if !c.silk() {
		return nil
	}
	_, _, err := state(n, ref)
	if err == nil {
		_, err = limit(n, c, ref)
	}
	return err
}

func usage(p *node.Process) (u use, err error) {
	if u.Memory, err = p.PeakMemory(); err != nil {
		return u, err
	}
	u.CPU, err = p.CPU()
	return u, err
}

// pull does what CRI does, and `ctr images pull`: it asks containerd's transfer service.
func pull(ctx context.Context, n *node.Node, ref, snapshotter string) error {
	source, err := transferregistry.NewOCIRegistry(ctx, ref, transferregistry.WithDefaultScheme("http"))
	if err != nil {
		return err
	}
	platform := platforms.DefaultSpec()
	store := transferimage.NewStore(ref, transferimage.WithPlatforms(platform), transferimage.WithUnpack(platform, snapshotter))
	if err := n.Client.Transfer(ctx, source, store); err != nil {
		return fmt.Errorf("pull of %s: %w", ref, err)
	}
	return nil
}

// run starts a container and waits for a line of it that begins with "ready"; end kills and removes it. Its ID is the node's own: runc keeps
// those of all nodes in one place, and so those that a run left which was killed.
func run(ctx context.Context, n *node.Node, ref, snapshotter, name string) (end func() error, err error) {
	image, err := n.Client.GetImage(ctx, ref)
	if err != nil {
		return nil, err
	}
	id := filepath.Base(n.Dir) + "-" + name
	container, err := n.Client.NewContainer(ctx, id, containerd.WithImage(image), containerd.WithSnapshotter(snapshotter),
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithHostNamespace("network"), oci.WithHostHostsFile))
	if err != nil {
		return nil, fmt.Errorf("container of %s: %w", ref, err)
	}
	reader, writer := io.Pipe()
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, writer, writer)))
	if err != nil {
		return nil, fmt.Errorf("task of %s: %w", ref, err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		return nil, err
	}
	if err := task.Start(ctx); err != nil {
		return nil, fmt.Errorf("start of %s: %w", ref, err)
	}
	end = func() error {
		_, err := task.Delete(ctx, containerd.WithProcessKill)
		if err != nil {
			return err
		}
		return container.Delete(ctx, containerd.WithSnapshotCleanup)
	}
	ready := make(chan error, 1)
	go func() { ready <- awaitLine(reader) }()
	select {
	case err = <-ready:
	case <-exited:
		// What it said last is still on its way.
		time.AfterFunc(time.Second, func() { writer.Close() })
		err = <-ready
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("container of %s: %w", ref, err)
	}
	return end, nil
}

// awaitLine reads until the line "ready", and throws away what comes later.
func awaitLine(reader io.Reader) error {
	var said strings.Builder
	lines := bufio.NewScanner(reader)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "ready") {
			go io.Copy(io.Discard, reader)
			return nil
		}
		said.WriteString(lines.Text() + "\n")
	}
	return fmt.Errorf("it never said ready, but: %s", said.String())
}
