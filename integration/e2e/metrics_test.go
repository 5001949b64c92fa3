package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/node"
)

// What a digest or an image would look like in the text: hexadecimal digits in a row, slashes, the registry's address.
var leaks = regexp.MustCompile(`[0-9a-f]{12}|sha256|127\.0\.0\.1|real/`)

// A silkd that pulls an image tells Prometheus so, and neither which image nor from where.
func TestMetricsOfAPull(t *testing.T) {
	bundle := realImage(t, "debian")
	address := freeAddress(t)
	registry := hub.Start(t)
	ref := registry.Add("real/debian", "1", bundle)
	n := node.Start(t, node.Options{Generation: node.Second, Extra: fmt.Sprintf("[metrics]\naddress = %q\n", address)})
	before := scrape(t, n, address)
	image, err := n.Pull(n.Context(), ref, "silk")
	if err != nil {
		t.Fatal(err)
	}
	after := scrape(t, n, address)
	for name := range before {
		if _, there := after[name]; !there {
			t.Errorf("%s is not told any more", name)
		}
	}
	frame, err := n.Silk("top", "--once", "--interval", "0.2")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"network ", " received", "reads ", "decoders 0/", "nothing arrives\n"} {
		if !strings.Contains(frame, part) {
			t.Errorf("silk top does not show %q:\n%s", part, frame)
		}
	}
	size, err := image.Size(n.Context())
	if err != nil {
		t.Fatal(err)
	}
	grew := func(name string) float64 { return after[name] - before[name] }
	for name, least := range map[string]float64{
		`silk_registry_requests_total{outcome="ok"}`:                 1,
		`silk_image_pull_seconds_count{result="ready",kind="first"}`: 1,
		`silk_layer_pulls_total{result="streamed"}`:                  1,
		`silk_layer_arrived_bytes_total{class="stream"}`:             1 << 20,
		`silk_registry_received_bytes_total`:                         1 << 20,
		`silk_snapshotter_call_seconds_count{method="prepare"}`:      1,
		`silk_snapshotter_call_seconds_count{method="stat"}`:         1,
		`silk_images{state="ready"}`:                                 1,
		`silk_layers{state="whole"}`:                                 1,
	} {
		if grew(name) < least {
			t.Errorf("%s grew by %v (image of %d bytes), not by %v", name, grew(name), size, least)
		}
	}
	for name, value := range after {
		if limit, isLimit := strings.CutSuffix(name, "_limit"); isLimit && value > 0 && after[limit+"_in_use"] > value {
			t.Errorf("%s is %v, more is in use: %v", name, value, after[limit+"_in_use"])
		}
	}
}

// freeAddress is one that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// scrape asks silkd for its numbers, by name with labels.
func scrape(t *testing.T, n *node.Node, address string) map[string]float64 {
	t.Helper()
	var text string
	n.Eventually("silkd tells its numbers", func() error {
		answer, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK || !strings.HasPrefix(answer.Header.Get("Content-Type"), "application/openmetrics-text") {
			return fmt.Errorf("it answers %s as %q", answer.Status, answer.Header.Get("Content-Type"))
		}
		body, err := io.ReadAll(answer.Body)
		text = string(body)
		return err
	})
	if !strings.HasSuffix(text, "# EOF\n") {
		t.Errorf("it does not end: %q", text[max(0, len(text)-80):])
	}
	values := make(map[string]float64)
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, number, ok := strings.Cut(strings.TrimSpace(line), " ")
		value, err := strconv.ParseFloat(number, 64)
		if !ok || err != nil {
			t.Errorf("%q is no number", line)
		}
		if leak := leaks.FindString(name); leak != "" {
			t.Errorf("%q has %q in it", name, leak)
		}
		values[name] = value
	}
	return values
}
