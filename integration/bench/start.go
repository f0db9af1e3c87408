package main

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// measureStart measures how soon a server that is started is of use.
func (b *bench) measureStart(ctx context.Context) error {
	t := b.report.section("Start",
		"From the exec of playhead dev to the first 200 of /readyz, asked every 2 ms, and on to the first answer. Cold: an empty data directory, and an append. "+
			"With data: the directory of the history pages (%s rows), and a history page; stopped in order before, or killed (-9).", number(float64(b.size.rows)))
	for range b.cfg.runs {
		dir, err := b.tempDir()
		if err != nil {
			return err
		}
		s, err := newServer(b.cfg.server, dir)
		if err != nil {
			return err
		}
		if err := b.startOnce(ctx, t, s, "cold", (*server).stop, func(c *conn) error {
			return c.append("/v1/sessions/first/events", b.payload.body(nil, "first", 0, 1), 1)
		}); err != nil {
			return err
		}
	}
	s, err := b.filledServer(ctx)
	if err != nil {
		return err
	}
	page := func(c *conn) error {
		_, err := c.get("/v1/sessions/" + longSession + "/events")
		return err
	}
	for range b.cfg.runs {
		if err := b.startOnce(ctx, t, s, "with data", (*server).kill, page); err != nil {
			return err
		}
		if err := b.startOnce(ctx, t, s, "with data, killed before", (*server).stop, page); err != nil {
			return err
		}
	}
	return nil
}

// startOnce starts a server, asks it something and ends it.
func (b *bench) startOnce(ctx context.Context, t *table, s *server, name string, end func(*server) error, ask func(*conn) error) (err error) {
	begun := time.Now()
	if err := s.exec(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end(s)) }()
	if err := s.awaitReady(ctx); err != nil {
		return err
	}
	ready := time.Since(begun)
	if err := s.awaitState(ctx); err != nil {
		return err
	}
	c, err := dial(s.addr)
	if err != nil {
		return err
	}
	defer c.close()
	if err := ask(c); err != nil {
		return err
	}
	answered := time.Since(begun)
	b.logf("%s: ready after %v, answered after %v", name, ready.Round(time.Millisecond), answered.Round(time.Millisecond))
	t.add(name+", until "+http.MethodGet+" /readyz is 200", "ms", float64(ready.Microseconds())/1000)
	t.add(name+", until the first answer", "ms", float64(answered.Microseconds())/1000)
	return nil
}
