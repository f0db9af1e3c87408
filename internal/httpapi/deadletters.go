package httpapi

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/deadletters"
	"github.com/playhead-dev/playhead/schema"
)

// Paths of dead letters.
const (
	pathDeadLetters = pathAdmin + "v1/dead-letters"
	pathDeadLetter  = pathDeadLetters + "/:id<len(29)>" // as long as the ids are: redrive is none
	pathRedriveAll  = pathDeadLetters + "/redrive"
	pathRedriveOne  = pathDeadLetter + "/redrive"
)

// Bounds of the paths of dead letters.
const (
	deadLetterPage   = 100
	maxDeadLetters   = 1000
	maxRedrives      = 500 // letters of one request
	maxLeaveOut      = 16
	deadLetterWait   = 15 * time.Second
	redriveAllBudget = 20 * time.Second
)

// A cursor is the place of the page's last letter in the topic.
const (
	placeTextPrefix = "at_"
	placeTextBase   = 36
)

// DeadLetters is where dead letters are listed and appended again.
type DeadLetters interface {
	// Operator reports whether the admin keys of a workspace are the operator's, who sees the
	// letters of all workspaces and of none.
	Operator(workspace string) bool
	// Sync has what follows show all letters that were written before the call.
	Sync(ctx context.Context) error
	// List returns the letters behind a place that want takes, the oldest first, at most
	// limit, and whether there are more.
	List(after int64, limit int, want func(*deadletters.Entry) bool) (page []*deadletters.Entry, more bool)
	Entry(at schema.Position) (*deadletters.Entry, bool)
	Letter(ctx context.Context, e *deadletters.Entry) (*schema.DeadLetter, error)
	// Redrive appends a letter as an event, once.
	Redrive(ctx context.Context, e *deadletters.Entry, c schema.Correction, by string) (made *schema.Redrive, again bool, err error)
}

// DeadLetterRoutes adds the paths of dead letters, all of scope admin; app must authenticate
// before them:
//
//	GET  /admin/v1/dead-letters               lists them
//	GET  /admin/v1/dead-letters/{id}          one, with all of its record
//	POST /admin/v1/dead-letters/{id}/redrive  appends it as an event
//	POST /admin/v1/dead-letters/redrive       appends those that the filters take
func DeadLetterRoutes(app fiber.Router, letters DeadLetters) {
	h := deadLetterHandlers{letters: letters}
	admin := Require(control.ScopeAdmin)
	app.Get(pathDeadLetters, admin, h.list)
	app.Post(pathRedriveAll, admin, h.redriveAll)
	app.Get(pathDeadLetter, admin, h.get)
	app.Post(pathRedriveOne, admin, h.redrive)
}

type deadLetterHandlers struct{ letters DeadLetters }

// deadLetterView is a dead letter as a list shows it.
type deadLetterView struct {
	ID          string       `json:"id"`
	Reason      string       `json:"reason"`
	Detail      string       `json:"detail"`
	Topic       string       `json:"topic"`
	LogEpoch    uint8        `json:"log_epoch"`
	Partition   uint16       `json:"partition"`
	Offset      int64        `json:"offset"`
	NextOffset  int64        `json:"next_offset"`
	Time        *string      `json:"time"` // null: the timestamp is none of the years 1970 to 2299
	TimestampMs int64        `json:"timestamp_ms"`
	FoundAt     string       `json:"found_at"`
	WorkspaceID *string      `json:"workspace_id"` // null: the record names none, or not clearly
	SessionID   *string      `json:"session_id"`
	Type        *string      `json:"type"`
	ValueBytes  int          `json:"value_bytes"`
	Redriven    *redriveView `json:"redriven"`
}

// redriveView is what became of a letter.
type redriveView struct {
	EventID     string `json:"event_id"`
	WorkspaceID string `json:"workspace_id"`
	SessionID   string `json:"session_id"`
	Type        string `json:"type"`
	RedrivenAt  string `json:"redriven_at"`
	RedrivenBy  string `json:"redriven_by"`
}

// wholeLetterView is a dead letter with its record: texts where they are UTF-8, base64
// elsewhere.
type wholeLetterView struct {
	deadLetterView
	Complete    bool         `json:"complete"` // false: of key, headers and value only a part was kept
	Key         *string      `json:"key"`
	KeyBase64   []byte       `json:"key_base64,omitempty"`
	Headers     []headerView `json:"headers"`
	HeaderCount int          `json:"header_count"`
	Value       *string      `json:"value"`
	ValueBase64 []byte       `json:"value_base64,omitempty"`
}

type headerView struct {
	Name        string  `json:"name"`
	Value       *string `json:"value"`
	ValueBase64 []byte  `json:"value_base64,omitempty"`
}

func viewDeadLetter(e *deadletters.Entry) deadLetterView {
	v := deadLetterView{
		ID: schema.DeadLetterID(e.At), Reason: string(e.Reason), Detail: e.Why, Topic: schema.TopicEvents,
		LogEpoch: e.At.Epoch, Partition: e.At.Partition, Offset: e.At.Offset, NextOffset: e.Next, TimestampMs: e.TimeMs,
		FoundAt: timeText(e.FoundMs), WorkspaceID: orNull(e.Workspace), SessionID: orNull(e.Session), Type: orNull(e.Type),
		ValueBytes: e.ValueBytes,
	}
	if e.TimeMs >= 0 && e.TimeMs <= schema.MaxEventTimeMs {
		v.Time = orNull(timeText(e.TimeMs))
	}
	if e.Redriven != nil {
		r := viewRedrive(e.Redriven)
		v.Redriven = &r
	}
	return v
}

func viewRedrive(r *schema.Redrive) redriveView {
	return redriveView{
		EventID: r.EventID, WorkspaceID: r.WorkspaceID, SessionID: r.SessionID, Type: r.Type,
		RedrivenAt: timeText(r.AtMs), RedrivenBy: r.By,
	}
}

func timeText(ms int64) string { return time.UnixMilli(ms).UTC().Format(schema.TimeFormat) }

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// textOrBytes splits bytes into what JSON can show as text and what it cannot; nil is
// neither.
func textOrBytes(b []byte) (text *string, raw []byte) {
	switch {
	case b == nil:
		return nil, nil
	case utf8.Valid(b):
		s := string(b)
		return &s, nil
	default:
		return nil, b
	}
}

// mine returns what a caller may see of the letters.
func (h deadLetterHandlers) mine(c *fiber.Ctx) func(*deadletters.Entry) bool {
	workspace := From(c).Workspace
	if h.letters.Operator(workspace) {
		return func(*deadletters.Entry) bool { return true }
	}
	return func(e *deadletters.Entry) bool { return e.Workspace == workspace }
}

// letterQuery is the query of a list, and of a redrive of many.
type letterQuery struct {
	after int64
	limit int
	want  func(*deadletters.Entry) bool
}

// letterParams are the parameters of a letterQuery.
func letterParams() []string {
	return []string{"workspace_id", "partition", "reason", "from", "to", "redriven", "limit", "cursor"}
}

// parseLetterQuery reads a query.
func (h deadLetterHandlers) parseLetterQuery(c *fiber.Ctx, usual, most int) (lq letterQuery, err error) {
	q, err := Query(c)
	if err != nil {
		return lq, err
	}
	names := letterParams()
	if err := CheckParams(q, func(name string) bool { return slices.Contains(names, name) }); err != nil {
		return lq, err
	}
	given := make(map[string]string, len(names))
	for _, name := range names {
		if given[name], err = One(q, name); err != nil {
			return lq, err
		}
		if given[name] == "" && q.Has(name) && name != "cursor" { // as in other queries
			return lq, InvalidParameter(name, "Parameter %s is empty; leave it out, or give it a value.", name)
		}
	}
	wants := []func(*deadletters.Entry) bool{h.mine(c)}
	for _, parse := range []func(map[string]string) (func(*deadletters.Entry) bool, error){
		wantWorkspace, wantPartition, wantReason, wantTime, wantRedriven,
	} {
		want, err := parse(given)
		if err != nil {
			return lq, err
		}
		wants = append(wants, want)
	}
	lq.want = func(e *deadletters.Entry) bool {
		for _, want := range wants {
			if want != nil && !want(e) {
				return false
			}
		}
		return true
	}
	if lq.limit, err = parseLimit(given["limit"], usual, most); err != nil {
		return lq, err
	}
	lq.after, err = parsePlace(q, given["cursor"])
	return lq, err
}

func parseLimit(text string, usual, most int) (int, error) {
	if text == "" {
		return usual, nil
	}
	limit, err := strconv.Atoi(text)
	if err != nil || limit < 1 || limit > most {
		return 0, InvalidParameter("limit", "Parameter limit is %q; want 1 to %d.", cut(text), most)
	}
	return limit, nil
}

// placeText is the cursor behind a letter.
func placeText(place int64) string { return placeTextPrefix + strconv.FormatInt(place, placeTextBase) }

func parsePlace(q url.Values, text string) (int64, error) {
	if !q.Has("cursor") || text == "" {
		return -1, nil
	}
	digits, ok := strings.CutPrefix(text, placeTextPrefix)
	place, err := strconv.ParseInt(digits, placeTextBase, 64)
	if !ok || err != nil || place < 0 || placeText(place) != text {
		return 0, InvalidParameter("cursor", "Parameter cursor is not one of an earlier page.")
	}
	return place, nil
}

func wantWorkspace(given map[string]string) (func(*deadletters.Entry) bool, error) {
	id := given["workspace_id"]
	if id == "" {
		return nil, nil
	}
	if err := schema.CheckID(id); err != nil {
		return nil, InvalidParameter("workspace_id", "Parameter workspace_id %s.", err)
	}
	return func(e *deadletters.Entry) bool { return e.Workspace == id }, nil
}

func wantPartition(given map[string]string) (func(*deadletters.Entry) bool, error) {
	text := given["partition"]
	if text == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, InvalidParameter("partition", "Parameter partition is %s; want 0 to %d.", schema.Quote(text), schema.MaxPartition)
	}
	return func(e *deadletters.Entry) bool { return e.At.Partition == uint16(n) }, nil
}

func wantReason(given map[string]string) (func(*deadletters.Entry) bool, error) {
	reason := schema.Reason(given["reason"])
	if reason == "" {
		return nil, nil
	}
	if !slices.Contains(schema.Reasons(), reason) {
		return nil, InvalidParameter("reason", "Parameter reason is %s; want one of %s.", schema.Quote(string(reason)), reasonList())
	}
	return func(e *deadletters.Entry) bool { return e.Reason == reason }, nil
}

func reasonList() string {
	var names []string
	for _, r := range schema.Reasons() {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

func wantTime(given map[string]string) (func(*deadletters.Entry) bool, error) {
	bounds := [2]int64{0, schema.MaxEventTimeMs + 1}
	for i, name := range []string{"from", "to"} {
		text := given[name]
		if text == "" {
			continue
		}
		ms, err := schema.ParseTime(text)
		if err != nil {
			return nil, InvalidParameter(name, "Parameter %s %s.", name, err)
		}
		bounds[i] = ms
	}
	return func(e *deadletters.Entry) bool { return e.FoundMs >= bounds[0] && e.FoundMs < bounds[1] }, nil
}

func wantRedriven(given map[string]string) (func(*deadletters.Entry) bool, error) {
	text := given["redriven"]
	if text == "" {
		return nil, nil
	}
	if text != "true" && text != "false" {
		return nil, InvalidParameter("redriven", "Parameter redriven is %s; want true or false.", schema.Quote(text))
	}
	return func(e *deadletters.Entry) bool { return (e.Redriven != nil) == (text == "true") }, nil
}

func (h deadLetterHandlers) list(c *fiber.Ctx) error {
	q, err := h.parseLetterQuery(c, deadLetterPage, maxDeadLetters)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), deadLetterWait)
	defer cancel()
	if err := h.letters.Sync(ctx); err != nil {
		return LogUnavailable(err)
	}
	page, more := h.letters.List(q.after, q.limit, q.want)
	answer := listAnswer[deadLetterView]{Data: []deadLetterView{}, Pagination: listPagination{HasMore: more, Limit: q.limit}}
	for _, e := range page {
		answer.Data = append(answer.Data, viewDeadLetter(e))
	}
	answer.Pagination.NextCursor = nextPlace(page, c)
	return c.JSON(answer)
}

// nextPlace is the cursor behind a page's last letter; behind an empty page it is the one
// that was given, so that a client that polls goes on where it was.
func nextPlace(page []*deadletters.Entry, c *fiber.Ctx) *string {
	if len(page) == 0 {
		return orNull(strings.Clone(c.Query("cursor")))
	}
	return orNull(placeText(page[len(page)-1].Place))
}

// entry returns the letter that the path names, if the caller may see it.
func (h deadLetterHandlers) entry(ctx context.Context, c *fiber.Ctx) (*deadletters.Entry, error) {
	at, err := schema.ParseDeadLetterID(c.Params("id"))
	if err != nil {
		return nil, NotFound("dead letter")
	}
	if err := h.letters.Sync(ctx); err != nil {
		return nil, LogUnavailable(err)
	}
	e, ok := h.letters.Entry(at)
	if !ok || !h.mine(c)(e) {
		return nil, NotFound("dead letter")
	}
	return e, nil
}

func (h deadLetterHandlers) get(c *fiber.Ctx) error {
	if err := NoParams(c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), deadLetterWait)
	defer cancel()
	e, err := h.entry(ctx, c)
	if err != nil {
		return err
	}
	letter, err := h.letters.Letter(ctx, e)
	if errors.Is(err, deadletters.ErrGone) {
		return NotFound("dead letter")
	}
	if err != nil {
		return LogUnavailable(err)
	}
	v := wholeLetterView{
		deadLetterView: viewDeadLetter(e), Complete: letter.Whole(),
		Headers: make([]headerView, len(letter.Headers)), HeaderCount: letter.HeaderCount,
	}
	v.Key, v.KeyBase64 = textOrBytes(letter.Key)
	v.Value, v.ValueBase64 = textOrBytes(letter.Value)
	for i, header := range letter.Headers {
		v.Headers[i].Name = strings.ToValidUTF8(header.Key, "\uFFFD")
		v.Headers[i].Value, v.Headers[i].ValueBase64 = textOrBytes(header.Value)
	}
	return c.JSON(v)
}

// correctionBody is the body of a redrive.
type correctionBody struct {
	WorkspaceID string   `json:"workspace_id"`
	SessionID   string   `json:"session_id"`
	Type        string   `json:"type"`
	ContentType string   `json:"content_type"`
	LeaveOut    []string `json:"leave_out"`
}

// readCorrection reads a redrive's body, which may be empty, and checks it.
func (h deadLetterHandlers) readCorrection(c *fiber.Ctx) (out schema.Correction, err error) {
	var body correctionBody
	if len(c.BodyRaw()) > 0 {
		if err := DecodeJSON(c, &body); err != nil {
			return out, err
		}
	}
	for _, field := range []struct {
		name, value string
		check       func(string) error
	}{
		{"workspace_id", body.WorkspaceID, schema.CheckID},
		{"session_id", body.SessionID, schema.CheckID},
		{"type", body.Type, schema.CheckType},
		{"content_type", body.ContentType, schema.CheckContentType},
	} {
		if field.value == "" {
			continue
		}
		if err := field.check(field.value); err != nil {
			return out, InvalidField(field.name, "Field %s %s.", field.name, err)
		}
	}
	if schema.IsReservedType(body.Type) {
		return out, Errorf(400, "reserved_type", "Field type is %s, which is one of Playhead's own.", schema.Quote(body.Type)).WithParam("type")
	}
	if len(body.LeaveOut) > maxLeaveOut {
		return out, InvalidField("leave_out", "Field leave_out has %d names; at most %d are allowed.", len(body.LeaveOut), maxLeaveOut)
	}
	for _, name := range body.LeaveOut {
		if !slices.Contains(schema.LeavableHeaders(), name) {
			return out, InvalidField("leave_out", "Field leave_out has %s; want some of %s.", schema.Quote(name), strings.Join(schema.LeavableHeaders(), ", "))
		}
	}
	who := From(c)
	if body.WorkspaceID != "" && body.WorkspaceID != who.Workspace && !h.letters.Operator(who.Workspace) {
		return out, NotFound("workspace").WithParam("workspace_id")
	}
	return schema.Correction{
		Workspace: body.WorkspaceID, Session: body.SessionID, Type: body.Type, ContentType: body.ContentType, LeaveOut: body.LeaveOut,
	}, nil
}

// redriven is what became of one letter.
type redriven struct {
	ID           string         `json:"id"`
	Duplicate    bool           `json:"duplicate"` // it was appended again before
	*redriveView                // nil if it failed
	Error        map[string]any `json:"error,omitempty"`
}

func (h deadLetterHandlers) redrive(c *fiber.Ctx) error {
	if err := NoParams(c); err != nil {
		return err
	}
	correction, err := h.readCorrection(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), redriveAllBudget)
	defer cancel()
	e, err := h.entry(ctx, c)
	if err != nil {
		return err
	}
	made, again, err := h.letters.Redrive(ctx, e, correction, From(c).KeyID)
	if err != nil {
		return redriveError(err, made)
	}
	v := viewRedrive(made)
	return c.JSON(redriven{ID: schema.DeadLetterID(e.At), Duplicate: again, redriveView: &v})
}

// redriveError maps the errors of a Redrive.
func redriveError(err error, made *schema.Redrive) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e // of the append
	}
	if r, ok := errors.AsType[*schema.RejectError](err); ok {
		return Errorf(422, CodeStillRejected, "The dead letter is no event with these corrections: %s.", r.Why).
			WithDetail("reason", string(r.Reason)).WithDetail("leavable", schema.LeavableHeaders())
	}
	not := func(why, sentence string) *Error {
		return Errorf(409, CodeNotRedrivable, "%s", sentence).WithDetail("why", why)
	}
	switch {
	case errors.Is(err, deadletters.ErrNotFound):
		return NotFound("dead letter")
	case errors.Is(err, deadletters.ErrWorkspace):
		return NotFound("workspace").WithParam("workspace_id")
	case errors.Is(err, deadletters.ErrRedriven):
		return Errorf(409, CodeRedriven, "The dead letter was appended again already, as another event.").
			WithDetail("event_id", made.EventID)
	case errors.Is(err, deadletters.ErrUnreadable):
		return not("unreadable", "The records of this batch cannot be read.")
	case errors.Is(err, deadletters.ErrCut):
		return not("incomplete", "Only a part of the record was kept, and Kafka has deleted the record.")
	case errors.Is(err, deadletters.ErrIsEvent):
		return not("is_event", "The workspace has been made since: the record is an event of it.")
	default:
		return LogUnavailable(err)
	}
}

// redriveAll goes through the letters that were not appended again yet, until it has tried
// as many as it may or its time is up; the cursor says where to go on.
func (h deadLetterHandlers) redriveAll(c *fiber.Ctx) error {
	q, err := h.parseLetterQuery(c, deadLetterPage, maxRedrives)
	if err != nil {
		return err
	}
	correction, err := h.readCorrection(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), redriveAllBudget)
	defer cancel()
	if err := h.letters.Sync(ctx); err != nil {
		return LogUnavailable(err)
	}
	page, more := h.letters.List(q.after, q.limit, func(e *deadletters.Entry) bool { return e.Redriven == nil && q.want(e) })
	answer := listAnswer[redriven]{Data: []redriven{}, Pagination: listPagination{HasMore: more, Limit: q.limit}}
	for i, e := range page {
		made, again, err := h.letters.Redrive(ctx, e, correction, From(c).KeyID)
		result := redriven{ID: schema.DeadLetterID(e.At), Duplicate: again}
		if err != nil {
			failure := redriveError(err, made)
			if failure.Status >= 500 { // it will pass: this one and those behind it are for the next request
				if i == 0 {
					return failure
				}
				page, answer.Pagination.HasMore = page[:i], true
				break
			}
			result.Error = failure.Body()
		} else {
			v := viewRedrive(made)
			result.redriveView = &v
		}
		answer.Data = append(answer.Data, result)
	}
	answer.Pagination.NextCursor = nextPlace(page, c)
	return c.JSON(answer)
}
