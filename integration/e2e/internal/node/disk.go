package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
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
	// Version 1 of control groups, then version 2.
	for _, try := range []struct{ parent, file, line string }{
		{"/sys/fs/cgroup/blkio", "blkio.throttle.write_bps_device", fmt.Sprintf("%s %d", device, bytesPerSecond)},
		{"/sys/fs/cgroup", "io.max", fmt.Sprintf("%s wbps=%d", device, bytesPerSecond)},
	} {
		group := filepath.Join(try.parent, filepath.Base(dir))
		// Version 2 hands the controller to children only when told to; on version 1 there is no such file.
		os.WriteFile(filepath.Join(try.parent, "cgroup.subtree_control"), []byte("+io"), 0)
		if err = os.Mkdir(group, 0o755); err != nil {
			continue
		}
		if err = os.WriteFile(filepath.Join(group, try.file), []byte(try.line), 0); err != nil {
			os.Remove(group)
			continue
		}
		return func(pid int) error {
			return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0)
		}, nil
	}
	return nil, fmt.Errorf("no control group limits a disk here: %w", err)
}

// removeDiskGroups undoes slowDisk's groups, which are empty by now.
func removeDiskGroups(dir string) {
	for _, parent := range []string{"/sys/fs/cgroup/blkio", "/sys/fs/cgroup"} {
		unix.Rmdir(filepath.Join(parent, filepath.Base(dir)))
	}
}
