package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// markdown has a table for each image.
func (s fsSettings) markdown(subjects []subject, all []timing, started time.Time, partial bool) string {
	var text strings.Builder
	fmt.Fprintf(&text, "# A whole image as a file system, %s\n\n%s", started.Format("2006-01-02"), environment())
	fmt.Fprintf(&text, "Milliseconds, medians of %d rounds; in brackets overlayfs's time of the same round by this one's: above 1 is faster than overlayfs.\n", s.rounds)
	if partial {
		text.WriteString("\n" + notAll)
	}
	for _, subject := range subjects {
		fsTable(&text, subject, all)
	}
	text.WriteString("\n*walk*: every directory listed, every entry's attributes read. *small*: every file up to 16 KiB opened and read. *read*: every file read. " +
		"*mmap*: every page of every file touched. *random*: 4,000 reads of 4 KiB in files above 1 MiB. *exec*: " + fmt.Sprint(len(programs)) + " programs of the base system started. " +
		"Page cache: pages of the image's files, and of the files that silk mounts them from, " + quiet.String() + " after the cold read by one process.\n")
	return text.String()
}

func fsTable(text *strings.Builder, s subject, all []timing) {
	grounds := groundsOf(all, s.name)
	for _, workers := range []int{1, 4} {
		fmt.Fprintf(text, "\n| %s, %d layers, %d at a time | %s |\n|---|%s\n", s.name, len(s.layers()), workers, strings.Join(grounds, " | "), strings.Repeat("--:|", len(grounds)))
		for _, task := range tasks {
			fmt.Fprintf(text, "| %s |", task)
			for _, ground := range grounds {
				text.WriteString(cell(all, s.name, ground, baseline, task, workers))
			}
			text.WriteString("\n")
		}
		if workers == 1 {
			fsCached(text, s.name, grounds, all)
		}
	}
}

// groundsOf lists those an image was measured on.
func groundsOf(all []timing, image string) (grounds []string) {
	for _, t := range all {
		if t.image == image && !slices.Contains(grounds, t.ground) {
			grounds = append(grounds, t.ground)
		}
	}
	slices.Sort(grounds)
	return grounds
}

// cell is a median, and the median of the ratios to another ground of the same round.
func cell(all []timing, image, ground, against string, task task, workers int) string {
	find := func(ground string) map[int]time.Duration {
		found := map[int]time.Duration{}
		for _, t := range all {
			if t.image == image && t.ground == ground && t.task == task && t.workers == workers {
				found[t.round] = t.took
			}
		}
		return found
	}
	var times, ratios []float64
	base := find(against)
	for round, took := range find(ground) {
		times = append(times, float64(took)/float64(time.Millisecond))
		if base[round] > 0 {
			ratios = append(ratios, float64(base[round])/float64(took))
		}
	}
	switch {
	case len(times) == 0:
		return " |"
	case ground == against || len(ratios) == 0:
		return fmt.Sprintf(" %.0f |", middle(times))
	default:
		return fmt.Sprintf(" %.0f (%.2f) |", middle(times), middle(ratios))
	}
}

func fsCached(text *strings.Builder, image string, grounds []string, all []timing) {
	text.WriteString("| page cache, MiB |")
	for _, ground := range grounds {
		var cached []int64
		for _, t := range all {
			if t.image == image && t.ground == ground && t.cached > 0 && t.workers == 1 {
				cached = append(cached, t.cached>>20)
			}
		}
		if len(cached) > 0 {
			fmt.Fprintf(text, " %d |", middle(cached))
		} else {
			text.WriteString(" |")
		}
	}
	text.WriteString("\n")
}
