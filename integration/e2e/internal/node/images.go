package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/runtime-spec/specs-go"

	"silk.invalid/integration/e2e/internal/tree"
)

// Pull pulls an image as a client of containerd does that wants a remote snapshotter: with the labels, unpacked into the snapshotter.
func (n *Node) Pull(ctx context.Context, ref, snapshotter string) (containerd.Image, error) {
	return Pull(ctx, n.Client, ref, snapshotter)
}

// Pull is a Node's, through a connection that the caller holds: tests that restart containerd meanwhile have several.
func Pull(ctx context.Context, client *containerd.Client, ref, snapshotter string) (containerd.Image, error) {
	return client.Pull(ctx, ref,
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(snapshotter),
		containerd.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(ref)),
		containerd.WithResolver(docker.NewResolver(docker.ResolverOptions{
			Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
		})))
}

// ChainID is the snapshot that holds an image's root file system.
func (n *Node) ChainID(ctx context.Context, image containerd.Image) (string, error) {
	diffIDs, err := image.RootFS(ctx)
	if err != nil {
		return "", err
	}
	return identity.ChainID(diffIDs).String(), nil
}

// PullChain pulls an image into silk and tells the snapshot that holds its root file system.
func (n *Node) PullChain(ctx context.Context, ref string) (string, error) {
	pulled, err := n.Pull(ctx, ref, "silk")
	if err != nil {
		return "", err
	}
	return n.ChainID(ctx, pulled)
}

// View mounts a committed snapshot and returns where; undo unmounts and removes it.
func (n *Node) View(ctx context.Context, snapshotter, chain string) (dir string, undo func() error, err error) {
	return n.ViewThrough(ctx, n.Client, snapshotter, chain)
}

// ViewThrough is View through a connection that the caller holds.
func (n *Node) ViewThrough(ctx context.Context, client *containerd.Client, snapshotter, chain string) (dir string, undo func() error, err error) {
	number := n.views.Add(1)
	key := fmt.Sprintf("view %d", number)
	service := client.SnapshotService(snapshotter)
	// Marked as a root, or containerd's garbage collection takes it away from under the mount.
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "e2e"})
	mounts, err := service.View(ctx, key, chain, root)
	if err != nil {
		return "", nil, fmt.Errorf("view of %s: %w", chain, err)
	}
	dir = filepath.Join(n.Dir, fmt.Sprintf("v%d", number))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", nil, err
	}
	if err := mount.All(mounts, dir); err != nil {
		return "", nil, fmt.Errorf("mounting %+v: %w", mounts, err)
	}
	return dir, func() error {
		if err := mount.UnmountAll(dir, 0); err != nil {
			return err
		}
		return service.Remove(ctx, key)
	}, nil
}

// CollectGarbage makes containerd collect garbage now, and waits for that. Snapshots that were removed are taken from their snapshotter
// only then, and its scheduler overlooks what was removed while it was at work.
func (n *Node) CollectGarbage() error {
	ctx := n.Context()
	service := n.Client.LeasesService()
	lease, err := service.Create(ctx, leases.WithRandomID())
	if err != nil {
		return err
	}
	return service.Delete(ctx, lease, leases.SynchronousDelete)
}

// Tree pulls an image into a snapshotter and reads its root file system.
func (n *Node) Tree(ctx context.Context, ref, snapshotter string) (result tree.Tree, err error) {
	image, err := n.Pull(ctx, ref, snapshotter)
	if err != nil {
		return nil, fmt.Errorf("pull with %s: %w", snapshotter, err)
	}
	chain, err := n.ChainID(ctx, image)
	if err != nil {
		return nil, err
	}
	return n.ReadChain(ctx, snapshotter, chain)
}

// ReadChain reads a committed snapshot completely.
func (n *Node) ReadChain(ctx context.Context, snapshotter, chain string) (result tree.Tree, err error) {
	dir, undo, err := n.View(ctx, snapshotter, chain)
	if err != nil {
		return nil, err
	}
	defer func() {
		if failed := undo(); err == nil {
			err = failed
		}
	}()
	return tree.Read(dir)
}

// RunTask starts a container of an image, without a pod around it, and waits until it says that it is ready. The node's end removes it.
func (n *Node) RunTask(ctx context.Context, name string, image containerd.Image) (containerd.Task, error) {
	return n.runTask(ctx, name, image, nil, oci.WithHostNamespace("network"))
}

// RunMappedTask starts a container in a user namespace, as RunTask else.
func (n *Node) RunMappedTask(ctx context.Context, name string, image containerd.Image, uids, gids []specs.LinuxIDMapping, command ...string) (containerd.Task, error) {
	labels := containerd.WithUserNSRemapperLabels(uids, gids)
	return n.runTask(ctx, name, image, []snapshots.Opt{labels}, oci.WithUserNamespace(uids, gids), oci.WithProcessArgs(command...))
}

func (n *Node) runTask(ctx context.Context, name string, image containerd.Image, snapshot []snapshots.Opt, spec ...oci.SpecOpts) (containerd.Task, error) {
	container, err := n.Client.NewContainer(ctx, name,
		containerd.WithImage(image),
		containerd.WithSnapshotter("silk"),
		// What a test that was killed left of a container of this name is not found there.
		containerd.WithRuntime(plugins.RuntimeRuncV2, &options.Options{Root: filepath.Join(n.Dir, "runc")}),
		containerd.WithNewSnapshot(name, image, snapshot...),
		containerd.WithNewSpec(append([]oci.SpecOpts{oci.WithImageConfig(image)}, spec...)...))
	if err != nil {
		return nil, err
	}
	log := filepath.Join(n.Dir, name+".out")
	task, err := container.NewTask(ctx, cio.LogFile(log))
	if err != nil {
		return nil, fmt.Errorf("the task of %s: %w", name, err)
	}
	if err := task.Start(ctx); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	for {
		said, _ := os.ReadFile(log)
		if strings.HasPrefix(string(said), "ready\n") {
			return task, nil
		}
		if status, err := task.Status(ctx); err != nil || status.Status == containerd.Stopped {
			return nil, fmt.Errorf("%s ended (%v): %s", name, err, said)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s never said ready: %s", name, said)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
