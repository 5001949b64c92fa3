package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// stop ends containers, then the daemons, then undoes mounts; on failure it shows the ends of the logs.
func (n *Node) stop() {
	if n.Client != nil {
		n.removePods()
		n.RemoveContainers()
		n.Client.Close()
	}
	for _, process := range []*Process{n.Silkd, n.Containerd} {
		if process == nil {
			continue
		}
		if err := process.Stop(); err != nil {
			n.t.Error(err)
		}
		if n.t.Failed() {
			n.t.Logf("--- the end of %s's log:\n%s", process.Name, process.Tail())
		}
	}
	n.killShims()
	for _, target := range n.Mounts() {
		unix.Unmount(target, unix.MNT_DETACH)
	}
	for device := range n.Loops() {
		if file, err := os.Open(device); err == nil {
			unix.IoctlSetInt(int(file.Fd()), unix.LOOP_CLR_FD, 0)
			file.Close()
		}
	}
	removeDiskGroups(n.Dir)
	if os.Getenv("SILK_E2E_KEEP") != "" && n.t.Failed() {
		n.t.Logf("kept %s", n.Dir)
		return
	}
	if err := os.RemoveAll(n.Dir); err != nil || len(n.Mounts()) > 0 {
		n.t.Errorf("the node leaves %s behind: %v, mounts %v", n.Dir, err, n.Mounts())
	}
}

// RemoveContainers ends and removes what containers there are, of all namespaces.
func (n *Node) RemoveContainers() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	// There may be a hundred.
	var group errgroup.Group
	defer group.Wait()
	group.SetLimit(4)
	spaces, err := n.Client.NamespaceService().List(ctx)
	if err != nil {
		return
	}
	for _, space := range spaces {
		ctx := namespaces.WithNamespace(ctx, space)
		containers, _ := n.Client.Containers(ctx)
		for _, container := range containers {
			group.Go(func() error {
				if task, err := container.Task(ctx, nil); err == nil {
					task.Delete(ctx, containerd.WithProcessKill)
				}
				return container.Delete(ctx)
			})
		}
	}
}

// killShims ends shims that outlived containerd: those that were given this node's address.
func (n *Node) killShims() {
	address := []byte(filepath.Join(n.Dir, "containerd.sock"))
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		command, err := os.ReadFile(line)
		if err != nil || !bytes.Contains(command, []byte("containerd-shim")) || !bytes.Contains(command, address) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(line))); err == nil {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// Mounts lists what is mounted below the node's folder, the last mounted first.
func (n *Node) Mounts() []string { return MountsBelow(n.Dir) }

// MountsBelow lists the mount points below a folder, the last mounted first.
func MountsBelow(dir string) (targets []string) {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			targets = append(targets, fields[4])
		}
	}
	slices.Reverse(targets)
	return targets
}

// Loops lists the loop devices over files below the node's folder, with their files.
func (n *Node) Loops() map[string]string {
	loops := map[string]string{}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		backing, _ := os.ReadFile(file)
		if strings.HasPrefix(string(backing), n.Dir+"/") {
			device := filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(file))))
			loops[device] = strings.TrimSpace(string(backing))
		}
	}
	return loops
}

// LayerMounts lists the mount points of silkd's layers.
func (n *Node) LayerMounts() []string { return MountsBelow(filepath.Join(n.Dir, "silk/mnt")) }

// LayerData lists the data files of layers that silkd keeps, by diff ID.
func (n *Node) LayerData() map[string]int64 {
	sizes := map[string]int64{}
	files, _ := filepath.Glob(filepath.Join(n.Dir, "silk/layers/sha256/*/data"))
	for _, file := range files {
		if info, err := os.Stat(file); err == nil {
			sizes["sha256:"+filepath.Base(filepath.Dir(file))] = info.Size()
		}
	}
	return sizes
}

// DiskUse is what a folder's files take, holes left out. Files may go meanwhile.
func DiskUse(dir string) (bytes int64, err error) {
	err = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("disk use of %s: %w", dir, err)
	}
	return bytes, err
}
