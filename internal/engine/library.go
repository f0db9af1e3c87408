package engine

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
)

// library is libchdb, loaded, with the part of its C API that the listener uses. The signatures are those
// of chdb.h of version 26.7; a handle is an opaque pointer. Loading needs no cgo.
//
// One process holds at most one library, and the library at most one data path.
type library struct {
	connectFn   func(argc int32, argv unsafe.Pointer) unsafe.Pointer
	closeConnFn func(connection unsafe.Pointer)
	shutdownFn  func() int32
	versionFn   func() string

	queryFn       func(c unsafe.Pointer, q unsafe.Pointer, qn uintptr, f unsafe.Pointer, fn uintptr, pn, pnl, pv, pvl unsafe.Pointer, n uintptr) unsafe.Pointer
	streamFn      func(c unsafe.Pointer, q unsafe.Pointer, qn uintptr, f unsafe.Pointer, fn uintptr, pn, pnl, pv, pvl unsafe.Pointer, n uintptr) unsafe.Pointer
	fetchFn       func(c, stream unsafe.Pointer) unsafe.Pointer
	cancelQueryFn func(c, stream unsafe.Pointer)

	insertFn        func(c unsafe.Pointer, q unsafe.Pointer, qn uintptr, f unsafe.Pointer, fn uintptr, pn, pnl, pv, pvl unsafe.Pointer, n uintptr) unsafe.Pointer
	appendFn        func(stream unsafe.Pointer, data unsafe.Pointer, n uintptr) int32
	doneFn          func(stream unsafe.Pointer) unsafe.Pointer
	cancelInsertFn  func(stream unsafe.Pointer)
	insertErrorFn   func(stream unsafe.Pointer) string
	destroyInsertFn func(stream unsafe.Pointer)

	resultErrorFn   func(result unsafe.Pointer) string
	resultBufferFn  func(result unsafe.Pointer) unsafe.Pointer
	resultLengthFn  func(result unsafe.Pointer) uintptr
	rowsWrittenFn   func(result unsafe.Pointer) uint64
	destroyResultFn func(result unsafe.Pointer)

	classifyFn func(c unsafe.Pointer, q unsafe.Pointer, qn uintptr, db unsafe.Pointer, dbn uintptr, out unsafe.Pointer) int32
}

// loadLibrary maps libchdb from path and turns its signal handlers off, since the Go runtime needs its own.
func loadLibrary(path string) (*library, error) {
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	l := &library{}
	var setSignalHandlers func(enabled int32)
	symbols := []struct {
		fn   any
		name string
	}{
		{&setSignalHandlers, "chdb_set_signal_handlers_enabled"},
		{&l.connectFn, "chdb_connect"},
		{&l.closeConnFn, "chdb_close_conn"},
		{&l.shutdownFn, "chdb_shutdown"},
		{&l.versionFn, "chdb_version"},
		{&l.queryFn, "chdb_query_with_params_n"},
		{&l.streamFn, "chdb_stream_query_with_params_n"},
		{&l.fetchFn, "chdb_stream_fetch_result"},
		{&l.cancelQueryFn, "chdb_stream_cancel_query"},
		{&l.insertFn, "chdb_stream_insert_with_params_n"},
		{&l.appendFn, "chdb_stream_append"},
		{&l.doneFn, "chdb_stream_done"},
		{&l.cancelInsertFn, "chdb_stream_cancel_insert"},
		{&l.insertErrorFn, "chdb_stream_insert_error"},
		{&l.destroyInsertFn, "chdb_destroy_insert_stream"},
		{&l.resultErrorFn, "chdb_result_error"},
		{&l.resultBufferFn, "chdb_result_buffer"},
		{&l.resultLengthFn, "chdb_result_length"},
		{&l.rowsWrittenFn, "chdb_result_rows_written"},
		{&l.destroyResultFn, "chdb_destroy_query_result"},
		{&l.classifyFn, "chdb_classify_query_n"},
	}
	for _, s := range symbols {
		addr, err := purego.Dlsym(handle, s.name)
		if err != nil {
			return nil, fmt.Errorf("load %s: not a libchdb of the version this build needs: %w", path, err)
		}
		purego.RegisterFunc(s.fn, addr)
	}
	setSignalHandlers(0)
	return l, nil
}

// session is one connection to the engine: one statement at a time, from one goroutine at a time. Settings
// and the current database belong to it and outlive a statement.
type session struct {
	lib    *library
	owner  unsafe.Pointer // chdb_connection *, which close frees
	handle unsafe.Pointer // chdb_connection
}

// connect opens a session. The first one of the process boots the engine with the server options in args;
// query settings in args apply to this session alone.
func (l *library) connect(args []string) (*session, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	argv := make([]*byte, 0, len(args)+2)
	for _, a := range append([]string{"playhead"}, args...) {
		b := append([]byte(a), 0)
		pin.Pin(&b[0])
		argv = append(argv, &b[0])
	}
	argv = append(argv, nil)
	pin.Pin(&argv[0])
	owner := l.connectFn(int32(len(argv)-1), unsafe.Pointer(&argv[0]))
	if owner == nil || *(*unsafe.Pointer)(owner) == nil {
		return nil, errors.New("engine refused the connection (its own message, if any, is above in this log)")
	}
	return &session{lib: l, owner: owner, handle: *(*unsafe.Pointer)(owner)}, nil
}

// close ends the session, and with the last session the engine.
func (s *session) close() {
	s.lib.closeConnFn(s.owner)
	s.owner, s.handle = nil, nil
}

// params are named query parameters, values in the escaped text form of the HTTP interface.
type params map[string]string

// cStrings are arguments in the form the C API wants: pinned for the time of one call.
type cStrings struct {
	pin                                runtime.Pinner
	query, format                      unsafe.Pointer
	queryLen, formatLen                uintptr
	names, nameLens, values, valueLens unsafe.Pointer
	count                              uintptr
}

func (c *cStrings) set(query, format string, p params) {
	c.query, c.queryLen = c.str(query), uintptr(len(query))
	c.format, c.formatLen = c.str(format), uintptr(len(format))
	if len(p) == 0 {
		return
	}
	names, values := make([]unsafe.Pointer, 0, len(p)), make([]unsafe.Pointer, 0, len(p))
	nameLens, valueLens := make([]uintptr, 0, len(p)), make([]uintptr, 0, len(p))
	for k, v := range p {
		names, nameLens = append(names, c.str(k)), append(nameLens, uintptr(len(k)))
		values, valueLens = append(values, c.str(v)), append(valueLens, uintptr(len(v)))
	}
	for _, a := range []*[]unsafe.Pointer{&names, &values} {
		c.pin.Pin(&(*a)[0])
	}
	for _, a := range []*[]uintptr{&nameLens, &valueLens} {
		c.pin.Pin(&(*a)[0])
	}
	c.names, c.nameLens = unsafe.Pointer(&names[0]), unsafe.Pointer(&nameLens[0])
	c.values, c.valueLens = unsafe.Pointer(&values[0]), unsafe.Pointer(&valueLens[0])
	c.count = uintptr(len(p))
}

// str copies s with a final NUL, since some readers of the engine stop at one even where a length is given.
func (c *cStrings) str(s string) unsafe.Pointer {
	b := append([]byte(s), 0)
	c.pin.Pin(&b[0])
	return unsafe.Pointer(&b[0])
}

// query runs a statement to its end and returns a copy of its whole result. Only for statements whose result
// is small: stream is for the others.
func (s *session) query(text, format string, p params) ([]byte, error) {
	var c cStrings
	defer c.pin.Unpin()
	c.set(text, format, p)
	r := s.lib.queryFn(s.handle, c.query, c.queryLen, c.format, c.formatLen, c.names, c.nameLens, c.values, c.valueLens, c.count)
	defer s.lib.destroyResultFn(r)
	data, err := s.lib.result(r)
	return append([]byte(nil), data...), err
}

// result borrows the bytes of a result: valid until it is destroyed.
func (l *library) result(r unsafe.Pointer) ([]byte, error) {
	if r == nil {
		return nil, errors.New("engine gave no result")
	}
	if msg := l.resultErrorFn(r); msg != "" {
		return nil, parseException(msg)
	}
	n := l.resultLengthFn(r)
	if n == 0 {
		return nil, nil
	}
	return unsafe.Slice((*byte)(l.resultBufferFn(r)), n), nil
}

// resultStream is a running query whose result comes in chunks. close it in every case.
type resultStream struct {
	session *session
	handle  unsafe.Pointer
	chunk   unsafe.Pointer // the result that next handed out last
	ended   bool
}

// stream starts a query and returns before its result is complete.
func (s *session) stream(text, format string, p params) (*resultStream, error) {
	var c cStrings
	defer c.pin.Unpin()
	c.set(text, format, p)
	h := s.lib.streamFn(s.handle, c.query, c.queryLen, c.format, c.formatLen, c.names, c.nameLens, c.values, c.valueLens, c.count)
	if h == nil {
		return nil, errors.New("engine gave no result")
	}
	if msg := s.lib.resultErrorFn(h); msg != "" {
		s.lib.destroyResultFn(h)
		return nil, parseException(msg)
	}
	return &resultStream{session: s, handle: h}, nil
}

// next returns the next chunk, borrowed until the following call, or nothing at the end.
func (r *resultStream) next() ([]byte, error) {
	r.free()
	r.chunk = r.session.lib.fetchFn(r.session.handle, r.handle)
	data, err := r.session.lib.result(r.chunk)
	if err != nil || len(data) == 0 {
		r.ended = true
	}
	return data, err
}

func (r *resultStream) free() {
	if r.chunk != nil {
		r.session.lib.destroyResultFn(r.chunk)
		r.chunk = nil
	}
}

// close cancels what is still running and frees the stream.
func (r *resultStream) close() {
	r.free()
	if !r.ended {
		r.session.lib.cancelQueryFn(r.session.handle, r.handle)
	}
	r.session.lib.destroyResultFn(r.handle)
}

// insertStream is a running INSERT that takes its data in chunks. close it in every case.
type insertStream struct {
	lib    *library
	handle unsafe.Pointer
	done   bool
}

// insert starts an INSERT; text has neither FORMAT nor data.
func (s *session) insert(text, format string, p params) (*insertStream, error) {
	var c cStrings
	defer c.pin.Unpin()
	c.set(text, format, p)
	h := s.lib.insertFn(s.handle, c.query, c.queryLen, c.format, c.formatLen, c.names, c.nameLens, c.values, c.valueLens, c.count)
	if h == nil {
		return nil, errors.New("engine gave no insert stream")
	}
	if msg := s.lib.insertErrorFn(h); msg != "" {
		s.lib.destroyInsertFn(h)
		return nil, parseException(msg)
	}
	return &insertStream{lib: s.lib, handle: h}, nil
}

// append hands data over; the engine copies it. It blocks while the engine is behind, and reports false once
// the INSERT has failed: finish then has the reason.
func (i *insertStream) append(data []byte) bool {
	if len(data) == 0 {
		return true
	}
	var pin runtime.Pinner
	pin.Pin(&data[0])
	defer pin.Unpin()
	return i.lib.appendFn(i.handle, unsafe.Pointer(&data[0]), uintptr(len(data))) == 0
}

// finish commits, and returns once the rows are stored. An error means the engine stored nothing of the last block.
func (i *insertStream) finish() (rows uint64, err error) {
	i.done = true
	r := i.lib.doneFn(i.handle)
	defer i.lib.destroyResultFn(r)
	if _, err := i.lib.result(r); err != nil {
		return 0, err
	}
	return i.lib.rowsWrittenFn(r), nil
}

// close abandons an INSERT that was not finished and frees the stream.
func (i *insertStream) close() {
	if !i.done {
		i.lib.cancelInsertFn(i.handle)
	}
	i.lib.destroyInsertFn(i.handle)
}

// queryClass is what a statement does to state that outlives it, by the engine's own parser.
type queryClass uint32

const (
	classReadOnly       queryClass = 0
	classMutating       queryClass = 1
	classMutatingGlobal queryClass = 2
	classControl        queryClass = 3 // SET, USE, SYSTEM, KILL: may leave the session changed
	classUnknown        queryClass = 4 // did not parse
)

// classify parses text without running it. statements counts what it holds.
func (s *session) classify(text string) (class queryClass, statements int) {
	var out struct{ structSize, count, flags, class uint32 }
	out.structSize = uint32(unsafe.Sizeof(out))
	out.class = uint32(classUnknown)
	var c cStrings
	defer c.pin.Unpin()
	c.pin.Pin(&out)
	s.lib.classifyFn(s.handle, c.str(text), uintptr(len(text)), nil, 0, unsafe.Pointer(&out))
	return queryClass(out.class), int(out.count)
}
