package ingest

import (
	"encoding/json"
	"strconv"
)

// appendAnswer appends the body of an append's answer:
//
//	{"results":[{"id","message_id","duplicate","t_ms"}, …],"accepted":n,"duplicates":n}
//
// message_id is null if the event had none. A failed item is {"message_id","error"}.
// accepted counts the events that this request added to the log.
func appendAnswer(dst []byte, results []Result) []byte {
	if dst == nil {
		dst = make([]byte, 0, 64+len(results)*112)
	}
	dst = append(dst, `{"results":`...)
	dst = appendResults(dst, results)
	accepted, duplicates := 0, 0
	for i := range results {
		switch r := &results[i]; {
		case r.Err != nil:
		case r.Duplicate:
			duplicates++
		default:
			accepted++
		}
	}
	dst = append(dst, `,"accepted":`...)
	dst = strconv.AppendInt(dst, int64(accepted), 10)
	dst = append(dst, `,"duplicates":`...)
	dst = strconv.AppendInt(dst, int64(duplicates), 10)
	return append(dst, '}')
}

func rawResults(results []Result) json.RawMessage { return appendResults(nil, results) }

func appendResults(dst []byte, results []Result) []byte {
	dst = append(dst, '[')
	for i := range results {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendResult(dst, &results[i])
	}
	return append(dst, ']')
}

// appendResult writes ids as they are: their grammar has nothing that JSON escapes.
func appendResult(dst []byte, r *Result) []byte {
	if r.Err != nil {
		dst = append(dst, `{"message_id":`...)
		dst = appendMessageID(dst, r.MessageID)
		dst = append(dst, `,"error":`...)
		body, err := json.Marshal(r.Err.Body())
		if err != nil { // details that do not marshal are our bug
			body = []byte(`{"code":"internal_error"}`)
		}
		dst = append(dst, body...)
		return append(dst, '}')
	}
	dst = append(dst, `{"id":"`...)
	dst = r.ID.AppendText(dst)
	dst = append(dst, `","message_id":`...)
	dst = appendMessageID(dst, r.MessageID)
	dst = append(dst, `,"duplicate":`...)
	dst = strconv.AppendBool(dst, r.Duplicate)
	dst = append(dst, `,"t_ms":`...)
	if r.TMs < 0 {
		dst = append(dst, "null"...)
	} else {
		dst = strconv.AppendInt(dst, r.TMs, 10)
	}
	return append(dst, '}')
}

func appendMessageID(dst []byte, id string) []byte {
	if id == "" {
		return append(dst, "null"...)
	}
	dst = append(dst, '"')
	dst = append(dst, id...)
	return append(dst, '"')
}
