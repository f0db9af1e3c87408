package presence_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/internal/presence"
)

func TestMessagesReachTheOthersOnce(t *testing.T) {
	cfg := startBroker(t)
	from, to := start(t, cfg), start(t, cfg)
	var mu sync.Mutex
	var own, got []string
	from.Receive(func(m []byte) { mu.Lock(); defer mu.Unlock(); own = append(own, string(m)) })
	to.Receive(func(m []byte) { mu.Lock(); defer mu.Unlock(); got = append(got, string(m)) })
	for _, m := range []string{`{"a":1}`, `"text"`} {
		if err := from.Send(t.Context(), []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		mu.Lock()
		n := len(got)
		mu.Unlock()
		if n >= 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the other node has %q", got)
		}
		time.Sleep(5 * time.Millisecond)
	}
	// Counts go on beside, and behind them nothing comes twice.
	acquire(t, from, "w", "k", "", presence.Limits{})
	waitOpen(t, "w", "k", 1, to)
	mu.Lock()
	defer mu.Unlock()
	if strings.Join(got, " ") != `{"a":1} "text"` || len(own) != 0 {
		t.Errorf("the other has %q, the sender %q", got, own)
	}
	if err := from.Send(t.Context(), []byte(`"`+strings.Repeat("x", 40<<10)+`"`)); err == nil {
		t.Error("a message beyond the bound is taken")
	}
	if err := from.Send(t.Context(), []byte(`{`)); err == nil {
		t.Error("what is no JSON is taken")
	}
}
