package httpapi

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/playhead-dev/playhead/internal/control"
)

// announce has the head of a request arrive that announces a body, on a connection of its
// own, and returns it and how large the body may become.
func announce(a *arrivals, bytes int) (*fasthttp.RequestHeader, int) {
	h := new(fasthttp.RequestHeader)
	h.SetMethod("POST")
	h.SetContentLength(bytes)
	most := a.headReceived(h).MaxRequestBodySize
	if most == 0 {
		most = a.cfg.BodyLimit
	}
	return h, most
}

// TestBodiesThatBreakOffAreNotCountedForLong:
//
// 1. Two bodies are announced, as much as there may be.
// 2. Their connections end. Where a chunk has not begun the server tells nobody.
// 3. When the time for a body is over, there is room again.
func TestBodiesThatBreakOffAreNotCountedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.MaxBodyBytes = 2 * cfg.BodyLimit
		a := newArrivals(cfg)
		for range 2 {
			if _, most := announce(a, cfg.BodyLimit); most != cfg.BodyLimit {
				t.Fatalf("a body may have %d bytes, want %d", most, cfg.BodyLimit)
			}
		}
		time.Sleep(cfg.ReadTimeout - time.Second)
		refused, most := announce(a, smallBody+1)
		if most != smallBody {
			t.Errorf("a third body may have %d bytes, want %d", most, smallBody)
		}
		if _, refusal := a.arrived(refused); refusal == nil || refusal.Status != 503 {
			t.Errorf("it is refused by %v, want 503", refusal)
		}
		time.Sleep(2 * time.Second)
		h, most := announce(a, cfg.BodyLimit)
		if most != cfg.BodyLimit {
			t.Errorf("after the time of the others it may have %d bytes, want %d", most, cfg.BodyLimit)
		}
		// What has arrived is counted until it is handled, however long that takes.
		done, refusal := a.arrived(h)
		time.Sleep(2 * cfg.ReadTimeout)
		if _, most := announce(a, cfg.BodyLimit); refusal != nil || most != cfg.BodyLimit || a.total != 2*cfg.BodyLimit {
			t.Errorf("%d bytes are counted while a body is handled, want %d; %v", a.total, 2*cfg.BodyLimit, refusal)
		}
		done()
		if a.total != cfg.BodyLimit {
			t.Errorf("%d bytes are counted when it is, want %d", a.total, cfg.BodyLimit)
		}
		time.Sleep(2 * cfg.ReadTimeout)
		_, _ = announce(a, smallBody+1)
		if a.total != smallBody+1 || len(a.queue) != 1 || len(a.open) != 1 {
			t.Errorf("%d bytes of %d requests are counted in the end, %d are remembered", a.total, len(a.open), len(a.queue))
		}
	})
}

// TestRefusalsAreOfTheirRequestAlone:
//
// 1. A stranger announces chunks, and hangs up before the first. The server tells nobody.
// 2. It uses the same memory for the head of another request, which announces too much.
// 3. That is 413, not what the stranger would have been answered.
func TestRefusalsAreOfTheirRequestAlone(t *testing.T) {
	a := newArrivals(DefaultConfig())
	a.cfg.Keys = strangers{}
	h, most := announce(a, -1)
	if most != smallBody {
		t.Fatalf("a stranger's body may have %d bytes, want %d", most, smallBody)
	}
	h.SetContentLength(a.cfg.BodyLimit + 1)
	_ = a.headReceived(h)
	if _, refusal := a.arrived(h); refusal != nil {
		t.Errorf("the next request is answered %v", refusal)
	}
}

// strangers are who has no key.
type strangers struct{}

func (strangers) Authenticate(string) (control.Principal, error) {
	return control.Principal{}, control.ErrUnknownKey
}
