package hub

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Only limits a fault to one blob.
func Only(digest string, fault Fault) Fault {
	return func(w http.ResponseWriter, r Request) bool {
		return r.Digest == digest && fault(w, r)
	}
}

// Any limits a fault to some blobs.
func Any(digests []string, fault Fault) Fault {
	return func(w http.ResponseWriter, r Request) bool {
		return slices.Contains(digests, r.Digest) && fault(w, r)
	}
}

// Silk limits a fault to silkd's own requests, so that containerd could still pull by itself.
func Silk(fault Fault) Fault {
	return func(w http.ResponseWriter, r Request) bool {
		return strings.Contains(r.UserAgent(), "silk") && fault(w, r)
	}
}

// Status answers with an error.
func Status(status int, code string) Fault {
	return func(w http.ResponseWriter, r Request) bool {
		if status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		}
		Error(w, status, code)
		return true
	}
}

// Private lets in who brings this user and this password.
func Private(user, password string) Fault {
	return func(w http.ResponseWriter, r Request) bool {
		if name, secret, ok := r.BasicAuth(); ok && name == user && secret == password {
			return false
		}
		return Status(http.StatusUnauthorized, "UNAUTHORIZED")(w, r)
	}
}

// Instead serves other bytes under the blob's digest, ranges included.
func Instead(data []byte) Fault {
	return func(w http.ResponseWriter, r Request) bool {
		http.ServeContent(w, r.Request, "", zeroTime, newReader(data))
		return true
	}
}

// Cut closes the connection after n bytes of a body, each time.
func Cut(n int) Fault {
	return broken(n, func(Request) { panic(http.ErrAbortHandler) })
}

// Stall sends n bytes of a body and then nothing, until the client gives up.
func Stall(n int) Fault {
	return broken(n, func(r Request) {
		select {
		case <-r.Context().Done():
		case <-r.Hub.Closing():
		}
		panic(http.ErrAbortHandler)
	})
}

// broken answers a GET truthfully but for its end: after n bytes of this answer, end decides.
func broken(n int, end func(Request)) Fault {
	return func(w http.ResponseWriter, r Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		data := r.Hub.Blob(r.Digest)
		http.ServeContent(&limited{w, n, func() { end(r) }}, r.Request, "", zeroTime, newReader(data))
		return true
	}
}

// Held answers truthfully, but until the channel is closed its bodies come a byte at a time, one each interval; with an interval of 0
// only their heads come.
func Held(until <-chan struct{}, interval time.Duration) Fault {
	return func(w http.ResponseWriter, r Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		content, err := r.Hub.open(r.Digest)
		if err != nil {
			return false
		}
		defer content.Close()
		http.ServeContent(&held{w, r, until, interval}, r.Request, "", zeroTime, content)
		return true
	}
}

type held struct {
	http.ResponseWriter
	request  Request
	until    <-chan struct{}
	interval time.Duration
}

func (h *held) Write(data []byte) (sent int, err error) {
	for len(data) > 0 {
		var next <-chan time.Time
		if h.interval > 0 {
			next = time.After(h.interval)
		}
		// The head, or the byte before.
		h.ResponseWriter.(http.Flusher).Flush()
		select {
		case <-h.until:
			n, err := h.ResponseWriter.Write(data)
			return sent + n, err
		case <-next:
		case <-h.request.Context().Done():
			return sent, http.ErrAbortHandler
		case <-h.request.Hub.Closing():
			return sent, http.ErrAbortHandler
		}
		n, err := h.ResponseWriter.Write(data[:1])
		sent += n
		if err != nil {
			return sent, err
		}
		data = data[1:]
	}
	return sent, nil
}

type limited struct {
	http.ResponseWriter
	left int
	end  func()
}

func (l *limited) Write(data []byte) (int, error) {
	if len(data) <= l.left {
		l.left -= len(data)
		return l.ResponseWriter.Write(data)
	}
	l.ResponseWriter.Write(data[:l.left])
	l.ResponseWriter.(http.Flusher).Flush()
	l.left = 0
	l.end()
	return 0, http.ErrAbortHandler
}

// zeroTime leaves Last-Modified away.
var zeroTime time.Time

func newReader(data []byte) io.ReadSeeker { return bytes.NewReader(data) }

// CutAt never sends the byte at an offset of the blob: each connection that gets there is closed.
func CutAt(offset int64) Fault {
	return at(offset, Cut)
}

// StallAt never sends the byte at an offset of the blob: each answer that gets there stops.
func StallAt(offset int64) Fault {
	return at(offset, Stall)
}

func at(offset int64, fault func(int) Fault) Fault {
	return func(w http.ResponseWriter, r Request) bool {
		var from int64
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
		return fault(int(max(offset-from, 0)))(w, r)
	}
}
