package main

import (
	"context"
	_ "embed" // the script that runs the server
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
)

//go:embed peers/durable-streams.mjs
var durableStreamsScript []byte

// durableStreams is the Durable Streams project's own server.
type durableStreams struct {
	*peerProcess
	packages string
	dir      string
	listen   string
}

func newDurableStreams(b *bench, dir string) (target, error) {
	d := &durableStreams{packages: filepath.Join(b.cfg.peers, "durable-streams", "node_modules"), dir: dir}
	if err := present(filepath.Join(d.packages, "@durable-streams", "server")); err != nil {
		return nil, err
	}
	var err error
	d.listen, err = freeAddr()
	return d, err
}

func (d *durableStreams) addr() string     { return d.listen }
func (d *durableStreams) processes() []int { return []int{d.pid()} }
func (d *durableStreams) ids() mark        { return mark{before: `"streamNextOffset":"`, until: '"'} }

func (d *durableStreams) start(ctx context.Context) (err error) {
	data, script := filepath.Join(d.dir, "data"), filepath.Join(d.dir, "server.mjs")
	if err := os.Mkdir(data, 0o700); err != nil {
		return fmt.Errorf("durable-streams: %w", err)
	}
	if err := os.WriteFile(script, durableStreamsScript, 0o600); err != nil {
		return fmt.Errorf("durable-streams: %w", err)
	}
	_, port, err := net.SplitHostPort(d.listen)
	if err != nil {
		return fmt.Errorf("durable-streams: %w", err)
	}
	d.peerProcess, err = startPeer(ctx, d.dir, d.listen, "node", script, d.packages, port, data)
	return err
}

func (d *durableStreams) path(channel string) string { return "/v1/stream/" + channel }

func (d *durableStreams) create(channel string) error {
	c, err := dial(d.listen)
	if err != nil {
		return err
	}
	defer c.close()
	status, answer, err := c.do(http.MethodPut, d.path(channel), []byte{})
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("create stream %s: %d %s", channel, status, answer)
	}
	return err
}

func (d *durableStreams) stream(channel string, from position) streamRequest {
	switch from {
	case fromNow:
		from = "now"
	case fromStart:
		from = "-1"
	}
	return streamRequest{path: d.path(channel) + "?live=sse&offset=" + url.QueryEscape(string(from))}
}

func (d *durableStreams) publisher(channel string) (publisher, error) {
	c, err := dial(d.listen)
	if err != nil {
		return nil, err
	}
	return &durablePublisher{conn: c, path: d.path(channel)}, nil
}

type durablePublisher struct {
	*conn
	path string
	body []byte
}

// publish appends an array, whose elements become messages.
func (p *durablePublisher) publish(_ context.Context, events [][]byte) error {
	p.body = append(p.body[:0], '[')
	for i, e := range events {
		if i > 0 {
			p.body = append(p.body, ',')
		}
		p.body = append(p.body, e...)
	}
	p.body = append(p.body, ']')
	status, answer, err := p.do(http.MethodPost, p.path, p.body)
	if err == nil && status/100 != 2 {
		err = fmt.Errorf("POST %s: %d %s", p.path, status, answer)
	}
	return err
}
