package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"silk.invalid/integration/e2e/internal/node"
)

// vacant fails when a snapshotter of the operator's has anything: a node would find there what it is to pull. It is asked by itself, as a
// containerd tells only of snapshots that it has made.
func vacant(ctx context.Context, c column) error {
	conn, err := grpc.NewClient("unix://"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	service := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), c.snapshotter)
	names, err := held(ctx, service, snapshots.KindCommitted, snapshots.KindActive, snapshots.KindView)
	if err != nil {
		return fmt.Errorf("the snapshotter at %s: %w", c.socket, err)
	}
	if len(names) > 0 {
		return fmt.Errorf("the snapshotter at %s is not empty (snapshots: %d, such as %q): remove them, or start it with an empty folder", c.socket, len(names), names[0])
	}
	return nil
}

// forget takes what a node brought to a snapshotter that outlives it, whatever became of the measurement: that a signal ended it, too.
func forget(n *node.Node, snapshotter string) error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "bench"), node.Deadline)
	defer cancel()
	n.RemoveContainers()
	var failed []error
	removed := func(err error) {
		if err != nil && !errdefs.IsNotFound(err) {
			failed = append(failed, err)
		}
	}
	// Containers' own, and views, which nothing else takes away.
	service := n.Client.SnapshotService(snapshotter)
	names, err := held(ctx, service, snapshots.KindActive, snapshots.KindView)
	removed(err)
	for _, name := range names {
		removed(service.Remove(ctx, name))
	}
	pulled, err := n.Client.ImageService().List(ctx)
	removed(err)
	for _, image := range pulled {
		removed(n.Client.ImageService().Delete(ctx, image.Name))
	}
	// A pull that was broken off leaves its own.
	leases, err := n.Client.LeasesService().List(ctx)
	removed(err)
	for _, lease := range leases {
		removed(n.Client.LeasesService().Delete(ctx, lease))
	}
	removed(n.CollectGarbage())
	return errors.Join(failed...)
}

// held are the names of a snapshotter's snapshots of some kinds.
func held(ctx context.Context, service snapshots.Snapshotter, kinds ...snapshots.Kind) (names []string, err error) {
	err = service.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if slices.Contains(kinds, info.Kind) {
			names = append(names, info.Name)
		}
		return nil
	})
	return names, err
}
