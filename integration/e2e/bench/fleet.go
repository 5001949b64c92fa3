package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
	"silk.invalid/integration/e2e/internal/scope"
)

// fleet is what nodes of one column share. Each column has its own, so that none learns from another.
type fleet struct {
	column
	redis  *node.Redis
	key    string
	taught map[string]bool
}

// fleet returns the column's; a column without one gets an empty one.
func (b *bench) fleet(c column) *fleet {
	if b.fleets[c.name] == nil {
		f := &fleet{column: c, taught: map[string]bool{}}
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

// settings is the part of silkd's configuration that makes a node a member, which may publish or not where that is a choice: Redis leaves none.
func (f *fleet) settings(publish bool) string {
	switch f.fleet {
	case "redis":
		return f.redis.Measured()
	case "referrers":
		return fmt.Sprintf("[share]\nkey_file = %q\n[share.referrers]\ndiscover = true\npublish = %v\n", f.key, publish)
	default:
		return ""
	}
}

// join prepares the fleet for a node that is measured, and returns the node's settings. What starts on earlier ones taught is forgotten, or
// was never published: all find what the teacher left.
func (b *bench) join(s subject, c column) (settings string, err error) {
	f := b.fleet(c)
	return f.settings(false), f.restore(b.profileKeys(s, c))
}

// keep keeps values as they are, of those keys that have one.
func (f *fleet) keep(keys []string) error {
	for _, key := range keys {
		if f.redis == nil {
			return nil
		}
		if _, err := f.redis.Do("COPY", key, kept(key), "REPLACE"); err != nil {
			return err
		}
	}
	return nil
}

// restore brings back what was kept, and removes what was not there then.
func (f *fleet) restore(keys []string) error {
	for _, key := range keys {
		if f.redis == nil {
			return nil
		}
		if _, err := f.redis.Do("DEL", key); err != nil {
			return err
		}
		if _, err := f.redis.Do("COPY", kept(key), key); err != nil {
			return err
		}
	}
	return nil
}

// profileKeys are those of what is told of an image's starts: its own profile, and its repository's.
func (b *bench) profileKeys(s subject, c column) []string {
	return []string{profileKey(s), b.repositoryKey(s, c)}
}

func profileKey(s subject) string {
	return "silk:1:profile:" + strings.TrimPrefix(image.Digest(s.bundle.Root.Body), "sha256:")
}

// repositoryKey is that of the repository's last profile (docs/formats/share.md).
func (b *bench) repositoryKey(s subject, c column) string {
	// As Rust calls it.
	processor := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	name := "repository " + processor + " " + b.origin.Host + "/" + repository(s, c)
	return "silk:1:profile:" + strings.TrimPrefix(image.Digest([]byte(name)), "sha256:")
}

// kept is where a value stays that measured nodes replace.
func kept(key string) string { return "kept:" + key }

// teach has another node pull an image once, and waits until the fleet knows what it learned.
func (b *bench) teach(s subject, c column) error {
	f := b.fleet(c)
	if c.fleet == "" || f.taught[s.name] {
		return nil
	}
	ref := reference(b.origin, s, c)
	failed := scope.Run(func(t scope.Scope) {
		n := node.Start(t, c.options(f.settings(true), b.rung, false))
		// With the earlier build, two images.
		ctx := within(t, b.deadline(s, s))
		if err := pull(ctx, n, ref, c.snapshotter); err != nil {
			t.Fatal(err)
		}
		if err := await(ctx, "the teacher's image is whole", func() error { return whole(n, ref) }); err != nil {
			t.Fatal(err)
		}
		started := ref
		if c.sibling {
			rebuilt, err := s.bundle.Rebuilt()
			if err != nil {
				t.Fatal(err)
			}
			started = b.origin.Add(repository(s, c), "earlier", rebuilt)
			if err := pull(ctx, n, started, c.snapshotter); err != nil {
				t.Fatal(err)
			}
		}
		if c.profile || c.sibling {
			// It runs until the fleet knows what its start touched.
			end, err := run(ctx, n, started, c.snapshotter, "teacher")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := end(); err != nil {
					t.Error(err)
				}
			})
		}
		if err := await(ctx, "the fleet knows the image", func() error { return b.known(f, n, s) }); err != nil {
			t.Fatal(err)
		}
		if c.sibling {
			key := b.repositoryKey(s, c)
			if err := await(ctx, "the fleet knows the earlier build's start", func() error { return exists(f.redis, key) }); err != nil {
				t.Fatal(err)
			}
		}
	})
	if failed != nil {
		return fmt.Errorf("teaching %s for %s: %w", s.name, c.name, failed)
	}
	// Once the teacher is gone, and what it still had to say is said.
	if err := f.keep(b.profileKeys(s, c)); err != nil {
		return err
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

func exists(redis *node.Redis, key string) error {
	if known, err := redis.Do("EXISTS", key); err != nil || known != "1" {
		return fmt.Errorf("%s: %q, %v", key, known, err)
	}
	return nil
}

// known says what the fleet does not know yet.
func (b *bench) known(f *fleet, n *node.Node, s subject) error {
	if f.redis != nil {
		if err := f.redis.Knows(n, reference(b.origin, s, f.column)); err != nil || !f.profile {
			return err
		}
		return exists(f.redis, profileKey(s))
	}
	var told bytes.Buffer
	for _, referrer := range b.origin.Referrers(repository(s, f.column), image.Digest(s.bundle.Root.Body)) {
		told.Write(referrer.Body)
	}
	wanted := slices.Clone(s.bundle.LayerDigests)
	if f.profile {
		wanted = append(wanted, "application/vnd.silk.knowledge.profile.v1")
	}
	for _, what := range wanted {
		if !bytes.Contains(told.Bytes(), []byte(what)) {
			return fmt.Errorf("no referrer tells of %s", what)
		}
	}
	return nil
}
