package importer

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/playhead-dev/playhead/internal/settings"
)

// Defaults of Config.
const (
	DefaultLanes          = 4
	DefaultBatchEvents    = 1000
	DefaultBatchBytes     = 4 << 20
	DefaultMaxLineBytes   = 1<<20 + 64<<10 // the server's 1 MiB an event, and room for what it does not count
	DefaultRequestTimeout = time.Minute
	DefaultRetryFor       = 5 * time.Minute
	DefaultMinBackoff     = 100 * time.Millisecond
	DefaultMaxBackoff     = 5 * time.Second
)

// Config is what an Importer needs. Start from DefaultConfig.
type Config struct {
	// URL is the server's base address, such as http://127.0.0.1:8080; a path in it is
	// kept as a prefix.
	URL string
	// Key is an API key with the scope ingest.
	Key string
	// UserAgent names the program to the server.
	UserAgent string
	// Transport makes the requests. Nil means a transport of the importer's own, without
	// a proxy.
	Transport http.RoundTripper

	// Live sends on the server's lane of live appends, counted as such. Otherwise (the
	// default) an import takes the lane of backfills: it has a quota of its own, in events,
	// and makes way for live appends.
	Live bool

	// Lanes is how many requests may be in flight, 1 to 64, default 4. One session's
	// events always use one lane. Memory is at most (4*BatchBytes + MaxLineBytes) a lane.
	Lanes int
	// BatchEvents and BatchBytes bound one request, before compression; whichever is
	// reached first. Defaults 1000 and 4 MiB. Larger batches cost less an event, and
	// repeat more when a request must be retried. The server's own limits (10,000 events
	// and 16 MiB by default) must not lie below.
	BatchEvents int
	BatchBytes  int
	// MaxLineBytes is the longest line that is read, default 1 MiB and 64 KiB.
	MaxLineBytes int

	// RequestTimeout is how long one request may take, default 1 minute; then it is
	// retried.
	RequestTimeout time.Duration
	// RetryFor is for how long a request that does not get through is retried before the
	// import gives up, default 5 minutes, counted anew for every request. 0 gives up at
	// the first failure. While the server answers 429 with a Retry-After, it is not counted:
	// the quota is used up, and the import goes on as fast as it comes back.
	RetryFor time.Duration
	// MinBackoff and MaxBackoff bound the pause between two attempts; it doubles from one
	// to the other, with jitter. A Retry-After of the server lengthens it.
	MinBackoff, MaxBackoff time.Duration

	// SkipErrors goes on after a line that cannot be imported. Otherwise the import stops
	// there.
	SkipErrors bool

	// StateDir is where checkpoints are kept; it is made if need be. Empty keeps none, and
	// an interrupted import begins from the first line again.
	StateDir string
	// Restart ignores what checkpoints say.
	Restart bool
}

// DefaultConfig returns the settings that suit most files; URL and Key are the caller's.
func DefaultConfig() Config {
	return Config{
		UserAgent:      "playhead-import",
		Lanes:          DefaultLanes,
		BatchEvents:    DefaultBatchEvents,
		BatchBytes:     DefaultBatchBytes,
		MaxLineBytes:   DefaultMaxLineBytes,
		RequestTimeout: DefaultRequestTimeout,
		RetryFor:       DefaultRetryFor,
		MinBackoff:     DefaultMinBackoff,
		MaxBackoff:     DefaultMaxBackoff,
	}
}

// Validate reports every setting that is missing or out of range, joined.
func (c Config) Validate() error {
	var problems []error
	complain := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	if u, err := url.Parse(c.URL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		complain("url is %q; want http://host:port or https://host", c.URL)
	} else if u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		complain("url has a query, a fragment or a user; want a scheme, a host and perhaps a path")
	}
	if c.Key == "" {
		complain("key is empty; want an API key with the scope ingest")
	}
	const day = 24 * time.Hour
	return errors.Join(append(problems,
		settings.InRange("lanes", c.Lanes, 1, 64),
		settings.InRange("batch events", c.BatchEvents, 1, 100_000),
		settings.InRange("batch bytes", c.BatchBytes, 1<<10, 256<<20),
		settings.InRange("max line bytes", c.MaxLineBytes, 1<<10, 256<<20),
		settings.InRange("request timeout", c.RequestTimeout, time.Millisecond, day),
		settings.InRange("retry for", c.RetryFor, 0, 30*day),
		settings.InRange("min backoff", c.MinBackoff, time.Millisecond, day),
		settings.InRange("max backoff", c.MaxBackoff, c.MinBackoff, day),
	)...)
}
