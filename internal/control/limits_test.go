package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// putControl writes records to the control topic as another program might; "" removes.
func putControl(t *testing.T, cfg kafka.Config) func(key, value string) {
	t.Helper()
	opts, err := cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return func(key, value string) {
		t.Helper()
		r := &kgo.Record{Topic: schema.TopicControl, Key: []byte(key)}
		if value != "" {
			r.Value = []byte(value)
		}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLimitsOfEarlyRecordsAreFilledIn(t *testing.T) {
	cfg := startBroker(t)
	put := putControl(t, cfg)
	put("workspace/default", `{"v":1,"plan":"pro","shards":4,"limits":{"streams_per_key":50,"keys":10}}`)
	put("workspace/unlimited", `{"v":1,"plan":"pro","shards":4,"limits":{"streams_per_key":0,"keys":10}}`)
	put("workspace/given", `{"v":1,"plan":"pro","shards":4,"limits":{"streams_per_key":50,"event_streams_per_key":0,"events_per_minute":7,"backfill_events_per_second":0.5}}`)
	put("workspace/none", `{"v":1,"plan":"pro","shards":4}`)
	s := open(t, cfg)
	f := func(id string, eventStreams, perMinute int, backfill float64) {
		t.Helper()
		w, ok := s.Workspace(id)
		if !ok || w.Limits.EventStreamsPerKey != eventStreams || w.Limits.EventsPerMinute != perMinute || w.Limits.BackfillEventsPerSecond != backfill {
			t.Errorf("%s: %+v, %v, want %d event streams, %d events a minute, %v backfilled a second", id, w.Limits, ok, eventStreams, perMinute, backfill)
		}
	}
	f("default", 5, 1000, 10_000)
	f("unlimited", 0, 0, 0)
	f("given", 0, 7, 0.5)
	f("none", 5, 1000, 10_000)

	// What is written again holds them, so a limit set to 0 stays 0.
	w, err := s.ChangeLimits(t.Context(), "default", func(l *control.Limits) { l.EventsPerMinute = 0 })
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := open(t, cfg).Workspace("default"); got != w || got.Limits.EventsPerMinute != 0 || got.Limits.EventStreamsPerKey != 5 {
		t.Errorf("after a restart: %+v, want %+v", got, w)
	}
}

func TestLimitsAreValidated(t *testing.T) {
	if err := control.DefaultLimits().Validate(); err != nil {
		t.Errorf("DefaultLimits: %v", err)
	}
	if err := control.Unlimited().Validate(); err != nil {
		t.Errorf("Unlimited: %v", err)
	}
	// Every field, so that a new one cannot be forgotten.
	fields := reflect.TypeFor[control.Limits]()
	for i := range fields.NumField() {
		name := fields.Field(i).Tag.Get("json")
		for _, bad := range []float64{-1, 2e9, math.NaN()} {
			var l control.Limits
			v := reflect.ValueOf(&l).Elem().Field(i)
			switch {
			case v.CanFloat():
				v.SetFloat(bad)
			case math.IsNaN(bad):
				continue
			default:
				v.SetInt(int64(bad))
			}
			var spec *control.SpecError
			if err := l.Validate(); !errors.As(err, &spec) || spec.Field != name || !strings.Contains(spec.Reason, "want 0 to") {
				t.Errorf("%s = %v: Validate() = %v, want a SpecError of it", name, bad, err)
			}
		}
	}
}

func TestChangedLimitsReachEveryNode(t *testing.T) {
	cfg := startBroker(t)
	here, there := open(t, cfg), open(t, cfg)
	w := makeWorkspace(t, here, control.Workspace{Name: "Acme", Plan: control.PlanPro, Limits: control.DefaultLimits()})
	waitFor(t, "the workspace is there", func() bool { _, ok := there.Workspace(w.ID); return ok })
	changes := make(chan control.Change, 10)
	defer there.Watch(func(c control.Change) { changes <- c })()

	got, err := here.ChangeLimits(t.Context(), w.ID, func(l *control.Limits) { l.ReadsPerSecond = 0.5 })
	w.Limits.ReadsPerSecond = 0.5
	if err != nil || got != w {
		t.Fatalf("ChangeLimits = %+v, %v, want %+v", got, err, w)
	}
	if have, _ := here.Workspace(w.ID); have != w {
		t.Errorf("here: %+v, want %+v at once", have, w)
	}
	waitFor(t, "the change is there", func() bool { have, _ := there.Workspace(w.ID); return have == w })
	for c := range changes {
		if c == (control.Change{Kind: control.WorkspaceChanged, Workspace: w.ID}) {
			break
		}
	}

	_, err = here.ChangeLimits(t.Context(), w.ID, func(l *control.Limits) { l.Keys = -1 })
	var spec *control.SpecError
	if !errors.As(err, &spec) || spec.Field != "keys" {
		t.Errorf("ChangeLimits to -1 keys = %v, want a SpecError of keys", err)
	}
	if have, _ := here.Workspace(w.ID); have != w {
		t.Errorf("after a refused change: %+v, want %+v", have, w)
	}
	if _, err := here.ChangeLimits(t.Context(), "ws_none", func(*control.Limits) {}); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("ChangeLimits of nothing = %v, want ErrNotFound", err)
	}
}

func TestChangesOfLimitsOnOneNodeDoNotOverwriteEachOther(t *testing.T) {
	s := open(t, startBroker(t))
	w := makeWorkspace(t, s, control.Workspace{Limits: control.Limits{}})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := s.ChangeLimits(context.Background(), w.ID, func(l *control.Limits) { l.StreamsPerKey++ }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, _ := s.Workspace(w.ID); got.Limits.StreamsPerKey != 20 {
		t.Errorf("streams_per_key = %d after 20 increments, want 20", got.Limits.StreamsPerKey)
	}
}

// 1. A key opens a stream. 2. Its workspace is removed, by a record of its own: no record
// says that the key ended. 3. The stream must be told all the same.
func TestKeysOfARemovedWorkspaceEnd(t *testing.T) {
	cfg := startBroker(t)
	put := putControl(t, cfg)
	s := open(t, cfg)
	w := makeWorkspace(t, s, control.Workspace{Limits: control.DefaultLimits()})
	other := makeWorkspace(t, s, control.Workspace{Limits: control.DefaultLimits()})
	read := control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead}
	one, text := makeKey(t, s, read)
	two, _ := makeKey(t, s, read)
	elsewhere, _ := makeKey(t, s, control.KeySpec{Workspace: other.ID, Scopes: control.ScopeRead})

	// A node that opened late and one that has followed fold the same.
	var mu sync.Mutex
	ended := map[string]int{}
	watch := func(s *control.Store) {
		t.Cleanup(s.Watch(func(c control.Change) {
			if c.Kind == control.KeyRevoked && c.Workspace == w.ID {
				mu.Lock()
				defer mu.Unlock()
				ended[c.KeyID]++
			}
		}))
	}
	there := open(t, cfg)
	watch(s)
	watch(there)
	if !s.Live(one.ID) || !there.Live(two.ID) {
		t.Fatal("the keys are not live to begin with")
	}
	put("workspace/"+w.ID, "")
	waitFor(t, "both nodes say that both keys ended", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return ended[one.ID] == 2 && ended[two.ID] == 2
	})
	if s.Live(one.ID) || there.Live(two.ID) {
		t.Error("keys of a removed workspace are live")
	}
	if _, err := s.Authenticate(text); !errors.Is(err, control.ErrUnknownKey) {
		t.Errorf("Authenticate = %v, want ErrUnknownKey", err)
	}
	if !s.Live(elsewhere.ID) {
		t.Error("the key of another workspace ended too")
	}
}

func TestLimitsKeepTheirNames(t *testing.T) {
	b, err := json.Marshal(control.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"streams_per_key":50,"streams_per_workspace":500,"event_streams_per_key":5,"events_per_minute":1000,` +
		`"session_creates_per_second":30,"appends_per_second":1000,"backfill_events_per_second":10000,"reads_per_second":200,"max_page_size":0,"keys":10000}`
	if string(b) != want {
		t.Errorf("limits = %s, want %s", b, want)
	}
}
