package node

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"silk.invalid/integration/e2e/internal/scope"
)

// Redis is Debian's redis-server, the memory of a fleet.
type Redis struct {
	Socket string
	*Process
}

// StartRedis starts one that is empty and keeps nothing on disk.
func StartRedis(t scope.Scope) *Redis {
	t.Helper()
	dir, err := os.MkdirTemp("", "silk-redis-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &Redis{Socket: filepath.Join(dir, "s")}
	r.Process, err = startProcess(dir, "redis", "/usr/bin/redis-server", "--port", "0", "--unixsocket", r.Socket, "--save", "", "--appendonly", "no", "--dir", dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Kill)
	Eventually(t, "Redis answers", func() error {
		_, err := r.Do("PING")
		return err
	})
	return r
}

// Config is the part of silkd's configuration that names it. It counts as away late: with silkd's own 200 ms, a machine that is busy for
// a moment makes a known image a new one. No test has a Redis that hangs.
func (r *Redis) Config() string { return r.Measured() + "deadline_millis = 5000\n" }

// Measured is Config with silkd's own deadline, for the bench.
func (r *Redis) Measured() string {
	return fmt.Sprintf("[share.redis]\naddress = \"unix:%s\"\n", r.Socket)
}

// Do sends a command and returns the first line of the answer, without its type.
func (r *Redis) Do(words ...string) (string, error) {
	conn, err := net.DialTimeout("unix", r.Socket, time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(conn, "*%d\r\n", len(words))
	for _, word := range words {
		fmt.Fprintf(conn, "$%d\r\n%s\r\n", len(word), word)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || line == "" {
		return "", fmt.Errorf("redis %v: %q, %v", words, line, err)
	}
	if line[0] == '-' {
		return "", fmt.Errorf("redis %v: %s", words, line[1:])
	}
	return strings.TrimSpace(line[1:]), nil
}

// Knows says which layer of an image, as n has it, the fleet does not know.
func (r *Redis) Knows(n *Node, ref string) error {
	status, err := n.Status()
	if err != nil {
		return err
	}
	layers := 0
	for _, image := range status.Images {
		if image.Reference != ref {
			continue
		}
		for _, layer := range image.Layers {
			layers++
			_, blob, _ := strings.Cut(layer.BlobDigest, ":")
			if known, err := r.Do("EXISTS", "silk:1:layer:"+blob); err != nil || known != "1" {
				return fmt.Errorf("layer %s: %s, %v", layer.BlobDigest, known, err)
			}
		}
	}
	if layers == 0 {
		return fmt.Errorf("silk does not know %s", ref)
	}
	return nil
}
