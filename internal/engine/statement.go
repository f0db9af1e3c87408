package engine

import (
	"strings"
)

// statement is what the listener must know of a query text before the engine sees it: whether data follows
// it, and where its FORMAT clause is. The engine's parser has the last word on everything else.
type statement struct {
	text string // without trailing semicolons

	verb string // first keyword, upper case: SELECT, INSERT, KILL, …

	// hasData is set on an INSERT that takes rows from the request rather than from a query. text then ends
	// before FORMAT or VALUES, and data is what followed them.
	hasData    bool
	dataFormat string // "" where the text names none
	data       string

	format string // of the result, by the text's own FORMAT clause; "" where it has none
	// unformatted is text without that clause.
	unformatted string
}

// parseStatement reads text, of which only the beginning may be SQL: in an INSERT the rest is rows.
func parseStatement(text string) statement {
	st := statement{text: text}
	lex := lexer{text: text}
	first := lex.next()
	for first.is(";") || first.is("(") {
		first = lex.next()
	}
	st.verb = strings.ToUpper(first.text)
	if st.verb == "INSERT" {
		return parseInsert(st, lex)
	}
	return parseQuery(st, lex)
}

func parseInsert(st statement, lex lexer) statement {
	var afterOpen bool // the token before was a parenthesis that opened
	for {
		t := lex.next()
		switch {
		case t.kind == tokenEnd:
			st.hasData = true
			st.text = strings.TrimRight(lex.text[:t.start], "; \t\r\n")
			return st
		case t.keyword("SELECT") && (lex.depth == 0 || afterOpen), t.keyword("WITH") && lex.depth == 0,
			t.keyword("WATCH") && lex.depth == 0, t.keyword("INFILE") && lex.depth == 0:
			return parseQuery(st, lex)
		case t.keyword("VALUES") && lex.depth == 0:
			st.hasData, st.dataFormat = true, "Values"
			st.text, st.data = lex.text[:t.start], lex.text[t.end:]
			return st
		case t.keyword("FORMAT") && lex.depth == 0:
			name := lex.next()
			if name.kind != tokenWord {
				continue
			}
			st.hasData, st.dataFormat = true, name.text
			st.text, st.data = lex.text[:t.start], skipOneLineEnd(lex.text[name.end:])
			return st
		}
		afterOpen = t.is("(")
	}
}

// skipOneLineEnd drops the white space up to and including the first line end, which ClickHouse allows
// between a format's name and its rows. More would eat rows that begin with white space.
func skipOneLineEnd(s string) string {
	rest := strings.TrimLeft(s, " \t\r")
	rest = strings.TrimLeft(strings.TrimPrefix(rest, ";"), " \t\r")
	if strings.HasPrefix(rest, "\n") {
		return rest[1:]
	}
	return rest
}

func parseQuery(st statement, lex lexer) statement {
	end := 0 // of the last token that is not a semicolon
	clauseStart, clauseEnd := -1, -1
	for {
		t := lex.next()
		if t.kind == tokenEnd {
			break
		}
		if t.is(";") {
			continue
		}
		end = t.end
		if clauseStart >= 0 && !t.keyword("SETTINGS") && st.format != "" && clauseEnd > 0 && lex.depth == 0 && t.start > clauseEnd && !lex.settings {
			// Something other than SETTINGS follows: that was not the FORMAT clause but a name.
			clauseStart, clauseEnd, st.format = -1, -1, ""
		}
		if t.keyword("SETTINGS") {
			lex.settings = true
		}
		if t.keyword("FORMAT") && lex.depth == 0 && st.verb != "CREATE" {
			peek := lex
			if name := peek.next(); name.kind == tokenWord && !name.keyword("FROM") {
				lex, end = peek, name.end
				lex.settings = false
				clauseStart, clauseEnd, st.format = t.start, name.end, name.text
			}
		}
	}
	st.text = lex.text[:max(end, 0)]
	if end == 0 {
		st.text = strings.TrimRight(lex.text, "; \t\r\n")
	}
	st.unformatted = st.text
	if clauseStart >= 0 {
		st.unformatted = st.text[:clauseStart] + st.text[clauseEnd:]
	}
	return st
}

// killTarget returns the query id of KILL QUERY WHERE query_id = '…' [SYNC|ASYNC], the one form of KILL that
// clients use with ids of their own.
func (st statement) killTarget() (id string, wait, ok bool) {
	lex := lexer{text: st.text}
	for _, want := range []string{"KILL", "QUERY", "WHERE", "query_id"} {
		if t := lex.next(); !t.keyword(want) && t.text != "`"+want+"`" {
			return "", false, false
		}
	}
	if !lex.next().is("=") {
		return "", false, false
	}
	value := lex.next()
	if value.kind != tokenString {
		return "", false, false
	}
	switch mode := lex.next(); {
	case mode.kind == tokenEnd, mode.keyword("ASYNC"):
	case mode.keyword("SYNC"):
		wait = true
	default:
		return "", false, false
	}
	return unquote(value.text), wait, lex.next().kind == tokenEnd
}

// unquote undoes the quoting of a string literal: a backslash before a character, or a doubled quote.
func unquote(lit string) string {
	lit = lit[1 : len(lit)-1]
	var b strings.Builder
	for i := 0; i < len(lit); i++ {
		if (lit[i] == '\\' || lit[i] == '\'') && i+1 < len(lit) {
			i++
		}
		b.WriteByte(lit[i])
	}
	return b.String()
}

// quote writes s as a string literal of ClickHouse.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// quoteName writes s as an identifier of ClickHouse.
func quoteName(s string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(s) + "`"
}

type tokenKind int

const (
	tokenEnd tokenKind = iota
	tokenWord
	tokenString // '…'
	tokenName   // `…` or "…"
	tokenSymbol // any other single character
)

type token struct {
	kind       tokenKind
	text       string
	start, end int
}

func (t token) is(symbol string) bool { return t.kind == tokenSymbol && t.text == symbol }
func (t token) keyword(word string) bool {
	return t.kind == tokenWord && strings.EqualFold(t.text, word)
}

// lexer splits ClickHouse SQL far enough to find keywords outside strings, names, comments and parentheses.
type lexer struct {
	text     string
	pos      int
	depth    int  // of parentheses, brackets and braces open before pos
	settings bool // a SETTINGS clause was passed
}

func (l *lexer) next() token {
	l.skipBlank()
	start := l.pos
	if start >= len(l.text) {
		return token{kind: tokenEnd, start: start, end: start}
	}
	kind := tokenSymbol
	switch c := l.text[start]; {
	case c == '\'':
		kind = tokenString
		l.skipQuoted(c)
	case c == '`' || c == '"':
		kind = tokenName
		l.skipQuoted(c)
	case isWord(c):
		kind = tokenWord
		for l.pos < len(l.text) && isWord(l.text[l.pos]) {
			l.pos++
		}
	default:
		switch c {
		case '(', '[', '{':
			l.depth++
		case ')', ']', '}':
			l.depth--
		}
		l.pos++
	}
	return token{kind: kind, text: l.text[start:l.pos], start: start, end: l.pos}
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

func (l *lexer) skipQuoted(quote byte) {
	for l.pos++; l.pos < len(l.text); l.pos++ {
		switch l.text[l.pos] {
		case '\\':
			l.pos++
		case quote:
			if l.pos+1 < len(l.text) && l.text[l.pos+1] == quote {
				l.pos++
				continue
			}
			l.pos++
			return
		}
	}
	l.pos = len(l.text) // unterminated: the engine's parser says so
}

// skipBlank passes white space and the three kinds of comment; block comments nest.
func (l *lexer) skipBlank() {
	for l.pos < len(l.text) {
		rest := l.text[l.pos:]
		switch {
		case strings.IndexByte(" \t\r\n\f\v", rest[0]) >= 0:
			l.pos++
		case strings.HasPrefix(rest, "--"), strings.HasPrefix(rest, "# "), strings.HasPrefix(rest, "#!"):
			if i := strings.IndexByte(rest, '\n'); i >= 0 {
				l.pos += i + 1
			} else {
				l.pos = len(l.text)
			}
		case strings.HasPrefix(rest, "/*"):
			l.skipBlockComment()
		default:
			return
		}
	}
}

func (l *lexer) skipBlockComment() {
	depth := 0
	for l.pos < len(l.text) {
		switch rest := l.text[l.pos:]; {
		case strings.HasPrefix(rest, "/*"):
			depth++
			l.pos += 2
		case strings.HasPrefix(rest, "*/"):
			depth--
			l.pos += 2
			if depth == 0 {
				return
			}
		default:
			l.pos++
		}
	}
}
