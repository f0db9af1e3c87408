-- The base order is the log's: workspace pages, replays, exports and lookups by id read
-- it in one piece, skip indexes serve their filters, and an insert is sorted already.
-- by_session holds the rows a second time in the order of sessions, for session pages and
-- replays. by_hour and sessions are sums: for counts, and for lists of sessions.
-- Projections commit with their part, so they never disagree with the rows.
-- All columns of the keys stay in memory (…_skip_suffix_columns): else the offsets of long
-- sessions among many short ones would not prune.
-- docs/architecture.md, "The table", says what was measured.
-- rebuild events
CREATE TABLE IF NOT EXISTS events_next (
  workspace_id    LowCardinality(String),
  session_id      String CODEC(ZSTD(1)),
  workflow_id     LowCardinality(String),
  log_epoch       UInt8,
  kafka_partition UInt16 CODEC(T64, ZSTD(1)),
  kafka_offset    UInt64 CODEC(Delta, ZSTD(1)),
  ts              DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
  client_ts       Nullable(DateTime64(3, 'UTC')),
  t_ms            UInt64 CODEC(Delta, ZSTD(1)),
  type            LowCardinality(String),
  confidence      Nullable(Float32),
  frame_id        String CODEC(ZSTD(1)),
  message_id      String CODEC(ZSTD(1)),
  metadata        Map(LowCardinality(String), String) CODEC(ZSTD(1)),
  content_type    LowCardinality(String),
  payload         String CODEC(ZSTD(3)),
  INDEX i_ts       ts TYPE minmax GRANULARITY 1,
  INDEX i_type     type TYPE set(64) GRANULARITY 1,
  INDEX i_workflow workflow_id TYPE bloom_filter(0.01) GRANULARITY 1,
  INDEX i_frame    frame_id TYPE bloom_filter(0.01) GRANULARITY 1,
  INDEX i_metadata arrayMap((k, v) -> concat(k, '=', v), mapKeys(metadata), mapValues(metadata))
                   TYPE bloom_filter(0.01) GRANULARITY 1,
  PROJECTION by_session (
    SELECT * ORDER BY workspace_id, session_id, log_epoch, kafka_offset
  ),
  PROJECTION by_hour (
    SELECT workspace_id, toStartOfHour(ts), type, log_epoch, kafka_partition,
      count(), min(kafka_offset), max(kafka_offset)
    GROUP BY workspace_id, toStartOfHour(ts), type, log_epoch, kafka_partition
  ),
  PROJECTION sessions (
    SELECT workspace_id, toStartOfHour(ts), session_id, count(),
      argMinIf(ts, bitOr(bitShiftLeft(toUInt64(log_epoch), 48), kafka_offset),
        type NOT IN ('playhead.duplicate', 'playhead.dead_letter', 'playhead.erased')),
      maxIf(ts, type NOT IN ('playhead.duplicate', 'playhead.dead_letter', 'playhead.erased'))
    GROUP BY workspace_id, toStartOfHour(ts), session_id
  )
) ENGINE = MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (workspace_id, kafka_partition, log_epoch, kafka_offset)
SETTINGS index_granularity = 2048, min_bytes_for_wide_part = 67108864,
  primary_key_ratio_of_unique_prefix_values_to_skip_suffix_columns = 1,
  default_compression_codec = 'ZSTD(1)',
  non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1,
  fsync_after_insert = 1, fsync_part_directory = 1;
