package query

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/schema"
)

// MessageRef names a message of a session by its producer's id.
type MessageRef struct {
	Session, MessageID string
}

// messagesAtOnce bounds the message ids of one statement. Over HTTP they travel in the
// URL: 500 pairs of the longest ids stay below 200 KB.
const messagesAtOnce = 500

// FindMessages returns, for those of refs that history holds, at any age, the id of the
// first event of that session and message id. References with an empty message id are
// never found. The cost is one statement for every 500 references.
func (h *History) FindMessages(ctx context.Context, workspace string, refs []MessageRef) (map[MessageRef]schema.EventID, error) {
	found := make(map[MessageRef]schema.EventID)
	for len(refs) > 0 {
		n := min(len(refs), messagesAtOnce)
		if err := h.findMessages(ctx, workspace, refs[:n], found); err != nil {
			return nil, fmt.Errorf("look for %d message ids: %w", n, err)
		}
		refs = refs[n:]
	}
	return found, nil
}

// findMessagesSQL names the sessions, for the key to prune, and the message ids apart from
// each other, which lets a few foreign pairs through: findMessages drops them.
const findMessagesSQL = `WITH ` + packedPosition + ` AS pos
SELECT session_id, message_id, min(pos), argMin(kafka_partition, pos), argMin(toUnixTimestamp64Milli(ts), pos)
FROM ` + schema.TableEvents + `
WHERE %s
GROUP BY session_id, message_id`

func (h *History) findMessages(ctx context.Context, workspace string, refs []MessageRef, found map[MessageRef]schema.EventID) error {
	wanted := make(map[MessageRef]bool, len(refs))
	sessions, ids := make(map[string]bool), make(map[string]bool)
	for _, r := range refs {
		if r.MessageID != "" {
			wanted[r], sessions[r.Session], ids[r.MessageID] = true, true, true
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	var s statement
	s.and("workspace_id = %s", s.bind("String", workspace))
	s.and("session_id IN %s", s.bind("Array(String)", slices.Collect(maps.Keys(sessions))))
	s.and("message_id IN %s", s.bind("Array(String)", slices.Collect(maps.Keys(ids))))
	if h.erased != nil {
		s.notPending(h.erased.PendingErasures(workspace))
	}
	return h.ask(ctx, "messages", func(ctx context.Context) error {
		return h.rows(ctx, fmt.Sprintf(findMessagesSQL, s.condition()), settingsBySession, s.args, func(rows driver.Rows) error {
			var ref MessageRef
			var pos uint64
			var id schema.EventID
			var partition uint16
			if err := rows.Scan(&ref.Session, &ref.MessageID, &pos, &partition, &id.TimeMs); err != nil {
				return err
			}
			if wanted[ref] {
				id.Position = unpackPosition(pos, partition)
				found[ref] = id
			}
			return nil
		})
	})
}
