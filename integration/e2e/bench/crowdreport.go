package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// crowdReport is what a run of crowds found, as Markdown.
type crowdReport struct {
	settings crowdSettings
	crowds   []crowd
	columns  []column
	taken    []gathering
	failed   int
	started  time.Time
	file     string
}

// write keeps the report where the settings say, and prints it when no more is to come.
func (r crowdReport) write(last bool) error {
	if len(r.taken) == 0 {
		return nil
	}
	text := r.markdown()
	if r.file != "" {
		if err := os.WriteFile(r.file+".md", []byte(text), 0o644); err != nil {
			return err
		}
	}
	if !last {
		return nil
	}
	_, err := os.Stdout.WriteString(text)
	return err
}

func (r crowdReport) markdown() string {
	var text strings.Builder
	busy := 0
	for _, g := range r.taken {
		if g.Busy {
			busy++
		}
	}
	r.settings.head(&text, "Many at once", r.started, tally{len(r.taken), busy, r.failed})
	r.podsTable(&text)
	r.imagesTable(&text)
	text.WriteString("Seconds are since the first pull began. *sooner*: than " + baseline + " at once. " +
		"*bytes*: what the registry sent of blobs until every image was whole, by what the compressed layers have, each counted once: 1 is no byte twice. " +
		"*silkd: MiB*: its peak memory. All three are of what is done at once.\n\n")
	for _, c := range r.columns {
		fmt.Fprintf(&text, "- *%s*: %s\n", c.name, c.says)
	}
	return text.String()
}

func (r crowdReport) podsTable(text *strings.Builder) {
	pods := r.settings.pods
	begun := false
	for _, c := range r.crowds {
		if c.pods == 0 || !r.measured(c) {
			continue
		}
		if !begun {
			begun = true
			fmt.Fprintf(text, "Each of %d pods on an empty node asks for the image and then starts its container, all at once, as kubelet lets them; time is until the last container printed its line.\n\n", pods)
			fmt.Fprintf(text, "| image, column | 1 pod s | %d pods s | sooner | %d / 1 | bytes | silkd: MiB |\n|---|--:|--:|--:|--:|--:|--:|\n", pods, pods)
		}
		r.rows(text, c)
	}
	if begun {
		text.WriteString("\n")
	}
}

func (r crowdReport) imagesTable(text *strings.Builder) {
	for _, c := range r.crowds {
		if c.pods > 0 || !r.measured(c) {
			continue
		}
		var names []string
		for _, s := range c.subjects {
			names = append(names, s.name)
		}
		fmt.Fprintf(text, "Images are pulled on an empty node, one after the other and on another node all at once: %s. Time is until every pull returned and every image is whole.\n\n", strings.Join(names, ", "))
		text.WriteString("| images, column | one after the other s | at once s | sooner | at once / one after the other | bytes | silkd: MiB |\n|---|--:|--:|--:|--:|--:|--:|\n")
		r.rows(text, c)
		text.WriteString("\n")
	}
}

func (r crowdReport) measured(c crowd) bool {
	return slices.ContainsFunc(r.taken, func(g gathering) bool { return g.Crowd == c.name })
}

// rows are a crowd's: its size, and each column.
func (r crowdReport) rows(text *strings.Builder, c crowd) {
	wire := ""
	if all := r.settings.network.All; all > 0 {
		wire = fmt.Sprintf("; bytes / link %.1f s", float64(c.bytes())/float64(all))
	}
	fmt.Fprintf(text, "| **%s**, %.0f MB in %d layers%s | | | | | | |\n", c.name, float64(c.bytes())/1e6, len(c.layers()), wire)
	for _, way := range r.columns {
		alone, atOnce := r.of(c, way.name, false), r.of(c, way.name, true)
		busy := slices.ContainsFunc(slices.Concat(alone, atOnce), func(g gathering) bool { return g.Busy })
		name := r.settings.named(way.name, busy, min(len(alone), len(atOnce)))
		var sooner, bytes, memory string
		if way.name != baseline {
			sooner = ratio(r.of(c, baseline, true), atOnce, "%.1fx")
		}
		if len(atOnce) > 0 {
			if sent := median(atOnce, func(g gathering) int64 { return g.Bytes }); sent > 0 {
				bytes = fmt.Sprintf("%.2f", float64(sent)/float64(c.bytes()))
			}
			if peak := median(atOnce, func(g gathering) int64 { return g.Memory }); peak > 0 {
				memory = fmt.Sprint(peak >> 20)
			}
		}
		fmt.Fprintf(text, "| %s | %s | %s | %s | %s | %s | %s |\n", name, took(alone), took(atOnce), sooner, ratio(atOnce, alone, "%.2f"), bytes, memory)
	}
}

// of are the measurements of a crowd and a column, at once or of what that is compared with.
func (r crowdReport) of(c crowd, column string, atOnce bool) (found []gathering) {
	for _, g := range r.taken {
		if g.Crowd == c.name && g.Column == column && g.AtOnce == atOnce {
			found = append(found, g)
		}
	}
	return found
}

func took(all []gathering) string {
	if len(all) == 0 {
		return "no figure"
	}
	if time := median(all, func(g gathering) time.Duration { return g.Took }); time > 0 {
		return fmt.Sprintf("%.2f", time.Seconds())
	}
	return ""
}

// ratio compares what was taken in the same round.
func ratio(of, by []gathering, format string) string {
	var ratios []float64
	for _, a := range of {
		for _, b := range by {
			if a.Round == b.Round && a.Took > 0 && b.Took > 0 {
				ratios = append(ratios, float64(a.Took)/float64(b.Took))
			}
		}
	}
	if len(ratios) == 0 {
		return ""
	}
	return fmt.Sprintf(format, middle(ratios))
}
