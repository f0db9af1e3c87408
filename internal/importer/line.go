package importer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"

	"github.com/playhead-dev/playhead/schema"
)

// line is one event as it will be sent.
type line struct {
	number  int64 // in the source, from 1
	session string
	data    []byte // JSON with a message_id, without the line end
}

// LineError says why one line was not imported.
type LineError struct {
	Source string
	Line   int64  // from 1
	Code   string // the server's code, or "invalid_line" if the line was never sent
	Param  string // the field that is wrong; may be empty
	Reason string
}

// Error is the source, the line and the reason.
func (e *LineError) Error() string {
	if e.Param != "" {
		return fmt.Sprintf("%s:%d: %s: %s (%s)", e.Source, e.Line, e.Param, e.Reason, e.Code)
	}
	return fmt.Sprintf("%s:%d: %s (%s)", e.Source, e.Line, e.Reason, e.Code)
}

// codeInvalidLine marks what the importer itself refuses.
const codeInvalidLine = "invalid_line"

// lineReader turns a source's text into lines that are worth sending.
type lineReader struct {
	cfg      Config
	name     string
	skip     int64 // lines that an earlier run got acknowledged
	counts   *counters
	progress *Progress

	number int64
	chain  uint64 // hash of all lines so far that were not blank
}

// run sends the lines of text to out, in order, until the text ends, ctx is cancelled or
// an error stops it: a *LineError unless errors are skipped, or one of reading.
func (r *lineReader) run(ctx context.Context, text io.Reader, out chan<- line) error {
	in := bufio.NewReaderSize(text, readBufferBytes)
	for {
		data, err := r.next(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		var l line
		if err == nil {
			if len(data) == 0 {
				continue
			}
			sum := xxh3.Hash128Seed(data, r.chain)
			r.chain = sum.Lo
			if r.number <= r.skip {
				continue
			}
			l, err = r.parse(data, sum)
		}
		if bad, ok := errors.AsType[*LineError](err); ok {
			if r.number <= r.skip {
				continue
			}
			r.counts.failed.Add(1)
			r.progress.lineError(bad)
			if r.cfg.SkipErrors {
				continue
			}
		}
		if err != nil {
			return err
		}
		select {
		case out <- l:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// next returns the next line without its end and surrounding blanks, valid until the
// call after. A line that is too long is a *LineError and has been read over.
func (r *lineReader) next(in *bufio.Reader) ([]byte, error) {
	var long []byte // a line that does not fit in's buffer
	for {
		part, err := in.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read %s after line %d: %w", r.name, r.number, err)
		}
		if len(part) == 0 && long == nil {
			return nil, err // io.EOF
		}
		if long == nil && err == nil {
			long = part
		} else {
			long = append(long, part...)
		}
		if len(long) > r.cfg.MaxLineBytes {
			r.number++
			if err := discardLine(in, err); err != nil {
				return nil, fmt.Errorf("read %s after line %d: %w", r.name, r.number, err)
			}
			return nil, r.refuse("", "has more than %s bytes", thousands(int64(r.cfg.MaxLineBytes)))
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		r.number++
		if r.number == 1 {
			long = bytes.TrimPrefix(long, []byte("\xef\xbb\xbf")) // a byte order mark
		}
		return bytes.Trim(long, " \t\r\n"), nil
	}
}

// discardLine reads over the rest of a line whose last piece was read with err.
func discardLine(in *bufio.Reader, err error) error {
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = in.ReadSlice('\n')
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// parse checks what the importer itself relies on; the server checks all. It copies data.
// sum is the hash of the text up to and including this line.
func (r *lineReader) parse(data []byte, sum xxh3.Uint128) (line, error) {
	if data[0] == '[' {
		return line{}, r.refuse("", "is a JSON array; want one event a line (`jq -c '.[]'` makes that of it)")
	}
	var event struct {
		Session *string `json:"session_id"`
		Type    *string `json:"type"`
		Message *string `json:"message_id"`
	}
	if err := json.Unmarshal(data, &event); err != nil {
		return line{}, r.badJSON(err)
	}
	for _, f := range []struct {
		name  string
		value *string
		check func(string) error
	}{
		{"session_id", event.Session, schema.CheckID},
		{"type", event.Type, schema.CheckType},
	} {
		if f.value == nil {
			return line{}, r.refuse(f.name, "is missing")
		}
		if err := f.check(*f.value); err != nil {
			return line{}, r.refuse(f.name, "%v", err)
		}
	}
	if schema.IsReservedType(*event.Type) {
		return line{}, r.refuse("type", "is %s, which is reserved", schema.Quote(*event.Type))
	}
	if event.Message != nil {
		if err := schema.CheckID(*event.Message); err != nil {
			return line{}, r.refuse("message_id", "%v", err)
		}
		return line{number: r.number, session: *event.Session, data: bytes.Clone(data)}, nil
	}
	withID, err := setMessageID(data, messageID(sum))
	if err != nil {
		return line{}, r.badJSON(err)
	}
	return line{number: r.number, session: *event.Session, data: withID}, nil
}

func (r *lineReader) refuse(param, format string, args ...any) *LineError {
	return &LineError{Source: r.name, Line: r.number, Code: codeInvalidLine, Param: param, Reason: fmt.Sprintf(format, args...)}
}

func (r *lineReader) badJSON(err error) *LineError {
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Field != "" {
		return r.refuse(wrong.Field, "is a JSON %s; want a string", wrong.Value)
	}
	return r.refuse("", "is not a JSON object: %v", err)
}

// messageID names the event whose line ends the text with the given hash. Since the
// hash covers all lines before it, two equal lines get different ids, the same file gets
// the same ids under any name and compression, and a file that has grown keeps those it
// had.
func messageID(sum xxh3.Uint128) string {
	b := sum.Bytes()
	return "imp-" + hex.EncodeToString(b[:])
}

// setMessageID returns a copy of the JSON object event with message_id set to id. It
// must have none, or null, which is replaced, as some servers refuse a name given twice.
func setMessageID(event []byte, id string) ([]byte, error) {
	member := `"message_id":"` + id + `"`
	at, null, err := findNullMessageID(event)
	if err != nil {
		return nil, err
	}
	if null {
		out := make([]byte, 0, len(event)+len(id))
		out = append(out, event[:at-len("null")]...)
		out = append(out, `"`+id+`"`...)
		return append(out, event[at:]...), nil
	}
	// Not empty, since it has a session_id: so a comma can follow.
	out := make([]byte, 0, len(event)+len(member)+1)
	out = append(out, '{')
	out = append(out, member...)
	out = append(out, ',')
	return append(out, event[1:]...), nil
}

// findNullMessageID looks for a top-level message_id that is null and returns where its
// value ends.
func findNullMessageID(event []byte) (end int, found bool, err error) {
	if !bytes.Contains(event, []byte("null")) {
		return 0, false, nil
	}
	d := json.NewDecoder(bytes.NewReader(event))
	if _, err := d.Token(); err != nil {
		return 0, false, err
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return 0, false, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return 0, false, err
		}
		if name == "message_id" && string(value) == "null" {
			return int(d.InputOffset()), true, nil
		}
	}
	return 0, false, nil
}
