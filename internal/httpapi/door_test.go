package httpapi_test

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/playhead-dev/playhead/internal/httpapi"
)

// endless is a listener that somebody always connects to.
type endless struct{ net.Listener }

func (endless) Accept() (net.Conn, error) { return nil, nil }

func TestDoorLetsInAtItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := httpapi.DefaultConfig()
		cfg.AcceptRate = 640
		d := httpapi.Door(endless{}, cfg)
		accept := func(n int) time.Duration {
			began := time.Now()
			for range n {
				if _, err := d.Accept(); err != nil {
					t.Fatal(err)
				}
			}
			return time.Since(began)
		}
		if took := accept(10); took != 0 { // a sixty-fourth of a second's
			t.Errorf("the first ten waited %v", took)
		}
		if took := accept(640); took < 990*time.Millisecond || took > 1010*time.Millisecond {
			t.Errorf("a second's worth took %v", took)
		}
		time.Sleep(time.Minute)
		if took := accept(10); took != 0 {
			t.Errorf("after a quiet minute ten waited %v", took)
		}
		if took := accept(64); took < 90*time.Millisecond {
			t.Errorf("a quiet minute was saved up: 64 took %v", took)
		}
	})
}

func TestDoorHandsOnErrors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if _, err := httpapi.Door(ln, httpapi.DefaultConfig()).Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept on a closed listener = %v", err)
	}
}
