package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/scope"
	"silk.invalid/integration/e2e/internal/shape"
)

type lazySettings struct {
	settings
	rungs string
	files int
}

// lazyMain measures what layers cost that are mounted before they are here: an image that is read completely from its first second, and
// small files of a layer whose bytes are here but for its end.
func lazyMain(arguments []string) error {
	s := lazySettings{settings: settings{columns: baseline + ",silk,silk-redis"}}
	flags := flag.NewFlagSet("hack/bench lazy", flag.ExitOnError)
	flags.StringVar(&s.images, "images", "python-service,node-service", "recipes under hack/images that are read from the first second, with commas between; empty leaves this out")
	flags.StringVar(&s.rungs, "rungs", "file,loop,tree", "how silk mounts, with commas between")
	flags.IntVar(&s.files, "files", 20_000, "small files of a layer that is not whole; 0 leaves this out")
	s.parse(flags, arguments)
	s.rung = "" // each row has its own
	started := time.Now()
	file := s.file(started, "-lazy")
	if err := s.ready(file); err != nil {
		return err
	}
	var subjects []subject
	var err error
	if names := split(s.images); len(names) > 0 {
		if subjects, err = buildImages(s.builder, names); err != nil {
			return err
		}
	}
	var all []timing
	err = scope.Run(func(t scope.Scope) {
		taken, err := s.readEverything(t, subjects)
		all = append(all, taken...)
		if err == nil && s.files > 0 {
			taken, err = s.touch(t)
			all = append(all, taken...)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if len(all) == 0 {
		return err
	}
	return errors.Join(err, publish(s.markdown(subjects, all, started, err != nil), file))
}

// everything is the job of reading all of an image as soon as it can be mounted; its time begins with the pull.
var everything = task{"read", true}

func (s lazySettings) readEverything(t scope.Scope, subjects []subject) (all []timing, err error) {
	chosen, err := pickColumns(s.columns, s.proxies)
	if err != nil || len(subjects) == 0 {
		return nil, err
	}
	b := s.bench(t, subjects, chosen)
	listings := map[string]string{}
	for _, subject := range subjects {
		if listings[subject.name], err = list(t, subject); err != nil {
			return nil, err
		}
	}
	random := rand.New(rand.NewPCG(s.seed, 0))
	for round := range s.rounds {
		for _, pair := range pairs(random, subjects, chosen) {
			for _, rung := range s.rungsOf(pair.column) {
				for _, workers := range []int{1, 4} {
					one := timing{image: pair.subject.name, ground: grounded(pair.column, rung), task: everything, workers: workers, round: round}
					if err := b.readFirst(pair, rung, listings[pair.subject.name], &one); err != nil {
						return all, err
					}
					all = append(all, one)
				}
			}
		}
	}
	return all, nil
}

// rungsOf are those a column is measured on.
func (s lazySettings) rungsOf(c column) []string {
	if c.silk() {
		return split(s.rungs)
	}
	return []string{"auto"}
}

func grounded(c column, rung string) string {
	if c.silk() {
		return c.name + " " + rung
	}
	return c.name
}

// readFirst pulls an image on an empty node and has all of its files read at once.
func (b *bench) readFirst(p pair, rung, listing string, one *timing) error {
	if interrupted.Err() != nil {
		return errors.New("interrupted")
	}
	if err := b.turn.take(); err != nil {
		return err
	}
	if err := b.teach(p.subject, p.column); err != nil {
		return err
	}
	b.rung = rung
	failed := scope.Run(func(t scope.Scope) {
		n := b.emptyNode(t, p.column, fmt.Sprintf("%s-%s-%d-readers-%d", p.subject.name, strings.ReplaceAll(one.ground, " ", "-"), one.workers, one.round), p.subject)
		ref, start := reference(b.origin, p.subject, p.column), time.Now()
		dir := view(within(t, b.deadline(p.subject)), t, n, ref, p.column.snapshotter)
		if err := one.measure(dir, listing); err != nil {
			t.Fatal(err)
		}
		one.took = time.Since(start)
		if err := served(n, p.column, ref); err != nil {
			t.Fatal(err)
		}
	})
	if failed == nil {
		fmt.Fprintf(os.Stderr, "%s %s, %d at a time: everything read after %v\n", one.image, one.ground, one.workers, one.took)
	}
	return failed
}

// view pulls an image and mounts it until the scope ends.
func view(ctx context.Context, t scope.Scope, n *node.Node, ref, snapshotter string) (dir string) {
	if err := pull(ctx, n, ref, snapshotter); err != nil {
		t.Fatal(err)
	}
	pulled, err := n.Client.GetImage(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := n.ChainID(ctx, pulled)
	if err != nil {
		t.Fatal(err)
	}
	dir, undo, err := n.View(ctx, snapshotter, chain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { undo() })
	return dir
}

// list writes the list of an image's files, as overlayfs shows them.
func list(t scope.Scope, s subject) (listing string, err error) {
	listing = filepath.Join(t.TempDir(), s.name)
	failed := scope.Run(func(t scope.Scope) {
		origin := hub.StartShaped(t, shape.Profile{})
		dir := view(within(t, node.Deadline), t, node.Start(t, column{snapshotter: "overlayfs"}.options("", "", false)), origin.Add(s.name, "latest", s.bundle), "overlayfs")
		entries, err := listTree(dir)
		if err == nil {
			err = writeListing(listing, entries)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	return listing, failed
}

// The jobs on small files: each is opened and read, with cold caches, and again.
var touches = []task{{"small", false}, {"small", true}}

// touched is the image of which all but the last file is here.
const touched = "small files"

// touch measures small files of a layer that cannot become whole, because its registry never sends its end.
func (s lazySettings) touch(t scope.Scope) (all []timing, err error) {
	tar := smallFiles(s.files)
	layer := image.FromTar(image.Gzip, tar)
	bundle := image.Image{Layers: []image.Layer{layer}}.Bundle()
	origin, redis := hub.StartShaped(t, shape.Profile{}), node.StartRedis(t)
	ref := origin.Add("touch", "latest", bundle)
	silk := column{snapshotter: "silk"}
	teacher := node.Start(t, silk.options(redis.Measured(), "auto", false))
	dir := view(within(t, node.Deadline), t, teacher, ref, "silk")
	listing := filepath.Join(t.TempDir(), "touch")
	entries, err := listTree(dir)
	if err == nil {
		err = writeListing(listing, entries)
	}
	if err != nil {
		return nil, err
	}
	if err := await(within(t, node.Deadline), "the fleet knows the layer", func() error { return redis.Knows(teacher, ref) }); err != nil {
		return nil, err
	}
	grounds := []ground{{name: baseline, dir: view(within(t, node.Deadline), t, node.Start(t, column{snapshotter: "overlayfs"}.options("", "", false)), ref, "overlayfs")}}
	origin.SetFault(hub.Silk(hub.Only(bundle.LayerDigests[0], hub.StallAt(layer.Blob.Size-1<<20))))
	for _, rung := range split(s.rungs) {
		n, ctx := node.Start(t, silk.options(redis.Measured(), rung, false)), within(t, node.Deadline)
		dir := view(ctx, t, n, ref, "silk")
		if err := await(ctx, "all but the end is here", func() error { return allButTheEnd(n, ref, uint64(len(tar)-lastFile)) }); err != nil {
			return nil, err
		}
		grounds = append(grounds, ground{name: "silk " + rung, dir: dir})
	}
	random := rand.New(rand.NewPCG(s.seed, 1))
	for round := range s.rounds {
		for _, i := range random.Perm(len(grounds)) {
			for _, task := range touches {
				if interrupted.Err() != nil {
					return all, errors.New("interrupted")
				}
				one := timing{image: touched, ground: grounds[i].name, task: task, workers: 1, round: round}
				if err := one.measure(grounds[i].dir, listing); err != nil {
					return all, fmt.Errorf("%s of %s: %w", task, one.ground, err)
				}
				fmt.Fprintf(os.Stderr, "%s, %s: %v\n", task, one.ground, one.took)
				all = append(all, one)
			}
		}
	}
	return all, nil
}

// lastFile is the size of the file at the end of the tar, in bytes.
const lastFile = 4 << 20

// smallFiles is a tar of files of 0 to 8 KiB, and a large one behind them.
func smallFiles(count int) []byte {
	random := rand.NewChaCha8([32]byte{})
	length := rand.New(random)
	body := func(length int) []byte {
		data := make([]byte, length)
		random.Read(data) // never fails
		return data
	}
	var entries []image.Entry
	for i := range count {
		entries = append(entries, image.Entry{Name: fmt.Sprintf("files/%03d/%05d", i/200, i), Body: body(length.IntN(8 << 10))})
	}
	return image.WriteTar(append(entries, image.Entry{Name: "last", Body: body(lastFile)})...)
}

// allButTheEnd says what of an image's only layer has come, when that is less than the given bytes.
func allButTheEnd(n *node.Node, ref string, bytes uint64) error {
	status, err := n.Status()
	if err != nil {
		return err
	}
	for _, image := range status.Images {
		if image.Reference == ref && len(image.Layers) == 1 {
			layer := image.Layers[0]
			if here := layer.BackgroundBytes + layer.DemandBytes + layer.ProfileBytes; layer.State != "filling" || here < bytes {
				return fmt.Errorf("it is %s, %d of %d bytes", layer.State, here, bytes)
			}
			return nil
		}
	}
	return errors.New("silk does not know it")
}

func (s lazySettings) markdown(subjects []subject, all []timing, started time.Time, partial bool) string {
	var text strings.Builder
	s.head(&text, "Images that are known and not here", started, tally{})
	if partial {
		text.WriteString(notAll + "\n")
	}
	for _, subject := range subjects {
		fmt.Fprintf(&text, "| %s, %.0f MB, read completely from its first second: ms since the pull began (silk's plain pull by this) | 1 reader | 4 readers |\n|---|--:|--:|\n", subject.name, float64(subject.bytes)/1e6)
		for _, ground := range groundsOf(all, subject.name) {
			_, rung, _ := strings.Cut(ground, " ")
			base := "silk " + rung
			if rung == "" {
				base = ground
			}
			fmt.Fprintf(&text, "| %s |%s%s\n", ground, cell(all, subject.name, ground, base, everything, 1), cell(all, subject.name, ground, base, everything, 4))
		}
		text.WriteString("\n")
	}
	if grounds := groundsOf(all, touched); len(grounds) > 0 {
		fmt.Fprintf(&text, "| %d small files opened and read, in a layer that is here but for its end: ms (overlayfs's by this) | first | again |\n|---|--:|--:|\n", s.files)
		for _, ground := range grounds {
			fmt.Fprintf(&text, "| %s |%s%s\n", ground, cell(all, touched, ground, baseline, touches[0], 1), cell(all, touched, ground, baseline, touches[1], 1))
		}
	}
	return text.String()
}
