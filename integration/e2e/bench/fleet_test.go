package main

import (
	"os"
	"strings"
	"testing"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/node"
)

// A measured node finds what the teacher left, whatever those before it learned; its own it may not publish.
func TestMeasuredNodesTeachNobody(t *testing.T) {
	if _, err := os.Stat("/usr/bin/redis-server"); err != nil {
		t.Skip(err)
	}
	b, s := &bench{Scope: t, fleets: map[string]*fleet{}, origin: hub.Start(t)}, subject{name: "a"}
	for _, c := range columns {
		f := b.fleet(c)
		if f.redis == nil {
			if settings, err := b.join(s, c); err != nil || strings.Contains(settings, "publish = true") {
				t.Errorf("%s: %q, %v", c.name, settings, err)
			}
			continue
		}
		own, shared := profileKey(s), b.repositoryKey(s, c)
		do(t, f.redis, "SET", shared, "taught")
		if c.profile {
			do(t, f.redis, "SET", own, "taught")
		}
		if err := f.keep(b.profileKeys(s, c)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			do(t, f.redis, "SET", own, "and more")
			do(t, f.redis, "SET", shared, "and more")
			if _, err := b.join(s, c); err != nil {
				t.Fatal(err)
			}
			want := "0"
			if c.profile {
				want = "6"
			}
			if got := do(t, f.redis, "STRLEN", own); got != want {
				t.Errorf("%s: the image's profile has %s bytes, not %s", c.name, got, want)
			}
			if got := do(t, f.redis, "STRLEN", shared); got != "6" {
				t.Errorf("%s: the repository's profile has %s bytes", c.name, got)
			}
		}
	}
}

func do(t *testing.T, redis *node.Redis, words ...string) string {
	t.Helper()
	said, err := redis.Do(words...)
	if err != nil {
		t.Fatal(err)
	}
	return said
}
