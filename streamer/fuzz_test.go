package streamer

import (
	"errors"
	"net/url"
	"testing"

	"github.com/playhead-dev/playhead/internal/httpapi"
)

// Whatever a query says, opening a stream either understands it or names what is wrong.
func FuzzStreamQuery(f *testing.F) {
	for _, q := range []string{
		"", "from=start", "from=end", "speed=2.5", "speed=NaN", "speed=1e3", "heartbeat=30", "heartbeat=-1", "envelope=1",
		"close=end&notices=1&on_slow=replay", "last_event_id=heartbeat_evt_01003G00000096E0D0RH86R000~A7AJBQAEqYwG",
		"type=1&type=memory.*,click&filters[k]=v&confidence_gte=0.5", "since=2026-11-22T12:00:00Z&until=1", "from_t_ms=5&to_t_ms=4",
		"last_event_id=evt_01003G00000096E0D0RH86R000.9f3ac1d2", "speed=&from=", "type=%00", "filters[]=x", "frame_id=%0a",
	} {
		for i := range views() {
			f.Add(q, uint8(i), "")
		}
	}
	f.Add("", uint8(0), "error_evt_01003G00000096E0D0RH86R000")
	all := views()
	hub := &Hub{cfg: DefaultConfig()}
	f.Fuzz(func(t *testing.T, query string, view uint8, lastEventID string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		v := all[int(view)%len(all)]
		wrong := func(err error) {
			e, ok := errors.AsType[*httpapi.Error](err)
			if !ok || e.Status != 400 || e.Code == "" || e.Param == "" && e.Code != httpapi.CodeUnknownParameter || e.Message == "" {
				t.Errorf("%q: %v is no answer that names a parameter", query, err)
			}
		}
		if err := httpapi.CheckParams(q, v.takesParam); err != nil {
			wrong(err)
			return
		}
		req := Request{Scope: v.scope("w", "s"), View: v}
		if err := hub.parseOptions(&req, q); err != nil {
			wrong(err)
		} else if req.Heartbeat <= 0 || req.Heartbeat > maxHeartbeat || req.Speed != 0 && (req.Speed < minSpeed || req.Speed > maxSpeed) {
			t.Errorf("%q: heartbeat %v, speed %v", query, req.Heartbeat, req.Speed)
		}
		b, err := parseBegin(q, lastEventID)
		if err != nil {
			wrong(err)
		} else if !b.cursor.IsZero() && b.cursor.String() == "" {
			t.Errorf("%q: a cursor without a text", query)
		}
	})
}
