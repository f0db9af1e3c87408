package main

import (
	"context"
	"fmt"
	"time"
)

// measureFanout measures live delivery of one session to many listeners.
func (b *bench) measureFanout(ctx context.Context) (err error) {
	z := b.size
	t := b.report.section("Fan-out",
		"%d SSE listeners of one session, payload %d B. Paced: one event an append, %d a second for %v; a delivery's time runs from before the append "+
			"is sent to the moment the listener has read the event. Flat out: appends of %d events as fast as the listeners get them, for %v.",
		z.subscribers, shortPayload, z.eventRate, z.pacedFor, batchEvents, z.floodFor)
	s, err := b.freshServer(ctx)
	if err != nil {
		return err
	}
	defer s.stopInto(&err)
	for run := range b.cfg.runs {
		b.logf("run %d", run+1)
		silent, err := b.pacedDelivery(ctx, s, fmt.Sprintf("silent%d", run), 0)
		if err != nil {
			return err
		}
		paced, err := b.pacedDelivery(ctx, s, fmt.Sprintf("paced%d", run), z.subscribers)
		if err != nil {
			return err
		}
		t.addLatencies("paced, append's ack", paced.acks)
		p99 := t.addLatencies("paced, delivery", paced.delays)
		p99.goal("below 4.2 ms (Nchan)")
		perDelivery := func(d time.Duration) float64 {
			return float64(d.Microseconds()) / float64(paced.deliveries)
		}
		t.add("paced, server CPU a delivery, appends and all", "µs", perDelivery(paced.used.server)).goal("below 7.6 µs (Nchan)")
		t.add("paced, server CPU a delivery, less the same appends without listeners", "µs", perDelivery(paced.used.server-silent.used.server))
		t.add("paced, appends without listeners, server CPU an append", "µs", float64(silent.used.server.Microseconds())/float64(silent.appends))

		rate, used, err := b.flatOutDelivery(ctx, s, fmt.Sprintf("flood%d", run), z.subscribers)
		if err != nil {
			return err
		}
		t.add("flat out", "deliveries/s", rate).goal("above 150,000")
		t.add("flat out, server CPU a delivery", "µs", used)
		b.logf("paced p99 %s ms, flat out %s deliveries/s", number(p99.Values[run]), number(rate))
	}
	return nil
}

// delivery is what paced delivery came to.
type delivery struct {
	delays     latencies // from before the append to the listener
	acks       latencies // of the appends
	appends    int
	deliveries int
	used       usage
}

// pacedDelivery appends single events at the rate to measure at to a new session with
// that many listeners.
func (b *bench) pacedDelivery(ctx context.Context, s *server, session string, listeners int) (d delivery, err error) {
	c, err := dial(s.addr)
	if err != nil {
		return d, err
	}
	defer c.close()
	if err := c.createSession(session); err != nil {
		return d, err
	}
	a, err := gather(s.addr, session, listeners, true)
	if err != nil {
		return d, err
	}
	defer a.hangUp()
	if err := pause(ctx, time.Second); err != nil { // what opening them left to do
		return d, err
	}
	before, err := s.usage()
	if err != nil {
		return d, err
	}
	d.acks, err = tick(ctx, c, session, b.size.eventRate, b.size.pacedFor)
	d.appends = len(d.acks)
	d.deliveries = d.appends * listeners
	if err == nil {
		err = a.await(ctx, int64(d.deliveries))
	}
	if err != nil {
		return d, err
	}
	after, err := s.usage()
	if err != nil {
		return d, err
	}
	d.used = after.since(before)
	d.delays, err = a.leave()
	return d, err
}

// tick appends single stamped events at a rate, for a time, and returns how long each
// took. An append is sent once the one before is acknowledged: if the server is slower
// than the rate, there are fewer.
func tick(ctx context.Context, c *conn, session string, rate int, d time.Duration) (acks latencies, err error) {
	events := newStamped(shortPayload)
	path := "/v1/sessions/" + session + "/events"
	var body []byte
	begun := time.Now()
	for i := range int(d.Seconds() * float64(rate)) {
		due := begun.Add(time.Duration(i) * time.Second / time.Duration(rate))
		if err := pause(ctx, time.Until(due)); err != nil {
			return nil, err
		}
		if time.Since(begun) > d {
			break
		}
		sent := time.Now()
		body = events.body(body[:0], 1)
		if err := c.append(path, body, 1); err != nil {
			return nil, err
		}
		acks = append(acks, time.Since(sent))
	}
	return acks, nil
}

// flatOutDelivery appends to a new session as fast as its listeners receive, and returns
// the deliveries a second and the server's processor time for one, in microseconds.
func (b *bench) flatOutDelivery(ctx context.Context, s *server, session string, listeners int) (rate, cpuMicros float64, err error) {
	// Appends stay this far ahead of the average listener: enough to keep it busy, and
	// little enough that nobody falls off the tape.
	const ahead = 2000
	c, err := dial(s.addr)
	if err != nil {
		return 0, 0, err
	}
	defer c.close()
	if err := c.createSession(session); err != nil {
		return 0, 0, err
	}
	a, err := gather(s.addr, session, listeners, false)
	if err != nil {
		return 0, 0, err
	}
	defer a.hangUp()
	counted, err := s.metrics()
	if err != nil {
		return 0, 0, err
	}
	before, err := s.usage()
	if err != nil {
		return 0, 0, err
	}
	events, path := newStamped(shortPayload), "/v1/sessions/"+session+"/events"
	var body []byte
	begun, appended := time.Now(), 0
	for time.Since(begun) < b.size.floodFor {
		if appended-int(a.received.Load())/listeners > ahead {
			if err := pause(ctx, 200*time.Microsecond); err != nil {
				return 0, 0, err
			}
			continue
		}
		body = events.body(body[:0], batchEvents)
		if err := c.append(path, body, batchEvents); err != nil {
			return 0, 0, err
		}
		appended += batchEvents
	}
	deliveries := appended * listeners
	if err := a.await(ctx, int64(deliveries)); err != nil {
		return 0, 0, err
	}
	took := time.Since(begun)
	after, err := s.usage()
	if err != nil {
		return 0, 0, err
	}
	if _, err := a.leave(); err != nil {
		return 0, 0, err
	}
	now, err := s.metrics()
	if err != nil {
		return 0, 0, err
	}
	if sent := now.since(counted, "playhead_stream_events_total"); int(sent) != deliveries {
		return 0, 0, fmt.Errorf("the server counts %.0f deliveries, the listeners %d", sent, deliveries)
	}
	return float64(deliveries) / took.Seconds(), float64(after.since(before).server.Microseconds()) / float64(deliveries), nil
}
