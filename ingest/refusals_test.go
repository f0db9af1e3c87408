package ingest

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/playhead-dev/playhead/schema"
)

func gzipped(tb testing.TB, s string) string {
	tb.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(s)); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.String()
}

func zstded(tb testing.TB, s string) string {
	tb.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	return string(w.EncodeAll([]byte(s), nil))
}

func event(fields string) string {
	if fields != "" {
		fields = "," + fields
	}
	return `{"type":"click"` + fields + `}`
}

func list(events ...string) string { return `{"events":[` + strings.Join(events, ",") + `]}` }

func nested(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// TestBadInputIsRefusedByNameAndAppendsNothing is the whole table of bad input.
func TestBadInputIsRefusedByNameAndAppendsNothing(t *testing.T) {
	small := func(c *rigConfig) {
		c.ingest.MaxBatchEvents = 4
		c.ingest.MaxEventBytes = 2048
		c.ingest.MaxBatchBytes = 1280 << 10
	}
	r := newRig(t, small)
	r.appended(200, call{path: "/v1/sessions/ended/events", body: event("")})
	if res := r.post("/v1/sessions/ended/end", ""); res.status != 200 {
		t.Fatalf("end: %d %s", res.status, res.body)
	}
	r.appended(200, call{path: "/v1/sessions/of-w2/events", body: event(`"workflow_id":"w2"`)})
	r.appended(200, call{path: "/v1/sessions/of-none/events", body: event("")})
	r.events()

	const session = "/v1/sessions/a/events"
	const batch = "/v1/events"
	ce := func(fields string) string {
		return `{"specversion":"1.0","id":"1","source":"/s","type":"click"` + fields + `}`
	}
	const ceType = "application/cloudevents+json"
	long := strings.Repeat("x", 129)
	manyKeys := make([]string, 65)
	for i := range manyKeys {
		manyKeys[i] = fmt.Sprintf(`"k%d":"v"`, i)
	}

	for _, c := range []struct {
		name   string
		call   call
		status int
		code   string
		param  string
		says   string // part of the message
	}{
		// Not JSON, and not quite JSON.
		{"empty body", call{path: session}, 400, "invalid_json", "", "empty"},
		{"white space", call{path: session, body: " \n\t"}, 400, "invalid_json", "", "empty"},
		{"not JSON", call{path: session, body: `hello`}, 400, "invalid_json", "", "byte 0"},
		{"cut short", call{path: session, body: `{"type":"click"`}, 400, "invalid_json", "", "ends"},
		{"cut short inside a list", call{path: session, body: `{"events":[{"type":"click"},{"ty`}, 400, "invalid_json", "events[1]", "ends"},
		{"trailing data", call{path: session, body: event("") + `x`}, 400, "invalid_json", "", "follows"},
		{"two events in a row", call{path: session, body: event("") + event("")}, 400, "invalid_json", "", "follows"},
		{"trailing comma", call{path: session, body: `{"type":"click",}`}, 400, "invalid_json", "", ""},
		{"comment", call{path: session, body: `{"type":"click"/* */}`}, 400, "invalid_json", "", ""},
		{"NaN", call{path: session, body: event(`"confidence":NaN`)}, 400, "invalid_json", "confidence", ""},
		{"byte order mark", call{path: session, body: "\ufeff" + event("")}, 400, "invalid_json", "", ""},
		{"invalid UTF-8", call{path: session, body: event("\"payload\":\"a\xff\"")}, 400, "invalid_json", "payload", "UTF-8"},
		{"lone surrogate", call{path: session, body: event(`"payload":"\ud800"`)}, 400, "invalid_json", "payload", ""},
		{"field twice", call{path: session, body: event(`"type":"b"`)}, 400, "invalid_json", "type", "twice"},
		{"field twice, once escaped", call{path: session, body: event(`"\u0074ype":"b"`)}, 400, "invalid_json", "type", "twice"},
		{"payload's field twice", call{path: session, body: list(event(""), event(`"payload":{"a":{"x":1,"x":2}}`))}, 400, "invalid_json", "events[1].payload.a.x", "twice"},
		{"array instead of object", call{path: session, body: `[` + event("") + `]`}, 400, "invalid_field", "", "want an object"},
		{"string instead of object", call{path: session, body: `"click"`}, 400, "invalid_field", "", `"click"`},
		{"null body", call{path: session, body: `null`}, 400, "invalid_field", "", "null"},

		// Lists.
		{"empty list", call{path: session, body: `{"events":[]}`}, 400, "invalid_field", "events", "no event"},
		{"events is an object", call{path: session, body: `{"events":{}}`}, 400, "invalid_field", "events", "an object"},
		{"events beside something", call{path: session, body: `{"events":[{"type":"a"}],"x":1}`}, 400, "unknown_field", "x", "x"},
		{"event in a list is a number", call{path: session, body: list(event(""), "7")}, 400, "invalid_field", "events[1]", "7"},
		{"too many events", call{path: session, body: list(event(""), event(""), event(""), event(""), event(""))}, 413, "too_many_events", "events", "4"},
		{"too many lines", call{path: session, contentType: "application/x-ndjson", body: strings.Repeat(event("")+"\n", 5)}, 413, "too_many_events", "events", "4"},

		// Fields.
		{"no type", call{path: session, body: `{"payload":1}`}, 400, "invalid_field", "type", "missing"},
		{"empty object", call{path: session, body: `{}`}, 400, "invalid_field", "type", "missing"},
		{"type null", call{path: session, body: `{"type":null}`}, 400, "invalid_field", "type", "null"},
		{"type a number", call{path: session, body: list(event(""), `{"type":5}`)}, 400, "invalid_field", "events[1].type", "5"},
		{"type empty", call{path: session, body: `{"type":""}`}, 400, "invalid_field", "type", "empty"},
		{"type starts with a digit", call{path: session, body: `{"type":"1a"}`}, 400, "invalid_field", "type", `"1a"`},
		{"type too long", call{path: session, body: `{"type":"` + long + `"}`}, 400, "invalid_field", "type", "129"},
		{"reserved error", call{path: session, body: `{"type":"error"}`}, 400, "reserved_type", "type", `"error"`},
		{"reserved open", call{path: session, body: `{"type":"open"}`}, 400, "reserved_type", "type", ""},
		{"reserved heartbeat", call{path: session, body: `{"type":"heartbeat"}`}, 400, "reserved_type", "type", ""},
		{"reserved prefix", call{path: session, body: list(event(""), `{"type":"playhead.session.ended"}`)}, 400, "reserved_type", "events[1].type", ""},
		{"unknown field", call{path: session, body: list(event(""), event(""), event(`"foo":1`))}, 400, "unknown_field", "events[2].foo", "payload"},
		{"unknown field that is null", call{path: session, body: event(`"foo":null`)}, 400, "unknown_field", "foo", ""},
		{"field in other case", call{path: session, body: event(`"Payload":1`)}, 400, "unknown_field", "Payload", ""},
		{"t_ms text", call{path: session, body: list(event(""), event(""), event(""), event(`"t_ms":"5"`))}, 400, "invalid_field", "events[3].t_ms", `"5"`},
		{"t_ms negative", call{path: session, body: event(`"t_ms":-1`)}, 400, "invalid_field", "t_ms", "-1"},
		{"t_ms a fraction", call{path: session, body: event(`"t_ms":1.5`)}, 400, "invalid_field", "t_ms", "1.5"},
		{"t_ms with an exponent", call{path: session, body: event(`"t_ms":1e3`)}, 400, "invalid_field", "t_ms", "1e3"},
		{"t_ms too large", call{path: session, body: event(`"t_ms":281474976710656`)}, 400, "invalid_field", "t_ms", "281474976710655"},
		{"t_ms far too large", call{path: session, body: event(`"t_ms":99999999999999999999999999`)}, 400, "invalid_field", "t_ms", ""},
		{"t_ms an object", call{path: session, body: event(`"t_ms":{}`)}, 400, "invalid_field", "t_ms", "an object"},
		{"t_ms true", call{path: session, body: event(`"t_ms":true`)}, 400, "invalid_field", "t_ms", "true"},
		{"client_time no time", call{path: session, body: event(`"client_time":"yesterday"`)}, 400, "invalid_field", "client_time", "RFC 3339"},
		{"client_time a fraction", call{path: session, body: event(`"client_time":1.5`)}, 400, "invalid_field", "client_time", ""},
		{"client_time before 1970", call{path: session, body: event(`"client_time":"1969-12-31T23:59:59Z"`)}, 400, "invalid_field", "client_time", "1970"},
		{"client_time in microseconds", call{path: session, body: event(`"client_time":1700000000000000`)}, 400, "invalid_field", "client_time", ""},
		{"client_time after 2299", call{path: session, body: event(`"client_time":"2300-01-01T00:00:00Z"`)}, 400, "invalid_field", "client_time", "2299"},
		{"client_time an array", call{path: session, body: event(`"client_time":[]`)}, 400, "invalid_field", "client_time", "an array"},
		{"frame_id a number", call{path: session, body: event(`"frame_id":3`)}, 400, "invalid_field", "frame_id", "3"},
		{"frame_id too long", call{path: session, body: event(`"frame_id":"` + strings.Repeat("f", 257) + `"`)}, 400, "invalid_field", "frame_id", "257"},
		{"frame_id with a control character", call{path: session, body: event(`"frame_id":"a\nb"`)}, 400, "invalid_field", "frame_id", "control"},
		{"confidence above 1", call{path: session, body: event(`"confidence":1.01`)}, 400, "invalid_field", "confidence", "1.01"},
		{"confidence below 0", call{path: session, body: event(`"confidence":-0.1`)}, 400, "invalid_field", "confidence", ""},
		{"confidence text", call{path: session, body: event(`"confidence":"0.5"`)}, 400, "invalid_field", "confidence", "number"},
		{"metadata a list", call{path: session, body: event(`"metadata":[]`)}, 400, "invalid_field", "metadata", "an array"},
		{"metadata value a number", call{path: session, body: list(event(`"metadata":{"a":"b","n":1}`))}, 400, "invalid_field", "events[0].metadata.n", "1"},
		{"metadata value an object", call{path: session, body: event(`"metadata":{"n":{}}`)}, 400, "invalid_field", "metadata.n", "an object"},
		{"metadata value null", call{path: session, body: event(`"metadata":{"n":null}`)}, 400, "invalid_field", "metadata.n", "null"},
		{"metadata key empty", call{path: session, body: event(`"metadata":{"":"x"}`)}, 400, "invalid_field", "metadata", "empty"},
		{"metadata with 65 keys", call{path: session, body: event(`"metadata":{` + strings.Join(manyKeys, ",") + `}`)}, 400, "invalid_field", "metadata", "64"},
		{"message_id empty", call{path: session, body: event(`"message_id":""`)}, 400, "invalid_field", "message_id", "empty"},
		{"message_id with a slash", call{path: session, body: event(`"message_id":"a/b"`)}, 400, "invalid_field", "message_id", `"a/b"`},
		{"message_id too long", call{path: session, body: event(`"message_id":"` + long + `"`)}, 400, "invalid_field", "message_id", "129"},
		{"message_id a number", call{path: session, body: event(`"message_id":12`)}, 400, "invalid_field", "message_id", "12"},
		{"workflow_id with a space", call{path: session, body: event(`"workflow_id":"a b"`)}, 400, "invalid_field", "workflow_id", `"a b"`},
		{"session_id other than the path's", call{path: session, body: list(event(""), event(`"session_id":"b"`))}, 400, "invalid_field", "events[1].session_id", `"b"`},
		{"session_id missing in the batch", call{path: batch, body: event("")}, 400, "invalid_field", "session_id", "missing"},

		// Payloads.
		{"payload too deep", call{path: session, body: list(event(`"payload":`+nested(64)), event(`"payload":`+nested(65)))}, 400, "payload_too_deep", "events[1].payload", "64"},
		{"payload deeper than any reader", call{path: session, body: event(`"payload":` + nested(10_100))}, 400, "payload_too_deep", "payload", "64"},
		{"payload of a list deeper than any reader", call{path: session, body: list(event(""), event(`"payload":`+nested(10_100)))}, 400, "payload_too_deep", "events[1].payload", "64"},
		{"event too large", call{path: session, body: list(event(""), event(`"payload":"`+strings.Repeat("x", 2048)+`"`))}, 413, "event_too_large", "events[1]", "2048"},
		{"payload twice", call{path: session, body: event(`"payload":1,"payload_base64":"AA=="`)}, 400, "invalid_field", "payload_base64", "one of them"},
		{"payload_base64 not base64", call{path: session, body: event(`"payload_base64":"@@"`)}, 400, "invalid_field", "payload_base64", "base64"},
		{"payload_base64 without padding", call{path: session, body: event(`"payload_base64":"AA"`)}, 400, "invalid_field", "payload_base64", "padding"},
		{"payload_base64 a number", call{path: session, body: event(`"payload_base64":1`)}, 400, "invalid_field", "payload_base64", "1"},
		{"payload_base64 not the JSON it says", call{path: session, body: event(`"content_type":"application/json","payload_base64":"` + base64.StdEncoding.EncodeToString([]byte("{")) + `"`)}, 400, "invalid_field", "payload_base64", "not JSON"},
		{"payload_base64 too deep", call{path: session, body: event(`"content_type":"application/json","payload_base64":"` + base64.StdEncoding.EncodeToString([]byte(nested(65))) + `"`)}, 400, "payload_too_deep", "payload_base64", ""},
		{"content_type of bytes with payload", call{path: session, body: event(`"content_type":"audio/wav","payload":1`)}, 400, "invalid_field", "content_type", "payload_base64"},
		{"content_type of bytes without payload", call{path: session, body: event(`"content_type":"audio/wav"`)}, 400, "invalid_field", "content_type", "payload_base64"},
		{"content_type no media type", call{path: session, body: event(`"content_type":"wav","payload_base64":"AA=="`)}, 400, "invalid_field", "content_type", `"wav"`},

		// NDJSON.
		{"bad line", call{path: session, contentType: "application/x-ndjson", body: event("") + "\n\n{\n"}, 400, "invalid_json", "events[1]", "Line 3"},
		{"bad field in a line", call{path: session, contentType: "application/x-ndjson", body: event("") + "\n\n" + event(`"t_ms":-1`)}, 400, "invalid_field", "events[1].t_ms", "-1"},
		{"two events in a line", call{path: session, contentType: "application/x-ndjson", body: event("") + event("")}, 400, "invalid_json", "events[0]", "Line 1"},
		{"event over two lines", call{path: session, contentType: "application/x-ndjson", body: "{\"type\":\n\"a\"}"}, 400, "invalid_json", "events[0].type", "Line 1"},
		{"blank lines only", call{path: session, contentType: "application/x-ndjson", body: "\n\n"}, 400, "invalid_json", "", "empty"},

		// CloudEvents.
		{"no specversion", call{path: session, contentType: ceType, body: `{"id":"1","source":"/s","type":"click"}`}, 400, "invalid_field", "specversion", "missing"},
		{"specversion 0.3", call{path: session, contentType: ceType, body: `{"specversion":"0.3","id":"1","source":"/s","type":"click"}`}, 400, "invalid_field", "specversion", `"0.3"`},
		{"no id", call{path: session, contentType: ceType, body: `{"specversion":"1.0","source":"/s","type":"click"}`}, 400, "invalid_field", "id", "missing"},
		{"no source", call{path: session, contentType: ceType, body: `{"specversion":"1.0","id":"1","type":"click"}`}, 400, "invalid_field", "source", "missing"},
		{"no CloudEvents type", call{path: session, contentType: ceType, body: `{"specversion":"1.0","id":"1","source":"/s"}`}, 400, "invalid_field", "type", "missing"},
		{"reserved CloudEvents type", call{path: session, contentType: ceType, body: `{"specversion":"1.0","id":"1","source":"/s","type":"open"}`}, 400, "reserved_type", "type", ""},
		{"id out of grammar", call{path: session, contentType: ceType, body: `{"specversion":"1.0","id":"a/b","source":"/s","type":"click"}`}, 400, "invalid_field", "id", `"a/b"`},
		{"attribute in capitals", call{path: session, contentType: ceType, body: ce(`,"fooBar":"x"`)}, 400, "unknown_field", "fooBar", "a-z"},
		{"extension an object", call{path: session, contentType: ceType, body: ce(`,"ext":{}`)}, 400, "invalid_field", "ext", "an object"},
		{"workspace given", call{path: session, contentType: ceType, body: ce(`,"workspace":"ws2"`)}, 400, "invalid_field", "workspace", "key"},
		{"time no time", call{path: session, contentType: ceType, body: ce(`,"time":"noon"`)}, 400, "invalid_field", "time", ""},
		{"subject is another session", call{path: session, contentType: ceType, body: ce(`,"subject":"b"`)}, 400, "invalid_field", "subject", `"b"`},
		{"data twice", call{path: session, contentType: ceType, body: ce(`,"data":1,"data_base64":"AA=="`)}, 400, "invalid_field", "data_base64", "one of them"},
		{"data too deep", call{path: session, contentType: ceType, body: ce(`,"data":` + nested(65))}, 400, "payload_too_deep", "data", ""},
		{"a list as one CloudEvent", call{path: session, contentType: ceType, body: `[` + ce("") + `]`}, 400, "invalid_field", "", "an array"},
		{"one CloudEvent as a list", call{path: session, contentType: "application/cloudevents-batch+json", body: ce("")}, 400, "invalid_field", "", "array"},
		{"bad CloudEvent in a list", call{path: session, contentType: "application/cloudevents-batch+json", body: `[` + ce("") + `,` + ce(`,"time":5`) + `]`}, 400, "invalid_field", "[1].time", "5"},
		{"binary CloudEvent without id", call{path: session, header: map[string]string{"ce-specversion": "1.0", "ce-source": "/s", "ce-type": "click"}, body: `1`}, 400, "invalid_field", "ce-id", "missing"},
		{"binary CloudEvent that is not JSON", call{path: session, header: map[string]string{"ce-specversion": "1.0", "ce-source": "/s", "ce-type": "click", "ce-id": "1"}, body: `{`}, 400, "invalid_field", "body", "not JSON"},
		{"binary CloudEvent badly escaped", call{path: session, header: map[string]string{"ce-specversion": "1.0", "ce-source": "%zz", "ce-type": "click", "ce-id": "1"}, body: `1`}, 400, "invalid_field", "ce-source", "percent"},
		{"binary CloudEvent too large", call{path: session, contentType: "text/plain", header: map[string]string{"ce-specversion": "1.0", "ce-source": "/s", "ce-type": "click", "ce-id": "1"}, body: strings.Repeat("x", 2049)}, 413, "event_too_large", "", "2048"},

		// Content types and encodings.
		{"form", call{path: session, contentType: "application/x-www-form-urlencoded", body: event("")}, 415, "unsupported_media_type", "Content-Type", "application/json"},
		{"XML CloudEvents", call{path: session, contentType: "application/cloudevents+xml", body: "<a/>"}, 415, "unsupported_media_type", "Content-Type", ""},
		{"no media type", call{path: session, contentType: "json;;", body: event("")}, 415, "unsupported_media_type", "Content-Type", ""},
		{"latin-1", call{path: session, contentType: "application/json; charset=iso-8859-1", body: event("")}, 415, "unsupported_media_type", "Content-Type", "utf-8"},
		{"brotli", call{path: session, encoding: "br", body: event("")}, 415, "unsupported_media_type", "Content-Encoding", "gzip"},
		{"deflate", call{path: session, encoding: "deflate", body: event("")}, 415, "unsupported_media_type", "Content-Encoding", ""},
		{"encoded twice", call{path: session, encoding: "gzip, gzip", body: event("")}, 415, "unsupported_media_type", "Content-Encoding", ""},
		{"not gzip", call{path: session, encoding: "gzip", body: event("")}, 400, "invalid_encoding", "Content-Encoding", "gzip"},
		{"gzip cut short", call{path: session, encoding: "gzip", body: gzipped(t, event(""))[:20]}, 400, "invalid_encoding", "Content-Encoding", ""},
		{"gzip with a tail", call{path: session, encoding: "gzip", body: gzipped(t, event("")) + "tail"}, 400, "invalid_encoding", "Content-Encoding", ""},
		{"not zstd", call{path: session, encoding: "zstd", body: event("")}, 400, "invalid_encoding", "Content-Encoding", "zstd"},
		{"zstd cut short", call{path: session, encoding: "zstd", body: zstded(t, event(""))[:10]}, 400, "invalid_encoding", "Content-Encoding", ""},
		{"gzip bomb", call{path: session, encoding: "gzip", body: gzipped(t, strings.Repeat(" ", 2<<20))}, 413, "body_too_large", "Content-Encoding", "200 times"},
		{"zstd bomb", call{path: session, encoding: "zstd", body: zstded(t, strings.Repeat(" ", 2<<20))}, 413, "body_too_large", "Content-Encoding", "200 times"},
		{"zstd window", call{path: session, encoding: "zstd", body: "\x28\xb5\x2f\xfd\x00\x70\x09\x00\x00x"}, 413, "body_too_large", "Content-Encoding", "window"},
		{"too large decompressed", call{path: session, encoding: "gzip", body: gzipped(t, incompressible(1280<<10+1))}, 413, "body_too_large", "", "1310720"},
		{"too large", call{path: session, body: strings.Repeat(" ", 1280<<10+1)}, 413, "body_too_large", "", "1310720"},

		// Where it may go.
		{"ended session", call{path: "/v1/sessions/ended/events", body: event("")}, 409, "session_ended", "session_id", "ended"},
		{"ended session, NDJSON", call{path: "/v1/sessions/ended/events", contentType: "application/x-ndjson", body: event("")}, 409, "session_ended", "session_id", ""},
		{"session id out of grammar", call{path: "/v1/sessions/a%20b/events", body: event("")}, 400, "invalid_parameter", "id", ""},
		{"session id too long", call{path: "/v1/sessions/" + long + "/events", body: event("")}, 400, "invalid_parameter", "id", "129"},
		{"another workflow than the session's", call{path: "/v1/sessions/of-w2/events", body: event(`"workflow_id":"w3"`)}, 400, "invalid_field", "workflow_id", `"w2"`},
		{"key of another session", call{path: "/v1/sessions/b/events", key: "session-a", body: event("")}, 404, "not_found", "id", ""},
		{"key of another session, batch", call{path: batch, key: "session-a", body: event(`"session_id":"b"`)}, 404, "not_found", "session_id", ""},
		{"key of another workflow", call{path: "/v1/sessions/of-w2/events", key: "workflow", body: event("")}, 404, "not_found", "session_id", ""},
		{"key of a workflow, session of none", call{path: "/v1/sessions/of-none/events", key: "workflow", body: event("")}, 404, "not_found", "session_id", ""},
		{"key of a workflow, event of another", call{path: session, key: "workflow", body: event(`"workflow_id":"w2"`)}, 404, "not_found", "workflow_id", ""},
		{"workspace that is gone", call{path: session, key: "nowhere", body: event("")}, 404, "not_found", "session_id", ""},
		{"key without the scope", call{path: session, key: "reader", body: event("")}, 403, "insufficient_scope", "", "ingest"},
		{"unknown key", call{path: session, key: "who", body: event("")}, 401, "invalid_key", "", ""},
		{"unknown parameter", call{path: session + "?wait=1", body: event("")}, 400, "unknown_parameter", "wait", ""},
		{"bad ack", call{path: session + "?ack=maybe", body: event("")}, 400, "invalid_parameter", "ack", "materialised"},
		{"ack twice", call{path: session + "?ack=log&ack=log", body: event("")}, 400, "invalid_parameter", "ack", ""},
		{"bad dedupe", call{path: batch + "?dedupe=all", body: event(`"session_id":"a"`)}, 400, "invalid_parameter", "dedupe", "history"},

		// Sessions.
		{"session: not JSON", call{path: "/v1/sessions", body: `{`}, 400, "invalid_json", "", ""},
		{"session: an array", call{path: "/v1/sessions", body: `[]`}, 400, "invalid_field", "", "an array"},
		{"session: unknown field", call{path: "/v1/sessions", body: `{"name":"x"}`}, 400, "unknown_field", "name", "kind"},
		{"session: bad kind", call{path: "/v1/sessions", body: `{"kind":"meeting"}`}, 400, "invalid_field", "kind", "conversation"},
		{"session: bad id", call{path: "/v1/sessions", body: `{"id":"a b"}`}, 400, "invalid_field", "id", `"a b"`},
		{"session: bad workflow", call{path: "/v1/sessions", body: `{"workflow_id":""}`}, 400, "invalid_field", "workflow_id", "empty"},
		{"session: bad metadata", call{path: "/v1/sessions", body: `{"metadata":{"a":1}}`}, 400, "invalid_field", "metadata.a", "1"},
		{"session: id twice", call{path: "/v1/sessions", body: `{"id":"x","id":"y"}`}, 400, "invalid_json", "id", "twice"},
		{"session: trailing data", call{path: "/v1/sessions", body: `{} {}`}, 400, "invalid_json", "", "follows"},
		{"session: not JSON by type", call{path: "/v1/sessions", contentType: "text/plain", body: `{}`}, 415, "unsupported_media_type", "Content-Type", ""},
		{"session: exists as an ended one", call{path: "/v1/sessions", body: `{"id":"ended","kind":"call"}`}, 409, "session_exists", "id", "exists"},
		{"session: exists in another workflow", call{path: "/v1/sessions", body: `{"id":"of-w2","workflow_id":"w3"}`}, 409, "session_exists", "id", ""},
		{"session: foreign to a session's key", call{path: "/v1/sessions", key: "session-a", body: `{"id":"b"}`}, 404, "not_found", "id", ""},
		{"session: foreign to a workflow's key", call{path: "/v1/sessions", key: "workflow", body: `{"id":"of-w2"}`}, 404, "not_found", "id", ""},
		{"session: foreign workflow", call{path: "/v1/sessions", key: "workflow", body: `{"workflow_id":"w2"}`}, 404, "not_found", "workflow_id", ""},
		{"session: unknown parameter", call{path: "/v1/sessions?x=1", body: `{}`}, 400, "unknown_parameter", "x", ""},
		{"session: without the scope", call{path: "/v1/sessions", key: "reader", body: `{}`}, 403, "insufficient_scope", "", ""},
		{"end: unknown session", call{path: "/v1/sessions/never/end"}, 404, "not_found", "id", ""},
		{"end: another workspace's session", call{path: "/v1/sessions/of-w2/end", key: "other"}, 404, "not_found", "id", ""},
		{"end: foreign to a session's key", call{path: "/v1/sessions/of-w2/end", key: "session-a"}, 404, "not_found", "id", ""},
		{"end: foreign to a workflow's key", call{path: "/v1/sessions/of-w2/end", key: "workflow"}, 404, "not_found", "id", ""},
		{"end: unknown field", call{path: "/v1/sessions/of-w2/end", body: `{"why":"x"}`}, 400, "unknown_field", "why", "reason"},
		{"end: reason a number", call{path: "/v1/sessions/of-w2/end", body: `{"reason":1}`}, 400, "invalid_field", "reason", "1"},
		{"end: reason too long", call{path: "/v1/sessions/of-w2/end", body: `{"reason":"` + strings.Repeat("x", 1025) + `"}`}, 400, "invalid_field", "reason", "1025"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := r.logged()
			res := r.do(c.call)
			if res.status != c.status {
				t.Fatalf("status %d, body %s; want %d", res.status, res.body, c.status)
			}
			e := res.error(t)
			if e.Code != c.code || e.Param != c.param {
				t.Errorf("code %q, param %q; want %q, %q (message %q)", e.Code, e.Param, c.code, c.param, e.Message)
			}
			if !strings.Contains(e.Message, c.says) || len(e.Message) > 600 {
				t.Errorf("message %q does not say %q, or is too long", e.Message, c.says)
			}
			if after := r.logged(); after != before {
				t.Errorf("%d records were appended", after-before)
			}
		})
	}
}

// incompressible returns text that compresses by little.
func incompressible(n int) string {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+/"[x%64]
	}
	return string(b)
}

// TestGoodInputAtTheLimitsIsTaken is the other side of the table.
func TestGoodInputAtTheLimitsIsTaken(t *testing.T) {
	r := newRig(t, func(c *rigConfig) { c.ingest.MaxBatchEvents = 4 })
	const session = "/v1/sessions/a/events"
	for _, c := range []struct {
		name string
		call call
		want int
	}{
		{"no payload", call{path: session, body: event("")}, 1},
		{"nulls", call{path: session, body: event(`"payload":null,"t_ms":null,"client_time":null,"frame_id":null,"confidence":null,"metadata":null,"message_id":null,"session_id":null,"workflow_id":null,"content_type":null,"payload_base64":null`)}, 1},
		{"payload at the depth limit", call{path: session, body: event(`"payload":` + nested(64))}, 1},
		{"brackets in text are no depth", call{path: session, body: event(`"payload":"` + strings.Repeat("[{", 200) + `\""`)}, 1},
		{"most events", call{path: session, body: list(event(""), event(""), event(""), event(""))}, 4},
		{"largest event", call{path: session, body: event(`"payload":"` + strings.Repeat("x", DefaultMaxEventBytes-len(event(`"payload":""`))) + `"`)}, 1},
		{"NDJSON with blank lines and CRLF", call{path: session, contentType: "application/x-ndjson; charset=UTF-8", body: event("") + "\r\n\r\n" + event("")}, 2},
		{"no content type", call{path: session, contentType: "-", body: event("")}, 1},
		{"gzip", call{path: session, encoding: "gzip", body: gzipped(t, event(""))}, 1},
		{"two gzip members", call{path: session, encoding: "x-gzip", contentType: "application/x-ndjson", body: gzipped(t, event("")+"\n") + gzipped(t, event(""))}, 2},
		{"zstd", call{path: session, encoding: "ZSTD", body: zstded(t, event(""))}, 1},
		{"identity", call{path: session, encoding: "identity", body: event("")}, 1},
		{"very regular, but small", call{path: session, encoding: "gzip", body: gzipped(t, event("")+strings.Repeat(" ", 900<<10))}, 1},
		{"the session's own id", call{path: session, body: event(`"session_id":"a"`)}, 1},
		{"session's key", call{path: session, key: "session-a", body: event("")}, 1},
		{"workflow's key, new session", call{path: "/v1/sessions/new/events", key: "workflow", body: list(event(""), event(`"workflow_id":"w1"`))}, 2},
		{"empty bytes", call{path: session, body: event(`"payload_base64":""`)}, 1},
		{"type as long as can be", call{path: session, body: `{"type":"` + strings.Repeat("x", schema.MaxTypeLen) + `"}`}, 1},
		{"ignored parameter", call{path: session + "?_=1", body: event("")}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := r.appended(200, c.call)
			if a.Accepted != c.want {
				t.Errorf("accepted %d, want %d", a.Accepted, c.want)
			}
		})
	}
	r.events() // the tails check that every record decodes
}
