package schema_test

import (
	"encoding/json"
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"mime"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/playhead-dev/playhead/schema"
)

func minimalEvent() *schema.Event {
	return &schema.Event{
		ID: eventID(7, 4711, 1_790_000_000_000), Workspace: "ws_demo", Session: "sess_01JB2Q0W3T9",
		Type: "mouse.move", ContentType: schema.DefaultContentType, Payload: []byte(`{"x":512,"y":384}`),
	}
}

func fullEvent() *schema.Event {
	e := minimalEvent()
	e.Workflow, e.MessageID, e.TMs, e.FrameID = "wf_checkout", "01JB2Q0W3T9-000017", 73512, "frame é 7"
	e.ClientTimeMs, e.Confidence = ptr(int64(1_789_999_999_123)), ptr(float32(0.93))
	e.Metadata = map[string]string{"lang": "en", "quote": "a \"b\" <c> \\ \n", "emoji": "☕"}
	e.ContentType, e.Payload = "text/plain; charset=utf-8", []byte("one latte, please")
	return e
}

type header = schema.Header

// reencode writes e as a record and reads it back.
func reencode(e *schema.Event) (*schema.Event, error) {
	return schema.DecodeRecord(e.ID, schema.AppendHeaders([]header(nil), e, "generated"), e.Payload)
}

func TestRecordRoundTrip(t *testing.T) {
	edit := func(f func(e *schema.Event)) *schema.Event {
		e := minimalEvent()
		f(e)
		return e
	}
	long := strings.Repeat("x", schema.MaxIDLen)
	for name, want := range map[string]*schema.Event{
		"minimal": minimalEvent(),
		"full":    fullEvent(),
		"longest": edit(func(e *schema.Event) {
			e.Workspace, e.Session, e.Workflow, e.MessageID, e.Type = long, long, long, long, long
			e.FrameID = strings.Repeat("é", schema.MaxFrameIDLen/2)
			e.TMs, e.ClientTimeMs, e.Confidence = math.MaxInt64, ptr(int64(schema.MaxEventTimeMs)), ptr(float32(1))
			e.Metadata = map[string]string{"k": strings.Repeat("\x01", schema.MaxMetadataBytes-1)}
			e.ID.TimeMs = schema.MaxEventTimeMs
		}),
		"zeros": edit(func(e *schema.Event) {
			e.ClientTimeMs, e.Confidence, e.ID.TimeMs = ptr(int64(0)), ptr(float32(0)), 0
		}),
		"smallest confidence": edit(func(e *schema.Event) { e.Confidence = ptr(float32(math.SmallestNonzeroFloat32)) }),
		"empty bytes":         edit(func(e *schema.Event) { e.ContentType, e.Payload = "audio/wav", []byte{} }),
		"other json":          edit(func(e *schema.Event) { e.ContentType = "application/cloudevents+json" }),
	} {
		got, err := reencode(want)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, want)
		}
	}
}

func TestRandomEventsRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	name := func() string {
		const letters = "abcXYZ019_.:-"
		b := []byte{letters[r.IntN(6)]}
		for range r.IntN(30) {
			b = append(b, letters[r.IntN(len(letters))])
		}
		return string(b)
	}
	text := func() string {
		runes := []rune{'a', 'é', '"', '\\', '<', '\n', 0, '☕', 0x1F600, 0x2028, '\'', ',', ':', '}', '{', ' '}
		var b strings.Builder
		for range r.IntN(12) {
			b.WriteRune(runes[r.IntN(len(runes))])
		}
		return b.String()
	}
	for range 5_000 {
		e := minimalEvent()
		e.Workspace, e.Session, e.Type, e.TMs = name(), name(), name(), int64(r.Uint64()>>(1+r.IntN(63)))
		if r.IntN(2) == 0 {
			e.Workflow, e.MessageID = name(), name()
		}
		if r.IntN(2) == 0 {
			e.Confidence, e.ClientTimeMs = ptr(r.Float32()), ptr(r.Int64N(schema.MaxEventTimeMs+1))
		}
		for range r.IntN(4) {
			if e.Metadata == nil {
				e.Metadata = make(map[string]string)
			}
			e.Metadata[name()] = text()
		}
		if got, err := reencode(e); err != nil || !reflect.DeepEqual(got, e) {
			t.Fatalf("got %+v, %v, want %+v", got, err, e)
		}
	}
}

func TestGeneratedIDIsNoMessageID(t *testing.T) {
	e := minimalEvent()
	for _, h := range schema.AppendHeaders([]header(nil), e, "42") {
		if h.Key == "ce_id" && string(h.Value) != "~42" {
			t.Errorf("ce_id = %q, want ~42", h.Value)
		}
	}
	if got, err := reencode(e); err != nil || got.MessageID != "" {
		t.Errorf("message id %q, %v, want none", got.MessageID, err)
	}
}

// foreignHeaders are the least that another producer must send.
func foreignHeaders() map[string]string {
	return map[string]string{
		"ce_specversion": "1.0", "ce_id": "A234", "ce_source": "/elsewhere", "ce_type": "com.example.thing",
		"ce_subject": "s1", "ce_workspace": "w1",
	}
}

func decodeMap(m map[string]string, value string, ms int64) (*schema.Event, error) {
	var headers []header
	for k, v := range m {
		headers = append(headers, header{Key: k, Value: []byte(v)})
	}
	return schema.DecodeRecord(eventID(1, 2, ms), headers, []byte(value))
}

func TestForeignRecordsAreRead(t *testing.T) {
	m := foreignHeaders()
	m["CE_TMS"], m["Content-Type"], m["traceparent"], m["ce_time"] = "17", "Application/JSON; charset=UTF-8", "\xff", "2026-11-22T12:00:00.5+01:00"
	m["ce_metadata"] = ` { "a" : "\u00e9" } `
	e, err := decodeMap(m, " 1 ", 5)
	if err != nil {
		t.Fatal(err)
	}
	want := &schema.Event{
		ID: eventID(1, 2, 5), Workspace: "w1", Session: "s1", Type: "com.example.thing", MessageID: "A234", TMs: 17,
		ClientTimeMs: ptr(int64(1_795_345_200_500)), Metadata: map[string]string{"a": "é"},
		ContentType: "Application/JSON; charset=UTF-8", Payload: []byte(" 1 "),
	}
	if !reflect.DeepEqual(e, want) {
		t.Errorf("got %+v, want %+v", e, want)
	}
	if !e.JSONPayload() {
		t.Error("the payload is JSON")
	}
}

func TestDecodeRecordRejects(t *testing.T) {
	const remove = "\x00remove"
	for _, c := range []struct {
		name, header, value string
	}{
		{"no version", "ce_specversion", remove},
		{"version 0.3", "ce_specversion", "0.3"},
		{"no type", "ce_type", remove},
		{"empty type", "ce_type", ""},
		{"type begins with a digit", "ce_type", "1a"},
		{"no session", "ce_subject", remove},
		{"empty session", "ce_subject", ""},
		{"session with a slash", "ce_subject", "a/b"},
		{"no workspace", "ce_workspace", remove},
		{"workspace with a line end", "ce_workspace", "a\n"},
		{"message id with a blank", "ce_id", "a b"},
		{"empty message id", "ce_id", ""},
		{"empty workflow", "ce_workflow", ""},
		{"long session", "ce_subject", strings.Repeat("x", schema.MaxIDLen+1)},
		{"negative t_ms", "ce_tms", "-1"},
		{"fractional t_ms", "ce_tms", "1.5"},
		{"empty t_ms", "ce_tms", ""},
		{"t_ms beyond 63 bits", "ce_tms", "9223372036854775808"},
		{"time in words", "ce_time", "yesterday"},
		{"time before 1970", "ce_time", "0001-01-01T00:00:00Z"},
		{"time that ClickHouse cannot hold", "ce_time", "2300-01-01T00:00:00Z"},
		{"time beyond year 9999 in UTC", "ce_time", "9999-12-31T23:59:59-23:59"},
		{"long frame", "ce_frame", strings.Repeat("x", schema.MaxFrameIDLen+1)},
		{"line end in frame", "ce_frame", "a\nb"},
		{"confidence NaN", "ce_confidence", "NaN"},
		{"confidence Inf", "ce_confidence", "Inf"},
		{"confidence above 1", "ce_confidence", "1.01"},
		{"confidence below 0", "ce_confidence", "-0.01"},
		{"empty confidence", "ce_confidence", ""},
		{"metadata null", "ce_metadata", "null"},
		{"metadata a list", "ce_metadata", "[]"},
		{"metadata cut off", "ce_metadata", `{"a":"b"`},
		{"metadata with more behind", "ce_metadata", `{"a":"b"}}`},
		{"metadata cut off after a comma", "ce_metadata", `{"a":"b",}`},
		{"metadata of a number", "ce_metadata", `{"a":1}`},
		{"metadata of null", "ce_metadata", `{"a":null}`},
		{"metadata with an empty key", "ce_metadata", `{"":"b"}`},
		{"metadata too large", "ce_metadata", `{"a":"` + strings.Repeat("x", schema.MaxMetadataBytes) + `"}`},
		{"content type empty", "content-type", ""},
		{"content type without a slash", "content-type", "json"},
		{"content type with a slash only in a parameter", "content-type", `json; a="b/c"`},
		{"content type with a line end", "content-type", "text/plain\n"},
	} {
		m := foreignHeaders()
		m[c.header] = c.value
		if c.value == remove {
			delete(m, c.header)
		}
		_, err := decodeMap(m, "{}", 5)
		if !errors.Is(err, schema.ErrRecord) || !strings.Contains(err.Error(), c.header) {
			t.Errorf("%s: error %v, want ErrRecord that names %s", c.name, err, c.header)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("%s: error of %d bytes", c.name, len(err.Error()))
		}
	}
	for name, value := range map[string]string{
		"nothing": "", "two values": "1 2", "cut off": `{"a":`, "not UTF-8": "\"a\xffb\"", "byte order mark": "\xef\xbb\xbf1", "NaN": "NaN",
	} {
		if _, err := decodeMap(foreignHeaders(), value, 5); !errors.Is(err, schema.ErrRecord) {
			t.Errorf("JSON value %s: error %v, want ErrRecord", name, err)
		}
	}
	for _, ms := range []int64{-1, math.MinInt64, schema.MaxEventTimeMs + 1, math.MaxInt64} {
		if _, err := decodeMap(foreignHeaders(), "{}", ms); !errors.Is(err, schema.ErrRecord) {
			t.Errorf("timestamp %d: error %v, want ErrRecord", ms, err)
		}
	}
}

// TestRejectionsHaveReasons: one record of each kind that a foreign producer may write.
func TestRejectionsHaveReasons(t *testing.T) {
	with := func(key, value string) []header {
		var out []header
		for k, v := range foreignHeaders() {
			if k != key {
				out = append(out, header{Key: k, Value: []byte(v)})
			}
		}
		return append(out, header{Key: key, Value: []byte(value)})
	}
	good := with("traceparent", "\xff")
	f := func(want schema.Reason, headers []header, value string, ms int64) {
		t.Helper()
		_, err := schema.DecodeRecord(eventID(1, 2, ms), headers, []byte(value))
		var r *schema.RejectError
		switch {
		case want == "":
			if err != nil {
				t.Errorf("error %v, want none", err)
			}
		case !errors.As(err, &r) || r.Reason != want || !errors.Is(err, schema.ErrRecord) || !slices.Contains(schema.Reasons(), want):
			t.Errorf("error %v, want reason %s", err, want)
		}
	}
	f("", good, "{}", 5)
	f(schema.ReasonVersion, nil, "{}", 5)
	f(schema.ReasonVersion, with("ce_specversion", "0.3"), "{}", 5)
	f(schema.ReasonMissing, []header{{Key: "ce_specversion", Value: []byte("1.0")}}, "{}", 5)
	f(schema.ReasonHeader, with("ce_subject", "a/b"), "{}", 5)
	f(schema.ReasonRepeated, append(with("a", ""), header{Key: "CE_Type", Value: []byte("com.example.thing")}), "{}", 5)
	f(schema.ReasonRepeated, append(with("content-type", "text/plain"), header{Key: "Content-Type", Value: []byte("text/plain")}), "{}", 5)
	f("", append(with("x", ""), header{Key: "x"}), "{}", 5) // what is not ours may repeat
	f(schema.ReasonReserved, with("ce_type", "error"), "{}", 5)
	f(schema.ReasonReserved, with("ce_type", schema.TypeDeadLetter), "{}", 5)
	f(schema.ReasonReserved, with("ce_type", "playhead.other"), "{}", 5)
	f("", with("ce_type", schema.TypeSessionEnded), "{}", 5)
	f("", with("ce_type", schema.TypeErased), "{}", 5)
	f(schema.ReasonJSON, good, "", 5)
	f(schema.ReasonTooLarge, with("content-type", "text/plain"), strings.Repeat("x", schema.MaxPayloadBytes+1), 5)
	f("", with("content-type", "text/plain"), strings.Repeat("x", schema.MaxPayloadBytes), 5)
	f(schema.ReasonTimestamp, good, "{}", -1)
	many := good
	for range 1000 {
		many = append(many, header{Key: "other", Value: []byte("x")})
	}
	f("", many, "{}", 5)

	e, err := schema.DecodeRecord(eventID(1, 2, 5), good, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	at := func(partitions int) error {
		return schema.CheckPlace(e, func(string) schema.Placement { return schema.Placement{Partitions: partitions, Shards: partitions} })
	}
	var r *schema.RejectError
	wrong := 0
	for partitions := 1; partitions < 50; partitions++ {
		if err := at(partitions); err != nil {
			wrong++
			if !errors.As(err, &r) || r.Reason != schema.ReasonPartition {
				t.Errorf("error %v, want reason %s", err, schema.ReasonPartition)
			}
		}
	}
	if wrong == 0 || wrong == 49 {
		t.Errorf("%d of 49 placements are wrong; the test is of no use", wrong)
	}
}

func TestMinusZeroConfidenceIsZero(t *testing.T) {
	m := foreignHeaders()
	m["ce_confidence"] = "-0"
	e, err := decodeMap(m, "{}", 5)
	if err != nil || math.Signbit(float64(*e.Confidence)) {
		t.Errorf("confidence %v, %v, want 0", *e.Confidence, err)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, e := range []*schema.Event{minimalEvent(), fullEvent()} {
		var meta, contentType, conf, clientTime, frame string
		for _, h := range schema.AppendHeaders([]header(nil), e, "g") {
			switch h.Key {
			case "ce_metadata":
				meta = string(h.Value)
			case "content-type":
				contentType = string(h.Value)
			case "ce_confidence":
				conf = string(h.Value)
			case "ce_time":
				clientTime = string(h.Value)
			case "ce_frame":
				frame = string(h.Value)
			}
		}
		f.Add("1.0", "id", e.Type, e.Session, e.Workspace, e.Workflow, "17", clientTime, frame, conf, meta, contentType, "Ce_Tms", "5", e.Payload)
	}
	f.Add("1.0", "~x", "a", "s", "w", "", "+5", "2026-01-01T00:00:00,5Z", "", "0x_1p-2", "{}", "a/b", "", "", []byte(nil))
	f.Fuzz(func(t *testing.T, version, id, typ, session, workspace, workflow, tms, clientTime, frame, conf, meta, contentType, otherKey, other string, payload []byte) {
		var headers []header
		for _, kv := range [][2]string{
			{"ce_specversion", version}, {"ce_id", id}, {"ce_type", typ}, {"ce_subject", session}, {"ce_workspace", workspace},
			{"ce_workflow", workflow}, {"ce_tms", tms}, {"ce_time", clientTime}, {"ce_frame", frame},
			{"ce_confidence", conf}, {"ce_metadata", meta}, {"content-type", contentType}, {otherKey, other},
		} {
			if kv[1] != "" {
				headers = append(headers, header{Key: kv[0], Value: []byte(kv[1])})
			}
		}
		e, err := schema.DecodeRecord(eventID(1, 2, 3), headers, payload)
		if err != nil {
			if !errors.Is(err, schema.ErrRecord) || e != nil {
				t.Fatalf("DecodeRecord = %v, %v", e, err)
			}
			return
		}
		if again, err := reencode(e); err != nil || !reflect.DeepEqual(again, e) {
			t.Fatalf("read %+v, written and read again %+v, %v", e, again, err)
		}
	})
}

// The quick reading of metadata must agree with encoding/json's.
func FuzzDecodeMetadata(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"a":"b"}`, `{"a":"b","c":"d"}`, `{"a":"b","a":"c"}`, `{"a":"\"b"}`, `{"a":"b"}}`, `{"a":"b",}`, `{"a"}`, `{"`, `{"}`, `{"a":}`,
		`{"a":"b""c":"d"}`, `{:"b"}`, `{"a":"}`, `null`, `{"a":null}`, "{\"a\":\"\xff\"}", `{ "a":"b"}`, "{\"a\":\"\x01\"}", `{"k":"v","":"d"}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if s == "" {
			return
		}
		m := foreignHeaders()
		m["ce_metadata"] = s
		e, err := decodeMap(m, "{}", 5)
		var values map[string]any
		ok := json.Unmarshal([]byte(s), &values) == nil && values != nil
		var want map[string]string
		for k, v := range values {
			text, isText := v.(string)
			ok = ok && isText
			if want == nil {
				want = make(map[string]string)
			}
			want[k] = text
		}
		ok = ok && schema.CheckMetadata(want) == nil
		if (err == nil) != ok || ok && !maps.Equal(e.Metadata, want) {
			t.Fatalf("metadata %q: %v, want ok %v, %q", s, err, ok, want)
		}
	})
}

func FuzzValidJSON(f *testing.F) {
	for _, s := range []string{
		`{"a":[1,2.5e-3,true,null,"x"]}`, `{"a":1,"a":2}`, `"\ud800"`, `"\udc00\ud800"`, `"\ud83d\ude00"`, "\"\xff\"", "\"\xed\xa0\x80\"",
		"", " ", "1 2", "01", "-", "1.", "\"\n\"", "nul", "[1,]", "\ufeff1", strings.Repeat("[", 9_999) + strings.Repeat("]", 9_999),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, want := schema.ValidJSON(b), json.Valid(b) && utf8.Valid(b); got != want {
			t.Fatalf("ValidJSON(%q) = %v, want %v", b, got, want)
		}
	})
}

// IsJSON cuts corners that must not show for any content type that is let in.
func FuzzContentType(f *testing.F) {
	for _, s := range []string{
		"application/json", "Application/JSON ; a=b", "text/json", "application/ld+json;x=\";\"", "text/plain", "audio/wav",
		"application/jsonl", "a/b+JSON", "json", "+json", "foo/+json", "application/json;", "a/b; a=\"+json\"",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if schema.CheckContentType(s) != nil {
			return
		}
		media, _, err := mime.ParseMediaType(s)
		want := media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json")
		if got := schema.IsJSON(s); err != nil || got != want {
			t.Fatalf("IsJSON(%q) = %v, want %v (%v)", s, got, want, err)
		}
	})
}

func FuzzParseTime(f *testing.F) {
	for _, s := range []string{
		"0", "-0", "-1", "1790000000000", "10413791999999", "10413792000000", "99999999999999999999", "2026-01-01T00:00:00Z",
		"2299-12-31T23:59:59.999Z", "2300-01-01T00:00:00Z", "1970-01-01T00:00:00+00:01", "2026-01-01 00:00:00Z", "2026-02-30T00:00:00Z", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ms, err := schema.ParseTime(s)
		if err != nil {
			if ms != 0 {
				t.Fatalf("ParseTime(%q) = %d, %v", s, ms, err)
			}
			return
		}
		if ms < 0 || ms > schema.MaxEventTimeMs {
			t.Fatalf("ParseTime(%q) = %d", s, ms)
		}
		text := time.UnixMilli(ms).UTC().Format(time.RFC3339Nano)
		if again, err := schema.ParseTime(text); err != nil || again != ms {
			t.Fatalf("ParseTime(%q) = %d, %v; of %q it was %d", text, again, err, s, ms)
		}
	})
}

func TestParseTimeBounds(t *testing.T) {
	for s, want := range map[string]int64{ // -1: refused
		"0": 0, "-1": -1, "10413791999999": schema.MaxEventTimeMs, "10413792000000": -1, "2299-12-31T23:59:59.999Z": schema.MaxEventTimeMs,
		"2300-01-01T00:00:00Z": -1, "2026-11-22T12:00:00.1239Z": 1_795_348_800_123, "2026-11-22T13:00:00+01:00": 1_795_348_800_000, "1.5": -1, "": -1, "now": -1,
	} {
		got, err := schema.ParseTime(s)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("ParseTime(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
}

func TestEventSizeCountsWhatItHolds(t *testing.T) {
	e := fullEvent()
	fixed := int(unsafe.Sizeof(*e)) + 8 + 4
	variable := len(e.Payload) + len(e.Session) + len(e.Type) + len(e.MessageID) + len(e.FrameID)
	for k, v := range e.Metadata {
		variable += len(k) + len(v)
	}
	if got := e.Size(); got < fixed+variable || got > 3*(fixed+variable) {
		t.Errorf("Size() = %d, want about %d", got, fixed+variable)
	}
}
