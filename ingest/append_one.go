package ingest

import (
	"context"

	"github.com/playhead-dev/playhead/internal/httpapi"
)

// AppendJSON appends one event that came by another way than a request of its own, in the
// form that POST /v1/events takes: a JSON object that names its session. The result is the
// API's {"id","message_id","duplicate","t_ms"}; the error is a *httpapi.Error, nearly
// always.
func (a *API) AppendJSON(ctx context.Context, who Caller, event []byte) ([]byte, error) {
	a.appender.metrics.appends.WithLabelValues("stream").Inc()
	batch, err := a.decoder.Decode(FormatJSON, event, "")
	if err != nil {
		return nil, a.refused(err)
	}
	if !batch.Single {
		return nil, a.refused(httpapi.InvalidField("events", "This is a list of events; want one."))
	}
	if err := batch.FirstError(); err != nil {
		return nil, a.refused(err)
	}
	results, err := a.appender.Append(ctx, who, batch.Items, Options{AllOrNothing: true})
	if err != nil {
		return nil, a.refused(err)
	}
	if worst := worstError(results); worst != nil {
		return nil, worst
	}
	return appendResult(nil, &results[0]), nil
}
