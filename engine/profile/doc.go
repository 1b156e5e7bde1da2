// SPDX-License-Identifier: Apache-2.0

// Package profile reads and writes .kvprofile files: what was learnt about one model, for
// compressing its caches better.
//
// # Concepts
//
// A profile belongs to a model: its name and its quant.Geometry. It holds sections, each of which
// was made by one tool and is replaced by that tool alone:
//
//	section      holds                                              made by          read by
//	params       settings as text: signals, planner, menus          kvist tune       planner
//	sensitivity  multipliers of the damage of K and V per head      kvist tune       planner
//	basis        what rows are projected on, means, variances       kvist calibrate  archive
//	tables       static tables of the archive's coder               kvist calibrate  archive
//
// Params is a list of key=value, Sensitivity two matrices, and any section is a list of Tensors:
// named arrays of a type and a shape, kept exactly, whose meaning is their reader's. Meta says
// how a section was made (texts, seed, objective before and after): it informs and never acts.
// Sections that this package does not know are kept and written back as they are.
//
// A Profile never changes: With... returns a new one that shares memory with the old. So tools
// Open, With..., Write, and each leaves the sections of the others alone.
//
// # Identity
//
// ID is the SHA-256 of all that acts: model, geometry and every section, in a canonical order,
// without the meta and however the bytes were packed in the file. Digest is the same of chosen
// sections only: files that need a profile to be decoded name the digest of the sections that
// decoding takes, so that a later tuning does not orphan them.
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
//	quant.ErrCorrupt, quant.ErrVersion   *container.CorruptError, *container.RefusedError: where
//	quant.ErrUnsupported                 the file is no profile, or a type is not known
//	quant.ErrTooLarge                    a limit
//	quant.ErrShape                       *MismatchError: the profile is of another model; and
//	                                     names, values or shapes that cannot be
//
// A damaged profile is refused as a whole: half of one would change results silently.
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
