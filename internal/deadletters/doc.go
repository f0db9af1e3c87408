// Package deadletters keeps, lists and appends again the records of playhead.events that are
// not events: what foreign producers wrote and no reader can take (schema.Reason).
//
// The materialiser writes a letter of each to playhead.dead_letters by a Writer. A Book is
// the fold of that topic, read when somebody asks. A Redriver has a letter appended as an
// event, and notes that in the topic. Nothing else is stored.
package deadletters
