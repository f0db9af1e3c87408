package schema

// Names of Playhead's Kafka topics and of the materialiser's consumer group.
const (
	TopicEvents       = "playhead.events"
	TopicControl      = "playhead.control"
	TopicDeadLetters  = "playhead.dead_letters"
	TopicPresence     = "playhead.presence"
	GroupMaterializer = "playhead.materializer"
)
