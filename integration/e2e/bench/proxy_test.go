package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
)

// lister is a snapshotter that has some snapshots.
type lister struct {
	snapshotsapi.UnimplementedSnapshotsServer
	infos []*snapshotsapi.Info
}

func (l *lister) List(_ *snapshotsapi.ListSnapshotsRequest, stream snapshotsapi.Snapshots_ListServer) error {
	return stream.Send(&snapshotsapi.ListSnapshotsResponse{Info: l.infos})
}

// A snapshotter of the operator's that has anything is refused, and so is a socket where nobody answers.
func TestVacant(t *testing.T) {
	c := column{name: "theirs", snapshotter: "theirs", socket: filepath.Join(t.TempDir(), "s")}
	if err := vacant(t.Context(), c); err == nil {
		t.Error("nobody answers, and that is as good as an empty one")
	}
	listener, err := net.Listen("unix", c.socket)
	if err != nil {
		t.Fatal(err)
	}
	theirs, server := &lister{}, grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, theirs)
	go server.Serve(listener)
	defer server.Stop()
	if err := vacant(t.Context(), c); err != nil {
		t.Errorf("an empty one: %v", err)
	}
	theirs.infos = []*snapshotsapi.Info{{Name: "bench/1/sha256:abc", Kind: snapshotsapi.Kind_COMMITTED}}
	if err := vacant(t.Context(), c); err == nil || !strings.Contains(err.Error(), `(snapshots: 1, such as "bench/1/sha256:abc")`) {
		t.Errorf("one that is not empty: %v", err)
	}
}
