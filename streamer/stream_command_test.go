package streamer

import (
	"bytes"
	"compress/gzip"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/internal/httpapi"
)

// 1. A client sends a command of a few KiB that says Content-Encoding: gzip.
// 2. It decompresses to much more than any body may have.
func TestCompressedCommandsAreNotDecompressed(t *testing.T) {
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	if _, err := io.Copy(w, io.LimitReader(spaces{}, 64<<20)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	app := httpapi.NewApp(httpapi.DefaultConfig(), slog.New(slog.DiscardHandler))
	app.Use(httpapi.Authenticate(socketKeys))
	(&Hub{cfg: DefaultConfig()}).Routes(app)
	ask := func(encoding, query string, body []byte) (int, string) {
		t.Helper()
		req := httptest.NewRequest(http.MethodPost, "/v1/streams/conn_x/commands"+query, bytes.NewReader(body))
		req.Header.Set("X-Api-Key", "talker")
		req.Header.Set("Content-Encoding", encoding)
		res, err := app.Test(req, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(answer)
	}
	for _, encoding := range []string{"gzip", "deflate", "br", "zstd", "identity, gzip"} {
		if status, body := ask(encoding, "", bomb.Bytes()); status != http.StatusUnsupportedMediaType || !strings.Contains(body, httpapi.CodeUnsupportedMedia) {
			t.Errorf("%s is answered %d %s, want 415", encoding, status, body)
		}
	}
	if status, body := ask("", "?op=pause", []byte(`{"op":"pause"}`)); status != http.StatusBadRequest || !strings.Contains(body, httpapi.CodeUnknownParameter) {
		t.Errorf("a parameter is answered %d %s, want 400", status, body)
	}
	if status, body := ask("", "", []byte(`{"op":"pause"}`)); status != http.StatusNotFound {
		t.Errorf("a command to no stream is answered %d %s, want 404", status, body)
	}
}

// spaces is white space without end.
type spaces struct{}

func (spaces) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}
