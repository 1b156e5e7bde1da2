// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// npz makes a zip of members in the given order: name, method, content.
type npz struct {
	b bytes.Buffer
	w *zip.Writer
}

func (n *npz) add(t testing.TB, name string, method uint16, data []byte) *npz {
	t.Helper()
	if n.w == nil {
		n.w = zip.NewWriter(&n.b)
	}
	w, err := n.w.CreateHeader(&zip.FileHeader{Name: name, Method: method})
	noError(t, err)
	_, err = w.Write(data)
	noError(t, err)
	return n
}

func (n *npz) bytes(t testing.TB) []byte {
	t.Helper()
	if n.w == nil {
		n.w = zip.NewWriter(&n.b)
	}
	noError(t, n.w.Close())
	return n.b.Bytes()
}

func smallNpz(t testing.TB) []byte {
	n := &npz{}
	return n.add(t, "a.npy", zip.Store, arrayOf("<f4", false, 5, 3)).
		add(t, "b.npy", zip.Deflate, arrayOf(">f8", true, 2, 3, 4)).
		add(t, "ids.npy", zip.Deflate, arrayOf("|i1", false, 4)).bytes(t)
}

func TestNpz_Members(t *testing.T) {
	s := mustOpen(t, smallNpz(t))
	defer s.Close()
	equal(t, "format", s.Info().Format, "npz")
	equal(t, "is a KV capture", s.Info().KV, false)
	equal(t, "tensors of rows", len(s.ActTensors()), 2)
	checkCounting(t, s, "a")
	checkCounting(t, s, "b")
	info, ok := s.Lookup("b")
	equal(t, "b is there", ok, true)
	equal(t, "stored", info.Stored, "big-endian F64 in Fortran order")
	equal(t, "side tensors", len(s.SideTensors()), 1)
	ids := make([]byte, 4)
	noError(t, s.ReadAt("ids", 0, ids))
	equal(t, "ids", string(ids), "\x00\x01\x02\x03")
	noError(t, s.Close())
	wantCategory(t, s.ReadAt("ids", 0, ids), quant.ErrClosed)
}

func TestNumPyFiles(t *testing.T) {
	for name, tensors := range map[string][]string{"f8.npy": {""}, "f8-fortran.npy": {""},
		"f4-big.npy": {""}, "f2-big-fortran.npy": {""}, "f4-one-dim.npy": {""},
		"stored.npz": {"a", "b", "c"}, "deflated.npz": {"a", "b", "c"}} {
		s, err := capture.Open(filepath.Join("testdata/numpy", name), capture.Limits{})
		noError(t, err)
		equal(t, name, len(s.ActTensors()), len(tensors))
		for _, x := range tensors {
			checkCounting(t, s, x)
		}
		noError(t, s.Close())
	}
	for name, text := range map[string]string{"two.npy": "a second array", "structured.npy": "structured"} {
		_, err := capture.Open(filepath.Join("testdata/numpy", name), capture.Limits{})
		wantFormatError(t, err, quant.ErrUnsupported, "not supported: ", text)
	}
}

func TestNpz_ConcurrentReaders(t *testing.T) {
	s := mustOpen(t, smallNpz(t))
	defer s.Close()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, a := range s.ActTensors() {
				got := make([]float32, a.Rows*a.Dim)
				if err := a.Tensor.ReadF32(0, 0, a.Rows, got); err != nil || got[len(got)-1] != float32(len(got)-1) {
					t.Errorf("%s: %v, last value %v", a.Name, err, got[len(got)-1])
				}
			}
		})
	}
	wg.Wait()
}

// No temporary file is left in the folder, neither while a source is open nor after.
func TestNpz_LeavesNoFile(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Setenv("TMP", dir)
	s := mustOpen(t, smallNpz(t))
	checkCounting(t, s, "b")
	noError(t, s.Close())
	list, err := os.ReadDir(dir)
	noError(t, err)
	equal(t, "files left", len(list), 0)
}

func TestNpz_Refused(t *testing.T) {
	f4 := arrayOf("<f4", false, 5, 3)
	edit := func(b []byte, what string, with ...byte) []byte { // in every place
		return bytes.ReplaceAll(b, []byte(what), with)
	}
	one := func(name string, method uint16, data []byte) []byte {
		return new(npz).add(t, name, method, data).bytes(t)
	}
	lying := func(b []byte, size uint32) []byte { // what the directory says a member expands to
		at := bytes.LastIndex(b, []byte("PK\x01\x02"))
		binary.LittleEndian.PutUint32(b[at+24:], size)
		return b
	}
	method := func(b []byte, m uint16) []byte {
		at := bytes.LastIndex(b, []byte("PK\x01\x02"))
		binary.LittleEndian.PutUint16(b[at+10:], m)
		return b
	}
	flag := func(b []byte, f uint16) []byte {
		at := bytes.LastIndex(b, []byte("PK\x01\x02"))
		binary.LittleEndian.PutUint16(b[at+8:], f)
		return b
	}
	for _, c := range []struct {
		name string
		data []byte
		lim  capture.Limits
		want error
		text string
	}{
		{"torch", one("archive/data.pkl", zip.Store, []byte("x")), capture.Limits{}, quant.ErrUnsupported,
			"not supported: a zip with member \"archive/data.pkl\", which is not an .npy; save the tensors of torch.save"},
		{"no name", one(".npy", zip.Store, f4), capture.Limits{}, quant.ErrUnsupported, "a tensor named"},
		{"metadata", one("__metadata__.npy", zip.Store, f4), capture.Limits{}, quant.ErrUnsupported,
			"a tensor named"},
		{"long name", one("abcdefgh.npy", zip.Store, f4), capture.Limits{NameBytes: 7}, quant.ErrTooLarge,
			"tensor name of 8 bytes"},
		{"twice", new(npz).add(t, "a.npy", zip.Store, f4).add(t, "a.npy", zip.Store, f4).bytes(t),
			capture.Limits{}, quant.ErrCorrupt, "twice"},
		{"objects", one("a.npy", zip.Store, npyBytes(1, "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", 16)),
			capture.Limits{}, quant.ErrUnsupported, `tensor "a"`},
		{"no npy", one("a.npy", zip.Deflate, make([]byte, 100)), capture.Limits{}, quant.ErrCorrupt,
			"it starts with 00 00"},
		{"short", one("a.npy", zip.Deflate, f4[:len(f4)-1]), capture.Limits{}, quant.ErrCorrupt,
			"the file has 59 of data"},
		{"too many", smallNpz(t), capture.Limits{Tensors: 2}, quant.ErrTooLarge, "3 members"},
		{"bomb", one("a.npy", zip.Deflate, arrayOf("<f4", false, 1000, 10)),
			capture.Limits{InflatedBytes: 30000}, quant.ErrTooLarge,
			"compressed members expand to more than 30000 bytes; numpy.savez"},
		{"bombs together", new(npz).add(t, "a.npy", zip.Deflate, arrayOf("<f4", false, 500, 10)).
			add(t, "b.npy", zip.Deflate, arrayOf("<f4", false, 500, 10)).bytes(t),
			capture.Limits{InflatedBytes: 30000}, quant.ErrTooLarge, `tensor "b"`},
		{"promise of 4 GB", lying(one("a.npy", zip.Deflate, f4), 0xfffffff0), capture.Limits{},
			quant.ErrTooLarge, "compressed members expand"},
		{"stored lies", lying(one("a.npy", zip.Store, f4), 200), capture.Limits{}, quant.ErrCorrupt,
			`tensor "a"`},
		{"zstd", method(one("a.npy", zip.Deflate, f4), 93), capture.Limits{}, quant.ErrUnsupported,
			"compressed by method 93; numpy.savez"},
		{"encrypted", flag(one("a.npy", zip.Deflate, f4), 1), capture.Limits{}, quant.ErrUnsupported,
			"an encrypted member"},
		{"no directory", edit(one("a.npy", zip.Store, f4), "PK\x05\x06", 0, 0, 0, 0), capture.Limits{},
			quant.ErrCorrupt, "header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := openBytes(c.data, c.lim)
			wantFormatError(t, err, c.want, c.text)
		})
	}
	s := mustOpen(t, new(npz).bytes(t))
	wantFormatError(t, s.NoRows(), quant.ErrUnsupported, "a file without tensors")
}

// Members must not share bytes: many of them could expand to far more than the file.
func TestNpz_Overlap(t *testing.T) {
	b := new(npz).add(t, "0.npy", zip.Store, arrayOf("<f4", false, 1000, 1)).bytes(t)
	from, to := bytes.Index(b, []byte("PK\x01\x02")), bytes.Index(b, []byte("PK\x05\x06"))
	entry, end := b[from:to], bytes.Clone(b[to:])
	b = b[:from:from]
	const n = 3
	for i := range byte(n) { // all of them at the same place
		at := len(b)
		b = append(b, entry...)
		b[at+46] = '0' + i
	}
	binary.LittleEndian.PutUint16(end[8:], n)
	binary.LittleEndian.PutUint16(end[10:], n)
	binary.LittleEndian.PutUint32(end[12:], uint32(n*len(entry)))
	_, err := openBytes(append(b, end...), capture.Limits{})
	wantFormatError(t, err, quant.ErrCorrupt, "members overlap", `tensor "1"`)
}

func TestNpz_DamageIsFoundWhenRead(t *testing.T) {
	for _, method := range []uint16{zip.Store, zip.Deflate} {
		b := new(npz).add(t, "a.npy", method, arrayOf("<f8", false, 40, 16)).bytes(t)
		damaged := 0
		for at := 200; at < len(b)-200; at += 37 {
			bad := bytes.Clone(b)
			bad[at] ^= 0x10
			s, err := openBytes(bad, capture.Limits{})
			if err != nil {
				continue
			}
			a := s.ActTensors()[0]
			err = a.Tensor.Read(0, 3, 1, make([]byte, a.Tensor.RowBytes()))
			wantFormatError(t, err, quant.ErrCorrupt, `tensor "a"`)
			// What failed once fails again.
			wantFormatError(t, s.ReadAt("a", 0, make([]byte, 8)), quant.ErrCorrupt)
			damaged++
			noError(t, s.Close())
		}
		if damaged < 5 {
			t.Fatalf("method %d: damage was met %d times", method, damaged)
		}
	}
}

// A member that expands to more than it declares is refused before the rest is written.
func TestNpz_ExpandsToMoreThanItSays(t *testing.T) {
	b := new(npz).add(t, "a.npy", zip.Deflate, append(arrayOf("<f4", false, 5, 3), make([]byte, 1<<20)...)).bytes(t)
	at := bytes.LastIndex(b, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(b[at+24:], uint32(len(arrayOf("<f4", false, 5, 3))))
	s, err := openBytes(b, capture.Limits{})
	noError(t, err)
	defer s.Close()
	wantFormatError(t, s.ReadAt("a", 0, make([]byte, 4)), quant.ErrCorrupt)
}

// The list of members is read up to a limit.
func TestNpz_DirectoryIsBounded(t *testing.T) {
	n := &npz{}
	long := string(bytes.Repeat([]byte("x"), 60000))
	for i := range 300 { // 18 MB of names
		n.add(t, fmt.Sprintf("%d%s.npy", i, long), zip.Store, nil)
	}
	_, err := openBytes(n.bytes(t), capture.Limits{NameBytes: 1 << 20})
	wantFormatError(t, err, quant.ErrTooLarge, "a list of members of more than 16777216 bytes")
}

func TestNpz_ReaderErrors(t *testing.T) {
	b := smallNpz(t)
	s, err := capture.New("mem", &breaking{r: bytes.NewReader(b), left: 1 << 20}, int64(len(b)), capture.Limits{})
	noError(t, err)
	defer s.Close()
	s2, err := capture.New("mem", &breaking{r: bytes.NewReader(b)}, int64(len(b)), capture.Limits{})
	if err == nil || !errors.Is(err, errBroken) || s2 != nil {
		t.Fatalf("error %v, want that of the reader", err)
	}
	for _, c := range categories {
		equal(t, "category", errors.Is(err, c), false)
	}
}

var errBroken = errors.New("broken")

// breaking reads left bytes and then fails.
type breaking struct {
	r    io.ReaderAt
	left int
}

func (b *breaking) ReadAt(p []byte, off int64) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errBroken
	}
	return b.r.ReadAt(p, off)
}

func TestNpz_TruncatedAndFlipped(t *testing.T) {
	b := smallNpz(t)
	for n := range b {
		if _, err := openBytes(b[:n], capture.Limits{}); err == nil {
			t.Fatalf("cut to %d bytes it opens", n)
		}
	}
	for at := range b {
		for _, x := range []byte{0x01, 0x80, 0xff} {
			bad := slices.Clone(b)
			bad[at] ^= x
			readOdd(t, bad, capture.Limits{})
		}
	}
}
