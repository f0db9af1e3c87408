package main

import "errors"

// dechunker takes the framing of a chunked body (RFC 9112, 7.1) out of a stream's bytes,
// however they are cut into reads. The zero value begins with a chunk's size.
type dechunker struct {
	state chunkState
	left  int // bytes of the chunk still to come, or of its size so far
}

type chunkState uint8

const (
	chunkSize  chunkState = iota
	chunkExt              // behind the size, up to the end of its line
	chunkData             //
	chunkEnd              // the line end behind the data
	chunksOver            // the last chunk was seen; trailers are not looked at
)

var errBadChunk = errors.New("a chunk has no size")

// feed returns the body's bytes among b, moved together at its beginning.
func (d *dechunker) feed(b []byte) ([]byte, error) {
	out := 0
	for i := 0; i < len(b); {
		switch d.state {
		case chunkSize:
			digit := hexDigit(b[i])
			switch {
			case digit >= 0 && d.left < 1<<40:
				d.left = d.left<<4 | digit
			case b[i] == '\r' || b[i] == ';' || b[i] == ' ':
				d.state = chunkExt
			default:
				return b[:out], errBadChunk
			}
			i++
		case chunkExt:
			if b[i] == '\n' {
				d.state = chunkData
				if d.left == 0 {
					d.state = chunksOver
				}
			}
			i++
		case chunkData:
			n := copy(b[out:], b[i:i+min(d.left, len(b)-i)])
			out, i, d.left = out+n, i+n, d.left-n
			if d.left == 0 {
				d.state = chunkEnd
			}
		case chunkEnd:
			if b[i] == '\n' {
				d.state = chunkSize
			}
			i++
		case chunksOver:
			return b[:out], nil
		}
	}
	return b[:out], nil
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
