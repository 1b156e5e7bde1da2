// SPDX-License-Identifier: Apache-2.0

package kernels

// The structs of src/params.cuh, which explains each field. Addresses are device addresses.

// Constants that the launchers share with the kernels.
const (
	TileRows    = 128 // TILE_ROWS
	SubRows     = 32  // SUB_ROWS
	BookFloats  = 64  // room for BOOK_FLOATS in shared memory
	NoBlock     = -1  // SubTile.Block of an empty sub-tile
	NoTurn      = -1  // Variant.Turn for offset 0
	StatusClean = ^uint32(0)
	CodedV      = 1  // Piece.RotatedV of integer codes
	OtherV      = 2  // Piece.RotatedV of other rotated codings
	Planes      = 3  // PLANES: Piece.RotatedV of K and V for the integer kernels
	PieceTiles  = 16 // PIECE_TILES: tiles of such a piece, at most
)

// Int8Shared returns the shared memory of the integer kernels for rows of dim values: Int8Area of
// attend_int8.cuh.
func Int8Shared(dim int) int { return 32*dim + 2496 + 4*(64*dim+7216) }

// CodecJob is one job of encode, decode or demote.
type CodecJob struct {
	Src, Dst, Index, Scales, Status uint64
	Seed                            uint64
	Stride                          int64
	Rows, Dim, First                int32
	Format, Rule, Form, DType       uint8
	From                            uint8
	Pad                             [7]uint8
}

// CodecParams is the parameter of the kernels of codec.cu.
type CodecParams struct {
	Jobs                       uint64
	NJobs, Rows, Phase, Shared int32
}

// GatherJob is one job of gather.
type GatherJob struct {
	Dst, Bases               uint64
	Rows, Dim, First, NBases int32
	Format, Form             uint8
	Pad                      [6]uint8
}

// GatherRow is a row that gather takes.
type GatherRow struct {
	Side      uint64
	Rows, Row int32
}

// GatherParams is the parameter of kvist_gather.
type GatherParams struct {
	Jobs, Taken uint64
	NJobs, Rows int32
}

// BlockDesc describes one block for attend and relevance.
type BlockDesc struct {
	K, V, Pos, Count, Bias         uint64
	MeanK, MeanV                   uint64
	Base                           int64
	Rows, Stride, Limit, Tokens    int32
	Noise                          float32
	KFormat, KForm, VFormat, VForm uint8
}

// Variant says how some blocks meet queries.
type Variant struct{ Turn, Metric, Matrix, Pad int32 }

// SubTile is up to SubRows rows of a block.
type SubTile struct{ Block, Row0, Variant, Pad int32 }

// EntryRange is the sub-tiles of an entry of a list.
type EntryRange struct{ Sub0, Sub1 int32 }

// Unit is a range of heads whose queries share a list of blocks.
type Unit struct {
	Head0, Heads, Part0, Parts int32
	KSeed, VSeed               uint64
	Mass0                      int64
	Entry0, Entries            int32
	KRotated, VMeans           int32
}

// Piece is a range of tiles of a unit's list.
type Piece struct{ Unit, Tile0, Tile1, RotatedV, Gain0, Pad int32 }

// AttendParams is the parameter of kvist_attend_* and kvist_combine.
type AttendParams struct {
	Q, Pos, Blocks, Units, Pieces, Tiles, Variants, Turns   uint64
	Metrics, Parts, Gains, Entries, Out, LSE, Masses        uint64
	Window                                                  int64
	Scale, Softcap                                          float32
	HeadDim, HeadDimV, Group, Pairs, Interleaved, UnitHeads int32
	Skip, Pad                                               int32
}

// RelevanceItem is a range of a block's users and SubRows of its rows.
type RelevanceItem struct {
	Block, Row0, User0, Users int32
	Seed                      uint64
	Variant, Pad              int32
}

// RelevanceParams is the parameter of kvist_relevance.
type RelevanceParams struct {
	Q, Pos, Blocks, Variants, Turns, Metrics, LSE, Items, Users, Out uint64
	Window                                                           int64
	Scale, Softcap                                                   float32
	HeadDim, Group, Pairs, Interleaved, Power, Pad                   int32
}

// ResidualParams is the parameter of kvist_residual.
type ResidualParams struct {
	X, Weights, Out  uint64
	Rows, Dim, Order int32
	Pad              int32
}
