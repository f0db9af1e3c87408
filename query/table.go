package query

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/playhead-dev/playhead/internal/settings"
	"github.com/playhead-dev/playhead/schema"
)

// Values of TableConfig.PartitionBy.
const (
	PartitionByMonth = "month"
	PartitionByDay   = "day"
)

// Bounds of TableConfig's times: seconds are counted in 32 bits, and the table's clock
// ends in 2106.
const (
	minTableAge = time.Hour
	maxTableAge = 50 * 365 * 24 * time.Hour
)

// ErrTableConfig reports a table that cannot be brought to its configuration.
var ErrTableConfig = errors.New("the table cannot be changed to what is configured")

// TableConfig is how ClickHouse keeps the table of events. Every start compares it with
// the table and alters what differs, so it must be the same on all nodes: two that
// disagree undo each other's.
type TableConfig struct {
	// TTL is how old an event becomes, by its append time; then its row is deleted. Default
	// 0: never; else 1 h to 50 years. Rows go when all of their part have expired, so up to
	// a day or month (PartitionBy) later. Pages and sessions begin where the rows do.
	// Shortening it deletes; lengthening it brings nothing back (playhead rebuild does what
	// Kafka still holds).
	TTL time.Duration `yaml:"ttl"`

	// PartitionBy is month or day: how the table is cut by append time. Default month; day
	// above some 100 million rows a day, or for a TTL of days. It takes effect when the
	// table is made; changing it later is refused.
	PartitionBy string `yaml:"partition_by"`

	// StoragePolicy names a policy of the server's configuration. A table that is there can
	// change to one that has the volumes of its present policy by the same names ("default"
	// unless configured otherwise). Default "": as the server puts it.
	StoragePolicy string `yaml:"storage_policy"`

	// MoveAfter is the age at which a part moves to MoveToVolume or MoveToDisk (one of
	// them) of the storage policy. Default 0: never; else 1 h to 50 years, less than TTL.
	MoveAfter    time.Duration `yaml:"move_after"`
	MoveToVolume string        `yaml:"move_to_volume"`
	MoveToDisk   string        `yaml:"move_to_disk"`
}

// DefaultTableConfig returns the defaults.
func DefaultTableConfig() TableConfig { return TableConfig{PartitionBy: PartitionByMonth} }

// storageName is what may name a policy, volume or disk: XML names, which need no quoting.
var storageName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,127}$`)

// Validate reports every problem of c, joined; nil if there is none.
func (c TableConfig) Validate() error {
	age := func(key string, v time.Duration) error {
		if v == 0 {
			return nil
		}
		return settings.InRange("clickhouse.table."+key, v, minTableAge, maxTableAge)
	}
	name := func(key, v string) error {
		return settings.Want(v == "" || storageName.MatchString(v), "clickhouse.table."+key, fmt.Sprintf("%q", v),
			"a name of A-Z a-z 0-9 _ . -, or nothing")
	}
	target := (c.MoveToVolume == "") != (c.MoveToDisk == "")
	if c.MoveAfter == 0 {
		target = c.MoveToVolume == "" && c.MoveToDisk == ""
	}
	return errors.Join(
		age("ttl", c.TTL),
		settings.Want(c.PartitionBy == PartitionByMonth || c.PartitionBy == PartitionByDay, "clickhouse.table.partition_by",
			fmt.Sprintf("%q", c.PartitionBy), "month or day"),
		name("storage_policy", c.StoragePolicy),
		age("move_after", c.MoveAfter),
		settings.Want(c.TTL == 0 || c.MoveAfter < c.TTL, "clickhouse.table.move_after", c.MoveAfter, fmt.Sprintf("less than ttl, %v", c.TTL)),
		name("move_to_volume", c.MoveToVolume),
		name("move_to_disk", c.MoveToDisk),
		settings.Want(target, "clickhouse.table.move_to_volume",
			fmt.Sprintf("%q with move_to_disk %q and move_after %v", c.MoveToVolume, c.MoveToDisk, c.MoveAfter),
			"one of the two with move_after, none without"),
	)
}

// What the statements that create the table of events say, and created replaces.
const (
	createdPartition = "PARTITION BY toYYYYMM(ts)"
	createdSettings  = "SETTINGS "
)

// partitionKey is PartitionBy as ClickHouse spells it.
func (c TableConfig) partitionKey() string {
	if c.PartitionBy == PartitionByDay {
		return "toYYYYMMDD(ts)"
	}
	return "toYYYYMM(ts)"
}

// created makes a statement of a migration that creates a table of events create it as
// configured. Others it leaves as they are.
func (c TableConfig) created(statement string) string {
	if !strings.Contains(statement, createdPartition) {
		return statement
	}
	statement = strings.Replace(statement, createdPartition, "PARTITION BY "+c.partitionKey(), 1)
	if c.StoragePolicy != "" {
		statement = strings.Replace(statement, createdSettings, createdSettings+"storage_policy = '"+c.StoragePolicy+"', ", 1)
	}
	return statement
}

// ttl returns the table's TTL clause as ClickHouse spells it; "" for none.
func (c TableConfig) ttl() string {
	var parts []string
	if c.MoveAfter > 0 {
		to := "VOLUME '" + c.MoveToVolume + "'"
		if c.MoveToDisk != "" {
			to = "DISK '" + c.MoveToDisk + "'"
		}
		parts = append(parts, expiry(c.MoveAfter)+" TO "+to)
	}
	if c.TTL > 0 {
		parts = append(parts, expiry(c.TTL))
	}
	return strings.Join(parts, ", ")
}

// expiry is when a row is of that age. ts reaches further than DateTime, which TTL wants
// (servers before 2025 take no other): a row of the far future must not wrap round and
// be deleted at once.
func expiry(age time.Duration) string {
	return fmt.Sprintf("toDateTime(least(ts + toIntervalSecond(%d), toDateTime64('2106-01-01 00:00:00', 3, 'UTC')))", int64(age.Seconds()))
}

// ApplyTable alters the table of events so that it is kept as c says, where it is not;
// run it after Migrator.Up. Rows that are there already expire and move by the new rule
// too. It returns ErrTableConfig where the table would have to be made anew. log is told
// of what is altered.
func ApplyTable(ctx context.Context, conn driver.Conn, c TableConfig, log *slog.Logger) error {
	return c.apply(ctx, conn, schema.TableEvents, log)
}

func (c TableConfig) apply(ctx context.Context, conn driver.Conn, table string, log *slog.Logger) error {
	is, err := readTable(ctx, conn, table)
	if err != nil {
		return err
	}
	if is.partitionKey != c.partitionKey() {
		return fmt.Errorf("%w: clickhouse.table.partition_by is %s, table %s has been made with PARTITION BY %s; set it back, or drop the table and let it be made anew from Kafka",
			ErrTableConfig, c.PartitionBy, table, is.partitionKey)
	}
	alter := func(what string) error {
		log.Info("altering table", "table", table, "alter", what)
		if err := conn.Exec(ctx, "ALTER TABLE "+table+" "+what); err != nil {
			if exception := (*clickhouse.Exception)(nil); errors.As(err, &exception) {
				return fmt.Errorf("%w: %s: %w", ErrTableConfig, what, err)
			}
			return fmt.Errorf("alter table %s: %w", table, err)
		}
		return nil
	}
	if c.StoragePolicy != "" && is.storagePolicy != c.StoragePolicy {
		if err := alter("MODIFY SETTING storage_policy = '" + c.StoragePolicy + "'"); err != nil {
			return err
		}
	}
	want := c.ttl()
	if want == is.ttl {
		return nil
	}
	if want == "" {
		return alter("REMOVE TTL")
	}
	if !is.expiresByPart { // parts go whole, and a new rule is worked out without rewriting them
		if err := alter("MODIFY SETTING ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1"); err != nil {
			return err
		}
	}
	return alter("MODIFY TTL " + want)
}

// errNoTable reports a table that is not there.
var errNoTable = errors.New("it does not exist")

// tableState is how a table is kept.
type tableState struct {
	partitionKey, storagePolicy, ttl string
	expiresByPart                    bool
}

func readTable(ctx context.Context, conn driver.Conn, table string) (tableState, error) {
	var s tableState
	var engine string
	err := conn.QueryRow(ctx, "SELECT partition_key, storage_policy, engine_full FROM system.tables"+
		" WHERE database = currentDatabase() AND name = '"+table+"'").Scan(&s.partitionKey, &s.storagePolicy, &engine)
	if errors.Is(err, sql.ErrNoRows) {
		return s, fmt.Errorf("table %s: %w", table, errNoTable)
	}
	if err != nil {
		return s, fmt.Errorf("read how table %s is kept: %w", table, err)
	}
	definition, set, _ := strings.Cut(engine, " SETTINGS ")
	_, s.ttl, _ = strings.Cut(definition, " TTL ")
	s.expiresByPart = strings.Contains(set, "ttl_only_drop_parts = 1") && strings.Contains(set, "materialize_ttl_recalculate_only = 1")
	return s, nil
}
