package main

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/playhead-dev/playhead/internal/control"
)

// runServe runs the configured roles against Kafka and ClickHouse until ctx ends.
func runServe(ctx context.Context, args []string, env func(string) string, stderr io.Writer) error {
	var file, listen, roles, brokers, dsn, key string
	if err := parseSettings("serve", args, env, stderr, []setting{
		{"config", "PLAYHEAD_CONFIG", "configuration file (YAML)", &file},
		{"listen", "PLAYHEAD_LISTEN", "address to listen on", &listen},
		{"roles", "PLAYHEAD_ROLES", "roles, separated by commas", &roles},
		{"kafka-brokers", "PLAYHEAD_KAFKA_BROKERS", "brokers (host:port), separated by commas", &brokers},
		{"clickhouse-dsn", "PLAYHEAD_CLICKHOUSE_DSN", "ClickHouse address, clickhouse://… or http://…", &dsn},
		{"bootstrap-key", "PLAYHEAD_BOOTSTRAP_KEY", "API key to make at the start", &key},
	}); err != nil {
		return err
	}
	cfg := DefaultConfig()
	if file != "" {
		if err := cfg.readFile(file); err != nil {
			return err
		}
	}
	override(&cfg.HTTP.Listen, listen)
	override(&cfg.ClickHouse.DSN, dsn)
	override(&cfg.BootstrapKey, key)
	if roles != "" {
		cfg.Roles = strings.Split(roles, ",")
	}
	if brokers != "" {
		cfg.Kafka.Brokers = strings.Split(brokers, ",")
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	logger := cfg.Log.logger(stderr)
	n, err := startNode(ctx, cfg, logger)
	if err != nil {
		return err
	}
	if cfg.BootstrapKey != "" {
		if err := n.ensureWorkspace(ctx, control.Workspace{ID: "ws_default", Name: "default", Plan: control.PlanPro, Limits: control.DefaultLimits()}, cfg.BootstrapKey); errors.Is(err, control.ErrWorkspaceErased) {
			logger.Warn("the bootstrap key is not made: its workspace was erased", "error", err)
		} else if err != nil {
			return n.stopAfter(err)
		}
	}
	if err := n.listen(ctx); err != nil {
		return n.stopAfter(err)
	}
	return n.run(ctx)
}

func override(into *string, v string) {
	if v != "" {
		*into = v
	}
}
