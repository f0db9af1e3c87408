package materializer

import (
	"strings"
	"testing"
)

func TestConfigReportsEveryProblem(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("Validate() of the defaults = %v", err)
	}
	err := Config{MaxBatchBytes: 1 << 20, BufferBytes: 1 << 10, Linger: -1, RevokeTimeout: 1 << 60}.Validate()
	if err == nil {
		t.Fatal("Validate() = nil")
	}
	for _, want := range []string{
		"max_batch_rows is 0; want 1 to 1000000", "buffer_bytes is 1024", "linger is -1ns", "concurrency is 0",
		"session_timeout is 0s", "revoke_timeout is", "insert_timeout is 0s", "self_check_interval is 0s",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Validate() = %q; want it to name %q", err, want)
		}
	}
}
