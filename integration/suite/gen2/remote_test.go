package gen2

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

// labels are those that the unpacker gives a layer.
func (i *image) labels(layer int) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{
		"containerd.io/snapshot.ref":                 i.chains[layer],
		"containerd.io/snapshot/cri.image-ref":       i.ref,
		"containerd.io/snapshot/cri.manifest-digest": i.manifest.Digest.String(),
		"containerd.io/snapshot/cri.layer-digest":    i.layers[layer].Digest.String(),
	})
}

// fetchedOnce fails unless each layer was asked for once.
func (b *box) fetchedOnce(images ...*image) {
	b.t.Helper()
	for _, img := range images {
		for n, layer := range img.layers {
			if count := b.registry.count(layer.Digest); count != 1 {
				b.t.Errorf("layer %d was fetched %d times", n, count)
			}
		}
	}
}

func TestEveryLayerExistsAndThePullWaitsInStat(t *testing.T) {
	each(t, func(t *testing.T, b *box, who caller) {
		img := newImage(t, "a", "b", "c")
		b.registry.push("image", img)
		b.registry.hold()
		ctx := b.lease("one", who)
		pull := b.pull(ctx, img)
		b.waits(1, pull)
		known := b.walk("one")
		for n, chain := range img.chains {
			info, ok := known[chain]
			if !ok || info.Kind != snapshots.KindCommitted {
				t.Errorf("layer %d is not answered although nothing of it is here: %+v", n, info)
			}
		}
		b.registry.release()
		must(t, <-pull)
		b.fetchedOnce(img)
		b.check(ctx, img.top(), "a", "b", "c")
		b.check(ctx, img.chains[0], "a")
	})
}

func TestOneChainOnTwoParents(t *testing.T) {
	b := newBox(t)
	img := newImage(t, "a", "b")
	b.registry.push("image", img)

	// In one namespace the base was unpacked without silk's help.
	one := b.lease("one", cri)
	b.fetch(one, img)
	ref := snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": img.chains[0]})
	_, err := b.snapshots().Prepare(one, "extract base", "", ref)
	must(t, err)
	must(t, b.snapshots().Commit(one, img.chains[0], "extract base", ref))

	// In the other, silk has all of it, and its base is not the unpacked one.
	two := b.lease("two", cri)
	must(t, b.unpack(two, img))
	b.check(two, img.top(), "a", "b")

	// The upper layer of the first namespace stands on an ordinary snapshot: it is containerd's to unpack.
	mounts, err := b.snapshots().Prepare(one, "extract top", img.chains[0], img.labels(1))
	must(t, err)
	if len(mounts) == 0 {
		t.Fatal("no mounts to unpack into")
	}
	must(t, b.snapshots().Commit(one, img.chains[1], "extract top", img.labels(1)))

	parents := map[string]bool{}
	for _, info := range b.behind() {
		if info.Labels["containerd.io/snapshot.ref"] == img.chains[1] {
			parents[info.Parent] = true
		}
	}
	if len(parents) != 2 {
		t.Errorf("the chain is there on the parents %v, not on two", parents)
	}
	for _, ctx := range []context.Context{one, two} {
		info, err := b.snapshots().Stat(ctx, img.top())
		must(t, err)
		if info.Parent != img.chains[0] {
			t.Errorf("the parent is %q", info.Parent)
		}
	}
	b.check(one, img.top())
}

func TestTwoNamespacesShareLayers(t *testing.T) {
	each(t, func(t *testing.T, b *box, who caller) {
		img := newImage(t, "a", "b")
		b.registry.push("image", img)
		b.registry.hold()
		one, two := b.lease("one", who), b.lease("two", who)
		first := b.pull(one, img)
		b.waits(1, first)
		second := b.pull(two, img)
		b.waits(2, first, second)
		b.registry.release()
		must(t, <-first)
		must(t, <-second)
		b.fetchedOnce(img)
		if behind := b.behind(); len(behind) != 2 {
			t.Errorf("two layers have %d snapshots: %v", len(behind), behind)
		}
		b.check(one, img.top(), "a", "b")

		// The image goes in one namespace, and stays in the other.
		b.endLease(one)
		b.collect()
		if left := b.walk("one"); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
		b.check(two, img.top(), "a", "b")
		b.endLease(two)
		b.collect()
		if left := b.behind(); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// containerd knows the whole chain of the second image, and asks silkd for nothing but Stat.
func TestTheLowerPartOfAnotherImage(t *testing.T) {
	each(t, func(t *testing.T, b *box, who caller) {
		whole, part := newImage(t, "a", "b", "c"), newImage(t, "a", "b")
		b.registry.push("whole", whole)
		b.registry.push("part", part)
		b.registry.hold()
		first := b.pull(b.lease("one", who), whole)
		b.waits(1, first)
		b.walk("one")
		ctx := b.lease("one", who)
		second := b.pull(ctx, part)
		b.waits(2, first, second)
		b.walk("one")
		b.registry.release()
		must(t, <-first)
		must(t, <-second)
		b.fetchedOnce(whole)
		b.check(ctx, part.top(), "a", "b")
	})
}

func TestNobodyElseWaitsWhileAPullDoes(t *testing.T) {
	each(t, func(t *testing.T, b *box, who caller) {
		img := newImage(t, "a", "b")
		b.registry.push("image", img)
		b.registry.hold()
		// The namespace of CRI's statistics.
		ctx := b.lease("k8s.io", who)
		pull := b.pull(ctx, img)
		b.waits(1, pull)
		for range 3 {
			if known := b.walk("k8s.io"); len(known) != 2 {
				t.Errorf("listed: %v", known)
			}
			b.collect()
			other := b.in("other")
			_, err := b.snapshots().Prepare(other, "container", "")
			must(t, err)
			must(t, b.snapshots().Commit(other, "built", "container"))
			_, err = b.snapshots().Stat(other, "built")
			must(t, err)
			must(t, b.snapshots().Remove(other, "built"))
		}
		// Usage is final or unknown: CRI asks once and keeps the answer.
		if _, err := b.snapshots().Usage(ctx, img.top()); !errdefs.IsNotFound(err) {
			t.Errorf("usage of a layer that is not here: %v", err)
		}
		// A container cannot start yet, and is told so at once.
		_, err := b.snapshots().Prepare(ctx, "container", img.top())
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), img.ref) {
			t.Errorf("a container on layers that are not here: %v", err)
		}
		b.waits(1, pull)
		b.registry.release()
		must(t, <-pull)
		usage, err := b.snapshots().Usage(ctx, img.top())
		must(t, err)
		if usage.Size == 0 || usage.Inodes == 0 {
			t.Errorf("usage of a whole layer: %+v", usage)
		}
		_, err = b.snapshots().Prepare(ctx, "container", img.top())
		must(t, err)
	})
}

func TestPrepareIsRepeated(t *testing.T) {
	b := newBox(t)
	img := newImage(t, "a", "b")
	b.registry.push("image", img)
	b.registry.hold()
	ctx := b.lease("one", cri)
	b.fetch(ctx, img)
	// Behind the metadata layer, which would not ask twice: a containerd that died after the first answer does.
	for range 3 {
		_, err := b.backend.Prepare(ctx, "one/7/extract base", "", img.labels(0))
		if !errdefs.IsAlreadyExists(err) {
			t.Fatalf("prepared: %v", err)
		}
	}
	if behind := b.behind(); len(behind) != 1 {
		t.Errorf("one layer has %d snapshots: %v", len(behind), behind)
	}
	for range 2 {
		_, err := b.snapshots().Prepare(ctx, "extract base", "", img.labels(0))
		if !errdefs.IsAlreadyExists(err) {
			t.Fatalf("prepared: %v", err)
		}
	}
	if behind := b.behind(); len(behind) != 1 {
		t.Errorf("one layer has %d snapshots: %v", len(behind), behind)
	}
	b.registry.release()
	must(t, b.unpack(ctx, img))
	b.check(ctx, img.top(), "a", "b")
	b.fetchedOnce(img)
}

func TestPrepareIsCancelled(t *testing.T) {
	b := newBox(t)
	img := newImage(t, "a", "b")
	b.registry.push("image", img)
	ctx := b.lease("one", cri)
	b.fetch(ctx, img)
	// The first Prepare asks the registry, which does not answer.
	b.registry.set(true, http.StatusContinue)
	short, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := b.snapshots().Prepare(short, "extract base", "", img.labels(0))
		done <- err
	}()
	for deadline := time.Now().Add(limit); b.registry.holding() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("silkd does not ask the registry")
		}
	}
	cancel()
	if err := <-done; !errdefs.IsCanceled(err) {
		t.Fatalf("prepared: %v", err)
	}
	b.registry.release()
	if known := b.walk("one"); len(known) != 0 {
		t.Errorf("left behind: %v", known)
	}
	must(t, b.unpack(ctx, img))
	b.check(ctx, img.top(), "a", "b")
	b.endLease(ctx)
	b.collect()
	if left := b.behind(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAPullFailsAndIsTriedAgain(t *testing.T) {
	each(t, func(t *testing.T, b *box, who caller) {
		img := newImage(t, "a", "b")
		b.registry.push("image", img)
		b.registry.set(false, http.StatusNotFound)
		ctx := b.lease("one", who)
		err := b.unpack(ctx, img)
		if err == nil || errdefs.IsNotFound(err) {
			t.Fatalf("a pull of layers that are gone: %v", err)
		}
		if !strings.Contains(err.Error(), img.ref) || !strings.Contains(err.Error(), "404") {
			t.Errorf("the message does not name image and cause: %v", err)
		}
		if known := b.walk("one"); len(known) != 2 {
			t.Errorf("listed: %v", known)
		}
		// A container is told the cause at once, and silkd tries again.
		b.registry.hold()
		_, err = b.snapshots().Prepare(ctx, "container", img.top())
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "404") {
			t.Errorf("a container on a failed pull: %v", err)
		}
		// The metadata layer knows the snapshots, so silkd gets no Prepare.
		prepares := b.backend.prepares.Load()
		ctx = b.lease("one", who)
		pull := b.pull(ctx, img)
		b.waits(1, pull)
		b.walk("one")
		b.registry.release()
		must(t, <-pull)
		if now := b.backend.prepares.Load(); now != prepares {
			t.Errorf("%d Prepares reached silkd", now-prepares)
		}
		b.check(ctx, img.top(), "a", "b")
	})
}

func TestOneOfTwoWaitersGoes(t *testing.T) {
	each(t, func(t *testing.T, b *box, who caller) {
		img := newImage(t, "a", "b")
		b.registry.push("image", img)
		b.registry.hold()
		first, cancel := context.WithCancel(b.lease("one", who))
		one := b.pull(first, img)
		b.waits(1, one)
		second := b.lease("one", who)
		two := b.pull(second, img)
		b.waits(2, one, two)
		cancel()
		if err := <-one; !errdefs.IsCanceled(err) {
			t.Errorf("a pull that was cancelled: %v", err)
		}
		b.endLease(first)
		b.collect()
		b.waits(1, two)
		b.registry.release()
		must(t, <-two)
		b.fetchedOnce(img)
		b.check(second, img.top(), "a", "b")
	})
}

func TestAnImageThatIsTheBaseOfAnother(t *testing.T) {
	b := newBox(t)
	large, small := newImage(t, "a", "b", "c"), newImage(t, "a", "b")
	b.registry.push("large", large)
	b.registry.push("small", small)
	b.registry.hold()
	one, two := b.lease("one", cri), b.lease("one", cri)
	first := b.pull(one, large)
	b.waits(1, first)
	// All its layers are known, so that nothing but a Stat reaches silkd: its pull waits for them all the same.
	second := b.pull(two, small)
	b.waits(2, first, second)
	b.registry.release()
	must(t, <-second)
	b.check(two, small.top(), "a", "b")
	must(t, <-first)
	b.fetchedOnce(large)
}

func TestARestartWhileAPullWaits(t *testing.T) {
	each(t, func(t *testing.T, b *box, who caller) {
		img := newImage(t, "a", "b")
		b.registry.push("image", img)
		b.registry.hold()
		ctx := b.lease("one", who)
		pull := b.pull(ctx, img)
		b.waits(1, pull)
		b.daemon.Kill()
		if err := <-pull; err == nil {
			t.Fatal("the pull ended well without silkd")
		}
		// The lease stays, as after a crash of containerd: no list waits in the place of its pull, but for those of the last ten seconds, which may
		// be about to ask.
		time.Sleep(11 * time.Second)
		b.start()
		b.walk("one")
		ctx = b.lease("one", who)
		again := b.pull(ctx, img)
		b.waits(1, again)
		b.walk("one")
		b.registry.release()
		must(t, <-again)
		b.check(ctx, img.top(), "a", "b")

		// Whole layers need no registry after the next one.
		b.daemon.Kill()
		b.registry.set(false, http.StatusInternalServerError)
		b.start()
		b.check(ctx, img.top(), "a", "b")
		must(t, b.unpack(ctx, img))
	})
}

func TestNamesOfLeases(t *testing.T) {
	b := newBox(t)
	ctx := b.lease("one", client)
	if _, ok := leases.FromContext(ctx); !ok {
		t.Fatal("a client's lease does not reach the metadata layer: the other tests would prove nothing")
	}
	if namespace, ok := namespaces.Namespace(ctx); !ok || namespace != "one" {
		t.Fatalf("the namespace is %q", namespace)
	}
}
