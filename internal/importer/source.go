package importer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/xxh3"
)

const (
	readBufferBytes = 256 << 10
	// headBytes of a file are hashed to tell it from another of its name, size and time.
	headBytes = 64 << 10
	// maxZstdWindow is what `zstd --long` needs by default (128 MiB); more is refused, as
	// the zstd tool does without its own --memory option.
	maxZstdWindow = 128 << 20
)

// Source is one thing to import: the file at Path, or, if Path is empty, Reader under
// the given Name. A Reader is not closed.
type Source struct {
	Name   string
	Path   string
	Reader io.Reader
}

// input is a Source that was found readable.
type input struct {
	name     string
	src      Source
	regular  bool  // a file that can be read again, so worth a checkpoint
	size     int64 // in bytes, as stored; 0 if not known
	identity fileIdentity
}

// fileIdentity tells one content of a path from another without reading all of it.
type fileIdentity struct {
	Path    string `json:"path"` // absolute
	Size    int64  `json:"size"`
	ModTime int64  `json:"mod_time_ns"` // Unix nanoseconds
	Head    string `json:"head"`        // hash of the first headBytes
}

func inspect(src Source) (*input, error) {
	in := &input{name: src.Name, src: src}
	if src.Path == "" {
		return in, nil
	}
	if in.name == "" {
		in.name = filepath.Base(src.Path)
	}
	info, err := os.Stat(src.Path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("%s is a folder; name the files in it", src.Path)
	}
	if !info.Mode().IsRegular() {
		return in, nil // a named pipe: opening it to look would eat its data
	}
	abs, err := filepath.Abs(src.Path)
	if err != nil {
		return nil, err
	}
	head, err := hashHead(src.Path)
	if err != nil {
		return nil, err
	}
	in.regular, in.size = true, info.Size()
	in.identity = fileIdentity{Path: abs, Size: info.Size(), ModTime: info.ModTime().UnixNano(), Head: head}
	return in, nil
}

func hashHead(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := xxh3.New()
	if _, err := io.CopyN(h, f, headBytes); err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	sum := h.Sum128().Bytes()
	return hex.EncodeToString(sum[:]), nil
}

// content is an input's text, decompressed.
type content struct {
	io.Reader
	read  *countingReader
	close []func()
}

// consumed returns how many bytes of the stored form have been read. It is safe from any
// goroutine.
func (c *content) consumed() int64 { return c.read.n.Load() }

// Close releases decompressor and file.
func (c *content) Close() {
	for _, f := range c.close {
		f()
	}
}

// open begins to read. How the content is compressed is found by its first bytes, not
// by its name. Cancelling ctx ends reads of what is not a regular file; one that is
// blocked then is left to itself, and ends with the pipe or the terminal.
func (in *input) open(ctx context.Context) (*content, error) {
	c := &content{}
	raw := in.src.Reader
	if in.src.Path != "" {
		f, err := os.Open(in.src.Path)
		if err != nil {
			return nil, err
		}
		c.close = append(c.close, func() { _ = f.Close() })
		raw = f
	}
	if !in.regular {
		raw = &cancellableReader{ctx: ctx, src: raw}
	}
	c.read = &countingReader{src: raw}
	buffered := bufio.NewReaderSize(c.read, readBufferBytes)
	magic, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		c.Close()
		return nil, fmt.Errorf("read %s: %w", in.name, err)
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}): // RFC 1952, 2.3.1
		z, err := gzip.NewReader(buffered)
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("read %s: %w", in.name, err)
		}
		c.Reader = z
	case isZstd(magic):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("read %s: %w", in.name, err)
		}
		c.close = append([]func(){z.Close}, c.close...)
		c.Reader = z
	default:
		c.Reader = buffered
	}
	return c, nil
}

// isZstd reports whether magic begins a zstd frame or a skippable one (RFC 8878, 3.1).
func isZstd(magic []byte) bool {
	if len(magic) < 4 {
		return false
	}
	return bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		(magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18}))
}

type countingReader struct {
	src io.Reader
	n   atomic.Int64
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	r.n.Add(int64(n))
	return n, err
}

// cancellableReader makes reads of a pipe or a terminal, which cannot be interrupted,
// return when ctx ends. Reads happen on a goroutine into a buffer of its own, so that
// one left behind writes into nobody's memory.
type cancellableReader struct {
	ctx     context.Context // of the one import that reads
	src     io.Reader
	buf     []byte
	results chan readResult // nil until the first Read
	pending []byte          // read, not yet handed out
	err     error           // what followed pending
}

type readResult struct {
	n   int
	err error
}

func (r *cancellableReader) Read(p []byte) (int, error) {
	if len(r.pending) == 0 && r.err == nil {
		if r.results == nil {
			r.buf = make([]byte, readBufferBytes)
			r.results = make(chan readResult, 1)
		}
		go func() {
			n, err := r.src.Read(r.buf)
			r.results <- readResult{n, err} // buffered: never blocks
		}()
		select {
		case <-r.ctx.Done():
			r.err = context.Cause(r.ctx)
		case res := <-r.results:
			r.pending, r.err = r.buf[:res.n], res.err
		}
	}
	if len(r.pending) > 0 {
		n := copy(p, r.pending)
		r.pending = r.pending[n:]
		return n, nil
	}
	return 0, r.err
}
