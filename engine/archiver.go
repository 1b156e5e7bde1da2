// SPDX-License-Identifier: Apache-2.0

package engine

// Archiver codes the rows of parked sequences in fewer bytes than they take in memory, with a loss. Package
// archiver has one. Its methods are called by many goroutines at once.
type Archiver interface {
	// Name names the coding and all that decoding takes. Rows of another name are foreign.
	Name() string
	// Step returns the step at which rows like those of a sample take so many bits a value, and overwrites
	// them.
	Step(sample []ArchiveRows, bits float64) (float64, error)
	// Encode appends rows at a step to dst, and overwrites them. quant.ErrRange says that they cannot be
	// coded.
	Encode(dst []byte, r *ArchiveRows, step float64) ([]byte, error)
	// Decode fills K and V, which have room, with what Encode has made of the rows. Only quant.ErrCorrupt
	// says that p is damaged.
	Decode(r *ArchiveRows, p []byte) error
}

// ArchiveRows are consecutive rows of a layer.
type ArchiveRows struct {
	Layer   int
	First   int64       // position of the first token
	Tokens  int         // how many there are
	K, V    [][]float32 // [kv_heads][tokens * head_dim], [kv_heads][tokens * head_dim_v]
	Weights [][]float32 // [kv_heads][tokens], of mean square 1 over the sequence; nil: all weigh the same
}

// Values returns the number of values of K and V.
func (r *ArchiveRows) Values() (n int) {
	for h := range r.K {
		n += len(r.K[h]) + len(r.V[h])
	}
	return n
}

// middle returns n rows from the middle of r.
func (r *ArchiveRows) middle(n int, dim [sides]int) *ArchiveRows {
	n = min(n, r.Tokens)
	from := (r.Tokens - n) / 2
	r.First, r.Tokens = r.First+int64(from), n
	for h := range r.K {
		r.K[h] = r.K[h][from*dim[sideK]:][:n*dim[sideK]]
		r.V[h] = r.V[h][from*dim[sideV]:][:n*dim[sideV]]
		if r.Weights != nil {
			r.Weights[h] = r.Weights[h][from:][:n]
		}
	}
	return r
}

// clone returns a copy with values of its own.
func (r *ArchiveRows) clone() ArchiveRows {
	x := *r
	x.K, x.V = make([][]float32, len(r.K)), make([][]float32, len(r.V))
	for h := range r.K {
		x.K[h], x.V[h] = append([]float32{}, r.K[h]...), append([]float32{}, r.V[h]...)
	}
	return x
}

// fit gives r room for n rows of a layer.
func (r *ArchiveRows) fit(layer, heads, n int, first int64, dim [sides]int) {
	r.Layer, r.Tokens, r.First = layer, n, first
	r.K, r.V, r.Weights = make([][]float32, heads), make([][]float32, heads), nil
	left := make([]float32, heads*n*(dim[sideK]+dim[sideV]))
	for h := range heads {
		r.K[h], left = left[:n*dim[sideK]:n*dim[sideK]], left[n*dim[sideK]:]
		r.V[h], left = left[:n*dim[sideV]:n*dim[sideV]], left[n*dim[sideV]:]
	}
}
