// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/kvist-project/kvist/engine/store/internal/expiry"
	"github.com/kvist-project/kvist/quant"
)

// SyncPolicy says when bytes are made durable.
type SyncPolicy uint8

// The policies.
const (
	SyncPut   SyncPolicy = iota // before Put and Delete return
	SyncClose                   // when a file is full, before a file is removed, and in Close
)

// DiskOptions are those of OpenDisk. The zero value is usable.
type DiskOptions struct {
	// MaxBytes bounds the files together; 0: no limit. One file's worth of it is kept free for
	// compaction.
	MaxBytes int64
	// FileBytes bounds a file, and so what can be put. Default 256 MiB, at most an eighth of MaxBytes.
	FileBytes int64
	Sync      SyncPolicy
	Now       func() time.Time // nil: time.Now
	FS        FS               // in the place of the folder
}

const (
	defaultFileBytes = 256 << 20
	leastFileBytes   = 1 << 12
)

// Disk is a Store in a folder. See the package comment for its files.
type Disk struct {
	fs   FS
	o    DiskOptions
	lock io.Closer

	mu     sync.RWMutex
	files  []*logFile // by number; the last one is appended to
	at     map[Key]entry
	doubt  map[Key]bool // keys of which an entry may be on disk that was not reported
	total  int64        // bytes of all files
	live   int64        // of them, entries that can be found
	stats  DiskStats
	closed bool
}

// entry is where the bytes of a key are.
type entry struct {
	file    *logFile
	off     int64
	n       int64
	expires int64
	crc     uint32
}

// DiskStats describe a Disk.
type DiskStats struct {
	Files      int
	TotalBytes int64 // of all files
	LiveBytes  int64 // of entries that can be found
	Entries    int
	LostBytes  int64  // that were skipped because they are damaged or torn, since it was opened
	Compacted  uint64 // files
}

// OpenDisk opens or makes a store in a folder.
//
// Errors: quant.ErrShape for options that make no sense; quant.ErrVersion for files of another version;
// those of the file system. Damage in the files is no error: see DiskStats.
func OpenDisk(dir string, o DiskOptions) (*Disk, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.FS == nil {
		o.FS = folder(dir)
	}
	if o.FileBytes == 0 {
		o.FileBytes = defaultFileBytes
		if o.MaxBytes > 0 {
			o.FileBytes = max(leastFileBytes, min(o.FileBytes, o.MaxBytes/8))
		}
	}
	if o.FileBytes < leastFileBytes || o.MaxBytes < 0 || o.MaxBytes > 0 && o.FileBytes > o.MaxBytes/4 ||
		o.Sync > SyncClose {
		return nil, wrap("open", Key{}, fmt.Errorf("files of %d bytes, %d together, sync policy %d: %w", o.FileBytes,
			o.MaxBytes, o.Sync, quant.ErrShape))
	}
	d := &Disk{fs: o.FS, o: o, at: map[Key]entry{}, doubt: map[Key]bool{}}
	var err error
	if d.lock, err = d.fs.Lock(); err != nil {
		return nil, wrap("open", Key{}, err)
	}
	if err := d.recover(); err != nil {
		_ = d.closeFiles()
		_ = d.lock.Close()
		return nil, wrap("open", Key{}, err)
	}
	return d, nil
}

// Put is that of Store.
func (d *Disk) Put(ctx context.Context, k Key, data []byte, expires time.Time) error {
	const call = "put"
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return wrap(call, k, err)
	}
	end := expiry.Nanos(expires)
	if e, ok := d.find(k); ok {
		have, err := d.read(e)
		switch {
		case err != nil && !errors.Is(err, quant.ErrCorrupt):
			return wrap(call, k, err)
		case err == nil && !bytes.Equal(have, data):
			return wrap(call, k, errOther)
		case err == nil && d.doubt[k]:
			end = expiry.Later(e.expires, end) // once more, behind what is in doubt
		case err == nil && expiry.Later(e.expires, end) == e.expires:
			return nil
		case err == nil:
			return wrap(call, k, d.extend(k, e, end))
		}
		// What is damaged is put again.
	}
	need := entrySize(int64(len(data)))
	if need > d.o.FileBytes-fileHeader {
		return wrap(call, k, fmt.Errorf("%d bytes, the most are %d: %w", len(data), d.o.FileBytes-fileHeader-entryHeader,
			quant.ErrTooLarge))
	}
	if err := d.makeRoom(need); err != nil {
		return wrap(call, k, err)
	}
	e, err := d.append(kindPut, k, data, end, d.o.Sync == SyncPut)
	if err != nil {
		return wrap(call, k, err)
	}
	d.put(k, e)
	return nil
}

// extend gives an entry a later expiry.
func (d *Disk) extend(k Key, e entry, end int64) error {
	if err := d.makeRoom(entryHeader); err != nil {
		return err
	}
	if _, err := d.append(kindExpiry, k, nil, expiry.Later(e.expires, end), d.o.Sync == SyncPut); err != nil {
		return err
	}
	e = d.at[k] // making room may have moved it
	e.expires = expiry.Later(e.expires, end)
	d.at[k] = e
	return nil
}

// Get is that of Store.
func (d *Disk) Get(ctx context.Context, k Key) ([]byte, error) {
	const call = "get"
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.usable(ctx); err != nil {
		return nil, wrap(call, k, err)
	}
	e, ok := d.at[k]
	if !ok || d.expired(e) {
		return nil, wrap(call, k, errAbsent)
	}
	data, err := d.read(e)
	if err != nil {
		return nil, &Error{Call: call, Key: k, File: e.file.name(), Offset: e.off, Err: err}
	}
	return data, nil
}

// Delete is that of Store.
func (d *Disk) Delete(ctx context.Context, k Key) error {
	const call = "delete"
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return wrap(call, k, err)
	}
	if _, ok := d.at[k]; !ok && !d.doubt[k] {
		return nil
	}
	if d.o.MaxBytes > 0 && d.total+entryHeader+fileHeader > d.o.MaxBytes {
		if err := d.compact(); err != nil {
			return wrap(call, k, err)
		}
	}
	if _, err := d.append(kindDelete, k, nil, 0, d.o.Sync == SyncPut); err != nil {
		return wrap(call, k, err)
	}
	d.remove(k)
	return wrap(call, k, d.tidy())
}

// List is that of Store.
func (d *Disk) List(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		infos, err := d.infos(ctx)
		if err != nil {
			yield(Info{}, wrap("list", Key{}, err))
			return
		}
		for _, x := range infos {
			if !yield(x, nil) {
				return
			}
		}
	}
}

func (d *Disk) infos(ctx context.Context) ([]Info, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.usable(ctx); err != nil {
		return nil, err
	}
	infos := make([]Info, 0, len(d.at))
	for k, e := range d.at {
		if !d.expired(e) {
			infos = append(infos, Info{k, e.n, expiry.Time(e.expires)})
		}
	}
	return infos, nil
}

// Stats returns the state of the store.
func (d *Disk) Stats() DiskStats {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s := d.stats
	s.Files, s.TotalBytes, s.LiveBytes, s.Entries = len(d.files), d.total, d.live, len(d.at)
	return s
}

// Close is that of Store.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	var err error
	if n := len(d.files); n > 0 && d.files[n-1].unsynced {
		err = d.files[n-1].f.Sync()
	}
	err = errors.Join(err, d.closeFiles(), d.lock.Close())
	return wrap("close", Key{}, err)
}

func (d *Disk) closeFiles() (err error) {
	for _, f := range d.files {
		if !f.removed {
			err = errors.Join(err, f.f.Close())
		}
	}
	d.files = nil
	return err
}

func (d *Disk) usable(ctx context.Context) error {
	if d.closed {
		return errClosed
	}
	return ctx.Err()
}

func (d *Disk) expired(e entry) bool { return e.expires != 0 && e.expires <= d.o.Now().UnixNano() }

// find returns the entry of a key, and forgets it if it has expired.
func (d *Disk) find(k Key) (e entry, ok bool) {
	if e, ok = d.at[k]; ok && d.expired(e) {
		d.remove(k)
		return entry{}, false
	}
	return e, ok
}

// put makes an entry the one of its key.
func (d *Disk) put(k Key, e entry) {
	d.remove(k)
	d.at[k] = e
	e.file.live += entrySize(e.n)
	d.live += entrySize(e.n)
}

// remove forgets a key.
func (d *Disk) remove(k Key) {
	if e, ok := d.at[k]; ok {
		e.file.live -= entrySize(e.n)
		d.live -= entrySize(e.n)
		e.file.dead = append(e.file.dead, e)
		delete(d.at, k)
	}
}
