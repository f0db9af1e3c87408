package streamer

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// commandTimeout bounds what a command has to look up.
const commandTimeout = 10 * time.Second

// order is a command as a client writes it: {"op","ref"?, …}. The members beside these two
// are the op's parameters.
type order struct {
	op     op
	ref    json.RawMessage
	params map[string]json.RawMessage
}

// parseOrder reads an order. The order has its ref, if it gave one, even where there is an
// error.
func parseOrder(text []byte) (order, error) {
	o := order{ref: json.RawMessage("null")}
	params, twice, err := readMembers(text)
	if err != nil || !utf8.Valid(text) {
		return o, httpapi.Errorf(400, httpapi.CodeInvalidJSON, "A command is one JSON object, in UTF-8.")
	}
	o.params = params
	if ref, ok := o.params["ref"]; ok {
		if len(ref) > maxRefBytes {
			return o, httpapi.InvalidField("ref", "ref has %d bytes; want at most %d.", len(ref), maxRefBytes)
		}
		o.ref = ref
	}
	if twice != "" {
		return o, httpapi.InvalidField(truncate(twice, 128), "%s is given twice.", schema.Quote(twice))
	}
	if err := json.Unmarshal(o.params["op"], &o.op); err != nil {
		return o, httpapi.InvalidField("op", "op is missing or no text; want subscribe, pause, resume, seek, speed, cancel or append.")
	}
	delete(o.params, "ref")
	delete(o.params, "op")
	return o, nil
}

// readMembers reads the members of a JSON object, and says which of them is there twice. It
// looks at them only: what holds for a value is for whom it is for to say.
func readMembers(text []byte) (members map[string]json.RawMessage, twice string, err error) {
	dec := jsontext.NewDecoder(bytes.NewReader(text), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if kind := dec.PeekKind(); kind != '{' {
		return nil, "", fmt.Errorf("begins with %s", kind)
	}
	members = make(map[string]json.RawMessage)
	for _, err = dec.ReadToken(); err == nil && dec.PeekKind() == '"'; {
		var name jsontext.Token
		if name, err = dec.ReadToken(); err != nil {
			break
		}
		key := name.String() // the token does not outlive the next
		var value jsontext.Value
		if value, err = dec.ReadValue(); err != nil {
			break
		}
		if _, ok := members[key]; ok {
			twice = key
		}
		members[key] = json.RawMessage(value.Clone())
	}
	if err == nil {
		_, err = dec.ReadToken() // }
	}
	if err != nil {
		return nil, "", err
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, "", errors.New("something follows")
	}
	return members, twice, nil
}

// maxRefBytes bounds what is sent back with each answer.
const maxRefBytes = 256

// maxValues bounds the values of one command, as those of a query are.
const maxValues = 256

// values reads parameters in the form of a query, so that a command means what the URL
// means: text, numbers and true or false, lists of them, and filters as an object.
func (o *order) values() (url.Values, error) {
	q := make(url.Values, len(o.params))
	left := maxValues
	add := func(name string, n int) error {
		if left -= n; left < 0 {
			return httpapi.InvalidField(name, "The command has more than %d values.", maxValues)
		}
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(o.params)) { // so that of two errors the same is told
		raw := o.params[name]
		if name == "filters" {
			var filters map[string]string
			if err := json.Unmarshal(raw, &filters); err != nil {
				return nil, httpapi.InvalidField(name, "filters is not an object of text.")
			}
			if err := add(name, len(filters)); err != nil {
				return nil, err
			}
			for key, value := range filters {
				q.Add("filters["+key+"]", value)
			}
			continue
		}
		list := []json.RawMessage{raw}
		if raw[0] == '[' {
			list = nil
			if err := json.Unmarshal(raw, &list); err != nil {
				return nil, httpapi.InvalidField(name, "%s is not JSON.", name)
			}
		}
		if err := add(name, len(list)); err != nil {
			return nil, err
		}
		for _, item := range list {
			text, err := plainText(item)
			if err != nil {
				return nil, httpapi.InvalidField(name, "%s %v.", name, err)
			}
			q.Add(name, text)
		}
	}
	return q, nil
}

// plainText reads text or a number as it would stand in a URL; true is 1 and false 0.
func plainText(raw json.RawMessage) (string, error) {
	switch {
	case raw[0] == '"':
		var text string
		err := json.Unmarshal(raw, &text)
		return text, err
	case raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9':
		return string(raw), nil
	case string(raw) == "true":
		return "1", nil
	case string(raw) == "false":
		return "0", nil
	default:
		return "", errors.New("is neither text, number, true nor false, nor a list of these")
	}
}

// takes reports the first parameter that the order's op does not know.
func (o *order) takes(allowed ...string) error {
	return o.check(func(name string) bool { return slices.Contains(allowed, name) })
}

func (o *order) check(allowed func(string) bool) error {
	unknown := ""
	for name := range o.params {
		if !allowed(name) && (unknown == "" || name < unknown) {
			unknown = name
		}
	}
	if unknown == "" {
		return nil
	}
	return httpapi.Errorf(400, httpapi.CodeUnknownField, "%s is not a member of the command %s.", schema.Quote(unknown), o.op).WithParam(truncate(unknown, 128))
}

// command makes the order a command that can be carried out on a stream of req, opened by
// who. byServer says that it is not the stream's own client that gives it.
func (h *Hub) command(ctx context.Context, who control.Principal, req Request, o order, byServer bool) (command, error) {
	switch o.op {
	case opPause, opResume:
		return command{op: o.op}, o.takes()
	case opCancel:
		return o.cancel(byServer)
	case opSpeed:
		return o.speed()
	case opSeek, opSubscribe:
		return h.reposition(ctx, who, req, o)
	default:
		want := "subscribe, pause, resume, seek, speed, cancel or append"
		if byServer {
			want = "subscribe, pause, resume, seek, speed or cancel"
		}
		return command{}, httpapi.InvalidField("op", "op is %s; want %s.", schema.Quote(string(o.op)), want)
	}
}

func (o *order) cancel(byServer bool) (command, error) {
	reason := "cancelled"
	if raw, ok := o.params["reason"]; ok {
		if err := json.Unmarshal(raw, &reason); err != nil || schema.CheckText(reason, maxCloseReason) != nil {
			return command{}, httpapi.InvalidField("reason", "reason is not text of at most %d bytes without control characters.", maxCloseReason)
		}
	}
	return command{op: opCancel, reason: &cancelledError{byServer: byServer, reason: reason}}, o.takes("reason")
}

func (o *order) speed() (command, error) {
	if string(o.params["speed"]) == "null" {
		return command{op: opSpeed}, o.takes("speed")
	}
	q, err := o.values()
	if err != nil {
		return command{}, err
	}
	if !q.Has("speed") {
		return command{}, httpapi.InvalidField("speed", "speed is missing; want a number from %d to %d, or null for as fast as it goes.", minSpeed, maxSpeed)
	}
	speed, err := parseSpeed(q)
	if err != nil {
		return command{}, err
	}
	return command{op: opSpeed, speed: speed}, o.takes("speed")
}

// reposition makes a seek or a subscribe. A seek keeps the filter but for its bounds of
// time, which it sets; a subscribe replaces all of it, and goes on where the stream is
// unless it says where to begin.
func (h *Hub) reposition(ctx context.Context, who control.Principal, req Request, o order) (command, error) {
	cmd := command{op: o.op}
	allowed := func(name string) bool {
		switch name {
		case "last_event_id", "from", "from_t_ms", "since":
			return true
		case "notices", "filters":
			return o.op == opSubscribe
		case "binary":
			return o.op == opSubscribe && req.View.WebSocket
		}
		return o.op == opSubscribe && schema.IsFilterParam(name)
	}
	if err := o.check(allowed); err != nil {
		return cmd, err
	}
	q, err := o.values()
	if err != nil {
		return cmd, err
	}
	filter, err := h.parseFilter(q, req.Scope.Workspace)
	if err != nil {
		return cmd, httpapi.BadParam(err)
	}
	if o.op == opSeek {
		from, since := filter.FromTMs, filter.SinceMs
		filter = req.Filter
		filter.FromTMs, filter.SinceMs = from, since
	} else if types := req.View.Types; types != nil {
		filter.Only(types...)
	}
	cmd.filter = &filter
	if cmd.notices, err = o.flag(q, "notices"); err != nil {
		return cmd, err
	}
	if cmd.binary, err = o.flag(q, "binary"); err != nil {
		return cmd, err
	}
	b, somewhere, err := o.begin(q, &filter)
	if err != nil || !somewhere {
		return cmd, err
	}
	req.Filter = filter
	cmd.to, err = h.lookUp(ctx, who, req, b)
	return cmd, err
}

// begin reads where a seek or a subscribe has the stream go on, if it says so. Other than
// in a URL, where it is what saying nothing means, "now" has to be said.
func (o *order) begin(q url.Values, f *schema.Filter) (b begin, somewhere bool, err error) {
	now := q.Get("from") == "now"
	if now {
		q.Del("from")
	} else if q.Has("from") && q.Get("from") != "start" {
		return b, false, httpapi.InvalidField("from", "from is %s; want start or now.", schema.Quote(q.Get("from")))
	}
	if b, err = parseBegin(q, ""); err != nil {
		return b, false, err
	}
	somewhere = !b.cursor.IsZero() || b.start || f.SinceMs != nil || f.FromTMs != nil
	switch {
	case now && somewhere:
		return b, false, httpapi.InvalidField("from", "from is now, while another member says another place.")
	case !now && !somewhere && o.op == opSeek:
		return b, false, httpapi.InvalidField("from", "A seek wants one of from, from_t_ms, since and last_event_id.")
	}
	return b, now || somewhere, nil
}

// lookUp finds the positions of a place. It is as much work as to open a stream, and no
// more are done at once.
func (h *Hub) lookUp(ctx context.Context, who control.Principal, req Request, b begin) ([]schema.Position, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := h.openings.take(ctx, who.Workspace, nil, nil); err != nil {
		return nil, httpapi.Errorf(503, "overloaded", "Too many streams are being opened on this node.").WithRetryAfter(spreadReturn()).WithCause(err)
	}
	defer h.openings.give(who.Workspace)
	r, err := h.resolve(ctx, who, &req, b)
	if err != nil {
		return nil, err
	}
	to := make([]schema.Position, 0, len(r.legs))
	for _, p := range r.legs {
		to = append(to, p.from)
	}
	return to, nil
}

func (o *order) flag(q url.Values, name string) (*bool, error) {
	if !q.Has(name) {
		return nil, nil //nolint:nilnil // it is optional
	}
	v, err := choice(q, name, "0", "1")
	on := v == "1"
	return &on, err
}

// takeText has what a text message says done.
func (c *socketReader) takeText(message []byte) {
	o, err := parseOrder(message)
	if err != nil {
		c.refuse(err, answer{ref: o.ref})
		return
	}
	if o.op == opAppend {
		c.append(o)
		return
	}
	var as *binaryEvents
	if raw, ok := o.params["append"]; ok && o.op == opSubscribe {
		if as, err = c.parseBinaryEvents(raw); err != nil {
			c.refuse(err, answer{ref: o.ref})
			return
		}
		delete(o.params, "append")
	}
	cmd, err := c.hub.command(c.sub.ctx, c.who, c.sub.request(), o, false)
	if err != nil {
		c.refuse(err, answer{ref: o.ref})
		return
	}
	if as != nil { // not before all of the command is known to be good
		c.binaryEvents = *as
	}
	cmd.answer = answer{wanted: true, ref: o.ref}
	if o.op == opSubscribe {
		// Browsers cannot read it from the handshake.
		cmd.answer.data = map[string]json.RawMessage{"connection_id": marshal(c.sub.id)}
	}
	c.post(cmd)
}

// opAppend is carried out by the reader itself: it changes the log, not the stream.
const opAppend op = "append"

// append adds an event to the log: {"op":"append","event":{…}}.
func (c *socketReader) append(o order) {
	a := answer{ref: o.ref}
	event := o.params["event"]
	if err := o.takes("event"); err != nil {
		c.refuse(err, a)
		return
	}
	if len(event) == 0 || event[0] != '{' {
		c.refuse(httpapi.InvalidField("event", "event is missing or no object."), a)
		return
	}
	if session := c.sub.req.Scope.Session; session != "" {
		// The stream says which session; the event may repeat it.
		var members map[string]json.RawMessage
		_ = json.Unmarshal(event, &members) // it is an object, as it is part of one
		named := session
		raw, ok := members["session_id"]
		switch {
		case !ok && len(members) == 0:
			event = []byte(`{"session_id":` + string(marshal(session)) + `}`)
		case !ok:
			event = append([]byte(`{"session_id":`+string(marshal(session))+`,`), event[1:]...)
		case json.Unmarshal(raw, &named) == nil && named != session:
			c.refuse(httpapi.InvalidField("event.session_id", "event.session_id is %s; the stream is of another session.", schema.Quote(named)), a)
			return
		}
	}
	result, err := c.appendEvent(event)
	if err != nil {
		if e, ok := errors.AsType[*httpapi.Error](err); ok && e.Param != "" {
			within := *e
			err = within.WithParam("event." + e.Param)
		}
		c.refuse(err, a)
		return
	}
	a.data = map[string]json.RawMessage{"result": result}
	c.reply(a)
}

func (c *socketReader) appendEvent(event []byte) (result []byte, err error) {
	if c.who.Scopes&(control.ScopeIngest|control.ScopeControl) == 0 {
		return nil, httpapi.Errorf(403, httpapi.CodeInsufficientScope, "To append, the API key wants the scope ingest or control.").
			WithDetail("required", (control.ScopeIngest | control.ScopeControl).Names())
	}
	if c.hub.appender == nil {
		return nil, httpapi.Errorf(503, "overloaded", "This node takes no events.").WithRetryAfter(time.Second)
	}
	ctx, cancel := context.WithTimeout(c.sub.ctx, commandTimeout)
	defer cancel()
	return c.hub.appender.AppendJSON(ctx, c.who, event)
}

// binaryEvents says what binary messages become that a client sends.
type binaryEvents struct {
	eventType, contentType string // "": they are refused
}

// parseBinaryEvents reads what subscribe says of binary messages: {"type","content_type"?}.
func (c *socketReader) parseBinaryEvents(raw json.RawMessage) (*binaryEvents, error) {
	if c.sub.req.Scope.Session == "" {
		return nil, httpapi.InvalidField("append", "append is only for the stream of one session.")
	}
	as := struct {
		Type        string `json:"type"`
		ContentType string `json:"content_type"`
	}{ContentType: "application/octet-stream"}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&as); err != nil {
		return nil, httpapi.InvalidField("append", `append is not {"type":…,"content_type":…}.`)
	}
	if err := schema.CheckType(as.Type); err != nil {
		return nil, httpapi.InvalidField("append.type", "append.type %v.", err)
	}
	if schema.IsReservedType(as.Type) {
		return nil, httpapi.Errorf(400, "reserved_type", "append.type is %s, one of Playhead's own.", schema.Quote(as.Type)).WithParam("append.type")
	}
	if err := schema.CheckContentType(as.ContentType); err != nil {
		return nil, httpapi.InvalidField("append.content_type", "append.content_type %v.", err)
	}
	return &binaryEvents{as.Type, as.ContentType}, nil
}

// takeBinary appends a binary message to the session's log. It has no ref: its answer says
// the how manieth it is.
func (c *socketReader) takeBinary(message []byte) {
	c.binaries++
	a := answer{ref: json.RawMessage("null"), data: map[string]json.RawMessage{
		"binary": json.RawMessage(strconv.FormatInt(c.binaries, 10)),
	}}
	if c.binaryEvents.eventType == "" {
		c.refuse(httpapi.InvalidField("append", "A binary message is appended as the member append of subscribe says; none has said so."), a)
		return
	}
	event := append([]byte(`{"session_id":`), marshal(c.sub.req.Scope.Session)...)
	event = append(append(event, `,"type":`...), marshal(c.binaryEvents.eventType)...)
	event = append(append(event, `,"content_type":`...), marshal(c.binaryEvents.contentType)...)
	event = base64.StdEncoding.AppendEncode(append(event, `,"payload_base64":"`...), message)
	event = append(event, `"}`...)
	result, err := c.appendEvent(event)
	if err != nil {
		c.refuse(err, a)
		return
	}
	a.data["result"] = result
	c.reply(a)
}

// refuse answers a command with an error.
func (c *socketReader) refuse(err error, a answer) {
	e, ok := errors.AsType[*httpapi.Error](err)
	if !ok {
		e = httpapi.Errorf(500, httpapi.CodeInternal, "Something went wrong on our side.").WithCause(err)
	}
	if e.Cause != nil && c.sub.ctx.Err() == nil {
		c.hub.logger.Warn("command on a stream ended in an error", "stream", c.sub.id, "code", e.Code, "error", e.Cause)
	}
	a.err = e.Body()
	if e.RetryAfter > 0 {
		a.err["retry_after"] = e.RetryAfter.Milliseconds() // as the stream's own failures say it
	}
	c.reply(a)
}
