package schema_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/schema"
)

func mustFilter(t testing.TB, query string) schema.Filter {
	t.Helper()
	q, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	f, err := schema.ParseFilter(q, schema.TypeTable{})
	if err != nil {
		t.Fatalf("ParseFilter(%q): %v", query, err)
	}
	return f
}

func TestParseFilter(t *testing.T) {
	many := make([]string, schema.MaxFilterTypes)
	for i := range many {
		many[i] = fmt.Sprintf("t%02d", i)
	}
	for query, want := range map[string]schema.Filter{
		"":                                       {},
		"cursor=x&limit=3":                       {},
		"type=b,a&type=a, c&events=d":            {Types: []string{"a", "b", "c", "d"}},
		"type=memory.*,x,memory.*":               {Types: []string{"x"}, Prefixes: []string{"memory."}},
		"type=*":                                 {Prefixes: []string{""}},
		"confidence_gte=0.5":                     {ConfidenceGTE: ptr(float32(0.5))},
		"confidence.gte=-0":                      {ConfidenceGTE: ptr(float32(0))},
		"from_t_ms=0&t_ms.lte=9":                 {FromTMs: ptr(int64(0)), ToTMs: ptr(int64(9))},
		"t_ms.gte=1&to_t_ms=2":                   {FromTMs: ptr(int64(1)), ToTMs: ptr(int64(2))},
		"frame_id=a b":                           {FrameID: "a b"},
		"since=5&until=1970-01-01T00:00:00.006Z": {SinceMs: ptr(int64(5)), UntilMs: ptr(int64(6))},
		"filters[k]=v&filters[a]b]=":             {Metadata: map[string]string{"k": "v", "a]b": ""}},
		"type=" + strings.Join(many, ","):        {Types: many},
	} {
		if got := mustFilter(t, query); !reflect.DeepEqual(got, want) {
			t.Errorf("ParseFilter(%q) = %+v, want %+v", query, got, want)
		}
	}
}

func TestParseFilterRejects(t *testing.T) {
	var types, keys []string
	for i := range schema.MaxFilterTypes + 1 {
		types = append(types, fmt.Sprint("t", i))
	}
	for i := range schema.MaxFilterMetadata + 1 {
		keys = append(keys, fmt.Sprintf("filters[k%d]=v", i))
	}
	for _, c := range []struct{ query, param string }{
		{"type=", "type"}, {"events=a,,b", "events"}, {"type=0", "type"}, {"type=a**", "type"}, {"type=a*b", "type"}, {"type=.*", "type"},
		{"type=" + strings.Join(types, ","), "type"},
		{"confidence_gte=2", "confidence_gte"}, {"confidence_gte=NaN", "confidence_gte"}, {"confidence_gte=", "confidence_gte"},
		{"confidence_gte=0&confidence.gte=0", "confidence.gte"}, {"confidence_gte=0&confidence_gte=0", "confidence_gte"},
		{"from_t_ms=-1", "from_t_ms"}, {"t_ms.gte=1.5", "t_ms.gte"}, {"to_t_ms=x", "to_t_ms"}, {"to_t_ms=9223372036854775808", "to_t_ms"},
		{"frame_id=", "frame_id"}, {"frame_id=a%00", "frame_id"}, {"frame_id=" + strings.Repeat("x", 257), "frame_id"}, {"frame_id=%ff", "frame_id"},
		{"since=yesterday", "since"}, {"until=-1", "until"}, {"until=2300-01-01T00:00:00Z", "until"}, {"since=1&since=2", "since"},
		{"filters[]=v", "filters[]"}, {"filters[k=v", "filters[k"}, {"filters[k]=v&filters[k]=w", "filters[k]"}, {"filters[%0A]=v", "filters[\n]"},
		{"filters[k]=%ff", "filters[k]"}, {"filters[k]=" + strings.Repeat("v", schema.MaxMetadataBytes+1), "filters[k]"},
		{"filters[" + strings.Repeat("k", 257) + "]=v", ""},
		{strings.Join(keys, "&"), "filters"},
	} {
		q, _ := url.ParseQuery(c.query)
		if c.param == "" {
			c.param = reflect.ValueOf(q).MapKeys()[0].String()
		}
		f, err := schema.ParseFilter(q, schema.TypeTable{})
		var p *schema.ParamError
		if !errors.As(err, &p) || p.Param != c.param || !f.IsZero() {
			t.Errorf("ParseFilter(%.60q) = %+v, %v, want an error of %q", c.query, f, err, c.param)
		}
	}
}

func TestIsFilterParam(t *testing.T) {
	for name, want := range map[string]bool{"type": true, "t_ms.lte": true, "filters[x]": true, "cursor": false, "filters": false, "": false, "Type": false} {
		if got := schema.IsFilterParam(name); got != want {
			t.Errorf("IsFilterParam(%q) = %v, want %v", name, got, want)
		}
	}
}

// naiveMatch evaluates a query by the words of the API's documentation.
func naiveMatch(q url.Values, e *schema.Event) bool {
	number := func(s string) float64 {
		n, err := strconv.ParseFloat(s, 64)
		if err != nil {
			panic(err) // the test made the query
		}
		return n
	}
	for name, values := range q {
		v := values[0]
		var ok bool
		switch name {
		case "type":
			ok = false
			for _, list := range values {
				for _, want := range strings.Split(list, ",") {
					prefix, open := strings.CutSuffix(want, "*")
					ok = ok || e.Type == want || open && strings.HasPrefix(e.Type, prefix)
				}
			}
		case "confidence_gte":
			ok = e.Confidence != nil && float64(*e.Confidence) >= number(v)
		case "from_t_ms":
			ok = float64(e.TMs) >= number(v)
		case "to_t_ms":
			ok = float64(e.TMs) <= number(v)
		case "frame_id":
			ok = e.FrameID == v
		case "since":
			ok = float64(e.ID.TimeMs) >= number(v)
		case "until":
			ok = float64(e.ID.TimeMs) <= number(v)
		default:
			key := strings.TrimSuffix(strings.TrimPrefix(name, "filters["), "]")
			got, has := e.Metadata[key]
			ok = has && got == v
		}
		if !ok {
			return false
		}
	}
	return true
}

func TestFilterMatchAgreesWithNaiveEvaluation(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	typ := func() string { return pick("a", "b", "memory.created", "memory.deleted", "memory", "memoryx", "A") }
	number := func() string { return fmt.Sprint(r.IntN(5)) }
	matched := 0
	const rounds = 30_000
	for range rounds {
		q := url.Values{}
		if r.IntN(3) == 0 {
			for range 1 + r.IntN(2) {
				q.Add("type", pick(typ(), typ()+","+typ(), "memory.*", "memory.*,b", "mem*", "*", typ()+",a*"))
			}
		}
		if r.IntN(4) == 0 {
			q.Set("confidence_gte", pick("0", "0.25", "0.5", "1"))
		}
		for _, name := range []string{"from_t_ms", "to_t_ms", "since", "until"} {
			if r.IntN(5) == 0 {
				q.Set(name, number())
			}
		}
		if r.IntN(6) == 0 {
			q.Set("frame_id", pick("f", "g"))
		}
		for _, k := range []string{"filters[k]", "filters[l]"} {
			if r.IntN(6) == 0 {
				q.Set(k, pick("", "v", "w"))
			}
		}
		e := &schema.Event{ID: eventID(1, 1, int64(r.IntN(5))), Type: typ(), TMs: int64(r.IntN(5)), FrameID: pick("", "f", "g")}
		if r.IntN(2) == 0 {
			e.Confidence = ptr(float32(r.IntN(5)) / 4)
		}
		if r.IntN(2) == 0 {
			e.Metadata = map[string]string{pick("k", "l"): pick("", "v", "w")}
		}
		f, err := schema.ParseFilter(q, schema.TypeTable{})
		if err != nil {
			t.Fatalf("ParseFilter(%v): %v", q, err)
		}
		got := f.Match(e)
		if want := naiveMatch(q, e); got != want {
			t.Fatalf("%v of %+v: Match = %v, want %v", q, e, got, want)
		}
		if f.IsZero() != (len(q) == 0) {
			t.Fatalf("%v: IsZero = %v", q, f.IsZero())
		}
		if got {
			matched++
		}
	}
	if matched < rounds/10 || matched > rounds*9/10 {
		t.Errorf("%d of %d matched: the test tells too little", matched, rounds)
	}
}

func TestFilterTagsTellFiltersApart(t *testing.T) {
	seen := map[uint32]string{}
	for _, query := range []string{
		"", "type=a", "type=a,b", "type=a*", "type=*", "type=a,b*", "type=ab", "confidence_gte=0", "confidence_gte=1", "from_t_ms=1", "to_t_ms=1", "from_t_ms=0",
		"frame_id=a", "since=1", "until=1", "filters[a]=b", "filters[a]=", "filters[b]=a", "filters[a]=b&filters[c]=d", "frame_id=-", `filters[a]=b" "c"="d`,
	} {
		f := mustFilter(t, query)
		for _, desc := range []bool{false, true} {
			tag, name := f.Tag(desc), fmt.Sprint(query, " desc=", desc)
			if other, ok := seen[tag]; ok || tag == 0 {
				t.Errorf("%q and %q have tag %08x", name, other, tag)
			}
			seen[tag] = name
		}
	}
	for _, same := range [][2]string{
		{"type=a,b", "events=b&type=a&type=b"}, {"confidence_gte=0", "confidence.gte=-0.0"}, {"since=0", "since=1970-01-01T00:00:00Z"},
		{"filters[a]=b&filters[c]=d", "filters[c]=d&filters[a]=b"}, {"from_t_ms=5", "t_ms.gte=%2B5"},
	} {
		a, b := mustFilter(t, same[0]), mustFilter(t, same[1])
		if a.Tag(false) != b.Tag(false) {
			t.Errorf("%q and %q have different tags", same[0], same[1])
		}
	}
}

func FuzzParseFilter(f *testing.F) {
	f.Add("type=a,memory.*&confidence_gte=0.5&filters[k]=v&since=1&until=2026-01-01T00:00:00Z")
	f.Add("type=*&frame_id=x&t_ms.gte=1&to_t_ms=5")
	f.Add("filters[")
	f.Add("confidence_gte=-0&filters[%ff]=%ff")
	f.Add("type=1,0xC8,200&events=16")
	types := schema.NewTypeTable([]schema.TypeCode{{Code: 200, Type: "agent.said"}})
	f.Fuzz(func(t *testing.T, query string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		filter, err := schema.ParseFilter(q, types)
		var p *schema.ParamError
		if err != nil {
			if !errors.As(err, &p) || !filter.IsZero() {
				t.Fatalf("ParseFilter(%q) = %+v, %v", query, filter, err)
			}
			return
		}
		// Written out in the plainest spelling it is the same filter.
		again, err := schema.ParseFilter(spell(&filter), schema.TypeTable{})
		if err != nil || !reflect.DeepEqual(again, filter) || again.Tag(true) != filter.Tag(true) {
			t.Fatalf("ParseFilter(%q) = %+v, spelled out it is %+v, %v", query, filter, again, err)
		}
	})
}

// spell writes a filter as a query.
func spell(f *schema.Filter) url.Values {
	q := url.Values{}
	for _, t := range f.Types {
		q.Add("type", t)
	}
	for _, p := range f.Prefixes {
		q.Add("type", p+"*")
	}
	if f.ConfidenceGTE != nil {
		q.Set("confidence_gte", fmt.Sprint(*f.ConfidenceGTE))
	}
	for name, v := range map[string]*int64{"from_t_ms": f.FromTMs, "to_t_ms": f.ToTMs, "since": f.SinceMs, "until": f.UntilMs} {
		if v != nil {
			q.Set(name, fmt.Sprint(*v))
		}
	}
	if f.FrameID != "" {
		q.Set("frame_id", f.FrameID)
	}
	for k, v := range f.Metadata {
		q.Set("filters["+k+"]", v)
	}
	return q
}
