// Package tree reads a mounted file system completely and compares two such readings, byte for byte.
package tree

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Node is all that a file system says of one name, but for what differs between any two copies (inode numbers, change times,
// blocks, a directory's size and link count).
type Node struct {
	Mode   uint32 // file type and permissions
	UID    uint32
	GID    uint32
	Size   int64
	Mtime  [2]int64 // seconds, nanoseconds
	Rdev   uint64
	Target string // of a symbolic link
	Sum    string // sha256 of a file's content
	Links  string // the first name of the same inode and how many names it has, for hard links
	Xattrs string
}

// Tree is a file system by path; the root is ".".
type Tree map[string]Node

// Read walks the file system mounted at root.
func Read(root string) (Tree, error) {
	tree := Tree{}
	first := map[[2]uint64]string{}
	// WalkDir goes in lexical order, so that the first name of an inode is the same on both sides.
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		name, relative := filepath.Rel(root, path)
		switch {
		case relative != nil:
			return relative
		case err != nil:
			return err
		}
		node, st, err := read(path)
		if errors.Is(err, fs.ErrNotExist) {
			// overlayfs lists a whiteout of a directory that has nothing under it, and then does not find it.
			node = Node{Target: "listed, but not there"}
		} else if err != nil {
			return fmt.Errorf("%q: %w", name, err)
		} else if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			inode := [2]uint64{uint64(st.Dev), st.Ino}
			if _, seen := first[inode]; !seen {
				first[inode] = name
			}
			node.Links = fmt.Sprintf("%d names, the first %q", st.Nlink, first[inode])
		}
		tree[name] = node
		return nil
	})
	return tree, err
}

func read(path string) (node Node, st unix.Stat_t, err error) {
	if err := unix.Lstat(path, &st); err != nil {
		return node, st, err
	}
	node = Node{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: [2]int64{st.Mtim.Sec, st.Mtim.Nsec}}
	if node.Xattrs, err = xattrs(path); err != nil {
		return node, st, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		node.Size = st.Size
		node.Sum, err = sum(path)
	case unix.S_IFLNK:
		node.Size = st.Size
		node.Target, err = os.Readlink(path)
	case unix.S_IFCHR, unix.S_IFBLK:
		node.Rdev = st.Rdev
	}
	return node, st, err
}

func sum(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func xattrs(path string) (string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if errors.Is(err, syscall.ENOTSUP) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("llistxattr: %w", err)
	}
	var all []string
	for _, name := range strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("lgetxattr %s: %w", name, err)
		}
		all = append(all, fmt.Sprintf("%s=%q", name, value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, " "), nil
}

// Diff tells how got differs from want, one line a name, at most 40. The modification times of names in timesMadeUp are not compared.
func Diff(want, got Tree, timesMadeUp map[string]bool) []string {
	var lines []string
	for name, w := range want {
		g, ok := got[name]
		switch {
		case !ok:
			lines = append(lines, fmt.Sprintf("%q is missing", name))
		default:
			if timesMadeUp[name] {
				w.Mtime, g.Mtime = [2]int64{}, [2]int64{}
			}
			if w != g {
				lines = append(lines, fmt.Sprintf("%q\n\twant %+v\n\tgot  %+v", name, w, g))
			}
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			lines = append(lines, fmt.Sprintf("%q should not be there", name))
		}
	}
	sort.Strings(lines)
	if more := len(lines) - 40; more > 0 {
		lines = append(lines[:40], fmt.Sprintf("and %d more", more))
	}
	return lines
}
