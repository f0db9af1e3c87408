package ingest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// Format is how a body writes its events.
type Format uint8

// The formats there are.
const (
	FormatJSON            Format = iota // one event, or {"events":[…]}
	FormatNDJSON                        // one event a line
	FormatCloudEvent                    // one CloudEvent in JSON
	FormatCloudEventBatch               // an array of CloudEvents in JSON
)

const mediaTypes = "application/json, application/x-ndjson, application/cloudevents+json or application/cloudevents-batch+json"

// ParseFormat reads a Content-Type. None at all counts as JSON.
func ParseFormat(contentType string) (Format, error) {
	if contentType == "" {
		return FormatJSON, nil
	}
	unsupported := func() error {
		return refuse(415, httpapi.CodeUnsupportedMedia, "Content-Type",
			"Content-Type is %s; want %s.", schema.Quote(contentType), mediaTypes)
	}
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return 0, unsupported()
	}
	if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
		return 0, refuse(415, httpapi.CodeUnsupportedMedia, "Content-Type",
			"Content-Type has the charset %s; want utf-8.", schema.Quote(charset))
	}
	switch media {
	case "application/json", "text/json":
		return FormatJSON, nil
	case "application/x-ndjson", "application/ndjson", "application/jsonl":
		return FormatNDJSON, nil
	case "application/cloudevents+json":
		return FormatCloudEvent, nil
	case "application/cloudevents-batch+json":
		return FormatCloudEventBatch, nil
	default:
		return 0, unsupported()
	}
}

const (
	// freeDecompression is what any body may decompress to, whatever its ratio.
	freeDecompression = 1 << 20
	// maxWindow bounds the memory a zstd body may ask for: 8 MiB is what RFC 8878,
	// section 3.1.1.1.2, says decoders should support.
	maxWindow = 8 << 20
)

// Bodies undoes Content-Encoding. At most a set number of bodies are being decompressed
// at once, each with a bounded window and a bounded result.
type Bodies struct {
	maxBytes, maxRatio int
	slots              chan *decompressor // holds all decompressors that are idle
}

// decompressor holds the state that is worth keeping from body to body, made at its
// first use.
type decompressor struct {
	gzip *gzip.Reader
	zstd *zstd.Decoder
}

// NewBodies returns Bodies with the limits of cfg.
func NewBodies(cfg Config) *Bodies {
	b := &Bodies{
		maxBytes: cfg.MaxBatchBytes,
		maxRatio: cfg.MaxCompressionRatio,
		slots:    make(chan *decompressor, cfg.MaxDecompressions),
	}
	for range cfg.MaxDecompressions {
		b.slots <- new(decompressor)
	}
	return b
}

// Decode returns the content of a body with the given Content-Encoding, as a copy that
// the caller owns. It waits for a free decompressor until ctx ends.
//
// What a compressed body may grow to is known before it is read: the body limit or its
// size times the ratio limit (but at least 1 MiB), whichever is less. Nothing beyond
// that is ever produced. Errors are *httpapi.Error.
func (b *Bodies) Decode(ctx context.Context, encoding string, body []byte) ([]byte, error) {
	encoding = strings.ToLower(strings.TrimSpace(encoding))
	switch encoding {
	case "", "identity":
		if len(body) > b.maxBytes {
			return nil, b.tooLarge(b.maxBytes)
		}
		return bytes.Clone(body), nil
	case "gzip", "x-gzip", "zstd":
	default:
		return nil, refuse(415, httpapi.CodeUnsupportedMedia, "Content-Encoding",
			"Content-Encoding is %s; want gzip, zstd or none.", schema.Quote(encoding))
	}
	var d *decompressor
	select {
	case d = <-b.slots:
	case <-ctx.Done():
		return nil, overloaded("compressed bodies").WithCause(context.Cause(ctx))
	}
	defer func() { b.slots <- d }()

	allowed := min(b.maxBytes, max(freeDecompression, b.maxRatio*len(body)))
	out, err := d.decode(encoding, body, allowed)
	var refused *httpapi.Error
	switch {
	case err == nil:
		return out, nil
	case errors.As(err, &refused):
		return nil, refused
	case errors.Is(err, errTooLarge), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return nil, b.tooLarge(allowed).WithDetail("compressed_bytes", len(body))
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return nil, refuse(413, httpapi.CodeBodyTooLarge, "Content-Encoding",
			"The zstd body wants a window of more than %d bytes; compress it at a lower level, or without long mode.", maxWindow)
	default:
		return nil, refuse(400, codeInvalidEncoding, "Content-Encoding",
			"The body is not whole, valid %s, as its Content-Encoding says.", encoding).WithCause(err)
	}
}

func (b *Bodies) tooLarge(allowed int) *httpapi.Error {
	e := refuse(413, httpapi.CodeBodyTooLarge, "", "The body has more than %d bytes, which is the limit; send its events in several requests.", allowed)
	if allowed < b.maxBytes {
		e = refuse(413, httpapi.CodeBodyTooLarge, "Content-Encoding",
			"The body decompresses to more than %d bytes, over %d times its size, which is the limit.", allowed, b.maxRatio)
	}
	return e.WithDetail("limit", allowed)
}

var errTooLarge = errors.New("decompressed body is over its limit")

func (d *decompressor) decode(encoding string, body []byte, allowed int) ([]byte, error) {
	src := bytes.NewReader(body)
	if encoding == "zstd" {
		if err := d.resetZstd(src); err != nil {
			return nil, err
		}
		defer func() { _ = d.zstd.Reset(nil) }() // lets go of body; cannot fail
		return readBounded(d.zstd, len(body), allowed)
	}
	if err := d.resetGzip(src); err != nil {
		return nil, err
	}
	return readBounded(d.gzip, len(body), allowed)
}

func (d *decompressor) resetZstd(src io.Reader) (err error) {
	if d.zstd != nil {
		return d.zstd.Reset(src)
	}
	// Concurrency 1 decodes on the caller's goroutine, so there is nothing to close.
	d.zstd, err = zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow))
	return err
}

func (d *decompressor) resetGzip(src io.Reader) (err error) {
	if d.gzip != nil {
		return d.gzip.Reset(src)
	}
	r, err := gzip.NewReader(src)
	if err != nil {
		return err
	}
	d.gzip = r
	return nil
}

// readBounded reads r to its end, or to one byte beyond allowed.
func readBounded(r io.Reader, compressed, allowed int) ([]byte, error) {
	out := make([]byte, 0, min(allowed, 4*compressed+bytes.MinRead)+1)
	for {
		if len(out) == cap(out) {
			grown := make([]byte, len(out), min(allowed+1, 2*cap(out)))
			copy(grown, out)
			out = grown
		}
		n, err := r.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		switch {
		case len(out) > allowed:
			return nil, errTooLarge
		case err == io.EOF:
			return out, nil
		case err != nil:
			return nil, err
		}
	}
}
