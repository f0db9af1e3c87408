package materializer

import (
	"errors"
	"strings"
	"testing"
)

func TestCommittedRoundTrip(t *testing.T) {
	for _, c := range []committed{
		{},
		{next: 5},
		{next: 5, gap: Gap{1, 4}},
		{next: 5, intent: Intent{Start: 5, End: 9, Records: 3, Attempt: 2, MinMs: 10, MaxMs: 20}},
		{next: 500, intent: Intent{Start: 5, End: 9, Records: 4, Rebuild: "r1", Replace: true}, rebuild: Rebuild{
			ID: "r1", Cause: CauseRequest, Start: 1, End: 400, Next: 5, Replace: true, Checked: 4, Missing: 1, Inserted: 2, Doubled: 3,
			Foreign: 4, Removed: 5, Beyond: 6, Lost: 7, Expired: 8,
		}, rebuilt: Rebuild{ID: "r0", Cause: CauseRequest, DryRun: true, End: 3, Ended: true, Failure: strings.Repeat("\x01", maxFailure)}},
		{next: 500, intent: Intent{Start: 5, End: 9, Records: 4}, gap: Gap{1, 2}},
		{next: 1<<48 - 1, intent: Intent{Start: 1<<48 - 1, End: 1 << 48, Records: 1, Attempt: 1 << 30, MaxMs: 1 << 48}},
	} {
		text, err := c.encode(7)
		if err != nil {
			t.Fatalf("encode(%+v): %v", c, err)
		}
		got, ok, err := decodeCommitted(c.next, text, 7)
		if err != nil || !ok || got != c {
			t.Errorf("decodeCommitted(%q) = %+v, %v, %v; want %+v", text, got, ok, err, c)
		}
		if _, ok, err := decodeCommitted(c.next, text, 8); ok || err != nil {
			t.Errorf("decodeCommitted(%q) in another epoch = %v, %v; want nothing", text, ok, err)
		}
	}
}

func TestCommitMetadataGolden(t *testing.T) {
	c := committed{next: 5, intent: Intent{Start: 5, End: 9, Records: 3, Attempt: 2, MinMs: 10, MaxMs: 20}, gap: Gap{1, 4}}
	want := `{"version":1,"epoch":7,"intent":{"start":5,"end":9,"n":3,"attempt":2,"min_ms":10,"max_ms":20},"gap":[1,4]}`
	if got, err := c.encode(7); err != nil || got != want {
		t.Errorf("encode(%+v) = %s, %v; want %s", c, got, err, want)
	}
	if got, want := c.intent.token(7, 3), "7/playhead.events/3/5-9/2"; got != want {
		t.Errorf("token = %s, want %s", got, want)
	}
	c.intent.Rebuild = "r1"
	if got, want := c.intent.token(7, 3), "7/playhead.events/3/5-9/rebuild-r1/2"; got != want {
		t.Errorf("token of a rebuild = %s, want %s", got, want)
	}
}

func TestOffsetSetByHandHasNoIntent(t *testing.T) {
	got, ok, err := decodeCommitted(42, "", 1)
	if want := (committed{next: 42}); err != nil || !ok || got != want {
		t.Errorf("decodeCommitted = %+v, %v, %v; want %+v", got, ok, err, want)
	}
}

func TestForeignCommitMetadataIsRefused(t *testing.T) {
	for _, text := range []string{
		"member-id-of-another-client", "{", `{"version":3,"epoch":1}`, `{"epoch":1}`,
		`{"version":1,"epoch":1,"intent":{"start":3,"end":3,"n":1}}`,
		`{"version":1,"epoch":1,"intent":{"start":6,"end":9,"n":1}}`,
		`{"version":1,"epoch":1,"intent":{"start":4,"end":9,"n":1}}`,
		`{"version":1,"epoch":1,"intent":{"start":5,"end":9,"n":5}}`,
		`{"version":1,"epoch":1,"intent":{"start":5,"end":9,"n":0}}`,
		`{"version":1,"epoch":1,"intent":{"start":5,"end":9,"n":1,"attempt":-1}}`,
		`{"version":1,"epoch":1,"intent":{"start":-5,"end":1,"n":1}}`,
		`{"version":1,"epoch":1,"rebuild":{"start":1,"end":2,"next":1}}`,
		`{"version":1,"epoch":1,"rebuild":{"id":"x","start":3,"end":2,"next":3}}`,
		`{"version":1,"epoch":1,"rebuilt":{"id":"x","start":1,"end":2,"next":0}}`,
	} {
		if _, _, err := decodeCommitted(5, text, 1); !errors.Is(err, ErrIntent) {
			t.Errorf("decodeCommitted(%q) = %v, want %v", text, err, ErrIntent)
		}
	}
}

func FuzzDecodeCommitted(f *testing.F) {
	f.Add(int64(5), `{"version":1,"epoch":1,"intent":{"start":5,"end":9,"n":3,"attempt":2,"min_ms":10,"max_ms":20},"gap":[1,4]}`)
	f.Add(int64(0), "")
	f.Fuzz(func(t *testing.T, offset int64, text string) {
		c, ok, err := decodeCommitted(offset, text, 1)
		if err != nil || !ok {
			return
		}
		back, err := c.encode(1)
		if err != nil {
			t.Fatalf("encode(%+v): %v", c, err)
		}
		if got, ok, err := decodeCommitted(offset, back, 1); err != nil || !ok || got != c {
			t.Errorf("%q decodes to %+v, and its encoding %q to %+v, %v, %v", text, c, back, got, ok, err)
		}
	})
}
