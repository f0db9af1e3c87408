package schema_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

// benchPayload returns a JSON payload of about n bytes, shaped as analytics events are:
// short keys, mixed values, one longer text.
func benchPayload(n int) []byte {
	b := []byte(`{"x":512,"y":384.5,"buttons":0,"target":"#checkout > button.primary","ok":true,"path":"/cart/42","note":"`)
	for len(b) < n-2 {
		b = append(b, "lorem ipsum "[len(b)%12])
	}
	return append(b, `"}`...)
}

func benchEvent() *schema.Event {
	return &schema.Event{
		ID:        schema.EventID{Position: schema.Position{Epoch: 1, Partition: 3, Offset: 123456}, TimeMs: 1_760_000_000_000},
		Workspace: "ws_demo", Session: "sess_01JB2Q0W3T9", Type: "mouse.move", MessageID: "01JB2Q0W3T9-000017",
		TMs: 73512, ContentType: schema.DefaultContentType, Payload: benchPayload(300),
	}
}

func BenchmarkDecodeRecord(b *testing.B) {
	minimal := benchEvent()
	full := benchEvent()
	conf, ct := float32(0.93), int64(1_760_000_000_123)
	full.Workflow, full.FrameID, full.Confidence, full.ClientTimeMs = "wf_checkout", "frame-7", &conf, &ct
	full.Metadata = map[string]string{"lang": "en", "page": "cart", "source": "web"}
	binary := benchEvent()
	binary.ContentType, binary.Payload = "audio/wav", bytes.Repeat([]byte{0, 255, 7}, 100)
	for _, c := range []struct {
		name string
		e    *schema.Event
	}{{"usual", minimal}, {"full", full}, {"binary", binary}} {
		headers := schema.AppendHeaders([]schema.Header(nil), c.e, "")
		b.Run(fmt.Sprintf("%s/headers=%d", c.name, len(headers)), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(c.e.Payload)))
			for b.Loop() {
				e, err := schema.DecodeRecord(c.e.ID, headers, c.e.Payload)
				if err != nil || e.TMs != c.e.TMs {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkAppendHeaders(b *testing.B) {
	e := benchEvent()
	b.ReportAllocs()
	var headers []schema.Header
	for b.Loop() {
		headers = schema.AppendHeaders(headers[:0], e, "")
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
