package query

import (
	"errors"
	"fmt"
	"net/url"
	"testing"
	"unicode/utf8"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/openapi/conform"
	"github.com/playhead-dev/playhead/schema"
)

// Whatever a query says, each path either understands it or names what is wrong with it.
func FuzzQueries(f *testing.F) {
	for _, q := range []string{
		"", "pageSize=5&order=desc&include=payload", "limit=99999999999999999999", "limit=0", "pageSize=1&limit=1", "startTime=1&endTime=2&since=3", "startTime=-1",
		"cursor=evt_01003G00000096E0D0RH86R000.9f3ac1d2", "cursor=evt_7ZZZZZZZZZZZZZZZZZZZZZZZZZ", "type=1,0x02,memory.*&events=*&filters[k]=v&confidence.gte=0.5",
		"interval=90s&group_by=none", "interval=1ns", "interval=8785h&startTime=0&endTime=10413791999999", "interval=second&startTime=0&endTime=10413791999999",
		"session_id=s&workflow_id=w", "format=parquet&compression=lz4&max_rows=5&after=evt_0100000000000020D20DBH7K00&end=evt_0100000000000020D20DBH7K00~A7AJBQAEqYwG",
		"format=csv&compression=snappy", "max_rows=100000001", "order_by=start&order=asc&status=active&kind=call&started_after=2026-01-01T00:00:00Z&started_before=5",
		"cursor=tpXtpaA0d2ViLTc.75f40432", "cursor=.00000000", "buckets=60", "buckets=1001&interval=5", "interval=9223372036854775807", "interval=2562047h47m", "all=1", "frame_id=%00", "filters[]=",
	} {
		f.Add(q, "gzip;q=0.5, zstd;q=NaN")
	}
	x := &Exports{formats: exportFormats()}
	f.Fuzz(func(t *testing.T, query, acceptEncoding string) {
		q, err := url.ParseQuery(query)
		if err != nil || !utf8.ValidString(fmt.Sprint(q)) { // httpapi.Query refuses both
			return
		}
		check := func(what string, err error) {
			e, ok := errors.AsType[*httpapi.Error](err)
			if err != nil && (!ok || e.Status != 400 || e.Code == "" || e.Param == "" || e.Message == "" || !utf8.ValidString(e.Message)) {
				t.Errorf("%s of %q: %v is no answer that names a parameter", what, query, err)
			}
		}
		scope := schema.Scope{Workspace: "w"}
		page, err := parsePage(q, 100, schema.TypeTable{})
		check("page", err)
		if err == nil {
			if page.limit < 1 || page.limit > 100 {
				t.Errorf("%q: a page of %d", query, page.limit)
			}
			check("page's cursor", page.parseCursor(q, scope))
		}
		count, err := parseCount(q, schema.TypeTable{}, true)
		check("histogram", err)
		if err == nil && (count.interval < minInterval || count.interval > maxInterval) {
			t.Errorf("%q: buckets of %v", query, count.interval)
		}
		list, err := parseList(q, 100)
		check("list", err)
		if err == nil {
			check("list's cursor", list.parseCursor(q))
		}
		if key, tag, ok := parseListCursor(q.Get("cursor")); ok && key.cursor(tag) != q.Get("cursor") {
			t.Errorf("cursor %q reads as %v of %08x, which is %q", q.Get("cursor"), key, tag, key.cursor(tag))
		}
		cut, err := parseTimelineCut(q)
		check("timeline", err)
		for _, duration := range []int64{0, 1, 1000, 1 << 40, schema.MaxTimeMs} {
			if err != nil {
				break
			}
			width, err := cut.interval(duration)
			check("timeline's interval", err)
			if err == nil && (width < 1 || duration/width >= maxTimelineBuckets+1) {
				t.Errorf("%q: %d ms in buckets of %d", query, duration, width)
			}
		}
		export, err := x.parseExport(q, acceptEncoding, schema.TypeTable{})
		check("export", err)
		if err == nil && (export.format == nil || export.maxRows < 0 || export.maxRows > maxExportRows) {
			t.Errorf("%q: an export of %+v", query, export)
		}
	})
}

// Whatever a DSN says, it is understood or refused, and a refusal does not give its password
// away.
func FuzzDSN(f *testing.F) {
	for _, s := range []string{
		"", "clickhouse://u:secretword@h:9000/d", "http://u:secretword@h:8123/d?secure=true", "https://h", "https://h/?secure=maybe", "clickhouse://a,b:9000/x?dial_timeout=1s&compress=lz4",
		"clickhouse://h/?x=%zz", "http://[::1", "https://u:secretword@%zz", "tcp://h", "clickhouse://u:secretword@h:port/d", "https://h/?username=u&password=secretword&bad=;", "\x00",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, dsn string) {
		cfg := DefaultClickHouseConfig()
		cfg.DSN = dsn
		if err := cfg.Validate(); err != nil {
			return
		}
		if _, err := cfg.options(); err != nil {
			t.Errorf("%q is valid, and then %v", dsn, err)
		}
	})
}

// Whatever bytes a client sends, it is answered as the document says, or hung up on.
func FuzzHTTP(f *testing.F) {
	_, app := newSite(f, siteEvent(0, "a", "{}"), siteEvent(1, "b", `{"x":1}`), siteEvent(5, "a", `"y"`))
	for _, target := range []string{
		"/v1/sessions/s1/events?pageSize=1&include=payload", "/v1/sessions/s1/events?cursor=evt_0100000000000020D20DBH7K00&order=desc", "/v1/events?type=a&limit=5", "/v1/workflows/wf1/events",
		"/v1/sessions?order_by=start", "/v1/sessions/s1", "/v1/sessions/s1/details?buckets=5", "/v1/events/count", "/v1/events/histogram?interval=day&group_by=none", "/v1/events/evt_0100000000000020D20DBH7K00",
		"/v1/watermarks", "/v1/sessions/%2e/events", "/v1/events/count?filters%5Bk%5D=v&_x=1", "/v1/events/%00", "/v1//events", "/v1/events/?since=x;until=y",
	} {
		for _, method := range []string{"GET", "HEAD"} {
			f.Add([]byte(method + " " + target + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer w1\r\n\r\n"))
		}
	}
	f.Add([]byte("GET /v1/events HTTP/1.1\r\nHost: x\r\nX-Api-Key: w1\r\nContent-Length: 5\r\n\r\nhelloGET /v1/sessions/s1 HTTP/1.1\r\nHost: x\r\nX-Api-Key: s1-only\r\n\r\n"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		if err := conform.CheckExchange(sent, conform.Exchange(app, sent)); err != nil {
			t.Error(err)
		}
	})
}
