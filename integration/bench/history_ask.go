package main

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"time"
)

// question is one kind of request about history. ask returns the path of one of them, about
// a random target.
type question struct {
	name string
	ask  func(r *rand.Rand) string
	full bool   // the page has to be full
	goal string // of the page's p99
}

// questions are those of one table of the report.
type questions struct {
	title, shape string
	kinds        []question
}

const historyGoal = "below 50 ms"

// historyQuestions lists all that is asked. "Deepest" is by a cursor: 1,000 offsets of each
// partition before the end, or as far as the scope's last full page needs.
func historyQuestions(d *historyData) []questions {
	return []questions{d.sessionPages(), d.workspacePages(), d.filteredPages(), d.sums(), d.sessionLists()}
}

func (d *historyData) sessionPages() questions {
	_, _, longEvents := d.longRange()
	page := func(session, more string) string {
		return fmt.Sprintf("/v1/sessions/%s/events?pageSize=%d%s", session, pageSize, more)
	}
	shard := func(r *rand.Rand) int { return r.IntN(len(d.partitions)) }
	// A call has about 5 events in 1,000 offsets, more or less: at least a page is left.
	lastOfCall := func(to int64) int64 { return to - pageSize*callSpan/callEvents - callSpan/5 }
	long := fmt.Sprintf("session of %s events, ", number(float64(longEvents)))
	return questions{
		title: "History: pages of a session",
		shape: fmt.Sprintf("Calls: sessions of about %s events, %d under way at a time in each of %d partitions, another one each time, so that its state is read too. "+
			"Sparse: 1 event of its partition in %s, or in %s, from the first day to the last.",
			number(callEvents), liveCalls, len(d.partitions), number(sparseEvery), number(verySparseEvery)),
		kinds: []question{
			{"call, first page", func(r *rand.Rand) string {
				name, _, _, _ := d.wholeCall(r)
				return page(name, "")
			}, true, historyGoal},
			{"call, first page with payloads", func(r *rand.Rand) string {
				name, _, _, _ := d.wholeCall(r)
				return page(name, "&include=payload")
			}, true, historyGoal},
			{"call, last page, by cursor", func(r *rand.Rand) string {
				name, shard, _, to := d.wholeCall(r)
				return page(name, "&cursor="+d.after(shard, lastOfCall(to)))
			}, true, historyGoal},
			{"call, last page, order=desc", func(r *rand.Rand) string {
				name, _, _, _ := d.wholeCall(r)
				return page(name, "&order=desc")
			}, true, historyGoal},
			{"sparse session, first page", func(r *rand.Rand) string { return page(d.sparse(shard(r)), "") }, true, historyGoal},
			{"sparse session, anywhere, by cursor", func(r *rand.Rand) string {
				shard := shard(r)
				return page(d.sparse(shard), "&cursor="+d.after(shard, d.somewhere(r, pageSize*sparseEvery+1)))
			}, d.perPartition > 2*pageSize*sparseEvery, historyGoal},
			{"sparse session, deepest, by cursor", func(r *rand.Rand) string {
				shard := shard(r)
				return page(d.sparse(shard), "&cursor="+d.after(shard, max(d.perPartition-(pageSize+1)*sparseEvery, 0)))
			}, true, historyGoal},
			{"very sparse session, anywhere, by cursor", func(r *rand.Rand) string {
				shard := shard(r)
				return page(d.verySparse(shard), "&cursor="+d.after(shard, d.somewhere(r, pageSize*verySparseEvery+1)))
			}, d.perPartition > 2*pageSize*verySparseEvery, historyGoal},
			{long + "first page", func(*rand.Rand) string { return page(d.long(), "") }, true, historyGoal},
			{long + "anywhere, by cursor", func(r *rand.Rand) string {
				return page(d.long(), "&cursor="+d.after(0, d.longOffset(r.Int64N(longEvents-pageSize))))
			}, true, historyGoal},
			{long + "page " + number(float64(longEvents/pageSize)) + ", by cursor", func(*rand.Rand) string {
				return page(d.long(), "&cursor="+d.after(0, d.longOffset(longEvents-pageSize-1)))
			}, true, historyGoal},
			{long + "the same with payloads", func(*rand.Rand) string {
				return page(d.long(), "&include=payload&cursor="+d.after(0, d.longOffset(longEvents-pageSize-1)))
			}, true, historyGoal},
			{"one event by its id", func(r *rand.Rand) string {
				offset := r.Int64N(d.perPartition-2) + 1
				for offset%1000 < 2 { // bookkeeping is not shown
					offset++
				}
				return "/v1/events/" + d.eventID(shard(r), offset).String()
			}, false, historyGoal},
		},
	}
}

// deepOffsets is how far from the end "deepest" is, in offsets of a partition.
const deepOffsets = 1000

// page returns the path of a page of the workspace.
func workspacePage(parts ...string) string {
	path := "/v1/events?pageSize=" + strconv.Itoa(pageSize)
	for _, p := range parts {
		path += "&" + p
	}
	return path
}

func (d *historyData) cursor(offset int64) string { return "cursor=" + url.QueryEscape(d.at(offset)) }

func (d *historyData) anywhere(r *rand.Rand) string { return d.cursor(d.somewhere(r, deepOffsets)) }

func (d *historyData) deepest() string { return d.cursor(d.perPartition - deepOffsets) }

// moment returns a random time that has some events behind it.
func (d *historyData) moment(r *rand.Rand) int64 { return d.timeMs(d.somewhere(r, deepOffsets)) }

func (d *historyData) workspacePages() questions {
	return questions{
		title: "History: pages of the workspace",
		shape: fmt.Sprintf("All %s events of the workspace in the order of their time, %d partitions merged.", number(float64(d.rows())), len(d.partitions)),
		kinds: []question{
			{"oldest first, first page", func(*rand.Rand) string { return workspacePage() }, true, historyGoal},
			{"oldest first, anywhere, by cursor", func(r *rand.Rand) string { return workspacePage(d.anywhere(r)) }, true, historyGoal},
			{"the same with payloads", func(r *rand.Rand) string { return workspacePage(d.anywhere(r), "include=payload") }, true, historyGoal},
			{"oldest first, deepest, by cursor", func(*rand.Rand) string { return workspacePage(d.deepest()) }, true, historyGoal},
			{"newest first, first page", func(*rand.Rand) string { return workspacePage("order=desc") }, true, historyGoal},
			{"newest first, anywhere, by cursor", func(r *rand.Rand) string { return workspacePage("order=desc", d.anywhere(r)) }, true, historyGoal},
			{"newest first, deepest, by cursor", func(*rand.Rand) string { return workspacePage("order=desc", d.cursor(deepOffsets)) }, true, historyGoal},
			{"from a startTime", func(r *rand.Rand) string { return workspacePage(fmt.Sprint("startTime=", d.moment(r))) }, true, historyGoal},
			{"newest first, down from an endTime", func(r *rand.Rand) string {
				return workspacePage("order=desc", fmt.Sprint("endTime=", d.moment(r)))
			}, true, historyGoal},
		},
	}
}

func (d *historyData) filteredPages() questions {
	places := func(name string, full bool, filter func(*rand.Rand) string) []question {
		return []question{
			{name + ", first page", func(r *rand.Rand) string { return workspacePage(filter(r)) }, full, historyGoal},
			{name + ", anywhere, by cursor", func(r *rand.Rand) string { return workspacePage(filter(r), d.anywhere(r)) }, false, historyGoal},
			{name + ", newest first", func(r *rand.Rand) string { return workspacePage(filter(r), "order=desc") }, full, historyGoal},
		}
	}
	fixed := func(text string) func(*rand.Rand) string { return func(*rand.Rand) string { return text } }
	common := func(r *rand.Rand) string { return "type=" + historyTypes[r.IntN(len(historyTypes))].name }
	region := func(r *rand.Rand) string {
		return url.QueryEscape("filters[region]") + "=" + historyRegions[r.IntN(len(historyRegions))]
	}
	user := func(r *rand.Rand) string {
		return url.QueryEscape("filters[user]") + "=u" + strconv.Itoa(r.IntN(historyUsers))
	}
	var kinds []question
	kinds = append(kinds, places("common type (3 % to 34 %)", true, common)...)
	kinds = append(kinds, question{
		"common type, deepest, by cursor",
		func(r *rand.Rand) string { return workspacePage(common(r), d.cursor(d.perPartition-20*deepOffsets)) }, true, historyGoal,
	})
	kinds = append(kinds, places("type of 1 in 10,000", false, fixed("type="+seldomType))...)
	kinds = append(kinds, places("type of 1 in 1,000,000", false, fixed("type="+rareType))...)
	kinds = append(kinds, places("metadata of 1 in 8", true, region)...)
	kinds = append(kinds, places("metadata of 1 in 1,000,000", false, user)...)
	for _, kind := range []struct{ name, more string }{{"first page", ""}, {"newest first", "&order=desc"}} {
		kinds = append(kinds, question{"workflow (1 in 1,000), " + kind.name, func(r *rand.Rand) string {
			return fmt.Sprintf("/v1/workflows/flow-%d/events?pageSize=%d%s", r.IntN(historyWorkflows), pageSize, kind.more)
		}, false, historyGoal})
	}
	kinds = append(kinds, question{"workflow (1 in 1,000), anywhere, by cursor", func(r *rand.Rand) string {
		return fmt.Sprintf("/v1/workflows/flow-%d/events?pageSize=%d&%s", r.IntN(historyWorkflows), pageSize, d.anywhere(r))
	}, false, historyGoal})
	return questions{
		title: "History: filtered pages of the workspace",
		shape: "A page that takes its time is cut short: it says so, and goes on at its cursor.",
		kinds: kinds,
	}
}

// spans returns the bounds of a random stretch of time.
func (d *historyData) spans(r *rand.Rand, length time.Duration) string {
	length = min(length, historyLife)
	from := historyStart.UnixMilli()
	if room := historyLife - length; room > 0 {
		from += r.Int64N(room.Milliseconds())
	}
	return fmt.Sprintf("startTime=%d&endTime=%d", from, from+length.Milliseconds())
}

func (d *historyData) sums() questions {
	const day = 24 * time.Hour
	region := url.QueryEscape("filters[region]") + "=" + historyRegions[0]
	return questions{
		title: "History: counts and histograms",
		shape: "Of the workspace.",
		kinds: []question{
			{"count of everything", func(*rand.Rand) string { return "/v1/events/count" }, false, ""},
			{"count of a day", func(r *rand.Rand) string { return "/v1/events/count?" + d.spans(r, day) }, false, ""},
			{"count of a type", func(r *rand.Rand) string {
				return "/v1/events/count?type=" + historyTypes[r.IntN(len(historyTypes))].name
			}, false, ""},
			{"count of a region, an hour", func(r *rand.Rand) string { return "/v1/events/count?" + region + "&" + d.spans(r, time.Hour) }, false, ""},
			{"histogram of everything by the day", func(*rand.Rand) string { return "/v1/events/histogram?interval=day&" + d.whole() }, false, ""},
			{"histogram of a day by the hour", func(r *rand.Rand) string { return "/v1/events/histogram?interval=hour&" + d.spans(r, day) }, false, ""},
			{"histogram of an hour by the minute", func(r *rand.Rand) string {
				return "/v1/events/histogram?interval=minute&" + d.spans(r, time.Hour)
			}, false, ""},
		},
	}
}

// whole is all of the time that there is data of.
func (d *historyData) whole() string {
	return fmt.Sprintf("startTime=%d&endTime=%d", historyStart.UnixMilli(), historyStart.Add(historyLife).UnixMilli())
}

func (d *historyData) sessionLists() questions {
	return questions{
		title: "History: sessions",
		shape: fmt.Sprintf("%s call sessions and a few long ones; %d are under way at the end, the others have ended.",
			number(float64(d.calls()*int64(len(d.partitions)))), liveCalls*len(d.partitions)),
		kinds: []question{
			{"a call", func(r *rand.Rand) string {
				name, _, _, _ := d.wholeCall(r)
				return "/v1/sessions/" + name
			}, false, historyGoal},
			{"list, the latest", func(*rand.Rand) string { return "/v1/sessions?pageSize=50" }, false, historyGoal},
			{"list, the last begun", func(*rand.Rand) string { return "/v1/sessions?pageSize=50&order_by=start" }, false, historyGoal},
			{"list, active", func(*rand.Rand) string { return "/v1/sessions?pageSize=50&status=active" }, false, historyGoal},
			{"list, ended", func(*rand.Rand) string { return "/v1/sessions?pageSize=50&status=ended" }, false, historyGoal},
			{"list, of a workflow", func(r *rand.Rand) string {
				return fmt.Sprintf("/v1/sessions?pageSize=50&workflow_id=flow-%d", r.IntN(historyWorkflows))
			}, false, historyGoal},
			{"list, begun before a time", func(r *rand.Rand) string {
				return "/v1/sessions?pageSize=50&order_by=start&started_before=" + strconv.FormatInt(d.moment(r), 10)
			}, false, historyGoal},
			{"details of a call", func(r *rand.Rand) string {
				name, _, _, _ := d.wholeCall(r)
				return "/v1/sessions/" + name + "/details"
			}, false, historyGoal},
			{"details of the long session", func(*rand.Rand) string { return "/v1/sessions/" + d.long() + "/details" }, false, historyGoal},
		},
	}
}
