package integration

import (
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// right is a privilege on a table, as in "INSERT ON playhead.events".
type right string

// rightsFor returns what a user needs for a statement: a table of the kinds of statements that
// the product sends, after ClickHouse's documentation of GRANT, "Privileges". An unknown kind
// is none of them.
func rightsFor(statement string) (out []right, known bool) {
	statement = strings.TrimSpace(regexp.MustCompile(`(?m)^--.*$`).ReplaceAllString(statement, ""))
	on := func(table string, privileges ...string) {
		for _, p := range privileges {
			out = append(out, right(p+" ON playhead."+ownTable(table)))
		}
	}
	for _, m := range regexp.MustCompile(`(?i)\b(?:FROM|JOIN) +(system\.)?(\w+)`).FindAllStringSubmatch(statement, -1) {
		switch {
		case m[1] != "":
			out = append(out, right("SELECT ON system."+m[2]))
		case strings.HasPrefix(m[2], "events"), m[2] == "schema_migrations":
			on(m[2], "SELECT")
		}
	}
	words := strings.Fields(statement)
	for _, kind := range []struct {
		begins string
		need   func(w []string)
	}{
		{"SELECT", func([]string) {}},
		{"WITH", func([]string) {}},
		{"EXPLAIN ESTIMATE SELECT", func([]string) {}}, // what the SELECT needs
		{"INSERT INTO", func(w []string) { on(w[2], "INSERT") }},
		{"CREATE TABLE IF NOT EXISTS", func(w []string) { on(w[5], "CREATE TABLE") }},
		{"DROP TABLE IF EXISTS", func(w []string) { on(w[4], "DROP TABLE") }},
		{"RENAME TABLE", func(w []string) { on(w[2], "SELECT", "DROP TABLE"); on(w[4], "CREATE TABLE", "INSERT") }},
		{"EXCHANGE TABLES", func(w []string) {
			on(w[2], "SELECT", "INSERT", "CREATE TABLE", "DROP TABLE")
			on(w[4], "SELECT", "INSERT", "CREATE TABLE", "DROP TABLE")
		}},
		{"KILL QUERY", func([]string) { out = append(out, "SELECT ON system.processes") }}, // of its own user
		{"ALTER TABLE", func(w []string) {
			privileges := map[string]string{
				"DELETE": "ALTER DELETE", "UPDATE": "ALTER UPDATE", "MODIFY COMMENT": "ALTER MODIFY COMMENT",
				"ADD CONSTRAINT": "ALTER ADD CONSTRAINT", "DROP CONSTRAINT": "ALTER DROP CONSTRAINT",
				"MODIFY SETTING": "ALTER SETTINGS", "MODIFY TTL": "ALTER TTL", "REMOVE TTL": "ALTER TTL",
			}
			p := privileges[w[3]]
			if p == "" {
				p = privileges[w[3]+" "+w[4]]
			}
			known = p != ""
			on(w[2], p)
		}},
	} {
		if begins := strings.Fields(kind.begins); len(words) > len(begins) && slices.Equal(words[:len(begins)], begins) {
			known = true
			kind.need(words)
			break
		}
	}
	return out, known
}

// ownTable is the table's name without what a rebuild adds at random.
func ownTable(name string) string {
	name = strings.TrimRight(name, "(,;")
	if strings.HasPrefix(name, "events_next") {
		return "events_next"
	}
	return name
}

// grants are the rights that docs/operations.md gives each user.
func grants(t *testing.T) map[string][]right {
	t.Helper()
	b, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string][]right)
	for _, m := range regexp.MustCompile(`(?m)^GRANT ([A-Z, ]+) ON ([a-z_.*]+) TO ([a-z_, ]+);$`).FindAllStringSubmatch(string(b), -1) {
		for privilege := range strings.SplitSeq(m[1], ", ") {
			for user := range strings.SplitSeq(m[3], ", ") {
				out[user] = append(out[user], right(privilege+" ON "+m[2]))
			}
		}
	}
	return out
}

// granted reports whether a right is among those of users.
func granted(all map[string][]right, users []string, r right) bool {
	privilege, _, _ := strings.Cut(string(r), " ON ")
	return slices.ContainsFunc(users, func(user string) bool {
		return slices.Contains(all[user], r) || slices.Contains(all[user], right(privilege+" ON playhead.*")) && strings.Contains(string(r), " ON playhead.")
	})
}

// checkGrants holds what nodes ask ClickHouse to the grants that the documentation lists: of
// the first node, which makes the tables, and of one that finds them.
func checkGrants(t *testing.T, g *guarded) {
	nodes, all := []string{"playhead_reader", "playhead_query", "playhead_materializer"}, grants(t)
	for _, user := range append(nodes, "playhead_migrate") {
		if len(all[user]) == 0 {
			t.Fatalf("docs/operations.md grants nothing to %s", user)
		}
	}
	later := &statements{}
	p := g.parts
	p.dsn = later.before(t, p.dsn)
	second := p.serve(t, "")
	for _, path := range []string{"/v1/sessions/later/events?ack=materialised&dedupe=history", "/v1/sessions/erased/events?ack=materialised"} {
		if status, b := second.do(http.MethodPost, path, "application/json", `{"type":"a","message_id":"m"}`); status != http.StatusOK {
			t.Fatalf("append: %d %s", status, b)
		}
	}
	for _, path := range []string{"/v1/sessions/later/events", "/v1/sessions", "/v1/events/count", "/v1/export", "/v1/sessions/later/details"} {
		if status, b := second.do(http.MethodGet, path, "", ""); status != http.StatusOK {
			t.Fatalf("GET %s: %d %s", path, status, b)
		}
	}
	second.erase("/v1/sessions/erased")
	second.awaitErased()
	second.stop()

	needed := make(map[right]bool)
	for name, run := range map[string]struct {
		asked []string
		users []string
	}{
		"a node that makes the tables": {g.statements.all(), append(slices.Clone(nodes), "playhead_migrate")},
		"a node that finds them":       {later.all(), nodes},
	} {
		if len(run.asked) < 10 {
			t.Errorf("%s asks ClickHouse %d things; the test is of no use", name, len(run.asked))
		}
		for _, statement := range run.asked {
			rights, known := rightsFor(statement)
			if !known {
				t.Errorf("%s sends a statement of a kind that docs/operations.md, \"ClickHouse grants\", does not cover: %s", name, statement)
			}
			for _, r := range rights {
				needed[r] = true
				if !granted(all, run.users, r) {
					t.Errorf("%s needs %s, which is not granted, for: %s", name, r, statement)
				}
			}
		}
	}
	if !needed["ALTER UPDATE ON playhead.events"] || !needed["INSERT ON playhead.events"] || !needed["CREATE TABLE ON playhead.events_next"] {
		t.Errorf("the nodes needed %v; the test is of no use", needed)
	}
}
