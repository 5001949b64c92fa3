// Package hub is a small OCI registry for tests and benchmarks: it counts what each blob was asked for, fails on request, and answers
// as over a network.
package hub

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/scope"
	"silk.invalid/integration/e2e/internal/shape"
)

// Count is what was asked of one blob.
type Count struct {
	Requests int   // GETs
	Bytes    int64 // body bytes sent
}

// Hub is a running registry on a loopback port, without TLS.
type Hub struct {
	Host string
	// TakesPushes lets clients push blobs and manifests, and ask for referrers. Set before the first request.
	TakesPushes bool

	door      door
	mu        sync.Mutex
	manifests map[string]image.Manifest // by "name:tag" and "name@digest"
	blobs     map[string]image.Blob
	counts    map[string]Count
	total     int64
	fault     Fault
	manifest  Fault
	down      bool
	requests  int
	rate      int64
	closing   chan struct{}
}

// Request is a request for a blob, as a Fault sees it.
type Request struct {
	*http.Request
	Digest string
	Hub    *Hub
}

// Fault may answer a request for a blob in the registry's place; it returns false to let the registry answer.
type Fault func(w http.ResponseWriter, r Request) bool

// Start serves until the test ends.
func Start(t scope.Scope) *Hub { return StartShaped(t, shape.Profile{}) }

// StartShaped serves as over a network.
func StartShaped(t scope.Scope, network shape.Profile) *Hub {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hub := &Hub{
		Host: listener.Addr().String(), manifests: map[string]image.Manifest{}, blobs: map[string]image.Blob{},
		counts: map[string]Count{}, closing: make(chan struct{}),
	}
	hub.door.inside = map[net.Conn]struct{}{}
	server := &http.Server{Handler: network.Handler(hub), ReadHeaderTimeout: time.Minute, ConnState: hub.door.watch}
	go server.Serve(network.Listener(listener))
	t.Cleanup(func() {
		close(hub.closing)
		server.Close()
	})
	return hub
}

// Add makes an image available and returns its reference.
func (h *Hub) Add(name, tag string, bundle image.Bundle) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.manifests[name+":"+tag] = bundle.Root
	for _, manifest := range append(bundle.Others, bundle.Root) {
		h.manifests[name+"@"+image.Digest(manifest.Body)] = manifest
	}
	for _, blob := range bundle.Blobs {
		h.blobs[blob.Digest] = blob
	}
	return h.Host + "/" + name + ":" + tag
}

// SetFault sets what goes wrong from now on; nil ends all trouble.
func (h *Hub) SetFault(fault Fault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault = fault
}

// SetManifestFault sets what goes wrong with manifests.
func (h *Hub) SetManifestFault(fault Fault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.manifest = fault
}

// SetDown makes the registry answer 503 to everything.
func (h *Hub) SetDown(down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = down
}

// SetGone makes the registry as one that does not run: connections break off, and new ones end before a word is said.
func (h *Hub) SetGone(gone bool) { h.door.shut(gone) }

// Refused counts the connections that ended so since the start.
func (h *Hub) Refused() int { return h.door.count() }

// Requests counts requests of all kinds since the start.
func (h *Hub) Requests() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.requests
}

// SetRate limits each response to so many bytes a second; 0 is as fast as it goes.
func (h *Hub) SetRate(bytesPerSecond int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rate = bytesPerSecond
}

// Counts returns what was asked of the blob.
func (h *Hub) Counts(digest string) Count {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts[digest]
}

// Total returns the bytes of blobs sent since the start.
func (h *Hub) Total() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.total
}

// Closing is closed when the registry goes: a stalled answer waits for it or for its client.
func (h *Hub) Closing() <-chan struct{} { return h.closing }

func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	h.mu.Lock()
	h.requests++
	down := h.down
	h.mu.Unlock()
	switch {
	case down:
		Error(w, http.StatusServiceUnavailable, "UNAVAILABLE")
	case !ok:
		w.WriteHeader(http.StatusNotFound)
	case path == "":
		io.WriteString(w, "{}")
	default:
		h.serve(w, r, path)
	}
}

func (h *Hub) serve(w http.ResponseWriter, r *http.Request, path string) {
	name, kind, reference := split(path)
	reading := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case reading && kind == "manifests":
		h.serveManifest(w, r, name, reference)
	case reading && kind == "blobs":
		h.serveBlob(w, r, reference)
	case reading && kind == "referrers" && h.TakesPushes:
		h.serveReferrers(w, name, reference)
	case r.Method == http.MethodDelete && kind == "manifests" && h.TakesPushes:
		h.deleteManifest(w, name, reference)
	case (r.Method == http.MethodPost || r.Method == http.MethodPut) && h.TakesPushes:
		h.push(w, r, strings.TrimSuffix(name, "/blobs"), kind, reference)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// split takes "a/b/blobs/sha256:…" apart.
func split(path string) (name, kind, reference string) {
	parts := strings.Split(path, "/")
	if len(parts) < 3 {
		return "", "", ""
	}
	n := len(parts)
	return strings.Join(parts[:n-2], "/"), parts[n-2], parts[n-1]
}

func (h *Hub) serveManifest(w http.ResponseWriter, r *http.Request, name, reference string) {
	key := name + ":" + reference
	if strings.HasPrefix(reference, "sha256:") {
		key = name + "@" + reference
	}
	h.mu.Lock()
	manifest, ok := h.manifests[key]
	fault := h.manifest
	h.mu.Unlock()
	if fault != nil && fault(w, Request{r, reference, h}) {
		return
	}
	if !ok {
		Error(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
		return
	}
	w.Header().Set("Content-Type", manifest.MediaType)
	w.Header().Set("Docker-Content-Digest", image.Digest(manifest.Body))
	w.Header().Set("Content-Length", fmt.Sprint(len(manifest.Body)))
	if r.Method == http.MethodGet {
		w.Write(manifest.Body)
	}
}

func (h *Hub) serveBlob(w http.ResponseWriter, r *http.Request, digest string) {
	h.mu.Lock()
	blob, ok := h.blobs[digest]
	fault := h.fault
	if r.Method == http.MethodGet {
		count := h.counts[digest]
		count.Requests++
		h.counts[digest] = count
	}
	h.mu.Unlock()
	counted := &countingWriter{ResponseWriter: w, hub: h, digest: digest, start: time.Now()}
	if fault != nil && fault(counted, Request{r, digest, h}) {
		return
	}
	if !ok {
		Error(w, http.StatusNotFound, "BLOB_UNKNOWN")
		return
	}
	content, err := blob.Open()
	if err != nil {
		Error(w, http.StatusInternalServerError, err.Error())
		return
	}
	defer content.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", digest)
	http.ServeContent(counted, r, "", time.Time{}, content)
}

// Blob returns a blob's content, for faults that serve something near it.
func (h *Hub) Blob(digest string) []byte {
	content, err := h.open(digest)
	if err != nil {
		return nil
	}
	defer content.Close()
	data, _ := io.ReadAll(content)
	return slices.Clone(data)
}

func (h *Hub) open(digest string) (io.ReadSeekCloser, error) {
	h.mu.Lock()
	blob, ok := h.blobs[digest]
	h.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("there is no blob %s", digest)
	}
	return blob.Open()
}

// Error answers as the distribution specification says.
func Error(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"the test registry says so"}]}`, code)
}

type countingWriter struct {
	http.ResponseWriter
	hub    *Hub
	digest string
	start  time.Time
	sent   int64
}

func (w *countingWriter) Write(data []byte) (int, error) {
	n, err := w.ResponseWriter.Write(data)
	w.sent += int64(n)
	w.count(int64(n))
	if rate := w.rate(); rate > 0 {
		due := w.start.Add(time.Duration(w.sent * int64(time.Second) / rate))
		select {
		case <-time.After(time.Until(due)):
		case <-w.hub.closing:
		}
	}
	return n, err
}

// ReadFrom lets the kernel send a file; a piece at a time, so that what was sent is counted while it goes.
func (w *countingWriter) ReadFrom(from io.Reader) (sent int64, err error) {
	limited, ok := from.(*io.LimitedReader)
	if !ok || w.rate() > 0 {
		return io.Copy(struct{ io.Writer }{w}, from)
	}
	for limited.N > 0 {
		part := io.LimitedReader{R: limited.R, N: min(limited.N, 1<<20)}
		n, err := io.Copy(w.ResponseWriter, &part)
		limited.N -= n
		sent += n
		w.count(n)
		if n == 0 || err != nil {
			return sent, err
		}
	}
	return sent, nil
}

func (w *countingWriter) rate() int64 {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	return w.hub.rate
}

func (w *countingWriter) count(n int64) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	count := w.hub.counts[w.digest]
	count.Bytes += n
	w.hub.counts[w.digest] = count
	w.hub.total += n
}

// Flush lets a fault push out what it wrote before it stalls.
func (w *countingWriter) Flush() { w.ResponseWriter.(http.Flusher).Flush() }
