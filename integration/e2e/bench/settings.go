package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/scope"
	"silk.invalid/integration/e2e/internal/shape"
)

// basics are what all commands can be told.
type basics struct {
	builder, lock, out, name string
	rounds                   int
	seed                     uint64
}

func (s *basics) define(flags *flag.FlagSet) {
	flags.IntVar(&s.rounds, "rounds", 3, "measurements of each")
	flags.Uint64Var(&s.seed, "seed", uint64(time.Now().UnixNano()), "of the random order")
	flags.StringVar(&s.lock, "lock", "", "a file that is locked during each measurement, where others on the machine lock it while they use its CPUs")
	flags.StringVar(&s.out, "out", "", "the folder for the report, which replaces none that is there; only printed when not given")
	flags.StringVar(&s.name, "machine", "", "the machine's name in the report's file name (the host's)")
	flags.StringVar(&s.builder, "builder", "../../hack/images/build", "builds images")
}

// file is where a report is kept, without what its name ends with; empty when it is only printed.
func (s basics) file(started time.Time, kind string) string {
	if s.out == "" {
		return ""
	}
	name := s.name
	if name == "" {
		name, _ = os.Hostname()
	}
	return filepath.Join(s.out, started.Format("2006-01-02")+"-"+name+kind)
}

// free makes the folder for a report before anything is measured. What is there under its name is another run's, and is not replaced.
func free(file string) error {
	if file == "" {
		return nil
	}
	for _, ending := range []string{".md", ".svg"} {
		if _, err := os.Lstat(file + ending); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is there already: move it away, or give this run's report another name with --machine", file+ending)
		}
	}
	return os.MkdirAll(filepath.Dir(file), 0o755)
}

// publish prints a report, and keeps it where it has a file.
func publish(text, file string) error {
	if file != "" {
		if err := os.WriteFile(file+".md", []byte(text), 0o644); err != nil {
			return err
		}
	}
	_, err := os.Stdout.WriteString(text)
	return err
}

// settings are what commands that pull can be told.
type settings struct {
	basics
	images, columns, proxies string
	rung                     string
	network                  shape.Profile
	record, logs             string
}

// parse reads the arguments: the flags that a command has for itself, and those of all that pull.
func (s *settings) parse(flags *flag.FlagSet, arguments []string) {
	s.define(flags)
	flags.StringVar(&s.columns, "columns", s.columns, "columns, with commas between; empty is all")
	flags.StringVar(&s.proxies, "snapshotter", "", "a proxy snapshotter that runs already, as NAME=/path/to/socket; several with commas between")
	flags.StringVar(&s.rung, "rung", "auto", "how silk mounts: auto, file, loop")
	flags.StringVar(&s.logs, "logs", "", "a folder for silkd's logs of all measurements, with every range that it fetched")
	s.network = shape.Gigabit
	flags.Int64Var(&s.network.All, "rate", s.network.All, "bytes a second that the registry sends in all; 0 is no limit")
	flags.Int64Var(&s.network.Connection, "connection-rate", s.network.Connection, "bytes a second that it sends on one connection; 0 is no limit")
	flags.DurationVar(&s.network.FirstByte, "first-byte", s.network.FirstByte, "time from a request to the first byte of its answer")
	unshaped := flags.Bool("unshaped", false, "as fast as loopback: no limit and no delay")
	parse(flags, arguments)
	if *unshaped {
		s.network = shape.Profile{}
	}
}

// parse takes nothing but flags: those after another word would be lost.
func parse(flags *flag.FlagSet, arguments []string) {
	flags.Parse(arguments)
	if word := flags.Arg(0); word != "" {
		fmt.Fprintf(os.Stderr, "error: %s takes no %q: see --help\n", flags.Name(), word)
		os.Exit(2)
	}
}

// file tells runs without a network from others.
func (s settings) file(started time.Time, kind string) string {
	if s.network == (shape.Profile{}) {
		kind += "-unshaped"
	}
	return s.basics.file(started, kind)
}

// tally counts measurements: all that are reported, those of them that began on a busy machine, and those that failed.
type tally struct{ all, busy, failed int }

// head begins a report.
func (s settings) head(text *strings.Builder, title string, started time.Time, count tally) {
	fmt.Fprintf(text, "# %s, %s\n\n%s", title, started.Format("2006-01-02"), environment())
	if s.network == (shape.Profile{}) {
		text.WriteString("The registry answers as fast as loopback.\n")
	} else {
		fmt.Fprintf(text, "The registry sends %s in all, %s a connection, and its first byte after %v.\n",
			rate(s.network.All), rate(s.network.Connection), s.network.FirstByte)
	}
	if s.rung != "" {
		fmt.Fprintf(text, "How silk mounts layers (rung): %s.\n", s.rung)
	}
	if s.logs != "" {
		text.WriteString("silkd wrote debug logs meanwhile (--logs).\n")
	}
	fmt.Fprintf(text, "Caches are cold, the order is random (seed %d), figures are medians of up to %d rounds; ratios are medians of each round's own.\n", s.seed, s.rounds)
	if count.busy > 0 {
		fmt.Fprintf(text, "%d of the %d measurements began while other programs used more than %.0f %% of the CPUs: marked with \\*.\n", count.busy, count.all, busyShare*100)
	}
	if count.failed > 0 {
		fmt.Fprintf(text, "**%d of %d measurements failed** and are left out.\n", count.failed, count.all+count.failed)
	}
	text.WriteString("\n")
}

// named is a row's name: with an asterisk where the machine was busy, and with the number of its rounds where some are missing.
func (s basics) named(name string, busy bool, rounds int) string {
	if rounds < s.rounds {
		name += fmt.Sprintf(" (%d of %d)", rounds, s.rounds)
	}
	if busy {
		name += " \\*"
	}
	return name
}

// notAll is said where something failed, and no row tells how many rounds it has.
const notAll = "**Not all was measured**: some figures are of fewer rounds, or missing.\n"

func rate(bytesPerSecond int64) string {
	if bytesPerSecond == 0 {
		return "without limit"
	}
	return fmt.Sprintf("%.0f MB/s", float64(bytesPerSecond)/1e6)
}

// deadline is what may pass until images were measured: what is usual for each, and twice what its bytes need, all on one connection and
// each MiB with an answer of its own.
func (s settings) deadline(subjects ...subject) (limit time.Duration) {
	for _, subject := range subjects {
		answers := time.Duration(subject.bytes>>20) * s.network.FirstByte
		limit += node.Deadline + 2*(answers+max(takes(subject.bytes, s.network.All), takes(subject.bytes, s.network.Connection)))
	}
	return limit
}

// takes is the time of bytes at a rate; 0 is no limit.
func takes(bytes, bytesPerSecond int64) time.Duration {
	if bytesPerSecond == 0 {
		return 0
	}
	return time.Duration(float64(bytes) / float64(bytesPerSecond) * float64(time.Second))
}

// ready makes the folders for a run's logs and for its report.
func (s settings) ready(file string) error {
	if s.logs != "" {
		if err := os.MkdirAll(s.logs, 0o755); err != nil {
			return err
		}
	}
	return free(file)
}

// bench has a registry with each image for each column.
func (s settings) bench(t scope.Scope, subjects []subject, chosen []column) *bench {
	b := &bench{Scope: t, settings: s, fleets: map[string]*fleet{}, turn: &turn{path: s.lock}}
	b.origin = hub.StartShaped(t, s.network)
	b.origin.TakesPushes = true
	for _, subject := range subjects {
		for _, column := range chosen {
			b.origin.Add(repository(subject, column), "latest", subject.bundle)
		}
	}
	t.Cleanup(b.turn.giveBack)
	return b
}
