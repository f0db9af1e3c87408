package main

import "context"

// playhead is the target that the others are compared with.
type playhead struct{ *server }

func newPlayhead(b *bench, dir string) (target, error) {
	s, err := newServer(b.cfg.server, dir)
	if err != nil {
		return nil, err
	}
	return &playhead{s}, nil
}

func (p *playhead) addr() string     { return p.server.addr }
func (p *playhead) processes() []int { return []int{p.pid()} }
func (p *playhead) ids() mark        { return mark{before: "\nid: ", until: '\n'} }

func (p *playhead) create(channel string) error {
	c, err := dial(p.addr())
	if err != nil {
		return err
	}
	defer c.close()
	return c.createSession(channel)
}

func (p *playhead) stream(channel string, from position) streamRequest {
	req := streamRequest{path: "/v1/sessions/" + channel + "/events/stream"}
	switch from {
	case fromNow:
	case fromStart:
		req.path += "?from=start"
	default:
		req.header = "Last-Event-ID: " + string(from) + "\r\n"
	}
	return req
}

func (p *playhead) publisher(channel string) (publisher, error) {
	c, err := dial(p.addr())
	if err != nil {
		return nil, err
	}
	return &playheadPublisher{conn: c, path: "/v1/sessions/" + channel + "/events"}, nil
}

type playheadPublisher struct {
	*conn
	path string
	body []byte
}

func (p *playheadPublisher) publish(_ context.Context, events [][]byte) error {
	p.body = append(p.body[:0], `{"events":[`...)
	for i, e := range events {
		if i > 0 {
			p.body = append(p.body, ',')
		}
		p.body = append(p.body, `{"type":"bench.tick","payload":`...)
		p.body = append(p.body, e...)
		p.body = append(p.body, '}')
	}
	p.body = append(p.body, "]}"...)
	return p.append(p.path, p.body, len(events))
}
