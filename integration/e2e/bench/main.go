// Command bench measures how long an image takes from the pull to its container's first word, with containerd's own snapshotters and
// with silk, on real images behind a shaped network. hack/bench prepares what it needs and starts it.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/scope"
	"silk.invalid/integration/e2e/internal/shape"
)

type settings struct {
	images, columns, proxies string
	builder                  string
	rounds                   int
	seed                     uint64
	rung, lock               string
	network                  shape.Profile
	out, name, record, logs  string
	quick                    bool
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "fs-worker" {
		worker(os.Args[2:])
		return
	}
	heedSignals()
	if len(os.Args) > 1 && os.Args[1] == "fs" {
		exit(fsMain(os.Args[2:]))
	}
	exit(pullMain(os.Args[1:]))
}

// interrupted is set by Ctrl-C and by SIGTERM: what is being measured ends, everything that was started is taken down, and what was
// measured is reported. A second one ends the program at once.
var interrupted atomic.Bool

func heedSignals() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		interrupted.Store(true)
		<-signals
		os.Exit(130)
	}()
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func pullMain(arguments []string) error {
	var s settings
	flags := flag.NewFlagSet("hack/bench", flag.ExitOnError)
	flags.StringVar(&s.images, "images", "", "recipes under hack/images, with commas between (all)")
	flags.StringVar(&s.columns, "columns", "", "columns, with commas between (all)")
	flags.StringVar(&s.proxies, "snapshotter", "", "a proxy snapshotter that runs already, as NAME=/path/to/socket; several with commas between")
	flags.IntVar(&s.rounds, "rounds", 3, "measurements of each image and column")
	flags.BoolVar(&s.quick, "quick", false, "two images, overlayfs and silk, one round")
	flags.Uint64Var(&s.seed, "seed", uint64(time.Now().UnixNano()), "of the random order")
	flags.StringVar(&s.rung, "rung", "auto", "how silk mounts: auto, file, loop")
	flags.StringVar(&s.lock, "lock", "", "a file that is locked during each measurement, where others on the machine lock it while they use its CPUs")
	flags.StringVar(&s.out, "out", "", "the folder for the report; only printed when not given")
	flags.StringVar(&s.record, "record", "", "a file to which each measurement is added as a line of JSON; what it has already is not measured again")
	flags.StringVar(&s.name, "machine", "", "the machine's name in the report's file name (the host's)")
	flags.StringVar(&s.logs, "logs", "", "a folder for silkd's logs of all measurements, with every range that it fetched")
	flags.StringVar(&s.builder, "builder", "../../hack/images/build", "builds images")
	s.network = shape.Gigabit
	flags.Int64Var(&s.network.All, "rate", s.network.All, "bytes a second that the registry sends in all; 0 is no limit")
	flags.Int64Var(&s.network.Connection, "connection-rate", s.network.Connection, "bytes a second that it sends on one connection; 0 is no limit")
	flags.DurationVar(&s.network.FirstByte, "first-byte", s.network.FirstByte, "time from a request to the first byte of its answer")
	unshaped := flags.Bool("unshaped", false, "as fast as loopback: no limit and no delay")
	flags.Parse(arguments)
	if *unshaped {
		s.network = shape.Profile{}
	}
	if s.quick {
		s.images, s.columns, s.rounds = or(s.images, "python-service,layers"), or(s.columns, "overlayfs,silk"), 1
	}
	return s.run()
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
	names := split(s.images)
	if len(names) == 0 {
		names = recipes
	}
	subjects, err := buildImages(s.builder, names)
	if err != nil {
		return err
	}
	report := report{settings: s, subjects: subjects, columns: chosen, started: time.Now()}
	if report.figures, err = recorded(s.record); err != nil {
		return err
	}
	err = scope.Run(func(t scope.Scope) {
		b := &bench{Scope: t, fleets: map[string]*fleet{}, rung: s.rung, logs: s.logs, turn: &turn{path: s.lock}}
		defer b.turn.giveBack()
		b.origin = hub.StartShaped(t, s.network)
		b.origin.TakesPushes = true
		for _, subject := range subjects {
			for _, column := range chosen {
				b.origin.Add(repository(subject, column), "latest", subject.bundle)
			}
		}
		b.measureAll(&report)
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
			if interrupted.Load() {
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

// recorded reads what an earlier run has measured.
func recorded(path string) (all []figures, err error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for line := range bytes.Lines(data) {
		var f figures
		if err := json.Unmarshal(line, &f); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, f)
	}
	return all, err
}

// record shows a measurement, and adds it to a file if there is one.
func record(path string, f figures) error {
	line, err := json.Marshal(f)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	os.Stderr.Write(line)
	if path == "" {
		return nil
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.Write(line)
	return err
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
