package ingest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

func testDecoder() *Decoder {
	return NewDecoder(Limits{EventBytes: 64 << 10, BatchEvents: 100, JSONDepth: 64})
}

// roundTrips checks that an accepted event's record reads back as the same event.
func roundTrips(tb testing.TB, item *Item) {
	tb.Helper()
	e := item.Event
	e.Workspace = "ws"
	e.ID = schema.EventID{Position: schema.Position{Epoch: 1, Partition: 2, Offset: 3}, TimeMs: 4}
	got, err := schema.DecodeRecord(e.ID, schema.AppendHeaders([]kgo.RecordHeader(nil), &e, "1"), e.Payload)
	if err != nil {
		tb.Fatalf("accepted %+v, but its record does not read: %v", e, err)
	}
	if !reflect.DeepEqual(*got, e) {
		tb.Fatalf("record reads back as %+v, want %+v", *got, e)
	}
	if schema.IsReservedType(e.Type) || schema.CheckType(e.Type) != nil {
		tb.Fatalf("accepted the type %q", e.Type)
	}
}

func checkBatch(t *testing.T, batch *Batch, err error) {
	t.Helper()
	if err != nil {
		return
	}
	if len(batch.Items) == 0 || len(batch.Items) > 100 || batch.Single && len(batch.Items) != 1 {
		t.Fatalf("accepted %d items", len(batch.Items))
	}
	for i := range batch.Items {
		item := &batch.Items[i]
		if item.Err == nil {
			roundTrips(t, item)
			continue
		}
		if item.Err.Status < 400 || item.Err.Status > 415 || item.Err.Code == "" || item.Err.Message == "" || len(item.Err.Message) > 1000 {
			t.Fatalf("items[%d]: unclear refusal %+v", i, item.Err)
		}
	}
}

// FuzzDecode: no body breaks the decoder, what it accepts fits the log, and it reads
// the same the second time, after the pool has been through other hands.
func FuzzDecode(f *testing.F) {
	ce := `{"specversion":"1.0","id":"1","source":"/s","type":"click","subject":"a","time":"2024-01-01T00:00:00Z","ext":true,"n":5,"data":{"x":[1]}}`
	for _, body := range []string{
		event(""), event(`"payload":{"a":[1,"\u00e9\\"]},"t_ms":5,"client_time":1700000000000,"frame_id":"f","confidence":0.5,"metadata":{"a":"\u0000<b>"},"message_id":"m","session_id":"s","workflow_id":"w"`),
		event(`"client_time":"2299-12-31T23:59:59.999Z","confidence":1e-40`), event(`"confidence":-0`), event(`"confidence":0.30000001192`),
		event(`"content_type":"audio/wav","payload_base64":"AAEC"`), event(`"content_type":"a/b+json; x=y","payload":" "`),
		event(`"payload_base64":""`), event(`"content_type":"text/json","payload_base64":"e30="`),
		list(event(""), event(`"t_ms":-1`), "5"), `{"events":[]}`, `{"\u0065vents":[{"type":"a"}]}`, "{\"type\":\"a\"}\n\n{\"type\":\"b\"} \n{",
		ce, "[" + ce + "," + ce + "]", `{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"text/plain","data":"hi"}`,
		nested(70), `null`, "\xff", strings.Repeat(" ", 10),
	} {
		for format := range FormatCloudEventBatch + 1 {
			f.Add(uint8(format), body, true)
		}
		f.Add(uint8(0), body, false)
	}
	d := testDecoder()
	f.Fuzz(func(t *testing.T, format uint8, body string, oneSession bool) {
		session := ""
		if oneSession {
			session = "a"
		}
		as := Format(format % uint8(FormatCloudEventBatch+1))
		batch, err := d.Decode(as, []byte(body), session)
		checkBatch(t, batch, err)
		again, errAgain := d.Decode(as, []byte(body), session)
		if fmt.Sprint(err) != fmt.Sprint(errAgain) || err == nil && !reflect.DeepEqual(batch.Items, again.Items) { //nolint:govet // Items hold errors as data: both sides are made by the same code
			t.Fatalf("decoded again: %+v, %v; want %+v, %v", again, errAgain, batch, err)
		}
	})
}

func FuzzDecodeCloudEventHeaders(f *testing.F) {
	f.Add("1.0", "1", "/s", "click", "a", "0.5", "x%20y", "application/json", `{"a":1}`)
	f.Add("1.0", "1", "/s", "click", "", "", "%", "text/plain", "hi")
	f.Add("1.0", "1", "/s", "click", "a", "1", "\xff", "", "")
	d := testDecoder()
	f.Fuzz(func(t *testing.T, version, id, source, kind, subject, confidence, ext, contentType, body string) {
		attributes := map[string]string{"specversion": version, "id": id, "source": source, "type": kind, "ext": ext}
		for k, v := range map[string]string{"subject": subject, "confidence": confidence} {
			if v != "" {
				attributes[k] = v
			}
		}
		batch, err := d.DecodeCloudEventHeaders(attributes, contentType, []byte(body), "a")
		checkBatch(t, batch, err)
	})
}

func FuzzBodies(f *testing.F) {
	for _, s := range []string{"", "x", event("")} {
		f.Add("gzip", gzipped(f, s))
		f.Add("zstd", zstded(f, s))
	}
	f.Add("zstd", "\x28\xb5\x2f\xfd\x00\x58\x00\x00")
	cfg := DefaultConfig()
	cfg.MaxBatchBytes = 2 << 20
	b := NewBodies(cfg)
	f.Fuzz(func(t *testing.T, encoding, body string) {
		out, err := b.Decode(context.Background(), encoding, []byte(body))
		if err == nil && len(out) > cfg.MaxBatchBytes {
			t.Fatalf("%d bytes came out", len(out))
		}
		if len(b.slots) != cfg.MaxDecompressions {
			t.Fatal("a decompressor is gone")
		}
	})
}

func TestCloudEventsBecomeEvents(t *testing.T) {
	const attributes = `"specversion":"1.0","id":"m1","source":"/sensor/1","type":"t","subject":"a","time":"2024-05-06T07:08:09Z",` +
		`"workflow":"w","tms":"12","frame":"f","confidence":"0.5","dataschema":"/schema","ext":true,"num":-3,"none":null,"metadata":"{\"k\":\"v\"}"`
	headers := map[string]string{"specversion": "1.0", "id": "m1", "source": "/sensor/1", "type": "t", "subject": "a",
		"time": "2024-05-06T07:08:09Z", "workflow": "w", "tms": "12", "frame": "f", "confidence": "0.5",
		"dataschema": "/schema", "ext": "true", "num": "-3", "metadata": "%7B%22k%22:%22v%22%7D"}
	d := testDecoder()
	for _, c := range []struct {
		name        string
		decode      func() (*Batch, error)
		payload     string
		contentType string
	}{
		{"JSON data", func() (*Batch, error) {
			return d.Decode(FormatCloudEvent, []byte(`{`+attributes+`,"data":{"x": 1}}`), "")
		}, `{"x": 1}`, "application/json"},
		{"no data", func() (*Batch, error) {
			return d.Decode(FormatCloudEventBatch, []byte(`[{`+attributes+`}]`), "a")
		}, `null`, "application/json"},
		{"text data", func() (*Batch, error) {
			return d.Decode(FormatCloudEvent, []byte(`{`+attributes+`,"datacontenttype":"text/plain","data":"h\u00e9"}`), "")
		}, "hé", "text/plain"},
		{"bytes", func() (*Batch, error) {
			return d.Decode(FormatCloudEvent, []byte(`{`+attributes+`,"datacontenttype":"image/png","data_base64":"AAE="}`), "")
		}, "\x00\x01", "image/png"},
		{"JSON in bytes", func() (*Batch, error) {
			return d.Decode(FormatCloudEvent, []byte(`{`+attributes+`,"datacontenttype":"application/json","data_base64":"e30="}`), "")
		}, "{}", "application/json"},
		{"binary, JSON", func() (*Batch, error) {
			return d.DecodeCloudEventHeaders(headers, "application/json", []byte(`{"x": 1}`), "")
		}, `{"x": 1}`, "application/json"},
		{"binary, bytes", func() (*Batch, error) {
			return d.DecodeCloudEventHeaders(headers, "image/png", []byte("\x00\x01"), "a")
		}, "\x00\x01", "image/png"},
		{"binary, empty", func() (*Batch, error) {
			return d.DecodeCloudEventHeaders(headers, "", nil, "")
		}, "null", "application/json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			batch, err := c.decode()
			if err != nil || len(batch.Items) != 1 || batch.Items[0].Err != nil {
				t.Fatalf("got %+v, %v", batch, err)
			}
			item := &batch.Items[0]
			roundTrips(t, item)
			e := &item.Event
			want := map[string]string{"source": "/sensor/1", "dataschema": "/schema", "ext": "true", "num": "-3", "k": "v"}
			if e.MessageID != "m1" || e.Type != "t" || e.Session != "a" || *e.ClientTimeMs != 1714979289000 || e.Workflow != "w" ||
				e.TMs != 12 || !item.TMsGiven || e.FrameID != "f" || *e.Confidence != 0.5 || !maps.Equal(e.Metadata, want) {
				t.Errorf("event = %+v", e)
			}
			if string(e.Payload) != c.payload || e.ContentType != c.contentType {
				t.Errorf("payload %q of %q, want %q of %q", e.Payload, e.ContentType, c.payload, c.contentType)
			}
		})
	}
}

func TestPayloadBytesAreKeptAsTheyArrived(t *testing.T) {
	d := testDecoder()
	for _, payload := range []string{`{"a" :1.0,  "b":[ ]}`, `"\u0041\/"`, `1e2`, `  7 `, "{\n\"x\":1}"} {
		batch, err := d.Decode(FormatJSON, []byte(event(`"payload":`+payload)), "a")
		if err != nil || batch.Items[0].Err != nil {
			t.Fatalf("%s: %v, %+v", payload, err, batch)
		}
		if got, want := string(batch.Items[0].Event.Payload), strings.TrimSpace(payload); got != want {
			t.Errorf("payload = %s, want %s", got, want)
		}
	}
}

// TestABombIsRefusedBeforeItUnfolds: a bomb costs no more memory than what is allowed to
// come out, however large it is.
func TestABombIsRefusedBeforeItUnfolds(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxBatchBytes = 2 << 20
	b := NewBodies(cfg)
	bomb := []byte(gzipped(t, strings.Repeat("\x00", 8<<20)))
	for _, body := range [][]byte{bomb, bytes.Repeat(bomb, 16)} {
		var out []byte
		var err error
		allocated := testing.AllocsPerRun(1, func() { out, err = b.Decode(context.Background(), "gzip", body) })
		if err == nil || out != nil {
			t.Fatalf("a body of %d bytes gave %d bytes", len(body), len(out))
		}
		if allocated > 200 {
			t.Errorf("a body of %d bytes took %v allocations", len(body), allocated)
		}
	}
}
