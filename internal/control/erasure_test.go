package control_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// openWithEpoch opens a store as a node does.
func openWithEpoch(t *testing.T, c kafka.Config, opts ...control.Option) *control.Store {
	t.Helper()
	s := open(t, c, opts...)
	if _, err := s.EnsureEpoch(t.Context(), [16]byte{1}, 1); err != nil {
		t.Fatal(err)
	}
	return s
}

func erase(t *testing.T, s *control.Store, workspace, session string) schema.Erasure {
	t.Helper()
	e, err := s.EraseSession(t.Context(), workspace, session, "key_x")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestAnErasureIsKnownEverywhereSoonAndAfterARestart(t *testing.T) {
	cfg := startBroker(t)
	here, there := openWithEpoch(t, cfg), openWithEpoch(t, cfg)
	w := makeWorkspace(t, here, control.Workspace{})
	waitFor(t, "the other node knows the workspace", func() bool { _, ok := there.Workspace(w.ID); return ok })
	var told sync.Map
	there.Watch(func(c control.Change) {
		if c.Kind == control.Erased {
			told.Store(c.Session, there.ErasedBelow(c.Workspace, c.Session))
		}
	})
	first, second := erase(t, here, w.ID, "s"), erase(t, here, w.ID, "s")
	if !first.Below.Precedes(second.Below) || second.Below.Epoch != 1 {
		t.Fatalf("erased below %v, then below %v", first.Below, second.Below)
	}
	if got := here.ErasedBelow(w.ID, "s"); got != second.Below {
		t.Errorf("ErasedBelow = %v, want %v", got, second.Below)
	}
	waitFor(t, "the other node's watcher is told, and finds it", func() bool { at, _ := told.Load("s"); return at == second.Below })
	if err := here.FinishErasure(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	// A record from before that is late, or written by another node at the same time.
	if got := here.PendingErasures(w.ID); len(got) != 1 || got[0].ID != second.ID {
		t.Errorf("PendingErasures = %+v, want the second", got)
	}
	again := openWithEpoch(t, cfg)
	if got := again.ErasedBelow(w.ID, "s"); got != second.Below {
		t.Errorf("after a restart ErasedBelow = %v, want %v", got, second.Below)
	}
	if got := again.Erasures(w.ID); len(got) != 2 || got[0].ID != first.ID || !got[0].Done() || got[1].Done() || got[0].By != "key_x" {
		t.Errorf("after a restart Erasures = %+v", got)
	}
	if e, ok := again.Erasure(w.ID, "s"); !ok || e.ID != second.ID {
		t.Errorf("Erasure = %+v, want the second", e)
	}
	if _, ok := again.Erasure(w.ID, "other"); ok {
		t.Error("a session that nobody erased is erased")
	}
}

func TestAnErasureEndsAtItsRecordInTheLog(t *testing.T) {
	cfg := startBroker(t)
	s := openWithEpoch(t, cfg)
	w := makeWorkspace(t, s, control.Workspace{})
	e := erase(t, s, w.ID, "s")
	log, err := kafka.OpenLog(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	found := false
	_, err = log.Read(t.Context(), e.Below.Partition, 0, e.Below.Offset, func(r *kgo.Record) error {
		event, err := schema.DecodeRecord(schema.EventID{
			Position: schema.Position{Epoch: 1, Offset: r.Offset}, TimeMs: r.Timestamp.UnixMilli(),
		}, r.Headers, r.Value)
		if err != nil {
			return err
		}
		found = event.Type == schema.TypeErased && event.Workspace == w.ID && event.Session == "s" && r.Offset == e.Below.Offset-1
		return nil
	})
	if err != nil || !found {
		t.Errorf("the record before %v is not the erasure's: %v", e.Below, err)
	}
}

func TestAnErasureIsForgottenOnlyWhenDone(t *testing.T) {
	cfg := startBroker(t)
	s := openWithEpoch(t, cfg)
	w := makeWorkspace(t, s, control.Workspace{})
	e := erase(t, s, w.ID, "s")
	step := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	step("forget", s.ForgetErasure(t.Context(), e.ID))
	if s.ErasedBelow(w.ID, "s").IsZero() {
		t.Fatal("a pending erasure was forgotten")
	}
	step("finish", s.FinishErasure(t.Context(), e.ID))
	step("finish twice", s.FinishErasure(t.Context(), e.ID))
	if s.ErasedBelow(w.ID, "s").IsZero() || len(s.ErasedWorkspaces(true)) != 0 || len(s.ErasedWorkspaces(false)) != 1 {
		t.Error("a finished erasure is pending, or forgotten")
	}
	step("forget", s.ForgetErasure(t.Context(), e.ID))
	if !s.ErasedBelow(w.ID, "s").IsZero() || len(s.Erasures(w.ID)) != 0 {
		t.Error("the erasure is remembered")
	}
	step("forget twice", s.ForgetErasure(t.Context(), e.ID))
}

func TestAnErasedWorkspaceIsGoneForGood(t *testing.T) {
	cfg := startBroker(t)
	now := &clock{t: time.Now()}
	here, there := openWithEpoch(t, cfg, control.WithClock(now.now)), openWithEpoch(t, cfg)
	w := makeWorkspace(t, here, control.Workspace{Name: "private"})
	other := makeWorkspace(t, here, control.Workspace{})
	k, text := makeKey(t, here, control.KeySpec{Workspace: w.ID, Scopes: control.AllScopes})
	_, kept := makeKey(t, here, control.KeySpec{Workspace: other.ID, Scopes: control.AllScopes})
	waitFor(t, "the other node knows the keys", func() bool {
		_, err := there.Authenticate(text)
		_, err2 := there.Authenticate(kept)
		return err == nil && err2 == nil
	})
	var mu sync.Mutex
	var told []control.Change
	there.Watch(func(c control.Change) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, c)
	})
	if _, err := here.EraseWorkspace(t.Context(), w.ID, k.ID); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the other node refuses the key, and has told of its end", func() bool {
		_, err := there.Authenticate(text)
		mu.Lock()
		defer mu.Unlock()
		revoked, erased := false, false
		for _, c := range told {
			revoked = revoked || c.Kind == control.KeyRevoked && c.KeyID == k.ID
			erased = erased || c.Kind == control.Erased && c.Workspace == w.ID && c.Session == ""
		}
		return errors.Is(err, control.ErrUnknownKey) && revoked && erased
	})
	forever := schema.Position{Epoch: 255, Offset: schema.MaxOffset}
	for name, s := range map[string]*control.Store{"here": here, "there": there, "after a restart": openWithEpoch(t, cfg)} {
		if _, ok := s.Workspace(w.ID); ok {
			t.Errorf("%s: the workspace is there", name)
		}
		if !forever.Precedes(s.ErasedBelow(w.ID, "any")) || !s.ErasedBelow(other.ID, "any").IsZero() {
			t.Errorf("%s: erased below %v, of the other workspace below %v", name, s.ErasedBelow(w.ID, "any"), s.ErasedBelow(other.ID, "any"))
		}
		if s.Live(k.ID) {
			t.Errorf("%s: the key lives", name)
		}
		if _, err := s.Authenticate(kept); err != nil {
			t.Errorf("%s: the other workspace's key: %v", name, err)
		}
		if _, err := s.CreateWorkspace(t.Context(), control.Workspace{ID: w.ID}); !errors.Is(err, control.ErrWorkspaceErased) {
			t.Errorf("%s: CreateWorkspace = %v, want ErrWorkspaceErased", name, err)
		}
		if _, err := s.EraseSession(t.Context(), w.ID, "s", ""); !errors.Is(err, control.ErrNotFound) {
			t.Errorf("%s: EraseSession = %v, want ErrNotFound", name, err)
		}
	}
	// The text of its key may be another's now, before and after the sweep.
	if _, _, err := here.CreateKey(t.Context(), control.KeySpec{Workspace: other.ID, Scopes: control.ScopeRead, Text: text}); err != nil {
		t.Errorf("CreateKey with the text of a key that ended: %v", err)
	}
	if err := here.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the keys are swept", func() bool { return len(here.Keys(w.ID)) == 0 })
	if p, err := here.Authenticate(text); err != nil || p.Workspace != other.ID {
		t.Errorf("Authenticate = %+v, %v, want the other workspace", p, err)
	}
	// Nothing of its name is the last record of its key.
	last := make(map[string][]byte)
	topic, err := kafka.OpenTopic(t.Context(), cfg, schema.TopicControl)
	if err != nil {
		t.Fatal(err)
	}
	defer topic.Close()
	waitFor(t, "the topic holds nothing of the workspace but its erasure", func() bool {
		_, end, err := topic.Bounds(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := topic.Read(t.Context(), 0, 0, end, func(r *kgo.Record) error {
			last[string(r.Key)] = r.Value
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return last["workspace/"+w.ID] == nil && last["key/"+k.ID] == nil
	})
}

// TestAWorkspaceIsNotBroughtBackByANodeThatHadNotHeard writes what such a node would.
func TestAWorkspaceIsNotBroughtBackByANodeThatHadNotHeard(t *testing.T) {
	cfg := startBroker(t)
	s := openWithEpoch(t, cfg)
	w := makeWorkspace(t, s, control.Workspace{})
	if _, err := s.EraseWorkspace(t.Context(), w.ID, ""); err != nil {
		t.Fatal(err)
	}
	produceControl(t, cfg, "workspace/"+w.ID, `{"v":1,"plan":"pro","shards":4}`)
	marker := makeWorkspace(t, s, control.Workspace{}) // folded behind it
	if _, ok := s.Workspace(marker.ID); !ok {
		t.Fatal("the marker is not folded")
	}
	if _, ok := s.Workspace(w.ID); ok {
		t.Error("the workspace is back")
	}
}

func produceControl(t *testing.T, cfg kafka.Config, key, value string) {
	t.Helper()
	opts, err := cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: schema.TopicControl, Key: []byte(key), Value: []byte(value)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func TestBadErasuresAreRefused(t *testing.T) {
	cfg := startBroker(t)
	s := openWithEpoch(t, cfg)
	w := makeWorkspace(t, s, control.Workspace{})
	if _, err := s.EraseSession(t.Context(), w.ID, "not an id", ""); err == nil {
		t.Error("an id with spaces is erased")
	}
	if _, err := s.EraseSession(t.Context(), "nobody", "s", ""); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("EraseSession of an unknown workspace = %v, want ErrNotFound", err)
	}
	if _, err := s.EraseWorkspace(t.Context(), "nobody", ""); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("EraseWorkspace of an unknown one = %v, want ErrNotFound", err)
	}
	e := erase(t, s, w.ID, "s")
	for i, value := range []string{
		`{"v":1,"workspace":"` + w.ID + `","session":"s","epoch":0,"below":5}`,
		`{"v":1,"workspace":"` + w.ID + `","session":"s","epoch":1,"below":0}`,
		`{"v":1,"workspace":"` + w.ID + `","session":"s s","epoch":1,"below":5}`,
		`{"v":1,"workspace":"","session":"","epoch":1,"below":5}`,
		`{"v":2,"workspace":"` + w.ID + `"}`, `nonsense`,
	} {
		produceControl(t, cfg, fmt.Sprint("erasure/bad", i), value)
	}
	// Another that takes the id of one there is: nobody may undo an erasure that way.
	produceControl(t, cfg, "erasure/"+e.ID, `{"v":1,"workspace":"`+w.ID+`","session":"s","epoch":1,"below":77,"done_ms":5}`)
	makeWorkspace(t, s, control.Workspace{})
	if got := s.Erasures(w.ID); len(got) != 1 || got[0] != e {
		t.Errorf("Erasures = %+v, want %+v", got, e)
	}
	if _, ok := s.Workspace(w.ID); !ok {
		t.Error("a broken record has erased the workspace")
	}
}
