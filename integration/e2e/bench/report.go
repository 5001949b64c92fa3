package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// report is what a run found, as Markdown and as a chart.
type report struct {
	settings settings
	subjects []subject
	columns  []column
	figures  []figures
	failed   int
	started  time.Time
	file     string
}

// write keeps the report and its chart where the settings say, and prints it when no more is to come.
func (r report) write(last bool) error {
	if len(r.figures) == 0 {
		return nil
	}
	if r.file != "" {
		if err := r.keep(); err != nil {
			return err
		}
	}
	if !last {
		return nil
	}
	_, err := os.Stdout.WriteString(r.markdown(""))
	return err
}

func (r report) keep() error {
	if err := os.WriteFile(r.file+".svg", []byte(r.chart()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(r.file+".md", []byte(r.markdown(filepath.Base(r.file)+".svg")), 0o644)
}

func (r report) markdown(chart string) string {
	var text strings.Builder
	r.settings.head(&text, "Pull to ready", r.started, tally{len(r.figures), r.busy(), r.failed})
	if chart != "" {
		fmt.Fprintf(&text, "![seconds from the pull to the container's ready line](%s)\n\n", chart)
	}
	r.table(&text)
	r.legend(&text)
	return text.String()
}

func (r report) busy() (n int) {
	for _, f := range r.figures {
		if f.Busy {
			n++
		}
	}
	return n
}

// has tells whether a round's measurement was taken.
func (r report) has(p pair, round int) bool {
	return slices.ContainsFunc(r.of(p.subject.name, p.column.name), func(f figures) bool { return f.Round == round })
}

// of are the figures of an image and a column.
func (r report) of(image, column string) (found []figures) {
	for _, f := range r.figures {
		if f.Image == image && f.Column == column {
			found = append(found, f)
		}
	}
	return found
}

func (r report) table(text *strings.Builder) {
	text.WriteString("| image, column | pull s | ready s | sooner | whole s | proved s | sooner | warm s | until ready: MB, requests | until whole: MB, requests | limited by | containerd: MiB, CPU s | silkd: MiB, CPU s |\n")
	text.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|--:|\n")
	for _, s := range r.subjects {
		if !slices.ContainsFunc(r.figures, func(f figures) bool { return f.Image == s.name }) {
			continue
		}
		fmt.Fprintf(text, "| **%s**, %.0f MB in %d layers%s | | | | | | | | | | | | |\n", s.name, float64(s.bytes)/1e6, len(s.layers()), r.wire(s))
		for _, c := range r.columns {
			r.row(text, s, c)
		}
	}
}

// wire is the time that the image's bytes need on the link.
func (r report) wire(s subject) string {
	if r.settings.network.All == 0 {
		return ""
	}
	return fmt.Sprintf("; bytes / link %.1f s", float64(s.bytes)/float64(r.settings.network.All))
}

func (r report) row(text *strings.Builder, s subject, c column) {
	all := r.of(s.name, c.name)
	if len(all) == 0 {
		fmt.Fprintf(text, "| %s | no figure | | | | | | | | | | | |\n", c.name)
		return
	}
	name := r.settings.named(c.name, slices.ContainsFunc(all, func(f figures) bool { return f.Busy }), len(all))
	seconds := func(of func(figures) time.Duration) string {
		if took := median(all, of); took > 0 {
			return fmt.Sprintf("%.2f", took.Seconds())
		}
		return ""
	}
	// Until whole, nothing is known where nobody tells when that is.
	asked := func(of func(figures) traffic) string {
		requests := median(all, func(f figures) int { return of(f).Requests })
		if requests == 0 {
			return ""
		}
		return fmt.Sprintf("%.1f, %d", float64(median(all, func(f figures) int64 { return of(f).Bytes }))/1e6, requests)
	}
	used := func(of func(figures) use) string {
		if of(all[0]).Memory == 0 {
			return ""
		}
		return fmt.Sprintf("%d, %.1f", median(all, func(f figures) int64 { return of(f).Memory })>>20, median(all, func(f figures) time.Duration { return of(f).CPU }).Seconds())
	}
	fmt.Fprintf(text, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", name,
		seconds(func(f figures) time.Duration { return f.Pull }),
		seconds(func(f figures) time.Duration { return f.Ready }),
		r.sooner(s, c, func(f figures) time.Duration { return f.Ready }),
		seconds(func(f figures) time.Duration { return f.Whole }),
		seconds(func(f figures) time.Duration { return f.Proved }),
		r.sooner(s, c, func(f figures) time.Duration { return f.Proved }),
		seconds(func(f figures) time.Duration { return f.Warm }),
		asked(func(f figures) traffic { return f.UntilReady }), asked(func(f figures) traffic { return f.UntilWhole }), limits(all),
		used(func(f figures) use { return f.Containerd }), used(func(f figures) use { return f.Silkd }))
}

// limits are the words of all rounds, the commonest first.
func limits(all []figures) string {
	times := map[string]int{}
	for _, f := range all {
		if f.Limit != "" {
			times[f.Limit]++
		}
	}
	words := slices.Sorted(maps.Keys(times))
	slices.SortStableFunc(words, func(a, b string) int { return times[b] - times[a] })
	return strings.Join(words, ", ")
}

// sooner compares with the baseline of the same round.
func (r report) sooner(s subject, c column, of func(figures) time.Duration) string {
	var ratios []float64
	for _, base := range r.of(s.name, baseline) {
		for _, f := range r.of(s.name, c.name) {
			if f.Round == base.Round && of(f) > 0 {
				ratios = append(ratios, float64(of(base))/float64(of(f)))
			}
		}
	}
	if len(ratios) == 0 || c.name == baseline {
		return ""
	}
	return fmt.Sprintf("%.1fx", middle(ratios))
}

func (r report) legend(text *strings.Builder) {
	text.WriteString("\nSeconds are since the pull began. *pull*: containerd's pull returned. *ready*: the container printed its line. *whole*: every byte is here. " +
		"*proved*: and was compared with the image's digests; either to 50 ms, or to half a second before *ready*. *warm*: a second container of the image that is here by then, from its creation to its line. " +
		"Memory is the daemon's peak, CPU its own with that of its helpers (igzip, mkfs.erofs), until whole. " +
		"*limited by*: what decided when silk had the image whole, as `silk status --timing` tells it (docs/operations.md); several words are of several rounds.\n\n")
	for _, c := range r.columns {
		fmt.Fprintf(text, "- *%s*: %s\n", c.name, c.says)
	}
}

type number interface {
	~int | ~int64 | ~float64
}

func median[F any, T number](all []F, of func(F) T) T {
	var values []T
	for _, f := range all {
		values = append(values, of(f))
	}
	return middle(values)
}

// middle is the median; of an even number of values, the mean of the two in the middle.
func middle[T number](values []T) T {
	slices.Sort(values)
	half := len(values) / 2
	if len(values)%2 == 1 {
		return values[half]
	}
	return (values[half-1] + values[half]) / 2
}
