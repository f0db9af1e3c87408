package cluster

import (
	"encoding/json"
	"fmt"
)

// payload is what a writer puts into an event, and what every reader must show.
type payload struct {
	Session string `json:"s"`
	Number  *int   `json:"n"`
}

// shown is an event as streams and pages show it, with the payload at either depth.
type shown struct {
	payload
	Payload *payload `json:"payload"`
}

// saw makes an entry of an event that was shown under id with data.
func (j *Journal) saw(id string, data []byte) (seen, error) {
	var e shown
	if err := json.Unmarshal(data, &e); err != nil {
		return seen{}, fmt.Errorf("event %s: %w in %.300s", id, err, data)
	}
	p := e.payload
	if e.Payload != nil {
		p = *e.Payload
	}
	s := j.find(p.Session)
	if s == nil || p.Number == nil {
		return seen{}, fmt.Errorf("event %s is none that was appended: %.300s", id, data)
	}
	at, err := placeOf(id)
	if err != nil {
		return seen{}, err
	}
	return seen{place: at, session: s, number: *p.Number, at: j.Now()}, nil
}
