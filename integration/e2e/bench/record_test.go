package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"silk.invalid/integration/e2e/internal/shape"
)

// A run goes on with what was recorded under the same conditions, and with the report that was begun then; under others it does not begin.
func TestRecord(t *testing.T) {
	dir := t.TempDir()
	s := settings{basics: basics{out: dir, name: "here"}, network: shape.Gigabit, rung: "auto", record: filepath.Join(dir, "record")}
	yesterday := time.Now().Add(-24 * time.Hour)
	first := report{settings: s, started: yesterday}
	if err := first.begin(); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		if err := record(s.record, figures{Image: "a", Column: "silk", Round: round}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(first.file+".md", nil, 0o600); err != nil {
		t.Fatal(err)
	}

	next := report{settings: s, started: time.Now()}
	if err := next.begin(); err != nil {
		t.Fatal(err)
	}
	if len(next.figures) != 2 || next.figures[1].Round != 1 || !next.started.Equal(yesterday) || next.file != first.file {
		t.Errorf("it goes on with %+v", next)
	}

	for what, change := range map[string]func(*settings){
		"network": func(s *settings) { s.network.FirstByte = 0 },
		"rung":    func(s *settings) { s.rung = "loop" },
		// Another name: that of a report which is there.
		"is there already": func(s *settings) { s.name = "there" },
	} {
		other := report{settings: s, started: time.Now()}
		change(&other.settings)
		if err := os.WriteFile(filepath.Join(dir, yesterday.Format("2006-01-02")+"-there.md"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := other.begin(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("another %s: %v", what, err)
		}
	}

	data, err := os.ReadFile(s.record)
	if err != nil {
		t.Fatal(err)
	}
	_, measured, _ := strings.Cut(string(data), "\n")
	for what, text := range map[string]string{
		"other versions": strings.Replace(string(data), `"versions":"`, `"versions":"older `, 1),
		"no first line":  measured,
	} {
		if err := os.WriteFile(s.record, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := (&report{settings: s, started: time.Now()}).begin(); err == nil || !strings.Contains(err.Error(), s.record) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
