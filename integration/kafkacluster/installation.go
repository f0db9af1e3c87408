package kafkacluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// Version is the release of Apache Kafka that scripts/fetch-kafka.sh installs.
const Version = "4.4.0"

// minJava is the oldest Java that brokers of Version run on.
const minJava = 17

// ErrMissing reports that Kafka or its Java is not installed.
var ErrMissing = errors.New("apache kafka is not installed")

// Installation is what is needed to run brokers.
type Installation struct {
	java string // path of the program
	jars string // directory
}

// Find looks for the installation; env reads the environment (PLAYHEAD_KAFKA_DIR,
// JAVA_HOME). Its error is ErrMissing with what is missing.
func Find(env func(string) string) (Installation, error) {
	i := Installation{java: "java", jars: filepath.Join(env("PLAYHEAD_KAFKA_DIR"), Version)}
	if home := env("JAVA_HOME"); home != "" {
		i.java = filepath.Join(home, "bin", "java")
	}
	if env("PLAYHEAD_KAFKA_DIR") == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return i, fmt.Errorf("%w: %w", ErrMissing, err)
		}
		i.jars = filepath.Join(cache, "playhead", "kafka", Version)
	}
	if _, err := os.Stat(filepath.Join(i.jars, "jars.sha256")); err != nil {
		return i, fmt.Errorf("%w (scripts/fetch-kafka.sh): %w", ErrMissing, err)
	}
	out, err := exec.Command(i.java, "-version").CombinedOutput()
	if err != nil {
		return i, fmt.Errorf("%w: java: %w", ErrMissing, err)
	}
	if v := javaVersion(string(out)); v < minJava {
		return i, fmt.Errorf("%w: java is of version %d, want %d or later", ErrMissing, v, minJava)
	}
	return i, nil
}

var javaVersionPattern = regexp.MustCompile(`version "(\d+)`)

// javaVersion returns the feature release that `java -version` tells of, 0 if none.
func javaVersion(output string) int {
	m := javaVersionPattern.FindStringSubmatch(output)
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return 0
	}
	return n
}

// Need returns the installation. Where there is none it skips the test, or with
// PLAYHEAD_REQUIRE_KAFKA=1 (make test, make test-kafka) fails it.
func Need(t testing.TB) Installation {
	t.Helper()
	i, err := Find(os.Getenv)
	switch {
	case err == nil:
	case os.Getenv("PLAYHEAD_REQUIRE_KAFKA") == "1":
		t.Fatalf("real Kafka is required: %v", err)
	default:
		t.Skip(err)
	}
	return i
}

// command returns a run of a Java program of Kafka's. Short runs gain by a compiler that
// does not optimise, and small heaps by a collector without threads of its own.
func (i Installation) command(heap string, args ...string) *exec.Cmd {
	return exec.Command(i.java, append([]string{
		"-Xmx" + heap, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-cp", filepath.Join(i.jars, "*"),
	}, args...)...)
}
