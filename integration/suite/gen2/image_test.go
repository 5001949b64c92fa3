package gen2

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// image is an image in the making: each layer has one file, named like the layer.
type image struct {
	ref      string
	manifest ocispec.Descriptor
	blobs    map[digest.Digest][]byte
	layers   []ocispec.Descriptor
	chains   []string
}

// newImage makes an image with the given layers.
func newImage(t *testing.T, layers ...string) *image {
	t.Helper()
	img := &image{blobs: map[digest.Digest][]byte{}}
	var diffIDs []digest.Digest
	for _, name := range layers {
		var plain, packed bytes.Buffer
		archive := tar.NewWriter(&plain)
		must(t, archive.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(name))}))
		_, err := archive.Write([]byte(name))
		must(t, err)
		must(t, archive.Close())
		compressor := gzip.NewWriter(&packed)
		_, err = compressor.Write(plain.Bytes())
		must(t, err)
		must(t, compressor.Close())
		diffIDs = append(diffIDs, digest.FromBytes(plain.Bytes()))
		img.layers = append(img.layers, img.add(ocispec.MediaTypeImageLayerGzip, packed.Bytes()))
	}
	for i := range diffIDs {
		img.chains = append(img.chains, identity.ChainID(diffIDs[:i+1]).String())
	}
	config := img.addJSON(t, ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	img.manifest = img.addJSON(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    img.layers,
	})
	return img
}

func (i *image) add(mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	i.blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (i *image) addJSON(t *testing.T, mediaType string, value any) ocispec.Descriptor {
	t.Helper()
	data, err := json.Marshal(value)
	must(t, err)
	return i.add(mediaType, data)
}

// top is the chain ID of the whole image.
func (i *image) top() string { return i.chains[len(i.chains)-1] }

// registry serves images; it counts what each blob was asked for, and answers when the test lets it.
type registry struct {
	host string

	mu       sync.Mutex
	changed  *sync.Cond
	images   map[string]*image
	requests map[digest.Digest]int
	held     bool
	status   int
	manifest int
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{images: map[string]*image{}, requests: map[digest.Digest]int{}}
	r.changed = sync.NewCond(&r.mu)
	server := httptest.NewUnstartedServer(r)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	r.host = listener.Addr().String()
	t.Cleanup(func() {
		r.set(false, 0)
		server.Close()
	})
	return r
}

// push makes an image available.
func (r *registry) push(name string, img *image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[name] = img
	img.ref = r.host + "/" + name + ":1"
}

// set holds all answers that have layers, or answers with a status that is not 0.
func (r *registry) set(held bool, status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held, r.status = held, status
	r.changed.Broadcast()
}

// hold keeps answers back until release.
func (r *registry) hold() { r.set(true, 0) }

// release ends all trouble.
func (r *registry) release() { r.set(false, 0) }

// count says how often a blob was asked for.
func (r *registry) count(d digest.Digest) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests[d]
}

// holding says how many requests for a manifest wait.
func (r *registry) holding() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.manifest
}

func (r *registry) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	parts := strings.Split(strings.TrimPrefix(request.URL.Path, "/v2/"), "/")
	if len(parts) != 3 {
		return // the version check
	}
	r.mu.Lock()
	img := r.images[parts[0]]
	d := digest.Digest(parts[2])
	if img != nil && !strings.HasPrefix(parts[2], "sha256:") {
		d = img.manifest.Digest
	}
	if parts[1] == "manifests" && r.held && r.status == http.StatusContinue {
		r.manifest++
		for r.held {
			r.changed.Wait()
		}
		r.manifest--
	}
	if parts[1] == "blobs" {
		r.requests[d]++
		for r.held {
			r.changed.Wait()
		}
		if r.status != 0 {
			w.WriteHeader(r.status)
			r.mu.Unlock()
			return
		}
	}
	r.mu.Unlock()
	if img == nil || img.blobs[d] == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if parts[1] == "manifests" {
		w.Header().Set("Content-Type", img.manifest.MediaType)
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	if _, err := w.Write(img.blobs[d]); err != nil {
		return // the client went away
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
