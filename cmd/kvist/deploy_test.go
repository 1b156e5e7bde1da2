// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// deployed is what deploy/compose.yaml and deploy/Dockerfile say.
type deployed struct {
	Services map[string]struct {
		Image, Dockerfile         string
		Command, Volumes, Secrets []string
		Ports                     []string
		Grace                     string `yaml:"stop_grace_period"`
		Healthcheck               struct{ Test []string }
		DependsOn                 map[string]struct{ Condition string } `yaml:"depends_on"`
	}
	Secrets map[string]struct{ File string }

	run    string   // how the binary is built
	health []string // the image's own health check
	base   string   // the image that it is built in
}

func readDeployed(t *testing.T) (d deployed) {
	t.Helper()
	p, err := os.ReadFile("deploy/compose.yaml")
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(p, &d))
	p, err = os.ReadFile("deploy/Dockerfile")
	require.NoError(t, err)
	find := func(pattern string) string {
		m := regexp.MustCompile(`(?m)^` + pattern + `$`).FindSubmatch(p)
		require.NotNil(t, m, pattern)
		return string(m[1])
	}
	d.run = find(`RUN (.* go build .*)`)
	d.base = find(`FROM .*golang:([0-9.]+)-.* AS build`)
	require.NoError(t, json.Unmarshal([]byte(find(`HEALTHCHECK .*CMD (\[.*\])`)), &d.health))
	require.Equal(t, `["/kvist"]`, find(`ENTRYPOINT (.*)`))
	return d
}

// parsed parses the words after the program's name as the program does, without running the verb.
func parsed(t *testing.T, words []string) *cobra.Command {
	t.Helper()
	cmd, rest, err := newRoot(&app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}).Find(words)
	require.NoError(t, err, words)
	require.True(t, cmd.HasParent(), words)
	require.NoError(t, cmd.ParseFlags(rest), words)
	require.NoError(t, cmd.ValidateArgs(cmd.Flags().Args()), words)
	return cmd
}

// The commands of the files for containers are ones of this program, and fit each other.
func TestDeploy_Commands(t *testing.T) {
	d := readDeployed(t)
	parsed(t, d.health[1:])
	ours := 0
	for name, s := range d.Services {
		for _, x := range s.Secrets {
			require.Contains(t, d.Secrets, x, name)
		}
		for other, c := range s.DependsOn {
			require.Equal(t, "service_healthy", c.Condition)
			require.NotEmpty(t, d.Services[other].Healthcheck.Test, "%s waits for %s", name, other)
		}
		if s.Image != "kvist" {
			continue
		}
		ours++
		cmd := parsed(t, s.Command)
		listens := "addr"
		if cmd.Name() == "store" {
			listens = "listen"
		}
		_, port, _ := strings.Cut(cmd.Flag(listens).Value.String(), ":")
		for _, p := range s.Ports {
			require.True(t, strings.HasPrefix(p, "127.0.0.1:") && strings.HasSuffix(p, ":"+port), "%s: %s listens on %s", name, p, port)
		}
		asks := d.health // of the image, unless the service has its own
		if len(s.Healthcheck.Test) > 0 {
			require.Equal(t, []string{"CMD", "/kvist"}, s.Healthcheck.Test[:2], "there is no shell")
			asks = s.Healthcheck.Test[1:]
		}
		health := parsed(t, asks[1:])
		at := "http://127.0.0.1:8080" // the default of the verb
		if health.Flags().NArg() > 0 {
			at = health.Flags().Arg(0)
		}
		require.True(t, strings.HasSuffix(at, ":"+port), "%s: health asks %s, the port is %s", name, at, port)
		for _, w := range append(s.Command, asks...) {
			if _, secret, ok := strings.Cut(w, "/run/secrets/"); ok {
				require.Contains(t, s.Secrets, secret, name)
			}
		}
		if drain := cmd.Flag("drain"); drain != nil {
			grace, err := time.ParseDuration(s.Grace)
			require.NoError(t, err)
			ends, err := time.ParseDuration(drain.Value.String())
			require.NoError(t, err)
			require.Greater(t, grace, ends, "answers end before the container is killed")
		}
		if store := cmd.Flag("store"); store != nil {
			host := regexp.MustCompile(`^redis://(\w+):`).FindStringSubmatch(store.Value.String())
			require.Contains(t, d.Services, host[1])
			require.Contains(t, s.DependsOn, host[1])
		}
	}
	require.Equal(t, 2, ours)
	mod, err := os.ReadFile("../../go.mod")
	require.NoError(t, err)
	least := regexp.MustCompile(`(?m)^go (1\.\d+)`).FindSubmatch(mod)
	require.GreaterOrEqual(t, d.base, string(least[1]))
}

// What the image leaves out is nothing that the binary is made of.
func TestDeploy_Ignored(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go")
	}
	p, err := os.ReadFile("deploy/Dockerfile.dockerignore")
	require.NoError(t, err)
	var ignored []*regexp.Regexp
	for _, line := range strings.Fields(regexp.MustCompile(`(?m)^#.*$`).ReplaceAllString(string(p), "")) {
		pattern := strings.NewReplacer(`\*\*/`, `(.*/)?`, `\*`, `[^/]*`).Replace(regexp.QuoteMeta(line))
		ignored = append(ignored, regexp.MustCompile(`^`+pattern+`(/|$)`))
	}
	list := exec.Command("go", "list", "-deps", "-tags", "nocuda", "-f", `{{if .Module}}{{if .Module.Main}}{{$d := .Dir}}`+
		`{{range .GoFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}{{range .SFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}`+
		`{{range .EmbedFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}{{end}}{{end}}`, "./cmd/kvist")
	list.Dir = "../.."
	list.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := list.Output()
	require.NoError(t, err)
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	files := strings.Fields(string(out))
	require.Greater(t, len(files), 300)
	for _, f := range files {
		rel, err := filepath.Rel(root, f)
		require.NoError(t, err)
		for _, i := range ignored {
			require.False(t, i.MatchString(filepath.ToSlash(rel)), "%s is left out by %s", rel, i)
		}
	}
}
