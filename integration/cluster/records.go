package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// eventsTopic and the headers below are Playhead's contract with other consumers of the
// log (docs/api.md, "Kafka records"), written out here so that the Audit depends on no
// code of Playhead's.
const (
	eventsTopic   = "playhead.events"
	headerType    = "ce_type"
	headerSubject = "ce_subject"
	headerID      = "ce_id"

	typeDuplicate = "playhead.duplicate"
)

// record is one record of the log.
type record struct {
	place
	session   string
	kind      string // event type
	messageID string // "" if the producer gave none
	number    int    // of the payload; -1 if it is none of a writer's
	repeats   bool   // an earlier record has the same session and message id
}

// records is all of the log.
type records struct {
	at       map[place]*record
	sessions map[string][]*record // the events that readers show, in the log's order
	ends     map[int32]int64
	twins    int // repeats
}

// readLog reads the whole log.
func (c *Cluster) readLog(ctx context.Context) (*records, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.kafka()...), kgo.DisableClientMetrics(),
		kgo.ConsumeTopics(eventsTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, eventsTopic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	all := &records{at: make(map[place]*record), sessions: make(map[string][]*record), ends: make(map[int32]int64)}
	left := 0
	ends.Each(func(o kadm.ListedOffset) {
		all.ends[o.Partition] = o.Offset
		if o.Offset > 0 {
			left++
		}
	})
	known := make(map[string]bool)
	for left > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return nil, fmt.Errorf("read the log: %w", err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset < all.ends[r.Partition] {
				all.add(r, known)
			}
			if r.Offset == all.ends[r.Partition]-1 {
				left--
			}
		})
	}
	return all, nil
}

// add takes the next record of its partition. known are the messages so far.
func (a *records) add(r *kgo.Record, known map[string]bool) {
	rec := &record{place: place{uint16(r.Partition), r.Offset}, number: -1}
	for _, h := range r.Headers {
		switch h.Key {
		case headerType:
			rec.kind = string(h.Value)
		case headerSubject:
			rec.session = string(h.Value)
		case headerID:
			if !strings.HasPrefix(string(h.Value), "~") { // an id of ingest's own
				rec.messageID = string(h.Value)
			}
		}
	}
	a.at[rec.place] = rec
	if strings.HasPrefix(rec.kind, "playhead.") {
		return
	}
	var p payload
	if err := json.Unmarshal(r.Value, &p); err == nil && p.Number != nil {
		rec.number = *p.Number
	}
	if rec.messageID != "" {
		key := rec.session + "/" + rec.messageID
		rec.repeats = known[key]
		known[key] = true
	}
	if rec.repeats {
		a.twins++
		return
	}
	a.sessions[rec.session] = append(a.sessions[rec.session], rec)
}

// rowIs reports whether a row of the history with that type, session and message id is
// the record's. A repeat's row says whose it repeats elsewhere, and has no message id.
func (r *record) rowIs(kind, session, message string) bool {
	if r.repeats {
		return kind == typeDuplicate && session == r.session && message == ""
	}
	return kind == r.kind && session == r.session && message == r.messageID
}
