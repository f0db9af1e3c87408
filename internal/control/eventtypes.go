package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// Why a type cannot have a code; each comes in a *TypeCodeError.
var (
	ErrTypeCodeTaken = errors.New("control: the code is another type's")
	ErrTypeHasCode   = errors.New("control: the type has another code")
	ErrTypeBuiltin   = errors.New("control: the type's code is built in")
)

// TypeCodeError says what stands in the way of a registration.
type TypeCodeError struct {
	Err error           // one of the above
	Has schema.TypeCode // who has the code, or the code that the type has
}

func (e *TypeCodeError) Error() string {
	return fmt.Sprintf("%v: %s is %d", e.Err, e.Has.Type, e.Has.Code)
}

// Unwrap returns Err.
func (e *TypeCodeError) Unwrap() error { return e.Err }

// eventTypeRecord asks for a code for a type. It is written under an id of its own,
// event_type/<id>, once, and then at most removed. So what the topic says is the same
// before and after Kafka compacts it: a record that one node refuses to heed, since its
// code was taken by then, never stands in for one that all have heeded.
type eventTypeRecord struct {
	V         int    `json:"v"`
	Workspace string `json:"workspace"`
	Name      string `json:"name"`
	Code      int    `json:"code"`
	Recode    bool   `json:"recode,omitempty"` // also if the type has another code
}

// typeClaim is an eventTypeRecord, folded.
type typeClaim struct {
	id        string
	workspace string
	schema.TypeCode
	recode bool
	seq    uint64 // place in the log's order
	lost   bool   // it came too late: others stood in its way
}

// typeClaims are the type codes of all workspaces, part of the fold.
type typeClaims struct {
	seq         uint64
	byID        map[string]*typeClaim
	byWorkspace map[string]*workspaceTypes
}

// workspaceTypes is the fold of a workspace's claims in the log's order. A claim holds
// unless its code is another type's or, without recode, its type has another code;
// then it is lost, for good or until what stood in its way is removed. A claim that holds
// ends an earlier one of its type.
//
// Own claims do not yield to built-in codes here: nodes of two versions, with more and
// fewer of those, have to fold the same. PutEventType refuses them.
type workspaceTypes struct {
	claims  map[string]*typeClaim
	holding map[string]*typeClaim // by type
	names   map[uint8]string      // types by code
	table   schema.TypeTable
	tabled  bool // table is of this fold
}

// apply folds one record. A nil value removes it.
func (t *typeClaims) apply(id string, value []byte) error {
	var c *typeClaim
	if value != nil {
		var err error
		if c, err = decodeEventType(id, value); err != nil {
			return err
		}
	}
	if old, ok := t.byID[id]; ok {
		delete(t.byID, id)
		w := t.byWorkspace[old.workspace]
		delete(w.claims, id)
		if len(w.claims) == 0 {
			delete(t.byWorkspace, old.workspace)
		} else {
			w.refold()
		}
	}
	if c == nil {
		return nil
	}
	t.seq++
	c.seq = t.seq
	w := t.byWorkspace[c.workspace]
	if w == nil {
		w = &workspaceTypes{claims: make(map[string]*typeClaim)}
		w.reset()
		t.byWorkspace[c.workspace] = w
	}
	t.byID[id], w.claims[id] = c, c
	w.fold(c)
	return nil
}

func (w *workspaceTypes) reset() {
	w.holding, w.names, w.tabled = make(map[string]*typeClaim), make(map[uint8]string), false
}

// refold folds all claims anew, after one of them went.
func (w *workspaceTypes) refold() {
	w.reset()
	for _, c := range w.inOrder() {
		w.fold(c)
	}
}

func (w *workspaceTypes) inOrder() []*typeClaim {
	all := make([]*typeClaim, 0, len(w.claims))
	for _, c := range w.claims {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *typeClaim) int { return cmp.Compare(a.seq, b.seq) })
	return all
}

// fold adds the claim after all others.
func (w *workspaceTypes) fold(c *typeClaim) {
	holder, taken := w.names[c.Code]
	old, has := w.holding[c.Type]
	c.lost = taken && holder != c.Type || has && old.Code != c.Code && !c.recode
	if c.lost {
		return
	}
	if has {
		delete(w.names, old.Code)
	}
	w.holding[c.Type], w.names[c.Code], w.tabled = c, c.Type, false
}

// leftovers returns the claims without which the fold is the same, in the order in which
// they can be removed: the lost ones, and then those that a later claim ended. (Were one
// of those removed first, a lost one might come to hold the code it had.)
func (w *workspaceTypes) leftovers() (ids []string) {
	var ended []string
	for _, c := range w.inOrder() {
		switch {
		case c.lost:
			ids = append(ids, c.id)
		case w.holding[c.Type] != c:
			ended = append(ended, c.id)
		}
	}
	return append(ids, ended...)
}

// tableNow returns the table; false if it has to be made (see retable). w may be nil.
func (w *workspaceTypes) tableNow() (table schema.TypeTable, ok bool) {
	if w == nil {
		return schema.TypeTable{}, true
	}
	return w.table, w.tabled
}

// retable makes the table, once it is asked for: not for each record folded.
func (w *workspaceTypes) retable() {
	own := make([]schema.TypeCode, 0, len(w.holding))
	for _, c := range w.holding {
		own = append(own, c.TypeCode)
	}
	w.table, w.tabled = schema.NewTypeTable(own), true
}

func decodeEventType(id string, value []byte) (*typeClaim, error) {
	var r eventTypeRecord
	if err := decodeValue(value, &r); err != nil {
		return nil, err
	}
	if err := schema.CheckID(r.Workspace); err != nil {
		return nil, fmt.Errorf("workspace %w", err)
	}
	if r.Code < 1 || r.Code > 255 {
		return nil, fmt.Errorf("code is %d; want 1 to 255", r.Code)
	}
	c := &typeClaim{id: id, workspace: r.Workspace, TypeCode: schema.TypeCode{Code: uint8(r.Code), Type: r.Name}, recode: r.Recode}
	return c, checkEventType(c.TypeCode)
}

func checkEventType(t schema.TypeCode) error {
	if err := schema.CheckType(t.Type); err != nil {
		return &SpecError{Field: "name", Reason: err.Error()}
	}
	if schema.IsReservedType(t.Type) {
		return &SpecError{Field: "name", Reason: fmt.Sprintf("is %s, which is one of Playhead's own", schema.Quote(t.Type))}
	}
	if t.Code == 0 {
		return &SpecError{Field: "code", Reason: "is 0; want 1 to 255"}
	}
	return nil
}

// EventTypes returns the codes of a workspace's event types: the built-in ones alone if
// it has none of its own, or is not known.
func (s *Store) EventTypes(workspace string) schema.TypeTable {
	s.mu.RLock()
	table, ok := s.state.types.byWorkspace[workspace].tableNow()
	s.mu.RUnlock()
	if ok {
		return table
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.state.types.byWorkspace[workspace]
	if table, ok = w.tableNow(); !ok {
		w.retable()
		table = w.table
	}
	return table
}

// PutEventType registers a code for an event type of a workspace; created says that the
// type had none. It does nothing if the type has that code. With recode a type's own code
// may change, which changes it for events of the past too.
//
// Of registrations on two nodes in the same instant the one that the log has first holds;
// the other returns its error. A workspace has at most 255 codes, as there are no more.
//
// Errors: *SpecError, ErrNotFound (workspace), *TypeCodeError.
func (s *Store) PutEventType(ctx context.Context, workspace string, t schema.TypeCode, recode bool) (created bool, err error) {
	if err := checkEventType(t); err != nil {
		return false, err
	}
	id, wrote := "et_"+randomText(idRandomLen), false
	err = s.write(ctx, func() (key string, value []byte, err error) {
		if _, ok := s.Workspace(workspace); !ok {
			return "", nil, fmt.Errorf("workspace %s: %w", schema.Quote(workspace), ErrNotFound)
		}
		types := s.EventTypes(workspace)
		if err := mayHave(types, t, recode); err != nil || types.Code(t.Type) == t.Code {
			return "", nil, err
		}
		created, wrote = types.Code(t.Type) == 0, true
		value, err = json.Marshal(eventTypeRecord{V: recordVersion, Workspace: workspace, Name: t.Type, Code: int(t.Code), Recode: recode})
		return kindEventType + "/" + id, value, err
	})
	if err != nil || !wrote {
		return false, err
	}
	if err := s.settleTypes(ctx, workspace); err != nil { // the next change settles
		s.log.Warn("records of type codes that hold no more could not be removed", "workspace", workspace, "error", err)
	}
	// Our record is folded. If another node's came before it, ours is lost; that the type
	// has no code at all means that it was removed since.
	if err := mayHave(s.EventTypes(workspace), t, recode); err != nil {
		return false, err
	}
	return created, nil
}

// mayHave returns what keeps the type from having the code, a *TypeCodeError or nil.
func mayHave(types schema.TypeTable, t schema.TypeCode, recode bool) error {
	code := types.Code(t.Type)
	if code == t.Code {
		return nil
	}
	own := schema.TypeCode{Code: code, Type: t.Type}
	if types.Builtin(t.Type) {
		return &TypeCodeError{Err: ErrTypeBuiltin, Has: own}
	}
	if holder, taken := types.Type(t.Code); taken {
		return &TypeCodeError{Err: ErrTypeCodeTaken, Has: schema.TypeCode{Code: t.Code, Type: holder}}
	}
	if code != 0 && !recode {
		return &TypeCodeError{Err: ErrTypeHasCode, Has: own}
	}
	return nil
}

// RemoveEventType takes away a type's code, which is free then. Error: ErrNotFound, also
// for types whose code is built in.
func (s *Store) RemoveEventType(ctx context.Context, workspace, name string) error {
	return s.write(ctx, func() (key string, value []byte, err error) {
		// First what the removal would bring back.
		if err := s.settleTypes(ctx, workspace); err != nil {
			return "", nil, err
		}
		s.mu.RLock()
		defer s.mu.RUnlock()
		if w := s.state.types.byWorkspace[workspace]; w != nil {
			if c, ok := w.holding[name]; ok {
				return kindEventType + "/" + c.id, nil, nil
			}
		}
		return "", nil, fmt.Errorf("event type %s: %w", schema.Quote(name), ErrNotFound)
	})
}

// settleTypes removes the records of a workspace that hold no code. Two nodes may remove
// the same.
func (s *Store) settleTypes(ctx context.Context, workspace string) error {
	var ids []string
	s.mu.RLock()
	if w := s.state.types.byWorkspace[workspace]; w != nil {
		ids = w.leftovers()
	}
	s.mu.RUnlock()
	if len(ids) == 0 {
		return nil
	}
	records := make([]*kgo.Record, len(ids))
	for i, id := range ids {
		records[i] = &kgo.Record{Topic: schema.TopicControl, Key: []byte(kindEventType + "/" + id)}
	}
	_, err := s.produce(ctx, records...)
	return err
}
