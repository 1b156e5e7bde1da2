// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/kvist-project/kvist/quant"
)

// makeRoom makes need more bytes fit beside the reserve of one file, by forgetting what has expired and by
// compaction.
func (d *Disk) makeRoom(need int64) error {
	if d.o.MaxBytes == 0 {
		return d.tidy()
	}
	most := d.o.MaxBytes - d.o.FileBytes - fileHeader
	fits := func() bool { return d.total+need <= most }
	if fits() {
		return nil
	}
	for k := range d.at {
		d.find(k)
	}
	for tries := len(d.files) + 1; tries > 0 && !fits() && d.live+need <= most; tries-- {
		if err := d.compact(); err != nil {
			return err
		}
	}
	if !fits() {
		return fmt.Errorf("%d bytes beside %d of %d: %w", need, d.live, d.o.MaxBytes, quant.ErrFull)
	}
	return nil
}

// tidy compacts a file where more bytes are dead than alive.
func (d *Disk) tidy() error {
	if dead := d.total - d.live; dead > d.live && dead > 2*d.o.FileBytes {
		return d.compact()
	}
	return nil
}

// Sweep is that of Sweeper: it forgets what has expired, and compacts one file after the other where more bytes are dead
// than alive. Other calls wait for one file at most.
func (d *Disk) Sweep(ctx context.Context) error {
	for first := true; ; first = false {
		more, err := d.sweepOnce(ctx, first)
		if err != nil || !more {
			return wrap("sweep", Key{}, err)
		}
	}
}

func (d *Disk) sweepOnce(ctx context.Context, forget bool) (more bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return false, err
	}
	if forget {
		for k := range d.at {
			d.find(k)
		}
	}
	before := d.stats.Compacted
	err = d.tidy()
	return d.stats.Compacted > before, err
}

// compact moves what is alive in the oldest file to the end and removes the file. Deletions in the
// oldest file have nothing left to delete.
func (d *Disk) compact() error {
	if len(d.files) == 0 {
		return nil
	}
	old := d.files[0]
	if len(d.files) == 1 {
		if err := d.addFile(); err != nil {
			return err
		}
	}
	for k, e := range d.at {
		if e.file != old {
			continue
		}
		if d.expired(e) {
			d.remove(k)
			continue
		}
		data, err := d.read(e)
		if errors.Is(err, quant.ErrCorrupt) {
			d.stats.LostBytes += entrySize(e.n)
			d.remove(k)
			continue
		}
		if err != nil {
			return at(old, e.off, err)
		}
		moved, err := d.append(kindPut, k, data, e.expires, false)
		if err != nil {
			return err
		}
		d.put(k, moved)
	}
	last := d.files[len(d.files)-1]
	if last.unsynced {
		if err := last.f.Sync(); err != nil {
			last.broken = true
			return at(last, 0, err)
		}
		last.unsynced = false
	}
	return d.drop(old)
}

// drop removes the oldest file, of which nothing is alive. Its removal is durable before the next one: a
// deletion in a younger file must not go before what it deletes.
func (d *Disk) drop(old *logFile) error {
	if !old.removed {
		old.removed = true
		if err := old.f.Close(); err != nil {
			return at(old, 0, err)
		}
	}
	if err := d.fs.Remove(old.name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return at(old, 0, err)
	}
	if err := d.fs.Sync(); err != nil {
		return at(old, 0, err)
	}
	d.files = d.files[1:]
	d.total -= old.size
	d.stats.Compacted++
	return nil
}

// Scrub is that of Scrubber. What writes that failed have left is not overwritten: compaction removes it. What a
// medium keeps of bytes that are overwritten is the medium's affair.
func (d *Disk) Scrub(ctx context.Context) error {
	const call = "scrub"
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return wrap(call, Key{}, err)
	}
	for k := range d.at {
		d.find(k)
	}
	if n := len(d.files); n > 0 && d.files[n-1].unsynced { // what is wiped must be deleted for good
		last := d.files[n-1]
		if err := last.f.Sync(); err != nil {
			last.broken = true
			return wrap(call, Key{}, at(last, 0, err))
		}
		last.unsynced = false
	}
	zeros := make([]byte, 64<<10)
	for _, f := range d.files {
		if len(f.dead) == 0 || f.removed {
			continue
		}
		for len(f.dead) > 0 {
			last := len(f.dead) - 1
			if err := f.wipe(f.dead[last], zeros); err != nil {
				return wrap(call, Key{}, at(f, f.dead[last].off, err))
			}
			f.dead = f.dead[:last]
			if err := ctx.Err(); err != nil {
				return wrap(call, Key{}, err)
			}
		}
		if err := f.f.Sync(); err != nil {
			return wrap(call, Key{}, at(f, 0, err))
		}
	}
	return nil
}

// wipe overwrites the bytes of an entry, then its header: torn in between, it is a damaged entry that nobody
// asks for.
func (f *logFile) wipe(e entry, zeros []byte) error {
	for at := int64(0); at < e.n; at += int64(len(zeros)) {
		n := min(int64(len(zeros)), e.n-at)
		if _, err := f.f.WriteAt(zeros[:n], e.off+entryHeader+at); err != nil {
			return err
		}
	}
	var h [entryHeader]byte
	e.crc, e.expires = 0, 0
	e.header(h[:], kindWiped, Key{})
	_, err := f.f.WriteAt(h[:], e.off)
	return err
}
