package kafkacluster_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/playhead-dev/playhead/integration/kafkacluster"
)

// TestVersionIsTheOneThatIsFetched holds the constant against the script's pins.
func TestVersionIsTheOneThatIsFetched(t *testing.T) {
	pom, err := os.ReadFile("../../scripts/kafka/pom.xml")
	if err != nil {
		t.Fatal(err)
	}
	if want := "<kafka.version>" + kafkacluster.Version + "</kafka.version>"; !bytes.Contains(pom, []byte(want)) {
		t.Errorf("scripts/kafka/pom.xml lacks %s", want)
	}
	pins, err := os.ReadFile("../../scripts/kafka/jars.sha256")
	if err != nil {
		t.Fatal(err)
	}
	if want := "  kafka_2.13-" + kafkacluster.Version + ".jar\n"; !strings.Contains(string(pins), want) {
		t.Errorf("scripts/kafka/jars.sha256 has no %q", want)
	}
}
