package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/scope"
	"silk.invalid/integration/e2e/internal/shape"
)

// task is a job of the workers, on cold or on warm caches.
type task struct {
	job  string
	warm bool
}

func (t task) String() string {
	if t.warm {
		return "warm " + t.job
	}
	return "cold " + t.job
}

// In this order: a warm task follows the cold one that warmed the caches for it.
var tasks = []task{
	{"walk", false}, {"walk", true},
	{"small", false}, {"small", true},
	{"read", false}, {"read", true},
	{"mmap", false}, {"mmap", true},
	{"random", false}, {"random", true},
	{"exec", false}, {"exec", true},
}

// ground is a way to have a whole image on this machine.
type ground struct {
	name string
	dir  string
	// store is silk's folder of layers: their pages are the image's too.
	store string
}

// timing is one figure of a task.
type timing struct {
	image, ground string
	task          task
	workers       int
	round         int
	took          time.Duration
	// cached is what the page cache holds of the image, after the cold read of one worker.
	cached int64
}

type fsSettings struct {
	basics
	images, rungs string
}

func fsMain(arguments []string) error {
	var s fsSettings
	flags := flag.NewFlagSet("hack/bench fs", flag.ExitOnError)
	flags.StringVar(&s.images, "images", "python-service,node-service", "recipes under hack/images, with commas between")
	flags.StringVar(&s.rungs, "rungs", "file,loop", "how silk mounts, with commas between")
	s.define(flags)
	parse(flags, arguments)
	started := time.Now()
	file := s.file(started, "-fs")
	if err := free(file); err != nil {
		return err
	}
	subjects, err := buildImages(s.builder, split(s.images))
	if err != nil {
		return err
	}
	var all []timing
	for _, subject := range subjects {
		failed := scope.Run(func(t scope.Scope) {
			taken, err := s.measure(t, subject)
			all = append(all, taken...)
			if err != nil {
				t.Fatal(err)
			}
		})
		if failed != nil && err == nil {
			err = fmt.Errorf("%s: %w", subject.name, failed)
		}
	}
	if len(all) == 0 {
		return err
	}
	return errors.Join(err, publish(s.markdown(subjects, all, started, err != nil), file))
}

// measure brings an image to all grounds and lets workers use it.
func (s fsSettings) measure(t scope.Scope, subject subject) (all []timing, err error) {
	turn := &turn{path: s.lock}
	defer turn.giveBack()
	grounds := s.grounds(t, subject)
	listing := filepath.Join(t.TempDir(), "listing")
	entries, err := listTree(grounds[0].dir)
	if err != nil {
		return nil, err
	}
	if err := writeListing(listing, entries); err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(s.seed, 0))
	for round := range s.rounds {
		for _, workers := range []int{1, 4} {
			order := slices.Clone(grounds)
			random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			for _, ground := range order {
				if err := turn.take(); err != nil {
					return all, err
				}
				for _, task := range tasks {
					if interrupted.Err() != nil {
						return all, errors.New("interrupted")
					}
					one := timing{image: subject.name, ground: ground.name, task: task, workers: workers, round: round}
					if err := one.measure(ground.dir, listing); err != nil {
						return all, fmt.Errorf("%s of %s: %w", task, ground.name, err)
					}
					if task.job == "read" && !task.warm && workers == 1 {
						if one.cached, err = ground.cached(entries); err != nil {
							return all, err
						}
					}
					fmt.Fprintf(os.Stderr, "%s %s %s, %d: %v, %d MiB cached\n", subject.name, ground.name, task, workers, one.took, one.cached>>20)
					all = append(all, one)
				}
			}
		}
	}
	return all, nil
}

// grounds are overlayfs, and silk on each rung; overlayfs comes first.
func (s fsSettings) grounds(t scope.Scope, subject subject) (all []ground) {
	origin := hub.StartShaped(t, shape.Profile{})
	ref := origin.Add(subject.name, "latest", subject.bundle)
	add := func(name string, c column, rung string) {
		n := node.Start(t, c.options("", rung, false))
		ctx := within(t, node.Deadline)
		dir := view(ctx, t, n, ref, c.snapshotter)
		if c.silk() {
			if err := await(ctx, "the image is whole", func() error { return whole(n, ref) }); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, ground{name, dir, filepath.Join(n.Dir, "silk/layers")})
	}
	add(baseline, column{snapshotter: "overlayfs"}, "")
	for _, rung := range split(s.rungs) {
		add("silk "+rung, column{snapshotter: "silk"}, rung)
	}
	return all
}

// measure lets workers do the task at the same time.
func (t *timing) measure(dir, listing string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var team []*member
	defer func() {
		for _, m := range team {
			m.cmd.Process.Kill()
			m.cmd.Wait()
		}
	}()
	for number := range t.workers {
		m, err := hire(self, "fs-worker", t.task.job, dir, listing, strconv.Itoa(number), strconv.Itoa(t.workers))
		if err != nil {
			return err
		}
		team = append(team, m)
	}
	for _, m := range team {
		if _, err := m.line(); err != nil {
			return err
		}
	}
	if !t.task.warm {
		if err := dropCaches(); err != nil {
			return err
		}
	}
	for _, m := range team {
		if _, err := io.WriteString(m.stdin, "\n"); err != nil {
			return err
		}
	}
	for _, m := range team {
		line, err := m.line()
		if err != nil {
			return err
		}
		nanoseconds, err := strconv.ParseInt(line, 10, 64)
		if err != nil {
			return err
		}
		t.took = max(t.took, time.Duration(nanoseconds))
	}
	return nil
}

// How long a tree is left alone before the page cache is looked at: what a daemon gives back once nobody reads is given back by then.
const quiet = 10 * time.Second

// cached adds up the pages in memory of the image's files, and of the files that silk mounts them from.
func (g ground) cached(entries []entry) (bytes int64, err error) {
	time.Sleep(quiet)
	var files []string
	for _, e := range entries {
		if !e.directory {
			files = append(files, filepath.Join(g.dir, e.path))
		}
	}
	err = filepath.WalkDir(g.store, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	for _, file := range files {
		n, failed := resident(file)
		if failed != nil {
			return 0, fmt.Errorf("mincore of %s: %w", file, failed)
		}
		bytes += n
	}
	return bytes, err
}

// resident is how much of a file is in memory, in bytes.
func resident(path string) (int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return 0, err
	}
	memory, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(memory)
	page := os.Getpagesize()
	present := make([]byte, (len(memory)+page-1)/page)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&memory[0])), uintptr(len(memory)), uintptr(unsafe.Pointer(&present[0])))
	if errno != 0 {
		return 0, errno
	}
	var pages int64
	for _, p := range present {
		pages += int64(p & 1)
	}
	return pages * int64(page), nil
}

// member is a worker's process.
type member struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

func hire(argv ...string) (*member, error) {
	cmd := exec.CommandContext(interrupted, argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &member{cmd, stdin, bufio.NewReader(out)}, nil
}

func (m *member) line() (string, error) {
	line, err := m.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("a worker ended: %w", err)
	}
	return strings.TrimSpace(line), nil
}
