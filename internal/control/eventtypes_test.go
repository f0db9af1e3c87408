package control_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/schema"
)

func TestTypeCodesAreKnownAtOnceElsewhereSoonAndAfterARestart(t *testing.T) {
	cfg := startBroker(t)
	here, there := open(t, cfg), open(t, cfg)
	w := makeWorkspace(t, here, control.Workspace{}).ID
	other := makeWorkspace(t, here, control.Workspace{}).ID
	put := func(name string, code uint8, recode, created bool) {
		t.Helper()
		got, err := here.PutEventType(t.Context(), w, schema.TypeCode{Code: code, Type: name}, recode)
		if err != nil || got != created {
			t.Errorf("PutEventType(%s, %d) = %v, %v, want %v", name, code, got, err, created)
		}
	}
	everywhere := func(name string, code uint8) {
		t.Helper()
		if got := here.EventTypes(w).Code(name); got != code {
			t.Errorf("here: %s is %d, want %d", name, got, code)
		}
		waitFor(t, fmt.Sprint(name, " is ", code, " there"), func() bool { return there.EventTypes(w).Code(name) == code })
		if got := open(t, cfg).EventTypes(w).Code(name); got != code {
			t.Errorf("after a restart: %s is %d, want %d", name, got, code)
		}
		if got := here.EventTypes(other).Code(name); got != (schema.TypeTable{}).Code(name) {
			t.Errorf("%s is %d in another workspace", name, got)
		}
	}
	put("agent.said", 200, false, true)
	everywhere("agent.said", 200)
	put("agent.said", 200, false, false)
	put("init", 1, false, false)
	put("agent.said", 201, true, false)
	everywhere("agent.said", 201)
	put("agent.heard", 200, false, true)
	everywhere("agent.heard", 200)

	if err := here.RemoveEventType(t.Context(), w, "agent.said"); err != nil {
		t.Fatal(err)
	}
	everywhere("agent.said", 0)
	everywhere("agent.heard", 200)
	for _, name := range []string{"agent.said", "init", "none", ""} {
		if err := here.RemoveEventType(t.Context(), w, name); !errors.Is(err, control.ErrNotFound) {
			t.Errorf("RemoveEventType(%q) = %v, want ErrNotFound", name, err)
		}
	}
}

func TestTypeCodesAreRefused(t *testing.T) {
	cfg := startBroker(t)
	s := open(t, cfg)
	w := makeWorkspace(t, s, control.Workspace{}).ID
	if _, err := s.PutEventType(t.Context(), w, schema.TypeCode{Code: 200, Type: "a"}, false); err != nil {
		t.Fatal(err)
	}
	f := func(name string, code uint8, recode bool, want error, has schema.TypeCode) {
		t.Helper()
		_, err := s.PutEventType(t.Context(), w, schema.TypeCode{Code: code, Type: name}, recode)
		var conflict *control.TypeCodeError
		if !errors.Is(err, want) || !errors.As(err, &conflict) || conflict.Has != has {
			t.Errorf("PutEventType(%s, %d) = %v, want %v, %v", name, code, err, want, has)
		}
	}
	a := schema.TypeCode{Code: 200, Type: "a"}
	f("b", 200, true, control.ErrTypeCodeTaken, a)
	f("b", 1, true, control.ErrTypeCodeTaken, schema.TypeCode{Code: 1, Type: "init"})
	f("a", 1, true, control.ErrTypeCodeTaken, schema.TypeCode{Code: 1, Type: "init"})
	f("a", 201, false, control.ErrTypeHasCode, a)
	f("init", 201, true, control.ErrTypeBuiltin, schema.TypeCode{Code: 1, Type: "init"})
	f("init", 2, true, control.ErrTypeBuiltin, schema.TypeCode{Code: 1, Type: "init"})

	for _, bad := range []struct {
		schema.TypeCode
		field string
	}{
		{schema.TypeCode{Code: 0, Type: "b"}, "code"},
		{schema.TypeCode{Code: 201, Type: "1b"}, "name"},
		{schema.TypeCode{Code: 201, Type: ""}, "name"},
		{schema.TypeCode{Code: 201, Type: "heartbeat"}, "name"},
		{schema.TypeCode{Code: 201, Type: "playhead.x"}, "name"},
	} {
		var spec *control.SpecError
		if _, err := s.PutEventType(t.Context(), w, bad.TypeCode, true); !errors.As(err, &spec) || spec.Field != bad.field {
			t.Errorf("PutEventType(%v) = %v, want a SpecError of %s", bad.TypeCode, err, bad.field)
		}
	}
	if _, err := s.PutEventType(t.Context(), "ws_none", schema.TypeCode{Code: 201, Type: "b"}, true); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("PutEventType in no workspace = %v, want ErrNotFound", err)
	}
	if got := s.EventTypes(w).All(); len(got) != len(schema.TypeCodes())+1 {
		t.Errorf("%d codes after refusals, want %d", len(got), len(schema.TypeCodes())+1)
	}
}

func TestACodeIsRegisteredOnceOverAllNodes(t *testing.T) {
	cfg := startBroker(t)
	stores := []*control.Store{open(t, cfg), open(t, cfg), open(t, cfg)}
	w := makeWorkspace(t, stores[0], control.Workspace{}).ID
	for _, s := range stores {
		waitFor(t, "the workspace is there", func() bool { _, ok := s.Workspace(w); return ok })
	}
	won := map[uint8]string{}
	raced := 0
	for code := uint8(200); code < 220; code++ {
		var wg sync.WaitGroup
		errs := make([]error, len(stores))
		for i, s := range stores {
			wg.Go(func() {
				_, errs[i] = s.PutEventType(context.Background(), w, schema.TypeCode{Code: code, Type: fmt.Sprintf("t%d.%d", i, code)}, false)
			})
		}
		wg.Wait()
		for i, err := range errs {
			var conflict *control.TypeCodeError
			switch {
			case err == nil && won[code] == "":
				won[code] = fmt.Sprintf("t%d.%d", i, code)
			case err == nil:
				t.Errorf("code %d: two were told that they have it", code)
			case !errors.Is(err, control.ErrTypeCodeTaken), !errors.As(err, &conflict):
				t.Errorf("code %d: %v, want ErrTypeCodeTaken", code, err)
			default:
				raced++
			}
		}
		if won[code] == "" {
			t.Errorf("code %d: nobody was told that they have it", code)
		}
	}
	if raced != 40 {
		t.Errorf("%d were refused, want 40", raced)
	}
	for _, s := range append(stores, open(t, cfg)) {
		for code, name := range won {
			waitFor(t, fmt.Sprint(code, " is ", name), func() bool {
				got, _ := s.EventTypes(w).Type(code)
				return got == name && s.EventTypes(w).Code(name) == code
			})
		}
		waitFor(t, "20 own codes", func() bool { return len(s.EventTypes(w).All()) == len(schema.TypeCodes())+20 })
	}
}

// 1. Two nodes register a code at once. 2. The one that lost stops before it has removed
// its record. 3. The winner's code is removed. 4. It must be free, not the loser's.
func TestRemovingACodeDoesNotBringBackWhoLostIt(t *testing.T) {
	cfg := startBroker(t)
	put := putControl(t, cfg)
	s := open(t, cfg)
	w := makeWorkspace(t, s, control.Workspace{}).ID
	record := func(name string, code int) string {
		return fmt.Sprintf(`{"v":1,"workspace":%q,"name":%q,"code":%d}`, w, name, code)
	}
	put("event_type/et_1", record("a", 200))
	put("event_type/et_2", record("b", 200))
	put("event_type/et_3", record("c", 256)) // skipped
	put("event_type/et_4", record("d", 201))
	waitFor(t, "d has its code", func() bool { return s.EventTypes(w).Code("d") == 201 })
	if a, b, c := s.EventTypes(w).Code("a"), s.EventTypes(w).Code("b"), s.EventTypes(w).Code("c"); a != 200 || b != 0 || c != 0 {
		t.Fatalf("a is %d, b %d and c %d, want 200, 0, 0", a, b, c)
	}
	if err := s.RemoveEventType(t.Context(), w, "a"); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*control.Store{s, open(t, cfg)} {
		if name, ok := s.EventTypes(w).Type(200); ok {
			t.Errorf("200 is %s, want free", name)
		}
	}
	if created, err := s.PutEventType(t.Context(), w, schema.TypeCode{Code: 200, Type: "c"}, false); err != nil || !created {
		t.Errorf("PutEventType of the free code = %v, %v", created, err)
	}
	var own []schema.TypeCode
	for _, c := range open(t, cfg).EventTypes(w).All() {
		if c.Code >= schema.FirstOwnCode {
			own = append(own, c)
		}
	}
	if want := []schema.TypeCode{{Code: 200, Type: "c"}, {Code: 201, Type: "d"}}; !slices.Equal(own, want) {
		t.Errorf("own codes = %v, want %v", own, want)
	}
}
