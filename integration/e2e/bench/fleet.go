package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/scope"
)

// fleet is what nodes of one column share. Each column has its own, so that none learns from another.
type fleet struct {
	kind   string
	redis  *node.Redis
	key    string
	taught map[string]bool
}

// fleet returns the column's; a column without one gets an empty one.
func (b *bench) fleet(c column) *fleet {
	if b.fleets[c.name] == nil {
		f := &fleet{kind: c.fleet, taught: map[string]bool{}}
		if c.fleet == "redis" {
			f.redis = node.StartRedis(b)
		}
		if c.fleet == "referrers" {
			f.key = filepath.Join(b.TempDir(), "key")
			if err := os.WriteFile(f.key, []byte(strings.Repeat("benchmark", 4)+"\n"), 0o600); err != nil {
				b.Fatal(err)
			}
		}
		b.fleets[c.name] = f
	}
	return b.fleets[c.name]
}

// settings is the part of silkd's configuration that makes a node a member.
func (f *fleet) settings() string {
	switch f.kind {
	case "redis":
		return f.redis.Config()
	case "referrers":
		return fmt.Sprintf("[share]\nkey_file = %q\n[share.referrers]\ndiscover = true\npublish = true\n", f.key)
	default:
		return ""
	}
}

// teach has another node pull an image once, and waits until the fleet knows what it learned.
func (b *bench) teach(s subject, c column) error {
	f := b.fleet(c)
	if c.fleet == "" || f.taught[s.name] {
		return nil
	}
	ref := b.reference(s)
	failed := scope.Run(func(t scope.Scope) {
		n := node.Start(t, c.options(f.settings(), b.rung))
		ctx := node.Context(t, "bench")
		if err := pull(ctx, n, ref, c.snapshotter); err != nil {
			t.Fatal(err)
		}
		n.Eventually("the teacher's image is whole", func() error { return whole(n, ref) })
		if c.profile {
			end, err := run(ctx, n, ref, c.snapshotter, "teacher")
			if err != nil {
				t.Fatal(err)
			}
			// Profiles are taken a few times until a start calms down.
			time.Sleep(10 * time.Second)
			if err := end(); err != nil {
				t.Fatal(err)
			}
		}
		n.Eventually("the fleet knows the image", func() error { return b.known(f, n, s) })
	})
	if failed != nil {
		return fmt.Errorf("teaching %s for %s: %w", s.name, c.name, failed)
	}
	f.taught[s.name] = true
	return nil
}

func whole(n *node.Node, ref string) error {
	whole, proved, err := state(n, ref)
	if err == nil && !(whole && proved) {
		err = fmt.Errorf("whole %v, proved %v", whole, proved)
	}
	return err
}

func (b *bench) known(f *fleet, n *node.Node, s subject) error {
	if f.kind == "redis" {
		return f.redis.Knows(n, b.reference(s))
	}
	var told bytes.Buffer
	for _, referrer := range b.origin.Referrers(s.name, image.Digest(s.bundle.Root.Body)) {
		told.Write(referrer.Body)
	}
	for _, layer := range s.bundle.LayerDigests {
		if !bytes.Contains(told.Bytes(), []byte(layer)) {
			return fmt.Errorf("no referrer tells of layer %s", layer)
		}
	}
	return nil
}
