// Package importer sends files of events through Playhead's public batch endpoint.
//
// One file is a pipeline of goroutines that end together:
//
//	reader -> dispatcher -> lanes (one request in flight each) -> POST /v1/events
//
// The reader decompresses, splits into lines and checks each. The dispatcher shards the
// sessions over the lanes and fills batches. A lane sends its batches one after the
// other, each until the server has answered for every event of it: so the events of a
// session arrive in file order however many lanes there are, and whatever is retried.
//
// Retries and repeated runs are safe because every event carries a message id; those
// whose line has none get one computed from the file's content up to that line. How far
// the server has acknowledged a file is kept in a checkpoint, so that an interrupted
// import goes on from there.
package importer
