// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/storetest"
	"github.com/kvist-project/kvist/quant"
)

var never time.Time

func TestDisk(t *testing.T) {
	for name, policy := range map[string]store.SyncPolicy{"put": store.SyncPut, "close": store.SyncClose} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, now func() time.Time, most int64) store.Store {
				d, err := store.OpenDisk("", store.DiskOptions{MaxBytes: most, Now: now, Sync: policy,
					FS: storetest.NewFolder()})
				require.NoError(t, err)
				return d
			})
		})
	}
}

// A folder of the system belongs to one Disk, and holds what was put when it is opened again.
func TestDisk_Folder(t *testing.T) {
	dir, ctx := filepath.Join(t.TempDir(), "new"), context.Background()
	d, err := store.OpenDisk(dir, store.DiskOptions{FileBytes: 8192})
	require.NoError(t, err)
	_, err = store.OpenDisk(dir, store.DiskOptions{})
	require.ErrorContains(t, err, "in use")
	for i := range 20 {
		require.NoError(t, d.Put(ctx, storetest.KeyOf(i), storetest.Bytes(i, 700*i%5000), never))
	}
	require.Greater(t, d.Stats().Files, 2)
	require.NoError(t, d.Delete(ctx, storetest.KeyOf(3)))
	require.NoError(t, d.Close())
	d, err = store.OpenDisk(dir, store.DiskOptions{FileBytes: 8192})
	require.NoError(t, err)
	require.Zero(t, d.Stats().LostBytes)
	require.Equal(t, 19, d.Stats().Entries)
	for i := range 20 {
		got, err := d.Get(ctx, storetest.KeyOf(i))
		if i == 3 {
			require.ErrorIs(t, err, fs.ErrNotExist)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, storetest.Bytes(i, 700*i%5000), got)
	}
	require.NoError(t, d.Close())
	info, err := os.Stat(filepath.Join(dir, "0000000000000001.kvlog"))
	require.NoError(t, err)
	require.Zero(t, info.Mode()&0o077, "what a model remembers is private")
}

func TestDisk_Options(t *testing.T) {
	for _, o := range []store.DiskOptions{{FileBytes: 1}, {MaxBytes: -1}, {MaxBytes: 1 << 20, FileBytes: 1 << 20},
		{Sync: 9}} {
		o.FS = storetest.NewFolder()
		_, err := store.OpenDisk("", o)
		require.ErrorIs(t, err, quant.ErrShape, "%+v", o)
	}
}

// world runs a history of calls and knows what must be there after each.
type world struct {
	t    *testing.T
	d    *store.Disk
	rng  *rand.Rand
	sure map[int]bool // keys that are there for sure; absent ones may be there in part of the cases
	gone map[int]bool // keys that are not there for sure
}

func size(i int) int { return i * 37 % 900 }

// play makes n calls, or ends at the first call that fails.
func (w *world) play(n int) error {
	ctx := context.Background()
	for range n {
		if w.rng.IntN(12) == 0 {
			if err := w.d.Scrub(ctx); err != nil {
				return err
			}
		}
		i := w.rng.IntN(30)
		if w.rng.IntN(3) > 0 {
			delete(w.gone, i)
			if err := w.d.Put(ctx, storetest.KeyOf(i), storetest.Bytes(i, size(i)), never); err != nil {
				return err
			}
			w.sure[i] = true
			continue
		}
		delete(w.sure, i)
		if err := w.d.Delete(ctx, storetest.KeyOf(i)); err != nil {
			return err
		}
		w.gone[i] = true
	}
	return nil
}

// check requires that nothing is lost and nothing wrong is served.
func (w *world) check() {
	w.t.Helper()
	for i := range 30 {
		got, err := w.d.Get(context.Background(), storetest.KeyOf(i))
		switch {
		case err == nil:
			require.Equal(w.t, storetest.Bytes(i, size(i)), got)
			require.False(w.t, w.gone[i], "key %d was deleted", i)
		case errors.Is(err, fs.ErrNotExist):
			require.False(w.t, w.sure[i], "key %d is lost", i)
		default:
			w.t.Fatal(err)
		}
	}
}

// The machine stops at any byte, and what was not durable is there in any part: what Put and Delete have
// reported holds, and nothing wrong is served.
func TestDisk_CrashAtAnyByte(t *testing.T) {
	o := store.DiskOptions{FileBytes: 4096, MaxBytes: 40000}
	whole := storetest.NewFolder()
	run := func(f *storetest.Folder, seed uint64) (*world, error) {
		o := o
		o.FS = f
		d, err := store.OpenDisk("", o)
		require.NoError(t, err)
		w := &world{t, d, rand.New(rand.NewPCG(seed, 2)), map[int]bool{}, map[int]bool{}}
		return w, w.play(150)
	}
	w, err := run(whole, 0)
	require.NoError(t, err)
	require.NotZero(t, w.d.Stats().Compacted)
	w.check()
	step := int64(23)
	if testing.Short() {
		step = 211
	}
	crashes := 0
	for n := int64(0); n < 60000; n += step {
		f := storetest.NewFolder()
		f.Set(storetest.Plan{Crash: n})
		w, err := run(f, uint64(n))
		if !f.Crashed() {
			require.NoError(t, err)
			continue
		}
		crashes++
		var rng *rand.Rand
		if n%2 == 0 {
			rng = w.rng
		}
		f.Restart(rng)
		o := o
		o.FS = f
		w.d, err = store.OpenDisk("", o)
		require.NoError(t, err)
		w.check()
		require.NoError(t, w.play(40), "it goes on")
		w.check()
		require.LessOrEqual(t, f.Bytes(), o.MaxBytes)
		require.NoError(t, w.d.Close())
	}
	require.Greater(t, crashes, 100/int(step/20))
}

// Every operation of the file system fails in turn: the call says so, nothing that was there is lost, and the
// store goes on.
func TestDisk_EveryOperationFails(t *testing.T) {
	for _, plan := range []storetest.Plan{{Err: syscall.ENOSPC, Short: true}, {Err: syscall.EIO}} {
		for n := 1; n < 700; n += 3 {
			f := storetest.NewFolder()
			o := store.DiskOptions{FileBytes: 4096, MaxBytes: 40000, FS: f}
			d, err := store.OpenDisk("", o)
			require.NoError(t, err)
			plan.Fail, plan.Crash = n, -1
			f.Set(plan)
			w := &world{t, d, rand.New(rand.NewPCG(uint64(n), 3)), map[int]bool{}, map[int]bool{}}
			for range 3 {
				if err := w.play(50); err != nil {
					require.ErrorIs(t, err, plan.Err)
					if plan.Err == syscall.ENOSPC {
						require.ErrorIs(t, err, quant.ErrFull)
					}
				}
				f.Set(storetest.Plan{Crash: -1})
				w.check()
			}
			require.NoError(t, d.Close())
			w.d, err = store.OpenDisk("", o)
			require.NoError(t, err)
			w.check()
			require.NoError(t, w.d.Close())
		}
	}
}

// What has expired is removed, and its files go; what has not stays.
func TestDisk_Sweep(t *testing.T) {
	clock, ctx := storetest.NewClock(), context.Background()
	d, err := store.OpenDisk("", store.DiskOptions{FileBytes: 8192, Now: clock.Now, FS: storetest.NewFolder()})
	require.NoError(t, err)
	for i := range 100 {
		expires := clock.Now().Add(time.Hour)
		if i%10 == 0 {
			expires = never
		}
		require.NoError(t, d.Put(ctx, storetest.KeyOf(i), storetest.Bytes(i, 2000), expires))
	}
	full := d.Stats().TotalBytes
	require.NoError(t, d.Sweep(ctx))
	require.Equal(t, full, d.Stats().TotalBytes)
	clock.Advance(2 * time.Hour)
	require.NoError(t, d.Sweep(ctx))
	require.Equal(t, 10, d.Stats().Entries)
	require.Less(t, d.Stats().TotalBytes, full/3)
	for i := 0; i < 100; i += 10 {
		got, err := d.Get(ctx, storetest.KeyOf(i))
		require.NoError(t, err)
		require.Equal(t, storetest.Bytes(i, 2000), got)
	}
	require.NoError(t, d.Close())
	require.ErrorIs(t, d.Sweep(ctx), quant.ErrClosed)
}

// What was deleted or replaced is nowhere in the files after Scrub, also if the store was opened in between, and
// what was not is all there.
func TestDisk_Scrub(t *testing.T) {
	ctx := context.Background()
	for _, again := range []bool{false, true} {
		dir := t.TempDir()
		o := store.DiskOptions{FileBytes: 1 << 15}
		d, err := store.OpenDisk(dir, o)
		require.NoError(t, err)
		for i := range 20 {
			require.NoError(t, d.Put(ctx, storetest.KeyOf(i), storetest.Bytes(i, 2000), never))
		}
		for i := 0; i < 20; i += 3 {
			require.NoError(t, d.Delete(ctx, storetest.KeyOf(i)))
		}
		if again {
			require.NoError(t, d.Close())
			d, err = store.OpenDisk(dir, o)
			require.NoError(t, err)
		}
		holds := func(i int) bool {
			names, err := filepath.Glob(filepath.Join(dir, "*.kvlog"))
			require.NoError(t, err)
			for _, name := range names {
				p, err := os.ReadFile(name)
				require.NoError(t, err)
				if b := storetest.Bytes(i, 2000); bytes.Contains(p, b[:64]) || bytes.Contains(p, b[len(b)-64:]) {
					return true
				}
			}
			return false
		}
		require.True(t, holds(3), "deleting alone leaves bytes")
		require.NoError(t, d.Scrub(ctx))
		for i := range 20 {
			require.Equal(t, i%3 != 0, holds(i), i)
		}
		require.NoError(t, d.Scrub(ctx))
		require.NoError(t, d.Close())
		d, err = store.OpenDisk(dir, o)
		require.NoError(t, err)
		require.Zero(t, d.Stats().LostBytes)
		require.Equal(t, 13, d.Stats().Entries)
		require.NoError(t, d.Close())
		require.ErrorIs(t, d.Scrub(ctx), quant.ErrClosed)
	}
}

// A flipped bit loses the entry that it is in, is never served, and what is put again is whole.
func TestDisk_Corruption(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 4))
		f := storetest.NewFolder()
		o := store.DiskOptions{FileBytes: 4096, FS: f}
		d, err := store.OpenDisk("", o)
		require.NoError(t, err)
		for i := range 20 {
			require.NoError(t, d.Put(ctx, storetest.KeyOf(i), storetest.Bytes(i, size(i)), never))
		}
		if seed%2 == 0 {
			require.NoError(t, d.Close())
		}
		f.Corrupt(rng)
		if seed%2 == 0 {
			d, err = store.OpenDisk("", o)
			require.NoError(t, err)
		}
		files, bad := d.Stats().Files, 0
		for i := range 20 {
			got, err := d.Get(ctx, storetest.KeyOf(i))
			if err != nil {
				require.True(t, errors.Is(err, quant.ErrCorrupt) || errors.Is(err, fs.ErrNotExist), err)
				if errors.Is(err, quant.ErrCorrupt) {
					require.ErrorContains(t, err, ".kvlog:")
				}
				bad++
				require.NoError(t, d.Put(ctx, storetest.KeyOf(i), storetest.Bytes(i, size(i)), never))
				got, err = d.Get(ctx, storetest.KeyOf(i))
				require.NoError(t, err)
			}
			require.Equal(t, storetest.Bytes(i, size(i)), got)
		}
		require.LessOrEqual(t, bad, files)
		require.NoError(t, d.Close())
	}
}

// Files of a later version are refused, not read and not removed.
func TestDisk_OtherVersion(t *testing.T) {
	dir := t.TempDir()
	d, err := store.OpenDisk(dir, store.DiskOptions{})
	require.NoError(t, err)
	require.NoError(t, d.Put(context.Background(), storetest.KeyOf(1), []byte("x"), never))
	require.NoError(t, d.Close())
	name := filepath.Join(dir, "0000000000000001.kvlog")
	p, err := os.ReadFile(name)
	require.NoError(t, err)
	copy(p[8:16], []byte{2, 0, 0, 0, 0xf5, 0x0a, 0x3f, 0x4d})
	copy(p[12:16], store.CRC(p[:12]))
	require.NoError(t, os.WriteFile(name, p, 0o600))
	_, err = store.OpenDisk(dir, store.DiskOptions{})
	require.ErrorIs(t, err, quant.ErrVersion)
	require.ErrorContains(t, err, "version 2")
}
