package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// longSession has a tenth of the rows.
const longSession = "long"

func shortSession(i int) string { return fmt.Sprintf("short%d", i) }

// filling is how long it took to make the table.
type filling struct {
	appended     time.Duration // all events acknowledged
	materialised time.Duration // and in the table
}

// filledServer returns a server, not running, whose table holds the rows to measure
// with. It is made by appends over HTTP, once for all sections.
func (b *bench) filledServer(ctx context.Context) (s *server, err error) {
	if b.filled != nil {
		return b.filled, nil
	}
	if s, err = b.freshServer(ctx); err != nil {
		return nil, err
	}
	defer s.stopInto(&err)
	k, err := openBroker(s)
	if err != nil {
		return nil, err
	}
	defer k.close()
	begun := time.Now()
	if err := b.fillTable(ctx, s); err != nil {
		return nil, err
	}
	b.filling.appended = time.Since(begun)
	if err := k.awaitMaterialised(ctx, 10*time.Minute); err != nil {
		return nil, err
	}
	b.filling.materialised = time.Since(begun)
	b.logf("%s events appended in %v, materialised after %v", number(float64(b.size.rows)),
		b.filling.appended.Round(time.Second), b.filling.materialised.Round(time.Second))
	if err := s.settle(ctx, k); err != nil {
		return nil, err
	}
	b.filled = s
	return s, nil
}

// fillTable appends the rows: the sessions' batches alternate, as they would if the
// sessions were under way at the same time.
func (b *bench) fillTable(ctx context.Context, s *server) error {
	const conns = 8
	long := b.size.rows / longPart
	short := (b.size.rows - long) / shortSessions
	chunk := min(500, short)
	rounds := (short + chunk - 1) / chunk
	var group errgroup.Group
	for w := range conns {
		group.Go(func() error {
			c, err := dial(s.addr)
			if err != nil {
				return err
			}
			defer c.close()
			var body []byte
			post := func(session, ids string, from, to int) error {
				if from >= to || ctx.Err() != nil {
					return context.Cause(ctx)
				}
				body = b.payload.body(body[:0], ids, from, to-from)
				return c.append("/v1/sessions/"+session+"/events", body, to-from)
			}
			for round := range rounds {
				for i := w; i < shortSessions; i += conns {
					name := shortSession(i)
					if err := post(name, name, round*chunk, min((round+1)*chunk, short)); err != nil {
						return err
					}
				}
				// This connection's share of the long session in this round.
				share := long / conns
				from, to := share*round/rounds, share*(round+1)/rounds
				for ; from < to; from += chunk {
					if err := post(longSession, fmt.Sprintf("long%d", w), from, min(from+chunk, to)); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return group.Wait()
}
