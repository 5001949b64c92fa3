package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// worker is one of the processes that use a tree at the same time: it prepares its share, says so, waits for a line, works, and says
// how many nanoseconds it took. Arguments: what to do, the tree, the file that lists it, its number and how many there are.
func worker(arguments []string) {
	if err := work(arguments); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func work(arguments []string) error {
	if len(arguments) != 5 {
		return fmt.Errorf("fs-worker needs five arguments, not %q", arguments)
	}
	job, ok := jobs[arguments[0]]
	if !ok {
		return fmt.Errorf("nothing is called %q", arguments[0])
	}
	number, err := strconv.Atoi(arguments[3])
	if err != nil {
		return err
	}
	of, err := strconv.Atoi(arguments[4])
	if err != nil {
		return err
	}
	all, err := readListing(arguments[2])
	if err != nil {
		return err
	}
	s := share{dir: arguments[1], number: number, of: of}
	s.take(all)
	fmt.Println("prepared")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	start := time.Now()
	if err := job(s); err != nil {
		return err
	}
	fmt.Println(time.Since(start).Nanoseconds())
	return nil
}

// entry is a directory or a regular file of a tree.
type entry struct {
	path      string
	size      int64
	directory bool
}

// share is what one worker has to do.
type share struct {
	dir         string
	number, of  int
	directories []entry
	files       []entry
}

// take chooses every so-manieth directory, and file.
func (s *share) take(all []entry) {
	directories, files := 0, 0
	for _, e := range all {
		list, at := &s.files, &files
		if e.directory {
			list, at = &s.directories, &directories
		}
		if *at%s.of == s.number {
			*list = append(*list, e)
		}
		*at++
	}
}

// jobs are what a tree is used for.
var jobs = map[string]func(share) error{
	"walk":   walk,
	"read":   func(s share) error { return s.readFiles(func(entry) bool { return true }) },
	"small":  func(s share) error { return s.readFiles(func(e entry) bool { return e.size <= smallFile }) },
	"mmap":   mapFiles,
	"random": randomReads,
	"exec":   execute,
}

const (
	// What counts as a small file: most sources and configuration.
	smallFile = 16 << 10
	// Random reads go to files above this.
	largeFile = 1 << 20
	// Random reads of all workers together.
	randomCount = 4000
)

// walk lists directories and looks at every entry, as `find -size` does.
func walk(s share) error {
	for _, directory := range s.directories {
		path := filepath.Join(s.dir, directory.path)
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		names, err := file.Readdirnames(-1)
		if err != nil {
			return err
		}
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(int(file.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return fmt.Errorf("%s/%s: %w", path, name, err)
			}
		}
		file.Close()
	}
	return nil
}

func (s share) readFiles(wanted func(entry) bool) error {
	buffer := make([]byte, 128<<10)
	for _, e := range s.files {
		if !wanted(e) {
			continue
		}
		file, err := os.Open(filepath.Join(s.dir, e.path))
		if err != nil {
			return err
		}
		var length int64
		for {
			n, err := file.Read(buffer)
			length += int64(n)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
		file.Close()
		if length != e.size {
			return fmt.Errorf("%s has %d bytes, not %d", e.path, length, e.size)
		}
	}
	return nil
}

// mapFiles touches every page of every file, as a loader does.
func mapFiles(s share) error {
	var sum byte
	for _, e := range s.files {
		if e.size == 0 {
			continue
		}
		file, err := os.Open(filepath.Join(s.dir, e.path))
		if err != nil {
			return err
		}
		memory, err := unix.Mmap(int(file.Fd()), 0, int(e.size), unix.PROT_READ, unix.MAP_SHARED)
		file.Close()
		if err != nil {
			return fmt.Errorf("mmap of %s: %w", e.path, err)
		}
		for at := 0; at < len(memory); at += os.Getpagesize() {
			sum += memory[at]
		}
		if err := unix.Munmap(memory); err != nil {
			return err
		}
	}
	sink = sum
	return nil
}

// sink keeps reads of mapped memory from being optimised away.
var sink byte

// randomReads reads 4 KiB at random places of large files, the larger the likelier; the same places each time.
func randomReads(s share) error {
	var large []entry
	var total int64
	for _, e := range s.files {
		if e.size > largeFile {
			large = append(large, e)
			total += e.size
		}
	}
	if total == 0 {
		return nil
	}
	random := rand.New(rand.NewPCG(1, uint64(s.number)))
	open := map[string]*os.File{}
	buffer := make([]byte, 4096)
	for range randomCount / s.of {
		at := random.Int64N(total)
		i := 0
		for ; at >= large[i].size; i++ {
			at -= large[i].size
		}
		path := filepath.Join(s.dir, large[i].path)
		if open[path] == nil {
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			defer file.Close()
			open[path] = file
		}
		if _, err := open[path].ReadAt(buffer, at&^4095); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}

// Programs that every Debian base has, and that do next to nothing when asked for their version.
var programs = strings.Fields("bash cat date diff dpkg find grep gzip ls mount perl sed sha256sum sort stat tar xargs apt-get")

// execute starts them in the tree, one after the other.
func execute(s share) error {
	for i, program := range programs {
		if i%s.of != s.number {
			continue
		}
		cmd := exec.Command("/usr/bin/"+program, "--version")
		cmd.Env = []string{"PATH=/usr/bin:/bin"}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: s.dir}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", program, err, out)
		}
	}
	return nil
}

// listTree lists a tree's directories and regular files. A file that has several names is taken once for each.
func listTree(dir string) (all []entry, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || strings.ContainsAny(name, "\t\n") {
			return err
		}
		if d.IsDir() {
			all = append(all, entry{path: name, directory: true})
		} else if d.Type().IsRegular() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			all = append(all, entry{path: name, size: info.Size()})
		}
		return nil
	})
	return all, err
}

func writeListing(path string, all []entry) error {
	var text strings.Builder
	for _, e := range all {
		size := e.size
		if e.directory {
			size = -1
		}
		fmt.Fprintf(&text, "%d\t%s\n", size, e.path)
	}
	return os.WriteFile(path, []byte(text.String()), 0o600)
}

func readListing(path string) (all []entry, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		number, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		size, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, entry{path: name, size: max(size, 0), directory: size < 0})
	}
	return all, nil
}
