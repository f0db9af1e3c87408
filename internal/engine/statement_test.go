package engine

import "testing"

func TestParseStatement(t *testing.T) {
	for _, tt := range []struct {
		text string
		want statement
	}{
		{"SELECT 1", statement{verb: "SELECT", text: "SELECT 1", unformatted: "SELECT 1"}},
		{" select 1 ; ", statement{verb: "SELECT", text: " select 1", unformatted: " select 1"}},
		{"SELECT 1 FORMAT JSON", statement{verb: "SELECT", text: "SELECT 1 FORMAT JSON", unformatted: "SELECT 1 ", format: "JSON"}},
		{"SELECT 1 FORMAT JSON SETTINGS a=1;", statement{verb: "SELECT", text: "SELECT 1 FORMAT JSON SETTINGS a=1", unformatted: "SELECT 1  SETTINGS a=1", format: "JSON"}},
		{"SELECT 'FORMAT JSON' -- FORMAT CSV", statement{verb: "SELECT", text: "SELECT 'FORMAT JSON'", unformatted: "SELECT 'FORMAT JSON'"}},
		{"SELECT format FROM t", statement{verb: "SELECT", text: "SELECT format FROM t", unformatted: "SELECT format FROM t"}},
		{"/* a /* b */ c */ WITH 1 AS a SELECT a", statement{verb: "WITH", text: "/* a /* b */ c */ WITH 1 AS a SELECT a", unformatted: "/* a /* b */ c */ WITH 1 AS a SELECT a"}},
		{"INSERT INTO t VALUES (1)", statement{verb: "INSERT", hasData: true, dataFormat: "Values", text: "INSERT INTO t ", data: " (1)"}},
		{"INSERT INTO t (`values`, format) FORMAT TSV\n 1\t2\n", statement{verb: "INSERT", hasData: true, dataFormat: "TSV", text: "INSERT INTO t (`values`, format) ", data: " 1\t2\n"}},
		{"INSERT INTO t SETTINGS a=1 FORMAT Native", statement{verb: "INSERT", hasData: true, dataFormat: "Native", text: "INSERT INTO t SETTINGS a=1 "}},
		{"INSERT INTO t", statement{verb: "INSERT", hasData: true, text: "INSERT INTO t"}},
		{"INSERT INTO t SELECT 1", statement{verb: "INSERT", text: "INSERT INTO t SELECT 1", unformatted: "INSERT INTO t SELECT 1"}},
		{"INSERT INTO t (SELECT 1)", statement{verb: "INSERT", text: "INSERT INTO t (SELECT 1)", unformatted: "INSERT INTO t (SELECT 1)"}},
	} {
		if got := parseStatement(tt.text); got != tt.want {
			t.Errorf("parseStatement(%q) = %+v, want %+v", tt.text, got, tt.want)
		}
	}
}

func TestKillTarget(t *testing.T) {
	for _, tt := range []struct {
		text, id string
		wait, ok bool
	}{
		{"KILL QUERY WHERE query_id = 'a'", "a", false, true},
		{"kill query where query_id='a''b\\'c\\\\' SYNC;", `a'b'c\`, true, true},
		{"KILL QUERY WHERE `query_id` = 'a' ASYNC", "a", false, true},
		{"KILL QUERY WHERE query_id = 'a' OR 1", "", false, false},
		{"KILL QUERY WHERE query_id = 'a' TEST", "", false, false},
		{"KILL QUERY WHERE user = 'a'", "", false, false},
		{"SELECT 1", "", false, false},
	} {
		if id, wait, ok := parseStatement(tt.text).killTarget(); id != tt.id || wait != tt.wait || ok != tt.ok {
			t.Errorf("killTarget(%q) = %q, %v, %v, want %q, %v, %v", tt.text, id, wait, ok, tt.id, tt.wait, tt.ok)
		}
	}
}

// FuzzParseStatement checks that no text makes the lexer stop, panic, or lose bytes of an insert's rows.
func FuzzParseStatement(f *testing.F) {
	for _, seed := range []string{"SELECT 1", "INSERT INTO t FORMAT TSV\n1", "INSERT INTO t VALUES ('", "/*/*", "`", "((", "KILL QUERY WHERE query_id='\\"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		st := parseStatement(text)
		st.killTarget()
		if st.hasData && len(st.text)+len(st.data) > len(text) {
			t.Errorf("parseStatement(%q) made bytes up: %+v", text, st)
		}
	})
}
