package query

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/playhead-dev/playhead/internal/httpapi"
)

func newTestGate(places, waiting int) *gate {
	return newGate("pages", places, AdmissionConfig{MaxWaiting: waiting, QueueWait: time.Second}, NewMetrics(nil))
}

// enterNow enters a gate that has a place.
func enterNow(t *testing.T, g *gate, workspace string) (leave func()) {
	t.Helper()
	began := time.Now()
	leave, err := g.enter(t.Context(), workspace)
	if err != nil || time.Since(began) > 0 {
		t.Fatalf("%s: %v after %v, want a place at once", workspace, err, time.Since(began))
	}
	return leave
}

func isOverloaded(err error) bool {
	answer, ok := errors.AsType[*httpapi.Error](err)
	return ok && answer.Status == 503 && answer.Code == "overloaded" && answer.RetryAfter >= time.Second
}

func TestGateKeepsHalfForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGate(4, 100)
		first := enterNow(t, g, "loud")
		enterNow(t, g, "loud")
		admitted := make(chan string, 10)
		for i := range 3 {
			go func() {
				if _, err := g.enter(t.Context(), "loud"); err == nil {
					admitted <- fmt.Sprint("loud ", i)
				}
			}()
			synctest.Wait()
		}
		enterNow(t, g, "quiet") // though three wait
		if len(admitted) != 0 {
			t.Fatalf("%s is in, beyond its share", <-admitted)
		}
		first()
		first() // gives nothing back
		synctest.Wait()
		if len(admitted) != 1 || <-admitted != "loud 0" {
			t.Fatal("the place went to nobody, or to another than the first")
		}
		time.Sleep(2 * time.Second) // the others wait no longer
	})
}

func TestGateTakesWorkspacesInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGate(2, 100) // one each
		a, b := enterNow(t, g, "held"), enterNow(t, g, "other")
		admitted := make(chan string)
		leaves := make(chan func(), 1)
		for _, workspace := range []string{"loud", "loud", "loud", "quiet", "third", "quiet"} {
			go func() {
				leave, err := g.enter(t.Context(), workspace)
				if err != nil {
					t.Error(err)
					return
				}
				leaves <- leave
				admitted <- workspace
			}()
			synctest.Wait()
		}
		var order []string
		leave := a
		for range 6 {
			leave()
			order = append(order, <-admitted)
			leave = <-leaves
		}
		if got := strings.Join(order, " "); got != "loud quiet third loud quiet loud" {
			t.Errorf("order = %s, want the workspaces in turn", got)
		}
		leave()
		b()
		if g.taken != 0 || g.waiting != 0 || len(g.lines) != 0 || len(g.turn) != 0 {
			t.Errorf("at the end: %+v", g)
		}
	})
}

func TestGateRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestGate(2, 4)
		leave := enterNow(t, g, "a")
		ctx, cancel := context.WithCancel(t.Context())
		results := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := g.enter(ctx, "a")
				results <- err
			}()
		}
		synctest.Wait()
		began := time.Now()
		if _, err := g.enter(t.Context(), "a"); !isOverloaded(err) || time.Since(began) > 0 {
			t.Errorf("beyond the workspace's half of the queue: %v after %v, want a refusal at once", err, time.Since(began))
		}
		enterNow(t, g, "b")()
		cancel()
		for range 2 {
			if err := <-results; !errors.Is(err, context.Canceled) {
				t.Errorf("who went away: %v", err)
			}
		}
		if _, err := g.enter(t.Context(), "a"); !isOverloaded(err) || time.Since(began) != time.Second {
			t.Errorf("no place in time: %v after %v, want a refusal after 1 s", err, time.Since(began))
		}
		leave()
		enterNow(t, g, "a")()
		if len(g.lines) != 0 {
			t.Errorf("%d lines at the end, want none", len(g.lines))
		}
	})
}

// TestGateUnderLoad has workspaces come and go at random, some of them giving up.
func TestGateUnderLoad(t *testing.T) {
	g := newGate("scans", 5, AdmissionConfig{MaxWaiting: 30, QueueWait: 5 * time.Millisecond}, NewMetrics(nil))
	var mu sync.Mutex
	in, most, all, mostAll, served := map[string]int{}, 0, 0, 0, 0
	var group sync.WaitGroup
	for i := range 40 {
		group.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			workspace := fmt.Sprint("w", i%4)
			for range 200 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.Int64N(int64(8*time.Millisecond))))
				leave, err := g.enter(ctx, workspace)
				if err == nil {
					mu.Lock()
					in[workspace]++
					all++
					served++
					most, mostAll = max(most, in[workspace]), max(mostAll, all)
					mu.Unlock()
					if r.IntN(3) == 0 {
						<-ctx.Done()
					}
					mu.Lock()
					in[workspace]--
					all--
					mu.Unlock()
					leave()
				}
				cancel()
			}
		})
	}
	group.Wait()
	if most > g.share || mostAll > g.places || served == 0 {
		t.Errorf("at once %d of a workspace and %d in all, %d served; want at most %d and %d", most, mostAll, served, g.share, g.places)
	}
	if g.taken != 0 || g.waiting != 0 || len(g.lines) != 0 || len(g.turn) != 0 {
		t.Errorf("at the end: %+v", g)
	}
}

// TestFullNodeAnswers503 asks over HTTP while others hold all places.
func TestFullNodeAnswers503(t *testing.T) {
	w, _ := newSite(t, siteLog()...)
	cfg := DefaultConfig()
	cfg.Admission = AdmissionConfig{MaxPages: 2, MaxScans: 2, QueueWait: time.Millisecond}
	api := w.api(cfg)
	app := httpapi.NewApp(httpapi.DefaultConfig(), newTestLog(t))
	app.Use(httpapi.Authenticate(keys{}))
	api.Routes(app)
	for _, g := range []*gate{api.admission.pages, api.admission.scans} {
		leave, err := g.enter(t.Context(), "w1")
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
	}
	id := siteEvent(1, "", "").ID.String()
	for _, path := range []string{
		"/v1/sessions/s1", "/v1/sessions/s1/events", "/v1/events", "/v1/workflows/wf1/events", "/v1/events/" + id,
		"/v1/events/count", "/v1/events/count?session_id=s1", "/v1/events/histogram?interval=minute",
	} {
		status, body, header := get(t, app, "w1", path)
		if status != http.StatusServiceUnavailable || !strings.Contains(body, `"overloaded"`) || header.Get("Retry-After") == "" {
			t.Errorf("%s = %d %s, Retry-After %q, want 503 overloaded", path, status, body, header.Get("Retry-After"))
		}
		if status, body, _ := get(t, app, "w2", path); status == http.StatusServiceUnavailable {
			t.Errorf("%s of another workspace = %d %s", path, status, body)
		}
	}
}
