package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"silk.invalid/integration/e2e/internal/scope"
)

// ownDisk puts a file system of its own on silkd's root.
func ownDisk(dir string, size int64, options string) error {
	image, root := filepath.Join(dir, "disk.img"), filepath.Join(dir, "silk")
	for _, command := range [][]string{
		{"truncate", "-s", fmt.Sprint(size), image},
		{"mkfs.ext4", "-q", "-m", "0", image},
		{"mount", "-o", options, image, root},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", command, err, out)
		}
	}
	return nil
}

// slowDisk puts a file system of its own on silkd's root, whose every write waits for a disk of so many bytes a second. It returns how
// to put a process under that limit.
func slowDisk(dir string, bytesPerSecond int64) (limit func(pid int) error, err error) {
	root := filepath.Join(dir, "silk")
	if err := ownDisk(dir, 4<<30, "loop,sync"); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return nil, err
	}
	device := fmt.Sprintf("%d:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)))
	control := controller()
	group := filepath.Join(control.parent, filepath.Base(dir))
	// Version 2 hands the controller to children only when told to; on version 1 there is no such file.
	os.WriteFile(filepath.Join(control.parent, "cgroup.subtree_control"), []byte("+io"), 0)
	if err := os.Mkdir(group, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(group, control.file), fmt.Appendf(nil, control.line, device, bytesPerSecond), 0); err != nil {
		return nil, err
	}
	return func(pid int) error {
		return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0)
	}, nil
}

// control is how a version of control groups limits what is written to a disk.
type control struct{ parent, file, line string }

// controller finds the one that this machine has; nil is none.
func controller() *control {
	one := control{"/sys/fs/cgroup/blkio", "blkio.throttle.write_bps_device", "%s %d"}
	if _, err := os.Stat(filepath.Join(one.parent, one.file)); err == nil {
		return &one
	}
	for _, parent := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		names, _ := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
		if slices.Contains(strings.Fields(string(names)), "io") {
			return &control{parent, "io.max", "%s wbps=%d"}
		}
	}
	return nil
}

// needDiskLimit skips a test where no control group limits a disk, unless the environment says that everything must run.
func needDiskLimit(t scope.Scope) {
	t.Helper()
	if controller() != nil {
		return
	}
	Cannot(t, "no control group limits a disk here: neither blkio (version 1) nor io (version 2)")
}

// Cannot skips a test that this machine cannot run, unless the environment says that everything must run.
func Cannot(t scope.Scope, why string) {
	t.Helper()
	if os.Getenv("SILK_E2E_ALL") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// removeDiskGroups undoes slowDisk's group, which is empty by now.
func removeDiskGroups(dir string) {
	if control := controller(); control != nil {
		unix.Rmdir(filepath.Join(control.parent, filepath.Base(dir)))
	}
}
