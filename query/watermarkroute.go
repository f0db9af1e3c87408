package query

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
)

// partitionLag is how far one Kafka partition is in ClickHouse.
type partitionLag struct {
	Partition    uint16 `json:"partition"`
	Epoch        uint8  `json:"epoch"`
	LogEnd       int64  `json:"log_end"`      // its high watermark
	Materialised int64  `json:"materialised"` // the committed offset: all records below are rows
	LagEvents    int64  `json:"lag_events"`   // offsets between the two
	LagMs        int64  `json:"lag_ms"`       // age of the oldest record that is no row yet; 0: there is none
}

func isWatermarkParam(name string) bool { return name == "all" }

// listWatermarks answers GET /v1/watermarks.
func (a *API) listWatermarks(c *fiber.Ctx) error {
	who := httpapi.From(c)
	q, err := httpapi.Query(c)
	if err != nil {
		return err
	}
	if err := httpapi.CheckParams(q, isWatermarkParam); err != nil {
		return err
	}
	all, err := choice(q, "all", "0", "1")
	if err != nil {
		return err
	}
	placement := a.deps.Placement(who.Workspace)
	scope, err := narrow(who, "")
	if err != nil {
		return err
	}
	partitions := scope.Partitions(placement)
	if all == "1" {
		if !who.Scopes.Has(control.ScopeAdmin) {
			return httpapi.Errorf(403, httpapi.CodeInsufficientScope, "Watermarks of all partitions need a key with the scope admin.").
				WithParam("all").WithDetail("required", control.ScopeAdmin.Names())
		}
		partitions = partitions[:0]
		for p := range placement.Partitions {
			partitions = append(partitions, uint16(p))
		}
	}
	slices.Sort(partitions)
	ctx, cancel := context.WithTimeout(c.UserContext(), a.cfg.SyncTimeout)
	defer cancel()
	lags := make([]partitionLag, len(partitions))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lagReaders)
	for i, p := range partitions {
		group.Go(func() error {
			lag, err := a.lagOf(ctx, p)
			lags[i] = lag
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return httpapi.LogUnavailable(err)
	}
	return c.JSON(map[string]any{"data": lags})
}

const (
	// lagReaders is how many partitions one request asks Kafka about at a time.
	lagReaders = 16
	// firstLagOffsets is how many offsets are searched for a record first: those at the
	// committed offset may be transaction markers.
	firstLagOffsets = 16
)

// errFirstRecord ends the reading of records at the first; it does not leave this file.
var errFirstRecord = errors.New("found the first record")

// lagOf returns the lag of one partition, never older than the call.
func (a *API) lagOf(ctx context.Context, partition uint16) (partitionLag, error) {
	end, err := a.deps.Log.HighWatermark(ctx, partition)
	if err != nil {
		return partitionLag{}, err
	}
	lag := partitionLag{Partition: partition, Epoch: a.deps.Epoch, LogEnd: end}
	lag.Materialised = min(a.deps.Committed.Get(partition), end)
	if lag.LagEvents = end - lag.Materialised; lag.LagEvents == 0 {
		return lag, nil
	}
	start, _, err := a.deps.Log.Bounds(ctx, partition)
	if err != nil {
		return partitionLag{}, err
	}
	from := max(lag.Materialised, start)
	for _, to := range []int64{min(from+firstLagOffsets, end), end} {
		if from >= to {
			continue
		}
		from, err = a.deps.Log.Read(ctx, partition, from, to, func(r *kgo.Record) error {
			lag.LagMs = max(time.Now().UnixMilli()-r.Timestamp.UnixMilli(), 1)
			return errFirstRecord
		})
		if errors.Is(err, errFirstRecord) {
			return lag, nil
		}
		if err != nil {
			return partitionLag{}, err
		}
	}
	return lag, nil
}
