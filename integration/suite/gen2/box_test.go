package gen2

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs/pkg/errgrpc"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	grpcmetadata "google.golang.org/grpc/metadata"

	"silk.invalid/integration/suite/daemon"
)

const snapshotter = "silk"

// box is the part of containerd that snapshots pass through, with silkd behind it: the metadata database with its namespaces,
// leases and garbage collection, and the unpacker.
type box struct {
	t        *testing.T
	registry *registry
	db       *metadata.DB
	leases   leases.Manager
	// backend is what the database calls.
	backend *backend
	daemon  *daemon.Daemon
	root    string
	socket  string
}

// backend counts the calls that the metadata layer makes.
type backend struct {
	snapshots.Snapshotter
	prepares atomic.Int32
	// waiting is how many Stats have not returned.
	waiting atomic.Int32
}

func (b *backend) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	b.prepares.Add(1)
	return b.Snapshotter.Prepare(ctx, key, parent, opts...)
}

func (b *backend) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	return b.Snapshotter.Stat(ctx, key)
}

func (b *backend) Cleanup(ctx context.Context) error {
	return b.Snapshotter.(snapshots.Cleaner).Cleanup(ctx)
}

// config makes failures quick: what a test waits for is the answer, not the patience. For the first contact's end no test waits: it is a
// little below the snapshotter's own 5 s.
const config = `
[registry]
attempts = 2
retry_delay_ms = 10
[pull]
first_contact_millis = 4500
retry_min_secs = 0
`

func newBox(t *testing.T) *box {
	t.Helper()
	dir, err := os.MkdirTemp("", "silk-box-")
	must(t, err)
	b := &box{t: t, registry: newRegistry(t), root: filepath.Join(dir, "silk"), socket: filepath.Join(dir, "containerd.sock")}
	must(t, os.Mkdir(b.root, 0o700))
	bdb, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	must(t, err)
	store, err := local.NewStore(filepath.Join(dir, "content"))
	must(t, err)
	b.backend = &backend{}
	b.db = metadata.NewDB(bdb, store, map[string]snapshots.Snapshotter{snapshotter: b.backend})
	must(t, b.db.Init(context.Background()))
	b.leases = metadata.NewLeaseManager(b.db)
	b.serve()
	b.start()
	t.Cleanup(func() {
		if err := b.daemon.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(b.daemon.Log())
		}
		// What silkd leaves mounted for containers that outlive it.
		must(t, mount.UnmountRecursive(b.root, 0))
		bdb.Close()
		must(t, os.RemoveAll(dir))
	})
	return b
}

// start runs silkd.
func (b *box) start() {
	b.t.Helper()
	d, err := daemon.StartWith(b.root, b.socket, config)
	must(b.t, err)
	b.daemon = d
	b.backend.Snapshotter = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(d.Conn), snapshotter)
}

// serve lets silkd ask for content and leases, as containerd does.
func (b *box) serve() {
	listener, err := net.Listen("unix", b.socket)
	must(b.t, err)
	server := grpc.NewServer()
	contentapi.RegisterContentServer(server, contentserver.New(b.db.ContentStore()))
	leasesapi.RegisterLeasesServer(server, &leaseService{manager: b.leases})
	go func() { _ = server.Serve(listener) }()
	b.t.Cleanup(server.Stop)
}

// leaseService is the part of containerd's leases service that silkd uses.
type leaseService struct {
	leasesapi.UnimplementedLeasesServer
	manager leases.Manager
}

func (s *leaseService) List(ctx context.Context, _ *leasesapi.ListRequest) (*leasesapi.ListResponse, error) {
	found, err := s.manager.List(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	answer := &leasesapi.ListResponse{}
	for _, lease := range found {
		answer.Leases = append(answer.Leases, &leasesapi.Lease{ID: lease.ID, CreatedAt: protobuf.ToTimestamp(lease.CreatedAt)})
	}
	return answer, nil
}

func (s *leaseService) ListResources(ctx context.Context, r *leasesapi.ListResourcesRequest) (*leasesapi.ListResourcesResponse, error) {
	found, err := s.manager.ListResources(ctx, leases.Lease{ID: r.ID})
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	answer := &leasesapi.ListResourcesResponse{}
	for _, resource := range found {
		answer.Resources = append(answer.Resources, &leasesapi.Resource{ID: resource.ID, Type: resource.Type})
	}
	return answer, nil
}

// limit is longer than anything here takes: what is waited for longer, hangs.
const limit = time.Minute

// in is a context of a namespace.
func (b *box) in(namespace string) context.Context {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), namespace), limit)
	b.t.Cleanup(cancel)
	return ctx
}

// caller is who pulls: silkd sees the lease of one that lives in containerd, as CRI does, and does not see that of a client
// that calls containerd over gRPC.
type caller string

const (
	cri    caller = "cri"
	client caller = "client"
)

// lease is a context of a pull.
func (b *box) lease(namespace string, who caller) context.Context {
	ctx := b.in(namespace)
	lease, err := b.leases.Create(ctx, leases.WithRandomID())
	must(b.t, err)
	if who == cri {
		return leases.WithLease(ctx, lease.ID)
	}
	return grpcmetadata.NewIncomingContext(ctx, grpcmetadata.Pairs(leases.GRPCHeader, lease.ID))
}

// endLease ends the lease of a pull.
func (b *box) endLease(ctx context.Context) {
	id, _ := leases.FromContext(ctx)
	namespace, _ := namespaces.Namespace(ctx)
	must(b.t, b.leases.Delete(b.in(namespace), leases.Lease{ID: id}))
}

// snapshots are those of the metadata database.
func (b *box) snapshots() snapshots.Snapshotter { return b.db.Snapshotter(snapshotter) }

// fetch puts manifest and configuration into the content store, as a pull does before it unpacks. The layers stay away.
func (b *box) fetch(ctx context.Context, img *image) {
	b.t.Helper()
	layers := map[string]bool{}
	for _, layer := range img.layers {
		layers[layer.Digest.String()] = true
	}
	for d, data := range img.blobs {
		if layers[d.String()] {
			continue
		}
		desc := ocispec.Descriptor{Digest: d, Size: int64(len(data))}
		must(b.t, content.WriteBlob(ctx, b.db.ContentStore(), d.String(), bytes.NewReader(data), desc))
	}
}

var errApply = errors.New("the unpacker wants to unpack a layer by itself")

type noApplier struct{}

func (noApplier) Apply(context.Context, ocispec.Descriptor, []mount.Mount, ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, errApply
}

// unpack runs containerd's unpacker on the image as a pull does; it fails when silkd leaves a layer to containerd.
func (b *box) unpack(ctx context.Context, img *image) error {
	b.fetch(ctx, img)
	store := b.db.ContentStore()
	unpacker, err := unpack.NewUnpacker(ctx, store, unpack.WithUnpackPlatform(unpack.Platform{
		SnapshotterKey: snapshotter,
		Snapshotter:    b.snapshots(),
		Applier:        noApplier{},
	}))
	if err != nil {
		return err
	}
	children := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsLayerType(desc.MediaType) {
			return nil, nil
		}
		return images.Children(ctx, store, desc)
	})
	handler := unpacker.Unpack(snapshotters.AppendInfoHandlerWrapper(img.ref)(children))
	if err := images.Dispatch(ctx, handler, nil, img.manifest); err != nil {
		return err
	}
	_, err = unpacker.Wait()
	return err
}

// pull unpacks in the background.
func (b *box) pull(ctx context.Context, img *image) <-chan error {
	done := make(chan error, 1)
	go func() { done <- b.unpack(ctx, img) }()
	return done
}

// waits returns when as many Stats as given wait for layers.
func (b *box) waits(count int32, pulls ...<-chan error) {
	b.t.Helper()
	deadline := time.Now().Add(limit)
	// Half a second: an unpacker's Stats of lower layers pass by sooner, and those that wait stay.
	for steady := 0; steady < 50; time.Sleep(10 * time.Millisecond) {
		if b.backend.waiting.Load() == count {
			steady++
		} else {
			steady = 0
		}
		for _, pull := range pulls {
			select {
			case err := <-pull:
				b.t.Fatalf("a pull ended instead of waiting: %v", err)
			default:
			}
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%d Stats wait, not %d", b.backend.waiting.Load(), count)
		}
	}
}

// walk lists the names of a namespace's snapshots.
func (b *box) walk(namespace string) map[string]snapshots.Info {
	b.t.Helper()
	found := map[string]snapshots.Info{}
	must(b.t, b.snapshots().Walk(b.in(namespace), func(_ context.Context, info snapshots.Info) error {
		found[info.Name] = info
		return nil
	}))
	return found
}

// behind lists silkd's own snapshots.
func (b *box) behind() map[string]snapshots.Info {
	b.t.Helper()
	found := map[string]snapshots.Info{}
	must(b.t, b.backend.Walk(b.in("any"), func(_ context.Context, info snapshots.Info) error {
		found[info.Name] = info
		return nil
	}))
	return found
}

// collect runs containerd's garbage collection.
func (b *box) collect() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := b.db.GarbageCollect(ctx)
	must(b.t, err)
}

// check mounts a chain and compares its files.
func (b *box) check(ctx context.Context, chain string, files ...string) {
	b.t.Helper()
	key := "check " + chain
	mounts, err := b.snapshots().View(ctx, key, chain)
	must(b.t, err)
	dir := b.t.TempDir()
	must(b.t, mount.All(mounts, dir))
	var found []string
	entries, err := os.ReadDir(dir)
	must(b.t, err)
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		must(b.t, err)
		if string(data) != entry.Name() {
			b.t.Errorf("%s holds %q", entry.Name(), data)
		}
		found = append(found, entry.Name())
	}
	must(b.t, mount.UnmountAll(dir, 0))
	must(b.t, b.snapshots().Remove(ctx, key))
	if len(found) != len(files) {
		b.t.Fatalf("chain %s shows %v, not %v", chain, found, files)
	}
	for i := range files {
		if found[i] != files[i] {
			b.t.Fatalf("chain %s shows %v, not %v", chain, found, files)
		}
	}
}

// each runs a test for both kinds of callers.
func each(t *testing.T, test func(t *testing.T, b *box, who caller)) {
	for _, who := range []caller{cri, client} {
		t.Run(string(who), func(t *testing.T) {
			t.Parallel()
			test(t, newBox(t), who)
		})
	}
}
