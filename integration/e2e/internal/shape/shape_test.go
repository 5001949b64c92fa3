package shape

import (
	"testing"
	"time"
)

// What is reserved in one go is due after what the rate needs for it, but for the burst; two share one rate.
func TestPace(t *testing.T) {
	p := &pace{rate: 1_000_000}
	// The first is so large that no pause of the machine makes up for it.
	before := time.Now()
	due := p.reserve(5_000_000)
	after := time.Now()
	for range 500 {
		due = p.reserve(10_000)
	}
	if due.Sub(before) < 10*time.Second-burst || due.Sub(after) > 10*time.Second {
		t.Errorf("10 MB at 1 MB/s are through after %v to %v", due.Sub(after), due.Sub(before))
	}
}

// No rate is no wait.
func TestNoRateNoWait(t *testing.T) {
	p := &pace{}
	if due := p.reserve(1 << 40); !due.IsZero() {
		t.Errorf("without a rate it waits until %v", due)
	}
}
