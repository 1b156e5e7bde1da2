// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// Op names a method of a backend, for Supports.
type Op uint8

// The operations.
const (
	OpEncode Op = iota
	OpDecode
	OpDemote
	OpAttend
	OpRelevance
	OpGather
)

// String returns the operation in lower case.
func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return fmt.Sprintf("Op(%d)", uint8(o))
}

var opNames = [...]string{"encode", "decode", "demote", "attend", "relevance", "gather"}

// Caps describes an open backend.
type Caps struct {
	Name    string // "cpu" or "cuda"
	Device  string // the name that the hardware reports
	ISA     string // "generic", "avx2", "avx512", "neon", "sm_90 int8": with the attention kernel
	Workers int    // parallel workers, 0 if not applicable
	Memory  int64  // bytes the backend may allocate, 0 if unknown
	// TableBytes is what a Table keeps of a block, in this process and on the device, where four or
	// more share layer, head and means.
	TableBytes int
	Reason     string // why no better backend was chosen; empty if this is the best
}

// Span is a range of bytes [Off, Off+Len) of a buffer. The zero Span means "not given".
type Span struct {
	Buf Buffer
	Off int64
	Len int64
}

// Given reports whether the span refers to a buffer.
func (s Span) Given() bool { return s.Buf != nil }

// Side is one packed side (K or V) of a block: rows*dim values as quant lays them out.
type Side struct {
	Coding quant.Coding
	Data   Span   // exactly Coding.PackedBytes(rows, dim) bytes, starting on 16 bytes
	Seed   uint64 // of the rotation; ignored by codings that are not rotated
}

// Block is a handle of packed rows of one (layer, kv_head). It owns no memory. Blocks may share
// spans: a fork that ends inside a segment lists a copy of its blocks with a Limit.
type Block struct {
	Layer, KVHead int32
	Rows          int32
	Base          int64 // position of the block's segment; positions mask, they do not rotate
	// The position of row r is Base + Pos[r] or, without Pos, Base + r*Stride. Rows may be in any
	// order.
	Stride int32 // 0: 1
	// Limit hides the rows from position Base + Limit on from every query. 0: no limit.
	Limit int32
	// A row stands for Count[r] tokens or, without Count, for Tokens of them.
	Tokens int32 // 0: 1
	// Offset is the RoPE shift of the segment: q is rotated by this many further positions before
	// its inner product with the block's K, so that shifting a context recodes nothing.
	Offset int32
	// Noise turns on the row bias; 0 is off. If e is the coding error of a row of K and s its row
	// scale, Noise is the expected e^2 per value over s^2 (quant.Coding.NoisePerScale2).
	Noise float32
	// Metric is the map that rows of K were multiplied with before they were coded; nil: none.
	Metric *frame.Metric
	K, V   Side // the zero V: the block has keys only, for Relevance
	Pos    Span // [rows] uint16, or not given
	Count  Span // [rows] uint16, each at least 1, or not given
	Bias   Span // [rows] float32 added to the row's score; not given: 0
	// MeanK and MeanV were taken off the rows before they were coded (frame.Center): [head_dim] and
	// [head_dim_v] binary16, in the original basis. Blocks of a segment share one span. They must be
	// there when the block is set, and must not change while a table holds it. Not given: 0.
	MeanK, MeanV Span
}

// Queries is a batch of queries with the list of blocks that each attends to (CSR). One query holds
// the query heads of one token that share a KV head.
type Queries struct {
	Q        []float32 // [n, group, head_dim], RoPE applied, original basis
	Group    int       // heads per query: the GQA ratio
	HeadDim  int
	HeadDimV int
	Scale    float32 // on q.k, most often 1/sqrt(head_dim)
	Softcap  float32 // score = Softcap*tanh(score/Softcap) before biases; 0 turns it off
	// Pos [n] are the positions of the queries. A query sees a row if 0 <= pos - row position and,
	// with Window > 0, pos - row position < Window: the positions in (pos - Window, pos]. nil: every
	// query sees every row (Window must be 0).
	Pos    []int64
	Window int64
	// The blocks of query i are BlockIdx[BlockPtr[i]:BlockPtr[i+1]], indices into a View.
	// All rotated K sides in one query's list share one seed, and so do its rotated V sides.
	BlockPtr []int32 // [n+1], ascending from 0
	BlockIdx []int32
}

// Len returns the number of queries.
func (q *Queries) Len() int {
	if len(q.BlockPtr) == 0 {
		return 0
	}
	return len(q.BlockPtr) - 1
}

// Attention receives the results of Attend. LSE and Mass may be nil.
type Attention struct {
	Out []float32 // [n, group, head_dim_v]
	LSE []float32 // [n, group]: log of the sum of exp(score)
	// Mass [len(BlockIdx)] is the attention that each entry of each list gets: the probabilities of
	// its rows, summed over them and over the query's heads. The masses of a query's list add up to
	// the number of its heads that see a row.
	Mass []float32
}

// RelevanceOut receives the sums of Relevance: row r of block b is Sum[RowPtr[b]+r].
type RelevanceOut struct {
	Power  int       // 1: sum of p; 2: sum of p^2
	RowPtr []int32   // [View.Len()+1]
	Sum    []float32 // [RowPtr[View.Len()]], Relevance adds to it
}

// EncodeJob packs Rows rows of Dim values.
type EncodeJob struct {
	Src    Span        // rows of SrcDType, row i at i*SrcStride bytes
	DType  quant.DType // element type of Src
	Stride int64       // bytes from row to row; 0: Dim * element size
	Index  Span        // [rows] int32: packed row i is source row Index[i]; not given: i
	Rows   int
	Dim    int
	Dst    Side
}

// DecodeJob unpacks Rows rows of Dim values to consecutive float32 rows in the original basis.
type DecodeJob struct {
	Src  Side
	Rows int
	Dim  int
	Dst  Span // rows*dim float32
}

// DemoteJob recodes Rows packed lm rows to To, a coding with the same options and fewer bits. Dst
// may start where Src starts; otherwise it must not overlap Src.
type DemoteJob struct {
	Src  Side
	To   quant.Coding
	Rows int
	Dim  int
	Dst  Span // To.PackedBytes(rows, dim) bytes
}

// GatherJob packs rows of packed sides into a new side, in order, without decoding them; see
// quant.Gather. The sources have the coding of Dst and, if it is rotated, its seed.
type GatherJob struct {
	Src []GatherRows
	Dim int
	Dst Side // of as many rows as are taken; it must not overlap a source
}

// GatherRows is some rows of a packed side.
type GatherRows struct {
	Side Side
	Rows int     // of the side
	Take []int32 // the rows that are taken, in this order; nil: all of them
}

// Len returns the number of rows that are taken.
func (g *GatherRows) Len() int {
	if g.Take == nil {
		return g.Rows
	}
	return len(g.Take)
}

// JobError names the job and the row of a batch that failed. It unwraps to the cause.
type JobError struct {
	Op  Op
	Job int
	Row int // -1 if no single row is at fault
	Err error
}

// Error names the operation, the job and the row.
func (e *JobError) Error() string {
	if e.Row < 0 {
		return fmt.Sprintf("kvist/backend: %s job %d: %v", e.Op, e.Job, e.Err)
	}
	return fmt.Sprintf("kvist/backend: %s job %d row %d: %v", e.Op, e.Job, e.Row, e.Err)
}

// Unwrap returns the cause.
func (e *JobError) Unwrap() error { return e.Err }

// BlockError names the block of a Table.Set that is wrong, by its index in the table. It unwraps to
// the cause.
type BlockError struct {
	Block int
	Err   error
}

// Error names the block.
func (e *BlockError) Error() string {
	return fmt.Sprintf("kvist/backend: block %d: %v", e.Block, e.Err)
}

// Unwrap returns the cause.
func (e *BlockError) Unwrap() error { return e.Err }
