// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/kvist-project/kvist/engine/vectors"
	"github.com/kvist-project/kvist/quant"
)

// openIndex opens an index: in place where it is a file, read whole from standard input.
func (a *app) openIndex(ctx context.Context, name string) (*vectors.Index, error) {
	if name != stdStream {
		if f, _, err := openPlain(name); err != nil { // for its messages
			return nil, err
		} else if err := f.Close(); err != nil {
			return nil, err
		}
		return vectors.Open(name, vectors.LoadOptions{})
	}
	in, err := a.openInput(ctx, name)
	if err != nil {
		return nil, err
	}
	b, err := in.all()
	if err != nil {
		return nil, err
	}
	return vectors.Read(in.name, b, vectors.LoadOptions{})
}

// all reads an input whole and closes it.
func (in *input) all() (b []byte, err error) {
	defer closing(in, &err)
	b = make([]byte, in.size)
	_, err = io.ReadFull(io.NewSectionReader(in, 0, in.size), b)
	if err != nil {
		err = fmt.Errorf("read %s: %w", in.name, err)
	}
	return b, err
}

// readVectors reads the rows of a tensor: the only one of the file, or that called tensor.
func (a *app) readVectors(ctx context.Context, name, tensor string) (rows quant.Rows, err error) {
	if strings.HasSuffix(name, ".fvecs") {
		in, err := a.openInput(ctx, name)
		if err != nil {
			return rows, err
		}
		b, err := in.all()
		if err != nil {
			return rows, err
		}
		words, dim, err := vecs(in.name, b)
		if err != nil {
			return rows, err
		}
		rows = quant.Rows{Dim: dim, Data: make([]float32, len(words))}
		for i, w := range words {
			rows.Data[i] = math.Float32frombits(w)
		}
		return rows, nil
	}
	src, in, err := a.openCapture(ctx, name)
	if err != nil {
		return rows, err
	}
	defer closing(in, &err)
	list := src.ActTensors()
	if len(list) == 0 {
		return rows, src.NoRows()
	}
	at := -1
	var names []string
	for i, t := range list {
		names = append(names, t.Name)
		if t.Name == tensor && tensor != "" || len(list) == 1 && tensor == "" {
			at = i
		}
	}
	if at < 0 {
		return rows, usagef("%s has the tensors %s: give one by --tensor", in.name, strings.Join(names, ", "))
	}
	t := list[at]
	rows = quant.Rows{Dim: t.Dim, Data: make([]float32, t.Rows*t.Dim)}
	const part = 4096
	for first := 0; first < t.Rows; first += part {
		if err := ctx.Err(); err != nil {
			return rows, err
		}
		n := min(part, t.Rows-first)
		if err := t.Tensor.ReadF32(0, first, n, rows.Data[first*t.Dim:(first+n)*t.Dim]); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// vecs reads the format of .fvecs and .ivecs: for every row its length and its elements, 32 bits each.
func vecs(name string, b []byte) (words []uint32, dim int, err error) {
	le := binary.LittleEndian
	if len(b) < 4 {
		return nil, 0, fmt.Errorf("%s: %d bytes are no vectors: %w", name, len(b), quant.ErrCorrupt)
	}
	d := le.Uint32(b)
	if d == 0 || d > quant.MaxDim {
		return nil, 0, fmt.Errorf("%s: a vector of %d values, want 1 to %d: %w", name, d, quant.MaxDim, quant.ErrCorrupt)
	}
	dim = int(d)
	if len(b)%(4+4*dim) != 0 {
		return nil, 0, fmt.Errorf("%s: %d bytes are not vectors of %d values: %w", name, len(b), dim, quant.ErrCorrupt)
	}
	words = make([]uint32, 0, len(b)/(4+4*dim)*dim)
	for at := 0; at < len(b); at += 4 + 4*dim {
		if n := le.Uint32(b[at:]); n != d {
			return nil, 0, fmt.Errorf("%s: a vector of %d values at offset %d, want %d: %w", name, n, at, dim, quant.ErrCorrupt)
		}
		for i := range dim {
			words = append(words, le.Uint32(b[at+4+4*i:]))
		}
	}
	return words, dim, nil
}
