package query

import (
	"encoding/base64"
	"maps"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/playhead-dev/playhead/schema"
)

// appendJSON appends the page as isnotai's clients read it, with our own fields beside
// theirs. It is written by hand since a JSON payload goes out as it came in.
func (a *pageAnswer) appendJSON(dst []byte) []byte {
	dst = append(dst, `{"data":[`...)
	for i, item := range a.page.items {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = a.appendItem(dst, item)
	}
	dst = append(dst, `],"pagination":{"nextCursor":`...)
	if a.cursor.IsZero() {
		dst = append(dst, "null"...)
	} else {
		dst = appendString(dst, a.cursor.String())
	}
	dst = append(dst, `,"hasMore":`...)
	dst = strconv.AppendBool(dst, a.page.more)
	dst = append(dst, `,"limit":`...)
	dst = strconv.AppendInt(dst, int64(a.req.limit), 10)
	dst = append(dst, '}')
	if a.page.partial {
		dst = append(dst, `,"partial":true`...)
	}
	if a.page.degraded {
		dst = append(dst, `,"degraded":true`...)
	}
	return append(dst, '}')
}

func (a *pageAnswer) appendItem(dst []byte, item pageItem) []byte {
	e := item.event
	dst = append(dst, `{"eventId":"`...)
	dst = e.ID.AppendText(dst)
	dst = append(dst, `","messageId":`...)
	dst = strconv.AppendUint(dst, uint64(a.req.types.Code(e.Type)), 10)
	dst = append(dst, `,"eventTypeName":`...)
	dst = appendString(dst, e.Type)
	dst = append(dst, `,"timestamp":`...)
	dst = strconv.AppendInt(dst, e.ID.TimeMs, 10)
	dst = append(dst, `,"payloadSize":`...)
	dst = strconv.AppendInt(dst, int64(item.payloadSize), 10)
	dst = append(dst, `,"sessionId":`...)
	dst = appendString(dst, e.Session)
	dst = append(dst, `,"tMs":`...)
	dst = strconv.AppendInt(dst, e.TMs, 10)
	dst = appendOptional(dst, `,"workflowId":`, e.Workflow)
	if e.ClientTimeMs != nil {
		dst = append(dst, `,"clientTime":`...)
		dst = strconv.AppendInt(dst, *e.ClientTimeMs, 10)
	}
	dst = appendOptional(dst, `,"frameId":`, e.FrameID)
	if e.Confidence != nil {
		dst = append(dst, `,"confidence":`...)
		dst = strconv.AppendFloat(dst, float64(*e.Confidence), 'g', -1, 32)
	}
	dst = appendMetadata(dst, e.Metadata)
	dst = appendOptional(dst, `,"clientMessageId":`, e.MessageID)
	if a.state.Ended() && e.ID.Offset > a.state.EndedAt {
		dst = append(dst, `,"late":true`...)
	}
	if e.ContentType != schema.DefaultContentType {
		dst = appendOptional(dst, `,"contentType":`, e.ContentType)
	}
	if a.req.payloads {
		dst = append(dst, `,"payload":`...)
		dst = appendPayload(dst, e)
	}
	return append(dst, '}')
}

func appendPayload(dst []byte, e *schema.Event) []byte {
	if e.JSONPayload() {
		return append(dst, e.Payload...)
	}
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, e.Payload)
	return append(dst, '"')
}

func appendMetadata(dst []byte, m map[string]string) []byte {
	if len(m) == 0 {
		return dst
	}
	dst = append(dst, `,"metadata":{`...)
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, k)
		dst = append(dst, ':')
		dst = appendString(dst, m[k])
	}
	return append(dst, '}')
}

func appendOptional(dst []byte, name, value string) []byte {
	if value == "" {
		return dst
	}
	return appendString(append(dst, name...), value)
}

// appendString appends s as a JSON string. Everything that reaches a page was checked
// to be UTF-8 when it was decoded; what is not becomes U+FFFD.
func appendString(dst []byte, s string) []byte {
	dst, _ = jsontext.AppendQuote(dst, s)
	return dst
}
