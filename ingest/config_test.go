package ingest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestValidateReportsEverySettingThatIsOutOfRange(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("DefaultConfig().Validate() = %v", err)
	}
	err := Config{Linger: -1, BackfillYield: -1}.Validate()
	for _, key := range []string{"max_event_bytes", "max_batch_bytes", "max_batch_events", "max_json_depth", "max_compression_ratio",
		"max_decompressions", "max_in_flight_bytes", "max_in_flight_events", "produce_timeout", "materialised_timeout",
		"max_backfill_requests", "max_backfill_bytes", "backfill_share", "backfill_timeout", "linger", "backfill_yield"} {
		if err == nil || !strings.Contains(err.Error(), "ingest."+key+" is ") {
			t.Errorf("Validate() = %v; want it to name %s", err, key)
		}
	}
	if _, err := NewAppender(Config{}, Deps{}); err == nil {
		t.Error("NewAppender took a config that does not validate")
	}
}

func TestProduceErrorsAreToldApart(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{kerr.MessageTooLarge, 413, "event_too_large"},
		{kgo.ErrMaxBuffered, 503, "overloaded"},
		{kgo.ErrClientClosed, 503, "shutting_down"},
		{kgo.ErrAborting, 503, "shutting_down"},
		{kgo.ErrRecordTimeout, 503, "log_unavailable"},
		{kerr.NotEnoughReplicas, 503, "log_unavailable"},
		{kerr.TopicAuthorizationFailed, 503, "log_unavailable"},
		{errors.New("anything else"), 503, "log_unavailable"},
	} {
		got := produceError(fmt.Errorf("wrapped: %w", c.err))
		if got.Status != c.status || got.Code != c.code || !errors.Is(got, c.err) || got.Status == 503 && got.RetryAfter <= 0 {
			t.Errorf("produceError(%v) = %+v; want %d %s", c.err, got, c.status, c.code)
		}
	}
}
