package tape

import (
	"slices"

	"github.com/playhead-dev/playhead/schema"
)

// index is the tape's view of one scope: a session, a workflow or a workspace. It holds
// those of the tape's entries that are of the scope, and who listens to them. The tape's
// lock guards it.
type index struct {
	tape    *Tape
	scope   schema.Scope
	session *session // whose index it is; nil for a workflow or a workspace
	entries ring

	// evicted: the scope's entries below it have left the tape, those at or above it have
	// not. It lies behind the tape's start for a scope that is quiet.
	evicted int64

	audiences []*Audience
	woken     bool // in the list of the append in progress
}

// push takes the tape's newest entry. It appends x to woken if somebody is to hear of it
// and x is not there yet.
func (x *index) push(e *Entry, woken []*index) []*index {
	x.entries.push(e)
	due := false
	for _, a := range x.audiences {
		due = a.push(e) || due
	}
	if due && !x.woken {
		x.woken = true
		woken = append(woken, x)
	}
	return woken
}

// pop drops the tape's oldest entry, which is the scope's oldest. start is the tape's
// start without it.
func (x *index) pop(start int64) {
	e := x.entries.pop()
	x.evicted = start
	for _, a := range x.audiences {
		a.pop(e, start)
	}
}

// due adds those who are to hear of the last append to all, and forgets them.
func (x *index) due(all [][]Listener) [][]Listener {
	x.woken = false
	for _, a := range x.audiences {
		if a.due {
			a.due = false
			all = append(all, a.listeners())
		}
	}
	return all
}

// everybody adds all who listen to all.
func (x *index) everybody(all [][]Listener) [][]Listener {
	for _, a := range x.audiences {
		all = append(all, a.listeners())
	}
	return all
}

// audience returns the audience with the filter, made if there is none; key is the
// filter's Key.
func (x *index) audience(key string, filter *schema.Filter) *Audience {
	for _, a := range x.audiences {
		if a.key == key {
			return a
		}
	}
	a := &Audience{index: x, key: key, filter: *filter, all: filter.IsZero(), evicted: x.evicted}
	if !a.all {
		for i := range x.entries.len() {
			if e := x.entries.at(i); a.wants(&e.Event) {
				a.chosen.push(e)
			}
		}
	}
	x.audiences = append(x.audiences, a)
	x.tape.listening++
	return a
}

// idle reports whether nothing needs the index.
func (x *index) idle() bool { return x.entries.len() == 0 && len(x.audiences) == 0 }

// forget drops a group that nothing needs. Sessions stay as long as their states do.
func (x *index) forget() {
	if x.session == nil && x.idle() {
		delete(x.tape.groups, x.scope)
	}
}

// remove drops an audience that has lost its last member.
func (x *index) remove(a *Audience) {
	x.tape.listening--
	x.audiences = slices.DeleteFunc(x.audiences, func(o *Audience) bool { return o == a })
	if len(x.audiences) == 0 {
		x.audiences = nil
	}
	x.forget()
}
