// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// logFile is one of the files of a Disk.
type logFile struct {
	num      uint64
	f        File
	size     int64 // where the next entry begins
	live     int64
	dead     []entry // that were put and are not found any more, and are not wiped
	unsynced bool
	removed  bool // from the folder, or about to be
	broken   bool // a write failed: nothing more is appended
}

const (
	fileMagic   = "\x93KVLOG\r\n"
	fileVersion = 1
	fileHeader  = 16 // magic, u32 version, u32 CRC32C of both
	entryHeader = 80
	entryMark   = "KENT"
	fileSuffix  = ".kvlog"
)

// The kinds of entries.
const (
	kindPut = 1 + iota
	kindDelete
	kindExpiry
	kindWiped
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// entrySize returns the bytes of an entry of n bytes.
func entrySize(n int64) int64 { return entryHeader + (n+15)&^15 }

func (f *logFile) name() string { return fmt.Sprintf("%016x%s", f.num, fileSuffix) }

// numberOf is the inverse of name.
func numberOf(name string) (uint64, bool) {
	hex, ok := strings.CutSuffix(name, fileSuffix)
	n, err := strconv.ParseUint(hex, 16, 64)
	return n, ok && err == nil && len(hex) == 16
}

// addFile begins a new file. What the one before holds is made durable, so that only the last file can be
// torn.
func (d *Disk) addFile() error {
	f := &logFile{num: 1}
	if n := len(d.files); n > 0 {
		last := d.files[n-1]
		f.num = last.num + 1
		if last.unsynced && !last.broken {
			if err := last.f.Sync(); err != nil {
				last.broken = true
				return at(last, 0, err)
			}
			last.unsynced = false
		}
	}
	var err error
	if f.f, err = d.fs.Open(f.name(), true); err != nil {
		return at(f, 0, err)
	}
	var h [fileHeader]byte
	copy(h[:], fileMagic)
	binary.LittleEndian.PutUint32(h[8:], fileVersion)
	binary.LittleEndian.PutUint32(h[12:], crc32.Checksum(h[:12], castagnoli))
	if _, err = f.f.WriteAt(h[:], 0); err == nil {
		err = d.fs.Sync()
	}
	if err != nil {
		_ = f.f.Close()
		_ = d.fs.Remove(f.name())
		return at(f, 0, err)
	}
	f.size, f.unsynced = fileHeader, true
	d.files = append(d.files, f)
	d.total += f.size
	return nil
}

// at adds a place to an error.
func at(f *logFile, off int64, err error) error {
	return &Error{File: f.name(), Offset: off, Err: err}
}

// append writes an entry at the end of the last file, the bytes before their header.
func (d *Disk) append(kind uint32, k Key, data []byte, expires int64, sync bool) (entry, error) {
	need := entrySize(int64(len(data)))
	if n := len(d.files); n == 0 || d.files[n-1].broken || d.files[n-1].size+need > d.o.FileBytes {
		if err := d.addFile(); err != nil {
			return entry{}, err
		}
	}
	f := d.files[len(d.files)-1]
	e := entry{file: f, off: f.size, n: int64(len(data)), expires: expires, crc: crc32.Checksum(data, castagnoli)}
	var h [entryHeader]byte
	e.header(h[:], kind, k)
	var err error
	if len(data) > 0 {
		_, err = f.f.WriteAt(data, f.size+entryHeader)
	}
	if err == nil {
		_, err = f.f.WriteAt(h[:], f.size)
	}
	if err != nil {
		d.doubt[k] = true
		f.broken = f.f.Truncate(f.size) != nil
		return entry{}, at(f, f.size, err)
	}
	if sync {
		if err := f.f.Sync(); err != nil { // what is durable is not known any more
			d.doubt[k] = true
			f.broken = true
			return entry{}, at(f, f.size, err)
		}
	}
	delete(d.doubt, k)
	f.unsynced = !sync
	f.size += need
	d.total += need
	return e, nil
}

// header writes the header of an entry.
func (e *entry) header(p []byte, kind uint32, k Key) {
	le := binary.LittleEndian
	copy(p, entryMark)
	le.PutUint32(p[4:], kind)
	copy(p[8:40], k[:])
	le.PutUint64(p[40:], uint64(e.n))
	le.PutUint64(p[48:], uint64(e.expires))
	le.PutUint64(p[56:], uint64(e.off))
	le.PutUint64(p[64:], e.file.num)
	le.PutUint32(p[72:], e.crc)
	le.PutUint32(p[76:], crc32.Checksum(p[:76], castagnoli))
}

// parse reads the header of the entry at an offset of a file of size bytes.
func (f *logFile) parse(p []byte, off, size int64) (e entry, kind uint32, k Key, ok bool) {
	le := binary.LittleEndian
	if string(p[:4]) != entryMark || le.Uint32(p[76:]) != crc32.Checksum(p[:76], castagnoli) ||
		le.Uint64(p[56:]) != uint64(off) || le.Uint64(p[64:]) != f.num {
		return e, 0, k, false
	}
	n := le.Uint64(p[40:])
	if n > uint64(size-off-entryHeader) {
		return e, 0, k, false
	}
	kind = le.Uint32(p[4:])
	e = entry{file: f, off: off, n: int64(n), expires: int64(le.Uint64(p[48:])), crc: le.Uint32(p[72:])}
	return e, kind, Key(p[8:40]), kind >= kindPut && kind <= kindWiped
}

// read returns the bytes of an entry.
func (d *Disk) read(e entry) ([]byte, error) {
	data := make([]byte, e.n)
	if n, err := e.file.f.ReadAt(data, e.off+entryHeader); n < len(data) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("the file ends early: %w", quant.ErrCorrupt)
		}
		return nil, err
	}
	if crc32.Checksum(data, castagnoli) != e.crc {
		return nil, fmt.Errorf("checksum: %w", quant.ErrCorrupt)
	}
	return data, nil
}

// recover reads the files and finds what they hold.
func (d *Disk) recover() error {
	names, err := d.fs.Names()
	if err != nil {
		return err
	}
	var nums []uint64
	for _, name := range names {
		if n, ok := numberOf(name); ok {
			nums = append(nums, n)
		}
	}
	slices.Sort(nums)
	for i, num := range nums {
		f := &logFile{num: num}
		if f.f, err = d.fs.Open(f.name(), false); err != nil {
			return at(f, 0, err)
		}
		d.files = append(d.files, f)
		if err := d.recoverFile(f, i == len(nums)-1); err != nil {
			return err
		}
	}
	return nil
}

// recoverFile reads the headers of a file, and in the last one the bytes too.
func (d *Disk) recoverFile(f *logFile, last bool) error {
	size, err := f.f.Size()
	if err != nil {
		return at(f, 0, err)
	}
	var h [entryHeader]byte
	if n, err := f.f.ReadAt(h[:fileHeader], 0); n == fileHeader {
		sum := binary.LittleEndian.Uint32(h[12:])
		if v := binary.LittleEndian.Uint32(h[8:]); string(h[:8]) == fileMagic && v != fileVersion &&
			sum == crc32.Checksum(h[:12], castagnoli) {
			return at(f, 8, fmt.Errorf("version %d, want %d: %w", v, fileVersion, quant.ErrVersion))
		}
	} else if err != nil && !errors.Is(err, io.EOF) {
		return at(f, 0, err)
	}
	f.size = fileHeader
	for off := int64(fileHeader); off+entryHeader <= size; {
		if n, err := f.f.ReadAt(h[:], off); n < len(h) {
			return at(f, off, err)
		}
		e, kind, k, ok := f.parse(h[:], off, size)
		if ok && last && kind == kindPut {
			if _, err := d.read(e); errors.Is(err, quant.ErrCorrupt) {
				ok = false
			} else if err != nil {
				return at(f, off, err)
			}
		}
		if !ok {
			if off, err = f.nextMark(off+16, size); err != nil {
				return at(f, off, err)
			}
			continue
		}
		d.stats.LostBytes += off - f.size
		d.apply(e, kind, k)
		off += entrySize(e.n)
		f.size = off
	}
	d.stats.LostBytes += max(0, size-f.size)
	f.broken, f.unsynced = size < fileHeader, last
	if size > f.size && (!last || f.f.Truncate(f.size) != nil) {
		f.size, f.broken = size, true
	}
	d.total += f.size
	return nil
}

// nextMark returns where the next entry of a damaged file may begin, size if nowhere.
func (f *logFile) nextMark(off, size int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for off < size {
		n, err := f.f.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if n < len(entryMark) {
			if err == nil || errors.Is(err, io.EOF) {
				break
			}
			return off, err
		}
		for i := 0; i+len(entryMark) <= n; i += 16 {
			if string(buf[i:i+len(entryMark)]) == entryMark {
				return off + int64(i), nil
			}
		}
		off += int64(n+15) &^ 15
	}
	return size, nil
}

// apply does what an entry says.
func (d *Disk) apply(e entry, kind uint32, k Key) {
	switch kind {
	case kindPut:
		d.put(k, e)
	case kindDelete:
		d.remove(k)
	case kindExpiry:
		if old, ok := d.at[k]; ok {
			old.expires = e.expires
			d.at[k] = old
		}
	}
}
