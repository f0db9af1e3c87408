package ingest

import (
	"context"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// AppendOnce appends an event that came in no request's body. Its parts are as
// schema.DecodeRecord lets them pass, and its workspace, session and message id are set. The
// message id is looked for at any age: if there is an event of it already, the answer is
// that one's id, and duplicate. The error is a *httpapi.Error.
func (a *API) AppendOnce(ctx context.Context, e *schema.Event) (id schema.EventID, duplicate bool, err error) {
	a.appender.metrics.appends.WithLabelValues("redrive").Inc()
	switch {
	case schema.IsReservedType(e.Type):
		err = refuse(400, codeReservedType, "type", "type is %s, which is one of Playhead's own.", schema.Quote(e.Type))
	case len(e.Payload) > a.cfg.MaxEventBytes:
		err = httpapi.Errorf(413, codeEventTooLarge, "The payload has %d bytes; at most %d are allowed an event.", len(e.Payload), a.cfg.MaxEventBytes)
	}
	if err != nil {
		return schema.EventID{}, false, a.refused(err)
	}
	results, err := a.appender.Append(ctx, Caller{Workspace: e.Workspace}, []Item{{Event: *e, TMsGiven: true}},
		Options{AllOrNothing: true, SearchHistory: true})
	if err != nil {
		return schema.EventID{}, false, a.refused(err)
	}
	if err := worstError(results); err != nil {
		return schema.EventID{}, false, err
	}
	return results[0].ID, results[0].Duplicate, nil
}
