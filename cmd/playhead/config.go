package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/playhead-dev/playhead/ingest"
	"github.com/playhead-dev/playhead/internal/deadletters"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/query"
	"github.com/playhead-dev/playhead/query/materializer"
	"github.com/playhead-dev/playhead/streamer"
)

// The roles a node can have.
const (
	roleIngest       = "ingest"
	roleStreamer     = "streamer"
	roleQuery        = "query"
	roleMaterializer = "materializer"
)

func allRoles() []string { return []string{roleIngest, roleStreamer, roleQuery, roleMaterializer} }

// Config is everything that can be set, as it stands in the configuration file
// (deploy/playhead.yaml shows each setting with its default).
type Config struct {
	// Roles are what this node does: any of ingest, streamer, query, materializer.
	// Default all. Several nodes share a role's work.
	Roles []string `yaml:"roles"`

	// BootstrapKey is the text of an API key that is made at the start, with every scope,
	// for the workspace "ws_default", unless it exists. Default none. It is how the first key
	// of a new installation comes about; revoke it once there are others.
	BootstrapKey string `yaml:"bootstrap_key"`

	HTTP         httpapi.Config         `yaml:"http"`
	Kafka        kafka.Config           `yaml:"kafka"`
	ClickHouse   query.ClickHouseConfig `yaml:"clickhouse"`
	Ingest       ingest.Config          `yaml:"ingest"`
	Streamer     streamer.Config        `yaml:"streamer"`
	Query        query.Config           `yaml:"query"`
	Materializer materializer.Config    `yaml:"materializer"`
	DeadLetters  deadletters.Config     `yaml:"dead_letters"`
	Log          LogConfig              `yaml:"log"`
}

// LogConfig says what is logged, to standard error.
type LogConfig struct {
	// Level is debug, info, warn or error. Default info.
	Level slog.Level `yaml:"level"`
	// Format is text or json. Default text.
	Format string `yaml:"format"`
}

// DefaultConfig returns the settings that hold unless set.
func DefaultConfig() Config {
	return Config{
		Roles:        allRoles(),
		HTTP:         httpapi.DefaultConfig(),
		Kafka:        kafka.DefaultConfig(),
		ClickHouse:   query.DefaultClickHouseConfig(),
		Ingest:       ingest.DefaultConfig(),
		Streamer:     streamer.DefaultConfig(),
		Query:        query.DefaultConfig(),
		Materializer: materializer.DefaultConfig(),
		DeadLetters:  deadletters.DefaultConfig(),
		Log:          LogConfig{Format: "text"},
	}
}

// Validate reports every setting that is wrong.
func (c Config) Validate() error {
	var errs []error
	if len(c.Roles) == 0 {
		errs = append(errs, errors.New("roles is empty; want some of "+strings.Join(allRoles(), ", ")))
	}
	for _, r := range c.Roles {
		if !slices.Contains(allRoles(), r) {
			errs = append(errs, fmt.Errorf("roles has %q; want some of %s", r, strings.Join(allRoles(), ", ")))
		}
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		errs = append(errs, fmt.Errorf("log.format is %q; want text or json", c.Log.Format))
	}
	return errors.Join(append(errs,
		c.HTTP.Validate(), c.Kafka.Validate(), c.ClickHouse.Validate(), c.Ingest.Validate(),
		c.Streamer.Validate(), c.Query.Validate(), c.Materializer.Validate(), c.DeadLetters.Validate())...)
}

func (c Config) has(role string) bool { return slices.Contains(c.Roles, role) }

// readFile reads the configuration file over the settings in c. Unknown keys are errors.
func (c *Config) readFile(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if err := yaml.UnmarshalWithOptions(b, c, yaml.Strict()); err != nil {
		return fmt.Errorf("configuration %s: %s", path, describeYAML(err, b))
	}
	return nil
}

// yamlKey is a line's key.
var yamlKey = regexp.MustCompile(`^[ \t]*([a-z_]+):`)

// describeYAML says what is wrong with text, where, and at which key. The package's own
// errors quote the lines around the place as well, which may hold a key or a password.
func describeYAML(err error, text []byte) string {
	said := yaml.FormatError(err, false, false)
	at, ok := errors.AsType[yaml.Error](err)
	if !ok || at.GetToken() == nil {
		return said
	}
	lines := bytes.Split(text, []byte("\n"))
	n := at.GetToken().Position.Line
	if n < 1 || n > len(lines) {
		return said
	}
	if key := yamlKey.FindSubmatch(lines[n-1]); key != nil {
		said += " at " + string(key[1])
	}
	return said
}

// logger returns the logger the settings ask for.
func (c LogConfig) logger(w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.Level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// setting is one value that can be given as a flag or by the environment; the flag wins.
type setting struct {
	flag, env, help string
	into            *string
}

// stringVar is flags.StringVar for what comes from the environment: usage does not print its
// value, which the flag package would call the default. It may hold a key or a password.
func stringVar(flags *flag.FlagSet, into *string, name, value, help string) {
	flags.StringVar(into, name, value, help)
	flags.Lookup(name).DefValue = ""
}

// parseSettings reads flags and environment. What was given nowhere keeps its value.
func parseSettings(name string, args []string, env func(string) string, stderr io.Writer, settings []setting) error {
	flags := flag.NewFlagSet("playhead "+name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	for _, s := range settings {
		if v := env(s.env); v != "" {
			stringVar(flags, s.into, s.flag, v, s.help+" ("+s.env+")")
			continue
		}
		flags.StringVar(s.into, s.flag, *s.into, s.help+" ("+s.env+")")
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage // the flag package has said why
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "playhead %s takes no arguments, got %q\n", name, flags.Arg(0))
		return errUsage
	}
	return nil
}
