// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"archive/zip"
	"cmp"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/quant"
)

// The .npz format: a zip whose members are .npy files. Source: numpy.savez and
// numpy.savez_compressed.
const (
	zipMagic      = "PK\x03\x04"
	zipMagicEmpty = "PK\x05\x06"
	npySuffix     = ".npy"
	// maxZipDirectory bounds the list of members. A reader keeps about five times its bytes.
	maxZipDirectory = 16 << 20
)

// parseNpz reads the list of members and the header of each.
func parseNpz(f *file, lim Limits) ([]TensorInfo, error) {
	dir := &budgetReader{r: f.r, left: maxZipDirectory}
	z, err := zip.NewReader(dir, f.size)
	if err != nil {
		return nil, f.formatError(sectionHeader, "", -1, zipError(err))
	}
	if len(z.File) > lim.Tensors {
		return nil, f.formatError(sectionHeader, "", -1,
			tooLargef("%d members, want at most %d tensors", len(z.File), lim.Tensors))
	}
	dir.left = -1 // members have limits of their own
	seen := make(map[string]bool, len(z.File))
	var tensors []TensorInfo
	var stored, inflated uint64
	for _, m := range z.File {
		if strings.HasSuffix(m.Name, "/") && m.UncompressedSize64 == 0 {
			continue // skip folders
		}
		name, isNpy := strings.CutSuffix(m.Name, npySuffix)
		if !isNpy {
			return nil, f.formatError(sectionHeader, "", -1, unsupportedf("a zip with member %.64q, "+
				"which is not an .npy; save the tensors of torch.save as safetensors instead",
				m.Name))
		}
		if err := f.checkName(name, -1, lim); err != nil {
			return nil, err
		}
		if seen[name] {
			return nil, f.formatError(sectionHeader, name, -1, corruptf("member %.64q appears twice", m.Name))
		}
		seen[name] = true
		if m.CompressedSize64 > uint64(f.size)-stored { // members cannot take more than the file has
			return nil, f.formatError(sectionTensor, name, -1,
				corruptf("members overlap: they have more bytes than the file's %d", f.size))
		}
		stored += m.CompressedSize64
		if m.Method == zip.Deflate {
			if m.UncompressedSize64 > uint64(lim.inflated(f.size))-inflated {
				return nil, f.formatError(sectionTensor, name, -1, tooLargef("compressed members expand to "+
					"more than %d bytes; numpy.savez writes them without compression",
					lim.inflated(f.size)))
			}
			inflated += m.UncompressedSize64
		}
		info, err := readMember(f, m, name, lim)
		if err != nil {
			return nil, err
		}
		tensors = append(tensors, info)
	}
	slices.SortStableFunc(tensors, func(a, b TensorInfo) int { return cmp.Compare(a.Offset, b.Offset) })
	return tensors, nil
}

// addMember reads the header of one member and adds it as a tensor.
func readMember(f *file, z *zip.File, name string, lim Limits) (info TensorInfo, err error) {
	if z.Flags&1 != 0 {
		return info, f.formatError(sectionTensor, name, -1,
			unsupportedf("an encrypted member; numpy.savez writes members without encryption"))
	}
	if z.Method != zip.Store && z.Method != zip.Deflate {
		return info, f.formatError(sectionTensor, name, -1, unsupportedf("a member compressed by method %d; "+
			"numpy.savez and numpy.savez_compressed use supported methods", z.Method))
	}
	m := &member{file: z}
	if m.from, err = z.DataOffset(); err != nil {
		return info, f.formatError(sectionTensor, name, -1, zipError(err))
	}
	size := int64(z.UncompressedSize64)
	if m.from < 0 || m.from > f.size || int64(z.CompressedSize64) > f.size-m.from || size < 0 ||
		z.Method == zip.Store && z.CompressedSize64 != z.UncompressedSize64 {
		return info, f.formatError(sectionTensor, name, m.from,
			corruptf("a member of %d bytes, the file has %d", z.CompressedSize64, f.size))
	}
	r, err := z.Open()
	if err != nil {
		return info, f.formatError(sectionTensor, name, m.from, zipError(err))
	}
	defer r.Close() // opened for reading only; the checksum is checked later
	p := &npyHead{src: f, name: name, base: m.from, size: size, lim: lim,
		next: func(b []byte) error {
			if _, err := io.ReadFull(r, b); err != nil {
				return f.formatError(sectionTensor, name, m.from, zipError(err))
			}
			return nil
		}}
	if z.Method == zip.Deflate {
		p.base = -1 // an error has no offset in the file
	}
	if info, err = p.read(); err != nil {
		return info, err
	}
	m.header, m.size = info.Offset, size
	info.Offset = m.from
	if z.Method == zip.Store {
		info.Offset += m.header
	}
	if info.lay == nil {
		info.lay = &layout{}
	}
	info.lay.member = m
	return info, nil
}

// zipError adds a category to an error of package archive/zip.
func zipError(err error) error {
	var flateError flate.CorruptInputError
	switch {
	case errors.Is(err, quant.ErrTooLarge):
		return err
	case errors.Is(err, zip.ErrFormat), errors.Is(err, zip.ErrChecksum), errors.Is(err, io.EOF),
		errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &flateError):
		return corruptf("%v", err)
	case errors.Is(err, zip.ErrAlgorithm):
		return unsupportedf("%v; numpy.savez uses a supported one", err)
	}
	return err
}

// budgetReader reads at most left bytes. A negative left means no bound.
type budgetReader struct {
	r    io.ReaderAt
	left int64
}

func (b *budgetReader) ReadAt(p []byte, off int64) (int, error) {
	if b.left >= 0 {
		if int64(len(p)) > b.left {
			return 0, tooLargef("a list of members of more than %d bytes", int64(maxZipDirectory))
		}
		b.left -= int64(len(p))
	}
	return b.r.ReadAt(p, off)
}

// member is an .npy in an .npz. Its first reader checks all of it against its checksum, and writes
// it to the source's temporary file if it is compressed.
type member struct {
	file   *zip.File
	from   int64 // file offset of the member
	header int64 // size of its header
	size   int64 // size of the expanded member
	once   sync.Once
	at     int64 // offset in the temporary file
	err    error
}

// read reads bytes of the data from offset off.
func (m *member) read(f *file, name string, off int64, dst []byte) error {
	m.once.Do(func() {
		if err := m.prepare(f); err != nil {
			m.err = f.formatError(sectionTensor, name, m.from, err)
		}
	})
	if m.err != nil {
		return m.err
	}
	if m.file.Method == zip.Store {
		return f.readFull(sectionTensor, name, m.from+m.header+off, dst)
	}
	return f.temp.readAt(dst, m.at+m.header+off)
}

func (m *member) prepare(f *file) error {
	r, err := m.file.Open()
	if err != nil {
		return zipError(err)
	}
	defer r.Close()
	checked := &expandedReader{r: r, left: m.size}
	if m.file.Method == zip.Store {
		_, err = io.Copy(io.Discard, checked)
	} else {
		m.at, err = f.temp.append(checked, m.size)
	}
	if err == nil && checked.left != 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return zipError(err)
	}
	return nil
}

// expandedReader reads at most as many bytes as a member declares.
type expandedReader struct {
	r    io.Reader
	left int64
}

func (e *expandedReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if int64(n) > e.left {
		return 0, corruptf("a member expands to more bytes than its %d", e.left)
	}
	e.left -= int64(n)
	return n, err
}

// tempFile holds expanded members, so that they can be read in any order. It is created when it is
// first needed.
type tempFile struct {
	mu   sync.Mutex
	f    *atomicfile.Scratch
	size int64
	done bool
}

// append writes all of r, size bytes, and returns their offset.
func (t *tempFile) append(r io.Reader, size int64) (at int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return 0, fmt.Errorf("temporary file: %w", quant.ErrClosed)
	}
	if t.f == nil {
		if t.f, err = atomicfile.NewScratch(); err != nil {
			return 0, err
		}
	}
	at, t.size = t.size, t.size+size // a failed write leaves a gap
	if _, err := io.Copy(io.NewOffsetWriter(t.f, at), r); err != nil {
		return 0, fmt.Errorf("expand to a temporary file: %w", err)
	}
	return at, nil
}

func (t *tempFile) readAt(dst []byte, off int64) error {
	t.mu.Lock()
	f := t.f
	t.mu.Unlock()
	if f == nil {
		return fmt.Errorf("kvist/capture: read temporary file: %w", quant.ErrClosed)
	}
	if _, err := f.ReadAt(dst, off); err != nil {
		return fmt.Errorf("kvist/capture: read temporary file: %w", err)
	}
	return nil
}

func (t *tempFile) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = true
	if t.f == nil {
		return nil
	}
	err := t.f.Close()
	t.f = nil
	return err
}
