package deadletters

import (
	"errors"

	"github.com/playhead-dev/playhead/internal/settings"
	"github.com/playhead-dev/playhead/schema"
)

// Defaults of Config.
const (
	DefaultMaxListed         = 100_000
	DefaultOperatorWorkspace = "ws_default"
)

// Config says what is listed of the dead letters, and to whom.
type Config struct {
	// OperatorWorkspace is the workspace whose admin keys are the operator's: they list and
	// append again the dead letters of every workspace, and those that name none. Admin keys
	// of others see the letters that name their own. Default ws_default, the workspace of the
	// bootstrap key; "" is nobody's. Give no tenant a key with the scope admin there.
	OperatorWorkspace string `yaml:"operator_workspace"`

	// MaxListed is how many letters a node that is asked for them holds in memory, the latest.
	// Default 100,000, 100 to 10 million; about 500 bytes each. Older ones are in the topic
	// until Kafka deletes them, and cannot be listed.
	MaxListed int `yaml:"max_listed"`
}

// DefaultConfig returns the settings that hold unless set.
func DefaultConfig() Config {
	return Config{OperatorWorkspace: DefaultOperatorWorkspace, MaxListed: DefaultMaxListed}
}

// Validate reports every setting that is wrong, joined.
func (c Config) Validate() error {
	return errors.Join(
		settings.Want(c.OperatorWorkspace == "" || schema.CheckID(c.OperatorWorkspace) == nil,
			"dead_letters.operator_workspace", schema.Quote(c.OperatorWorkspace), "a workspace's id, or nothing"),
		settings.InRange("dead_letters.max_listed", c.MaxListed, 100, 10_000_000),
	)
}
