package main

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMiddle(t *testing.T) {
	if got := middle([]int{9, 1, 5}); got != 5 {
		t.Errorf("the median of three is %d", got)
	}
	if got := middle([]float64{4, 1, 2, 3}); got != 2.5 {
		t.Errorf("the median of four is %v", got)
	}
}

// Ratios are of one round: a machine that slows down in the second does not count for one column only.
func TestRatiosWithinARound(t *testing.T) {
	ready := func(column string, round int, seconds int) figures {
		return figures{Image: "a", Column: column, Round: round, Ready: time.Duration(seconds) * time.Second}
	}
	r := report{figures: []figures{
		ready(baseline, 0, 10), ready("silk", 0, 2),
		ready(baseline, 1, 100), ready("silk", 1, 20),
		ready("silk", 2, 1),
	}}
	got := r.sooner(subject{name: "a"}, column{name: "silk"}, func(f figures) time.Duration { return f.Ready })
	if got != "5.0x" {
		t.Errorf("sooner by %s", got)
	}
}

// The commonest word comes first, words as common by the alphabet; columns without one have none.
func TestLimits(t *testing.T) {
	var all []figures
	for _, limit := range []string{"turn", "link", "", "inflate", "link", ""} {
		all = append(all, figures{Limit: limit})
	}
	if got := limits(all); got != "link, inflate, turn" {
		t.Errorf("limited by %q", got)
	}
	if got := limits(all[2:3]); got != "" {
		t.Errorf("limited by %q", got)
	}
}

// Each row of the table has as many cells as its head.
func TestTable(t *testing.T) {
	silk := column{name: "silk", snapshotter: "silk"}
	r := report{
		subjects: []subject{{name: "a"}},
		columns:  []column{silk, {name: "erofs"}},
		figures:  []figures{{Image: "a", Column: "silk", Limit: "link", Ready: time.Second}},
	}
	var text strings.Builder
	r.table(&text)
	rows := strings.Split(strings.TrimSpace(text.String()), "\n")
	for _, row := range rows {
		if got, want := strings.Count(row, "|"), strings.Count(rows[0], "|"); got != want {
			t.Errorf("%d bars instead of %d: %s", got, want, row)
		}
	}
	if !strings.Contains(rows[3], "| link |") {
		t.Errorf("no limit in %s", rows[3])
	}
}

func TestColumns(t *testing.T) {
	all, err := pickColumns("", "stargz=/run/s.sock")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range all {
		names = append(names, c.name)
	}
	if got := strings.Join(names, " "); got != "overlayfs overlayfs-tuned erofs silk silk-redis silk-referrers silk-redis-profile silk-referrers-profile stargz" {
		t.Errorf("all columns are %s", got)
	}
	if some, err := pickColumns("silk,overlayfs", ""); err != nil || len(some) != 2 || some[0].name != "silk" {
		t.Errorf("of two columns, %v, %v", some, err)
	}
	if _, err := pickColumns("silk,nobody", ""); err == nil {
		t.Error("an unknown column is taken")
	}
	if _, err := pickColumns("", "stargz"); err == nil {
		t.Error("a snapshotter without a socket is taken")
	}
}

// Each image is measured with each column, and an image's columns follow each other.
func TestPairs(t *testing.T) {
	all := pairs(rand.New(rand.NewPCG(1, 2)), []subject{{name: "a"}, {name: "b"}}, []column{{name: "x"}, {name: "y"}, {name: "z"}})
	seen := map[string]bool{}
	for i, p := range all {
		seen[p.subject.name+p.column.name] = true
		if i%3 > 0 && p.subject.name != all[i-1].subject.name {
			t.Errorf("number %d is of another image than the one before", i)
		}
	}
	if len(all) != 6 || len(seen) != 6 {
		t.Errorf("%d pairs, %d of them different", len(all), len(seen))
	}
}

// All workers together do everything, once.
func TestShares(t *testing.T) {
	var all []entry
	for i := range 23 {
		all = append(all, entry{path: string(rune('a' + i)), directory: i%5 == 0})
	}
	seen := map[string]int{}
	for number := range 4 {
		s := share{number: number, of: 4}
		s.take(all)
		for _, e := range append(s.files, s.directories...) {
			seen[e.path]++
		}
		if len(s.files) < 4 || len(s.directories) < 1 {
			t.Errorf("worker %d has %d files and %d directories", number, len(s.files), len(s.directories))
		}
	}
	for _, e := range all {
		if seen[e.path] != 1 {
			t.Errorf("%s is done %d times", e.path, seen[e.path])
		}
	}
}

// A listing comes back as it was written.
func TestListing(t *testing.T) {
	path := t.TempDir() + "/listing"
	want := []entry{{"a b", 0, true}, {"a b/ü", 7, false}, {"empty", 0, false}}
	if err := writeListing(path, want); err != nil {
		t.Fatal(err)
	}
	if got, err := readListing(path); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}
