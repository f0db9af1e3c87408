package settings_test

import (
	"errors"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/internal/settings"
)

func TestProblemsNameKeyValueAndWhatIsAllowed(t *testing.T) {
	f := func(err error, want string) {
		t.Helper()
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("error = %q, want %q", got, want)
		}
	}
	f(settings.InRange("n", 1, 1, 3), "")
	f(settings.InRange("n", 3, 1, 3), "")
	f(settings.InRange("n", 0, 1, 3), "n is 0; want 1 to 3")
	f(settings.InRange("n", 4, 1, 3), "n is 4; want 1 to 3")
	f(settings.InRange("a.bytes", int64(-1), 0, 1<<40), "a.bytes is -1; want 0 to 1099511627776")
	f(settings.InRange("a.wait", time.Millisecond, time.Second, 5*time.Minute), "a.wait is 1ms; want 1s to 5m0s")
	f(settings.Want(true, "listen", ":1", "host:port"), "")
	f(settings.Want(false, "listen", `""`, "host:port"), `listen is ""; want host:port`)
	f(errors.Join(settings.InRange("n", 1, 1, 3), settings.Want(true, "listen", ":1", "host:port")), "")
}
