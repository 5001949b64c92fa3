package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// cold leaves the machine as after a boot, with two exceptions that make the figures those of a node and its link: the programs
// of a node that runs containers are in memory, and so is what the registry will send.
func cold(subjects ...subject) error {
	if err := dropCaches(); err != nil {
		return err
	}
	for _, program := range []string{node.Silkd, node.Silk, node.Second.Binary, beside("containerd-shim-runc-v2"), which("runc"), which("igzip"), which("mkfs.erofs")} {
		if file, err := os.Open(program); err == nil {
			io.Copy(io.Discard, file)
			file.Close()
		}
	}
	for _, s := range subjects {
		if err := inMemory(s.bundle); err != nil {
			return err
		}
	}
	return nil
}

func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

func inMemory(bundle image.Bundle) error {
	for _, blob := range bundle.Blobs {
		content, err := blob.Open()
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, content)
		content.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func beside(name string) string { return filepath.Join(filepath.Dir(node.Second.Binary), name) }

func which(name string) string {
	path, _ := exec.LookPath(name)
	return path
}

// A share of the CPUs that others may use before a figure is called one of a busy machine.
const busyShare = 0.1

// busy measures for a moment whether the machine does something else.
func busy() bool {
	used, all := ticks()
	time.Sleep(500 * time.Millisecond)
	usedLater, allLater := ticks()
	return float64(usedLater-used) > busyShare*float64(allLater-all)
}

// ticks is the time of all CPUs since the boot, in USER_HZ.
func ticks() (used, all int64) {
	stat, _ := os.ReadFile("/proc/stat")
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	for i, field := range strings.Fields(string(line)) {
		n, _ := strconv.ParseInt(field, 10, 64)
		// user nice system idle iowait irq softirq steal; guest time is in user.
		if i > 8 || i == 0 {
			continue
		}
		all += n
		if i != 4 && i != 5 {
			used += n
		}
	}
	return used, all
}

// turn is a lock file that others on this machine lock while they use its CPUs. It is kept over several measurements, because the
// wait for it may be long, and given back now and then. No path, no lock.
type turn struct {
	path  string
	file  *os.File
	since time.Time
}

// The longest that a turn lasts before another measurement does not begin in it.
const turnLimit = time.Minute

// take waits for the lock unless this turn still lasts.
func (t *turn) take() error {
	if t.path == "" || t.file != nil && time.Since(t.since) < turnLimit {
		return nil
	}
	t.giveBack()
	file, err := os.OpenFile(t.path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	locked := make(chan error, 1)
	go func() { locked <- unix.Flock(int(file.Fd()), unix.LOCK_EX) }()
	select {
	case err = <-locked:
	case <-interrupted.Done():
		return errors.New("interrupted while waiting for " + t.path)
	}
	if err != nil {
		file.Close()
		return fmt.Errorf("lock %s: %w", t.path, err)
	}
	t.file, t.since = file, time.Now()
	return nil
}

func (t *turn) giveBack() {
	if t.file != nil {
		t.file.Close()
		t.file = nil
		time.Sleep(time.Second) // for who waits
	}
}

// environment says where and of what figures were taken, for the head of a report.
func environment() string {
	return fmt.Sprintf("%s. %s; %s; %s.\n", machine(), versionOf(node.Second.Binary, "--version"), versionOf(node.Silkd, "--version"), runtime.Version())
}

// machine says where figures were taken.
func machine() string {
	memory := fieldOf("/proc/meminfo", `MemTotal:\s+(\d+)`)
	kib, _ := strconv.ParseInt(memory, 10, 64)
	var uname unix.Utsname
	unix.Uname(&uname)
	var fs unix.Statfs_t
	unix.Statfs(os.TempDir(), &fs)
	kinds := map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs"}
	kind, ok := kinds[int64(fs.Type)]
	if !ok {
		kind = fmt.Sprintf("file system %x", fs.Type)
	}
	return fmt.Sprintf("%s, %d cores, %d GiB, Linux %s, %s", fieldOf("/proc/cpuinfo", `model name\s+: (.+)`), runtime.NumCPU(),
		kib>>20, unix.ByteSliceToString(uname.Release[:]), kind)
}

func fieldOf(path, pattern string) string {
	data, _ := os.ReadFile(path)
	if match := regexp.MustCompile(pattern).FindSubmatch(data); match != nil {
		return string(match[1])
	}
	return "unknown"
}

// versionOf asks a program for its version.
func versionOf(program string, argument ...string) string {
	out, err := exec.Command(program, argument...).CombinedOutput()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
