package hub

import (
	"net"
	"net/http"
	"sync"
)

// door knows the server's connections, and can be shut. The port stays taken meanwhile, so that no other test gets it.
type door struct {
	mu      sync.Mutex
	closed  bool
	refused int
	inside  map[net.Conn]struct{}
}

// watch is the server's ConnState: it is called before anything is read from a new connection.
func (d *door) watch(conn net.Conn, state http.ConnState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case state == http.StateClosed || state == http.StateHijacked:
		delete(d.inside, conn)
	case state == http.StateNew && d.closed:
		d.refused++
		conn.Close()
	case state == http.StateNew:
		d.inside[conn] = struct{}{}
	}
}

// shut closes or opens the door; when it closes, everybody inside goes.
func (d *door) shut(closed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = closed
	if closed {
		for conn := range d.inside {
			conn.Close()
		}
	}
}

func (d *door) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refused
}
