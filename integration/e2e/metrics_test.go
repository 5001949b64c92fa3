package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"

	"silk.invalid/integration/e2e/internal/hub"
	"silk.invalid/integration/e2e/internal/image"
	"silk.invalid/integration/e2e/internal/node"
)

// What Prometheus is told after a pull that streamed and one of known layers: every name of the names' file, values that fit
// what happened, no label beyond those of the file, and nothing of images, digests or hosts.
func TestMetrics(t *testing.T) {
	registry := hub.Start(t)
	fleet := node.StartRedis(t)
	address := freeAddress(t)
	teacher := node.Start(t, node.Options{Generation: node.Second, Extra: fleet.Config()})
	pupil := node.Start(t, node.Options{
		Generation: node.Second,
		Stall:      node.Patient,
		Extra:      fleet.Config() + fmt.Sprintf("\n[metrics]\naddress = %q\n", address),
	})
	known := image.Image{Layers: []image.Layer{noiseLayer("known", 71, 6<<20)}}.Bundle()
	fresh := image.Image{Layers: []image.Layer{noiseLayer("fresh", 72, 2<<20), noiseLayer("small", 73, 5000)}}.Bundle()
	knownRef, freshRef := registry.Add("secret/known", "1", known), registry.Add("secret/fresh", "1", fresh)
	if _, err := teacher.Pull(teacher.Context(), knownRef, "silk"); err != nil {
		t.Fatal(err)
	}
	teacher.Eventually("the fleet knows its layers", func() error { return fleet.Knows(teacher, knownRef) })

	before := scrape(t, address)
	if got := before[`silk_layers{state="whole"}`]; got != 0 {
		t.Errorf("%v layers before any pull", got)
	}
	// Its 6 MiB take some 4 s: they are not here before somebody reads.
	registry.SetRate(1 << 20)
	chain, err := pupil.PullChain(pupil.Context(), knownRef)
	if err != nil {
		t.Fatal(err)
	}
	_, undo, err := pupil.View(pupil.Context(), "silk", chain)
	if err != nil {
		t.Fatal(err)
	}
	if got := scrape(t, address)["silk_containers_on_silkd"]; got != 1 {
		t.Errorf("%v stand on what silkd serves, and one was mounted before its layer was whole", got)
	}
	if err := undo(); err != nil {
		t.Fatal(err)
	}
	pupil.Eventually("nothing stands on what silkd serves", func() error {
		if got := scrape(t, address)["silk_containers_on_silkd"]; got != 0 {
			return fmt.Errorf("%v do", got)
		}
		return pupil.CollectGarbage()
	})
	if _, err := pupil.ReadChain(pupil.Context(), "silk", chain); err != nil {
		t.Fatal(err)
	}
	pupil.Eventually("every layer is whole", func() error { return whole(pupil, knownRef) })
	registry.SetRate(0)
	if _, err := pupil.Pull(pupil.Context(), freshRef, "silk"); err != nil {
		t.Fatal(err)
	}

	var told samples
	pupil.Eventually("nothing is under way", func() error {
		told = scrape(t, address)
		for name, value := range told {
			if strings.HasPrefix(name, "silk_budget_") && strings.HasSuffix(name, "_in_use") && value > 0 &&
				name != "silk_budget_open_files_in_use" {
				return fmt.Errorf("%s is %v", name, value)
			}
		}
		return nil
	})
	var blobs float64
	for _, blob := range append(known.Blobs, fresh.Blobs...) {
		blobs += float64(blob.Size)
	}
	arrived := told.sum("silk_layer_arrived_bytes_total{")
	for _, check := range []struct {
		name     string
		value    float64
		min, max float64
	}{
		{"bytes of tars", arrived, 8 << 20, 8<<20 + 100_000},
		{"streamed bytes", told[`silk_layer_arrived_bytes_total{class="stream"}`], 2 << 20, 2<<20 + 50_000},
		{"received bytes", told["silk_registry_received_bytes_total"], 8 << 20, blobs * 1.1},
		{"good requests", told[`silk_registry_requests_total{outcome="ok"}`], 3, 1000},
		{"retries", told["silk_registry_retries_total"], 0, 0},
		{"pulls of known images", told[`silk_image_pull_seconds_count{result="ready",kind="known"}`], 1, 1},
		{"pulls of others", told[`silk_image_pull_seconds_count{result="ready",kind="first"}`], 1, 1},
		{"seconds of pulls", told.sum("silk_image_pull_seconds_sum{"), 0.001, 60},
		{"failed pulls", told.sum(`silk_image_pull_seconds_count{result="failed"`), 0, 0},
		{"filled layers", told[`silk_layer_pulls_total{result="filled"}`], 1, 1},
		{"streamed layers", told[`silk_layer_pulls_total{result="streamed"}`], 2, 2},
		{"whole layers", told[`silk_layers{state="whole"}`], 3, 3},
		{"ready images", told[`silk_images{state="ready"}`], 2, 2},
		{"used bytes", told[`silk_data_bytes{state="used"}`], 8 << 20, 8<<20 + 100_000},
		{"free bytes", told["silk_disk_free_bytes"], 1, told["silk_disk_size_bytes"]},
		{"reads", told.sum("silk_fuse_reads_total{"), 1, 1e6},
		{"waits", told["silk_fuse_read_wait_seconds_count"] - told[`silk_fuse_reads_total{how="parked"}`], 0, 0},
		{"failed reads", told["silk_fuse_read_errors_total"], 0, 0},
		{"lies", told.sum("silk_lies_total{"), 0, 0},
		{"profiles", told.sum("silk_profiles_total{"), 1, 1},
		{"Prepare calls", told[`silk_snapshotter_call_seconds_count{method="prepare"}`], 3, 20},
		{"Stat calls", told[`silk_snapshotter_call_seconds_count{method="stat"}`], 2, 1000},
		{"redis", told[`silk_share_up{backend="redis"}`], 1, 1},
		{"referrers", told[`silk_share_configured{backend="referrers"}`], 0, 0},
		{"values of redis", told[`silk_share_values_total{backend="redis",outcome="found"}`], 1, 10},
		{"memory", told["process_resident_memory_bytes"], 4 << 20, memoryBudget},
		{"descriptors", told["process_open_fds"], 10, told["process_max_fds"]},
		{"threads", told["process_threads"], 2, 200},
		{"processor time", told["process_cpu_seconds_total"], 0.01, 60},
		{"connections", told["silk_budget_registry_connections_limit"], 10, 10},
		{"window", told["silk_budget_bytes_in_flight_limit"], 32 << 20, 32 << 20},
		{"lines of EROFS", told.sum("silk_rung{"), 1, 1},
	} {
		if check.value < check.min || check.value > check.max {
			t.Errorf("%s: %v is not between %v and %v", check.name, check.value, check.min, check.max)
		}
	}
	frame, err := pupil.Silk("top", "--once", "--interval", "0.2")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"network ", " received", "3 layers, ", "decoders 0/", "redis ", "nothing arrives\n"} {
		if !strings.Contains(frame, part) {
			t.Errorf("silk top does not show %q:\n%s", part, frame)
		}
	}
	for name, value := range before {
		if strings.HasSuffix(strings.SplitN(name, "{", 2)[0], "_total") && told[name] < value {
			t.Errorf("%s went from %v to %v", name, value, told[name])
		}
	}
}

// Removed images' layers stay within store.cache_bytes, the longest unused goes first, and metrics say so.
func TestQuotaHolds(t *testing.T) {
	registry := hub.Start(t)
	address := freeAddress(t)
	const quota = 5 << 20
	n := node.Start(t, node.Options{
		Generation: node.Second,
		Extra:      fmt.Sprintf("[store]\ncache_bytes = %d\nkeep_free_percent = 0\n[metrics]\naddress = %q\n", quota, address),
	})
	for i := range 6 {
		ref := registry.Add(fmt.Sprint("secret/app", i), "1", image.Image{Layers: []image.Layer{noiseLayer("data", 80+int64(i), 2<<20)}}.Bundle())
		if _, err := n.Pull(n.Context(), ref, "silk"); err != nil {
			t.Fatal(err)
		}
		if err := n.Client.ImageService().Delete(n.Context(), ref, images.SynchronousDelete()); err != nil {
			t.Fatal(err)
		}
		n.Eventually("the quota holds", func() error {
			told := scrape(t, address)
			limit, unused := told["silk_budget_cache_bytes_limit"], told["silk_budget_cache_bytes_in_use"]
			if used := told[`silk_data_bytes{state="used"}`]; limit != quota || unused > quota || used > 0 {
				return fmt.Errorf("%v used, %v unused of %v", used, unused, limit)
			}
			return nil
		})
	}
	told := scrape(t, address)
	if layers, bytes := told["silk_evicted_layers_total"], told["silk_evicted_bytes_total"]; layers != 4 || bytes < 8<<20 {
		t.Errorf("%v layers and %v bytes were dropped of 6 layers, of which 2 fit", layers, bytes)
	}
	if data := n.LayerData(); len(data) != 2 {
		t.Errorf("there are %v", data)
	}
}

// Samples by name and labels, as they stand in the text.
type samples map[string]float64

func (s samples) sum(prefix string) (sum float64) {
	for name, value := range s {
		if strings.HasPrefix(name, prefix) {
			sum += value
		}
	}
	return sum
}

// freeAddress is one that nobody listens at.
func freeAddress(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

var (
	nameOf   = regexp.MustCompile(`"((?:silk|process)_[a-z_]+)"`)
	labelOf  = regexp.MustCompile(`[A-Z]\w+\("([a-z]+)"\) \{`)
	valueOf  = regexp.MustCompile(`^\s+[A-Z]\w+ = (?:"([a-z_]+)"|crate)`)
	sampleOf = regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})? ([-+.\deInf]+)$`)
)

// names reads the names' file: all names as they stand in a scrape, and the values of each label.
func names(t *testing.T) (names []string, labels map[string]map[string]bool) {
	source, err := os.ReadFile(filepath.Join("../../model/src/metrics.rs"))
	if err != nil {
		t.Fatal(err)
	}
	code, _, _ := strings.Cut(string(source), "#[cfg(test)]")
	for _, found := range nameOf.FindAllStringSubmatch(code, -1) {
		if strings.HasPrefix(found[1], "silk_budget_") {
			names = append(names, found[1]+"_limit", found[1]+"_in_use")
		} else {
			names = append(names, found[1])
		}
	}
	labels = map[string]map[string]bool{"le": nil}
	label := ""
	for _, line := range strings.Split(code, "\n") {
		if found := labelOf.FindStringSubmatch(line); found != nil {
			label = found[1]
			if labels[label] == nil {
				labels[label] = map[string]bool{}
			}
		} else if found := valueOf.FindStringSubmatch(line); found != nil && label != "" {
			labels[label][found[1]] = true
		}
	}
	if len(names) < 40 || len(labels) < 10 {
		t.Fatalf("the names' file is not understood: %v, %v", names, labels)
	}
	return names, labels
}

// scrape asks as Prometheus does, and checks what must hold of every answer.
func scrape(t *testing.T, address string) samples {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second}
	answer, err := client.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatal(answer.Status, err)
	}
	text := string(body)
	for _, leak := range []string{"sha256", "secret", "127.0.0.1", "localhost", "/var"} {
		if strings.Contains(text, leak) {
			t.Errorf("the text has %q", leak)
		}
	}
	all, labels := names(t)
	told, seen := samples{}, map[string]bool{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		parts := sampleOf.FindStringSubmatch(lines.Text())
		if parts == nil {
			t.Errorf("not a sample: %q", lines.Text())
			continue
		}
		value, err := strconv.ParseFloat(parts[3], 64)
		if err != nil {
			t.Error(err)
		}
		told[strings.TrimSuffix(strings.TrimSuffix(parts[1]+"{"+parts[2]+"}", "{}"), " ")] = value
		name := parts[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			name = strings.TrimSuffix(name, suffix)
		}
		seen[name] = true
		for _, pair := range strings.Split(parts[2], ",") {
			if pair == "" {
				continue
			}
			label, quoted, _ := strings.Cut(pair, "=")
			values, is := labels[label]
			value, err := strconv.Unquote(quoted)
			if !is || err != nil || (label != "le" && label != "version" && !values[value]) {
				t.Errorf("%s has the label %s, which the names' file does not", parts[1], pair)
			}
		}
	}
	for _, name := range all {
		if !seen[name] {
			t.Errorf("%s is not told", name)
		}
		delete(seen, name)
	}
	for name := range seen {
		t.Errorf("%s is not in the names' file", name)
	}
	return told
}
