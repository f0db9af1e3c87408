package control_test

import (
	"slices"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/internal/control"
)

// watchEnds returns the ids of the keys that a store tells to have ended from now on.
func watchEnds(t *testing.T, s *control.Store) <-chan string {
	ended := make(chan string, 100)
	t.Cleanup(s.Watch(func(c control.Change) {
		if c.Kind == control.KeyRevoked {
			ended <- c.KeyID
		}
	}))
	return ended
}

// 1. A request is authenticated. 2. Its key is revoked on another node, this one folds
// that and tells its watchers. 3. Only now the stream is noted down: nobody would end it
// any more, so Live, asked last, must say that the key is over.
func TestStreamsOpenedDuringARevocationEnd(t *testing.T) {
	cfg := startBroker(t)
	here, there := open(t, cfg), open(t, cfg)
	w := makeWorkspace(t, here, control.Workspace{})
	k, text := makeKey(t, here, control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead})
	waitFor(t, "the key works there", func() bool { _, err := there.Authenticate(text); return err == nil })
	ended := watchEnds(t, there)
	if err := here.RevokeKey(t.Context(), w.ID, k.ID); err != nil {
		t.Fatal(err)
	}
	// Told means folded: whoever notes a stream down after this finds out by Live, whoever
	// did before it is told.
	for there.Live(k.ID) {
		select {
		case id := <-ended:
			if there.Live(k.ID) {
				t.Fatalf("told that %s ended while it is live", id)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("not told within 20 s")
		}
	}
}

func TestRevocationsAreToldWithinASecond(t *testing.T) {
	cfg := startBroker(t)
	here, there := open(t, cfg), open(t, cfg)
	w := makeWorkspace(t, here, control.Workspace{})
	ended := watchEnds(t, there)
	var took []time.Duration
	for range 5 {
		k, _ := makeKey(t, here, control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead})
		waitFor(t, "the key is there", func() bool { return there.Live(k.ID) })
		began := time.Now()
		if err := here.RevokeKey(t.Context(), w.ID, k.ID); err != nil {
			t.Fatal(err)
		}
		if id := <-ended; id != k.ID {
			t.Fatalf("told of %s, want %s", id, k.ID)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	// The median, so that one pause of a busy machine does not decide.
	if median := took[len(took)/2]; median > time.Second {
		t.Errorf("told after %v, want within a second", took)
	}
}
