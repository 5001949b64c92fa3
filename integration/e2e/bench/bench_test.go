package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/shape"
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

// In a fleet that knows an image no layer may stream in. Elsewhere it may.
func TestStreamedInAFleet(t *testing.T) {
	const says = `{"images": [
		{"reference": "other", "limit": "disk", "layers": [{"way": "streamed"}]},
		{"reference": "known", "limit": "link", "layers": [{"way": "filled"}, {"way": "here"}]},
		{"reference": "half", "limit": "inflate", "layers": [{"way": "filled"}, {"way": "streamed"}]}]}`
	var timing node.Timing
	if err := json.Unmarshal([]byte(says), &timing); err != nil {
		t.Fatal(err)
	}
	alone, fleet := column{snapshotter: "silk"}, column{snapshotter: "silk", fleet: "redis"}
	for _, c := range []struct {
		column     column
		ref, limit string
		failed     string
	}{
		{fleet, "known", "link", ""},
		{alone, "half", "inflate", ""},
		{fleet, "half", "", "streamed 1 of its 2 layers"},
		{alone, "nobody's", "", "does not know"},
	} {
		limit, err := limitOf(timing, c.column, c.ref)
		if limit != c.limit || (err == nil) != (c.failed == "") || !strings.Contains(fmt.Sprint(err), c.failed) {
			t.Errorf("%s in the fleet %q: %q, %v", c.ref, c.column.fleet, limit, err)
		}
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

// What is waited for ends with its context, and says what was missing last.
func TestAwait(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tries := 0
	try := func() error {
		if tries++; tries == 2 {
			cancel()
		}
		return errors.New("not yet")
	}
	if err := await(ctx, "it is there", try); !errors.Is(err, context.Canceled) || !strings.HasSuffix(err.Error(), "before it is there: not yet") {
		t.Errorf("%v", err)
	}
	if tries != 2 {
		t.Errorf("%d tries", tries)
	}
}

// A network that is slow in any way gives more time, and one that is not shaped the usual.
func TestDeadlines(t *testing.T) {
	s := subject{bytes: 600 << 20}
	for _, c := range []struct {
		network shape.Profile
		want    time.Duration
	}{
		{shape.Profile{}, node.Deadline},
		{shape.Profile{All: 1 << 20}, node.Deadline + 20*time.Minute},
		{shape.Profile{All: 100 << 20, Connection: 1 << 20}, node.Deadline + 20*time.Minute},
		{shape.Profile{FirstByte: time.Second}, node.Deadline + 20*time.Minute},
	} {
		if got := (settings{network: c.network}).deadline(s); got != c.want {
			t.Errorf("%+v: %v, not %v", c.network, got, c.want)
		}
		if one, two := (settings{network: c.network}).deadline(s), (settings{network: c.network}).deadline(s, s); two != 2*one {
			t.Errorf("%+v: two images have %v, one %v", c.network, two, one)
		}
	}
}

// Of a snapshotter that does not tell when it has all, nothing until then is in the tables.
func TestNothingUntilWhole(t *testing.T) {
	theirs := column{name: "theirs", snapshotter: "theirs", socket: "/s"}
	f := figures{Image: "a", Column: "theirs", Pull: time.Second, Ready: 2 * time.Second, Warm: time.Second, UntilReady: traffic{Requests: 3, Bytes: 2e6}}
	if err := (&bench{}).awaitWhole(t.Context(), nil, "", theirs, time.Now(), traffic{}, &f, nil); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	report{figures: []figures{f}}.row(&text, subject{name: "a"}, theirs)
	if text.String() != "| theirs | 1.00 | 2.00 |  |  |  |  | 1.00 | 2.0, 3 |  |  |  |  |\n" {
		t.Error(text.String())
	}
	r := gathered()
	r.columns = []column{theirs}
	r.taken = append(r.taken, gathering{Crowd: "2 images", Column: "theirs", Pulled: time.Second}, gathering{Crowd: "2 images", Column: "theirs", Pulled: time.Second, AtOnce: true})
	if text := r.markdown(); !strings.Contains(text, "| theirs |  |  |  |  |  |  |\n") {
		t.Error(text)
	}
}

// What failed shows: in the head how many, in its row how many rounds are left.
func TestFailures(t *testing.T) {
	silk := column{name: "silk", snapshotter: "silk"}
	r := report{
		settings: settings{basics: basics{rounds: 3}}, subjects: []subject{{name: "a"}}, columns: []column{silk, {name: "erofs"}, {name: baseline}}, failed: 5,
		figures: []figures{{Image: "a", Column: "silk", Busy: true}, {Image: "a", Column: baseline}, {Image: "a", Column: baseline}, {Image: "a", Column: baseline}},
	}
	text := r.markdown("")
	for _, want := range []string{"**5 of 9 measurements failed**", "| silk (1 of 3) \\* |", "| erofs | no figure |", "| overlayfs |"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	crowd := gathered()
	crowd.settings.rounds, crowd.failed = 2, 1
	text = crowd.markdown()
	for _, want := range []string{"**1 of 11 measurements failed**", "| silk | 5.50 |", "| silk (1 of 2) | 8.00 |", "| overlayfs (0 of 2) | no figure | 4.00 |"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	crowd.failed = 0
	if text := crowd.markdown(); strings.Contains(text, "failed") {
		t.Errorf("nothing failed:\n%s", text)
	}
}

// Only a network without any limit is none, in a report's name and in its head.
func TestUnshaped(t *testing.T) {
	for _, c := range []struct {
		network  shape.Profile
		unshaped bool
	}{
		{shape.Profile{}, true},
		{shape.Gigabit, false},
		{shape.Profile{Connection: 80 << 20, FirstByte: 20 * time.Millisecond}, false},
		{shape.Profile{Connection: 80 << 20}, false},
		{shape.Profile{FirstByte: 20 * time.Millisecond}, false},
	} {
		s := settings{basics: basics{out: "x", name: "here"}, network: c.network, rung: "loop", logs: "y"}
		if name := s.file(time.Unix(0, 0).UTC(), "-crowd"); name != "x/1970-01-01-here-crowd" && !c.unshaped || name != "x/1970-01-01-here-crowd-unshaped" && c.unshaped {
			t.Errorf("%+v: %s", c.network, name)
		}
		var head strings.Builder
		s.head(&head, "A", time.Now(), tally{})
		if strings.Contains(head.String(), "as fast as loopback") != c.unshaped {
			t.Errorf("%+v: %s", c.network, head.String())
		}
		for _, what := range []string{"(rung): loop", "debug logs"} {
			if !strings.Contains(head.String(), what) {
				t.Errorf("no %q in %s", what, head.String())
			}
		}
	}
}

// Folders are made at the start, and what is there already is not replaced: of neither kind.
func TestReportsAreNotReplaced(t *testing.T) {
	s := settings{basics: basics{out: filepath.Join(t.TempDir(), "new/reports"), name: "here"}, logs: filepath.Join(t.TempDir(), "new/logs")}
	file := s.file(time.Now(), "")
	if err := s.ready(file); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{s.out, s.logs} {
		if info, err := os.Stat(folder); err != nil || !info.IsDir() {
			t.Errorf("%s: %v", folder, err)
		}
	}
	for _, ending := range []string{".md", ".svg"} {
		if err := os.WriteFile(file+ending, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.ready(file); err == nil || !strings.Contains(err.Error(), file+ending) {
			t.Errorf("%s: %v", ending, err)
		}
		os.Remove(file + ending)
	}
	if s.out = ""; s.file(time.Now(), "") != "" || s.ready("") != nil {
		t.Error("one that is only printed has a file")
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
	if got := strings.Join(names, " "); got != "overlayfs overlayfs-tuned erofs silk silk-redis silk-referrers silk-redis-profile silk-redis-sibling silk-referrers-profile stargz" {
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
	for _, names := range []string{"silk=/s", "erofs=/s", "stargz=/s,stargz=/t"} {
		if _, err := pickColumns("overlayfs", names); err == nil {
			t.Errorf("two columns have one name: %s", names)
		}
	}
}

// --quick chooses what was not said.
func TestQuick(t *testing.T) {
	for _, c := range []struct {
		arguments       string
		images, columns string
		rounds          int
	}{
		{"", "", "", 3},
		{"--quick", "python-service,layers", "overlayfs,silk", 1},
		{"--quick --rounds 3", "python-service,layers", "overlayfs,silk", 3},
		{"--rounds 2 --quick --images ml", "ml", "overlayfs,silk", 2},
		{"--quick --columns erofs", "python-service,layers", "erofs", 1},
	} {
		if s := pullSettings(strings.Fields(c.arguments)); s.images != c.images || s.columns != c.columns || s.rounds != c.rounds {
			t.Errorf("%s: %q, %q, %d rounds", c.arguments, s.images, s.columns, s.rounds)
		}
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

// gathered is a crowd's report of two rounds: the second on a machine ten times as slow, and a round of one side only.
func gathered() crowdReport {
	layers := func(name string, sizes ...int) subject {
		s := subject{name: name}
		var all []string
		for _, size := range sizes {
			all = append(all, fmt.Sprintf(`{"size": %d}`, size))
			s.bundle.LayerDigests = append(s.bundle.LayerDigests, fmt.Sprint("sha256:", size))
		}
		s.bundle.Root.Body = []byte(`{"layers": [` + strings.Join(all, ",") + `]}`)
		return s
	}
	a, b := layers("a", 1000, 500), layers("b", 1000, 2500)
	take := func(crowd, column string, round int, atOnce bool, seconds int, bytes int64) gathering {
		g := gathering{Crowd: crowd, Column: column, Round: round, AtOnce: atOnce, Took: time.Duration(seconds) * time.Second, Bytes: bytes}
		if column == "silk" {
			g.Memory = 64 << 20
		}
		return g
	}
	return crowdReport{
		settings: crowdSettings{pods: 20},
		crowds:   []crowd{{name: "a", subjects: []subject{a}, pods: 20}, {name: "2 images", subjects: []subject{a, b}}},
		columns:  []column{{name: "silk", snapshotter: "silk", says: "x"}, {name: baseline, says: "y"}},
		taken: []gathering{
			take("a", "silk", 0, false, 1, 1500), take("a", "silk", 0, true, 3, 1500),
			take("a", "silk", 1, false, 10, 1500), take("a", "silk", 1, true, 30, 3000),
			take("a", "silk", 2, true, 7, 1500),
			take("a", baseline, 0, true, 4, 3000),
			take("2 images", "silk", 0, false, 8, 4000), take("2 images", "silk", 0, true, 6, 5000),
			take("2 images", baseline, 0, false, 20, 4000), take("2 images", baseline, 0, true, 10, 4000),
		},
	}
}

// Ratios are of one round, bytes of the run at once, and a layer of two images counts once.
func TestCrowdReport(t *testing.T) {
	text := gathered().markdown()
	for _, row := range []string{
		"| **a**, 0 MB in 2 layers | | | | | | |",
		"| silk | 5.50 | 7.00 | 1.3x | 3.00 | 1.00 | 64 |",
		"| overlayfs | no figure | 4.00 |  |  | 2.00 |  |",
		"| **2 images**, 0 MB in 3 layers | | | | | | |",
		"| silk | 8.00 | 6.00 | 1.7x | 0.75 | 1.25 | 64 |",
		"| overlayfs | 20.00 | 10.00 |  | 0.50 | 1.00 |  |",
	} {
		if !strings.Contains(text, row+"\n") {
			t.Errorf("no row %q in\n%s", row, text)
		}
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "|") && strings.Count(line, "|") != 8 {
			t.Errorf("not 7 cells: %s", line)
		}
	}
}

// What unpacks to the same is pulled once, whatever its blobs.
func TestDistinctImages(t *testing.T) {
	of := func(name string, diffIDs ...string) subject {
		return subject{name: name, bundle: image.Bundle{DiffIDs: diffIDs}}
	}
	a, b, same := of("a", "base", "a"), of("b", "base", "b"), of("same", "base", "a")
	if err := (crowd{subjects: []subject{a, b}}).distinct(); err != nil {
		t.Error(err)
	}
	if err := (crowd{subjects: []subject{a, b, same}}).distinct(); err == nil || !strings.HasPrefix(err.Error(), "same unpacks to the layers of a") {
		t.Errorf("two of a kind: %v", err)
	}
}

// A table of which nothing was measured is left away.
func TestCrowdReportOfOneKind(t *testing.T) {
	r := gathered()
	r.taken = r.taken[:6]
	if text := r.markdown(); strings.Contains(text, "one after the other") || !strings.Contains(text, "20 pods") {
		t.Errorf("not of pods alone:\n%s", text)
	}
}
