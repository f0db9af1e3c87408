package httpapi

// Headers of an export.
const (
	// HeaderExportCursor is the position at which the export ends, fixed when it began.
	HeaderExportCursor = "X-Playhead-Cursor"
	// HeaderExportNext is the last event of a part that is not the last one.
	HeaderExportNext = "X-Playhead-Next"
	// HeaderExportBehind is how many offsets of the log ClickHouse did not have in time.
	HeaderExportBehind = "X-Playhead-Behind"
)
