package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// nodeConfig is every node's. Silences are told sooner than by default, so that a
// campaign sees many of them, and a tape is short, so that replays reach below it.
const nodeConfig = `kafka:
  client_id: %s
  brokers: [%s]
  replication_factor: %d
  partitions: %d
streamer:
  keep_alive: 1s
  write_timeout: 5s
  tape:
    max_age: 10s
materializer:
  session_timeout: 2s
  insert_timeout: 10s
  revoke_timeout: 5s
  batch_interval: 250ms
  self_check_interval: 1s
log:
  level: info
`

// ClockVariable names a file that holds the seconds by which a node's clock is ahead. Only
// a server that was built for it reads it (integration/chaos).
const ClockVariable = "PLAYHEAD_CLUSTER_CLOCK"

// Node is one playhead serve.
type Node struct {
	*Process
	Roles string // as of the flag --roles; all if empty

	addr    string
	clock   string // the file
	toStore *Link  // to ClickHouse
	door    *Link  // where clients come in
}

// newNode prepares a node; Up starts it.
func (c *Cluster) newNode(name, roles string) (*Node, error) {
	n := &Node{Roles: roles, addr: freeAddr(), clock: filepath.Join(c.dir, name+".clock")}
	var err error
	if n.toStore, err = OpenLink(name+" to clickhouse", c.Store.running().Addr()); err != nil {
		return nil, err
	}
	if n.door, err = OpenLink(name, n.addr); err != nil {
		return nil, errors.Join(err, n.toStore.Close())
	}
	dsn, err := c.Store.dsn(n.toStore)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(c.dir, name+".yaml")
	text := fmt.Sprintf(nodeConfig, name, strings.Join(c.Log.Addrs(), ", "), c.Log.Replicas(), c.cfg.Partitions) + c.cfg.Settings
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	args := []string{"serve", "--config", config, "--listen", n.addr}
	if roles != "" {
		args = append(args, "--roles", roles)
	}
	env := append([]string{"PLAYHEAD_CLICKHOUSE_DSN=" + dsn, "PLAYHEAD_BOOTSTRAP_KEY=" + Key, ClockVariable + "=" + n.clock}, c.cfg.Env...)
	n.Process, err = newProcess(name, filepath.Join(c.dir, name+".log"), c.cfg.Binary, args, env)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Has reports whether the node has a role.
func (n *Node) Has(role string) bool {
	return n.Roles == "" || strings.Contains(","+n.Roles+",", ","+role+",")
}

// StepClock puts the node's clock ahead of the machine's, or behind.
func (n *Node) StepClock(by time.Duration) {
	text := fmt.Sprintf("%d\n", int64(by/time.Second))
	if err := os.WriteFile(n.clock, []byte(text), 0o600); err != nil {
		n.Output.note(err.Error())
	}
}

// Door is the Link that the node's clients come by, ToStore the one to ClickHouse.
func (n *Node) Door() *Link { return n.door }

// ToStore is the Link that the node reaches ClickHouse by.
func (n *Node) ToStore() *Link { return n.toStore }

// awaitReady waits until the node says that it is ready.
func (n *Node) awaitReady(ctx context.Context, within time.Duration) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return await(ctx, within, n.Name+" is ready", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.addr+"/readyz", nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %d %s %w", res.StatusCode, b, errors.Join(err))
		}
		return nil
	})
}

func (n *Node) close() error {
	return errors.Join(n.Process.close(), n.door.Close(), n.toStore.Close())
}
