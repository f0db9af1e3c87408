package control

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

// typeRecord is a record of the topic as the fold of type codes sees it.
type typeRecord struct {
	id    string
	value []byte
}

func claimRecord(t *testing.T, id, workspace, name string, code int, recode bool) typeRecord {
	t.Helper()
	value, err := json.Marshal(eventTypeRecord{V: recordVersion, Workspace: workspace, Name: name, Code: code, Recode: recode})
	if err != nil {
		t.Fatal(err)
	}
	return typeRecord{id, value}
}

// foldTypes folds a log from its beginning.
func foldTypes(t *testing.T, log []typeRecord) *typeClaims {
	t.Helper()
	types := newTypeClaims()
	for _, r := range log {
		if err := types.apply(r.id, r.value); err != nil {
			t.Fatalf("apply %s %s: %v", r.id, r.value, err)
		}
	}
	return types
}

func newTypeClaims() *typeClaims { s := newState(); return &s.types }

// held lists what the claims hold.
func held(types *typeClaims) (out []string) {
	for id, w := range types.byWorkspace {
		for name, c := range w.holding {
			if w.names[c.Code] != name {
				out = append(out, fmt.Sprint("mismatch ", name, " ", c.Code, " ", w.names[c.Code]))
			}
			out = append(out, fmt.Sprint(id, " ", name, " ", c.Code))
		}
		if len(w.names) != len(w.holding) {
			out = append(out, fmt.Sprint("mismatch of lengths in ", id))
		}
	}
	slices.Sort(out)
	return out
}

// compact keeps the last record of each key, as Kafka does, with or without those that
// remove.
func compact(log []typeRecord, tombstones bool) (out []typeRecord) {
	for i, r := range log {
		later := slices.ContainsFunc(log[i+1:], func(q typeRecord) bool { return q.id == r.id })
		if !later && (r.value != nil || tombstones) {
			out = append(out, r)
		}
	}
	return out
}

func TestTheLogsOrderDecidesWhoHasACode(t *testing.T) {
	claim := func(id, name string, code int, recode bool) typeRecord {
		return claimRecord(t, id, "w", name, code, recode)
	}
	gone := func(id string) typeRecord { return typeRecord{id: id} }
	for name, c := range map[string]struct {
		log  []typeRecord
		want []string
	}{
		"the first has it": {[]typeRecord{claim("1", "a", 200, false), claim("2", "b", 200, false)}, []string{"w a 200"}},
		"the next has it when the first goes": {
			[]typeRecord{claim("1", "a", 200, false), claim("2", "b", 200, false), gone("1")}, []string{"w b 200"},
		},
		"a type has one code": {[]typeRecord{claim("1", "a", 200, false), claim("2", "a", 201, false)}, []string{"w a 200"}},
		"and the last where it may change": {
			[]typeRecord{claim("1", "a", 200, false), claim("2", "a", 201, true)}, []string{"w a 201"},
		},
		"what it had is free": {
			[]typeRecord{claim("1", "a", 200, false), claim("2", "a", 201, true), claim("3", "b", 200, false)},
			[]string{"w a 201", "w b 200"},
		},
		"a change to what another has is none": {
			[]typeRecord{claim("1", "a", 200, false), claim("2", "b", 201, false), claim("3", "a", 201, true)},
			[]string{"w a 200", "w b 201"},
		},
		"twice is once": {
			[]typeRecord{claim("1", "a", 200, false), claim("2", "b", 200, false), claim("3", "a", 200, false), gone("2")},
			[]string{"w a 200"},
		},
		"workspaces do not share codes": {
			[]typeRecord{claim("1", "a", 200, false), claimRecord(t, "2", "v", "b", 200, false)},
			[]string{"v b 200", "w a 200"},
		},
		"nothing is left": {[]typeRecord{claim("1", "a", 200, false), gone("1"), gone("1"), gone("2")}, nil},
		"a record that moves to another workspace": {
			[]typeRecord{claim("1", "a", 200, false), claimRecord(t, "1", "v", "a", 200, false)}, []string{"v a 200"},
		},
	} {
		if got := held(foldTypes(t, c.log)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// Whatever is written, a node that follows the topic and one that begins to read it after
// it was compacted hold the same, and removing leftovers in their order changes nothing.
func TestTypeCodesAreTheSameAfterCompaction(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 7))
		var log []typeRecord
		for n := range 2 + r.IntN(40) {
			if n > 0 && r.IntN(4) == 0 {
				log = append(log, typeRecord{id: log[r.IntN(len(log))].id})
				continue
			}
			log = append(log, claimRecord(t, fmt.Sprint(n), fmt.Sprint("w", r.IntN(2)), fmt.Sprint("t", r.IntN(5)), 200+r.IntN(4), r.IntN(2) == 0))
		}
		want := held(foldTypes(t, log))
		for _, tombstones := range []bool{true, false} {
			if got := held(foldTypes(t, compact(log, tombstones))); !slices.Equal(got, want) {
				t.Fatalf("seed %d: compacted %v, want %v", seed, got, want)
			}
		}
		types := foldTypes(t, log)
		claims := len(types.byID)
		for _, w := range []string{"w0", "w1"} {
			if types.byWorkspace[w] == nil {
				continue
			}
			for _, id := range types.byWorkspace[w].leftovers() {
				if err := types.apply(id, nil); err != nil {
					t.Fatal(err)
				}
				if got := held(types); !slices.Equal(got, want) {
					t.Fatalf("seed %d: without leftover %s %v, want %v", seed, id, got, want)
				}
			}
		}
		if len(types.byID) != len(want) || claims < len(want) {
			t.Fatalf("seed %d: %d claims are left of %d, want the %d that hold", seed, len(types.byID), claims, len(want))
		}
	}
}

func TestTypeCodeRecordsThatCannotBe(t *testing.T) {
	types := newTypeClaims()
	for _, bad := range []string{
		`{"v":1,"workspace":"w","name":"a","code":0}`,
		`{"v":1,"workspace":"w","name":"a","code":256}`,
		`{"v":1,"workspace":"w","name":"1a","code":200}`,
		`{"v":1,"workspace":"w","name":"playhead.x","code":200}`,
		`{"v":1,"workspace":"","name":"a","code":200}`,
		`{"v":2,"workspace":"w","name":"a","code":200}`,
		`{"v":1,"workspace":"w","name":"a"}`,
		`[]`,
	} {
		if err := types.apply("x", []byte(bad)); err == nil {
			t.Errorf("apply(%s) = nil, want an error", bad)
		}
	}
	if got := held(types); got != nil || len(types.byID) != 0 {
		t.Errorf("after bad records: %v", got)
	}
}

// A workspace's own code stays when a version builds it in for another type: the fold does
// not depend on the version.
func TestTheFoldDoesNotKnowBuiltInCodes(t *testing.T) {
	types := foldTypes(t, []typeRecord{claimRecord(t, "1", "w", "mine", 2, false)})
	w := types.byWorkspace["w"]
	w.retable()
	if got := w.table.Code("mine"); got != 2 || w.table.Code("snapshot") != 0 {
		t.Errorf("mine is %d, snapshot %d; want 2 and 0", got, w.table.Code("snapshot"))
	}
	if name, _ := w.table.Type(2); name != "mine" || w.table.Builtin("mine") {
		t.Errorf("2 is %s, want mine, not built in", name)
	}
	if (schema.TypeTable{}).Code("mine") != 0 {
		t.Error("the built-in table has changed")
	}
}
