package main

import "bytes"

// mark says where a stream's frames name the position to resume from: behind before, up
// to the byte until. The zero value finds none.
type mark struct {
	before string
	until  byte
}

// scanner follows one stream: it counts the events, sees what is missing among them and
// remembers where to resume. Events are ours, whatever frames a server puts around them:
// feed knows them by their stamp and number.
type scanner struct {
	chunks *dechunker // nil if the body is not chunked
	ids    mark

	events   int    // whole ones
	last     int64  // number of the newest event, 0 before the first
	missing  int64  // numbers that were passed over
	repeated int    // events that came again
	position []byte // to resume behind the newest whole frame, if ids are looked for

	rest []byte // of a frame that is not whole yet
}

// feed takes what was read and calls found, unless nil, with each event's stamp. It
// changes b.
func (s *scanner) feed(b []byte, found func(at int64)) error {
	if s.chunks != nil {
		var err error
		if b, err = s.chunks.feed(b); err != nil {
			return err
		}
	}
	// What is left over from before has no end of a frame in it, unless the first of its
	// two newlines is its last byte.
	seen := max(0, len(s.rest)-1)
	if len(s.rest) > 0 {
		s.rest = append(s.rest, b...)
		b = s.rest
	}
	end := bytes.LastIndex(b[seen:], frameEnd)
	if end < 0 {
		if len(s.rest) == 0 {
			s.rest = append(s.rest, b...)
		}
		return nil
	}
	whole := b[:seen+end+len(frameEnd)]
	s.take(whole, found)
	s.rest = append(s.rest[:0], b[len(whole):]...)
	return nil
}

var (
	frameEnd   = []byte("\n\n")
	stampMark  = []byte(`"at":`)
	numberMark = []byte(`,"seq":`)
)

// take looks through whole frames.
func (s *scanner) take(b []byte, found func(at int64)) {
	if s.ids.before != "" {
		if i := bytes.LastIndex(b, []byte(s.ids.before)); i >= 0 {
			id := b[i+len(s.ids.before):]
			if n := bytes.IndexByte(id, s.ids.until); n >= 0 {
				s.position = append(s.position[:0], id[:n]...)
			}
		}
	}
	const eventBytes = len(`"at":`) + stampDigits + len(`,"seq":`) + numberDigits
	for {
		i := bytes.Index(b, stampMark)
		if i < 0 || len(b)-i < eventBytes {
			return
		}
		b = b[i+len(stampMark):]
		at, number := digits(b[:stampDigits]), b[stampDigits:]
		if !bytes.HasPrefix(number, numberMark) {
			continue
		}
		s.count(digits(number[len(numberMark):][:numberDigits]))
		if found != nil {
			found(at)
		}
		b = number[len(numberMark)+numberDigits:]
	}
}

func (s *scanner) count(number int64) {
	s.events++
	switch {
	case s.last == 0 || number == s.last+1:
		s.last = number
	case number > s.last:
		s.missing += number - s.last - 1
		s.last = number
	default:
		s.repeated++
	}
}

// digits is the number that b writes; b holds nothing but digits.
func digits(b []byte) (n int64) {
	for _, c := range b {
		n = n*10 + int64(c-'0')
	}
	return n
}
