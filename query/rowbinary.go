package query

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// rowBinary reads ClickHouse's RowBinary format: the values of a row one after the
// other, numbers in little endian, strings behind their length as a uvarint, a Nullable
// behind a byte that is 1 for NULL, a Map as its size and its pairs (ClickHouse's
// documentation, "RowBinary").
//
// Over HTTP it is how events are read: the driver's blocks cost two copies of every
// column, here and in the embedded engine, and a call for every value.
//
// It reads into blocks that it never writes twice, so what it returns of them stays
// valid, at the price of keeping the whole block: payloads are not copied.
//
// After an error, which is kept, everything reads as zero.
type rowBinary struct {
	in       io.Reader
	block    []byte // block[at:end] is read and not yet taken; what follows end is free
	at, end  int
	err      error
	drained  bool // in has ended
	nextSize int  // of the next block
}

// Sizes of rowBinary's blocks: a first one for the few rows of a page, then longer ones;
// and the longest string it believes in: an event is 1 MiB by default, and settable; a
// length beyond this is a stream out of step.
const (
	firstBlockBytes = 32 << 10
	blockBytes      = 256 << 10
	maxStringBytes  = 256 << 20
)

func newRowBinary(r io.Reader) *rowBinary {
	return &rowBinary{in: r, nextSize: firstBlockBytes}
}

// more reports whether there is another row.
func (r *rowBinary) more() bool { return r.at < r.end || r.fill(1) }

// fill makes at least n bytes ready, if there are as many, and reports whether it did.
func (r *rowBinary) fill(n int) bool {
	if r.err != nil {
		return false
	}
	for r.end-r.at < n {
		if r.drained {
			return false
		}
		if len(r.block)-r.at < n || len(r.block) == r.end {
			r.grow(n)
		}
		got, err := r.in.Read(r.block[r.end:])
		r.end += got
		if r.drained = errors.Is(err, io.EOF); err != nil && !r.drained {
			r.err = err
			return false
		}
	}
	return true
}

// grow begins a new block with what is left of the last; it has room for n bytes.
func (r *rowBinary) grow(n int) {
	left := r.block[r.at:r.end]
	// Room for more than n, or the end of a row would be read in many small pieces.
	block := make([]byte, max(r.nextSize, n+r.nextSize/8))
	r.at, r.end, r.block = 0, copy(block, left), block
	r.nextSize = blockBytes
}

// take returns the next n bytes, which stay valid and must not be written to; nil after
// an error.
func (r *rowBinary) take(n int) []byte {
	if r.end-r.at < n && !r.fill(n) {
		if r.err == nil {
			r.err = io.ErrUnexpectedEOF // within a row
		}
		r.at = r.end
		return nil
	}
	b := r.block[r.at : r.at+n : r.at+n]
	r.at += n
	return b
}

func (r *rowBinary) uint8() uint8 {
	b := r.take(1)
	if b == nil {
		return 0
	}
	return b[0]
}

func (r *rowBinary) uint16() uint16 {
	b := r.take(2)
	if b == nil {
		return 0
	}
	return binary.LittleEndian.Uint16(b)
}

func (r *rowBinary) uint64() uint64 {
	b := r.take(8)
	if b == nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b)
}

func (r *rowBinary) int64() int64 { return int64(r.uint64()) }

func (r *rowBinary) float32() float32 {
	b := r.take(4)
	if b == nil {
		return 0
	}
	return math.Float32frombits(binary.LittleEndian.Uint32(b))
}

// null reads what stands before a Nullable: true says that no value follows.
func (r *rowBinary) null() bool { return r.uint8() != 0 }

// length reads the length of a string, or the size of a map.
func (r *rowBinary) length() int {
	var n uint64
	for shift := 0; shift < 63; shift += 7 {
		b := r.uint8()
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if n <= maxStringBytes {
				return int(n)
			}
			break
		}
	}
	if r.err == nil {
		r.err = fmt.Errorf("a string of more than %d bytes", maxStringBytes)
	}
	return 0
}

// bytes returns the next string's bytes, which stay valid and must not be written to.
func (r *rowBinary) bytes() []byte {
	n := r.length()
	if n == 0 {
		return nil
	}
	return r.take(n)
}
