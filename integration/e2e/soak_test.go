package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

const (
	soakLayers  = 8
	soakImages  = 10
	soakClients = 3
	// soakPull is how long a pull may take in such weather before it counts as one that hangs: silkd gives a registry up after 15 s.
	soakPull = 2 * time.Minute
)

// A small fleet in hard weather: clients on three nodes, one for each rung, pull images that share layers, read them and remove them, while daemons are
// killed, the registry fails in all ways it can, and what Redis holds is thrown away, damaged and mixed up. No read may ever give other bytes than
// the image's; none may fail but where its silkd has gone or the registry has lied; and when the weather is over everything works, and nothing is
// left of what was removed. SILK_SOAK is how many seconds the weather lasts, SILK_SEED chooses another.
func TestSoak(t *testing.T) {
	t.Parallel()
	lasts, _ := strconv.Atoi(os.Getenv("SILK_SOAK"))
	if lasts == 0 {
		lasts = 20
	}
	s := &soak{T: t, registry: hub.Start(t), redis: node.StartRedis(t), random: chance(t)}
	// Slow enough that layers arrive while they are read.
	s.registry.SetRate(2 << 20)
	s.makeImages()
	for _, rung := range []string{"file", "loop", "tree"} {
		s.nodes = append(s.nodes, &soaked{Node: node.Start(t, node.Options{Generation: node.Second, Rung: rung, Extra: s.redis.Config()})})
	}
	var clients sync.WaitGroup
	// Before the nodes go, also if the weather cannot.
	t.Cleanup(func() {
		s.over.Store(true)
		clients.Wait()
	})
	for _, n := range s.nodes {
		for range soakClients {
			random := rand.New(rand.NewSource(s.random.Int63()))
			clients.Add(1)
			go func() {
				defer clients.Done()
				s.client(n, random)
			}()
		}
	}
	for end := time.Now().Add(time.Duration(lasts) * time.Second); time.Now().Before(end) && !t.Failed(); {
		time.Sleep(time.Duration(100+s.random.Intn(600)) * time.Millisecond)
		s.weather()
	}
	s.over.Store(true)
	clients.Wait()
	t.Logf("%d files read, %d reads failed as they may, %d pulls, %d failed as they may", s.read.Load(), s.unread.Load(), s.pulled.Load(), s.unpulled.Load())
	if s.pulled.Load() == s.unpulled.Load() || s.read.Load() == s.unread.Load() {
		s.Error("nothing was pulled, or nothing read: the weather was hard on nobody")
	}
	for _, n := range s.nodes {
		s.peace(n)
	}
}

// chance is another one each time, or the one that SILK_SEED names; the log says which.
func chance(t *testing.T) *rand.Rand {
	t.Helper()
	seed, _ := strconv.ParseInt(os.Getenv("SILK_SEED"), 10, 64)
	if seed == 0 {
		seed = time.Now().UnixNano()
	}
	t.Logf("seed %d", seed)
	return rand.New(rand.NewSource(seed))
}

type soak struct {
	*testing.T
	registry *hub.Hub
	redis    *node.Redis
	random   *rand.Rand
	images   []soakImage
	blobs    []string
	nodes    []*soaked
	over     atomic.Bool
	// lies are until when what the registry has sent of a blob may make reads fail.
	lies sync.Map

	read, unread, pulled, unpulled atomic.Int64
}

type soakImage struct {
	ref   string
	names []string
	blobs []string
	files map[string][]byte
}

// soaked is a node whose daemons go and come.
type soaked struct {
	*node.Node
	// mu guards Client.
	mu sync.RWMutex
	// restarts of silkd so far; down while one is under way.
	restarts atomic.Int64
	down     atomic.Bool
}

func (n *soaked) client() *containerd.Client {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.Client
}

func (s *soak) makeImages() {
	compressions := []image.Compression{image.Gzip, image.Zstd, image.GzipMembers, image.Plain}
	var layers []image.Layer
	for i := range soakLayers {
		entries := []image.Entry{{Name: "top", Body: fmt.Appendf(nil, "layer %d", i)}}
		for j := range 3 {
			entries = append(entries, image.Entry{Name: fmt.Sprintf("layer-%d/noise-%d", i, j), Body: noise(s.random.Int63(), 1+s.random.Intn(3<<20))})
		}
		for j := range 60 {
			text := strings.Repeat(fmt.Sprintf("file %d of layer %d\n", j, i), 1+s.random.Intn(2000))
			entries = append(entries, image.Entry{Name: fmt.Sprintf("layer-%d/text-%d", i, j), Body: []byte(text)})
		}
		layer := image.NewLayer(compressions[i%len(compressions)], entries...)
		layers = append(layers, layer)
		s.blobs = append(s.blobs, layer.Blob.Digest)
	}
	for i := range soakImages {
		made := soakImage{files: map[string][]byte{}}
		var chosen []image.Layer
		for _, l := range s.random.Perm(soakLayers)[:2+s.random.Intn(4)] {
			chosen = append(chosen, layers[l])
			made.blobs = append(made.blobs, layers[l].Blob.Digest)
			for _, entry := range layers[l].Entries {
				made.files[entry.Name] = entry.Body
			}
		}
		for name := range made.files {
			made.names = append(made.names, name)
		}
		slices.Sort(made.names)
		made.ref = s.registry.Add(fmt.Sprintf("image-%d", i), "1", image.Image{Layers: chosen}.Bundle())
		s.images = append(s.images, made)
	}
}

// client uses images until the weather is over.
func (s *soak) client(n *soaked, random *rand.Rand) {
	for !s.over.Load() && !s.Failed() {
		image := s.images[random.Intn(len(s.images))]
		switch random.Intn(8) {
		case 0:
			ctx, cancel := context.WithTimeout(n.Context(), soakPull)
			// Most of them, or what they share would always be here. Whether it succeeds is containerd's affair: it may be gone, or an image not here.
			for _, i := range random.Perm(len(s.images))[3:] {
				n.client().ImageService().Delete(ctx, s.images[i].ref, images.SynchronousDelete())
			}
			cancel()
			n.Silk("gc", "--keep", "0")
		default:
			s.use(n, image, random)
		}
	}
}

// use pulls an image and reads some of its files.
func (s *soak) use(n *soaked, image soakImage, random *rand.Rand) {
	ctx, cancel := context.WithTimeout(n.Context(), soakPull)
	defer cancel()
	client := n.client()
	s.pulled.Add(1)
	pulled, err := node.Pull(ctx, client, image.ref, "silk")
	if err != nil {
		s.unpulled.Add(1)
		if ctx.Err() != nil {
			s.Errorf("%s: a pull of %s took longer than %v: %v", n.Dir, image.ref, soakPull, err)
		}
		// As who tries again does.
		time.Sleep(50 * time.Millisecond)
		return
	}
	chain, err := n.ChainID(ctx, pulled)
	if err != nil {
		return
	}
	restarts := n.restarts.Load()
	dir, undo, err := n.ViewThrough(ctx, client, "silk", chain)
	if err != nil {
		return
	}
	// What stays of it is found when the weather is over.
	defer undo()
	for range 1 + random.Intn(40) {
		name := image.names[random.Intn(len(image.names))]
		got, err := os.ReadFile(filepath.Join(dir, name))
		s.read.Add(1)
		if err != nil {
			s.unread.Add(1)
			if !n.down.Load() && n.restarts.Load() == restarts && !s.isLiedOf(image) {
				s.Errorf("%s, rung %s: reading %s of %s: %v", n.Dir, n.Rung, name, image.ref, err)
			}
			return
		}
		s.compare(n, image, name, got)
		time.Sleep(time.Duration(random.Intn(30)) * time.Millisecond)
	}
}

// isLiedOf says whether the registry has lately sent other bytes in place of a blob of the image.
func (s *soak) isLiedOf(image soakImage) bool {
	return slices.ContainsFunc(image.blobs, func(blob string) bool {
		until, lied := s.lies.Load(blob)
		return lied && time.Now().Before(until.(time.Time))
	})
}

func (s *soak) compare(n *soaked, image soakImage, name string, got []byte) {
	want := image.files[name]
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	s.Errorf("%s, rung %s: %s of %s is wrong from byte %d on: it has %d bytes, not %d", n.Dir, n.Rung, name, image.ref, at, len(got), len(want))
}

// mixUp copies a value of Redis over another, or damages a byte of one.
const mixUp = `local keys = redis.call('KEYS', 'silk:*')
if #keys < 2 then return end
local a, b = keys[ARGV[1] % #keys + 1], keys[ARGV[2] % #keys + 1]
if a == b then return end
if ARGV[1] % 2 == 0 then return redis.call('COPY', a, b, 'REPLACE') end
local function damaged(value)
    local at = ARGV[2] % math.max(#value, 1)
    return value:sub(1, at) .. string.char((value:byte(at + 1) or 0) < 128 and 200 or 100) .. value:sub(at + 2)
end
if redis.call('TYPE', a).ok == 'string' then return redis.call('SET', a, damaged(redis.call('GET', a))) end
return redis.call('SET', a, 'what silk keeps account in')`

// weather does one thing that nodes must live with.
func (s *soak) weather() {
	n := s.nodes[s.random.Intn(len(s.nodes))]
	blob := s.blobs[s.random.Intn(len(s.blobs))]
	somewhere := s.random.Intn(2 << 20)
	switch s.random.Intn(12) {
	case 0, 1:
		s.restart(n, n.Silkd.Kill)
	case 2:
		s.restart(n, func() {
			if err := n.Silkd.Stop(); err != nil {
				s.Error(err)
			}
		})
	case 3:
		n.mu.Lock()
		n.RestartContainerd()
		n.mu.Unlock()
	case 4:
		s.registry.SetDown(true)
		s.while()
		s.registry.SetDown(false)
	case 5:
		s.registry.SetGone(true)
		s.while()
		s.registry.SetGone(false)
	case 6:
		s.fault(hub.Cut(somewhere))
	case 7:
		s.fault(hub.Only(blob, hub.Stall(somewhere)))
	case 8:
		s.fault(hub.Status(502, ""))
	case 9:
		s.lies.Store(blob, time.Now().Add(time.Hour))
		s.fault(hub.Only(blob, hub.Instead(noise(int64(somewhere), 1<<20))))
		// So long may its layer refuse readers: it is tried again after 8 s, and that may meet other weather.
		s.lies.Store(blob, time.Now().Add(time.Minute))
	case 10:
		s.upset("redis.call('FLUSHALL')")
	case 11:
		s.upset(mixUp)
	}
}

// while lasts as long as one piece of weather.
func (s *soak) while() { time.Sleep(time.Duration(s.random.Intn(600)) * time.Millisecond) }

func (s *soak) fault(fault hub.Fault) {
	s.registry.SetFault(fault)
	s.while()
	s.registry.SetFault(nil)
}

// upset runs a script in Redis.
func (s *soak) upset(script string) {
	if _, err := s.redis.Do("EVAL", script, "0", fmt.Sprint(s.random.Intn(1<<20)), fmt.Sprint(s.random.Intn(1<<20))); err != nil {
		s.Errorf("Redis: %v", err)
	}
}

func (s *soak) restart(n *soaked, end func()) {
	select {
	case <-n.Silkd.Exited():
		s.Errorf("%s: silkd has ended by itself:\n%s", n.Dir, n.Silkd.Tail())
	default:
	}
	n.down.Store(true)
	end()
	n.StartSilkd()
	n.restarts.Add(1)
	n.down.Store(false)
}

// peace looks whether a node is as if nothing had been.
func (s *soak) peace(n *soaked) {
	s.clearViews(n.Context(), n)
	ordinary := 0
	for _, image := range s.images {
		ctx := n.Context()
		var chain string
		n.Settled("an image can be pulled: "+image.ref, func() (err error) {
			chain, err = n.PullChain(ctx, image.ref)
			return err
		})
		switch state, _ := n.ImageState(image.ref); state {
		case "", "refused":
			// Pulled by containerd when silk was not let in, or standing on a layer that was; or, as long as that silkd lives, when it could not ask the
			// registry: of what containerd has it is not asked again.
			ordinary++
		default:
			n.Settled("it is whole: "+image.ref, func() error { return whole(n.Node, image.ref) })
		}
		dir, undo, err := n.View(ctx, "silk", chain)
		if err != nil {
			s.Error(err)
			continue
		}
		for _, name := range image.names {
			got, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				s.Errorf("%s: reading %s of %s: %v", n.Dir, name, image.ref, err)
				break
			}
			s.compare(n, image, name, got)
		}
		if err := undo(); err != nil {
			s.Error(err)
		}
	}
	s.Logf("rung %s: %d of %d images are containerd's", n.Rung, ordinary, len(s.images))
	if _, err := n.Silk("fsck"); err != nil {
		s.Error(err)
	}
	log, err := os.ReadFile(n.Silkd.Log)
	if at := bytes.Index(log, []byte("panicked at")); err != nil || at >= 0 {
		s.Errorf("silkd panicked (%v): %s", err, log[max(at, 0):min(at+500, len(log))])
	}
	var refs []string
	for _, image := range s.images {
		refs = append(refs, image.ref)
	}
	s.endLeases(n.Context(), n)
	nothingLeaks(s.T, n.Node, refs)
	// Nothing of containerd's own is left that it could stand on.
	if _, err := n.Pull(n.Context(), refs[0], "silk"); err != nil {
		s.Error(err)
	}
	if state, message := n.ImageState(refs[0]); state != "ready" {
		s.Errorf("rung %s: silk does not take it: %s is %q: %s", n.Rung, refs[0], state, message)
	}
}

// endLeases ends those of pulls that went with their containerd: it would keep for a day what they hold.
func (s *soak) endLeases(ctx context.Context, n *soaked) {
	service := n.Client.LeasesService()
	left, err := service.List(ctx)
	for _, lease := range left {
		err = errors.Join(err, service.Delete(ctx, lease))
	}
	if err != nil {
		s.Error(err)
	}
}

// clearViews removes what clients could not.
func (s *soak) clearViews(ctx context.Context, n *soaked) {
	for _, target := range n.Mounts() {
		if filepath.Dir(target) == n.Dir && strings.HasPrefix(filepath.Base(target), "v") {
			if err := unix.Unmount(target, 0); err != nil {
				s.Errorf("%s: %v", target, err)
			}
		}
	}
	service := n.Client.SnapshotService("silk")
	n.Eventually("the views can be removed", func() error {
		var failed error
		err := service.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
			if info.Kind == snapshots.KindView {
				failed = errors.Join(failed, service.Remove(ctx, info.Name))
			}
			return nil
		})
		return errors.Join(err, failed)
	})
}
