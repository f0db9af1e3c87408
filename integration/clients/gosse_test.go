package clients

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	sse "github.com/tmaxmax/go-sse"
)

// startGoSSE follows with tmaxmax/go-sse, which resumes by itself.
func startGoSSE(t *testing.T, j job) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, j.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range j.Headers {
		req.Header.Set(name, value)
	}
	f := &follower{client: "go-sse"}
	transport := &http.Transport{}
	client := &sse.Client{
		HTTPClient: &http.Client{Transport: transport},
		Backoff:    sse.Backoff{InitialInterval: 20 * time.Millisecond, Multiplier: 1, MaxRetries: 0},
		OnRetry: func(_ error, after time.Duration) {
			f.note(record{Kind: "lost", Code: int(after.Milliseconds())})
		},
		ResponseValidator: func(res *http.Response) error {
			if res.StatusCode != http.StatusOK {
				f.note(record{Kind: "end", Code: res.StatusCode})
				return errors.New(res.Status)
			}
			f.note(record{Kind: "open"})
			return sse.DefaultValidator(res)
		},
	}
	conn := client.NewConnection(req)
	conn.Buffer(nil, 4<<20) // 64 KiB otherwise, and then it gives up
	conn.SubscribeToAll(func(e sse.Event) {
		r := record{Kind: "event", Type: e.Type, ID: e.LastEventID, Data: e.Data}
		if r.Type == "" {
			r.Type = "message"
		}
		f.note(r)
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = conn.Connect() // until the context ends, or the answer is not 200
	}()
	f.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
		transport.CloseIdleConnections()
	})
	t.Cleanup(f.stop)
	return f
}
