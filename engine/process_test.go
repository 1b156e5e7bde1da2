// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
)

var otherIn = flag.String("other", "", "folder that TestOtherProcess works in; set by TestAnotherProcess")

// What one process saves and parks, another one loads, resumes and finds by its tokens, and both go on alike to
// the last bit.
func TestAnotherProcess(t *testing.T) {
	if *otherIn != "" {
		t.Skip("this is the other process")
	}
	dir := t.TempDir()
	disk, err := store.OpenDisk(filepath.Join(dir, "store"), store.DiskOptions{})
	require.NoError(t, err)
	cfg := testConfig()
	cfg.Store = disk
	r := newRig(t, testGeometry(), cfg)
	s, err := r.c.MatchPrefix([]byte("salt"), nil)
	require.NoError(t, err)
	r.with(s, 1, 300)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "saved"), saved(t, s), 0o600))
	f, err := s.Fork()
	require.NoError(t, err)
	id, err := f.Park(context.Background(), []byte("salt"), never)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "id"), id[:], 0o600))
	require.NoError(t, disk.Close())
	want := outputs(r.step(s, 1, 20, 20))
	r.closeAll()
	out, err := exec.Command(os.Args[0], "-test.run", "^TestOtherProcess$", "-other", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, name := range []string{"loaded", "resumed", "recalled"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), name)
	}
}

// outputs returns the bytes of outputs.
func outputs(outs [][]float32) (p []byte) {
	for _, out := range outs {
		for _, v := range out {
			p = binary.LittleEndian.AppendUint32(p, math.Float32bits(v))
		}
	}
	return p
}

// TestOtherProcess is what TestAnotherProcess runs.
func TestOtherProcess(t *testing.T) {
	if *otherIn == "" {
		t.Skip("run by TestAnotherProcess")
	}
	disk, err := store.OpenDisk(filepath.Join(*otherIn, "store"), store.DiskOptions{})
	require.NoError(t, err)
	defer disk.Close()
	cfg := testConfig()
	cfg.Store = disk
	r := newRig(t, testGeometry(), cfg)
	write := func(name string, s *Sequence, err error) {
		require.NoError(t, err)
		if s.Len() < 300 {
			r.with(s, 1, 300) // what the store does not have is computed
		}
		require.NoError(t, os.WriteFile(filepath.Join(*otherIn, name), outputs(r.step(s, 1, 20, 20)), 0o600))
	}
	file, err := os.ReadFile(filepath.Join(*otherIn, "saved"))
	require.NoError(t, err)
	s, err := r.load(file)
	write("loaded", s, err)
	id, err := os.ReadFile(filepath.Join(*otherIn, "id"))
	require.NoError(t, err)
	s, err = r.c.RecallPrefix(context.Background(), []byte("salt"), ids(1, 0, 300))
	require.NoError(t, err)
	require.EqualValues(t, 256, s.Len())
	write("recalled", s, nil)
	s, err = r.c.Resume(context.Background(), []byte("salt"), store.Key(id))
	write("resumed", s, err)
	r.closeAll()
}
