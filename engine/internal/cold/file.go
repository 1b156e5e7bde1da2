// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"io"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
)

// file is what an archive holds besides its records.
type file struct {
	header *container.Header
	aux    []*container.Aux
	params *archive.Params // nil in lossless mode
}

// side returns the side tensors.
func (f *file) side() []*container.Aux {
	if f.params == nil {
		return f.aux
	}
	return append([]*container.Aux{f.shared()}, f.aux...)
}

// fixed returns the bytes of a file without its records.
func (f *file) fixed() (Sections, error) {
	var s Sections
	var err error
	if s.Header, err = container.HeaderSize(f.header); err != nil {
		return s, err
	}
	side := f.side()
	for _, x := range side {
		n, err := container.AuxSize(x)
		if err != nil {
			return s, err
		}
		s.Side += n
	}
	s.Index = container.EndSize(int(f.header.Records()) + len(side))
	return s, nil
}

// shared returns the side tensor of the parameters.
func (f *file) shared() *container.Aux {
	b := f.params.Append(nil)
	return &container.Aux{Name: SharedName, DType: "U8", Shape: []int64{int64(len(b))}, Data: b}
}

// write writes the file; records hands over its records.
func (f *file) write(w io.Writer, fix Sections,
	records func(emit func(*container.Record) error) error) (*Made, error) {
	out, err := container.NewWriter(w, f.header)
	if err != nil {
		return nil, err
	}
	for _, x := range f.side() {
		if err := out.WriteAux(x); err != nil {
			return nil, err
		}
	}
	made := &Made{Sections: fix}
	err = records(func(r *container.Record) error {
		n, err := container.RecordSize(f.header, r)
		if err != nil {
			return err
		}
		made.Sections.Payload += int64(len(r.Archive))
		made.Sections.Tables += n - int64(len(r.Archive))
		return out.WriteRecord(r)
	})
	if err != nil {
		return nil, err
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	made.Bytes = out.Size()
	return made, nil
}
