// Package scope is what a test gives to the things it starts: an end at which they are cleaned up, and a way to fail. Programs that
// are no tests get the same from Run.
package scope

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
)

// Scope is the part of testing.TB that this module's packages use.
type Scope interface {
	Cleanup(func())
	Error(...any)
	Errorf(string, ...any)
	Failed() bool
	Fatal(...any)
	Fatalf(string, ...any)
	Helper()
	Logf(string, ...any)
	Skip(...any)
	TempDir() string
}

// Run calls a function with a scope of its own, cleans up what it started, the last first, and returns what went wrong. Logf writes
// to standard error.
func Run(f func(Scope)) error {
	s := &scope{}
	s.apart(func() { f(s) })
	for len(s.cleanups) > 0 {
		last := s.cleanups[len(s.cleanups)-1]
		s.cleanups = s.cleanups[:len(s.cleanups)-1]
		s.apart(last)
	}
	return errors.Join(s.errors...)
}

type scope struct {
	mu       sync.Mutex
	cleanups []func()
	errors   []error
}

// apart calls a function on a goroutine that Fatal may end.
func (s *scope) apart(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if reason := recover(); reason != nil {
				s.Errorf("panic: %v\n%s", reason, debug.Stack())
			}
		}()
		f()
	}()
	<-done
}

func (s *scope) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

func (s *scope) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errors = append(s.errors, err)
}

func (s *scope) Error(args ...any) {
	s.fail(errors.New(strings.TrimSuffix(fmt.Sprintln(args...), "\n")))
}

func (s *scope) Errorf(format string, args ...any) { s.fail(fmt.Errorf(format, args...)) }

func (s *scope) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.errors) > 0
}

func (s *scope) Fatal(args ...any) {
	s.Error(args...)
	runtime.Goexit()
}

func (s *scope) Fatalf(format string, args ...any) {
	s.Errorf(format, args...)
	runtime.Goexit()
}

func (s *scope) Helper() {}

func (s *scope) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (s *scope) Skip(args ...any) { s.Fatal(args...) }

func (s *scope) TempDir() string {
	dir, err := os.MkdirTemp("", "silk-")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
