package ingest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestAnAppendLingersOnlyBesideOthers(t *testing.T) {
	const linger = time.Second
	r := newRig(t, func(c *rigConfig) { c.ingest.Linger = linger })
	r.appended(200, call{path: "/v1/sessions/a/events", body: event("")}) // the client learns where the topic is
	fastest := time.Hour
	for range 5 { // one may be slow for other reasons; with the linger all would be
		begun := time.Now()
		r.appended(200, call{path: "/v1/sessions/a/events", body: event("")})
		fastest = min(fastest, time.Since(begun))
	}
	if fastest >= linger {
		t.Errorf("an append alone took %v, as long as the linger", fastest)
	}

	// While one is in flight, what else comes gathers.
	var requests atomic.Int32
	gate := make(chan struct{})
	r.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		r.cluster.KeepControl()
		requests.Add(1)
		r.cluster.SleepControl(func() { <-gate })
		return nil, nil, false
	})
	var wg sync.WaitGroup
	send := func(i int) {
		wg.Go(func() {
			r.appended(200, call{path: "/v1/sessions/a/events", body: event(fmt.Sprintf(`"message_id":"m%d"`, i))})
		})
	}
	send(0)
	eventually(t, "the first is on its way", func() bool { return requests.Load() == 1 })
	const others = 20
	for i := range others {
		send(i + 1)
	}
	eventually(t, "the others are handed over", func() bool { return r.appender.producer.events.Load() == others+1 })
	close(gate)
	wg.Wait()
	if n := requests.Load(); n > 4 { // 2, unless the machine is so slow that a linger ends meanwhile
		t.Errorf("%d appends went in %d requests", others+1, n)
	}
}

// BenchmarkAlone appends one event at a time through the HTTP handler, as a session with
// one producer does.
func BenchmarkAlone(b *testing.B) {
	r := newRig(b)
	b.ReportAllocs()
	for b.Loop() {
		r.appended(200, call{path: "/v1/sessions/a/events", body: event("")})
	}
}
