package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/scope"
)

// crowd is what comes to an empty node at once: pods of one image, or many images that are only pulled.
type crowd struct {
	name     string
	subjects []subject
	pods     int // 0: images
}

// bytes are those of the compressed layers; one that several images have counts once.
func (c crowd) bytes() (sum int64) {
	for _, size := range c.layers() {
		sum += size
	}
	return sum
}

func (c crowd) layers() map[string]int64 {
	sizes := map[string]int64{}
	for _, s := range c.subjects {
		for i, size := range s.layers() {
			sizes[s.bundle.LayerDigests[i]] = size
		}
	}
	return sizes
}

// distinct fails when two images unpack to the same: containerd asks nobody for the one that comes second.
func (c crowd) distinct() error {
	seen := map[string]string{}
	for _, s := range c.subjects {
		unpacked := strings.Join(s.bundle.DiffIDs, " ")
		if other, ok := seen[unpacked]; ok {
			return fmt.Errorf("%s unpacks to the layers of %s: one of them is pulled, not both", s.name, other)
		}
		seen[unpacked] = s.name
	}
	return nil
}

// gathering is one measurement.
type gathering struct {
	Crowd  string `json:"crowd"`
	Column string `json:"column"`
	Round  int    `json:"round"`
	// AtOnce is false for what it is compared with: one pod, or one image after the other.
	AtOnce bool `json:"at_once"`
	Busy   bool `json:"busy"`

	Pulled time.Duration `json:"pulled"` // the last pull returned
	Took   time.Duration `json:"took"`   // the last container printed its line; or the last image is whole, where that is known
	Bytes  int64         `json:"bytes"`  // that the origin sent until everything was whole, where that is known
	Memory int64         `json:"memory"` // silkd's peak by then
}

type crowdSettings struct {
	settings
	pods     int
	together string
}

// The images of a full run, each with layers of its own above the base: so without zstd, which unpacks to python-service's.
const together = "python-service,node-service,jvm,database,ml,layers,random,python,node"

func crowdMain(arguments []string) error {
	s := crowdSettings{settings: settings{columns: baseline + ",silk"}}
	flags := flag.NewFlagSet("hack/bench crowd", flag.ExitOnError)
	flags.StringVar(&s.images, "images", "layers,database,python-service", "recipes under hack/images of which many pods start at once, with commas between; empty leaves this out")
	flags.IntVar(&s.pods, "pods", 20, "how many pods of an image start at once")
	flags.StringVar(&s.together, "together", together, "recipes that are pulled at once, and one after the other; empty leaves this out")
	s.parse(flags, arguments)
	return s.run()
}

func (s crowdSettings) run() error {
	chosen, err := pickColumns(s.columns, s.proxies)
	if err != nil {
		return err
	}
	report := crowdReport{settings: s, columns: chosen, started: time.Now()}
	report.file = s.file(report.started, "-crowd")
	if err := s.ready(report.file); err != nil {
		return err
	}
	crowds, subjects, err := s.crowds()
	if err != nil {
		return err
	}
	report.crowds = crowds
	err = scope.Run(func(t scope.Scope) { s.bench(t, subjects, chosen).gatherAll(&report) })
	if written := report.write(true); err == nil {
		err = written
	}
	return err
}

// crowds are those of pods and then the one of images; subjects are all their images, each once.
func (s crowdSettings) crowds() (crowds []crowd, subjects []subject, err error) {
	alone, many := split(s.images), split(s.together)
	if len(alone) > 0 && s.pods < 2 || len(many) == 1 || len(alone)+len(many) == 0 {
		return nil, nil, errors.New("there is no crowd: it takes two pods, or two images")
	}
	names := slices.Concat(alone, many)
	slices.Sort(names)
	if subjects, err = buildImages(s.builder, slices.Compact(names)); err != nil {
		return nil, nil, err
	}
	find := func(name string) subject {
		return subjects[slices.IndexFunc(subjects, func(s subject) bool { return s.name == name })]
	}
	for _, name := range alone {
		crowds = append(crowds, crowd{name: name, subjects: []subject{find(name)}, pods: s.pods})
	}
	if len(many) > 0 {
		all := crowd{name: fmt.Sprintf("%d images", len(many))}
		for _, name := range many {
			all.subjects = append(all.subjects, find(name))
		}
		if err := all.distinct(); err != nil {
			return nil, nil, err
		}
		crowds = append(crowds, all)
	}
	return crowds, subjects, nil
}

// gatherAll measures in rounds, each in a random order: crowds, their columns, and which of at once and not comes first. A measurement
// that fails is told and left out; after an interrupt none begins.
func (b *bench) gatherAll(r *crowdReport) {
	random := rand.New(rand.NewPCG(r.settings.seed, 0))
	for round := range r.settings.rounds {
		for _, i := range random.Perm(len(r.crowds)) {
			for _, j := range random.Perm(len(r.columns)) {
				for _, atOnce := range random.Perm(2) {
					if interrupted.Err() != nil {
						b.Error("interrupted")
						return
					}
					g, err := b.gather(r.crowds[i], r.columns[j], atOnce == 1, round)
					if err == nil {
						r.taken = append(r.taken, g)
						err = record("", g)
					} else {
						fmt.Fprintln(os.Stderr, "failed:", err)
						if interrupted.Err() == nil {
							r.failed++
						}
					}
					if err != nil {
						b.Error(err)
					}
				}
			}
		}
		if err := r.write(false); err != nil {
			b.Error(err)
		}
	}
}

// gather takes the figures of a crowd, or of what it is compared with, on an empty node.
func (b *bench) gather(crowd crowd, c column, atOnce bool, round int) (g gathering, err error) {
	if err := b.turn.take(); err != nil {
		return g, err
	}
	for _, s := range crowd.subjects {
		if err := b.teach(s, c); err != nil {
			return g, err
		}
	}
	g = gathering{Crowd: crowd.name, Column: c.name, Round: round, AtOnce: atOnce, Busy: busy()}
	name := strings.ReplaceAll(fmt.Sprintf("%s-%s-%d-at-once-%v", g.Crowd, g.Column, g.Round, g.AtOnce), " ", "-")
	failed := scope.Run(func(t scope.Scope) {
		n := b.emptyNode(t, c, name, crowd.subjects...)
		ctx := within(t, b.deadline(crowd.subjects...))
		before := b.traffic()
		var err error
		if crowd.pods > 0 {
			err = b.startPods(ctx, n, crowd, c, &g)
		} else {
			err = b.pullImages(ctx, n, crowd, c, &g)
		}
		if err != nil {
			t.Fatal(err)
		}
		if c.tells() {
			g.Bytes = b.traffic().since(before).Bytes
		}
		if n.Silkd != nil {
			if g.Memory, err = n.Silkd.PeakMemory(); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range crowd.subjects {
			if err := served(n, c, reference(b.origin, s, c)); err != nil {
				t.Fatal(err)
			}
		}
	})
	if failed != nil {
		return g, fmt.Errorf("%s with %s, at once %v: %w", crowd.name, c.name, atOnce, failed)
	}
	return g, nil
}

// startPods does for each pod what kubelet does: it asks for the image, whoever else has asked, and then starts the container.
func (b *bench) startPods(ctx context.Context, n *node.Node, crowd crowd, c column, g *gathering) error {
	pods := 1
	if g.AtOnce {
		pods = crowd.pods
	}
	ref := reference(b.origin, crowd.subjects[0], c)
	pulled, ends := make([]time.Duration, pods), make([]func() error, pods)
	var group, removal errgroup.Group
	start := time.Now()
	for i := range pods {
		group.Go(func() (err error) {
			if err := pull(ctx, n, ref, c.snapshotter); err != nil {
				return err
			}
			pulled[i] = time.Since(start)
			ends[i], err = run(ctx, n, ref, c.snapshotter, fmt.Sprint("pod-", i))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	g.Took, g.Pulled = time.Since(start), slices.Max(pulled)
	if err := awaitAllWhole(ctx, n, c, ref); err != nil {
		return err
	}
	removal.SetLimit(4)
	for _, end := range ends {
		removal.Go(end)
	}
	return removal.Wait()
}

// pullImages pulls all at once, or one after the other, in the same order.
func (b *bench) pullImages(ctx context.Context, n *node.Node, crowd crowd, c column, g *gathering) error {
	var group errgroup.Group
	if !g.AtOnce {
		group.SetLimit(1)
	}
	var refs []string
	start := time.Now()
	for _, s := range crowd.subjects {
		ref := reference(b.origin, s, c)
		refs = append(refs, ref)
		group.Go(func() error { return pull(ctx, n, ref, c.snapshotter) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	g.Pulled = time.Since(start)
	if err := awaitAllWhole(ctx, n, c, refs...); err != nil {
		return err
	}
	if c.tells() {
		g.Took = time.Since(start)
	}
	return nil
}

// awaitAllWhole waits until silk has images whole and proved. Who unpacks has them whole when the pull returns.
func awaitAllWhole(ctx context.Context, n *node.Node, c column, refs ...string) error {
	if !c.silk() {
		return nil
	}
	for _, ref := range refs {
		for {
			whole, proved, err := state(n, ref)
			if err != nil {
				return err
			}
			if whole && proved {
				break
			}
			if err := pause(ctx, betweenLooks, nil); err != nil {
				return err
			}
		}
	}
	return nil
}
