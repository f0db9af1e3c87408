package engine

import (
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// ClickHouse knows two layers of compression over HTTP: the framed blocks of its own protocol, asked for with
// compress=1 and decompress=1, and HTTP's Content-Encoding, in a response only with enable_http_compression=1.

// decodeBody undoes both layers of a request body. Memory is bounded by the decoders' windows.
func decodeBody(r *http.Request, framed bool) (io.Reader, error) {
	var body io.Reader = r.Body
	var err error
	switch encoding := strings.ToLower(r.Header.Get("Content-Encoding")); encoding {
	case "", "identity":
	case "gzip", "x-gzip":
		body, err = gzip.NewReader(body)
	case "deflate":
		body, err = zlib.NewReader(body)
	case "br":
		body = brotli.NewReader(body)
	case "zstd":
		var decoder *zstd.Decoder
		decoder, err = zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxWindowBytes))
		body = decoder
	case "lz4":
		body = lz4.NewReader(body)
	default:
		return nil, newException(codeNotImplemented, "NOT_IMPLEMENTED", "Unknown Content-Encoding %q: use gzip, deflate, br, zstd or lz4", encoding)
	}
	if err != nil {
		return nil, newException(codeBadArguments, "BAD_ARGUMENTS", "Request body is not %s: %s", r.Header.Get("Content-Encoding"), err)
	}
	if framed {
		return newFrameReader(body), nil
	}
	return body, nil
}

// frameReader reads ClickHouse's compressed frames, and tells the end of the input from an end within a frame:
// half an insert must not pass for a whole one.
type frameReader struct {
	from   *countingReader
	frames *compress.Reader
}

func newFrameReader(from io.Reader) *frameReader {
	counting := &countingReader{from: from}
	return &frameReader{from: counting, frames: compress.NewReader(counting)}
}

func (f *frameReader) Read(p []byte) (int, error) {
	before := f.from.read
	n, err := f.frames.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF) && f.from.read == before:
		err = io.EOF
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

type countingReader struct {
	from io.Reader
	read int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.read += int64(n)
	return n, err
}

const maxWindowBytes = 128 << 20

// encoder writes one layer of compression. Flush makes what was written so far readable at the other end.
type encoder interface {
	io.WriteCloser
	Flush() error
}

// httpEncoder chooses the content coding of a response, or nil for none.
func httpEncoder(acceptEncoding string, w io.Writer) (encoder, string) {
	for _, part := range strings.Split(acceptEncoding, ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(part), ";")
		switch strings.ToLower(name) {
		case "gzip":
			return gzip.NewWriter(w), "gzip"
		case "deflate":
			return zlib.NewWriter(w), "deflate"
		case "br":
			return brotli.NewWriterLevel(w, brotli.BestSpeed), "br"
		case "zstd":
			if z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest)); err == nil {
				return z, "zstd"
			}
		case "lz4":
			return lz4.NewWriter(w), "lz4"
		}
	}
	return nil, ""
}

// frameWriter writes ClickHouse's compressed frames.
type frameWriter struct {
	to     io.Writer
	frames *compress.Writer
}

func newFrameWriter(to io.Writer, method string) (*frameWriter, error) {
	if method == "" {
		method = "LZ4"
	}
	m, err := compress.MethodString(strings.ToUpper(method))
	if err != nil {
		return nil, newException(codeBadArguments, "BAD_ARGUMENTS", "Unknown network_compression_method %q: use LZ4, LZ4HC, ZSTD or NONE", method)
	}
	return &frameWriter{to: to, frames: compress.NewWriter(compress.LevelZero, m)}, nil
}

func (f *frameWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		part := p[:min(len(p), frameBytes)]
		if err := f.frames.Compress(part); err != nil {
			return written, err
		}
		if _, err := f.to.Write(f.frames.Data); err != nil {
			return written, err
		}
		written += len(part)
		p = p[len(part):]
	}
	return written, nil
}

const frameBytes = 1 << 20
