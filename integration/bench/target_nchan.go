package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"time"
)

// nchan is nginx with the Nchan module.
type nchan struct {
	*peerProcess
	files  string // where the packages were unpacked
	dir    string
	listen string
}

func newNchan(b *bench, dir string) (target, error) {
	n := &nchan{files: filepath.Join(b.cfg.peers, "nchan"), dir: dir}
	if err := present(n.binary(), n.module(), nchanMessages); err != nil {
		return nil, err
	}
	var err error
	n.listen, err = freeAddr()
	return n, err
}

// nchanMessages is where Nchan would put messages in files, which it does not here. It
// insists on the directory all the same: nchan_message_temp_path cannot be set, since the
// module sets it before it reads its configuration.
const nchanMessages = "/var/lib/nginx/body"

// present returns an error for the first file that is not there.
func present(files ...string) error {
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			return fmt.Errorf("not installed (scripts/fetch-peers.sh): %w", err)
		}
	}
	return nil
}

func (n *nchan) binary() string { return filepath.Join(n.files, "usr/sbin/nginx") }
func (n *nchan) module() string {
	return filepath.Join(n.files, "usr/lib/nginx/modules/ngx_nchan_module.so")
}
func (n *nchan) addr() string        { return n.listen }
func (n *nchan) processes() []int    { return []int{n.pid()} }
func (n *nchan) ids() mark           { return mark{before: "id: ", until: '\n'} }
func (n *nchan) create(string) error { return nil } // the first who names it makes it

func (n *nchan) start(ctx context.Context) error {
	conf := filepath.Join(n.dir, "nginx.conf")
	text, err := n.config()
	if err != nil {
		return err
	}
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return fmt.Errorf("nginx: %w", err)
	}
	n.peerProcess, err = startPeer(ctx, n.dir, n.listen, n.binary(), "-p", n.dir, "-c", conf, "-e", filepath.Join(n.dir, "error.log"))
	return err
}

// nchanBuffer is how many messages a channel keeps: what the replays need, and what a
// reconnecting client may have missed.
const nchanBuffer = 20_000

// config is for nginx in the foreground, with everything it writes in its directory.
// Without a bound on requests a connection publishes for as long as it likes, and the
// queue of new connections is as long as ours: otherwise the kernel drops some of a storm
// and the clients' second tries are what is measured.
func (n *nchan) config() (string, error) {
	asRoot := ""
	if os.Geteuid() == 0 { // the workers would be nobody, who may not read the directory
		me, err := user.Current()
		if err != nil {
			return "", fmt.Errorf("nginx: %w", err)
		}
		asRoot = "user " + me.Username + ";"
	}
	return fmt.Sprintf(`daemon off; %s
worker_processes %d;
worker_rlimit_nofile 20000;
pid nginx.pid;
load_module %s;
events { worker_connections 16384; }
http {
	access_log off;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	keepalive_requests 1000000000;
	nchan_shared_memory_size 512m;
	server {
		listen %s backlog=4096;
		location ~ ^/publish/(\w+)$ { nchan_publisher; nchan_channel_id $1; nchan_message_buffer_length %d; nchan_message_timeout 1h; }
		location ~ ^/live/(\w+)$ { nchan_subscriber eventsource; nchan_channel_id $1; nchan_subscriber_first_message newest; }
		location ~ ^/all/(\w+)$ { nchan_subscriber eventsource; nchan_channel_id $1; nchan_subscriber_first_message oldest; }
	}
}
`, asRoot, runtime.NumCPU(), n.module(), n.listen, nchanBuffer), nil
}

func (n *nchan) stream(channel string, from position) streamRequest {
	switch from {
	case fromNow:
		return streamRequest{path: "/live/" + channel}
	case fromStart:
		return streamRequest{path: "/all/" + channel}
	}
	return streamRequest{path: "/live/" + channel, header: "Last-Event-ID: " + string(from) + "\r\n"}
}

func (n *nchan) publisher(channel string) (publisher, error) {
	c, err := dial(n.listen)
	if err != nil {
		return nil, err
	}
	return &nchanPublisher{conn: c, path: "/publish/" + channel}, nil
}

// nchanPublisher sends a batch as pipelined requests: Nchan has no other.
type nchanPublisher struct {
	*conn
	path string
	out  []byte
}

func (p *nchanPublisher) publish(_ context.Context, events [][]byte) error {
	p.out = p.out[:0]
	for _, e := range events {
		p.out = fmt.Appendf(p.out, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", p.path, p.conn.addr, len(e))
		p.out = append(p.out, e...)
	}
	if err := p.nc.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if _, err := p.nc.Write(p.out); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	for range events {
		res, err := http.ReadResponse(p.r, nil)
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		p.answer.Reset()
		_, err = io.Copy(&p.answer, res.Body)
		res.Body.Close()
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		if res.StatusCode/100 != 2 { // 201 with listeners, 202 without
			return fmt.Errorf("publish: %d %s", res.StatusCode, bytes.TrimSpace(p.answer.Bytes()))
		}
	}
	return nil
}
