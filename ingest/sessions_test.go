package ingest

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

func (r *rig) session(status int, c call) schema.SessionView {
	r.tb.Helper()
	res := r.do(c)
	if res.status != status {
		r.tb.Fatalf("%s %s: status %d, body %s; want %d", c.path, c.body, res.status, res.body, status)
	}
	var v schema.SessionView
	res.json(r.tb, &v)
	return v
}

func TestASessionIsCreatedAndEnded(t *testing.T) {
	r := newRig(t)
	v := r.session(201, call{path: "/v1/sessions", body: `{"id":"a","kind":"call","workflow_id":"w","metadata":{"k":"v"}}`})
	if v.ID != "a" || v.Kind != "call" || *v.WorkflowID != "w" || v.Metadata["k"] != "v" || v.Status != "active" || v.EventCount != 0 {
		t.Errorf("created %+v", v)
	}
	r.appended(200, call{path: "/v1/sessions/a/events", body: event("")})
	v = r.session(200, call{path: "/v1/sessions/a/end", body: `{"reason":"hung up"}`})
	if v.Status != "ended" || v.EndedAt == nil || v.EventCount != 1 {
		t.Errorf("ended %+v", v)
	}
	ended := *v.EndedAt
	if v = r.session(200, call{path: "/v1/sessions/a/end"}); *v.EndedAt != ended {
		t.Errorf("ended again: %+v", v)
	}
	events := r.events()
	if len(events) != 3 {
		t.Fatalf("log holds %d records, want 3", len(events))
	}
	last := events[2]
	if last.Type != schema.TypeSessionEnded || string(last.Payload) != `{"reason":"hung up"}` || last.Workflow != "w" {
		t.Errorf("last record = %+v", last)
	}
	if events[1].Workflow != "w" {
		t.Errorf("the event has workflow %q, want the session's", events[1].Workflow)
	}
}

func TestASessionWithoutAnIDGetsOne(t *testing.T) {
	r := newRig(t)
	a := r.session(201, call{path: "/v1/sessions", contentType: "-"})
	b := r.session(201, call{path: "/v1/sessions", body: `{"id":null,"kind":null}`})
	for _, v := range []schema.SessionView{a, b} {
		if !strings.HasPrefix(v.ID, "ses_") || len(v.ID) != 30 || schema.CheckID(v.ID) != nil || v.Kind != "session" {
			t.Errorf("created %+v", v)
		}
	}
	if a.ID == b.ID {
		t.Errorf("two sessions have the id %s", a.ID)
	}
	if v := r.session(201, call{path: "/v1/sessions", key: "session-a"}); v.ID != "a" {
		t.Errorf("a key of one session created %s", v.ID)
	}
	if v := r.session(201, call{path: "/v1/sessions", key: "workflow"}); v.WorkflowID == nil || *v.WorkflowID != "w1" {
		t.Errorf("a key of one workflow created %+v", v)
	}
}

func TestTheSameCreationAgainChangesNothing(t *testing.T) {
	r := newRig(t)
	body := `{"id":"a","kind":"call","workflow_id":"w","metadata":{"k":"v"}}`
	first := r.session(201, call{path: "/v1/sessions", body: body})
	again := r.session(200, call{path: "/v1/sessions", body: body})
	if again.StartedAt != first.StartedAt {
		t.Errorf("again: %+v, want %+v", again, first)
	}
	for _, other := range []string{
		`{"id":"a"}`, `{"id":"a","kind":"call","workflow_id":"w"}`,
		`{"id":"a","kind":"call","workflow_id":"v","metadata":{"k":"v"}}`,
	} {
		res := r.post("/v1/sessions", other)
		if e := res.error(t); res.status != 409 || e.Code != "session_exists" {
			t.Errorf("%s: %d %s", other, res.status, res.body)
		}
	}
	if n := r.logged(); n != 1 {
		t.Errorf("log holds %d records, want 1", n)
	}
	r.session(201, call{path: "/v1/sessions", key: "other", body: body}) // another workspace's
}

func TestASessionThatAnAppendBeganCanStillBeCreated(t *testing.T) {
	r := newRig(t)
	r.appended(200, call{path: "/v1/sessions/a/events", body: event(`"workflow_id":"w"`)})
	v := r.session(201, call{path: "/v1/sessions", body: `{"id":"a","kind":"call"}`})
	if v.Kind != "call" || *v.WorkflowID != "w" || v.EventCount != 1 {
		t.Errorf("created %+v", v)
	}
	r.session(200, call{path: "/v1/sessions", body: `{"id":"a","kind":"call"}`})
}

func TestConcurrentStepsOfASessionAreTakenOnce(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	statuses := make(map[int]int)
	for range 12 {
		wg.Go(func() {
			res := r.post("/v1/sessions", `{"id":"a"}`)
			mu.Lock()
			defer mu.Unlock()
			statuses[res.status]++
		})
	}
	wg.Wait()
	if statuses[201] != 1 || statuses[200] != 11 {
		t.Errorf("creations were answered %v, want one 201 and eleven 200", statuses)
	}
	for range 12 {
		wg.Go(func() { r.session(200, call{path: "/v1/sessions/a/end"}) })
	}
	wg.Wait()
	if n := r.logged(); n != 2 {
		t.Errorf("log holds %d records, want 2", n)
	}
}

// TestASessionCanBeEndedAtOnceOnAnotherNode: the other node's tail may lie behind what
// the first has acknowledged; it must not answer 404.
func TestASessionCanBeEndedAtOnceOnAnotherNode(t *testing.T) {
	r := newRig(t)
	other := newRigOn(t, r.cluster)
	for i := range 30 {
		id := fmt.Sprintf("s%d", i)
		r.appended(200, call{path: "/v1/sessions/" + id + "/events", body: event("")})
		if v := other.session(200, call{path: "/v1/sessions/" + id + "/end"}); v.EventCount != 1 || v.Status != "ended" {
			t.Errorf("ended %+v", v)
		}
	}
}
