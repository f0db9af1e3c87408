package schema

// Names of Playhead's Kafka topics and consumer groups. GroupRebuild has no members: its
// offsets' metadata holds what playhead rebuild asks of the materialiser.
const (
	TopicEvents       = "playhead.events"
	TopicControl      = "playhead.control"
	TopicDeadLetters  = "playhead.dead_letters"
	TopicPresence     = "playhead.presence"
	GroupMaterializer = "playhead.materializer"
	GroupRebuild      = "playhead.rebuild"
)
