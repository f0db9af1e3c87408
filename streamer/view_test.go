package streamer

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

// goldenEvents are the events whose frames the golden file holds.
func goldenEvents() []*schema.Event {
	id := func(offset int64) schema.EventID {
		return schema.EventID{Position: schema.Position{Epoch: 1, Partition: 3, Offset: offset}, TimeMs: 1_700_000_000_000 + offset}
	}
	confidence, tiny := float32(0.87), float32(1e-7)
	clientTime := int64(1_699_999_999_000)
	return []*schema.Event{
		{ID: id(0), Workspace: "w", Session: "s", Type: "tick", ContentType: "application/json", Payload: []byte(`null`)},
		{
			ID: id(1), Workspace: "w", Session: "s", Workflow: "flow", Type: "memory.updated", MessageID: "m-1", TMs: 1234,
			ClientTimeMs: &clientTime, Confidence: &confidence, FrameID: "frame \"1\" ü",
			Metadata:    map[string]string{"b": "2", "a": "<x>\n"},
			ContentType: "application/json", Payload: []byte(`{"text":"line\nbreak","ü":[1,2.50,1e3]}`),
		},
		{ID: id(2), Session: "s", Type: "audio", TMs: 5, ContentType: "audio/wav", Payload: []byte{0, 1, 2, '\n', 0xff}},
		{ID: id(3), Session: "s", Type: "empty", ContentType: "application/octet-stream"},
		{ID: id(4), Session: "s", Type: "pretty", ContentType: "application/json", Payload: []byte("{\r\n  \"a\": [\n\t1,\r\t2\n  ]\r\n}\n")},
		{ID: id(5), Session: "s", Type: "vendor", ContentType: "application/problem+json; charset=utf-8", Confidence: &tiny, Payload: []byte(`"x"`)},
	}
}

func TestSessionFramesAreGolden(t *testing.T) {
	var got []byte
	for _, e := range goldenEvents() {
		got = appendSessionFrame(got, e)
	}
	path := filepath.Join("testdata", "session_frames.txt")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.MkdirAll("testdata", 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("frames are not those of %s:\n%s", path, got)
	}
}

// A frame's own memory: appending to a slice with room must not write into an event.
func TestFrameDoesNotAliasThePayload(t *testing.T) {
	e := goldenEvents()[4]
	before := string(e.Payload)
	_ = sessionView().frame(e)
	if string(e.Payload) != before {
		t.Error("encoding changed the payload")
	}
}
