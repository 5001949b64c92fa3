package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"silk.invalid/integration/e2e/internal/shape"
)

// conditions are the first line of a record: what all of its measurements have in common, and the report that was begun with it.
type conditions struct {
	Network  shape.Profile `json:"network"`
	Rung     string        `json:"rung"`
	Versions string        `json:"versions"` // of machine and programs
	Started  time.Time     `json:"started"`
	Report   string        `json:"report,omitempty"` // as report.file
}

// begin takes over what an earlier run recorded, whose report this one goes on with, or begins the record.
func (r *report) begin() error {
	s := r.settings
	now := conditions{Network: s.network, Rung: s.rung, Versions: strings.TrimSpace(environment()), Started: r.started}
	first, all, err := recorded(s.record)
	if err != nil {
		return err
	}
	var own string
	if first != nil {
		if err := first.same(now); err != nil {
			return fmt.Errorf("%s: %w", s.record, err)
		}
		r.figures, r.started, own = all, first.Started, first.Report
	}
	r.file = s.file(r.started, "")
	replaces := r.file
	if replaces == own {
		replaces = ""
	}
	if err := s.ready(replaces); err != nil {
		return err
	}
	if first != nil || s.record == "" {
		return nil
	}
	now.Report = r.file
	return record(s.record, now)
}

// same fails when measurements under other conditions are not to be compared with these.
func (c conditions) same(now conditions) error {
	for _, part := range []struct {
		name      string
		then, now any
	}{{"network", c.Network, now.Network}, {"rung", c.Rung, now.Rung}, {"environment", c.Versions, now.Versions}} {
		if part.then != part.now {
			return fmt.Errorf("what it has was measured with another %s, %+v and not %+v: record this in another file", part.name, part.then, part.now)
		}
	}
	return nil
}

// recorded reads a record; there may be none yet.
func recorded(path string) (first *conditions, all []figures, err error) {
	if path == "" {
		return nil, nil, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for line := range bytes.Lines(data) {
		if first == nil {
			first = &conditions{}
			if err := json.Unmarshal(line, first); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", path, err)
			}
			continue
		}
		var f figures
		if err := json.Unmarshal(line, &f); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, f)
	}
	return first, all, nil
}

// record shows a line, and adds it to a file if there is one.
func record(path string, f any) error {
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
