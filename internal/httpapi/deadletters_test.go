package httpapi_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/deadletters"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// testLetters are dead letters in memory.
type testLetters struct {
	entries []*deadletters.Entry
	letter  *schema.DeadLetter
	sync    error
	redrive error
	asked   []schema.Correction
}

func (l *testLetters) Operator(workspace string) bool { return workspace == "ws_a" }
func (l *testLetters) Sync(context.Context) error     { return l.sync }

func (l *testLetters) List(after int64, limit int, want func(*deadletters.Entry) bool) (page []*deadletters.Entry, more bool) {
	for _, e := range l.entries {
		if e.Place <= after || !want(e) {
			continue
		}
		if len(page) == limit {
			return page, true
		}
		page = append(page, e)
	}
	return page, false
}

func (l *testLetters) Entry(at schema.Position) (*deadletters.Entry, bool) {
	for _, e := range l.entries {
		if e.At == at {
			return e, true
		}
	}
	return nil, false
}

func (l *testLetters) Letter(context.Context, *deadletters.Entry) (*schema.DeadLetter, error) {
	if l.letter == nil {
		return nil, deadletters.ErrGone
	}
	return l.letter, nil
}

func (l *testLetters) Redrive(_ context.Context, e *deadletters.Entry, c schema.Correction, by string) (*schema.Redrive, bool, error) {
	l.asked = append(l.asked, c)
	return redriveOf(e, by), e.Redriven != nil, l.redrive
}

// firstEvent is what a redrive of testLetters makes.
const firstEvent = "evt_0100000000000020D20DBH7K00"

func redriveOf(e *deadletters.Entry, by string) *schema.Redrive {
	return &schema.Redrive{At: e.At, EventID: firstEvent, WorkspaceID: cmp.Or(e.Workspace, "ws_a"), SessionID: "s", Type: "t", AtMs: 5, By: by}
}

type letterAnswer struct {
	ID          string  `json:"id"`
	Reason      string  `json:"reason"`
	Offset      int64   `json:"offset"`
	Time        *string `json:"time"`
	WorkspaceID *string `json:"workspace_id"`
	Redriven    *struct {
		EventID string `json:"event_id"`
	} `json:"redriven"`
}

type lettersAnswer struct {
	Data       []letterAnswer `json:"data"`
	Pagination struct {
		NextCursor *string `json:"next_cursor"`
		HasMore    bool    `json:"has_more"`
		Limit      int     `json:"limit"`
	} `json:"pagination"`
}

func entry(place int64, workspace string, reason schema.Reason) *deadletters.Entry {
	return &deadletters.Entry{
		Claim: schema.Claim{Workspace: workspace}, At: schema.Position{Epoch: 1, Partition: uint16(place % 2), Offset: 10 * place}, Next: 10*place + 1,
		Place: place, FoundMs: 1_790_000_000_000 + 1000*place, Reason: reason, Why: "why", TimeMs: 1_790_000_000_000,
	}
}

func serveLetters(t *testing.T, l *testLetters) (do func(method, path, body, key string) answer, operator, tenant, reader string) {
	t.Helper()
	store := openStore(t)
	s := serve(t, httpapi.DefaultConfig(), func(app *fiber.App) {
		app.Use(httpapi.Authenticate(store))
		httpapi.DeadLetterRoutes(app, l)
	})
	_, operator = makeKey(t, store, control.KeySpec{Scopes: control.ScopeAdmin})
	_, tenant = makeKey(t, store, control.KeySpec{Workspace: "ws_b", Scopes: control.ScopeAdmin})
	_, reader = makeKey(t, store, control.KeySpec{Scopes: control.ScopeRead | control.ScopeIngest | control.ScopeControl})
	return func(method, path, body, key string) answer {
		t.Helper()
		return s.do(t, method, path, body, "X-Api-Key", key)
	}, operator, tenant, reader
}

func TestDeadLettersAreListedToWhomTheyConcern(t *testing.T) {
	l := &testLetters{entries: []*deadletters.Entry{
		entry(1, "", schema.ReasonVersion), entry(2, "ws_b", schema.ReasonPartition), entry(3, "ws_c", schema.ReasonPartition),
		entry(4, "ws_b", schema.ReasonJSON),
	}}
	l.entries[3].TimeMs = -1
	l.entries[1].Redriven = redriveOf(l.entries[1], "key_1")
	do, operator, tenant, reader := serveLetters(t, l)
	f := func(query, key string, want ...int64) {
		t.Helper()
		got := read[lettersAnswer](t, do("GET", "/admin/v1/dead-letters"+query, "", key), 200)
		var offsets []int64
		for _, d := range got.Data {
			offsets = append(offsets, d.Offset/10)
		}
		if !slices.Equal(offsets, want) {
			t.Errorf("%s: letters %v, want %v", query, offsets, want)
		}
	}
	f("", operator, 1, 2, 3, 4)
	f("", tenant, 2, 4)
	f("?workspace_id=ws_c", operator, 3)
	f("?workspace_id=ws_c", tenant)
	f("?partition=0", operator, 2, 4)
	f("?reason=wrong_partition", operator, 2, 3)
	f("?redriven=true", operator, 2)
	f("?redriven=false", operator, 1, 3, 4)
	f("?from=1790000002000&to=1790000004000", operator, 2, 3)
	f("?limit=2", operator, 1, 2)
	first := read[lettersAnswer](t, do("GET", "/admin/v1/dead-letters?limit=3", "", operator), 200)
	if !first.Pagination.HasMore || first.Pagination.NextCursor == nil || first.Pagination.Limit != 3 {
		t.Fatalf("pagination %+v", first.Pagination)
	}
	f("?cursor="+*first.Pagination.NextCursor, operator, 4)
	if last := read[lettersAnswer](t, do("GET", "/admin/v1/dead-letters?cursor=at_4", "", operator), 200); last.Pagination.HasMore ||
		last.Pagination.NextCursor == nil || *last.Pagination.NextCursor != "at_4" {
		t.Errorf("behind the last letter: %+v; want the cursor that was given, to go on at", last.Pagination)
	}

	do("GET", "/admin/v1/dead-letters", "", reader).want(t, 403, "insufficient_scope", "")
	for query, param := range map[string]string{
		"limit=0": "limit", "limit=1001": "limit", "partition=-1": "partition", "partition=65536": "partition", "reason=bad": "reason",
		"from=yesterday": "from", "to=-1": "to", "redriven=1": "redriven", "cursor=x": "cursor", "cursor=at_-1": "cursor",
		"cursor=at_01": "cursor", "workspace_id=a/b": "workspace_id", "limit=1&limit=2": "limit",
		"limit=": "limit", "workspace_id=": "workspace_id", "redriven=": "redriven",
	} {
		do("GET", "/admin/v1/dead-letters?"+query, "", operator).want(t, 400, "invalid_parameter", param)
	}
	do("GET", "/admin/v1/dead-letters?order=desc", "", operator).want(t, 400, "unknown_parameter", "order")
	l.sync = errors.New("away")
	do("GET", "/admin/v1/dead-letters", "", operator).want(t, 503, "log_unavailable", "")
}

func TestOneDeadLetterHasItsRecord(t *testing.T) {
	l := &testLetters{entries: []*deadletters.Entry{entry(2, "ws_c", schema.ReasonPartition)}}
	do, operator, tenant, _ := serveLetters(t, l)
	path := "/admin/v1/dead-letters/" + schema.DeadLetterID(l.entries[0].At)
	do("GET", path, "", operator).want(t, 404, "not_found", "") // deleted since it was listed
	l.letter = schema.NewDeadLetter(l.entries[0].At, errors.New("x"), 1, []byte{0xff},
		[]schema.Header{{Key: "a", Value: []byte("b")}, {Key: "c\xff", Value: []byte{0xfe}}, {Key: "none"}}, []byte("text"))
	got := read[struct {
		Complete    bool    `json:"complete"`
		Key         *string `json:"key"`
		KeyBase64   []byte  `json:"key_base64"`
		Value       *string `json:"value"`
		HeaderCount int     `json:"header_count"`
		Headers     []struct {
			Name        string  `json:"name"`
			Value       *string `json:"value"`
			ValueBase64 []byte  `json:"value_base64"`
		} `json:"headers"`
	}](t, do("GET", path, "", operator), 200)
	if !got.Complete || got.Key != nil || string(got.KeyBase64) != "\xff" || got.Value == nil || *got.Value != "text" || got.HeaderCount != 3 ||
		*got.Headers[0].Value != "b" || got.Headers[1].Name != "c\uFFFD" || string(got.Headers[1].ValueBase64) != "\xfe" || got.Headers[2].Value != nil {
		t.Errorf("letter %+v", got)
	}
	do("GET", path, "", tenant).want(t, 404, "not_found", "")
	for _, id := range []string{"dl_x", "evt_01000000000000000000000000", schema.DeadLetterID(schema.Position{Epoch: 9})} {
		do("GET", "/admin/v1/dead-letters/"+id, "", operator).want(t, 404, "not_found", "")
	}
	do("GET", path+"?x=1", "", operator).want(t, 400, "unknown_parameter", "x")
}

func TestRedrives(t *testing.T) {
	l := &testLetters{entries: []*deadletters.Entry{entry(1, "ws_a", schema.ReasonPartition), entry(2, "ws_b", schema.ReasonPartition)}}
	do, operator, tenant, reader := serveLetters(t, l)
	path := func(i int) string {
		return "/admin/v1/dead-letters/" + schema.DeadLetterID(l.entries[i].At) + "/redrive"
	}
	type redriven struct {
		ID        string `json:"id"`
		EventID   string `json:"event_id"`
		SessionID string `json:"session_id"`
		Duplicate bool   `json:"duplicate"`
	}
	if got := read[redriven](t, do("POST", path(0), "", operator), 200); got.EventID != firstEvent || got.Duplicate || got.SessionID != "s" {
		t.Errorf("redriven: %+v", got)
	}
	body := `{"workspace_id":"ws_b","session_id":"s2","type":"t2","content_type":"text/plain","leave_out":["ce_time"]}`
	read[redriven](t, do("POST", path(0), body, operator), 200)
	want := schema.Correction{Workspace: "ws_b", Session: "s2", Type: "t2", ContentType: "text/plain", LeaveOut: []string{"ce_time"}}
	if got := l.asked[len(l.asked)-1]; got.Workspace != want.Workspace || got.Session != want.Session || got.Type != want.Type ||
		got.ContentType != want.ContentType || !slices.Equal(got.LeaveOut, want.LeaveOut) {
		t.Errorf("asked for %+v, want %+v", got, want)
	}
	read[redriven](t, do("POST", path(1), `{"workspace_id":"ws_b"}`, tenant), 200)
	do("POST", path(0), "", tenant).want(t, 404, "not_found", "")
	do("POST", path(1), `{"workspace_id":"ws_a"}`, tenant).want(t, 404, "not_found", "workspace_id")
	do("POST", path(0), "", reader).want(t, 403, "insufficient_scope", "")
	for body, c := range map[string][2]string{
		`{"session_id":"a/b"}`: {"invalid_field", "session_id"}, `{"workspace_id":" "}`: {"invalid_field", "workspace_id"},
		`{"type":"1"}`: {"invalid_field", "type"}, `{"type":"error"}`: {"reserved_type", "type"}, `{"content_type":"json"}`: {"invalid_field", "content_type"},
		`{"leave_out":["ce_type"]}`: {"invalid_field", "leave_out"}, `{"leave_out":[` + strings.Repeat(`"ce_time",`, 16) + `"ce_time"]}`: {"invalid_field", "leave_out"},
		`{"x":1}`: {"unknown_field", "x"}, `{`: {"invalid_json", ""}, `null`: {"invalid_json", ""},
	} {
		do("POST", path(0), body, operator).want(t, 400, c[0], c[1])
	}
	for err, c := range map[error]struct {
		status int
		code   string
	}{
		deadletters.ErrNotFound: {404, "not_found"}, deadletters.ErrRedriven: {409, "dead_letter_redriven"}, deadletters.ErrCut: {409, "dead_letter_not_redrivable"},
		deadletters.ErrUnreadable: {409, "dead_letter_not_redrivable"}, deadletters.ErrIsEvent: {409, "dead_letter_not_redrivable"},
		schema.Rejected(schema.ReasonJSON, "x"): {422, "dead_letter_still_rejected"}, errors.New("away"): {503, "log_unavailable"},
		httpapi.Errorf(409, "session_ended", "Ended."): {409, "session_ended"},
	} {
		l.redrive = err
		do("POST", path(0), "", operator).want(t, c.status, c.code, "")
	}
	l.redrive = deadletters.ErrWorkspace
	do("POST", path(0), "", operator).want(t, 404, "not_found", "workspace_id")
}

func TestRedrivesOfManyGoOnAtTheirCursor(t *testing.T) {
	l := &testLetters{}
	for i := range int64(5) {
		l.entries = append(l.entries, entry(i, "ws_a", schema.ReasonPartition))
	}
	l.entries[1].Redriven = redriveOf(l.entries[1], "key_1")
	do, operator, tenant, _ := serveLetters(t, l)
	type answer struct {
		Data []struct {
			ID    string `json:"id"`
			Error *struct {
				Code string `json:"code"`
			} `json:"error"`
		} `json:"data"`
		Pagination struct {
			NextCursor *string `json:"next_cursor"`
			HasMore    bool    `json:"has_more"`
		} `json:"pagination"`
	}
	var ids []string
	for cursor := ""; ; {
		got := read[answer](t, do("POST", "/admin/v1/dead-letters/redrive?limit=2&cursor="+cursor, `{"type":"t"}`, operator), 200)
		for _, d := range got.Data {
			ids = append(ids, d.ID)
		}
		if !got.Pagination.HasMore {
			break
		}
		cursor = *got.Pagination.NextCursor
	}
	var want []string
	for _, i := range []int{0, 2, 3, 4} {
		want = append(want, schema.DeadLetterID(l.entries[i].At))
	}
	if !slices.Equal(ids, want) {
		t.Errorf("redriven: %v, want %v", ids, want)
	}
	do("GET", "/admin/v1/dead-letters/redrive", "", operator).want(t, 405, "method_not_allowed", "")
	if got := read[answer](t, do("POST", "/admin/v1/dead-letters/redrive", "", tenant), 200); len(got.Data) != 0 {
		t.Errorf("another workspace's: %+v", got)
	}
	l.redrive = schema.Rejected(schema.ReasonJSON, "x")
	if got := read[answer](t, do("POST", "/admin/v1/dead-letters/redrive", "", operator), 200); len(got.Data) != 4 || got.Data[0].Error == nil ||
		got.Data[0].Error.Code != "dead_letter_still_rejected" {
		t.Errorf("all fail: %+v", got)
	}
	l.redrive = errors.New("away")
	do("POST", "/admin/v1/dead-letters/redrive", "", operator).want(t, 503, "log_unavailable", "")
	if b, err := json.Marshal(l.asked[0]); err != nil || l.asked[0].Type != "t" {
		t.Errorf("asked for %s", b)
	}
}
