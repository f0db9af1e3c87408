package schema

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of one filter.
const (
	MaxFilterTypes    = 64
	MaxFilterMetadata = 16
)

// Filter chooses events. The same filter means the same in live delivery (Match), in
// replay and in history (where query writes it as SQL). The zero Filter takes all.
type Filter struct {
	Types    []string // exact names, sorted; an event matches any of Types or Prefixes
	Prefixes []string // from "memory.*": the part before the star, sorted

	ConfidenceGTE *float32 // events without a confidence do not match
	FromTMs       *int64   // inclusive
	ToTMs         *int64   // inclusive
	FrameID       string   // "" takes all
	Metadata      map[string]string

	SinceMs *int64 // append time in Unix ms, inclusive
	UntilMs *int64 // append time in Unix ms, inclusive
}

// ParamError reports a bad query parameter or body field.
type ParamError struct {
	Param string // the parameter's name as the client wrote it, or a JSON pointer-like path
	Why   string // what was given and what is allowed
}

func (e *ParamError) Error() string { return e.Param + " " + e.Why }

func paramErrorf(param, format string, args ...any) error {
	return &ParamError{Param: param, Why: fmt.Sprintf(format, args...)}
}

// filterParams are the names ParseFilter reads, aliases included, beside filters[key].
var filterParams = [...]string{
	"type", "events", "confidence_gte", "confidence.gte", "from_t_ms", "t_ms.gte",
	"to_t_ms", "t_ms.lte", "frame_id", "since", "until",
}

// IsFilterParam reports whether name is a query parameter that ParseFilter reads.
func IsFilterParam(name string) bool {
	if strings.HasPrefix(name, "filters[") && strings.HasSuffix(name, "]") {
		return true
	}
	return slices.Contains(filterParams[:], name)
}

// ParseFilter reads the filter parameters of a stream's or a page's query; types is the
// workspace's table, by which codes stand for names. Other parameters are left alone.
// Every error is a *ParamError.
func ParseFilter(q url.Values, types TypeTable) (Filter, error) {
	var f Filter
	var err error
	for _, name := range []string{"type", "events"} {
		for _, list := range q[name] {
			for t := range strings.SplitSeq(list, ",") {
				if err := f.addType(name, strings.TrimSpace(t), types); err != nil {
					return Filter{}, err
				}
			}
		}
	}
	if f.ConfidenceGTE, err = parseConfidence(q, "confidence_gte", "confidence.gte"); err != nil {
		return Filter{}, err
	}
	if f.FromTMs, err = parseMs(q, "from_t_ms", "t_ms.gte"); err != nil {
		return Filter{}, err
	}
	if f.ToTMs, err = parseMs(q, "to_t_ms", "t_ms.lte"); err != nil {
		return Filter{}, err
	}
	if v, name, ok, err := single(q, "frame_id"); err != nil {
		return Filter{}, err
	} else if ok {
		if err := CheckText(v, MaxFrameIDLen); err != nil || v == "" {
			return Filter{}, paramErrorf(name, "is %s; want 1 to %d bytes of text", Quote(v), MaxFrameIDLen)
		}
		f.FrameID = v
	}
	if f.SinceMs, err = parseTimeParam(q, "since"); err != nil {
		return Filter{}, err
	}
	if f.UntilMs, err = parseTimeParam(q, "until"); err != nil {
		return Filter{}, err
	}
	if err := f.parseMetadata(q); err != nil {
		return Filter{}, err
	}
	slices.Sort(f.Types)
	f.Types = slices.Compact(f.Types)
	slices.Sort(f.Prefixes)
	f.Prefixes = slices.Compact(f.Prefixes)
	if n := len(f.Types) + len(f.Prefixes); n > MaxFilterTypes {
		return Filter{}, paramErrorf("type", "names %d types; at most %d are allowed", n, MaxFilterTypes)
	}
	return f, nil
}

// addType adds a name, a code or a prefix.
func (f *Filter) addType(param, t string, types TypeTable) error {
	t, err := types.Resolve(t)
	if err != nil {
		return paramErrorf(param, "%v", err)
	}
	if t == "*" {
		f.Prefixes = append(f.Prefixes, "")
		return nil
	}
	if prefix, ok := strings.CutSuffix(t, "*"); ok {
		if err := CheckType(prefix); err != nil {
			return paramErrorf(param, "%v", err)
		}
		f.Prefixes = append(f.Prefixes, prefix)
		return nil
	}
	if err := CheckType(t); err != nil {
		return paramErrorf(param, "%v", err)
	}
	f.Types = append(f.Types, t)
	return nil
}

func (f *Filter) parseMetadata(q url.Values) error {
	for _, name := range slices.Sorted(maps.Keys(q)) { // sorted, so that of two errors the same is told
		values := q[name]
		key, ok := strings.CutPrefix(name, "filters[")
		if !ok {
			continue
		}
		key, ok = strings.CutSuffix(key, "]")
		if !ok || key == "" || len(values) != 1 {
			return paramErrorf(name, "wants the form filters[key]=value, once a key")
		}
		if err := CheckText(key, MaxMetadataKeyLen); err != nil {
			return paramErrorf(name, "%v", err)
		}
		if len(values[0]) > MaxMetadataBytes {
			return paramErrorf(name, "has %d bytes; at most %d are allowed", len(values[0]), MaxMetadataBytes)
		}
		if !utf8.ValidString(values[0]) {
			return paramErrorf(name, "is not valid UTF-8")
		}
		if f.Metadata == nil {
			f.Metadata = make(map[string]string)
		}
		f.Metadata[key] = values[0]
	}
	if len(f.Metadata) > MaxFilterMetadata {
		return paramErrorf("filters", "names %d metadata keys; at most %d are allowed", len(f.Metadata), MaxFilterMetadata)
	}
	return nil
}

// single returns the one value given under any of the names.
func single(q url.Values, names ...string) (value, name string, ok bool, err error) {
	for _, n := range names {
		for _, v := range q[n] {
			if ok {
				return "", "", false, paramErrorf(n, "is given more than once")
			}
			value, name, ok = v, n, true
		}
	}
	return value, name, ok, nil
}

func parseConfidence(q url.Values, names ...string) (*float32, error) {
	v, name, ok, err := single(q, names...)
	if err != nil || !ok {
		return nil, err
	}
	c, ok := parseUnit(v)
	if !ok {
		return nil, paramErrorf(name, "is %s; want a number from 0 to 1", Quote(v))
	}
	return &c, nil
}

func parseMs(q url.Values, names ...string) (*int64, error) {
	v, name, ok, err := single(q, names...)
	if err != nil || !ok {
		return nil, err
	}
	ms, err := strconv.ParseInt(v, 10, 64)
	if err != nil || ms < 0 {
		return nil, paramErrorf(name, "is %s; want whole milliseconds, 0 or more", Quote(v))
	}
	return &ms, nil
}

func parseTimeParam(q url.Values, name string) (*int64, error) {
	v, name, ok, err := single(q, name)
	if err != nil || !ok {
		return nil, err
	}
	ms, err := ParseTime(v)
	if err != nil {
		return nil, paramErrorf(name, "%v", err)
	}
	return &ms, nil
}

// ParseTime reads RFC 3339 or whole Unix milliseconds, and returns Unix milliseconds
// from 0 to MaxEventTimeMs: a time that an event can carry.
func ParseTime(s string) (int64, error) {
	ms, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t, terr := time.Parse(time.RFC3339Nano, s)
		if terr != nil {
			return 0, fmt.Errorf("is %s; want RFC 3339 or Unix milliseconds", Quote(s))
		}
		ms = t.UnixMilli()
	}
	if ms < 0 || ms > MaxEventTimeMs {
		return 0, fmt.Errorf("is %s; want a time from 1970 to 2299", Quote(s))
	}
	return ms, nil
}

// IsZero reports whether f takes every event.
func (f *Filter) IsZero() bool {
	return len(f.Types) == 0 && len(f.Prefixes) == 0 && f.ConfidenceGTE == nil && f.FromTMs == nil &&
		f.ToTMs == nil && f.FrameID == "" && len(f.Metadata) == 0 && f.SinceMs == nil && f.UntilMs == nil
}

// Match reports whether f takes e. Hidden events are not f's business.
func (f *Filter) Match(e *Event) bool {
	return f.matchType(e.Type) &&
		(f.ConfidenceGTE == nil || e.Confidence != nil && *e.Confidence >= *f.ConfidenceGTE) &&
		(f.FromTMs == nil || e.TMs >= *f.FromTMs) &&
		(f.ToTMs == nil || e.TMs <= *f.ToTMs) &&
		(f.FrameID == "" || e.FrameID == f.FrameID) &&
		(f.SinceMs == nil || e.ID.TimeMs >= *f.SinceMs) &&
		(f.UntilMs == nil || e.ID.TimeMs <= *f.UntilMs) &&
		f.matchMetadata(e.Metadata)
}

func (f *Filter) matchType(t string) bool {
	if len(f.Types) == 0 && len(f.Prefixes) == 0 {
		return true
	}
	if _, ok := slices.BinarySearch(f.Types, t); ok {
		return true
	}
	for _, p := range f.Prefixes {
		if strings.HasPrefix(t, p) {
			return true
		}
	}
	return false
}

func (f *Filter) matchMetadata(m map[string]string) bool {
	for k, want := range f.Metadata {
		if got, ok := m[k]; !ok || got != want {
			return false
		}
	}
	return true
}

// Key returns a text that is the same for filters that take the same, and for no others.
// The zero Filter's is "".
func (f *Filter) Key() string {
	if f.IsZero() {
		return ""
	}
	return f.text()
}

// text writes the filter out in one way.
func (f *Filter) text() string {
	b := fmt.Appendf(nil, "%q %q %s %s %s %q %s %s", f.Types, f.Prefixes, optional(f.ConfidenceGTE),
		optional(f.FromTMs), optional(f.ToTMs), f.FrameID, optional(f.SinceMs), optional(f.UntilMs))
	for _, k := range slices.Sorted(maps.Keys(f.Metadata)) {
		b = fmt.Appendf(b, " %q=%q", k, f.Metadata[k])
	}
	return string(b)
}

// Tag returns a number that tells filters apart, to bind a page's cursor to its
// filters and order. It is never 0. The same filter has the same tag on every node.
func (f *Filter) Tag(descending bool) uint32 {
	h := fnv.New32a()
	h.Write([]byte(f.text()))
	if descending {
		h.Write([]byte(" desc"))
	}
	if tag := h.Sum32(); tag != 0 {
		return tag
	}
	return 1
}

// Only narrows f to the given types, sorted: of those it took before.
func (f *Filter) Only(types ...string) {
	taken := make([]string, 0, len(types))
	for _, t := range types {
		if f.matchType(t) {
			taken = append(taken, t)
		}
	}
	if len(taken) == 0 {
		taken = append(taken, "") // no event has it
	}
	f.Types, f.Prefixes = taken, nil
}

func optional[T any](v *T) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprint(*v)
}
