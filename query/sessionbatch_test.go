package query

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

func TestConcurrentSessionQuestionsShareStatements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var sizes []int
		b := newBaseBatches(func(_ context.Context, _ baseGroup, sessions []string) (map[string]schema.Session, error) {
			time.Sleep(10 * time.Millisecond) // virtual: a statement under way
			mu.Lock()
			sizes = append(sizes, len(sessions))
			mu.Unlock()
			out := make(map[string]schema.Session)
			for _, id := range sessions {
				s := schema.NewSession()
				s.SetExists()
				s.Workflow = "of " + id
				out[id] = s
			}
			return out, nil
		})
		g := baseGroup{workspace: "w"}
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				id := fmt.Sprintf("s%d", i)
				s, err := b.get(t.Context(), g, id)
				if err != nil || s.Workflow != "of "+id {
					t.Errorf("get(%s) = %+v, %v", id, s, err)
				}
			})
		}
		wg.Wait()
		if want := 2 + 1000/maxBaseBatch; len(sizes) > want {
			t.Errorf("%d statements for 1000 questions, want at most %d: %v", len(sizes), want, sizes)
		}
		for _, n := range sizes {
			if n > maxBaseBatch {
				t.Errorf("a statement of %d sessions, want at most %d", n, maxBaseBatch)
			}
		}
		if len(b.groups) != 0 {
			t.Errorf("%d groups are left", len(b.groups))
		}
	})
}

func TestSessionQuestionsShareAFailureOnce(t *testing.T) {
	failing := errors.New("away")
	fail := true
	b := newBaseBatches(func(context.Context, baseGroup, []string) (map[string]schema.Session, error) {
		if fail {
			return nil, failing
		}
		return nil, nil
	})
	if _, err := b.get(t.Context(), baseGroup{}, "s"); !errors.Is(err, failing) {
		t.Errorf("error = %v, want %v", err, failing)
	}
	fail = false
	s, err := b.get(t.Context(), baseGroup{}, "s")
	if err != nil || s.Exists() {
		t.Errorf("after the failure: %+v, %v; want a session that does not exist", s, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.get(ctx, baseGroup{}, "s"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
