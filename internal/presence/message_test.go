package presence

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

func TestRecordsLookAsDocumented(t *testing.T) {
	f := func(open map[entry]int, snapshot bool, want string) {
		t.Helper()
		values, err := encode("9f86d081884c7d65", 7, open, snapshot)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, v := range values {
			got += string(v)
		}
		if got != want {
			t.Errorf("encode(%v, %v) = %s, want %s", open, snapshot, got, want)
		}
	}
	f(map[entry]int{{"ws_1", "key_a", ""}: 2, {"ws_1", "key_a", "client"}: 1}, false,
		`{"v":1,"node":"9f86d081884c7d65","seq":7,"open":{"ws_1":{"key_a":{"":2,"client":1}}}}`)
	f(map[entry]int{{"ws_1", "key_a", ""}: 0}, false,
		`{"v":1,"node":"9f86d081884c7d65","seq":7,"open":{"ws_1":{"key_a":{"":0}}}}`)
	f(map[entry]int{{"ws_1", "key_a", ""}: 3}, true,
		`{"v":1,"node":"9f86d081884c7d65","seq":7,"snapshot":7,"last":true,"open":{"ws_1":{"key_a":{"":3}}}}`)
	f(nil, true, `{"v":1,"node":"9f86d081884c7d65","seq":7,"snapshot":7,"last":true}`)
	f(nil, false, "")
}

func TestLargeSnapshotsTakeSeveralRecords(t *testing.T) {
	open := map[entry]int{}
	long := strings.Repeat("x", schema.MaxIDLen-8)
	for i := range 3000 {
		open[entry{fmt.Sprintf("ws%06d%s", i%7, long), fmt.Sprintf("k%07d%s", i, long), ""}] = i + 1
	}
	values, err := encode("n", 5, open, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(values) < 8 {
		t.Fatalf("encode made %d records of %d entries, want some more", len(values), len(open))
	}
	got := map[entry]int{}
	for i, v := range values {
		m, err := decode(v)
		if err != nil {
			t.Fatal(err)
		}
		if m.Seq != 5+uint64(i) || m.Snapshot != 5 || m.Last != (i == len(values)-1) {
			t.Errorf("record %d has seq %d, snapshot %d, last %v", i, m.Seq, m.Snapshot, m.Last)
		}
		maps.Copy(got, m.entries)
	}
	if !reflect.DeepEqual(got, open) {
		t.Error("the records do not hold what was encoded")
	}
}

func TestDecodeRefusesWhatIsNoRecord(t *testing.T) {
	f := func(value, want string) {
		t.Helper()
		if _, err := decode([]byte(value)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("decode(%.80q) = %v, want %s", value, err, want)
		}
	}
	f(``, "not a JSON object")
	f(`7`, "not a JSON object")
	f(`{"v":1`, "not a JSON object")
	f(`{"v":2,"node":5}`, "unknown version 2")
	f(`{}`, "unknown version 0")
	f(`{"v":1,"seq":1}`, "node is empty")
	f(`{"v":1,"node":"n"}`, "seq is 0")
	f(`{"v":1,"node":"n","seq":-1}`, "cannot unmarshal")
	f(`{"v":1,"node":"n","seq":1,"snapshot":2}`, "after its record")
	f(`{"v":1,"node":"n","seq":1,"last":true}`, "last record of no snapshot")
	f(`{"v":1,"node":"n","seq":1,"open":{"w":{"k":{"":-1}}}}`, "-1 streams")
	f(`{"v":1,"node":"n","seq":1,"open":{"w":{"k":{"":2147483648}}}}`, "cannot unmarshal")
	f(`{"v":1,"node":"n","seq":1,"open":{"":{"k":{"":1}}}}`, "workspace is empty")
	f(`{"v":1,"node":"n","seq":1,"open":{"w":{"k k":{"":1}}}}`, "key is")
	f(`{"v":1,"node":"n","seq":1,"open":{"w":{"k":{"`+strings.Repeat("c", 200)+`":1}}}}`, "class has 200 bytes")
	f(`{"v":1,`+strings.Repeat(" ", maxRecordBytes), "larger")
	if _, err := decode([]byte(`{"v":1,"node":"n","seq":1,"new":{}}`)); err != nil {
		t.Errorf("a field of a later program: %v", err)
	}
}

// Whatever lies in the topic of counts, it is handed on whole or not at all.
func FuzzDeliver(f *testing.F) {
	for _, s := range []string{
		`{"v":1,"node":"other","post":{"op":"pause"}}`, `{"v":1,"node":"self","post":1}`, `{"v":1,"node":"other","post":null}`, `{"v":2,"node":"other","post":1}`,
		`{"v":1,"node":"a/b","post":1}`, `{"v":1,"node":"other"}`, `{"v":1,"node":"other","post":"\ud800"}`, `[]`, "\xff", `{"v":1,"node":"other","post":1}x`,
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, value []byte, old bool) {
		c := new(Counter)
		c.publish = publisher{node: "self"}
		var got []byte
		c.Receive(func(message []byte) { got = message })
		if took := c.deliver(value, old); got != nil && (!took || old || !json.Valid(got)) {
			t.Errorf("%q, old: %t, is taken: %t, and hands on %q", value, old, took, got)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"v":1,"node":"9f86d081884c7d65","seq":7,"open":{"ws_1":{"key_a":{"":2,"client":1}}}}`,
		`{"v":1,"node":"n","seq":9,"snapshot":7,"last":true,"open":{"w":{"k":{"":0}},"x":null,"y":{"z":{}}}}`,
		`{"v":1,"node":"n","seq":7,"snapshot":7,"last":true}`,
		`{"v":2}`, `[]`, `null`, `{"v":1,"node":"n","seq":1e3,"open":[]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		m, err := decode(value)
		if err != nil {
			return
		}
		// What is accepted can be folded, and written again as it was understood.
		l := newLedger(NodeTimeout)
		l.fold(m, at(0))
		checkSums(t, l)
		values, err := encode(m.Node, m.Seq, m.entries, false)
		if err != nil {
			t.Fatal(err)
		}
		again := map[entry]int{}
		for _, v := range values {
			part, err := decode(v)
			if errors.Is(err, errTooLarge) {
				t.Fatalf("a record of %d bytes was written", len(v))
			}
			if err != nil {
				t.Fatal(err)
			}
			maps.Copy(again, part.entries)
		}
		if !maps.Equal(again, m.entries) {
			t.Fatalf("decode(encode(%v)) = %v", m.entries, again)
		}
	})
}
