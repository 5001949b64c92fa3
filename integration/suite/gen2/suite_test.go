// Package gen2 runs the conformance suite for snapshotters that containerd 2 has against silkd: a daemon and a root
// for each of its tests.
package gen2

import (
	"context"
	"flag"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	_ "github.com/containerd/containerd/v2/pkg/testutil" // defines -test.root

	"silk.invalid/integration/suite/daemon"
)

func TestSnapshotter(t *testing.T) {
	if err := flag.Set("test.root", "true"); err != nil {
		t.Fatal(err)
	}
	// The name of containerd's own overlay snapshotter: the suite knows by it what no overlay file system can do.
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		d, err := daemon.Start(root)
		if err != nil {
			return nil, nil, err
		}
		return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(d.Conn), "silk"), d.Stop, nil
	})
}
