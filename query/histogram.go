package query

import (
	"math"
	"net/url"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// Bounds of a histogram's interval.
const (
	minInterval = time.Second
	maxInterval = 366 * 24 * time.Hour
)

// isHistogramParam reports whether a histogram reads the query parameter.
func isHistogramParam(name string) bool { return name == "interval" || isCountParam(name) }

// histogram answers GET /v1/events/histogram.
func (a *API) histogram(c *fiber.Ctx) error {
	answer, req, err := a.answerCount(c, isHistogramParam)
	if err != nil {
		return err
	}
	t := answer.tally
	b := append([]byte(`{"interval_ms":`), strconv.FormatInt(t.width, 10)...)
	b = append(b, `,"buckets":[`...)
	for i, bucket := range t.numbers() {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(b, `{"start":`...), bucket*t.width, 10)
		b = strconv.AppendUint(append(b, `,"count":`...), t.total(bucket), 10)
		if !req.untyped {
			b = t.appendTypes(append(b, `,"counts_by_type":`...), bucket)
		}
		b = append(b, '}')
	}
	return answer.send(c, append(b, ']'))
}

// parseInterval reads the length of a bucket: a word, or a duration such as 15m.
func parseInterval(q url.Values) (time.Duration, error) {
	v, err := httpapi.One(q, "interval")
	if err != nil {
		return 0, err
	}
	switch {
	case !q.Has("interval"), v == "hour":
		return time.Hour, nil
	case v == "second":
		return time.Second, nil
	case v == "minute":
		return time.Minute, nil
	case v == "day":
		return 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < minInterval || d > maxInterval || d%time.Millisecond != 0 {
		return 0, httpapi.InvalidParameter("interval",
			"Parameter interval is %s; want second, minute, hour, day or a duration such as 15m, in whole milliseconds from 1s to 8784h.", schema.Quote(v))
	}
	return d, nil
}

// checkBuckets refuses more buckets than an answer may have, where the times tell how many
// there can be.
func checkBuckets(r *countRequest) error {
	since, until := r.filter.SinceMs, r.filter.UntilMs
	if since == nil || until == nil || *until < *since {
		return nil
	}
	width := r.interval.Milliseconds()
	n := *until/width - *since/width + 1
	if n <= maxBuckets {
		return nil
	}
	least := time.Duration(math.Ceil(float64(*until-*since)/(maxBuckets-2)/1000)) * time.Second
	return httpapi.InvalidParameter("interval", "Parameter interval gives %d buckets between startTime and endTime; at most %d are allowed: take %v or longer, or a shorter time.",
		n, maxBuckets, least).WithDetail("buckets", n).WithDetail("max_buckets", maxBuckets)
}
