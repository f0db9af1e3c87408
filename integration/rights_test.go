package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/integration/kafkacluster"
)

// rightsRow is a row of the table of rights in docs/operations.md.
var rightsRow = regexp.MustCompile("(?m)^\\| (every|ingest|streamer|query|materializer) \\| (topic|group) \\| `([a-z._]+)` \\| ([A-Z]+) \\|")

// documentedRights returns what the table gives a user of the role's own.
func documentedRights(t *testing.T, role string) (acls []kafkacluster.ACL) {
	t.Helper()
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rightsRow.FindAllStringSubmatch(string(text), -1) {
		if row[1] != "every" && row[1] != role {
			continue
		}
		a := kafkacluster.ACL{User: role, Name: row[3]}
		resource, errResource := kmsg.ParseACLResourceType(row[2])
		operation, errOperation := kmsg.ParseACLOperation(row[4])
		if err := errors.Join(errResource, errOperation); err != nil {
			t.Fatal(err)
		}
		a.Resource, a.Operation = resource, operation
		acls = append(acls, a)
	}
	return acls
}

// as returns the parts by way of the cluster's secure door, as a user with a role's name.
func (p parts) as(t *testing.T, role string) parts {
	t.Helper()
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(passwordOf(role)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.brokers = strings.Join(p.cluster.SecureBrokers(), ",")
	p.security = fmt.Sprintf("  tls:\n    enabled: true\n    ca_file: %s\n  sasl:\n    mechanism: scram-sha-512\n    username: %s\n    password_file: %s\n",
		p.cluster.CAFile(), role, password)
	return p
}

func passwordOf(role string) string { return "password of " + role }

// TestRolesNeedWhatIsDocumented gives each role a user with exactly the rights of
// docs/operations.md, over TLS and SCRAM: together they work; without any one of the
// rights the role's node does not start and names it.
func TestRolesNeedWhatIsDocumented(t *testing.T) {
	if !kafkacluster.Asked(t) {
		t.Skip("TLS, users and access control lists are real Kafka's (make test-kafka)")
	}
	p := startParts(t)
	c := p.cluster
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	rights := map[string][]kafkacluster.ACL{}
	roles := []string{"ingest", "streamer", "query", "materializer"}
	for _, role := range roles {
		rights[role] = documentedRights(t, role)
		if len(rights[role]) < 5 {
			t.Fatalf("docs/operations.md lists %v for %s", rights[role], role)
		}
		if err := errors.Join(c.AddUser(ctx, role, passwordOf(role)), c.Allow(ctx, rights[role]...)); err != nil {
			t.Fatal(err)
		}
	}

	// The topics are not there, and nobody may make them.
	awaitRefusal(t, p.as(t, "ingest"), "ingest", "user ingest lacks CREATE on topic playhead.events")
	creates := kafkacluster.ACL{User: "ingest", Resource: kmsg.ACLResourceTypeTopic, Name: "playhead.", Prefixed: true, Operation: kmsg.ACLOperationCreate}
	if err := c.Allow(ctx, creates); err != nil {
		t.Fatal(err)
	}
	nodes := map[string]*server{}
	for _, role := range roles {
		nodes[role] = p.as(t, role).serve(t, role)
		if role == "ingest" {
			if err := c.Revoke(ctx, creates); err != nil {
				t.Fatal(err)
			}
		}
	}
	checkRolesApart(t, nodes["ingest"], nodes["streamer"], nodes["query"])
	for _, s := range nodes {
		s.stop()
	}

	// Those of every role are tried with one of them.
	for i, role := range roles {
		for _, right := range rights[role] {
			if i > 0 && isForEvery(t, right) {
				continue
			}
			if err := c.Revoke(ctx, right); err != nil {
				t.Fatal(err)
			}
			awaitRefusal(t, p.as(t, role), role,
				fmt.Sprintf("user %s lacks %s on %s %s", role, right.Operation, strings.ToLower(right.Resource.String()), right.Name))
			if err := c.Allow(ctx, right); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// isForEvery reports whether the table gives a right to every role.
func isForEvery(t *testing.T, right kafkacluster.ACL) bool {
	t.Helper()
	for _, every := range documentedRights(t, "every") {
		every.User = right.User
		if every == right {
			return true
		}
	}
	return false
}

// awaitRefusal starts a node that must end by itself, and say why.
func awaitRefusal(t *testing.T, p parts, role, why string) {
	t.Helper()
	s := p.begin(t, role)
	select {
	case <-s.exited:
	case <-time.After(60 * time.Second):
		t.Errorf("%s starts though %s:\n%s", role, why, s.output)
		s.stop()
		return
	}
	if out := s.output.String(); s.exitCode() != 1 || !strings.Contains(out, why) {
		t.Errorf("%s: exit code %d, want 1 and %q:\n%s", role, s.exitCode(), why, out)
	}
}

// checkRolesApart has each node do what its role is for.
func checkRolesApart(t *testing.T, ingest, streamer, query *server) {
	t.Helper()
	var ids []string
	for i := range 20 {
		ids = append(ids, ingest.append("apart", fmt.Sprintf(`{"type":"a","payload":%d}`, i)).Results[0].ID)
	}
	status, b := ingest.do(http.MethodPost, "/v1/sessions/gone/events?ack=materialised", "application/json", `{"type":"b"}`)
	if status != http.StatusOK {
		t.Errorf("ack=materialised: %d %s", status, b)
	}
	checkPages(t, query, "apart", ids)
	l := streamer.listen("/v1/sessions/apart/events/stream", ids[4])
	l.awaitIDs(ids[5:], 30*time.Second)
	eventually(t, 30*time.Second, "the other nodes count the stream", func() error {
		if got := getJSON[struct {
			Open struct {
				Workspace int `json:"workspace"`
			} `json:"open_streams"`
		}](ingest, "/v1/limits").Open.Workspace; got != 1 {
			return fmt.Errorf("%d streams are open", got)
		}
		return nil
	})
	if status, b := ingest.do(http.MethodPost, "/v1/keys", "application/json", `{"scopes":["read"]}`); status != http.StatusCreated {
		t.Errorf("a key by way of ingest: %d %s", status, b)
	}
	if status, b := streamer.do(http.MethodPost, "/v1/keys", "application/json", `{"scopes":["read"]}`); status != http.StatusServiceUnavailable {
		t.Errorf("a key by way of a node that may not make one: %d %s, want 503", status, b)
	}
	ingest.erase("/v1/sessions/gone")
	query.awaitErased()
}
