// SPDX-License-Identifier: Apache-2.0

package main

import (
	"debug/elf"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The binary is static as the Dockerfile builds it. As the user of the image, in a root folder with nothing beside it,
// it tests itself, and serves, and answers its health check, with the words of compose.yaml but for the addresses.
func TestDeploy_EmptyRoot(t *testing.T) {
	if !strings.Contains(os.Getenv("KVIST_REQUIRE"), "deploy") {
		t.Skip("builds the program anew: make check-deploy")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go")
	}
	d := readDeployed(t)
	root := t.TempDir()
	build := exec.Command("sh", "-c", strings.ReplaceAll(d.run, " /kvist ", " "+filepath.Join(root, "kvist")+" "))
	build.Dir, build.Env = "../..", append(os.Environ(), "TARGETARCH="+runtime.GOARCH)
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	f, err := elf.Open(filepath.Join(root, "kvist"))
	require.NoError(t, err)
	defer f.Close() //nolint:errcheck // it is only read
	for _, p := range f.Progs {
		require.NotContains(t, []elf.ProgType{elf.PT_INTERP, elf.PT_DYNAMIC}, p.Type, "it is static")
	}
	info, err := os.Stat(filepath.Join(root, "kvist"))
	require.NoError(t, err)
	t.Logf("%.1f MB", float64(info.Size())/1e6)
	page, err := os.ReadFile("deploy/README.md")
	require.NoError(t, err)
	said := regexp.MustCompile(`\| ` + runtime.GOARCH + `, as the image has it \| ([0-9.]+) MB`).FindSubmatch(page)
	require.NotNil(t, said)
	size, err := strconv.ParseFloat(string(said[1]), 64)
	require.NoError(t, err)
	require.InEpsilon(t, size*1e6, float64(info.Size()), 0.1, "what the README says")
	if os.Geteuid() != 0 {
		t.Skip("only root can change the root folder")
	}

	for dir := root; len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755)) // the user of the image goes through them
	}
	for _, dir := range []string{"models", "run/secrets", "shared"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	require.NoError(t, os.Chown(filepath.Join(root, "shared"), 65532, 65532))
	weights, err := os.ReadFile(tinyModel(t))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(root, "models/model.gguf"), weights, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(root, "run/secrets/keys"), []byte("abc\n"), 0o644))
	inside := func(words ...string) *exec.Cmd {
		cmd := exec.Command("/kvist", words...)
		cmd.Dir, cmd.Env = "/", []string{}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
		return cmd
	}
	out, err = inside("doctor").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Regexp(t, `self-test: (\d+) of (\d+) checks pass`, string(out))
	require.Contains(t, string(out), "this build has no CUDA backend (tag nocuda)")

	words := d.Services["server"].Command
	for i, w := range words {
		w = strings.Replace(w, "0.0.0.0:8080", "127.0.0.1:0", 1)
		words[i] = regexp.MustCompile(`redis://.*`).ReplaceAllString(w, "file:///shared/store")
	}
	server := inside(words...)
	var errs lockedBuffer
	server.Stderr = &errs
	require.NoError(t, server.Start())
	t.Cleanup(func() { _ = server.Process.Kill() }) // where the test failed
	require.Eventually(t, func() bool { return listening.MatchString(errs.String()) }, 20*time.Second, time.Millisecond, "%s", &errs)
	url := listening.FindStringSubmatch(errs.String())[1]
	ask := func() string {
		req, err := http.NewRequest("POST", url+"/v1/completions", strings.NewReader(`{"prompt":"hi","max_tokens":3}`))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer abc")
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer res.Body.Close() //nolint:errcheck // it was read
		said, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return string(said)
	}
	require.Contains(t, ask(), `"finish_reason"`)
	health := append(d.health[1:], url)
	out, err = inside(health...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	http.DefaultClient.CloseIdleConnections()
	require.NoError(t, server.Process.Signal(syscall.SIGTERM))
	require.NoError(t, server.Wait(), "it ends as it was told to: %s", &errs)
	require.Error(t, inside(health...).Run())
}
