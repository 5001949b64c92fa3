package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/tree"
)

// Two ranges each, so that owners of Debian's files are in both; what has no ID there is nobody's.
var (
	hostUIDs = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100_000, Size: 30}, {ContainerID: 30, HostID: 300_000, Size: 65_000}}
	hostGIDs = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200_000, Size: 40}, {ContainerID: 40, HostID: 500_000, Size: 65_000}}
)

// hostID is the ID that the host has for one of the container.
func hostID(id uint32, ranges []specs.LinuxIDMapping) uint32 {
	for _, r := range ranges {
		if id >= r.ContainerID && id-r.ContainerID < r.Size {
			return r.HostID + id - r.ContainerID
		}
	}
	return 65534
}

// mounted prepares a container's snapshot for a user namespace and mounts it.
func mounted(t *testing.T, n *node.Node, ctx context.Context, snapshotter, key, chain string) string {
	t.Helper()
	service := n.Client.SnapshotService(snapshotter)
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "e2e"})
	if _, err := service.Prepare(ctx, key, chain, containerd.WithUserNSRemapperLabels(hostUIDs, hostGIDs), root); err != nil {
		t.Fatal(err)
	}
	return mountOf(t, n, ctx, snapshotter, key)
}

// mountOf mounts what the snapshotter says of a snapshot; the test's end unmounts it.
func mountOf(t *testing.T, n *node.Node, ctx context.Context, snapshotter, key string) string {
	t.Helper()
	mounts, err := n.Client.SnapshotService(snapshotter).Mounts(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(n.Dir, "m")
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.All(mounts, dir); err != nil {
		t.Fatalf("mounting %+v: %v", mounts, err)
	}
	t.Cleanup(func() { mount.UnmountAll(dir, unix.MNT_DETACH) })
	return dir
}

// open lets runc in: in a user namespace its way to the root file system is that of a stranger.
func open(dir string) error { return os.Chmod(dir, 0o711) }

// nothingMapped waits until silkd keeps no mounts for user namespaces.
func nothingMapped(t *testing.T, n *node.Node) {
	t.Helper()
	n.Eventually("nothing is left for user namespaces", func() error {
		if err := n.CollectGarbage(); err != nil {
			return err
		}
		dir := filepath.Join(n.Dir, "silk/mapped")
		left, err := os.ReadDir(dir)
		if mounts := node.MountsBelow(dir); err == nil && (len(mounts) > 0 || len(left) > 0) {
			return fmt.Errorf("there are %v, and mounts %v", left, mounts)
		}
		return err
	})
}

// With the capability remap-ids each image's root file system, as a user namespace with two ranges has it, is the same from containerd's
// overlayfs and from silk, on each rung: owners, modes, content and attributes.
func TestUserNamespaceTreesEqualOverlayfs(t *testing.T) {
	registry := hub.Start(t)
	all := []specimen{{name: "debian", ref: registry.Add("real/debian", "1", realImage(t, "debian"))}}
	layers, err := realImage(t, "debian").Entries()
	if err != nil {
		t.Fatal(err)
	}
	all[0].madeUp = image.TimesMadeUp(layers...)
	for _, c := range image.Adversarial() {
		// A map is the same for many, and they take 20 s on each rung.
		if c.Name != "a hundred thousand entries" {
			all = append(all, adversarial(registry, c))
		}
	}
	want := map[string]tree.Tree{}
	for _, rung := range []string{"file", "loop", "tree"} {
		t.Run(rung, func(t *testing.T) {
			n := node.Start(t, node.Options{Generation: node.Second, Rung: rung, RemapIDs: true})
			ctx := node.Context(t, "e2e")
			for _, s := range all {
				t.Run(s.name, func(t *testing.T) {
					if want[s.name] == nil {
						want[s.name] = mappedTree(t, n, ctx, s, "overlayfs")
					}
					got := mappedTree(t, n, ctx, s, "silk")
					if state, message := n.ImageState(s.ref); state != "ready" {
						t.Errorf("silk did not serve it: %s %s", state, message)
					}
					for _, line := range tree.Diff(want[s.name], got, s.madeUp) {
						t.Error(line)
					}
				})
			}
			nothingMapped(t, n)
		})
	}
}

// Layers that containerd unpacked into silk are directories, which are mapped as those that silk pulled.
func TestUserNamespaceOnUnpackedLayers(t *testing.T) {
	registry := hub.Start(t)
	bundle := realImage(t, "debian")
	layers, err := bundle.Entries()
	if err != nil {
		t.Fatal(err)
	}
	s := specimen{"debian", registry.Add("real/debian", "1", bundle), image.TimesMadeUp(layers...)}
	n := node.Start(t, node.Options{Generation: node.Second, RemapIDs: true})
	ctx := node.Context(t, "e2e")
	want := mappedTree(t, n, ctx, s, "overlayfs")
	// The image is there, so this takes its blobs, and sends no labels.
	pulled, err := n.Client.GetImage(ctx, s.ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := pulled.Unpack(ctx, "silk"); err != nil {
		t.Fatal(err)
	}
	if mounts := n.LayerMounts(); len(mounts) > 0 {
		t.Fatalf("silk pulled it: %v", mounts)
	}
	for _, line := range tree.Diff(want, mappedTree(t, n, ctx, s, "silk"), s.madeUp) {
		t.Error(line)
	}
	nothingMapped(t, n)
}

// podIDs are as kubelet gives them to a pod with hostUsers: false: one range, the same for users and groups.
var podIDs = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 400_000, Size: 65_536}}

// kubelet's way: a pod in a user namespace. Its container starts on an image that is not whole yet, though silkd was killed after the
// container was made, and sees what it sees on containerd's overlayfs; so does the next one in the pod; and with the pod all is gone.
// Without the capability remap-ids they see the same, of a copy.
func TestUserNamespacePod(t *testing.T) {
	registry := hub.Start(t)
	ref := registry.Add("app", "1", realImage(t, "debian"))
	fleet := node.StartRedis(t)
	teacher := startUserPod(t, registry, node.Options{Snapshotter: "overlayfs", Extra: fleet.Config()})
	teacher.create(t, 0, ref)
	teacher.start(t)
	want := teacher.look(t)
	if _, err := teacher.Pull(teacher.Context(), ref, "silk"); err != nil {
		t.Fatal(err)
	}
	teacher.Eventually("the fleet knows its layers", func() error { return fleet.Knows(teacher.Node, ref) })
	for _, rung := range []string{"file", "loop", "tree"} {
		t.Run(rung, func(t *testing.T) {
			p := startUserPod(t, registry, node.Options{Rung: rung, RemapIDs: true, Extra: fleet.Config()})
			p.checkSandbox(t)
			// Six connections take some 16 s for all of it: the container is to start before.
			registry.SetRate(512 << 10)
			defer registry.SetRate(0)
			p.create(t, 0, ref)
			p.Silkd.Kill()
			p.StartSilkd()
			p.Reconnected(p.ctx, p.container)
			p.start(t)
			if whole(p.Node, ref) == nil {
				t.Error("the image was whole before the container was ready: nothing was lazy")
			}
			checkWritten(t, p.Node, podIDs, podIDs)
			registry.SetRate(0)
			p.checkLook(t, want)
			p.remove(t)
			p.create(t, 1, ref)
			p.start(t)
			p.checkLook(t, want)
			p.Eventually("the first container's mounts are gone", func() error {
				if err := p.CollectGarbage(); err != nil {
					return err
				}
				left, err := os.ReadDir(filepath.Join(p.Dir, "silk/mapped"))
				if err == nil && len(left) != 2 {
					return fmt.Errorf("the sandbox's and the second container's are %v", left)
				}
				return err
			})
			if err := p.RemovePod(p.ctx, p.id); err != nil {
				t.Error(err)
			}
			nothingMapped(t, p.Node)
		})
	}
	t.Run("copy", func(t *testing.T) {
		p := startUserPod(t, registry, node.Options{Extra: fleet.Config()})
		p.create(t, 0, ref)
		p.start(t)
		checkWritten(t, p.Node, podIDs, podIDs)
		p.checkLook(t, want)
		nothingMapped(t, p.Node)
	})
}

// userPod is a pod in a user namespace on a node of its own, with its container.
type userPod struct {
	*node.Node
	ctx           context.Context
	id, container string
	sandbox       *runtime.PodSandboxConfig
}

func startUserPod(t *testing.T, registry *hub.Hub, options node.Options) *userPod {
	t.Helper()
	options.Generation, options.Runc = node.Second, node.NewRunc
	options.PodIDs = &runtime.IDMapping{HostId: podIDs[0].HostID, Length: podIDs[0].Size}
	options.Prepare = func(dir string) error { return errors.Join(open(dir), node.NoNetwork(dir)) }
	p := &userPod{Node: withPods(t, registry, options), ctx: node.Context(t, "k8s.io")}
	var err error
	if p.id, p.sandbox, err = p.RunPod(p.ctx, "mapped"); err != nil {
		t.Fatal(err)
	}
	return p
}

// checkSandbox looks at the one layer of the sandbox, which has one file.
func (p *userPod) checkSandbox(t *testing.T) {
	t.Helper()
	// A layer that became whole meanwhile is mapped again, over itself.
	mapped := slices.Compact(node.MountsBelow(filepath.Join(p.Dir, "silk/mapped")))
	if len(mapped) != 1 {
		t.Fatalf("the sandbox has one layer, and %v is mapped", mapped)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(mapped[0], "guest"), &st); err != nil || st.Uid != podIDs[0].HostID || st.Gid != podIDs[0].HostID {
		t.Errorf("its program is of %d:%d (%v)", st.Uid, st.Gid, err)
	}
}

// create pulls the image and makes the container, as kubelet does, after so many others.
func (p *userPod) create(t *testing.T, attempt uint32, ref string) {
	t.Helper()
	err := p.PullCRI(p.ctx, ref)
	if err == nil {
		p.container, err = p.CreateContainer(p.ctx, p.id, p.sandbox, attempt, ref, "/bin/sh", "-c", lookAround)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (p *userPod) start(t *testing.T) {
	t.Helper()
	if err := p.StartContainer(p.ctx, p.container); err != nil {
		t.Fatal(err)
	}
}

// remove kills the container and removes it.
func (p *userPod) remove(t *testing.T) {
	t.Helper()
	if _, err := p.Pods.RemoveContainer(p.ctx, &runtime.RemoveContainerRequest{ContainerId: p.container}); err != nil {
		t.Fatal(err)
	}
}

// look is what the container's user sees of its root file system, but for the sizes of directories, which each snapshotter has of its own,
// and hard links, which a copy breaks.
func (p *userPod) look(t *testing.T) []string {
	t.Helper()
	said, err := p.Exec(p.ctx, p.container, "/bin/sh", "-c", `set -e
find / -xdev -type d -printf '%p %M %U:%G\n' -o -printf '%p %M %U:%G %s %l\n'
find / -xdev -type f -exec sha256sum {} +`)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(said, "\n")
	slices.Sort(lines)
	return lines
}

func (p *userPod) checkLook(t *testing.T, want []string) {
	t.Helper()
	got := p.look(t)
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("the container sees %q, on overlayfs %q", got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Errorf("the container sees %d lines, on overlayfs %d", len(got), len(want))
	}
}

// mappedTree reads an image as a user namespace has it, and checks its owners against those of the image.
func mappedTree(t *testing.T, n *node.Node, ctx context.Context, s specimen, snapshotter string) tree.Tree {
	t.Helper()
	plain, err := n.Tree(ctx, s.ref, snapshotter)
	if err != nil {
		t.Fatal(err)
	}
	pulled, err := n.Client.GetImage(ctx, s.ref)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := n.ChainID(ctx, pulled)
	if err != nil {
		t.Fatal(err)
	}
	dir := mounted(t, n, ctx, snapshotter, "mapped", chain)
	got, err := tree.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(plain) {
		t.Errorf("%s shows %d names to a user namespace, %d without", snapshotter, len(got), len(plain))
	}
	for name, node := range plain {
		// The root is the upper directory: the container's root's, whosever it is in the image.
		uid, gid := hostID(node.UID, hostUIDs), hostID(node.GID, hostGIDs)
		if name == "." {
			uid, gid = hostID(0, hostUIDs), hostID(0, hostGIDs)
		}
		if node.Target == "listed, but not there" {
			continue
		}
		if got[name].UID != uid || got[name].GID != gid {
			t.Errorf("%s: %q of %d:%d is %d:%d, want %d:%d", snapshotter, name, node.UID, node.GID, got[name].UID, got[name].GID, uid, gid)
		}
	}
	if err := mount.UnmountAll(dir, 0); err != nil {
		t.Error(err)
	}
	if err := n.Client.SnapshotService(snapshotter).Remove(ctx, "mapped"); err != nil {
		t.Error(err)
	}
	return got
}

// The user of a container looks around, writes a file, and stays.
const lookAround = `set -e
echo "$(id -u):$(id -g)" >/tmp/me
stat -c '%u:%g %a' /etc/shadow >/tmp/shadow
cat /proc/self/uid_map >/tmp/map
echo new >/etc/new
chown 33:33 /etc/new
echo appended >>/etc/passwd
echo ready
sleep 600`

// A container in a user namespace starts on an image that is not whole yet, sees itself as root and the image's owners as they are in the
// image, and writes; a silkd that was killed mounts it again; and with its removal all is gone.
func TestUserNamespaceContainer(t *testing.T) {
	registry := hub.Start(t)
	debian := realImage(t, "debian")
	ref := registry.Add("app", "1", debian)
	fleet := node.StartRedis(t)
	teacher := node.Start(t, node.Options{Generation: node.Second, Extra: fleet.Config()})
	if _, err := teacher.Pull(teacher.Context(), ref, "silk"); err != nil {
		t.Fatal(err)
	}
	teacher.Eventually("the fleet knows its layers", func() error { return fleet.Knows(teacher, ref) })
	for _, rung := range []string{"file", "loop", "tree"} {
		t.Run(rung, func(t *testing.T) {
			registry.SetRate(512 << 10)
			n := node.Start(t, node.Options{Generation: node.Second, Rung: rung, RemapIDs: true, Extra: fleet.Config(), Prepare: open})
			ctx := node.Context(t, "e2e")
			pulled, err := n.Pull(ctx, ref, "silk")
			if err != nil {
				t.Fatal(err)
			}
			task, err := n.RunMappedTask(ctx, "mapped", pulled, hostUIDs, hostGIDs, "/bin/sh", "-c", lookAround)
			if err != nil {
				t.Fatal(err)
			}
			if whole(n, ref) == nil {
				t.Error("the image was whole before the container was ready: nothing was lazy")
			}
			checkWritten(t, n, hostUIDs, hostGIDs)
			registry.SetRate(0)
			n.Eventually("every layer is whole", func() error { return whole(n, ref) })
			again := mountOf(t, n, ctx, "silk", "mapped")
			n.Silkd.Kill()
			n.StartSilkd()
			if dead := node.MountsBelow(filepath.Join(n.Dir, "silk/mapped")); rung == "tree" && len(dead) > 0 {
				t.Errorf("what the killed silkd served is still there: %v", dead)
			}
			checkOwners(t, again, rung == "tree")
			n.Reconnected(ctx, "mapped")
			checkOwners(t, mountOf(t, n, ctx, "silk", "mapped"), false)
			if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
				t.Error(err)
			}
			container, err := n.Client.LoadContainer(ctx, "mapped")
			if err != nil {
				t.Fatal(err)
			}
			if err := container.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
				t.Error(err)
			}
			nothingMapped(t, n)
		})
	}
}

// checkWritten looks at the files that lookAround wrote, from the host.
func checkWritten(t *testing.T, n *node.Node, uids, gids []specs.LinuxIDMapping) {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(n.Dir, "silk/snapshots/*/fs/tmp/me"))
	if len(found) != 1 {
		t.Fatalf("the container's files are %v", found)
	}
	upper := filepath.Dir(filepath.Dir(found[0]))
	for name, want := range map[string]string{"tmp/me": "0:0\n", "tmp/shadow": "0:42 640\n"} {
		if said, err := os.ReadFile(filepath.Join(upper, name)); string(said) != want {
			t.Errorf("the container says %q of %s, want %q (%v)", said, name, want, err)
		}
	}
	if said, _ := os.ReadFile(filepath.Join(upper, "tmp/map")); !strings.Contains(string(said), fmt.Sprint(uids[len(uids)-1].HostID)) {
		t.Errorf("the container's map is %q", said)
	}
	for name, want := range map[string][2]uint32{
		"etc/new":    {hostID(33, uids), hostID(33, gids)},
		"etc/passwd": {hostID(0, uids), hostID(0, gids)},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(upper, name), &st); err != nil || [2]uint32{st.Uid, st.Gid} != want {
			t.Errorf("%s is of %d:%d, want %v (%v)", name, st.Uid, st.Gid, want, err)
		}
	}
}

// checkOwners looks at the image's files in a mount of the container's snapshot; dead are those whose server was killed.
func checkOwners(t *testing.T, dir string, dead bool) {
	t.Helper()
	var st unix.Stat_t
	err := unix.Lstat(filepath.Join(dir, "etc/shadow"), &st)
	if dead {
		return
	}
	if want := [2]uint32{hostID(0, hostUIDs), hostID(42, hostGIDs)}; err != nil || [2]uint32{st.Uid, st.Gid} != want {
		t.Errorf("etc/shadow is of %d:%d, want %v (%v)", st.Uid, st.Gid, want, err)
	}
	if _, err := os.ReadFile(filepath.Join(dir, "etc/debian_version")); err != nil {
		t.Error(err)
	}
}

// Without the capability containerd makes a copy with other owners, of which silk maps nothing again.
func TestUserNamespaceOnACopy(t *testing.T) {
	registry := hub.Start(t)
	ref := registry.Add("app", "1", realImage(t, "debian"))
	eachGeneration(t, func(t *testing.T, generation node.Generation) {
		n := node.Start(t, node.Options{Generation: generation, Prepare: open})
		ctx := node.Context(t, "e2e")
		pulled, err := n.Pull(ctx, ref, "silk")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.RunMappedTask(ctx, "copied", pulled, hostUIDs, hostGIDs, "/bin/sh", "-c", lookAround); err != nil {
			t.Fatal(err)
		}
		checkOwners(t, mountOf(t, n, ctx, "silk", "copied"), false)
		nothingMapped(t, n)
	})
}
