package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// operator is what the commands for operators (migrate, rebuild) have in common: flags
// that say which installation is meant.
type operator struct {
	flags                       *flag.FlagSet
	stderr                      io.Writer
	env                         func(string) string
	file, brokers, dsn, dataDir string
}

func newOperator(name, usage string, env func(string) string, stderr io.Writer) *operator {
	o := &operator{flags: flag.NewFlagSet("playhead "+name, flag.ContinueOnError), stderr: stderr, env: env}
	o.flags.SetOutput(stderr)
	o.flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		o.flags.PrintDefaults()
	}
	o.flags.StringVar(&o.file, "config", env("PLAYHEAD_CONFIG"), "configuration `file` (YAML) of the nodes (PLAYHEAD_CONFIG)")
	o.flags.StringVar(&o.brokers, "kafka-brokers", env("PLAYHEAD_KAFKA_BROKERS"), "brokers (`host:port`), separated by commas (PLAYHEAD_KAFKA_BROKERS)")
	stringVar(o.flags, &o.dsn, "clickhouse-dsn", env("PLAYHEAD_CLICKHOUSE_DSN"), "ClickHouse `address` (PLAYHEAD_CLICKHOUSE_DSN)")
	o.flags.StringVar(&o.dataDir, "data-dir", "", "data `directory` of a playhead dev that runs: its Kafka and ClickHouse are meant")
	return o
}

// parse reads the flags; they may stand before and after the arguments, of which it
// returns at most atMost.
func (o *operator) parse(args []string, atMost int) (words []string, err error) {
	for {
		if err := o.flags.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, errUsage // the flag package has said why
		}
		if args = o.flags.Args(); len(args) == 0 {
			return words, nil
		}
		if words = append(words, args[0]); len(words) > atMost {
			return nil, o.complain("takes no argument %q", args[0])
		}
		args = args[1:]
	}
}

// complain says what is wrong with the command line.
func (o *operator) complain(format string, args ...any) error {
	fmt.Fprintf(o.stderr, "%s: %s\n", o.flags.Name(), fmt.Sprintf(format, args...))
	return errUsage
}

// config returns the configuration of the installation that is meant. It is not
// validated: each command needs its own part of it.
func (o *operator) config() (Config, error) {
	cfg := DefaultConfig()
	if o.file != "" {
		if err := cfg.readFile(o.file); err != nil {
			return cfg, err
		}
	}
	if o.dataDir != "" {
		b, err := os.ReadFile(filepath.Join(o.dataDir, devStateFile))
		if err != nil {
			return cfg, fmt.Errorf("data directory of playhead dev: %w", err)
		}
		var state devState
		if err := json.Unmarshal(b, &state); err != nil {
			return cfg, fmt.Errorf("data directory of playhead dev: %s: %w", devStateFile, err)
		}
		if state.Kafka == "" || state.ClickHouse == "" {
			return cfg, fmt.Errorf("playhead dev has not run in %s", o.dataDir)
		}
		cfg.Kafka.Brokers, cfg.ClickHouse.DSN = strings.Split(state.Kafka, ","), state.ClickHouse
	}
	override(&cfg.ClickHouse.DSN, o.dsn)
	if o.brokers != "" {
		cfg.Kafka.Brokers = strings.Split(o.brokers, ",")
	}
	return cfg, nil
}
