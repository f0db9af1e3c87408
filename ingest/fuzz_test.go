package ingest

import (
	"testing"

	"github.com/playhead-dev/playhead/internal/openapi/conform"
)

// Whatever bytes a client sends, it is answered as the document says, or hung up on.
func FuzzHTTP(f *testing.F) {
	r := newRig(f)
	post := func(path, header, body string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: x\r\nX-Api-Key: full\r\n" + header + "Transfer-Encoding: chunked\r\n\r\n" + chunk(body) + "0\r\n\r\n"
	}
	for _, s := range []string{
		"", post("/v1/sessions", "", `{"id":"a","kind":"call","metadata":{"k":"v"}}`), post("/v1/sessions", "", ``), post("/v1/sessions/a/end", "", `{"reason":"x"}`),
		post("/v1/sessions/s/events", "", `{"type":"a","payload":{"x":[1,{}]},"t_ms":5,"message_id":"m","client_time":"2026-01-01T00:00:00Z"}`),
		post("/v1/sessions/s/events?ack=log&dedupe=window&lane=backfill", "", `{"events":[{"type":"a"},{"type":"b","payload_base64":"AA==","content_type":"a/b"}]}`),
		post("/v1/events", "Content-Type: application/x-ndjson\r\n", "{\"session_id\":\"s\",\"type\":\"a\"}\n\n{\"type\":\"error\"}\nx\n"),
		post("/v1/events", "Content-Type: application/cloudevents-batch+json\r\n", `[{"specversion":"1.0","id":"1","source":"/x","type":"a","subject":"s","data":{}}]`),
		post("/v1/events", "ce-specversion: 1.0\r\nce-id: i\r\nce-source: %2f\r\nce-type: t\r\nce-subject: s\r\nContent-Type: text/plain\r\n", "\xff\x00"),
		post("/v1/events", "Content-Encoding: gzip\r\n", "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\xaa\x05\x00"), post("/v1/events", "Content-Encoding: zstd\r\n", "\x28\xb5\x2f\xfd\x04\x00"),
		post("/v1/sessions/%2e%2e/events", "", `{"type":"a"}`), post("/v1/sessions/a%2fb/events", "Content-Type: a/b; charset=\"\r\n", `{`),
		post("/v1/sessions/s/events", "", `{"type":"a"}`) + post("/v1/sessions/s/events", "X-Api-Key: none\r\n", `{"type":"b"}`),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		if err := conform.CheckExchange(sent, conform.Exchange(r.app, sent)); err != nil {
			t.Error(err)
		}
	})
}

// chunk is text as a chunk of a body (RFC 9112, 7.1), "" for none.
func chunk(text string) string {
	if text == "" {
		return ""
	}
	const hex = "0123456789abcdef"
	return string([]byte{hex[len(text)>>8&15], hex[len(text)>>4&15], hex[len(text)&15]}) + "\r\n" + text + "\r\n"
}
