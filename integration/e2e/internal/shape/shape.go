// Package shape makes a server on loopback answer as over a network: after a time to first byte, at a rate a connection and at a rate
// in all.
package shape

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// Profile is how a network behaves; what is zero is not limited.
type Profile struct {
	// All is what all connections together may receive, in bytes a second.
	All int64
	// Connection is what one connection may receive, in bytes a second.
	Connection int64
	// FirstByte is how long a request waits for its answer to begin.
	FirstByte time.Duration
}

// Gigabit is a registry in the same region: 1 Gbit/s in all, 80 MiB/s a connection, 20 ms to the first byte.
var Gigabit = Profile{All: 125_000_000, Connection: 80 << 20, FirstByte: 20 * time.Millisecond}

// Handler delays each answer by the time to first byte.
func (p Profile) Handler(next http.Handler) http.Handler {
	if p.FirstByte == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(p.FirstByte)
		next.ServeHTTP(w, r)
	})
}

// Listener limits what its connections are sent.
func (p Profile) Listener(inner net.Listener) net.Listener {
	if p.All == 0 && p.Connection == 0 {
		return inner
	}
	return &listener{inner, p.Connection, &pace{rate: p.All}}
}

type listener struct {
	net.Listener
	connection int64
	all        *pace
}

func (l *listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{inner, &pace{rate: l.connection}, l.all}, nil
}

type conn struct {
	net.Conn
	own, all *pace
}

// piece is the most that is sent at a time: what 1 Gbit/s carries in half a millisecond, so that connections take fair turns.
const piece = 64 << 10

func (c *conn) Write(data []byte) (sent int, err error) {
	for len(data) > 0 {
		part := data[:min(len(data), piece)]
		own, all := c.own.reserve(len(part)), c.all.reserve(len(part))
		time.Sleep(time.Until(later(own, all)))
		n, err := c.Conn.Write(part)
		sent += n
		if err != nil {
			return sent, err
		}
		data = data[n:]
	}
	return sent, nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// burst is how far a pace may run ahead after it was idle or its sender overslept: two of the kernel's longer naps.
const burst = 4 * time.Millisecond

// pace is a token bucket, kept as the time at which what was reserved so far is through.
type pace struct {
	rate int64
	mu   sync.Mutex
	free time.Time
}

// reserve takes n bytes of the rate and says when they may be sent.
func (p *pace) reserve(n int) time.Time {
	if p.rate == 0 {
		return time.Time{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = later(p.free, time.Now().Add(-burst)).Add(time.Duration(int64(n) * int64(time.Second) / p.rate))
	return p.free
}
