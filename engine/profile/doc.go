// SPDX-License-Identifier: Apache-2.0

// Package profile reads and writes .kvprofile files. A profile holds what calibration and tuning
// measured about one model, so that its caches compress better.
//
// # Concepts
//
// A profile belongs to a model, which it knows by name and quant.Geometry. It holds sections. One tool
// makes a section, and only that tool replaces it:
//
//	section      holds                                              made by          read by
//	params       settings as text: signals, planner, menus          kvist tune       planner
//	sensitivity  multipliers of the damage of K and V per head      kvist tune       planner
//	basis        what rows are projected on, means, variances       kvist calibrate  archive
//	tables       static tables of the archive's coder               kvist calibrate  archive
//	predictors   what heads of a layer tell of each other           kvist calibrate  archive
//	queries      mean and variance of the queries of query heads    kvist calibrate  weights without queries
//
// A section is a list of Tensors: named arrays of a type and a shape, kept exactly. Params,
// Sensitivity and Queries are sections that this package understands, a list of key=value and arrays. The
// reader of any other section knows what its tensors mean; this package keeps them as they are.
// Meta tells people how a section was made (texts, seed, objective before and after). It has no
// effect on results.
//
// A Profile is immutable: With and its siblings return a new one that shares memory with the old. A
// tool opens a profile, replaces its own section, and writes the result; the other sections stay.
//
// # Identity
//
// ID is the SHA-256 of everything that has an effect: model, geometry and every section, in a
// canonical order. Meta and the packing of the file do not change it. Digest is the same of chosen
// sections. A file that needs a profile to be decoded names the digest of the sections that decoding
// uses, so that it still decodes after a later tuning.
//
// # Layout
//
// A .kvprofile is a file of package container, kind profile: header (geometry, model, meta),
// a side tensor for each tensor, index, trailer. There are no records.
//
//	0         +---------------------------------------------+
//	          | header: geometry, inv_freq, model,          |
//	          |   metadata "section.key" = value            |
//	          +---------------------------------------------+
//	          | KAUX "params/text"         U8  [bytes]      |
//	          | KAUX "sensitivity/k"       F32 [layers, kv_heads]
//	          | KAUX "sensitivity/v"       F32 [layers, kv_heads]
//	          | KAUX "basis/NAME"          any type and shape
//	          | KAUX "predictors/lanes"    U8  [bytes]      |
//	          | KAUX "queries/mean"        F32 [layers, heads, head_dim]
//	          | KAUX "queries/variance"    F32 [layers, heads, head_dim]
//	          | KAUX "tables/NAME"         any type and shape
//	          +---------------------------------------------+
//	          | index, trailer                              |
//	          +---------------------------------------------+
//
// Sections stand in the order of their names, tensors in the order of theirs. A section without
// tensors does not exist. Side tensors are stored deflated where that is smaller, so f16 or i8
// arrays cost what they must and text little.
//
// # Errors
//
//	quant.ErrCorrupt, quant.ErrVersion   *container.CorruptError, *container.RefusedError: the place
//	quant.ErrUnsupported                 the file is no profile, or a type is not known
//	quant.ErrTooLarge                    a limit
//	quant.ErrShape                       *MismatchError: the profile is of another model; and
//	                                     invalid names, values or shapes
//
// Read refuses a damaged profile as a whole, because a part of one would change results silently.
//
// # Concurrency
//
// A Profile may be used by any number of goroutines. What its methods return must not be changed.
//
// # Determinism
//
// The same content has the same ID on every machine. The bytes of a file are the same for the
// same version of compress/flate.
package profile
