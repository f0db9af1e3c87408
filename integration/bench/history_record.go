package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// recording is what a server asked its ClickHouse for requests of one kind.
type recording struct {
	pages [][]asked // the statements of each request
	why   string    // there is none
}

// recordHistory starts the server with a recorder before its engine, asks every kind of
// question, and returns the statements by table and kind.
func (b *bench) recordHistory(ctx context.Context, d *historyData, all []questions) (recorded [][]recording, exports []recording, err error) {
	b.logf("recording statements")
	dir := b.cfg.history.data
	p, err := b.historyEngine(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	rec, err := startRecorder(ctx, p.DSN())
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, rec.stop()) }()
	s, err := newServer(b.cfg.server, dir, "--clickhouse-dsn", rec.dsn)
	if err != nil {
		return nil, nil, err
	}
	if err := s.exec(); err != nil {
		return nil, nil, err
	}
	defer s.stopInto(&err)
	if err := s.awaitReady(ctx); err != nil {
		return nil, nil, err
	}
	c, err := dial(s.addr)
	if err != nil {
		return nil, nil, err
	}
	defer c.close()
	// The key is valid from the end of the start on, and the first question opens the tapes.
	if err := s.await(ctx, "a page is answered", func() (bool, error) {
		status, _, err := c.do(http.MethodGet, workspacePage(), nil)
		return status == http.StatusOK || err != nil, err
	}); err != nil {
		return nil, nil, err
	}
	for i, q := range all {
		var kinds []recording
		for j, kind := range q.kinds {
			r, err := b.recordKind(ctx, c, rec, &kind, historyRandom(i, j, 1))
			if err != nil {
				return nil, nil, err
			}
			b.logf("recorded: %s, %d requests %s", kind.name, len(r.pages), r.why)
			kinds = append(kinds, r)
		}
		recorded = append(recorded, kinds)
	}
	exports, err = b.recordExports(ctx, s, rec, d)
	return recorded, exports, err
}

// historyRandom is the source of one kind's targets: the same in every run, others in
// each of its uses.
func historyRandom(table, kind, use int) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(table)<<8+uint64(kind), uint64(use)))
}

// recordKind asks questions of one kind and keeps the statements, those of as many as are
// asked straight later.
func (b *bench) recordKind(ctx context.Context, c *conn, rec *recorder, kind *question, random *rand.Rand) (recording, error) {
	var r recording
	refused := ""
	begun := time.Now()
	for i := range historyWarmUp + 2*b.cfg.history.asks {
		if i > historyWarmUp && time.Since(begun) > historyPatience {
			break
		}
		rec.take()
		status, body, err := c.do(http.MethodGet, kind.ask(random), nil)
		if err != nil {
			return r, err
		}
		seen := rec.take()
		switch {
		case status == http.StatusNotFound || status == http.StatusBadRequest:
			r.why = fmt.Sprintf("not asked: the server answers %d %s", status, errorCode(body))
			return r, nil
		case status != http.StatusOK:
			refused = fmt.Sprintf("%d %s", status, errorCode(body))
		case i >= historyWarmUp:
			r.pages = append(r.pages, seen)
		}
		if err := ctx.Err(); err != nil {
			return r, err
		}
	}
	if len(r.pages) == 0 {
		r.why = "not asked: the server answers " + refused
	}
	return r, nil
}

// errorCode is the code of an error's body.
func errorCode(body []byte) string {
	var e struct {
		Error struct {
			Code string `json:"code"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &e) != nil || e.Error.Code == "" {
		return strings.TrimSpace(string(body[:min(len(body), 100)]))
	}
	return e.Error.Code
}
