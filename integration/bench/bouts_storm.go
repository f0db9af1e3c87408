package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

func (z peerSize) stormShape() string {
	return fmt.Sprintf("%s streams of one channel are cut, %d events of %d B are published to it, and all clients come back at once from where they were, a goroutine each; a refusal (429, 503) is obeyed: "+
		"the client waits for as long as it says, and for %v if its connection breaks. Then one more event: the time ends when all have everything, that one included. Meanwhile %d listeners of another channel get "+
		"%d events a second; theirs before are of %v.", number(float64(z.stormStreams)), z.missedEvents, shortPayload, afterBreak, stormListeners, z.rate, z.liveFor)
}

// stormListeners stay, and see what the storm does to them.
const stormListeners = 100

func (b *bench) matchStorm(ctx context.Context, m *match) (err error) {
	z := m.size
	live, err := newFeed(m, "live", shortPayload)
	if err != nil {
		return err
	}
	defer live.close()
	audience, err := m.gather("live", stormListeners, true)
	if err != nil {
		return err
	}
	defer m.dismiss(audience, &err)
	storm, err := m.newStorm(ctx)
	if err != nil {
		return err
	}
	defer storm.close(&err)

	pacing, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	group.Go(func() error {
		_, err := live.pace(pacing, z.rate, boutTimeout)
		if pacing.Err() != nil {
			return nil // that was the end of it
		}
		return err
	})
	begun := time.Now()
	err = pause(ctx, z.liveFor)
	calm := time.Now()
	var came comeback
	if err == nil {
		came, err = storm.strike(ctx)
	}
	if err == nil {
		err = pause(ctx, 200*time.Millisecond) // for the last events sent in the storm
	}
	stop()
	if err := errors.Join(err, group.Wait()); err != nil {
		return err
	}
	m.add("all are back and have what they missed", "ms", float64(came.took.Microseconds())/1000)
	m.add("the last is connected", "ms", float64(came.connected.Microseconds())/1000)
	m.add("refusals", "", float64(came.refused))
	m.add("connections that broke", "", float64(came.broken))
	m.addLatencies("live listeners before", audience.arrived(begun, calm))
	m.addLatencies("live listeners in the storm", audience.arrived(came.begun, came.begun.Add(max(came.took, 100*time.Millisecond)))).goal("unmoved")
	m.add("server CPU of the storm", "ms", float64(came.used.target.Milliseconds()))
	m.add("load generator's CPU of the storm", "ms", float64(came.used.own.Milliseconds()))
	b.logf("%s: back after %v, %d refusals", m.name, came.took.Round(time.Millisecond), came.refused)
	return nil
}

// storm are the streams that are cut, and their channel.
type storm struct {
	*match
	feed  *feed
	crowd *crowd
}

// newStorm opens the streams and has each receive an event, so that it has a position.
func (m *match) newStorm(ctx context.Context) (s *storm, err error) {
	s = &storm{match: m}
	if s.feed, err = newFeed(m, "storm", shortPayload); err != nil {
		return nil, err
	}
	s.crowd, err = m.gather("storm", m.size.stormStreams, false)
	if err != nil {
		s.feed.close()
		return nil, err
	}
	if _, err = s.feed.send(ctx, 1); err == nil {
		err = m.reached(ctx, s.crowd, s.feed, m.size.stormStreams)
	}
	if err == nil {
		// A position may follow its event in a frame of its own.
		err = pause(ctx, 100*time.Millisecond)
	}
	if err != nil {
		s.close(&err)
		return nil, err
	}
	return s, nil
}

func (s *storm) close(err *error) {
	s.feed.close()
	s.dismiss(s.crowd, err)
}

// comeback is how a storm went.
type comeback struct {
	begun     time.Time
	connected time.Duration // until the last client was let in
	took      time.Duration // until all had everything
	refused   int64
	broken    int64
	used      costs
}

// strike cuts all streams, publishes, and has the clients come back at once.
func (s *storm) strike(ctx context.Context) (c comeback, err error) {
	away := s.crowd.cut()
	if err := s.feed.fill(ctx, s.size.missedEvents); err != nil {
		return c, err
	}
	if err := pause(ctx, 500*time.Millisecond); err != nil { // the server has noticed, and rests
		return c, err
	}
	used, err := s.costs()
	if err != nil {
		return c, err
	}
	c.begun = time.Now()
	var refused, broken atomic.Int64
	var failed atomic.Int64
	var group errgroup.Group
	for _, l := range away {
		group.Go(func() error {
			st, n, err := insist(ctx, s, "storm", l.position)
			refused.Add(int64(n.refused))
			broken.Add(int64(n.broken))
			if err == nil {
				err = s.crowd.joinBehind(st, l.last)
			}
			if err != nil {
				failed.Add(1)
			}
			return err
		})
	}
	err = group.Wait()
	c.connected, c.refused, c.broken = time.Since(c.begun), refused.Load(), broken.Load()
	if err != nil {
		return c, fmt.Errorf("%d of %d came back: %w", len(away)-int(failed.Load()), len(away), err)
	}
	if err := s.reached(ctx, s.crowd, s.feed, len(away)); err != nil {
		return c, err
	}
	if _, err := s.feed.send(ctx, 1); err != nil {
		return c, err
	}
	if err := s.reached(ctx, s.crowd, s.feed, len(away)); err != nil {
		return c, err
	}
	c.took = time.Since(c.begun)
	after, err := s.costs()
	c.used = after.since(used)
	return c, err
}
