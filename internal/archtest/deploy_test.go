package archtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// compose is the part of the Compose specification that the test reads.
type compose struct {
	Services map[string]struct {
		Image string `yaml:"image"`
		Build *struct {
			Context    string `yaml:"context"`
			Dockerfile string `yaml:"dockerfile"`
		} `yaml:"build"`
		Ports     []string `yaml:"ports"`
		Volumes   []string `yaml:"volumes"`
		DependsOn map[string]struct {
			Condition string `yaml:"condition"`
		} `yaml:"depends_on"`
		Healthcheck map[string]any `yaml:"healthcheck"`

		User        string   `yaml:"user"`
		Privileged  bool     `yaml:"privileged"`
		NetworkMode string   `yaml:"network_mode"`
		Pid         string   `yaml:"pid"`
		ReadOnly    bool     `yaml:"read_only"`
		CapDrop     []string `yaml:"cap_drop"`
		CapAdd      []string `yaml:"cap_add"`
		SecurityOpt []string `yaml:"security_opt"`
	} `yaml:"services"`
	Volumes map[string]any `yaml:"volumes"`
	Configs map[string]struct {
		File string `yaml:"file"`
	} `yaml:"configs"`
}

// pinned matches an image with a tag that begins with a number, or a digest.
var pinned = regexp.MustCompile(`^[a-z0-9/._-]+(:[0-9][\w.-]*|@sha256:[0-9a-f]{64})$`)

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../..", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestComposeFileHoldsTogether(t *testing.T) {
	var c compose
	if err := yaml.Unmarshal([]byte(readFile(t, "deploy/compose.yaml")), &c); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kafka", "clickhouse", "playhead"} {
		if _, ok := c.Services[want]; !ok {
			t.Errorf("no service %q", want)
		}
	}
	for name, s := range c.Services {
		if s.Build == nil && !pinned.MatchString(s.Image) {
			t.Errorf("%s: image %q is not pinned", name, s.Image)
		}
		if s.Build != nil {
			path := filepath.Join("../../deploy", s.Build.Context, s.Build.Dockerfile)
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: port %s is published on every interface", name, port)
			}
		}
		for _, volume := range s.Volumes {
			source, _, _ := strings.Cut(volume, ":")
			if _, ok := c.Volumes[source]; !ok {
				t.Errorf("%s: volume %q is not declared", name, source)
			}
		}
		for other, d := range s.DependsOn {
			dep, ok := c.Services[other]
			if !ok {
				t.Errorf("%s: depends on %q, which is no service", name, other)
			}
			if d.Condition == "service_healthy" && dep.Healthcheck == nil {
				t.Errorf("%s: waits for %s to be healthy, which has no health check", name, other)
			}
		}
	}
}

// What the containers of the compose file may do is as little as their images allow.
func TestComposeFileGivesNoRights(t *testing.T) {
	var c compose
	if err := yaml.Unmarshal([]byte(readFile(t, "deploy/compose.yaml")), &c); err != nil {
		t.Fatal(err)
	}
	for name, s := range c.Services {
		if !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: security_opt = %v, want no-new-privileges:true", name, s.SecurityOpt)
		}
		if s.Privileged || s.NetworkMode == "host" || s.Pid == "host" || len(s.CapAdd) > 0 || s.User == "root" || strings.HasPrefix(s.User, "0") {
			t.Errorf("%s: is given rights: %+v", name, s)
		}
		// ClickHouse's image begins as root.
		if want := []string{"ALL"}; name != "clickhouse" && !slices.Equal(s.CapDrop, want) {
			t.Errorf("%s: cap_drop = %v, want %v", name, s.CapDrop, want)
		}
	}
	if !c.Services["playhead"].ReadOnly {
		t.Error("playhead: its root is not read-only")
	}
	for name, config := range c.Configs {
		// docker/compose#12031: text in the file itself is copied into the container.
		if config.File == "" {
			t.Errorf("config %s is no file, which a read-only container needs", name)
			continue
		}
		readFile(t, filepath.Join("deploy", config.File))
	}
}

func TestDockerfileIsPinnedAndNotRoot(t *testing.T) {
	goVersion := regexp.MustCompile(`(?m)^go (\S+)$`).FindStringSubmatch(readFile(t, "go.mod"))
	if goVersion == nil {
		t.Fatal("go.mod has no go line")
	}
	var user string
	var stages []string
	for line := range strings.Lines(readFile(t, "deploy/Dockerfile")) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "FROM":
			image := fields[1]
			stages = append(stages, image)
			if image != "scratch" && !pinned.MatchString(image) {
				t.Errorf("image %q is not pinned", image)
			}
			if rest, ok := strings.CutPrefix(image, "golang:"); ok && rest != goVersion[1] && !strings.HasPrefix(rest, goVersion[1]+"-") {
				t.Errorf("builds with golang:%s, go.mod says %s", rest, goVersion[1])
			}
			user = ""
		case "USER":
			user = fields[1]
		}
	}
	if len(stages) < 2 {
		t.Errorf("stages = %v, want a build and a final one", stages)
	}
	if user == "" || user == "root" || strings.HasPrefix(user, "0") {
		t.Errorf("the final stage runs as %q, want a user that is not root", user)
	}
}

// TestNoRegistryHostIsNamed keeps the tree usable behind mirrors: which registry serves
// modules and packages is the user's setting, never ours.
func TestNoRegistryHostIsNamed(t *testing.T) {
	host := regexp.MustCompile(`"resolved": *"https?:|https?://(repo1?|registry|proxy|files|static|deb|index)[0-9a-z-]*[.]`)
	out, err := exec.CommandContext(t.Context(), "git", "-C", "../..", "ls-files", "--cached", "--others", "--exclude-standard", "-z").Output()
	if err != nil {
		t.Skipf("not a git work tree: %v", err)
	}
	for path := range strings.SplitSeq(string(out), "\x00") {
		if path == "" || strings.HasSuffix(path, "deploy_test.go") {
			continue
		}
		text, err := os.ReadFile(filepath.Join("../..", path))
		if err != nil {
			continue // removed from the work tree, not yet from the index
		}
		for i, line := range strings.Split(string(text), "\n") {
			if host.MatchString(line) {
				t.Errorf("%s:%d: names a package registry's host", path, i+1)
			}
		}
	}
}
