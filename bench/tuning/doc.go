// SPDX-License-Identifier: Apache-2.0

// Package tuning measures in a model what kvist tune and kvist calibrate --model decide by.
//
// # Concepts
//
//   - Objective is what kvist tune minimizes: the divergence of kvist at some rates over texts, and
//     a penalty for answers that compression loses. It is a tune.Objective.
//   - Sensitivities are the divergence that an error in each head causes, beside what the planner
//     expects of it. Their factors go into a profile.
//   - ArchiveSteps is the same for the archive: how much finer or coarser the steps of each layer
//     should be.
//
// # Errors
//
// quant.ErrShape for texts and options that do not fit together; those of packages model and
// kvfile.
//
// # Concurrency
//
// An Objective may be used from many goroutines; each call uses the workers of the model.
//
// # Determinism
//
// The same model, texts and settings give the same numbers on the same instruction set.
package tuning
