// SPDX-License-Identifier: Apache-2.0
//
// The structs that cross from the launchers to the kernels. kernels/params.go declares each of
// them again; the test of the ABI compares the numbers asserted here with Go's, and the size of
// every kernel's parameter with its PTX. Fixed-width fields, pointers as uint64, padding named.
#pragma once
#include "portable.cuh"

// Numbers of quant.Format, quant.ScaleRule, quant.ScaleForm and quant.DType.
enum Format : uint8_t {
  F32 = 1, F16 = 2, BF16 = 3, U8 = 4, LM1 = 5, LM2 = 6, LM3 = 7, LM4 = 8,
  GGML_Q8_0 = 16, GGML_Q4_0 = 17, TQMSE1 = 24, TQMSE2 = 25, TQMSE3 = 26, TQMSE4 = 27
};
enum Rule : uint8_t { LEAST_SQUARES = 0, LENGTH_KEEPING = 1, INNER_PRODUCT = 2 };
enum Form : uint8_t { SCALE_F16 = 0, SCALE_LOG8 = 1 };
enum DType : uint8_t { DT_F32 = 1, DT_F16 = 2, DT_BF16 = 3 };

#define TILE_ROWS 128  // rows that a thread block of attend has at work: one a thread
#define SUB_ROWS 32    // of them, rows of one block: one a lane

// One job of encode, decode or demote.
struct CodecJob {
  uint64_t src;     // encode: unpacked rows; decode, demote: packed side
  uint64_t dst;     // encode, demote: packed side; decode: float32 rows
  uint64_t index;   // encode: int32 [rows], or 0
  uint64_t scales;  // scratch, float32 [rows]
  uint64_t status;  // uint32 [2]: first row that is out of range, first scale that is
  uint64_t seed;
  int64_t stride;   // encode: bytes from row to row of src
  int32_t rows;
  int32_t dim;
  int32_t first;    // number of rows of the jobs before
  uint8_t format;   // of the packed side; of demote, of dst
  uint8_t rule;
  uint8_t form;
  uint8_t dtype;    // encode: of src
  uint8_t from;     // demote: format of src
  uint8_t pad[7];
};
static_assert(sizeof(CodecJob) == 80, "CodecJob.size");
static_assert(offsetof(CodecJob, stride) == 48, "CodecJob.stride");
static_assert(offsetof(CodecJob, first) == 64, "CodecJob.first");
static_assert(offsetof(CodecJob, from) == 72, "CodecJob.from");

struct CodecParams {
  uint64_t jobs;  // CodecJob [n_jobs]
  int32_t n_jobs;
  int32_t rows;   // of all jobs
  int32_t phase;  // encode: 0, then 1 for u8, whose codes need the stored scales
  int32_t shared; // floats of shared memory a warp has
};
static_assert(sizeof(CodecParams) == 24, "CodecParams.size");
static_assert(offsetof(CodecParams, phase) == 16, "CodecParams.phase");

// One job of gather: packed rows are copied to a new side.
struct GatherJob {
  uint64_t dst;
  uint64_t bases;  // uint64 [n_bases]: addresses of the bases of 8-bit logarithms of the sources
  int32_t rows, dim;
  int32_t first;    // number of rows of the jobs before
  int32_t n_bases;  // 0 for other scales
  uint8_t format, form;
  uint8_t pad[6];
};
static_assert(sizeof(GatherJob) == 40, "GatherJob.size");
static_assert(offsetof(GatherJob, first) == 24, "GatherJob.first");
static_assert(offsetof(GatherJob, format) == 32, "GatherJob.format");

// A row of a packed side of rows rows.
struct GatherRow {
  uint64_t side;
  int32_t rows, row;
};
static_assert(sizeof(GatherRow) == 16, "GatherRow.size");

struct GatherParams {
  uint64_t jobs;   // GatherJob [n_jobs]
  uint64_t taken;  // GatherRow [rows]
  int32_t n_jobs;
  int32_t rows;    // of all jobs
};
static_assert(sizeof(GatherParams) == 24, "GatherParams.size");
static_assert(offsetof(GatherParams, n_jobs) == 16, "GatherParams.n_jobs");

// One block as attend and relevance see it. It is resident: nothing of it depends on a call.
struct BlockDesc {
  uint64_t k, v, pos, count, bias;  // 0 where not given
  uint64_t mean_k, mean_v;          // binary16 [head_dim], [head_dim_v], or 0
  int64_t base;
  int32_t rows;
  int32_t stride;  // positions of rows without pos
  int32_t limit;   // rows from this position on are hidden; 0: none
  int32_t tokens;  // of a row without count
  float noise;
  uint8_t k_format, k_form, v_format, v_form;
};
static_assert(sizeof(BlockDesc) == 88, "BlockDesc.size");
static_assert(offsetof(BlockDesc, base) == 56, "BlockDesc.base");
static_assert(offsetof(BlockDesc, rows) == 64, "BlockDesc.rows");
static_assert(offsetof(BlockDesc, noise) == 80, "BlockDesc.noise");

// How some blocks meet queries: turned, then through a metric.
struct Variant {
  int32_t turn;    // entry of the table of turns, or -1
  int32_t metric;  // index of its first value in the metrics, or -1
  int32_t matrix;  // 1: a matrix, [head_dim, head_dim] of the inverse; 0: a diagonal, [head_dim]
  int32_t pad;
};
static_assert(sizeof(Variant) == 16, "Variant.size");

// Rows [row0, min(row0 + SUB_ROWS, rows)) of a block; block -1 is nothing.
struct SubTile {
  int32_t block, row0;
  int32_t variant;  // the same in all of a tile
  int32_t pad;
};
static_assert(sizeof(SubTile) == 16, "SubTile.size");
static_assert(offsetof(SubTile, variant) == 8, "SubTile.variant");

// The sub-tiles of an entry of a list.
struct EntryRange {
  int32_t sub0, sub1;
};
static_assert(sizeof(EntryRange) == 8, "EntryRange.size");

// Neighbouring heads whose queries have one list of blocks.
struct Unit {
  int32_t head0, heads;  // of the batch
  int32_t part0, parts;  // results of its pieces
  uint64_t k_seed, v_seed;
  int64_t mass0;            // index of its first result in the masses: [heads, entries]
  int32_t entry0, entries;  // in the entries
  int32_t k_rotated;        // some K side of the list is rotated
  int32_t v_means;          // some V side of the list has a mean
};
static_assert(sizeof(Unit) == 56, "Unit.size");
static_assert(offsetof(Unit, k_seed) == 16, "Unit.k_seed");
static_assert(offsetof(Unit, mass0) == 32, "Unit.mass0");
static_assert(offsetof(Unit, k_rotated) == 48, "Unit.k_rotated");

// Piece.rotated_v of pieces for kernels of their own.
#define CODED_V 1  // V is of lm1..lm4 or u8: small integers
#define PLANES 3   // K and V both are of lm1..lm4, in the shape of a kernel of attend_int8.cu

// A range of tiles of a unit's list: the work of one thread block. All its V sides are of one
// basis: rotated_v is 0 for the original one.
struct Piece {
  int32_t unit, tile0, tile1, rotated_v;
  int32_t gain0;  // index of its first sub-tile in the gains
  int32_t pad;
};
static_assert(sizeof(Piece) == 24, "Piece.size");
static_assert(offsetof(Piece, gain0) == 16, "Piece.gain0");

struct AttendParams {
  uint64_t q;         // float32 [heads, head_dim]
  uint64_t pos;       // int64 [queries], or 0
  uint64_t blocks;    // BlockDesc
  uint64_t units;     // Unit
  uint64_t pieces;    // Piece
  uint64_t tiles;     // SubTile [tiles, TILE_ROWS / SUB_ROWS]
  uint64_t variants;  // Variant
  uint64_t turns;     // float32 [turns, 2, pairs]: sines, then cosines
  uint64_t metrics;   // float32
  uint64_t parts;     // float32 [pieces, heads of a unit, 2 + head_dim_v]
  uint64_t gains;     // float32 [sub-tiles of pieces, heads of a unit, 2]: sum of weights and its
                      // reference; or 0
  uint64_t entries;   // EntryRange
  uint64_t out;       // float32 [heads, head_dim_v]
  uint64_t lse;       // float32 [heads]
  uint64_t masses;    // float32, by Unit.mass0; or 0
  int64_t window;
  float scale;
  float softcap;
  int32_t head_dim, head_dim_v;
  int32_t group;
  int32_t pairs;        // RoPE pairs
  int32_t interleaved;  // 1: pair (2i, 2i+1); 0: (i, i + pairs)
  int32_t unit_heads;   // heads that a unit has room for
  int32_t skip;         // bit i: attend leaves pieces whose rotated_v is i to another kernel
  int32_t pad;
};
static_assert(sizeof(AttendParams) == 168, "AttendParams.size");
static_assert(offsetof(AttendParams, gains) == 80, "AttendParams.gains");
static_assert(offsetof(AttendParams, window) == 120, "AttendParams.window");
static_assert(offsetof(AttendParams, head_dim) == 136, "AttendParams.head_dim");
static_assert(offsetof(AttendParams, unit_heads) == 156, "AttendParams.unit_heads");

// Heads [head0, head1) of the list of users of a block, on 32 of its rows.
struct RelevanceItem {
  int32_t block, row0;
  int32_t user0, users;  // in the list of users
  uint64_t seed;
  int32_t variant;
  int32_t pad;
};
static_assert(sizeof(RelevanceItem) == 32, "RelevanceItem.size");
static_assert(offsetof(RelevanceItem, variant) == 24, "RelevanceItem.variant");

struct RelevanceParams {
  uint64_t q, pos, blocks, variants, turns, metrics;  // as in AttendParams
  uint64_t lse;    // float32 [heads]
  uint64_t items;  // RelevanceItem
  uint64_t users;  // int32: queries
  uint64_t out;    // float64 [items, SUB_ROWS]
  int64_t window;
  float scale;
  float softcap;
  int32_t head_dim;
  int32_t group;
  int32_t pairs;
  int32_t interleaved;
  int32_t power;
  int32_t pad;
};
static_assert(sizeof(RelevanceParams) == 120, "RelevanceParams.size");
static_assert(offsetof(RelevanceParams, window) == 80, "RelevanceParams.window");
static_assert(offsetof(RelevanceParams, head_dim) == 96, "RelevanceParams.head_dim");
static_assert(offsetof(RelevanceParams, power) == 112, "RelevanceParams.power");

struct ResidualParams {
  uint64_t x;        // float32 [order + rows, dim], the rows before the first one at the front
  uint64_t weights;  // float64 [rows, order], of the newest row first
  uint64_t out;      // float64 [rows, 2]: energy of the residual, of the row
  int32_t rows, dim, order;
  int32_t pad;
};
static_assert(sizeof(ResidualParams) == 40, "ResidualParams.size");
static_assert(offsetof(ResidualParams, rows) == 24, "ResidualParams.rows");
