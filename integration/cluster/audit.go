package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Finding is one thing that the Audit found wrong.
type Finding struct {
	Where string `json:"where"` // log, history, pages, or the name of a listener
	What  string `json:"what"`
}

// maxFindings bounds the findings that are kept; the figures count all.
const maxFindings = 50

// Verdict is what became of a load.
type Verdict struct {
	Acknowledged int `json:"acknowledged"` // events
	Unknown      int `json:"unknown"`      // events that were sent and never acknowledged
	Records      int `json:"records"`      // of the log, repeats and sessions' beginnings and ends included
	Repeats      int `json:"repeats"`      // records that repeat an earlier message, which no reader shows
	Rows         int `json:"rows"`         // of the history
	Shown        int `json:"shown"`        // events that listeners and pages have shown
	Connections  int `json:"connections"`  // of listeners
	ToldDropped  int `json:"told_dropped"` // events that a listener was told it has lost

	Lost      int `json:"lost"`      // acknowledged, or in the log, and not there
	Doubled   int `json:"doubled"`   // there more than once
	Reordered int `json:"reordered"` // there in another order than the log's, or the writer's
	Wrong     int `json:"wrong"`     // answers that nothing excuses
	Alarms    int `json:"alarms"`    // lines of logs that should not be there

	LongestOutage float64 `json:"longest_outage_seconds"` // from an acknowledgement until a listener had the event
	LongestAppend float64 `json:"longest_append_seconds"` // from the first try until the acknowledgement
	OutageOf      string  `json:"outage_of"`              // whose longest outage, and when

	Requests   int `json:"requests"`
	Refused    int `json:"refused"`    // 429 and 503
	Unanswered int `json:"unanswered"` // cut, or out of patience

	Findings []Finding `json:"findings,omitempty"`
}

// OK reports whether every promise was kept.
func (v *Verdict) OK() bool {
	return v.Lost+v.Doubled+v.Reordered+v.Wrong+v.Alarms == 0 && len(v.Findings) == 0
}

func (v *Verdict) String() string {
	return fmt.Sprintf("acknowledged %d, lost %d, doubled %d, reordered %d, wrong answers %d, alarms %d; log %d records (%d repeats, %d of unknown outcome), "+
		"history %d rows, shown %d over %d connections; longest outage of a listener %.1f s, of an append %.1f s; %d requests, %d refused, %d unanswered",
		v.Acknowledged, v.Lost, v.Doubled, v.Reordered, v.Wrong, v.Alarms, v.Records, v.Repeats, v.Unknown,
		v.Rows, v.Shown, v.Connections, v.LongestOutage, v.LongestAppend, v.Requests, v.Refused, v.Unanswered)
}

func (v *Verdict) find(where, format string, args ...any) {
	if len(v.Findings) < maxFindings {
		v.Findings = append(v.Findings, Finding{where, fmt.Sprintf(format, args...)})
	}
}

// materialisedWithin is how long the history may take, with nothing broken any more, to
// hold all of the log.
const materialisedWithin = 90 * time.Second

// Audit compares what the load's clients were told with what Kafka and ClickHouse hold,
// and those with each other. Call it when the load has finished and nothing is broken any
// more. An error says that it could not look.
func (c *Cluster) Audit(ctx context.Context, l *Load) (*Verdict, error) {
	v := &Verdict{}
	log, err := c.readLog(ctx)
	if err != nil {
		return v, err
	}
	v.Records, v.Repeats = len(log.at), log.twins
	v.auditLog(l.Journal, log)
	v.auditHearings(l.Journal, log)
	if err := c.auditHistory(ctx, v, log); err != nil {
		return v, err
	}
	c.auditPages(ctx, v, log)
	v.auditAnswers(l.Journal, log)
	for name, out := range c.Outputs() {
		for _, line := range out.Alarms() {
			v.Alarms++
			v.find("log of "+name, "%s", line)
		}
	}
	return v, nil
}

// auditLog compares the writers' acknowledgements with the log.
func (v *Verdict) auditLog(j *Journal, log *records) {
	for _, s := range j.all() {
		s.mu.Lock()
		acks := slices.Clone(s.acks)
		s.mu.Unlock()
		first := make(map[int]*record) // by number
		last := -1
		for _, r := range log.sessions[s.name] {
			switch {
			case r.number < 0 || r.number >= len(acks):
				v.find("log", "%s holds event %d at %v, which nobody has sent", s.name, r.number, r.place)
				continue
			case first[r.number] != nil:
				v.Doubled++
				v.find("log", "%s.%d lies at %v and again at %v", s.name, r.number, first[r.number].place, r.place)
				continue
			}
			first[r.number] = r
			if s.named && r.number < last {
				v.Reordered++
				v.find("log", "%s.%d at %v lies behind %s.%d", s.name, r.number, r.place, s.name, last)
			}
			last = max(last, r.number)
		}
		for n, a := range acks {
			if a.at == 0 {
				v.Unknown++
				continue
			}
			v.Acknowledged++
			v.LongestAppend = max(v.LongestAppend, (a.at - a.tried).Seconds())
			there := log.at[a.place]
			switch {
			case first[n] == nil:
				v.Lost++
				v.find("log", "%s.%d was acknowledged as %s and is not in the log", s.name, n, a.id)
			case there == nil || there.session != s.name || there.number != n:
				v.Lost++
				v.find("log", "%s.%d was acknowledged as %s, where %+v lies; it is at %v", s.name, n, a.id, there, first[n].place)
			case !s.named && there.place != first[n].place:
				v.Doubled++
				v.find("log", "%s.%d was acknowledged at %v and lies at %v as well", s.name, n, a.place, first[n].place)
			}
		}
	}
}

// auditHearings compares what listeners got with the log: per session everything from the
// beginning on, once, in its order.
func (v *Verdict) auditHearings(j *Journal, log *records) {
	j.mu.Lock()
	hearings := slices.Clone(j.hearings)
	j.mu.Unlock()
	for _, h := range hearings {
		h.mu.Lock()
		got := make(map[string][]place)
		for _, s := range h.seen {
			got[s.session.name] = append(got[s.session.name], s.place)
			a := s.session.at(s.number)
			if late := (s.at - max(a.at, h.began)).Seconds(); a.at > 0 && late > v.LongestOutage { // what came before it listened is no outage
				v.LongestOutage = late
				v.OutageOf = fmt.Sprintf("%s, of %s.%d, acknowledged at %.2f s", h.name, s.session.name, s.number, a.at.Seconds())
			}
		}
		told := h.dropped
		v.Shown += len(h.seen)
		v.Connections += h.opened
		v.ToldDropped += h.dropped
		h.mu.Unlock()
		for name, events := range log.sessions {
			if h.session != nil && h.session.name != name || j.find(name) == nil {
				continue
			}
			d := compare(got[name], h.wants(events))
			excused := min(told, d.lost)
			told -= excused
			d.lost -= excused
			v.add(h.name, name, d)
		}
	}
}

func (v *Verdict) add(where, session string, d difference) {
	v.Lost += d.lost
	v.Doubled += d.doubled
	v.Reordered += d.reordered
	if d != (difference{}) {
		v.find(where, "%s: %d lost, %d doubled, %d reordered, %d foreign; the first at %v", session, d.lost, d.doubled, d.reordered, d.foreign, d.first)
	}
}

// difference is how a reader's sequence departs from what it should be.
type difference struct {
	lost, doubled, reordered, foreign int

	first place // that is not as it should be
}

// compare compares two sequences of one partition. want ascends.
func compare(got, want []place) (d difference) {
	note := func(p place, count *int) {
		*count++
		if d.first == (place{}) {
			d.first = p
		}
	}
	wanted := make(map[place]bool, len(want))
	for _, p := range want {
		wanted[p] = true
	}
	have := make(map[place]bool, len(got))
	last := int64(-1)
	for _, p := range got {
		switch {
		case !wanted[p]:
			note(p, &d.foreign)
			continue
		case have[p]:
			note(p, &d.doubled)
			continue
		case p.offset < last:
			note(p, &d.reordered)
		}
		have[p] = true
		last = max(last, p.offset)
	}
	for _, p := range want {
		if !have[p] {
			note(p, &d.lost)
		}
	}
	return d
}

// auditHistory compares ClickHouse with the log: a row a record, once.
func (c *Cluster) auditHistory(ctx context.Context, v *Verdict, log *records) error {
	conn, err := c.openStore()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is in flight
	err = await(ctx, materialisedWithin, "the history holds all of the log", func(ctx context.Context) error {
		var rows uint64
		if err := conn.QueryRow(ctx, "SELECT count() FROM events").Scan(&rows); err != nil {
			return err
		}
		if int(rows) < len(log.at) {
			return fmt.Errorf("%d rows of %d records", rows, len(log.at))
		}
		return nil
	})
	if err != nil {
		v.find("history", "%v", err)
	}
	rows, err := conn.Query(ctx, "SELECT kafka_partition, kafka_offset, type, session_id, message_id, log_epoch FROM events")
	if err != nil {
		return fmt.Errorf("read the history: %w", err)
	}
	defer rows.Close()
	found := make(map[place]int)
	for rows.Next() {
		var p uint16
		var o uint64
		var kind, session, message string
		var epoch uint8
		if err := rows.Scan(&p, &o, &kind, &session, &message, &epoch); err != nil {
			return fmt.Errorf("read the history: %w", err)
		}
		v.Rows++
		at := place{p, int64(o)}
		found[at]++
		r := log.at[at]
		switch {
		case r == nil || epoch != 1:
			v.find("history", "a row at %v, epoch %d, where the log has no record", at, epoch)
		case found[at] > 1:
			v.Doubled++
			v.find("history", "%d rows of the record at %v", found[at], at)
		case !r.rowIs(kind, session, message):
			v.find("history", "the row at %v is %s %s %s; the record is %+v", at, kind, session, message, *r)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the history: %w", err)
	}
	for at := range log.at {
		if found[at] == 0 {
			v.Lost++
			v.find("history", "no row of the record at %v", at)
		}
	}
	return nil
}

// maxPaged bounds the sessions whose pages are turned at the end.
const maxPaged = 100

// auditPages turns the pages of the last sessions, now that nothing is broken.
func (c *Cluster) auditPages(ctx context.Context, v *Verdict, log *records) {
	cl := newClient(c, 10*time.Second)
	names := make([]string, 0, len(log.sessions))
	for name := range log.sessions {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names[max(0, len(names)-maxPaged):] {
		var want []place
		for _, e := range log.sessions[name] {
			want = append(want, e.place)
		}
		got, err := cl.allPages(ctx, name)
		if err != nil {
			v.find("pages", "%v", err)
			continue
		}
		v.add("pages", name, compare(got, want))
	}
}

// auditAnswers takes over what was wrong at once, and judges what could not be judged
// then.
func (v *Verdict) auditAnswers(j *Journal, log *records) {
	j.mu.Lock()
	defer j.mu.Unlock()
	v.Requests, v.Refused, v.Unanswered = j.requests, j.refused, j.unanswered
	v.Wrong += j.wrong
	for _, text := range j.complaints {
		v.find("answers", "%s", text)
	}
	for _, s := range j.suspicions {
		if r := log.at[s.behind]; r == nil || !r.repeats {
			v.Wrong++
			v.find("answers", "%s", s.complaint)
		}
	}
	for _, n := range j.notFound {
		a := n.session.at(n.number)
		if r := log.at[a.place]; r == nil || !r.repeats {
			v.Wrong++
			v.find("answers", "GET /v1/events/%s: 404, and it is %s.%d", a.id, n.session.name, n.number)
		}
	}
}

// Add sums two verdicts; the findings stay with their own.
func (v *Verdict) Add(o *Verdict) {
	v.Acknowledged += o.Acknowledged
	v.Unknown += o.Unknown
	v.Records += o.Records
	v.Repeats += o.Repeats
	v.Rows += o.Rows
	v.Shown += o.Shown
	v.Connections += o.Connections
	v.ToldDropped += o.ToldDropped
	v.Lost += o.Lost
	v.Doubled += o.Doubled
	v.Reordered += o.Reordered
	v.Wrong += o.Wrong
	v.Alarms += o.Alarms
	v.Requests += o.Requests
	v.Refused += o.Refused
	v.Unanswered += o.Unanswered
	v.LongestOutage = max(v.LongestOutage, o.LongestOutage)
	v.LongestAppend = max(v.LongestAppend, o.LongestAppend)
}
