package ingest

import (
	"bytes"
	"sync"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// Limits bounds what the decoders accept.
type Limits struct {
	EventBytes  int // bytes of one event as it stands in the body
	BatchEvents int // events of one body
	JSONDepth   int // nesting of a payload
}

// Item is one event of a request body, or the reason why it cannot be one.
type Item struct {
	// Event has all that the client said; Workspace and ID are still empty. Its payload
	// aliases the decoded body.
	Event schema.Event
	// TMsGiven says that the client gave t_ms; without it the Appender fills it in.
	TMsGiven bool
	// Err is why the event is refused; Event is then unusable, but for MessageID.
	Err *httpapi.Error
}

// Batch is a decoded body.
type Batch struct {
	Items []Item
	// Single says that the body was one event, not a list, so that its error is the
	// request's own.
	Single bool
}

// FirstError returns the first item's error in the body's order, or nil.
func (b *Batch) FirstError() *httpapi.Error {
	for i := range b.Items {
		if err := b.Items[i].Err; err != nil {
			return err
		}
	}
	return nil
}

// Decoder turns request bodies into events. It is safe for concurrent use.
type Decoder struct {
	limits Limits
	pool   sync.Pool // of *bodyDecoder
}

// NewDecoder returns a decoder that enforces the limits.
func NewDecoder(limits Limits) *Decoder {
	d := &Decoder{limits: limits}
	d.pool.New = func() any { return &bodyDecoder{limits: limits, json: new(jsontext.Decoder)} }
	return d
}

// Decode reads a body of the given format. session is the session that the request's
// path names, which the events may repeat but not contradict; if it is empty, each
// event must name its own. The events alias body, which the caller gives away.
//
// The error is a *httpapi.Error about the body as a whole: it cannot be taken apart
// any further, or holds too much. What is wrong with one event only stands in its Item.
func (d *Decoder) Decode(format Format, body []byte, session string) (*Batch, error) {
	b := d.pool.Get().(*bodyDecoder)
	defer func() {
		b.release()
		d.pool.Put(b)
	}()
	b.session = session
	batch := new(Batch)
	if err := b.decode(format, body, batch); err != nil {
		return nil, err
	}
	return batch, nil
}

// bodyDecoder is the state of decoding one body.
type bodyDecoder struct {
	limits  Limits
	session string

	json *jsontext.Decoder
	body []byte       // what json reads
	buf  bytes.Buffer // body again: a *bytes.Buffer is what json reads without copying
	text []byte       // scratch for unquoting, overwritten by every call of unquote

	list  string // path of the list the event is in: "events" or ""
	index int    // the event's place in the list, -1 if there is no list
	line  int    // the event's line in NDJSON, from 1; 0 in other formats

	// The last event's names: neighbours in a batch mostly share them.
	lastType, lastSession, lastWorkflow string
}

// release lets go of the body, which the events go on using.
func (d *bodyDecoder) release() {
	d.reset(nil)
	d.lastType, d.lastSession, d.lastWorkflow = "", "", ""
}

func (d *bodyDecoder) reset(body []byte) {
	d.body = body
	d.buf = *bytes.NewBuffer(body)
	d.json.Reset(&d.buf)
	d.list, d.index, d.line = "", -1, 0
}

func (d *bodyDecoder) decode(format Format, body []byte, batch *Batch) *httpapi.Error {
	if len(bytes.TrimLeft(body, " \t\r\n")) == 0 {
		return refuse(400, httpapi.CodeInvalidJSON, "", "The body is empty; want an event, or a list of events.")
	}
	switch format {
	case FormatNDJSON:
		return d.decodeLines(body, batch)
	case FormatCloudEvent:
		d.reset(body)
		batch.Single = true
		return d.decodeOne(batch, d.cloudEvent)
	case FormatCloudEventBatch:
		d.reset(body)
		return d.decodeArray(batch, d.cloudEvent)
	default:
		d.reset(body)
		return d.decodeJSON(batch)
	}
}

// decodeJSON reads an event or {"events":[…]}. The first name tells which.
func (d *bodyDecoder) decodeJSON(batch *Batch) *httpapi.Error {
	if !d.wrapped() {
		batch.Single = true
		return d.decodeOne(batch, d.event)
	}
	d.reset(d.body)
	d.list = "events"
	if _, err := d.json.ReadToken(); err != nil { // {
		return d.syntaxError(err)
	}
	if _, err := d.json.ReadValue(); err != nil { // "events"
		return d.syntaxError(err)
	}
	if err := d.decodeArray(batch, d.event); err != nil {
		return err
	}
	d.index = -1
	if d.json.PeekKind() != '}' {
		name, err := d.json.ReadValue()
		if err != nil {
			return d.syntaxError(err)
		}
		field := string(d.unquote(name))
		return refuse(400, httpapi.CodeUnknownField, cut(field),
			"%s is not a field of a list of events; want {\"events\":[…]} and nothing else.", schema.Quote(field))
	}
	if _, err := d.json.ReadToken(); err != nil {
		return d.syntaxError(err)
	}
	return d.end()
}

// wrapped looks whether the body is an object whose first name is "events".
func (d *bodyDecoder) wrapped() bool {
	defer d.reset(d.body)
	if d.json.PeekKind() != '{' {
		return false
	}
	if _, err := d.json.ReadToken(); err != nil {
		return false
	}
	name, err := d.json.ReadValue()
	return err == nil && string(d.unquote(name)) == "events"
}

// decodeOne reads a body that is one event.
func (d *bodyDecoder) decodeOne(batch *Batch, read func(*Item) *httpapi.Error) *httpapi.Error {
	batch.Items = make([]Item, 1)
	if err := read(&batch.Items[0]); err != nil {
		return err
	}
	return d.end()
}

// decodeArray reads a JSON array of events. What follows the array is the caller's,
// unless the array is the body.
func (d *bodyDecoder) decodeArray(batch *Batch, read func(*Item) *httpapi.Error) *httpapi.Error {
	whole := d.json.StackDepth() == 0
	name := d.list
	if whole {
		name = "The body"
	}
	if kind := d.json.PeekKind(); kind != '[' {
		raw, err := d.json.ReadValue()
		if err != nil {
			return d.syntaxError(err)
		}
		return refuse(400, httpapi.CodeInvalidField, d.list, "%s is %s; want an array of events.", name, describe(raw))
	}
	if _, err := d.json.ReadToken(); err != nil {
		return d.syntaxError(err)
	}
	// Events of less than 64 bytes are rare, so this mostly allocates once.
	batch.Items = make([]Item, 0, min(d.limits.BatchEvents, 16+len(d.body)/160))
	for i := 0; d.json.PeekKind() != ']'; i++ {
		if i == d.limits.BatchEvents {
			return d.tooMany()
		}
		d.index = i
		batch.Items = append(batch.Items, Item{})
		if err := read(&batch.Items[i]); err != nil {
			return err
		}
	}
	if _, err := d.json.ReadToken(); err != nil {
		return d.syntaxError(err)
	}
	if len(batch.Items) == 0 {
		return refuse(400, httpapi.CodeInvalidField, d.list, "%s holds no event; want 1 to %d.", name, d.limits.BatchEvents)
	}
	if whole {
		return d.end()
	}
	return nil
}

// decodeLines reads NDJSON: one event a line, blank lines between allowed. A line that
// is not JSON spoils only its own item.
func (d *bodyDecoder) decodeLines(body []byte, batch *Batch) *httpapi.Error {
	batch.Items = make([]Item, 0, min(d.limits.BatchEvents, 1+bytes.Count(body, newline)))
	for line := 1; len(body) > 0; line++ {
		text, rest, _ := bytes.Cut(body, newline)
		body = rest
		if len(bytes.TrimLeft(text, " \t\r")) == 0 {
			continue
		}
		i := len(batch.Items)
		if i == d.limits.BatchEvents {
			return d.tooMany()
		}
		d.reset(text)
		d.list, d.index, d.line = "events", i, line
		batch.Items = append(batch.Items, Item{})
		item := &batch.Items[i]
		err := d.event(item)
		if err == nil {
			err = d.end()
		}
		if err != nil {
			item.Err = err
		}
	}
	return nil
}

// end checks that nothing but white space follows.
func (d *bodyDecoder) end() *httpapi.Error {
	rest := bytes.TrimLeft(d.body[d.json.InputOffset():], " \t\r\n")
	if len(rest) == 0 {
		return nil
	}
	offset := d.json.InputOffset()
	return refuse(400, httpapi.CodeInvalidJSON, d.path(""), "%s ends at byte %d, but %s follows.", d.subject(), offset, schema.Quote(string(rest))).
		WithDetail("offset", offset)
}

func (d *bodyDecoder) tooMany() *httpapi.Error {
	return refuse(413, codeTooManyEvents, d.list, "The body holds more than %d events, which is the limit; send them in several requests.", d.limits.BatchEvents)
}
