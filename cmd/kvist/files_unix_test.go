// SPDX-License-Identifier: Apache-2.0

//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// quick runs a command line in this process and requires its exit status.
func quick(t *testing.T, want int, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	require.Equal(t, want, run(context.Background(), args, nil, io.Discard, &stderr), "%v: %s", args,
		&stderr)
	return stderr.String()
}

// Thirty processes are killed at random times while they write. The output is whole or not there,
// and the next run leaves no other file, neither in its folder nor among the temporary files.
func TestKill_LeavesNothingAfterTheNextRun(t *testing.T) {
	src := filepath.Join(t.TempDir(), "in.kvist")
	quick(t, 0, "compress", kvCapture, "-o", src, "--coding", "u8", "--backend", "cpu")
	dir, tmp := t.TempDir(), t.TempDir()
	out, want := filepath.Join(dir, "out.safetensors"), filepath.Join(dir, "want.safetensors")
	start := time.Now()
	args := []string{"decompress", src, "-o", out, "--force"}
	decompress := func(args ...string) *exec.Cmd {
		cmd := program(t, args...)
		cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
		return cmd
	}
	require.NoError(t, decompress("decompress", src, "-o", want).Run())
	takes := time.Since(start)
	whole, err := os.ReadFile(want)
	require.NoError(t, err)
	killed := 0
	for i := range 30 {
		cmd := decompress(args...)
		if i%3 == 2 { // standard output goes through a temporary file
			cmd = decompress("decompress", src, "-o", "-")
		}
		require.NoError(t, cmd.Start())
		time.Sleep(rand.N(takes))
		require.NoError(t, cmd.Process.Kill())
		var exit *exec.ExitError
		if errors.As(cmd.Wait(), &exit) && exit.ExitCode() == -1 {
			killed++
		}
		if b, err := os.ReadFile(out); err == nil {
			require.True(t, bytes.Equal(whole, b), "an output that is not whole")
			require.NoError(t, os.Remove(out))
		}
	}
	require.NotZero(t, killed, "the program was always done before it could be killed")
	require.NoError(t, decompress(args...).Run())
	require.NoError(t, decompress("decompress", src, "-o", "-").Run())
	require.Equal(t, []string{"out.safetensors", "want.safetensors"}, names(t, dir))
	require.Empty(t, names(t, tmp))
}

// What a killed process left where files have names is removed by the next run, and only that.
func TestSweep_NextRun(t *testing.T) {
	dir, tmp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	for _, d := range []string{dir, tmp} {
		require.NoError(t, os.WriteFile(filepath.Join(d, ".kvist-0123456789abcdef.tmp"), nil, 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(d, ".other.tmp"), nil, 0o600))
	}
	live, err := os.Create(filepath.Join(dir, ".kvist-00000000000000ff.tmp"))
	require.NoError(t, err)
	defer live.Close()
	require.NoError(t, syscall.Flock(int(live.Fd()), syscall.LOCK_EX))
	args := []string{"compress", npyCapture, "--coding", "rows=lm1", "--backend", "cpu", "-o"}
	quick(t, 0, append(args, filepath.Join(dir, "a.kvist"))...)
	quick(t, 0, append(args, "-")...)
	require.Equal(t, []string{".kvist-00000000000000ff.tmp", ".other.tmp", "a.kvist"}, names(t, dir))
	require.Equal(t, []string{".other.tmp"}, names(t, tmp))
}

// Caches hold conversations: the umask counts, and a file that is replaced keeps its mode.
func TestModes(t *testing.T) {
	dir := t.TempDir()
	for i, x := range []struct {
		umask int
		old   fs.FileMode // 0: none
		want  fs.FileMode
	}{{0o077, 0, 0o600}, {0o022, 0, 0o644}, {0o027, 0, 0o640}, {0o022, 0o600, 0o600},
		{0o077, 0o664, 0o664}} {
		out := filepath.Join(dir, fmt.Sprint(i, ".kvist"))
		if x.old != 0 {
			require.NoError(t, os.WriteFile(out, nil, x.old))
			require.NoError(t, os.Chmod(out, x.old))
		}
		old := syscall.Umask(x.umask)
		quick(t, 0, "compress", npyCapture, "--coding", "rows=lm1", "--backend", "cpu", "--force",
			"-o", out)
		syscall.Umask(old)
		st, err := os.Stat(out)
		require.NoError(t, err)
		require.Equal(t, x.want, st.Mode(), "umask %o, old mode %o", x.umask, x.old)
	}
}

// Names of outputs may be as long as the file system takes.
func TestLongNames(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []int{237, 246, 255} {
		out := filepath.Join(dir, strings.Repeat("n", n))
		args := []string{"compress", npyCapture, "--coding", "rows=lm1", "--backend", "cpu", "-o", out}
		quick(t, 0, args...)
		quick(t, 0, append(args, "--force")...)
		quick(t, 0, "verify", out)
		require.NoError(t, os.Remove(out))
	}
	require.Contains(t, quick(t, exitFailed, "compress", "none.npy", "-o",
		filepath.Join(dir, strings.Repeat("n", 256))), "file name too long")
	require.Empty(t, names(t, dir))
}

// waiting starts the program with an input that never comes, and waits until it reads it.
func waiting(t *testing.T, dir string, args ...string) (cmd *exec.Cmd, stderr *bytes.Buffer) {
	t.Helper()
	cmd, stderr = program(t, args...), &bytes.Buffer{}
	cmd.Stderr = stderr
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // where a test failed; it has ended otherwise
		_ = stdin.Close()
	})
	// The pipe is read once it takes more than it holds.
	_, err = stdin.Write(make([]byte, 1<<20))
	require.NoError(t, err)
	require.Empty(t, names(t, dir))
	return cmd, stderr
}

// A signal ends the work with its own exit status, and leaves nothing.
func TestSignals(t *testing.T) {
	for _, x := range []struct {
		signal syscall.Signal
		status int
	}{{syscall.SIGINT, 130}, {syscall.SIGTERM, 143}, {syscall.SIGHUP, 143}} {
		if signal.Ignored(x.signal) {
			continue // the tests run under nohup, and so would the command
		}
		dir := t.TempDir()
		cmd, stderr := waiting(t, dir, "compress", "-", "-o", filepath.Join(dir, "out.kvist"))
		start := time.Now()
		require.NoError(t, cmd.Process.Signal(x.signal))
		var exit *exec.ExitError
		require.ErrorAs(t, cmd.Wait(), &exit)
		require.Equal(t, x.status, exit.ExitCode(), "%v", x.signal)
		require.Less(t, time.Since(start), windDown)
		require.Equal(t, "kvist: interrupted\n", stderr.String())
		require.Empty(t, names(t, dir))
	}
}

// A SIGHUP that the process was started to ignore, as under nohup, is ignored.
func TestSignals_Ignored(t *testing.T) {
	kvist := program(t)
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("no shell to ignore a signal with")
	}
	cmd := exec.Command("sh", "-c", `trap "" HUP; exec "$0" compress - -o -`, kvist.Path)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = stdin.Write(make([]byte, 1<<20))
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
	_, err = stdin.Write(make([]byte, 1<<20))
	require.NoError(t, err)
	require.NoError(t, stdin.Close())
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	require.Equal(t, exitFailed, exit.ExitCode(), "it read its input to the end")
	require.Contains(t, stderr.String(), "not supported: a file that starts with 00")
}

// stubborn sends this process signals, and returns the context and the exit status that they lead
// to where the work does not end by itself.
func stubborn(t *testing.T, signals ...syscall.Signal) (context.Context, int, time.Duration) {
	t.Helper()
	exits := make(chan int, 8)
	ctx, stop := untilSignal(context.Background(), func(status int) { exits <- status })
	defer stop()
	start := time.Now()
	for i, s := range signals {
		require.NoError(t, syscall.Kill(syscall.Getpid(), s))
		if i == 0 {
			<-ctx.Done()
		}
	}
	return ctx, <-exits, time.Since(start)
}

// A second signal ends the process at once; without one, work that does not wind down is ended.
func TestSignals_Twice(t *testing.T) {
	ctx, status, took := stubborn(t, syscall.SIGINT, syscall.SIGINT)
	require.Equal(t, exitInterrupted, status)
	require.Less(t, took, windDown/2)
	require.Equal(t, exitInterrupted, interruptStatus(ctx))
	ctx, status, took = stubborn(t, syscall.SIGTERM, syscall.SIGINT)
	require.Equal(t, exitInterrupted, status)
	require.Less(t, took, windDown/2)
	require.Equal(t, exitTerminated, interruptStatus(ctx))
	if signal.Ignored(syscall.SIGHUP) {
		return // the tests run under nohup
	}
	ctx, status, took = stubborn(t, syscall.SIGHUP, syscall.SIGHUP)
	require.Equal(t, exitTerminated, status)
	require.GreaterOrEqual(t, took, windDown, "a terminal that closes sends more than one")
	require.Equal(t, exitTerminated, interruptStatus(ctx))
}

// The first interrupt ends a verb whose output nobody reads.
func TestSignals_BlockedOutput(t *testing.T) {
	src := filepath.Join(t.TempDir(), "in.kvist")
	quick(t, 0, "compress", npyCapture, "-o", src, "--coding", "rows=lm1", "--backend", "cpu")
	cmd := program(t, "decompress", src, "-o", "-")
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.ReadFull(stdout, make([]byte, 10)) // it has begun to write
	require.NoError(t, err)
	time.Sleep(50 * time.Millisecond) // and the pipe is full
	start := time.Now()
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	state, err := cmd.Process.Wait()
	require.NoError(t, err)
	require.Equal(t, exitInterrupted, state.ExitCode())
	require.Less(t, time.Since(start), windDown+2*time.Second)
}
