package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

const lettersUsage = `Usage: playhead dead-letters list [filters]
       playhead dead-letters show ID
       playhead dead-letters redrive [corrections] ID…
       playhead dead-letters redrive [corrections] --all [filters]

Dead letters are records that other producers wrote to playhead.events and that are no
events. list prints them, the oldest first; show prints one with all of its record, as
JSON; redrive appends them as events, each once, however often it is asked for.

The server and the key are those of "playhead dev" on this machine, unless given. The key
needs the scope admin; one of the operator's workspace sees the letters of all.

Flags:
`

const lettersExitCodes = `
Exit codes: 0 done; 1 failed, or some were not appended; 2 wrong usage; 130 interrupted:
run the same command to go on.
`

// lettersTimeout bounds one request.
const lettersTimeout = 60 * time.Second

// maxLetterAnswer bounds an answer that is read: a letter of 1 MiB in base64, twice over.
const maxLetterAnswer = 8 << 20

// lettersPage is how many letters one request lists or appends.
const lettersPage = 100

// lettersAsk is the command line.
type lettersAsk struct {
	verb    string
	ids     []string
	all     bool
	json    bool
	server  serverFlags
	filters url.Values
	body    correction
}

// correction is the body of a redrive.
type correction struct {
	WorkspaceID string   `json:"workspace_id,omitempty"`
	SessionID   string   `json:"session_id,omitempty"`
	Type        string   `json:"type,omitempty"`
	ContentType string   `json:"content_type,omitempty"`
	LeaveOut    []string `json:"leave_out,omitempty"`
}

// runDeadLetters is `playhead dead-letters`.
func runDeadLetters(ctx context.Context, args []string, env func(string) string, stdout, stderr io.Writer) error {
	ask, err := parseDeadLetters(args, env, stderr)
	if err != nil {
		return err
	}
	base, key, err := ask.server.choose(env)
	if err != nil {
		fmt.Fprintln(stderr, "playhead dead-letters:", err)
		return errUsage
	}
	client := &lettersClient{base: base, key: key, http: &http.Client{Timeout: lettersTimeout}}
	defer client.http.CloseIdleConnections()
	switch ask.verb {
	case "list":
		return client.list(ctx, ask, stdout)
	case "show":
		return client.show(ctx, ask.ids[0], stdout)
	default:
		return client.redrive(ctx, ask, stdout)
	}
}

// parseDeadLetters reads the command line. What is wrong with it has been printed when it
// returns errUsage.
func parseDeadLetters(args []string, env func(string) string, stderr io.Writer) (*lettersAsk, error) {
	ask := &lettersAsk{filters: make(url.Values)}
	flags := flag.NewFlagSet("playhead dead-letters", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, lettersUsage)
		flags.PrintDefaults()
		fmt.Fprint(stderr, lettersExitCodes)
	}
	ask.server.register(flags, env, "admin")
	filter := func(name, param, help string) {
		flags.Func(name, "filter: "+help, func(v string) error { ask.filters.Set(param, v); return nil })
	}
	filter("workspace", "workspace_id", "letters that say they are of this workspace (`id`)")
	filter("partition", "partition", "of this Kafka partition (`number`)")
	filter("reason", "reason", "with this `reason`, such as wrong_partition")
	filter("from", "from", "found at this `time` or later (RFC 3339)")
	filter("to", "to", "found before this `time`")
	filter("redriven", "redriven", "`true` or false: appended again, or not")
	flags.StringVar(&ask.body.WorkspaceID, "to-workspace", "", "correction: the event's workspace (`id`)")
	flags.StringVar(&ask.body.SessionID, "session", "", "correction: the event's session (`id`)")
	flags.StringVar(&ask.body.Type, "type", "", "correction: the event's `type`")
	flags.StringVar(&ask.body.ContentType, "content-type", "", "correction: the payload's content `type`, such as application/octet-stream")
	leaveOut := flags.String("leave-out", "", "correction: `headers` to do without, such as ce_confidence, separated by commas")
	flags.BoolVar(&ask.all, "all", false, "redrive: all letters that the filters take and that were not appended again yet")
	flags.BoolVar(&ask.json, "json", false, "list: as JSON, one letter a line")
	words, err := parseInterspersed(flags, args)
	if errors.Is(err, flag.ErrHelp) {
		return nil, err
	} else if err != nil {
		return nil, errUsage // the flag package has said why
	}
	if *leaveOut != "" {
		ask.body.LeaveOut = strings.Split(*leaveOut, ",")
	}
	if err := ask.check(words); err != nil {
		fmt.Fprintf(stderr, "playhead dead-letters: %v\n", err)
		return nil, errUsage
	}
	return ask, nil
}

// check takes the words of the command line and reports what does not go together.
func (a *lettersAsk) check(words []string) error {
	if len(words) == 0 {
		return errors.New("want list, show or redrive")
	}
	a.verb, a.ids = words[0], words[1:]
	corrected := a.body.WorkspaceID+a.body.SessionID+a.body.Type+a.body.ContentType != "" || len(a.body.LeaveOut) > 0
	switch {
	case a.verb != "list" && a.verb != "show" && a.verb != "redrive":
		return fmt.Errorf("%q is none of list, show and redrive", a.verb)
	case a.verb == "list" && len(a.ids) > 0:
		return fmt.Errorf("list takes no argument, got %q", a.ids[0])
	case a.verb == "show" && len(a.ids) != 1:
		return fmt.Errorf("show takes the id of one letter, got %d", len(a.ids))
	case a.verb != "list" && a.json:
		return errors.New("--json goes with list")
	case a.verb != "redrive" && (a.all || corrected):
		return errors.New("--all and corrections go with redrive")
	case a.verb == "redrive" && a.all == (len(a.ids) > 0):
		return errors.New("redrive takes ids of letters, or --all")
	case !a.all && a.verb != "list" && len(a.filters) > 0:
		return errors.New("filters go with list and with redrive --all")
	}
	return nil
}

// lettersClient speaks to a server.
type lettersClient struct {
	base, key string
	http      *http.Client
}

// letter is what the commands print of a dead letter.
type letter struct {
	ID          string  `json:"id"`
	Reason      string  `json:"reason"`
	Detail      string  `json:"detail"`
	Partition   int     `json:"partition"`
	Offset      int64   `json:"offset"`
	FoundAt     string  `json:"found_at"`
	WorkspaceID *string `json:"workspace_id"`
	SessionID   *string `json:"session_id"`
	Redriven    *struct {
		EventID string `json:"event_id"`
	} `json:"redriven"`
}

// redriveResult is what became of a letter.
type redriveResult struct {
	ID        string       `json:"id"`
	EventID   string       `json:"event_id"`
	Duplicate bool         `json:"duplicate"`
	Error     *answerError `json:"error"`
}

// answerError is an error in the API's form.
type answerError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *answerError) Error() string { return e.Code + ": " + e.Message }

// lettersAnswer is a page of a list.
type lettersAnswer[T any] struct {
	Data       []T `json:"data"`
	Pagination struct {
		NextCursor *string `json:"next_cursor"`
		HasMore    bool    `json:"has_more"`
	} `json:"pagination"`
}

// do sends a request and decodes the answer of a success.
func (c *lettersClient) do(ctx context.Context, method, path string, body, into any) error {
	var send io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		send = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/admin/v1/dead-letters"+path, send)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	req.Header.Set("User-Agent", "playhead-dead-letters/"+version)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxLetterAnswer))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		var failed struct{ Error *answerError }
		if json.Unmarshal(b, &failed) != nil || failed.Error == nil {
			return fmt.Errorf("%s %s: %s", method, req.URL.Path, res.Status)
		}
		return failed.Error
	}
	return json.Unmarshal(b, into)
}

// page returns the query of a page.
func (a *lettersAsk) page(cursor *string) string {
	q := url.Values{"limit": {strconv.Itoa(lettersPage)}}
	for name, values := range a.filters {
		q[name] = values
	}
	if cursor != nil {
		q.Set("cursor", *cursor)
	}
	return "?" + q.Encode()
}

func (c *lettersClient) list(ctx context.Context, ask *lettersAsk, stdout io.Writer) error {
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	if !ask.json {
		fmt.Fprintln(table, "ID\tFOUND\tREASON\tPARTITION\tOFFSET\tWORKSPACE\tSESSION\tREDRIVEN")
	}
	for cursor := (*string)(nil); ; {
		var answer lettersAnswer[json.RawMessage]
		if err := c.do(ctx, http.MethodGet, ask.page(cursor), nil, &answer); err != nil {
			return err
		}
		for _, raw := range answer.Data {
			if ask.json {
				fmt.Fprintf(stdout, "%s\n", raw)
				continue
			}
			var l letter
			if err := json.Unmarshal(raw, &l); err != nil {
				return err
			}
			redriven := ""
			if l.Redriven != nil {
				redriven = l.Redriven.EventID
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", l.ID, l.FoundAt, l.Reason, l.Partition, l.Offset,
				orDash(l.WorkspaceID), orDash(l.SessionID), redriven)
		}
		if err := table.Flush(); err != nil {
			return err
		}
		if cursor = answer.Pagination.NextCursor; !answer.Pagination.HasMore {
			return nil
		}
	}
}

func orDash(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}

func (c *lettersClient) show(ctx context.Context, id string, stdout io.Writer) error {
	var answer json.RawMessage
	if err := c.do(ctx, http.MethodGet, "/"+url.PathEscape(id), nil, &answer); err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, answer, "", "  "); err != nil {
		return err
	}
	_, err := fmt.Fprintln(stdout, out.String())
	return err
}

// redrive appends letters one by one, or by pages of all that the filters take.
func (c *lettersClient) redrive(ctx context.Context, ask *lettersAsk, stdout io.Writer) error {
	appended, failed := 0, 0
	report := func(r redriveResult) {
		switch {
		case r.Error != nil:
			failed++
			fmt.Fprintf(stdout, "%s  %v\n", r.ID, r.Error)
		case r.Duplicate:
			fmt.Fprintf(stdout, "%s  %s (appended before)\n", r.ID, r.EventID)
		default:
			appended++
			fmt.Fprintf(stdout, "%s  %s\n", r.ID, r.EventID)
		}
	}
	for _, id := range ask.ids {
		var r redriveResult
		err := c.do(ctx, http.MethodPost, "/"+url.PathEscape(id)+"/redrive", ask.body, &r)
		if refused, ok := errors.AsType[*answerError](err); ok {
			r, err = redriveResult{ID: id, Error: refused}, nil
		}
		if err != nil {
			return err
		}
		report(r)
	}
	for cursor, more := (*string)(nil), ask.all; more; {
		var answer lettersAnswer[redriveResult]
		if err := c.do(ctx, http.MethodPost, "/redrive"+ask.page(cursor), ask.body, &answer); err != nil {
			return err
		}
		for _, r := range answer.Data {
			report(r)
		}
		cursor, more = answer.Pagination.NextCursor, answer.Pagination.HasMore
	}
	fmt.Fprintf(stdout, "%d appended, %d failed\n", appended, failed)
	if failed > 0 {
		return fmt.Errorf("%d dead letters were not appended", failed)
	}
	return nil
}
