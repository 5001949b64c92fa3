package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

const (
	powerCuts = 8
	// bootID is where the kernel tells which boot of the host this is.
	bootID = "/proc/sys/kernel/random/boot_id"
	// insideEnv tells the test that it has mounts of its own.
	insideEnv = "SILK_E2E_POWER"
)

// The host loses power at random moments of pulls, removals and commits: what its disk has then is taken as a reflink of the file
// that the disk is in. On each such disk, after a boot, silkd starts, serves what was synced without a registry, has the snapshots that
// were synced before their commit, finds no wrong byte, and pulls everything again.
func TestPowerCut(t *testing.T) {
	if os.Getenv(insideEnv) != "" {
		powerCut(t)
		return
	}
	needReflinks(t)
	// Another boot ID, which other tests must not see.
	inside := exec.Command("unshare", "--mount", "--propagation", "private", os.Args[0], "-test.run=^TestPowerCut$", "-test.v", "-test.timeout=8m")
	inside.Env = append(os.Environ(), insideEnv+"=1")
	out, err := inside.CombinedOutput()
	if t.Logf("%s", out); err != nil {
		t.Error(err)
	}
}

// needReflinks skips a test where the kernel has no XFS, unless the environment says that everything must run.
func needReflinks(t *testing.T) {
	t.Helper()
	// The kernel loads what somebody mounts.
	exec.Command("modprobe", "xfs").Run()
	known, _ := os.ReadFile("/proc/filesystems")
	if bytes.Contains(known, []byte("\txfs\n")) {
		return
	}
	node.Cannot(t, "the kernel has no XFS, on which files are reflinked")
}

// host is a node whose disk can be taken away.
type host struct {
	*node.Node
	registry *hub.Hub
	// disks has the file that the disk is in, on a file system with reflinks.
	disks string
	ref   string
	refs  []string
}

func powerCut(t *testing.T) {
	h := &host{registry: hub.Start(t), disks: t.TempDir()}
	outer := filepath.Join(t.TempDir(), "disks")
	run(t, "truncate", "--size=8G", outer)
	run(t, "mkfs.xfs", "-q", "-m", "reflink=1", outer)
	run(t, "mount", "-o", "loop", outer, h.disks)
	t.Cleanup(func() { unix.Unmount(h.disks, unix.MNT_DETACH) })
	run(t, "truncate", "--size=2G", h.disk())
	run(t, "mkfs.ext4", "-q", h.disk())
	id := filepath.Join(t.TempDir(), "boot_id")
	boot(t, id)
	run(t, "mount", "--bind", id, bootID)
	t.Cleanup(func() { unix.Unmount(bootID, unix.MNT_DETACH) })
	h.Node = node.Start(t, node.Options{Generation: node.Second, Prepare: func(dir string) error { return plug(dir, h.disk()) }})

	h.ref = h.add("durable", 1)
	ctx := h.Context()
	if _, err := h.Pull(ctx, h.ref, "silk"); err != nil {
		t.Fatal(err)
	}
	h.Eventually("the first image is durable", func() error {
		out, err := h.Silk("status")
		if err == nil && bytes.Contains([]byte(out), []byte("not synced")) {
			err = errors.New(out)
		}
		return err
	})
	for seed := range int64(5) {
		h.refs = append(h.refs, h.add(fmt.Sprintf("image-%d", seed), 10*seed+10))
	}
	h.registry.SetRate(20 << 20)
	for i, cut := range h.work(t, ctx) {
		h.off()
		boot(t, id)
		if err := plug(h.Dir, cut.disk); err != nil {
			t.Fatal(err)
		}
		h.registry.SetDown(true)
		h.StartSilkd()
		h.StartContainerd()
		for _, err := range h.wrong(ctx, cut) {
			t.Errorf("cut %d: %v", i, err)
		}
	}
}

func run(t *testing.T, command ...string) {
	t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", command, err, out)
	}
}

// boot makes up another boot ID.
func boot(t *testing.T, path string) {
	t.Helper()
	id := make([]byte, 16)
	rand.Read(id)
	if err := os.WriteFile(path, fmt.Appendf(nil, "%x-%x-%x-%x-%x\n", id[:4], id[4:6], id[6:8], id[8:10], id[10:]), 0o644); err != nil {
		t.Fatal(err)
	}
}

// plug mounts a disk, and the roots of silkd and containerd from it.
func plug(dir, disk string) error {
	at := filepath.Join(dir, "disk")
	if err := os.MkdirAll(at, 0o711); err != nil {
		return err
	}
	if out, err := exec.Command("mount", "-o", "loop", disk, at).CombinedOutput(); err != nil {
		return fmt.Errorf("mounting %s: %w: %s", disk, err, out)
	}
	for _, root := range []string{"silk", "c"} {
		from, to := filepath.Join(at, root), filepath.Join(dir, root)
		err := errors.Join(os.MkdirAll(from, 0o711), os.MkdirAll(to, 0o711), unix.Mount(from, to, "", unix.MS_BIND, ""))
		if err != nil {
			return err
		}
	}
	return nil
}

// off ends all and takes the disk away; what runs on a tmpfs of a real host is gone, too.
func (h *host) off() {
	h.Silkd.Kill()
	h.Containerd.Kill()
	h.KillShims()
	for _, target := range h.Mounts() {
		unix.Unmount(target, unix.MNT_DETACH)
	}
	os.RemoveAll(filepath.Join(h.Dir, "state"))
}

func (h *host) disk() string { return filepath.Join(h.disks, "disk") }

// add makes an image of two layers whose files are noise of a seed and the next.
func (h *host) add(name string, seed int64) string {
	layers := []image.Layer{noiseLayer("one", seed, powerLayer), noiseLayer("two", seed+1, powerLayer)}
	return h.registry.Add(name, fmt.Sprint(seed), image.Image{Layers: layers}.Bundle())
}

const powerLayer = 3 << 20

// cut is a disk after the power went.
type cut struct {
	disk string
	// synced counts the snapshots that were synced and committed.
	synced int
}

// work pulls, removes and commits, and cuts the power meanwhile.
func (h *host) work(t *testing.T, ctx context.Context) (cuts []cut) {
	stop := make(chan struct{})
	var group errgroup.Group
	group.Go(func() error {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return nil
			default:
			}
			ref := h.refs[i%len(h.refs)]
			if _, err := h.Pull(ctx, ref, "silk"); err != nil {
				return fmt.Errorf("pull: %w", err)
			}
			if i%3 > 0 {
				if err := h.Client.ImageService().Delete(ctx, ref, images.SynchronousDelete()); err != nil {
					return err
				}
				if _, err := h.Silk("gc", "--keep", "0"); err != nil {
					return err
				}
			}
		}
	})
	for i := range powerCuts {
		if err := h.commit(ctx, i); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(100+37*i) * time.Millisecond)
		cuts = append(cuts, cut{filepath.Join(h.disks, fmt.Sprint("cut-", i)), i + 1})
		if err := reflink(h.disk(), cuts[i].disk); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	h.registry.SetRate(0)
	return cuts
}

// reflink takes a file as it is at one moment.
func reflink(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlFileClone(int(target.Fd()), int(source.Fd())), target.Close())
}

var rooted = snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "e2e"})

// commit makes an ordinary snapshot as containerd's own unpacking does that syncs.
func (h *host) commit(ctx context.Context, number int) error {
	service := h.Client.SnapshotService("silk")
	name := fmt.Sprint("commit-", number)
	mounts, err := service.Prepare(ctx, name+"-active", "", rooted)
	if err != nil {
		return err
	}
	err = mount.WithTempMount(ctx, mounts, func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "file"), noise(int64(number), 100_000), 0o644); err != nil {
			return err
		}
		root, err := os.Open(dir)
		if err != nil {
			return err
		}
		return errors.Join(unix.Syncfs(int(root.Fd())), root.Close())
	})
	return errors.Join(err, service.Commit(ctx, name, name+"-active", rooted))
}

// wrong tells what the host that has started on such a disk does not have, or has otherwise.
func (h *host) wrong(ctx context.Context, cut cut) (errs []error) {
	_, err := h.Silk("fsck")
	errs = append(errs, err)
	pulled, err := h.Client.GetImage(ctx, h.ref)
	if err != nil {
		return append(errs, err)
	}
	errs = append(errs, h.same(ctx, pulled.Name(), 1))
	h.registry.SetDown(false)
	for number := range cut.synced {
		errs = append(errs, h.shows(ctx, fmt.Sprint("commit-", number), map[string][]byte{"file": noise(int64(number), 100_000)}))
	}
	for i, ref := range h.refs {
		errs = append(errs, h.again(ctx, ref), h.same(ctx, ref, int64(10*i+10)))
	}
	_, err = h.Silk("fsck")
	return compact(append(errs, err))
}

func compact(errs []error) (some []error) {
	for _, err := range errs {
		if err != nil {
			some = append(some, err)
		}
	}
	return some
}

var missing = regexp.MustCompile("blob (sha256:[0-9a-f]{64})")

// again pulls an image. containerd may have lost blobs that it has recorded, since it does not sync their folder: those are not silk's.
func (h *host) again(ctx context.Context, ref string) (err error) {
	for range 10 {
		if _, err = h.Pull(ctx, ref, "silk"); err == nil {
			return nil
		}
		if lost := missing.FindStringSubmatch(err.Error()); lost != nil {
			h.Client.ContentStore().Delete(ctx, digest.Digest(lost[1]))
		}
	}
	return err
}

// same reads an image's files.
func (h *host) same(ctx context.Context, ref string, seed int64) error {
	pulled, err := h.Client.GetImage(ctx, ref)
	if err != nil {
		return err
	}
	chain, err := h.ChainID(ctx, pulled)
	if err != nil {
		return err
	}
	return h.shows(ctx, chain, map[string][]byte{"one": noise(seed, powerLayer), "two": noise(seed+1, powerLayer)})
}

// shows compares the files of a snapshot.
func (h *host) shows(ctx context.Context, snapshot string, want map[string][]byte) error {
	dir, undo, err := h.View(ctx, "silk", snapshot)
	if err != nil {
		return err
	}
	for name, content := range want {
		if got, failed := os.ReadFile(filepath.Join(dir, name)); failed != nil || !bytes.Equal(got, content) {
			err = errors.Join(err, fmt.Errorf("%s of %s has %d bytes that are not its own (%v)", name, snapshot, len(got), failed))
		}
	}
	return errors.Join(err, undo())
}
