// Command bench measures how long an image takes from the pull to its container's first word, with containerd's own snapshotters and
// with silk, on real images behind a shaped network. hack/bench prepares what it needs and starts it.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"silk.invalid/integration/e2e/internal/scope"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "fs-worker" {
		worker(os.Args[2:])
		return
	}
	heedSignals()
	commands := map[string]func([]string) error{"fs": fsMain, "crowd": crowdMain, "lazy": lazyMain}
	if len(os.Args) > 1 && commands[os.Args[1]] != nil {
		exit(commands[os.Args[1]](os.Args[2:]))
	}
	exit(pullMain(os.Args[1:]))
}

// interrupted ends with Ctrl-C, SIGTERM and SIGHUP, and with it what is being measured: everything that was started is taken down, and what
// was measured is reported. A second signal ends the program at once.
var interrupted, interrupt = context.WithCancel(context.Background())

func heedSignals() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	// nohup's wish.
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() {
		<-signals
		fmt.Fprintln(os.Stderr, "ending; again to quit at once")
		interrupt()
		<-signals
		os.Exit(130)
	}()
}

// within is a context for a node of the bench that ends after a time, or when the program is to end.
func within(t scope.Scope, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(interrupted, "bench"), limit)
	t.Cleanup(cancel)
	return ctx
}

// await tries until there is no error.
func await(ctx context.Context, what string, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w before %s: %w", ctx.Err(), what, err)
		case <-time.After(betweenLooks):
		}
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func pullMain(arguments []string) error { return pullSettings(arguments).run() }

func pullSettings(arguments []string) (s settings) {
	flags := flag.NewFlagSet("hack/bench", flag.ExitOnError)
	flags.StringVar(&s.images, "images", "", "recipes under hack/images, with commas between (all)")
	quick := flags.Bool("quick", false, "two images, overlayfs and silk, one round, where nothing else is said")
	flags.StringVar(&s.record, "record", "", "a file to which each measurement is added as a line of JSON; what it has already is not measured again, and only the same network, rung and programs may add to it")
	s.parse(flags, arguments)
	if *quick {
		s.images, s.columns = or(s.images, "python-service,layers"), or(s.columns, "overlayfs,silk")
		if !said(flags, "rounds") {
			s.rounds = 1
		}
	}
	return s
}

// said tells whether a flag was given.
func said(flags *flag.FlagSet, name string) (given bool) {
	flags.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	return given
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

func (s settings) run() error {
	chosen, err := pickColumns(s.columns, s.proxies)
	if err != nil {
		return err
	}
	report := report{settings: s, started: time.Now()}
	if err := report.begin(); err != nil {
		return err
	}
	names := split(s.images)
	if len(names) == 0 {
		names = recipes
	}
	subjects, err := buildImages(s.builder, names)
	if err != nil {
		return err
	}
	report.subjects, report.columns = subjects, chosen
	err = scope.Run(func(t scope.Scope) {
		s.bench(t, subjects, chosen).measureAll(&report)
	})
	if written := report.write(true); err == nil {
		err = written
	}
	return err
}

// measureAll measures in rounds, each in a random order. A measurement that fails is told and left out; after an interrupt none begins.
func (b *bench) measureAll(r *report) {
	random := rand.New(rand.NewPCG(r.settings.seed, 0))
	for round := range r.settings.rounds {
		for _, pair := range pairs(random, r.subjects, r.columns) {
			if interrupted.Err() != nil {
				b.Error("interrupted")
				return
			}
			if r.has(pair, round) {
				continue
			}
			f, err := b.one(pair.subject, pair.column, round)
			if err != nil {
				fmt.Fprintln(os.Stderr, "failed:", err)
				b.Error(err)
				if interrupted.Err() == nil {
					r.failed++
				}
				continue
			}
			r.figures = append(r.figures, f)
			if err := record(r.settings.record, f); err != nil {
				b.Error(err)
			}
		}
		if err := r.write(false); err != nil {
			b.Error(err)
		}
	}
}

type pair struct {
	subject subject
	column  column
}

// pairs are all images with all columns: the images in a random order, and for each the columns, so that what is compared is near in
// time.
func pairs(random *rand.Rand, subjects []subject, columns []column) (all []pair) {
	for _, s := range random.Perm(len(subjects)) {
		for _, c := range random.Perm(len(columns)) {
			all = append(all, pair{subjects[s], columns[c]})
		}
	}
	return all
}

func (b *bench) one(s subject, c column, round int) (figures, error) {
	if err := b.turn.take(); err != nil {
		return figures{}, err
	}
	if err := b.teach(s, c); err != nil {
		return figures{}, err
	}
	return b.measure(s, c, round)
}
