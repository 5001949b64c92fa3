package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// fault is a way for a pull to fail at one layer.
type fault struct {
	name string
	// layer is what the image has there; nil is a good one.
	layer func() image.Layer
	// trouble is what the registry does to requests for that layer; nil is nothing.
	trouble func(layer image.Layer) hub.Fault
	// says is what the message must hold besides the image and the layer.
	says []string
	// whole: the layer itself is whole and proved, only no tree can be made of it. Its names stay known.
	whole bool
}

var faults = []fault{
	{"wrong blob digest", nil, func(layer image.Layer) hub.Fault {
		return hub.Instead(noise(99, int(layer.Blob.Size)))
	}, []string{"other bytes than the manifest names"}, false},
	{"wrong diff ID", func() image.Layer {
		layer := good(1)
		layer.DiffID = image.Digest([]byte("another"))
		return layer
	}, nil, []string{"not its diff ID " + image.Digest([]byte("another"))}, false},
	{"truncated gzip", func() image.Layer {
		layer := good(2)
		layer.Blob = image.Bytes(readBlob(layer.Blob)[:layer.Blob.Size-1000])
		return layer
	}, nil, []string{"damaged"}, false},
	{"tar that lies about a size", func() image.Layer {
		size := int64(1 << 30)
		return image.NewLayer(image.Gzip, image.Entry{Name: "liar", Body: []byte("short"), Size: &size})
	}, nil, []string{"damaged", "liar"}, false},
	{"tar that ends early", func() image.Layer {
		tar := image.WriteTar(image.Entry{Name: "cut-off", Body: noise(3, 10_000)})
		return image.FromTar(image.Gzip, tar[:5000])
	}, nil, []string{"damaged", "cut-off"}, false},
	{"climbing path", func() image.Layer {
		return image.NewLayer(image.Gzip, image.Entry{Name: "a/../../../escaped", Body: []byte("x")})
	}, nil, []string{"escaped", "above the root"}, true},
	{"climbing hard link", func() image.Layer {
		return image.NewLayer(image.Gzip, image.Entry{Name: "escaped", Type: image.Hard, Link: "../../etc/passwd"})
	}, nil, []string{"escaped", "above the root"}, true},
	{"bomb", bomb, nil, []string{"decode to more than"}, false},
	{"401", nil, status(http.StatusUnauthorized, "UNAUTHORIZED"), []string{"401 Unauthorized"}, false},
	{"404", nil, status(http.StatusNotFound, "BLOB_UNKNOWN"), []string{"404 Not Found"}, false},
	{"429", nil, status(http.StatusTooManyRequests, "TOOMANYREQUESTS"), []string{"429 Too Many Requests"}, false},
	{"500", nil, status(http.StatusInternalServerError, "UNKNOWN"), []string{"500 Internal Server Error"}, false},
	{"connection cut", nil, func(image.Layer) hub.Fault { return hub.CutAt(300_000) }, []string{"cut", "byte 300000"}, false},
	{"stall", nil, func(image.Layer) hub.Fault { return hub.StallAt(300_000) }, []string{"sent no byte", "at byte 300000"}, false},
}

func good(seed int64) image.Layer { return noiseLayer("good", 1000+seed, 1<<20) }

func status(code int, name string) func(image.Layer) hub.Fault {
	return func(image.Layer) hub.Fault { return hub.Status(code, name) }
}

// bomb is 10 GB of one letter in a file of 10 MB: zeros would take no room.
func bomb() image.Layer {
	size := int64(10_000_000_000)
	var blob bytes.Buffer
	header := image.WriteTar(image.Entry{Name: "bomb", Size: &size})[:512]
	writeMember(&blob, header)
	letters := bytes.Repeat([]byte("x"), 100_000_000)
	var member bytes.Buffer
	writeMember(&member, letters)
	for range size / int64(len(letters)) {
		blob.Write(member.Bytes())
	}
	// Nobody gets far enough to see that the diff ID is made up.
	return image.Layer{DiffID: image.Digest(header), Blob: image.Bytes(blob.Bytes())}
}

func writeMember(out *bytes.Buffer, data []byte) {
	writer := gzip.NewWriter(out)
	writer.Write(data)
	writer.Close()
}

func readBlob(blob image.Blob) []byte {
	content, err := blob.Open()
	if err != nil {
		panic(err) // it is in memory
	}
	var data bytes.Buffer
	data.ReadFrom(content)
	return data.Bytes()
}

// Each way to fail: what kubelet, the log and `silk status` say, what stays behind, and that it ends with the trouble.
func TestFaults(t *testing.T) {
	registry := hub.Start(t)
	n := withPods(t, registry, node.Options{Generation: node.Second})
	ctx := node.Context(t, "k8s.io")
	pod, sandbox, err := n.RunPod(ctx, "bystander")
	if err != nil {
		t.Fatal(err)
	}
	bystander := registry.Add("bystander", "1", runnable(t, image.NewLayer(image.Gzip, image.Entry{Name: "file", Body: []byte("x")})).Bundle())
	if err := n.PullCRI(ctx, bystander); err != nil {
		t.Fatal(err)
	}
	container, err := n.RunContainer(ctx, pod, sandbox, bystander, "/guest", "reread", "/file")
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range faults {
		// By number: an error's name would be in all that is said of the image.
		name := fmt.Sprintf("fault/%d", i)
		t.Run(f.name, func(t *testing.T) { f.check(t, n, registry, name, int64(i)) })
	}
	if _, err := n.Exec(ctx, container, "/guest", "sum", "/file"); err != nil {
		t.Errorf("the bystander suffered: %v", err)
	}
}

func (f fault) check(t *testing.T, n *node.Node, registry *hub.Hub, name string, seed int64) {
	ctx := node.Context(t, "k8s.io")
	layer := good(seed)
	if f.layer != nil {
		layer = f.layer()
	}
	ref := registry.Add(name, "1", runnable(t, layer).Bundle())
	if f.trouble != nil {
		registry.SetFault(hub.Only(layer.Blob.Digest, f.trouble(layer)))
	}
	err := n.PullCRI(ctx, ref)
	if err == nil {
		t.Fatal("the pull succeeded")
	}
	t.Log(err)
	state, message := n.ImageState(ref)
	if state != "failed" {
		t.Errorf("silk status says %q", state)
	}
	for where, text := range map[string]string{"PullImage's error": err.Error(), "the log": logged(n, ref), "silk status": message} {
		// The log writes quotes as its format asks for.
		text = strings.ReplaceAll(text, `\"`, `"`)
		for _, part := range append([]string{ref}, f.says...) {
			if !strings.Contains(text, part) {
				t.Errorf("%s does not say %q: %s", where, part, text[max(0, len(text)-1000):])
			}
		}
		// containerd names the image too: this is silk's own sentence.
		sentence := regexp.MustCompile(`silk cannot (pull|mount) ` + regexp.QuoteMeta(ref) + `: layer \d+ of 2 \(` + layer.Blob.Digest + `\)`)
		if !sentence.MatchString(text) {
			t.Errorf("%s does not name image and layer: %s", where, text[max(0, len(text)-1000):])
		}
	}
	nothingHalfMade(t, n, layer, f.whole)
	other := registry.Add(name, "other", runnable(t, noiseLayer("other", seed, 100_000)).Bundle())
	if err := n.PullCRI(ctx, other); err != nil {
		t.Errorf("another image cannot be pulled meanwhile: %v", err)
	}
	// The trouble ends: the registry is well, or somebody pushed a good image under the same name.
	registry.SetFault(nil)
	if f.layer != nil {
		registry.Add(name, "1", runnable(t, good(500+seed)).Bundle())
	}
	if err := n.PullCRI(ctx, ref); err != nil {
		t.Errorf("the next try failed: %v", err)
	}
}

// logged is what silkd's log says of an image.
func logged(n *node.Node, ref string) string {
	log, _ := os.ReadFile(n.Silkd.Log)
	var said strings.Builder
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, ref) {
			said.WriteString(line)
		}
	}
	return said.String()
}

// nothingHalfMade looks for files of the failed layer; what is known of it may be there if its names are.
func nothingHalfMade(t *testing.T, n *node.Node, layer image.Layer, named bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	dir := filepath.Join(n.Dir, "silk/layers", strings.Replace(layer.DiffID, ":", "/", 1))
	for {
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		files = slices.DeleteFunc(files, func(path string) bool { return named && slices.Contains([]string{"toc", "index"}, filepath.Base(path)) })
		if len(files) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("the failed layer left %v", files)
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if use, err := node.DiskUse(filepath.Join(n.Dir, "silk")); err != nil || use > 200<<20 {
		t.Errorf("silk's folder takes %d MiB (%v)", use>>20, err)
	}
}

// A connection that breaks again and again, but further on each time, is no failure, and nothing is fetched twice.
func TestCutConnectionsAreResumed(t *testing.T) {
	registry := hub.Start(t)
	n := node.Start(t, node.Options{Generation: node.Second})
	layer := noiseLayer("file", 5, 4<<20)
	ref := registry.Add("cut", "1", image.Image{Layers: []image.Layer{layer}}.Bundle())
	registry.SetFault(hub.Only(layer.Blob.Digest, hub.Cut(700_000)))
	if _, err := n.Pull(n.Context(), ref, "silk"); err != nil {
		t.Fatal(err)
	}
	// What was sent and lost in a closed connection's buffers is sent again.
	if count := registry.Counts(layer.Blob.Digest); count.Requests < 5 || count.Bytes > 2*layer.Blob.Size {
		t.Errorf("%d bytes were sent in %d requests for a layer of %d", count.Bytes, count.Requests, layer.Blob.Size)
	}
}

// A registry that lets containerd in, but not silk: containerd pulls, and `silk explain` says why.
func TestRefusedImagesAreLeftToContainerd(t *testing.T) {
	eachGeneration(t, func(t *testing.T, generation node.Generation) {
		registry := hub.Start(t)
		n := withPods(t, registry, node.Options{Generation: generation})
		ctx := node.Context(t, "k8s.io")
		private := noiseLayer("file", 6, 100_000)
		ref := registry.Add("private", "1", runnable(t, private).Bundle())
		pod, sandbox, err := n.RunPod(ctx, "refused")
		if err != nil {
			t.Fatal(err)
		}
		registry.SetManifestFault(hub.Silk(hub.Status(http.StatusUnauthorized, "UNAUTHORIZED")))
		if err := n.PullCRI(ctx, ref); err != nil {
			t.Fatal(err)
		}
		if _, err := n.RunContainer(ctx, pod, sandbox, ref); err != nil {
			t.Fatal(err)
		}
		if state, message := n.ImageState(ref); state != "refused" || !strings.Contains(message, "401") {
			t.Errorf("silk status says %q: %s", state, message)
		}
		if said, err := n.Silk("explain", ref); err != nil || !strings.Contains(said, "401") {
			t.Errorf("silk explain says %q, %v", said, err)
		}
		// An image that is based on it is containerd's, too.
		registry.SetManifestFault(nil)
		above := registry.Add("above", "1", runnable(t, private, noiseLayer("above", 7, 1000)).Bundle())
		if err := n.PullCRI(ctx, above); err != nil {
			t.Fatal(err)
		}
		said, err := n.Silk("explain", above)
		for _, part := range []string{"left to containerd", "base layers", ref, "401"} {
			if err != nil || !strings.Contains(said, part) {
				t.Errorf("silk explain does not say %q: %q, %v", part, said, err)
			}
		}
	})
}
