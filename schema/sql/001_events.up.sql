CREATE TABLE IF NOT EXISTS events (
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
  INDEX i_offset  kafka_offset TYPE minmax GRANULARITY 1,
  INDEX i_ts      ts TYPE minmax GRANULARITY 1,
  INDEX i_type    type TYPE set(64) GRANULARITY 1,
  INDEX i_message message_id TYPE bloom_filter GRANULARITY 1
) ENGINE = MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (workspace_id, session_id, log_epoch, kafka_offset)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1,
  fsync_after_insert = 1, fsync_part_directory = 1
