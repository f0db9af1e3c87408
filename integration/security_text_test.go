package integration

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// marked is in every hostile text: neither logs nor metrics may show it.
const marked = "zq7mark"

// hostileTexts would be something else than text where they are not quoted.
func hostileTexts() []string {
	return []string{
		marked + "\r\n\r\nHTTP/1.1 200 OK\r\nX-Evil: 1\r\n\r\n",
		marked + "\n\nevent: evil\nid: evt_0\ndata: {}\n\n",
		marked + "\rdata: evil\r\r",
		"\x00" + marked + "\x00",
		marked + "\u2028data: evil\u2029\u0085",
		"\ufeff" + marked,
		"\x1b[31m" + marked + "\x1b]0;evil\x07",
		"=cmd|' /C " + marked + "'!A0", "+1" + marked, "-1+" + marked, "@SUM(" + marked + ")",
		marked + "'; DROP TABLE events; --", marked + "' OR 1=1 -- ", marked + "\\' OR 1=1 /*", marked + "\\", marked + "`\"$$",
		marked + "{p0:String}", marked + "%s%n%d", "</script><script>" + marked, "time=now level=ERROR msg=" + marked,
		marked + "\"} 1\nevil_metric{a=\"b", "a,b;\t\"" + marked + "\"\n",
	}
}

// hostileEvent is an event of hostile text that is allowed where it stands.
type hostileEvent struct {
	Type      string            `json:"type"`
	MessageID string            `json:"message_id"`
	Payload   map[string]string `json:"payload"`
	Metadata  map[string]string `json:"metadata"`
	FrameID   string            `json:"frame_id,omitempty"`
}

// checkText sends hostile text in every place that takes text, and reads it back in every way.
func checkText(t *testing.T, g *guarded) {
	const session = "text"
	key := g.server.key
	var want []hostileEvent
	for i, h := range hostileTexts() {
		e := hostileEvent{
			Type: "said", MessageID: fmt.Sprint("m", i), Payload: map[string]string{h: h}, Metadata: map[string]string{"note": h},
		}
		if !strings.ContainsFunc(h, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			e.FrameID = h
			e.Metadata[h] = h
		}
		want = append(want, e)
		// JSON may have line breaks between its tokens.
		b, err := json.MarshalIndent(e, "\r", "\n")
		if err != nil {
			t.Fatal(err)
		}
		if a := g.ask(t, "POST", "/v1/sessions/"+session+"/events", key, string(b), nil); a.status != 200 {
			t.Fatalf("append %q: %d %s", h, a.status, a.body)
		}
		refuseHostile(t, g, session, h)
	}
	if a := g.ask(t, "POST", "/v1/sessions/"+session+"/events?ack=materialised", key, `{"type":"last"}`, nil); a.status != 200 {
		t.Fatalf("append: %d %s", a.status, a.body)
	}
	if a := g.ask(t, "POST", "/v1/sessions/"+session+"/end", key, "", nil); a.status != 200 {
		t.Fatalf("end: %d %s", a.status, a.body)
	}
	readBack(t, g, session, want)
	filterHostile(t, g, session, want)
	askHostile(t, g, session)
	headHostile(t, g)

	for _, path := range []string{"/metrics", "/readyz", "/healthz"} {
		if a := g.ask(t, "GET", path, "", "", nil); a.status != 200 || strings.Contains(a.body, marked) || strings.Contains(a.body, "evil") {
			t.Errorf("GET %s: %d, and shows text from outside: %s", path, a.status, a.body)
		}
	}
	checkLog(t, g)
}

// checkLog holds every line of the log to begin as lines do, and to be plain text.
func checkLog(t *testing.T, g *guarded) {
	t.Helper()
	for line := range strings.Lines(g.output.String()) {
		line = strings.TrimSuffix(line, "\n")
		if !strings.HasPrefix(line, "time=") || strings.Contains(line, marked) || strings.ContainsFunc(line, unicode.IsControl) {
			t.Errorf("the log has the line %q", line)
		}
	}
}

// refuseHostile sends what must be refused, by the field's name.
func refuseHostile(t *testing.T, g *guarded, session, h string) {
	t.Helper()
	for _, field := range []string{"type", "message_id", "workflow_id", "session_id"} {
		b, _ := json.Marshal(map[string]string{"type": "said", field: h})
		a := g.ask(t, "POST", "/v1/sessions/"+session+"/events", g.server.key, string(b), nil)
		var said struct {
			Error struct{ Code, Param string }
		}
		if err := json.Unmarshal([]byte(a.body), &said); err != nil || a.status != 400 || said.Error.Param != field {
			t.Errorf("append with %s %q: %d %s, want 400 that names it", field, h, a.status, a.body)
		}
	}
	b, _ := json.Marshal(map[string]string{"id": h})
	if a := g.ask(t, "POST", "/v1/sessions", g.server.key, string(b), nil); a.status != 400 || a.header.Get("Location") != "" {
		t.Errorf("create session %q: %d %s", h, a.status, a.body)
	}
	if a := g.ask(t, "POST", "/v1/sessions/"+url.PathEscape(h)+"/events", g.server.key, `{"type":"said"}`, nil); a.status != 400 && a.status != 404 {
		t.Errorf("append to session %q: %d %s", h, a.status, a.body)
	}
}

// readBack reads the session as stream, pages and exports: each has exactly what was appended.
func readBack(t *testing.T, g *guarded, session string, want []hostileEvent) {
	t.Helper()
	path := "/v1/sessions/" + session
	var got []hostileEvent
	for _, e := range readEventStream(t, g.ask(t, "GET", path+"/events/stream?from=start&close=end", g.server.key, "", nil).body) {
		if strings.HasPrefix(e.event, "playhead.") || e.event == "last" || e.data == "" {
			continue
		}
		h := hostileEvent{Type: e.event}
		if err := json.Unmarshal([]byte(e.data), &h); err != nil {
			t.Fatalf("frame %q: %v", e.data, err)
		}
		got = append(got, h)
	}
	sameEvents(t, "the stream", got, want, false)

	got = nil
	for cursor, more := "", true; more; {
		var p struct {
			Data []struct {
				EventTypeName   string            `json:"eventTypeName"`
				ClientMessageID string            `json:"clientMessageId"`
				Payload         json.RawMessage   `json:"payload"`
				Metadata        map[string]string `json:"metadata"`
				FrameID         string            `json:"frameId"`
			} `json:"data"`
			Pagination struct {
				NextCursor string `json:"nextCursor"`
				HasMore    bool   `json:"hasMore"`
			} `json:"pagination"`
		}
		a := g.ask(t, "GET", path+"/events?include=payload&pageSize=100&cursor="+url.QueryEscape(cursor), g.server.key, "", nil)
		if err := json.Unmarshal([]byte(a.body), &p); err != nil || a.status != 200 {
			t.Fatalf("page: %d %s: %v", a.status, a.body, err)
		}
		for _, e := range p.Data {
			if e.EventTypeName == "last" {
				continue
			}
			h := hostileEvent{Type: e.EventTypeName, MessageID: e.ClientMessageID, Metadata: e.Metadata, FrameID: e.FrameID}
			if err := json.Unmarshal(e.Payload, &h.Payload); err != nil {
				t.Fatalf("payload %s: %v", e.Payload, err)
			}
			got = append(got, h)
		}
		cursor, more = p.Pagination.NextCursor, p.Pagination.HasMore
	}
	sameEvents(t, "history", got, want, true)
	sameEvents(t, "the export", exportedHostile(t, g.ask(t, "GET", path+"/export?type=said", g.server.key, "", nil)), want, true)

	a := g.ask(t, "GET", path+"/export?type=said&format=csv", g.server.key, "", nil)
	rows, err := csv.NewReader(strings.NewReader(a.body)).ReadAll()
	if err != nil || len(rows) != len(want)+1 {
		t.Fatalf("csv: %d rows, %v, want %d", len(rows), err, len(want)+1)
	}
	column := func(row []string, name string) string { return row[slices.Index(rows[0], name)] }
	got = nil
	for _, row := range rows[1:] {
		h := hostileEvent{Type: column(row, "type"), MessageID: column(row, "message_id"), FrameID: column(row, "frame_id")}
		if err := json.Unmarshal([]byte(column(row, "metadata")), &h.Metadata); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(column(row, "payload")), &h.Payload); err != nil {
			t.Fatal(err)
		}
		got = append(got, h)
	}
	// encoding/csv makes \n of \r\n within a field, as RFC 4180 has no say in it.
	for i := range got {
		got[i].FrameID = strings.ReplaceAll(got[i].FrameID, "\r\n", "\n")
	}
	sameEvents(t, "the CSV file", got, want, true)
}

func exportedHostile(t *testing.T, a reply) (out []hostileEvent) {
	t.Helper()
	if a.status != 200 {
		t.Fatalf("export: %d %s", a.status, a.body)
	}
	for line := range strings.Lines(a.body) {
		var h hostileEvent
		if err := json.Unmarshal([]byte(line), &h); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		out = append(out, h)
	}
	return out
}

// sameEvents compares; a stream does not show message ids.
func sameEvents(t *testing.T, where string, got, want []hostileEvent, messageIDs bool) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s has %d events, want %d", where, len(got), len(want))
		return
	}
	for i, w := range want {
		if !messageIDs {
			w.MessageID = ""
		}
		if fmt.Sprintf("%+q", got[i]) != fmt.Sprintf("%+q", w) {
			t.Errorf("%s has %+q, want %+q", where, got[i], w)
		}
	}
}

// streamed is an event of a stream as the HTML standard (9.2.6) reads it.
type streamed struct{ event, id, data string }

// readEventStream reads a stream as browsers do: a line ends at \r\n, \r or \n.
func readEventStream(t *testing.T, body string) (out []streamed) {
	t.Helper()
	var e streamed
	var data []string
	for line := range strings.SplitSeq(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(body), "\n") {
		if line == "" {
			if len(data) > 0 {
				e.data = strings.Join(data, "\n")
				out = append(out, e)
			}
			e, data = streamed{}, nil
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "event":
			e.event = value
		case "id":
			e.id = value
		case "data":
			data = append(data, value)
		case "", "retry":
		default:
			t.Errorf("the stream has the line %q", line)
		}
	}
	return out
}

// filterHostile filters by hostile values: exactly the events that hold them are found, in
// ClickHouse (exports) and otherwise.
func filterHostile(t *testing.T, g *guarded, session string, want []hostileEvent) {
	t.Helper()
	for _, w := range want {
		q := url.Values{"filters[note]": {w.Metadata["note"]}, "type": {"said"}}
		sameEvents(t, "the export by metadata", exportedHostile(t, g.ask(t, "GET", "/v1/sessions/"+session+"/export?"+q.Encode(), g.server.key, "", nil)), []hostileEvent{w}, true)
		if w.FrameID == "" {
			continue
		}
		q = url.Values{"frame_id": {w.FrameID}, "filters[" + w.FrameID + "]": {w.FrameID}}
		sameEvents(t, "the export by frame", exportedHostile(t, g.ask(t, "GET", "/v1/export?"+q.Encode(), g.server.key, "", nil)), []hostileEvent{w}, true)
	}
}

// askHostile puts hostile text into the parameters of every path: into a third of them each,
// so that every parameter has its turn on many.
func askHostile(t *testing.T, g *guarded, session string) {
	t.Helper()
	params := []string{
		"type", "events", "frame_id", "filters[note]", "filters[' OR 1=1 -- ]", "since", "until", "startTime", "endTime",
		"confidence_gte", "from_t_ms", "cursor", "pageSize", "limit", "order", "include", "from", "last_event_id", "after", "end", "format",
		"compression", "max_rows", "workflow_id", "status", "kind", "sort", "interval", "buckets", "session_id", "speed", "on_slow", "close",
		"' OR 1=1 -- ", "a\r\nX-Evil: 1",
	}
	const h = marked + "' OR 1=1 --\r\nX-Evil: 1\r\n\r\n{p0:String}\\"
	for i, r := range routes(t) {
		if r.method != "GET" || strings.HasSuffix(r.path, "/ws") {
			continue
		}
		for j, param := range params {
			if (i+j)%3 != 0 {
				continue
			}
			a := g.ask(t, "GET", r.fill(session)+"?"+url.Values{param: {h}}.Encode(), g.server.key, "", nil)
			if a.status >= 500 || a.header.Get("X-Evil") != "" || a.body != "" && a.status >= 400 && !json.Valid([]byte(a.body)) {
				t.Errorf("GET %s with %s=%q: %d %v %s", r.path, param, h, a.status, a.header, a.body)
			}
		}
	}
}

// headHostile sends headers that would break a head into which they were copied.
func headHostile(t *testing.T, g *guarded) {
	t.Helper()
	for _, name := range []string{"X-Request-Id", "Origin", "Last-Event-ID", "Accept-Encoding", "User-Agent", "Sec-WebSocket-Protocol", "Host", "Content-Type"} {
		for _, value := range []string{
			marked + "\x1b[31m", marked + "\x00", marked + "\r\n X-Evil: 1", marked + "\nX-Evil: 1", marked + "\rX-Evil: 1", marked + "\u2028", marked + "\xff",
			"https://" + marked + "\r\n X-Evil: 1.example.com", "https://" + marked + "\rX-Evil: 1\r.example.com", "https://a\x00" + marked + ".example.com",
		} {
			host := "Host: x\r\n"
			if name == "Host" {
				host = ""
			}
			got := g.raw(t, "GET /v1/sessions/text HTTP/1.1\r\n"+host+"Authorization: Bearer "+g.server.key+"\r\nConnection: close\r\n"+name+": "+value+"\r\n\r\n")
			if got == "" {
				continue // cut off
			}
			in := bufio.NewReader(strings.NewReader(got))
			res, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Errorf("%s %q: %v in %q", name, value, err, got)
				continue
			}
			body, err := io.ReadAll(res.Body)
			rest, _ := io.ReadAll(in)
			if err != nil || len(rest) > 0 || res.Header.Get("X-Evil") != "" || !json.Valid(body) {
				t.Errorf("%s %q: %v, %v %s, then %q", name, value, err, res.Header, body, rest)
			}
			head, _, _ := bytes.Cut([]byte(got), []byte("\r\n\r\n"))
			for line := range bytes.SplitSeq(head, []byte("\r\n")) {
				if bytes.ContainsFunc(line, unicode.IsControl) {
					t.Errorf("%s %q: the answer's head has the line %q", name, value, line)
				}
			}
		}
	}
}
