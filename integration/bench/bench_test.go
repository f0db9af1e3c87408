package main

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// cuts calls f with every way to cut text into two reads, and with one byte a read.
func cuts(text string, f func(reads ...string)) {
	for i := range len(text) + 1 {
		f(text[:i], text[i:])
	}
	f(strings.Split(text, "")...)
}

func TestCounterCountsEventsHoweverReadsCutThem(t *testing.T) {
	const text = ": keepalive\nevent: a\nid: 1\ndata: {}\n\n: dropped 3\nevent: b\nid: 2\ndata: {}\n\nevent: c\n"
	cuts(text, func(reads ...string) {
		var c counter
		got := 0
		for _, r := range reads {
			got += c.feed([]byte(r))
		}
		if got != 2 {
			t.Errorf("events in %q = %d, want 2", reads, got)
		}
	})
}

func TestStampsAreFoundHoweverReadsCutThem(t *testing.T) {
	const text = `data: {"t_ms":1,"payload":{"at":1790000000000000001,"text":"x"}}` + "\n\n" +
		`data: {"t_ms":2,"payload":{"at":1790000000000000002,"text":"y"}}` + "\n\n"
	want := []int64{1790000000000000001, 1790000000000000002}
	cuts(text, func(reads ...string) {
		var s stamps
		var got []int64
		for _, r := range reads {
			s.feed([]byte(r), func(ns int64) { got = append(got, ns) })
		}
		if !slices.Equal(got, want) {
			t.Errorf("stamps in %q = %d, want %d", reads, got, want)
		}
	})
}

func TestBodiesAreJSONOfTheSizesTheyPromise(t *testing.T) {
	type body struct {
		Events []struct {
			MessageID string          `json:"message_id"`
			Payload   json.RawMessage `json:"payload"`
		} `json:"events"`
	}
	decode := func(b []byte) body {
		t.Helper()
		var v body
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatalf("%v in %s", err, b)
		}
		return v
	}
	got := decode(newPayloads(payloadBytes).body(nil, "s", 7, 3))
	if len(got.Events) != 3 || got.Events[2].MessageID != "s-9" {
		t.Errorf("body = %+v, want events s-7 to s-9", got)
	}
	for _, e := range got.Events {
		if len(e.Payload) != payloadBytes {
			t.Errorf("payload has %d B, want %d", len(e.Payload), payloadBytes)
		}
	}
	for _, e := range decode(newStamped(shortPayload).body(nil, 2)).Events {
		if len(e.Payload) != shortPayload {
			t.Errorf("stamped payload has %d B, want %d", len(e.Payload), shortPayload)
		}
	}
}

func TestQuantileIsNearestRank(t *testing.T) {
	l := latencies{3 * time.Millisecond, time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond}
	l.sort()
	f := func(q, want float64) {
		t.Helper()
		if got := l.quantile(q); got != want {
			t.Errorf("quantile(%v) = %v, want %v", q, got, want)
		}
	}
	f(0, 1)
	f(0.5, 2)
	f(0.75, 3)
	f(0.99, 4)
	f(1, 4)
}

func TestNumber(t *testing.T) {
	f := func(v float64, want string) {
		t.Helper()
		if got := number(v); got != want {
			t.Errorf("number(%v) = %q, want %q", v, got, want)
		}
	}
	f(0, "0")
	f(0.4251, "0.425")
	f(4.2, "4.20")
	f(51.25, "51.2")
	f(999, "999")
	f(1234567.8, "1,234,568")
}

func TestParseMetrics(t *testing.T) {
	const name = `playhead_stream_replayed_events_total{source="kafka"}`
	m, err := parseMetrics("# HELP x y\n# TYPE x counter\n" + name + " 1.5e+04\nplayhead_streams 3\n")
	if err != nil || m[name] != 15000 || m["playhead_streams"] != 3 {
		t.Errorf("metrics = %v, %v", m, err)
	}
}

func TestReportShowsMedianAndSpread(t *testing.T) {
	var r report
	table := r.section("Things", "Of %d kinds.", 3)
	for _, v := range []float64{3, 1, 2} {
		table.add("thing", "ms", v).goal("below 5 ms")
	}
	var b strings.Builder
	if err := r.writeMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	if want := "| thing | 2.00 ms | 1.00 – 3.00 | below 5 ms |\n"; !strings.Contains(b.String(), want) {
		t.Errorf("report lacks %q:\n%s", want, b.String())
	}
}

func TestFlags(t *testing.T) {
	f := func(wantErr string, args ...string) {
		t.Helper()
		_, err := parseFlags(args, &strings.Builder{})
		if wantErr == "" && err != nil || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
			t.Errorf("parseFlags(%q) = %v, want %q", args, err, wantErr)
		}
	}
	f("", "-quick", "-only", "append,pages")
	f(`-only has "fan"`, "-only", "fan")
	f("-runs is 0", "-runs", "0")
	f(`takes no arguments`, "append")
	f("", "-peers", "dir", "-only", "storm,slow", "-targets", "playhead,nchan")
	f(`-only has "append"`, "-peers", "dir", "-only", "append")
	f(`-targets has "ncham"`, "-peers", "dir", "-targets", "ncham")
	f("-targets is for -peers", "-targets", "nchan")
}

func TestUntilSaysWhatItWaitedFor(t *testing.T) {
	err := until(context.Background(), 5*time.Millisecond, "pigs fly", func() (bool, error) { return false, nil })
	if err == nil || !strings.Contains(err.Error(), "pigs fly") {
		t.Errorf("until = %v, want it to name the condition", err)
	}
}
