// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// program returns a command that runs this program: the test binary under the name that
// testscript gave a meaning.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("kvist")
	if err != nil {
		bin := filepath.Join(t.TempDir(), "kvist")
		out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput()
		if err != nil {
			t.Skipf("the program cannot be built here: %v: %s", err, out)
		}
		path = bin
	}
	return exec.Command(path, args...)
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// A full disk behind standard output is an error, not a success.
func TestFullDisk_StandardOutput(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("no /dev/full: %v", err)
	}
	defer full.Close()
	for _, args := range [][]string{
		{"compress", kvCapture, "-o", "-", "--backend", "cpu"}, {"inspect", kvCapture}, {"version"},
		{"doctor", "--json"},
		{"inspect", npyCapture, "--json"},
	} {
		var stderr bytes.Buffer
		require.Equal(t, exitFailed, run(context.Background(), args, nil, full, &stderr), "%v: %s",
			args, &stderr)
		require.Contains(t, stderr.String(), "no space left on device", "%v", args)
	}
	require.Equal(t, exitFailed, run(context.Background(), []string{"compress", npyCapture, "-o",
		"/dev/full", "--force"},
		nil, io.Discard, io.Discard), "a device is never replaced")
	st, err := os.Stat("/dev/full")
	require.NoError(t, err)
	require.NotZero(t, st.Mode()&os.ModeDevice)
}

// A full disk under the output leaves nothing behind.
func TestFullDisk_LeavesNoOutput(t *testing.T) {
	if _, err := exec.LookPath("mount"); err != nil || os.Geteuid() != 0 ||
		runtime.GOOS != "linux" {
		t.Skip("mounting a small tmpfs needs root on linux")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs",
		dir).CombinedOutput(); err != nil {
		t.Skipf("no small tmpfs here: %v: %s", err, out)
	}
	defer func() { _ = exec.Command("umount", dir).Run() }()
	var stderr bytes.Buffer
	args := []string{"compress", kvCapture, "-o", filepath.Join(dir, "out.kvist"), "--backend",
		"cpu"}
	require.Equal(t, exitFailed, run(context.Background(), args, nil, io.Discard, &stderr))
	require.Contains(t, stderr.String(), "no space left on device")
	require.Empty(t, names(t, dir))
}

// A cancelled context ends the work with one line, and nothing is left behind.
func TestInterrupt_RemovesTemporaryFiles(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var stderr bytes.Buffer
	for _, args := range [][]string{
		{"compress", kvCapture, "-o", filepath.Join(dir, "a.kvist"), "--backend", "cpu"},
		{"compress", "-", "-o", filepath.Join(dir, "b.kvist"), "--backend", "cpu"},
	} {
		stderr.Reset()
		r, w := io.Pipe() // a standard input that never ends
		require.Equal(t, exitInterrupted, run(ctx, args, r, io.Discard, &stderr))
		require.NoError(t, w.Close())
		require.Equal(t, "kvist: interrupted\n", stderr.String())
	}
	require.Empty(t, names(t, dir))
}

// Progress is for terminals only.
func TestProgress_OnTerminalsOnly(t *testing.T) {
	a := &app{console: &bytes.Buffer{}}
	say, clear := a.progress()
	require.Nil(t, say)
	clear()
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer f.Close()
	a.console = f
	say, _ = a.progress()
	require.Nil(t, say)
}

// Work that takes long gets a bar; short work does not.
func TestProgress_AfterASecond(t *testing.T) {
	var w bytes.Buffer
	b := &bars{w: &w, start: time.Now()}
	b.say("encoding", 1, 10)
	b.clear()
	require.Empty(t, w.String())
	b.start = time.Now().Add(-2 * progressAfter)
	b.say("encoding", 1, 10)
	b.say("encoding", 5, 10)
	b.say("verifying", 12, 10) // beyond its end
	b.clear()
	require.True(t, strings.Contains(w.String(), "encoding"), "%q", w.String())
}
