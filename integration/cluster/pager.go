package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"
)

// page is one page of a history.
type page struct {
	Data []struct {
		EventID         string          `json:"eventId"`
		Type            string          `json:"eventTypeName"`
		ClientMessageID string          `json:"clientMessageId"`
		Payload         json.RawMessage `json:"payload"`
	} `json:"data"`
	Pagination struct {
		NextCursor string `json:"nextCursor"`
		HasMore    bool   `json:"hasMore"`
	} `json:"pagination"`
}

// get asks until there is an answer; ok is false if ctx ended first, or if the answer is
// one that nothing excuses.
func (l *Load) get(ctx context.Context, path string, into any) (ok bool) {
	for ctx.Err() == nil {
		a, err := l.client.do(ctx, RoleQuery, http.MethodGet, path, "", "")
		if ctx.Err() != nil {
			return false
		}
		l.Journal.tally(a, err)
		switch out, why := judge(a, err); out {
		case outcomeDone:
			if err := json.Unmarshal(a.body, into); err != nil {
				l.Journal.complain("GET %s: %v in %.300s", path, err, a.body)
				return false
			}
			return true
		case outcomeWrong:
			l.Journal.complain("GET %s: %s", path, why)
			return false
		}
		pause(ctx, max(min(a.retryAfter, maxRetryAfter), 100*time.Millisecond))
	}
	return false
}

// turn gets one page, and what it shows.
func (l *Load) turn(ctx context.Context, path string) (page, []seen, bool) {
	var p page
	if !l.get(ctx, path, &p) {
		return p, nil, false
	}
	var all []seen
	for _, e := range p.Data {
		s, err := l.Journal.saw(e.EventID, e.Payload)
		if err != nil {
			l.Journal.complain("GET %s: %v", path, err)
			return p, nil, false
		}
		if s.session.named && e.ClientMessageID != s.session.messageID(s.number) {
			l.Journal.complain("GET %s: event %s has message id %s, its payload is that of %s",
				path, e.EventID, e.ClientMessageID, s.session.messageID(s.number))
		}
		all = append(all, s)
	}
	return p, all, true
}

// followPages follows the workspace by pages: its cursor goes on for ever.
func (l *Load) followPages(ctx context.Context, name string) {
	h := l.Journal.listen(name, nil, -1)
	cursor := ""
	for ctx.Err() == nil {
		p, events, ok := l.turn(ctx, "/v1/events?include=payload&pageSize=100&cursor="+url.QueryEscape(cursor))
		if !ok {
			pause(ctx, 100*time.Millisecond)
			continue
		}
		for _, s := range events {
			h.add(s)
		}
		if p.Pagination.NextCursor != "" {
			cursor = p.Pagination.NextCursor
		}
		if !p.Pagination.HasMore {
			pause(ctx, 200*time.Millisecond)
		}
	}
}

// ask asks one question after the other whose answer the journal can judge at once.
func (l *Load) ask(ctx context.Context, random *rand.Rand) {
	for ctx.Err() == nil {
		s := l.someSession(ctx, random)
		if s == nil {
			return
		}
		switch random.IntN(5) {
		case 0, 1:
			l.askPages(ctx, s, random)
		case 2:
			l.askCount(ctx, s, "/v1/events/count?session_id="+s.name, "count")
		case 3:
			l.askCount(ctx, s, "/v1/sessions/"+s.name, "event_count")
		case 4:
			l.askEvent(ctx, s, random)
		}
		pause(ctx, jitter(random, 100*time.Millisecond))
	}
}

// askPages turns the pages of a session, all or from an event on: they hold each event
// once, in order, and all that was acknowledged before.
func (l *Load) askPages(ctx context.Context, s *session, random *rand.Rand) {
	_, known := s.counts()
	next, cursor := 0, ""
	var behind *ack
	if random.IntN(2) == 0 {
		last := s.at(random.IntN(known))
		next, cursor, behind = last.number+1, last.id, &last
	}
	for {
		_, known := s.counts() // before this page was asked for
		path := fmt.Sprintf("/v1/sessions/%s/events?include=payload&pageSize=%d&cursor=%s", s.name, 1+random.IntN(100), url.QueryEscape(cursor))
		p, events, ok := l.turn(ctx, path)
		if !ok {
			return
		}
		for _, e := range events {
			if e.session != s || e.number != next {
				l.Journal.suspect(behind, "GET %s: shows %s.%d where %s.%d is due", path, e.session.name, e.number, s.name, next)
				return
			}
			next++
		}
		if !p.Pagination.HasMore {
			if next < known {
				l.Journal.complain("GET %s: ends before event %d; %d had been acknowledged", path, next, known)
			}
			return
		}
		cursor = p.Pagination.NextCursor
	}
}

// askCount asks how many events a session has: all that were acknowledged before, and no
// more than were sent by then.
func (l *Load) askCount(ctx context.Context, s *session, path, field string) {
	_, least := s.counts()
	var got map[string]any
	if !l.get(ctx, path, &got) {
		return
	}
	most, _ := s.counts()
	if n, ok := got[field].(float64); !ok || int(n) < least || int(n) > most {
		l.Journal.complain("GET %s: %s is %v; %d had been acknowledged before and %d were sent by now", path, field, got[field], least, most)
	}
}

// askEvent asks for one event that was acknowledged.
func (l *Load) askEvent(ctx context.Context, s *session, random *rand.Rand) {
	_, known := s.counts()
	n := random.IntN(known)
	path := "/v1/events/" + s.at(n).id
	a, err := l.client.do(ctx, RoleQuery, http.MethodGet, path, "", "")
	if ctx.Err() != nil {
		return
	}
	l.Journal.tally(a, err)
	if err == nil && a.status == http.StatusNotFound {
		l.Journal.hidden(s, n) // right if it repeats an event that another node took
		return
	}
	switch out, why := judge(a, err); out {
	case outcomeAgain:
		return
	case outcomeWrong:
		l.Journal.complain("GET %s: %s", path, why)
		return
	}
	var e struct {
		Payload payload `json:"payload"`
	}
	if err := json.Unmarshal(a.body, &e); err != nil || e.Payload.Session != s.name || e.Payload.Number == nil || *e.Payload.Number != n {
		l.Journal.complain("GET %s: shows %.300s, want %s.%d (%v)", path, a.body, s.name, n, err)
	}
}

// allPages turns all pages of a session while nothing is broken.
func (c *client) allPages(ctx context.Context, session string) ([]place, error) {
	var all []place
	cursor := ""
	for {
		path := "/v1/sessions/" + session + "/events?pageSize=100&cursor=" + url.QueryEscape(cursor)
		var p page
		err := await(ctx, time.Minute, "a page of "+session, func(ctx context.Context) error {
			a, err := c.do(ctx, RoleQuery, http.MethodGet, path, "", "")
			if err != nil {
				return err
			}
			if a.status != http.StatusOK {
				return fmt.Errorf("GET %s: %d %.300s", path, a.status, a.body)
			}
			p = page{}
			return json.Unmarshal(a.body, &p)
		})
		if err != nil {
			return nil, err
		}
		for _, e := range p.Data {
			at, err := placeOf(e.EventID)
			if err != nil {
				return nil, err
			}
			all = append(all, at)
		}
		if !p.Pagination.HasMore {
			return all, nil
		}
		cursor = p.Pagination.NextCursor
	}
}
