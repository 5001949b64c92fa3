package shape

import (
	"testing"
	"time"
)

// What is reserved in one go is due after what the rate needs for it, but for the burst; two share one rate.
func TestPace(t *testing.T) {
	p := &pace{rate: 1_000_000}
	start := time.Now()
	var due time.Time
	for range 1000 {
		due = p.reserve(10_000)
	}
	if took := due.Sub(start); took < 10*time.Second-burst || took > 10*time.Second {
		t.Errorf("10 MB at 1 MB/s are through after %v", took)
	}
}

// No rate is no wait.
func TestNoRateNoWait(t *testing.T) {
	p := &pace{}
	if due := p.reserve(1 << 40); !due.IsZero() {
		t.Errorf("without a rate it waits until %v", due)
	}
}
