package query

import (
	"strings"
	"testing"
	"time"
)

func TestConfigValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("DefaultConfig().Validate() = %v", err)
	}
	c := DefaultConfig()
	c.QueryTimeout, c.Breaker.Failures, c.LogScan.MaxBytes = 0, 0, -1
	c.SyncTimeout = time.Hour
	err := c.Validate()
	for _, key := range []string{"query.query_timeout is 0s", "query.sync_timeout is 1h0m0s", "query.breaker.failures is 0", "query.log_scan.max_bytes is -1"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("Validate() = %v, want it to name %q", err, key)
		}
	}
}
