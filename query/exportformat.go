package query

import (
	"fmt"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/playhead-dev/playhead/schema"
)

// exportFormat is one way to write an export. ClickHouse writes the bytes; what joins
// them into one body is here.
type exportFormat struct {
	name        string // of the parameter
	contentType string
	columns     string // what is selected, by the names clients see
	first, rest string // ClickHouse's formats of the first statement and of the others
	settings    clickhouse.Settings
	inner       map[string]string // compressions within the format, by ClickHouse's names; the first is ""
	innerKey    string            // the setting that inner is of
	join        func() joiner     // nil: the bytes of the statements follow one another

	// oneStatement is set where the end of a file describes all of it, so that no part of it
	// can be read by itself. Then a statement that fails is the end of the file.
	oneStatement bool

	coded bool // may travel as gzip or zstd
}

// joiner makes one body of the answers to several statements.
type joiner interface {
	// next begins the answer to the next statement.
	next()
	// write takes bytes of that answer, and hands on what belongs into the body.
	write(b []byte, out func([]byte) error) error
	// end hands on what stands at the end of a body.
	end(out func([]byte) error) error
}

// eventIDColumn is the text of an event's id, as schema.EventID writes it: the 128 bits
// behind two zero bits, so that they fall into groups of five, in ClickHouse's base32, in
// Crockford's letters.
const eventIDColumn = `concat('` + schema.EventIDPrefix + `', translate(substring(base32Encode(concat(
    reinterpretAsFixedString(byteSwap(bitOr(bitOr(bitShiftLeft(toUInt64(log_epoch), 54), bitShiftLeft(toUInt64(kafka_partition), 38)), bitShiftRight(kafka_offset, 10)))),
    reinterpretAsFixedString(byteSwap(bitOr(bitShiftLeft(bitAnd(kafka_offset, 1023), 54), bitShiftLeft(toUInt64(toUnixTimestamp64Milli(ts)), 6)))))), 1, 26),
    'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567', '0123456789ABCDEFGHJKMNPQRSTVWXYZ'))`

// jsonContent is schema.IsJSON of the column content_type.
const jsonContent = `(content_type = '` + schema.DefaultContentType + `' OR content_type = ''
    OR trim(BOTH ' \t' FROM lower(splitByChar(';', content_type)[1])) IN ('` + schema.DefaultContentType + `', 'text/json')
    OR endsWith(trim(BOTH ' \t' FROM lower(splitByChar(';', content_type)[1])), '+json'))`

// payloadText is the payload where a column is text: JSON as it was appended, anything else
// in base64.
const payloadText = `if(` + jsonContent + `, payload, base64Encode(payload))`

// payloadJSON is the payload as a JSON value on one line: line ends can stand only between
// the tokens of what is JSON.
const payloadJSON = `if(` + jsonContent + `, translate(payload, '\n\r', '  '), concat('"', base64Encode(payload), '"'))`

// exportColumns returns what is selected. Optional text that is absent is NULL.
func exportColumns(metadata, payload string) string {
	return eventIDColumn + ` AS event_id, session_id, nullIf(workflow_id, '') AS workflow_id, type, ts AS time,
  client_ts AS client_time, toInt64(t_ms) AS t_ms, confidence, nullIf(frame_id, '') AS frame_id,
  nullIf(message_id, '') AS message_id, ` + metadata + ` AS metadata, content_type, ` + payload + ` AS payload`
}

// exportColumnNames are the columns in their order.
var exportColumnNames = [...]string{
	"event_id", "session_id", "workflow_id", "type", "time", "client_time", "t_ms",
	"confidence", "frame_id", "message_id", "metadata", "content_type", "payload",
}

// ndjsonRow is the template of a line. ClickHouse fills it in half of the time that
// JSONEachRow takes, which would put the payload's JSON into a string.
func ndjsonRow() string {
	var b strings.Builder
	for i, name := range exportColumnNames {
		rule := "JSON"
		if name == "payload" {
			rule = "Raw"
		}
		fmt.Fprintf(&b, `%c"%s":${%[2]s:%s}`, "{,"[min(i, 1)], name, rule)
	}
	return b.String() + "}\n"
}

func exportFormats() []*exportFormat {
	// A row group, or batch, of a size that a reader can hold.
	const groupRows, groupBytes = 131_072, 64 << 20
	binary := func(name, contentType, chFormat string) *exportFormat {
		return &exportFormat{
			name: name, contentType: contentType, first: chFormat, rest: chFormat,
			columns: exportColumns("metadata", payloadText),
		}
	}
	ndjson := &exportFormat{
		name: "ndjson", contentType: "application/x-ndjson", first: "Template", rest: "Template", coded: true,
		columns: exportColumns("metadata", payloadJSON),
		settings: clickhouse.Settings{
			"format_template_row_format":                ndjsonRow(),
			"format_template_rows_between_delimiter":    "",
			"date_time_output_format":                   "iso",
			"output_format_json_escape_forward_slashes": 0,
			"output_format_json_quote_64bit_integers":   0,
		},
	}
	csv := &exportFormat{
		name: "csv", contentType: "text/csv; charset=utf-8", first: "CSVWithNames", rest: "CSV", coded: true,
		columns: exportColumns("toJSONString(metadata)", payloadText),
		settings: clickhouse.Settings{
			"date_time_output_format":                   "iso",
			"format_csv_null_representation":            "",
			"output_format_json_escape_forward_slashes": 0,
		},
	}
	arrow := binary("arrow", "application/vnd.apache.arrow.stream", "ArrowStream")
	arrow.join = func() joiner { return &arrowJoiner{} }
	arrow.innerKey, arrow.inner = "output_format_arrow_compression_method", map[string]string{
		"": "lz4_frame", "lz4": "lz4_frame", "zstd": "zstd", "none": "none",
	}
	parquet := binary("parquet", "application/vnd.apache.parquet", "Parquet")
	parquet.oneStatement = true
	parquet.innerKey, parquet.inner = "output_format_parquet_compression_method", map[string]string{
		"": "zstd", "zstd": "zstd", "lz4": "lz4", "gzip": "gzip", "snappy": "snappy", "none": "none",
	}
	parquet.settings = clickhouse.Settings{
		"output_format_parquet_row_group_size":       groupRows,
		"output_format_parquet_row_group_size_bytes": groupBytes,
	}
	return []*exportFormat{ndjson, csv, parquet, arrow}
}
