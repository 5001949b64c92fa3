// Package daemon starts a silkd of its own for a test.
package daemon

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

// limit is longer than a daemon takes to start or to stop on a busy machine.
const limit = 30 * time.Second

// maxMessage is containerd's own limit for gRPC messages.
const maxMessage = 16 << 20

// Daemon is a running silkd.
type Daemon struct {
	// Conn is a connection to its socket.
	Conn *grpc.ClientConn
	// Socket is the path of its socket.
	Socket string

	cmd *exec.Cmd
	log bytes.Buffer
}

// Start runs $SILKD, or the one that cargo built, on the given root and waits until it answers.
func Start(root string) (*Daemon, error) {
	return StartWith(root, "/run/containerd/containerd.sock", "")
}

// StartWith is Start with the socket of a containerd and more configuration.
func StartWith(root, containerd, more string) (*Daemon, error) {
	// A unix socket's path has at most 107 bytes; those of tests are longer.
	dir, err := os.MkdirTemp("", "silkd-")
	if err != nil {
		return nil, err
	}
	d := &Daemon{Socket: filepath.Join(dir, "s.sock")}
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("root = %q\naddress = %q\nlog = \"info\"\n%s\n[containerd]\naddress = %q\n", root, d.Socket, more, containerd)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	silkd := os.Getenv("SILKD")
	if silkd == "" {
		silkd = "../../../target/debug/silkd"
	}
	d.cmd = exec.Command(silkd, "--config", config)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	// A test that dies leaves no daemon.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := start(d.cmd); err != nil {
		return nil, err
	}
	if err := d.connect(); err != nil {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
		return nil, fmt.Errorf("silkd does not answer: %w\n%s", err, d.log.String())
	}
	return d, nil
}

type launch struct {
	cmd  *exec.Cmd
	done chan error
}

// The kernel sends a Pdeathsig when the thread that started the process ends, so one thread that never ends starts all.
var launches = sync.OnceValue(func() chan<- launch {
	requests := make(chan launch)
	go func() {
		runtime.LockOSThread()
		for request := range requests {
			request.done <- request.cmd.Start()
		}
	}()
	return requests
})

func start(cmd *exec.Cmd) error {
	done := make(chan error)
	launches() <- launch{cmd, done}
	return <-done
}

func (d *Daemon) connect() error {
	conn, err := grpc.NewClient("unix://"+d.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: limit}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return err
	}
	d.Conn = conn
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		conn.Connect()
		// Tries again at once instead of after gRPC's backoff, which grows to minutes.
		conn.ResetConnectBackoff()
		short, done := context.WithTimeout(ctx, 20*time.Millisecond)
		conn.WaitForStateChange(short, state)
		done()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// Stop ends the daemon and says when it did not end well.
func (d *Daemon) Stop() error {
	_ = d.Conn.Close()
	defer os.RemoveAll(filepath.Dir(d.Socket))
	if err := d.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return fmt.Errorf("silkd died before the test ended: %w\n%s", err, d.log.String())
	}
	ended := make(chan error, 1)
	go func() { ended <- d.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("silkd: %w\n%s", err, d.log.String())
		}
		return nil
	case <-time.After(limit):
		_ = d.cmd.Process.Kill()
		<-ended
		return fmt.Errorf("silkd did not end within %s\n%s", limit, d.log.String())
	}
}

// Kill ends the daemon as a crash would.
func (d *Daemon) Kill() {
	_ = d.Conn.Close()
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
	_ = os.RemoveAll(filepath.Dir(d.Socket))
}

// Log is what the daemon has printed. Call it after the daemon ended.
func (d *Daemon) Log() string {
	return d.log.String()
}
