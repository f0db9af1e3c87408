package control_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

var discard = slog.New(slog.DiscardHandler)

// startBroker runs an embedded broker with our topics until the test ends.
func startBroker(t *testing.T) kafka.Config {
	t.Helper()
	broker, err := kafka.StartEmbedded(t.TempDir(), "127.0.0.1:0", 1, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Errorf("close broker: %v", err)
		}
	})
	if err := kafka.EnsureTopics(t.Context(), broker.Config()); err != nil {
		t.Fatal(err)
	}
	return broker.Config()
}

func open(t *testing.T, c kafka.Config, opts ...control.Option) *control.Store {
	t.Helper()
	s, err := control.Open(t.Context(), c, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func makeWorkspace(t *testing.T, s *control.Store, w control.Workspace) control.Workspace {
	t.Helper()
	got, err := s.CreateWorkspace(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func makeKey(t *testing.T, s *control.Store, spec control.KeySpec) (control.Key, string) {
	t.Helper()
	k, text, err := s.CreateKey(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return k, text
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// clock is a settable time.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func TestKeysWorkAtOnceElsewhereSoonAndAfterARestart(t *testing.T) {
	cfg := startBroker(t)
	here, there := open(t, cfg), open(t, cfg)
	w := makeWorkspace(t, here, control.Workspace{Name: "Acme", Plan: control.PlanPro, Limits: control.Unlimited(), Shards: 2})
	if !strings.HasPrefix(w.ID, "ws_") {
		t.Errorf("workspace id = %q, want ws_…", w.ID)
	}
	k, text := makeKey(t, here, control.KeySpec{
		Workspace: w.ID, Scopes: control.ScopeRead | control.ScopeIngest, Session: "s-1", Workflow: "wf", ExpiresIn: 2 * time.Hour,
	})
	if !strings.HasPrefix(text, "pk_live_") || len(text) != len("pk_live_")+32 {
		t.Errorf("key = %q, want pk_live_ and 32 characters", text)
	}
	want := k.Principal()
	if p, err := here.Authenticate(text); err != nil || p != want || p.Session != "s-1" || p.Workflow != "wf" || p.Browser {
		t.Errorf("here: Authenticate = %+v, %v, want %+v", p, err, want)
	}
	waitFor(t, "the key works on the other node", func() bool {
		p, err := there.Authenticate(text)
		return err == nil && p == want
	})

	here.Close()
	again := open(t, cfg)
	if p, err := again.Authenticate(text); err != nil || p != want {
		t.Errorf("after restart: Authenticate = %+v, %v, want %+v", p, err, want)
	}
	if got, ok := again.Workspace(w.ID); !ok || got != w {
		t.Errorf("after restart: Workspace = %+v, %v, want %+v", got, ok, w)
	}
	if ws := again.Workspaces(); len(ws) != 1 || ws[0] != w {
		t.Errorf("after restart: Workspaces = %+v", ws)
	}
	for _, bad := range []string{"", "x", text + "x", text[:len(text)-1], strings.ToLower(text)} {
		if _, err := again.Authenticate(bad); !errors.Is(err, control.ErrUnknownKey) {
			t.Errorf("Authenticate(%.12q…) = %v, want ErrUnknownKey", bad, err)
		}
	}
}

func TestRevocationReachesWatchersOnEveryNode(t *testing.T) {
	cfg := startBroker(t)
	here, there := open(t, cfg), open(t, cfg)
	w := makeWorkspace(t, here, control.Workspace{})
	k, text := makeKey(t, here, control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead})
	waitFor(t, "the key works there", func() bool { _, err := there.Authenticate(text); return err == nil })

	changes := make(chan control.Change, 10)
	stop := there.Watch(func(c control.Change) { changes <- c })
	if err := here.RevokeKey(t.Context(), "ws_other", k.ID); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("RevokeKey of another workspace = %v, want ErrNotFound", err)
	}
	if err := here.RevokeKey(t.Context(), w.ID, k.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := here.Authenticate(text); !errors.Is(err, control.ErrUnknownKey) {
		t.Errorf("here: Authenticate after revocation = %v, want ErrUnknownKey", err)
	}
	c := <-changes
	for c.Kind != control.KeyRevoked { // those folded just before Watch may still be told
		c = <-changes
	}
	if c != (control.Change{Kind: control.KeyRevoked, Workspace: w.ID, KeyID: k.ID}) {
		t.Errorf("change = %+v, want the revocation", c)
	}
	if there.Live(k.ID) {
		t.Error("there: the revoked key is live")
	}
	if err := here.RevokeKey(t.Context(), w.ID, k.ID); err != nil {
		t.Errorf("second RevokeKey = %v, want nil", err)
	}
	stop()
	k2, _ := makeKey(t, there, control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead})
	if err := there.RevokeKey(t.Context(), w.ID, k2.ID); err != nil {
		t.Fatal(err)
	}
	select {
	case c := <-changes:
		t.Errorf("change after stop: %+v", c)
	default:
	}
}

func TestKeysExpireAndAreClearedAway(t *testing.T) {
	cfg := startBroker(t)
	c := &clock{t: time.Now()}
	s := open(t, cfg, control.WithClock(c.now))
	w := makeWorkspace(t, s, control.Workspace{})
	k, text := makeKey(t, s, control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead, Session: "s", ExpiresIn: time.Hour})
	if !strings.HasPrefix(text, "pk_tmp_") || !k.Browser {
		t.Errorf("key = %q, browser %v, want a browser key", text, k.Browser)
	}
	_, lasting := makeKey(t, s, control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead})
	gone, _ := makeKey(t, s, control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead})
	if err := s.RevokeKey(t.Context(), w.ID, gone.ID); err != nil {
		t.Fatal(err)
	}
	c.add(59 * time.Minute)
	if _, err := s.Authenticate(text); err != nil {
		t.Errorf("before its end: %v", err)
	}
	c.add(2 * time.Minute)
	if _, err := s.Authenticate(text); !errors.Is(err, control.ErrExpiredKey) {
		t.Errorf("after its end: %v, want ErrExpiredKey", err)
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Keys(w.ID)); n != 3 {
		t.Errorf("on the day itself %d keys are listed, want 3", n)
	}
	c.add(25 * time.Hour)
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the dead keys are gone", func() bool { return len(s.Keys(w.ID)) == 1 })
	if _, err := s.Authenticate(text); !errors.Is(err, control.ErrUnknownKey) {
		t.Errorf("cleared away: %v, want ErrUnknownKey", err)
	}
	if _, err := s.Authenticate(lasting); err != nil {
		t.Errorf("the lasting key: %v", err)
	}
}

func TestBrowserKeyRule(t *testing.T) {
	f := func(s control.KeySpec, want bool) {
		t.Helper()
		if got := s.Browser(); got != want {
			t.Errorf("%+v: Browser() = %v, want %v", s, got, want)
		}
	}
	f(control.KeySpec{Scopes: control.ScopeRead, Session: "s", ExpiresIn: time.Hour}, true)
	f(control.KeySpec{Scopes: control.ScopeRead, Workflow: "w", ExpiresIn: time.Second}, true)
	f(control.KeySpec{Scopes: control.ScopeRead, ExpiresIn: time.Hour}, false)
	f(control.KeySpec{Scopes: control.ScopeRead, Session: "s"}, false)
	f(control.KeySpec{Scopes: control.ScopeRead, Session: "s", ExpiresIn: time.Hour + 1}, false)
	f(control.KeySpec{Scopes: control.ScopeRead | control.ScopeIngest, Session: "s", ExpiresIn: time.Hour}, false)
}

func TestGivenKeyTexts(t *testing.T) {
	s := open(t, startBroker(t))
	w := makeWorkspace(t, s, control.Workspace{})
	spec := control.KeySpec{Workspace: w.ID, Scopes: control.AllScopes, Text: "my-dev-key_0123.x"}
	if _, text := makeKey(t, s, spec); text != spec.Text {
		t.Errorf("text = %q, want the given one", text)
	}
	if p, err := s.Authenticate(spec.Text); err != nil || p.Scopes != control.AllScopes {
		t.Errorf("Authenticate = %+v, %v", p, err)
	}
	if _, _, err := s.CreateKey(t.Context(), spec); !errors.Is(err, control.ErrKeyExists) {
		t.Errorf("the same text again = %v, want ErrKeyExists", err)
	}
	// Once revoked, the text may be used again.
	if err := s.RevokeKey(t.Context(), w.ID, s.Keys(w.ID)[0].ID); err != nil {
		t.Fatal(err)
	}
	makeKey(t, s, spec)
	if _, err := s.Authenticate(spec.Text); err != nil {
		t.Errorf("Authenticate of the text made anew: %v", err)
	}
}

func TestWrongSpecsNameTheField(t *testing.T) {
	s := open(t, startBroker(t))
	w := makeWorkspace(t, s, control.Workspace{ID: "ws_1"})
	key := func(change func(*control.KeySpec), field string) {
		t.Helper()
		spec := control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead}
		change(&spec)
		_, _, err := s.CreateKey(t.Context(), spec)
		var bad *control.SpecError
		if !errors.As(err, &bad) || bad.Field != field {
			t.Errorf("CreateKey(%+v) = %v, want a SpecError of %s", spec, err, field)
		}
		if spec.Text != "" && strings.Contains(err.Error(), spec.Text) {
			t.Errorf("error tells the key: %v", err)
		}
	}
	key(func(k *control.KeySpec) { k.Scopes = 0 }, "scopes")
	key(func(k *control.KeySpec) { k.Scopes = 128 }, "scopes")
	key(func(k *control.KeySpec) { k.Scopes, k.Session = control.ScopeAdmin, "s" }, "scopes")
	key(func(k *control.KeySpec) { k.Session = "a b" }, "session_id")
	key(func(k *control.KeySpec) { k.Workflow = strings.Repeat("x", 129) }, "workflow_id")
	key(func(k *control.KeySpec) { k.ExpiresIn = -1 }, "expires_in")
	key(func(k *control.KeySpec) { k.Name = "\x00" }, "name")
	key(func(k *control.KeySpec) { k.Text = "tooshort" }, "key")
	key(func(k *control.KeySpec) { k.Text = "with space 0123456789" }, "key")

	workspace := func(w control.Workspace, field string) {
		t.Helper()
		_, err := s.CreateWorkspace(t.Context(), w)
		var bad *control.SpecError
		if !errors.As(err, &bad) || bad.Field != field {
			t.Errorf("CreateWorkspace(%+v) = %v, want a SpecError of %s", w, err, field)
		}
	}
	workspace(control.Workspace{ID: "a/b"}, "id")
	workspace(control.Workspace{Plan: "gold"}, "plan")
	workspace(control.Workspace{Shards: -1}, "shards")
	workspace(control.Workspace{Limits: control.Limits{Keys: -1}}, "keys")

	if _, err := s.CreateWorkspace(t.Context(), control.Workspace{ID: "ws_1"}); !errors.Is(err, control.ErrWorkspaceExists) {
		t.Errorf("CreateWorkspace again = %v, want ErrWorkspaceExists", err)
	}
	if _, _, err := s.CreateKey(t.Context(), control.KeySpec{Workspace: "ws_none", Scopes: control.ScopeRead}); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("CreateKey for no workspace = %v, want ErrNotFound", err)
	}
}

func TestWorkspaceUpdatesKeepTheShards(t *testing.T) {
	s := open(t, startBroker(t))
	w := makeWorkspace(t, s, control.Workspace{Limits: control.DefaultLimits()})
	if w.Plan != control.PlanFree || w.Shards != schema.DefaultShards || w.PageSize() != 50 {
		t.Errorf("workspace = %+v, page size %d, want free, default shards, 50", w, w.PageSize())
	}
	shards := w.Shards
	w.Plan, w.Shards, w.Limits.Keys = control.PlanEnterprise, 99, 1
	if err := s.UpdateWorkspace(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	got, _ := s.Workspace(w.ID)
	if got.Shards != shards || got.Plan != control.PlanEnterprise || got.PageSize() != 100 {
		t.Errorf("after update: %+v, page size %d", got, got.PageSize())
	}
	makeKey(t, s, control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead})
	if _, _, err := s.CreateKey(t.Context(), control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead}); !errors.Is(err, control.ErrKeyLimit) {
		t.Errorf("one key too many = %v, want ErrKeyLimit", err)
	}
	got.Limits.MaxPageSize = 7
	if got.PageSize() != 7 {
		t.Errorf("page size = %d, want the limit", got.PageSize())
	}
	if err := s.UpdateWorkspace(t.Context(), control.Workspace{ID: "ws_none"}); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("UpdateWorkspace of nothing = %v, want ErrNotFound", err)
	}
}

func TestRecordsThatCannotBeReadAreSkipped(t *testing.T) {
	cfg := startBroker(t)
	opts, err := cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	put := func(key, value string) {
		t.Helper()
		r := &kgo.Record{Topic: schema.TopicControl, Key: []byte(key)}
		if value != "" {
			r.Value = []byte(value)
		}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	first := open(t, cfg)
	w := makeWorkspace(t, first, control.Workspace{ID: "ws_1"})
	k, text := makeKey(t, first, control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead})

	put("", `{}`)
	put("plan", `{"v":1}`)
	put("future/1", `{"v":1}`)
	put("workspace/ws_1", `{"v":2,"anything":true}`)
	put("workspace/ws_1", `not JSON`)
	put("workspace/ws_1", `{"v":1,"plan":"gold","shards":4}`)
	put("workspace/ws_1", `{"v":1,"plan":"free","shards":0}`)
	put("key/"+k.ID, `{"v":1}`)
	put("key/"+k.ID, `{"v":1,"workspace":"ws_1","sha256":"00","scopes":["read"]}`)
	put("key/"+k.ID, `[]`)
	put("epoch/0", `{"v":1,"topic_id":"x","partitions":1}`)
	put("epoch/256", `{"v":1,"topic_id":"x","partitions":1}`)
	put("epoch/1", `{"v":1,"topic_id":"x","partitions":0}`)
	put("epoch/1", "")
	put("workspace/ws_2", `{"v":1,"plan":"pro","shards":3,"a_later_field":{}}`)

	reg := prometheus.NewRegistry()
	s := open(t, cfg, control.WithRegisterer(reg))
	if _, err := s.Authenticate(text); err != nil {
		t.Errorf("the key after unreadable records: %v", err)
	}
	if got, ok := s.Workspace("ws_1"); !ok || got != w {
		t.Errorf("ws_1 = %+v, %v, want it untouched", got, ok)
	}
	got, ok := s.Workspace("ws_2")
	if !ok || got.Shards != 3 || got.Limits != control.DefaultLimits() {
		t.Errorf("ws_2 = %+v, %v, want it with default limits", got, ok)
	}
	if got, want := skipped(t, reg), "corrupt=10 unknown_kind=3 unknown_version=1"; got != want {
		t.Errorf("skipped records: %s, want %s", got, want)
	}
	put("workspace/ws_2", "")
	waitFor(t, "the workspace is removed", func() bool { _, ok := s.Workspace("ws_2"); return !ok })
}

// skipped reads the counters of skipped records, by reason.
func skipped(t *testing.T, reg *prometheus.Registry) string {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		if f.GetName() != "playhead_control_skipped_records_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			out = append(out, fmt.Sprintf("%s=%v", m.GetLabel()[0].GetValue(), m.GetCounter().GetValue()))
		}
	}
	return strings.Join(out, " ")
}

func TestEpochs(t *testing.T) {
	cfg := startBroker(t)
	s := open(t, cfg)
	f := func(s *control.Store, id byte, partitions int, want uint8) {
		t.Helper()
		got, err := s.EnsureEpoch(t.Context(), [16]byte{id}, partitions)
		if err != nil || got != want || s.Epoch() != want {
			t.Errorf("EnsureEpoch(%d, %d) = %d, %v (Epoch %d), want %d", id, partitions, got, err, s.Epoch(), want)
		}
	}
	if s.Epoch() != 0 {
		t.Errorf("Epoch before EnsureEpoch = %d, want 0", s.Epoch())
	}
	f(s, 1, 8, 1)
	f(s, 1, 8, 1)
	f(open(t, cfg), 1, 8, 1)
	f(s, 1, 16, 2)
	f(s, 2, 16, 3)
	f(open(t, cfg), 2, 16, 3)
	f(s, 1, 8, 4) // a life that was over does not come back
}

func TestNodesThatStartAtOnceAgreeOnTheEpoch(t *testing.T) {
	cfg := startBroker(t)
	for round := range 3 {
		var stores [4]*control.Store
		for i := range stores {
			stores[i] = open(t, cfg)
		}
		var wg sync.WaitGroup
		for _, s := range stores {
			wg.Go(func() {
				got, err := s.EnsureEpoch(context.Background(), [16]byte{byte(round + 1)}, 8)
				if want := uint8(round + 1); err != nil || got != want {
					t.Errorf("round %d: EnsureEpoch = %d, %v, want %d", round, got, err, want)
				}
			})
		}
		wg.Wait()
	}
}

func TestCompactionLosesNothing(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	cfg := kafka.DefaultConfig()
	cfg.Brokers, cfg.ReplicationFactor = cluster.ListenAddrs(), 1
	if err := kafka.EnsureTopics(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	s := open(t, cfg)
	w := makeWorkspace(t, s, control.Workspace{})
	for i := range 20 { // leaves gaps, also at the beginning
		w.Name = fmt.Sprint("name ", i)
		if err := s.UpdateWorkspace(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.EnsureEpoch(t.Context(), [16]byte{1}, 8); err != nil {
		t.Fatal(err)
	}
	k, text := makeKey(t, s, control.KeySpec{Workspace: w.ID, Scopes: control.ScopeRead})
	cluster.Compact()
	again := open(t, cfg)
	if got, ok := again.Workspace(w.ID); !ok || got != w {
		t.Errorf("after compaction: Workspace = %+v, %v, want %+v", got, ok, w)
	}
	if p, err := again.Authenticate(text); err != nil || p.KeyID != k.ID {
		t.Errorf("after compaction: Authenticate = %+v, %v", p, err)
	}
	if n, err := again.EnsureEpoch(t.Context(), [16]byte{1}, 8); err != nil || n != 1 {
		t.Errorf("after compaction: EnsureEpoch = %d, %v, want 1", n, err)
	}
	if err := again.RevokeKey(t.Context(), w.ID, k.ID); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the first store goes on over the gaps", func() bool { return !s.Live(k.ID) })
}

func TestManyWritersAndReaders(t *testing.T) {
	s := open(t, startBroker(t))
	w := makeWorkspace(t, s, control.Workspace{Limits: control.Unlimited()})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 5 {
				spec := control.KeySpec{Workspace: w.ID, Name: fmt.Sprintf("%d/%d", i, j), Scopes: control.ScopeRead}
				k, text, err := s.CreateKey(t.Context(), spec)
				if err != nil {
					t.Error(err)
					return
				}
				if p, err := s.Authenticate(text); err != nil || p.KeyID != k.ID {
					t.Errorf("Authenticate = %+v, %v, want %s", p, err, k.ID)
				}
				if j%2 == 0 {
					if err := s.RevokeKey(t.Context(), w.ID, k.ID); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	live := 0
	for _, k := range s.Keys(w.ID) {
		if k.Live(time.Now()) {
			live++
		}
	}
	if n := len(s.Keys(w.ID)); n != 40 || live != 16 {
		t.Errorf("%d keys, %d live, want 40 and 16", n, live)
	}
}

func TestScopes(t *testing.T) {
	s, err := control.ParseScopes([]string{"read", "ingest", "read"})
	if err != nil || s.String() != "ingest,read" || !s.Has(control.ScopeRead) || s.Has(control.ScopeRead|control.ScopeAdmin) {
		t.Errorf("ParseScopes = %v, %v", s, err)
	}
	for _, bad := range [][]string{nil, {}, {""}, {"Read"}, {"read", "write"}} {
		if got, err := control.ParseScopes(bad); err == nil {
			t.Errorf("ParseScopes(%q) = %v, want an error", bad, got)
		}
	}
}

func TestBindingsLimitWhatAKeySees(t *testing.T) {
	f := func(p control.Principal, session, workflow string, want bool) {
		t.Helper()
		if got := p.MaySee(session, workflow); got != want {
			t.Errorf("%+v.MaySee(%q, %q) = %v, want %v", p, session, workflow, got, want)
		}
	}
	f(control.Principal{}, "s", "", true)
	f(control.Principal{Session: "s"}, "s", "w", true)
	f(control.Principal{Session: "s"}, "t", "w", false)
	f(control.Principal{Workflow: "w"}, "s", "w", true)
	f(control.Principal{Workflow: "w"}, "s", "", false)
}
