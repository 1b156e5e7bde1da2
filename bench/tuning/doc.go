// SPDX-License-Identifier: Apache-2.0

// Package tuning makes the measurements in a model that kvist tune and kvist calibrate --model use.
//
// # Concepts
//
//   - An Objective is the function that kvist tune minimizes: the divergence of kvist at some rates
//     over texts, plus a penalty for answers that compression loses. It is a tune.Objective.
//   - Sensitivities hold the divergence that an error in each head causes, and the damage that the
//     planner predicts for it. A profile stores their ratio.
//   - ArchiveSteps returns how much finer or coarser each layer of an archive should be coded.
//
// # Errors
//
// quant.ErrShape reports texts and options that do not fit together. Errors of packages model and
// kvfile are returned as they are.
//
// # Concurrency
//
// An Objective may be used from many goroutines; each call uses the workers of the model.
//
// # Determinism
//
// The same model, texts and settings give the same numbers on the same instruction set.
package tuning
