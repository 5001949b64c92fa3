// Package gen1 runs the conformance suite for snapshotters that containerd 1.6 has, the generation that Debian 12
// ships, against silkd: a daemon and a root for each of its tests.
package gen1

import (
	"context"
	"flag"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	_ "github.com/containerd/containerd/pkg/testutil" // defines -test.root
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"

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
