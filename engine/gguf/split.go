// SPDX-License-Identifier: Apache-2.0

package gguf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/kvist-project/kvist/engine/atomicfile"
)

// A split model lies in files "NAME-00001-of-00003.gguf" and so on, each a GGUF file of its own with
// a part of the tensors. The first one has the metadata.
const (
	keySplitNo      = "split.no"    // from 0
	keySplitCount   = "split.count" // files; 0 or 1: not split
	keySplitTensors = "split.tensors.count"
)

var partName = regexp.MustCompile(`^(.*)-([0-9]{5})-of-([0-9]{5})\.gguf$`)

// part is a file that holds tensors.
type part struct {
	file  string
	r     io.ReaderAt
	close func() error
}

// splitCount returns the number of files of the model.
func (f *File) splitCount() int64 {
	n, _ := f.meta[keySplitCount].Int()
	return n
}

// refuseSplit refuses a part of a model that lies in several files, where only this one is at hand:
// what it lacks would read as damage.
func (f *File) refuseSplit() error {
	n := f.splitCount()
	if n <= 1 {
		return nil
	}
	no, _ := f.meta[keySplitNo].Int()
	return f.KeyError(keySplitCount, unsupportedf("part %d of a model split into %d files; "+
		"llama-gguf-split --merge makes one file of them, which is read", no+1, n))
}

// Open opens the GGUF file at path with the default limits. If it is the first of several that a
// model is split into, Open opens the others beside it too. Close it when no more tensors are to be
// read.
//
// Errors: those of Read and of the file system; ErrCorrupt for a part that is missing, is another
// one than its name says or belongs to another model; ErrUnsupported for a part that is not the
// first.
func Open(path string) (*File, error) {
	f, err := openPart(path)
	if err != nil {
		return nil, err
	}
	if f.splitCount() > 1 {
		if err := f.openRest(path); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// openPart opens one file, split or not.
func openPart(path string) (*File, error) {
	r, st, err := atomicfile.OpenRegular(path)
	if errors.Is(err, atomicfile.ErrNotRegular) {
		return nil, &FileError{File: path, Section: "file", Offset: -1, Err: unsupportedf("%v", err)}
	}
	if err != nil {
		return nil, fmt.Errorf("kvist/gguf: open: %w", err)
	}
	f, err := readPart(r, st.Size(), path, Limits{})
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	f.parts[0].close = r.Close
	return f, nil
}

// openRest opens the parts beside the first one, at path.
func (f *File) openRest(path string) error {
	n := f.splitCount()
	name := partName.FindStringSubmatch(filepath.Base(path))
	if name == nil {
		return f.KeyError(keySplitCount, unsupportedf("part of a model split into %d files under a "+
			"name that does not say where the others are, want NAME-00001-of-%05d.gguf", n, n))
	}
	if no, _ := strconv.Atoi(name[2]); no != 1 {
		return f.KeyError(keySplitCount, unsupportedf("part %d of a model split into %d files; name the "+
			"first, %s-00001-of-%s.gguf", no, n, name[1], name[3]))
	}
	if err := f.checkPart(f, 0, n); err != nil {
		return err
	}
	for i := int64(1); i < n; i++ {
		file := filepath.Join(filepath.Dir(path), fmt.Sprintf("%s-%05d-of-%05d.gguf", name[1], i+1, n))
		if err := f.openNext(file, i, n); err != nil {
			return err
		}
	}
	want, ok := f.meta[keySplitTensors].Int()
	if ok && want != int64(len(f.tensors)) {
		return f.KeyError(keySplitTensors, corruptf("%d tensors, the %d files have %d", want, n, len(f.tensors)))
	}
	return nil
}

// openNext opens part i of n and adds its tensors.
func (f *File) openNext(file string, i, n int64) error {
	p, err := openPart(file)
	if errors.Is(err, os.ErrNotExist) {
		return f.KeyError(keySplitCount, fmt.Errorf("%w: %w",
			corruptf("part %d of %d is missing", i+1, n), err))
	}
	if err != nil {
		return err
	}
	if err := f.merge(p, i, n); err != nil {
		return errors.Join(err, p.Close())
	}
	return nil
}

// checkPart checks that p says of itself that it is part i of n.
func (f *File) checkPart(p *File, i, n int64) error {
	no, ok := p.meta[keySplitNo].Int()
	if !ok || no != i || p.splitCount() != n {
		return p.KeyError(keySplitNo, corruptf("it is part %d of %d, want part %d of %d",
			no+1, p.splitCount(), i+1, n))
	}
	return nil
}

// merge adds the tensors of part i of n.
func (f *File) merge(p *File, i, n int64) error {
	if err := f.checkPart(p, i, n); err != nil {
		return err
	}
	const arch = "general.architecture"
	if v, ok := p.meta[arch]; ok && v.String() != f.meta[arch].String() {
		return p.KeyError(arch, corruptf("part of another model: %s, the first part has %s", v, f.meta[arch]))
	}
	if limit := (Limits{}).withDefaults().MaxTensors; len(f.tensors)+len(p.tensors) > limit {
		return p.KeyError(keySplitTensors, tooLargef("the parts have more than %d tensors", limit))
	}
	for _, t := range p.tensors {
		if _, twice := f.index[t.Name]; twice {
			return p.TensorError(t, corruptf("it stands in another part too"))
		}
		t.part = len(f.parts)
		f.index[t.Name] = len(f.tensors)
		f.tensors = append(f.tensors, t)
	}
	f.parts = append(f.parts, p.parts[0])
	return nil
}

// Close closes the files below, where Open opened them. Idempotent.
func (f *File) Close() error {
	var errs []error
	for i := range f.parts {
		if p := &f.parts[i]; p.close != nil {
			errs = append(errs, p.close())
			p.close = nil
		}
	}
	return errors.Join(errs...)
}
