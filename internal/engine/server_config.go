package engine

import (
	"encoding/xml"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// serverConfig writes the engine's server settings to dir and returns the arguments that boot it.
// A file, because settings of <merge_tree> cannot be given as arguments; and naming one keeps the engine
// from reading whatever config.xml lies in the working or home directory.
func serverConfig(cfg ChildConfig, dir string) ([]string, error) {
	cache := cfg.MaxMemoryBytes / 8
	settings := map[string]int64{
		"max_server_memory_usage":            cfg.MaxMemoryBytes,
		"mark_cache_size":                    cache / 2,
		"primary_index_cache_size":           cache / 8,
		"index_mark_cache_size":              cache / 8,
		"index_uncompressed_cache_size":      0,
		"uncompressed_cache_size":            0,
		"query_condition_cache_size":         cache / 16,
		"text_index_tokens_cache_size":       cache / 32,
		"text_index_header_cache_size":       cache / 32,
		"text_index_postings_cache_size":     cache / 16,
		"mmap_cache_size":                    100,
		"compiled_expression_cache_size":     16 << 20,
		"background_pool_size":               int64(cfg.BackgroundThreads),
		"background_common_pool_size":        2,
		"background_schedule_pool_size":      4,
		"background_move_pool_size":          1,
		"background_fetches_pool_size":       1,
		"max_io_thread_pool_size":            16,
		"max_io_thread_pool_free_size":       0,
		"max_thread_pool_free_size":          32,
		"jemalloc_enable_background_threads": 1,
	}
	mergeTree := map[string]int64{
		// Acknowledged means on disk, also for a table whose author did not think of it.
		"fsync_after_insert":   1,
		"fsync_part_directory": 1,
		// These must be below background_pool_size times two, or big merges and mutations never run.
		"number_of_free_entries_in_pool_to_lower_max_size_of_merge":           1,
		"number_of_free_entries_in_pool_to_execute_mutation":                  1,
		"number_of_free_entries_in_pool_to_execute_optimize_entire_partition": 1,
	}
	path := filepath.Join(dir, "engine.xml")
	text := "<clickhouse>\n" + elements(settings) + "<merge_tree>\n" + elements(mergeTree) + "</merge_tree>\n" + storage(cfg.ColdPath) + "</clickhouse>\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("write engine configuration: %w", err)
	}
	return []string{"--config-file=" + path, "--path=" + filepath.Join(dir, "clickhouse")}, nil
}

// storage configures a second disk and a policy of both; nothing if there is no second. A table can change
// to a policy that has the volumes of its present one, by name: so the first is "default".
func storage(coldPath string) string {
	if coldPath == "" {
		return ""
	}
	var path strings.Builder
	_ = xml.EscapeText(&path, []byte(strings.TrimSuffix(coldPath, "/")+"/")) // a Builder takes everything
	return "<storage_configuration>\n" +
		"  <disks><cold><type>local</type><path>" + path.String() + "</path></cold></disks>\n" +
		"  <policies><" + TieredPolicy + "><volumes><default><disk>default</disk></default><cold><disk>cold</disk></cold></volumes></" + TieredPolicy + "></policies>\n" +
		"</storage_configuration>\n"
}

func elements(values map[string]int64) string {
	var text string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		text += fmt.Sprintf("  <%s>%d</%s>\n", name, values[name], name)
	}
	return text
}

// baseSettings are the query settings of every session where a request says nothing else.
func baseSettings(cfg ChildConfig) map[string]string {
	return map[string]string{
		// An asynchronous insert is acknowledged from memory.
		"async_insert": "0",
		// The library parses "1+1" as SELECT 1+1; a server does not.
		"implicit_select": "0",
		"max_query_size":  strconv.Itoa(maxStatementBytes + 1),
		// One statement must not starve the others, nor end the process.
		"max_memory_usage": strconv.FormatInt(cfg.MaxMemoryBytes/2, 10),
		// Threads interrupted by a profiler's signals are no good in a Go process.
		"query_profiler_real_time_period_ns": "0",
		"query_profiler_cpu_time_period_ns":  "0",
	}
}
