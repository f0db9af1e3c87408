package httpapi

import (
	"io"
	"time"

	"github.com/valyala/fasthttp"
)

// lingerTime bounds how long a client may take to read an answer to a body that is not read.
const lingerTime = 3 * time.Second

// linger sends the answer that stands in rctx to a request that is too large, and then reads
// over what the client still sends, at most a body's limit: a connection that is closed with
// bytes unread is reset, and the client would not get to see why. What the server writes
// afterwards goes nowhere.
func (e *edge) linger(rctx *fasthttp.RequestCtx) {
	conn, ok := rctx.Conn().(interface{ CloseWrite() error })
	if !ok {
		return
	}
	nc := rctx.Conn()
	if nc.SetDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	rctx.SetConnectionClose()
	if _, err := rctx.Response.WriteTo(nc); err != nil || conn.CloseWrite() != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, nc, int64(e.cfg.BodyLimit))
}
