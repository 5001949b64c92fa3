// Package node runs a scratch containerd with silkd as its snapshotter: plain processes, everything under one folder.
package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"text/template"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"silk.invalid/integration/e2e/internal/scope"
)

// Options of a node.
type Options struct {
	Generation Generation
	// Rung is how layers are mounted: "auto", "file", "loop" or "tree".
	Rung string
	// Sandbox is the image of CRI's pause container.
	Sandbox string
	// Transfer makes CRI of a 2.x pull through the transfer service, and not by itself.
	Transfer bool
	// Stall is how many seconds a body may be silent before silkd asks anew; 0 is 2. Tests that count bytes, none of which stop,
	// take Patient: some would come twice when the machine pauses.
	Stall int
	// Extra is appended to silkd's configuration, PullExtra to its [pull].
	Extra, PullExtra string
	// RemapIDs tells containerd that silk maps the owners of files by itself.
	RemapIDs bool
	// PodIDs puts pods in user namespaces with these users and groups.
	PodIDs *runtime.IDMapping
	// Runc is what CRI of a 2.x runs containers with; empty is the machine's.
	Runc string
	// Snapshotter is what CRI of a 2.x takes; empty is silk.
	Snapshotter string
	// KeepGarbage makes containerd collect garbage only when it is told to, and not some 250 ms after anything was deleted.
	KeepGarbage bool
	// Config and Settings are containerd's and silkd's configuration, templates as in config.go, instead of those for tests.
	Config, Settings string
	// Alone leaves silkd away.
	Alone bool
	// Prepare runs before any process starts.
	Prepare func(dir string) error
	// DiskRate gives silkd a disk of its own that writes so many bytes a second; 0 is the machine's.
	DiskRate int64
	// DiskSize gives silkd a disk of its own of so many bytes; 0 is the machine's.
	DiskSize int64
}

// Node is a running pair of containerd and silkd.
type Node struct {
	Options
	Dir        string
	Containerd *Process
	Silkd      *Process
	Client     *containerd.Client
	Images     runtime.ImageServiceClient
	Pods       runtime.RuntimeServiceClient

	t     scope.Scope
	mu    sync.Mutex
	pods  []string
	views atomic.Int64
	limit func(pid int) error
}

// Start brings the node up and takes it down, with all that it mounted, when the test ends.
func Start(t scope.Scope, options Options) *Node {
	t.Helper()
	if options.Rung == "" {
		options.Rung = "auto"
	}
	if options.DiskRate > 0 {
		needDiskLimit(t)
	}
	// Not t.TempDir: its names are long, and unix sockets' paths and overlay's options are short.
	dir, err := os.MkdirTemp("", "silk-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{Options: options, Dir: dir, t: t}
	t.Cleanup(n.stop)
	for _, folder := range []string{"cni", "certs.d", "silk"} {
		n.must(os.Mkdir(filepath.Join(dir, folder), 0o711))
	}
	n.must(os.WriteFile(filepath.Join(dir, "containerd.toml"), []byte(n.render(options.Config, options.Generation.config)), 0o600))
	n.must(os.WriteFile(filepath.Join(dir, "silkd.toml"), []byte(n.render(options.Settings, silkdConfig)), 0o600))
	// For kubelet: containerd 1.6, and 1.7 before 1.7.16, take no other place for that of silk's images.
	if options.Generation.Name == Packaged.Name {
		n.must(os.Mkdir(filepath.Join(dir, "c"), 0o711))
		n.must(os.Symlink(filepath.Join(dir, "silk"), filepath.Join(dir, "c", "io.containerd.snapshotter.v1.silk")))
	}
	if options.Prepare != nil {
		n.must(options.Prepare(dir))
	}
	n.startContainerd()
	if options.DiskSize > 0 {
		n.must(ownDisk(dir, options.DiskSize, "loop"))
	}
	if options.DiskRate > 0 {
		n.limit, err = slowDisk(dir, options.DiskRate)
		n.must(err)
	}
	if !options.Alone {
		n.StartSilkd()
	}
	n.connect()
	return n
}

func (n *Node) render(text string, otherwise *template.Template) string {
	if text != "" {
		otherwise = parse(text)
	}
	return render(otherwise, n)
}

func (n *Node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *Node) startContainerd() {
	n.t.Helper()
	var err error
	n.Containerd, err = startProcess(n.Dir, "containerd", n.Generation.Binary, "--config", filepath.Join(n.Dir, "containerd.toml"))
	n.must(err)
}

// RestartContainerd kills containerd, starts it, and waits until it answers. Containers go on.
func (n *Node) RestartContainerd() {
	n.t.Helper()
	n.Containerd.Kill()
	n.Client.Close()
	n.startContainerd()
	n.connect()
}

// StartSilkd starts silkd and waits for its socket to answer.
func (n *Node) StartSilkd() {
	n.t.Helper()
	var err error
	n.Silkd, err = startProcess(n.Dir, "silkd", Silkd, "--config", filepath.Join(n.Dir, "silkd.toml"))
	n.must(err)
	if n.limit != nil {
		n.must(n.limit(n.Silkd.Pid()))
	}
	n.Eventually("silkd answers", func() error {
		select {
		case <-n.Silkd.Exited():
			n.t.Fatalf("silkd ended at once:\n%s", n.Silkd.Tail())
		default:
		}
		_, err := n.Silk("status", "--json")
		return err
	})
}

// Reconnected waits until containerd, which tries again only after a moment when a silkd has gone, reaches the next one; key is a
// snapshot that it has.
func (n *Node) Reconnected(ctx context.Context, key string) {
	n.t.Helper()
	n.Eventually("containerd reaches the next silkd", func() error {
		_, err := n.Client.SnapshotService("silk").Stat(ctx, key)
		return err
	})
}

// The programs under test.
var (
	Silkd = env("SILKD", built("silkd"))
	Silk  = env("SILK", built("silk"))
)

func built(name string) string {
	path, _ := filepath.Abs(filepath.Join("../../target/debug", name))
	return path
}

// Silk runs the operator's tool against this node and returns what it printed.
func (n *Node) Silk(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, Silk, append([]string{
		"--address", filepath.Join(n.Dir, "silk.sock"),
		"--containerd", filepath.Join(n.Dir, "containerd.sock"),
		"--config", filepath.Join(n.Dir, "silkd.toml"),
	}, args...)...)
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		err = fmt.Errorf("silk %v: %w: %s", args, err, exit.Stderr)
	}
	return string(out), err
}

func (n *Node) connect() {
	n.t.Helper()
	n.Eventually("containerd answers", func() error {
		client, err := containerd.New(filepath.Join(n.Dir, "containerd.sock"), containerd.WithTimeout(2*time.Second))
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if _, err := client.Version(ctx); err != nil {
			client.Close()
			return err
		}
		n.Client = client
		return nil
	})
	conn, err := grpc.NewClient("unix://"+filepath.Join(n.Dir, "containerd.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	n.must(err)
	n.Images = runtime.NewImageServiceClient(conn)
	n.Pods = runtime.NewRuntimeServiceClient(conn)
	if n.Config == "" {
		n.Eventually("CRI answers", func() error {
			_, err := n.Pods.Version(context.Background(), &runtime.VersionRequest{})
			return err
		})
	}
}

// Eventually tries until there is no error, for at most a minute.
func (n *Node) Eventually(what string, try func() error) {
	n.t.Helper()
	within(n.t, time.Minute, what, try)
}

// Eventually tries until there is no error, for at most a minute.
func Eventually(t scope.Scope, what string, try func() error) {
	t.Helper()
	within(t, time.Minute, what, try)
}

// Settled is Eventually for what silkd does when nobody needs it any more: it looks once a minute.
func (n *Node) Settled(what string, try func() error) {
	n.t.Helper()
	within(n.t, 3*time.Minute, what, try)
}

func within(t scope.Scope, limit time.Duration, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", limit, what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Context is one of the test's namespace with a deadline: nothing here may hang.
func (n *Node) Context() context.Context { return Context(n.t, "e2e") }

// Patient is a Stall with which silkd asks nothing anew. Chosen: longer than any machine pauses.
const Patient = 60

// Deadline is that of a Context.
const Deadline = 4 * time.Minute

// Context is one of a containerd namespace with the usual deadline.
func Context(t scope.Scope, namespace string) context.Context {
	return ContextFor(t, namespace, Deadline)
}

// ContextFor is one of a containerd namespace with a deadline of its own.
func ContextFor(t scope.Scope, namespace string, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), namespace), limit)
	t.Cleanup(cancel)
	return ctx
}

// StartContainerd starts containerd again.
func (n *Node) StartContainerd() {
	n.t.Helper()
	if n.Client != nil {
		n.Client.Close()
	}
	var err error
	n.Containerd, err = startProcess(n.Dir, "containerd", n.Generation.Binary, "--config", filepath.Join(n.Dir, "containerd.toml"))
	n.must(err)
	n.connect()
}

// KillShims ends them.
func (n *Node) KillShims() { n.killShims() }
