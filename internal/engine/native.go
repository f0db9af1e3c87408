package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	chproto "github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/proto"
)

// nativeEncoder brings Native blocks of the library, which are of protocol revision 0, to the revision that
// the client asked for with client_protocol_version: a block header, and a byte per column.
type nativeEncoder struct {
	revision uint64
	context  column.ServerContext
	buf      chproto.Buffer
}

func newNativeEncoder(clientRevision uint64) *nativeEncoder {
	return &nativeEncoder{
		revision: min(clientRevision, proto.DBMS_TCP_PROTOCOL_VERSION),
		context:  column.ServerContext{Revision: proto.DBMS_TCP_PROTOCOL_VERSION, VersionMajor: 26, VersionMinor: 7, Timezone: time.UTC},
	}
}

// encode re-encodes the whole blocks of a chunk. The result is valid until the next call.
func (e *nativeEncoder) encode(chunk []byte) ([]byte, error) {
	e.buf.Reset()
	in := bytes.NewReader(chunk)
	reader := chproto.NewReader(in)
	for {
		block := proto.Block{ServerContext: &e.context}
		if err := block.Decode(reader, 0); err != nil {
			if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && in.Len() == 0 {
				return e.buf.Buf, nil
			}
			return nil, newException(codeNotImplemented, "NOT_IMPLEMENTED", "The embedded engine cannot send this result as Native: %s", err)
		}
		if block.Rows() == 0 {
			continue
		}
		if err := block.Encode(&e.buf, e.revision); err != nil {
			return nil, fmt.Errorf("encode native block: %w", err)
		}
	}
}
