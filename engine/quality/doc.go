// SPDX-License-Identifier: Apache-2.0

// Package quality measures what compression did to a cache, from captures alone: squared errors
// of rows, and the error of future attention.
//
// # Concepts
//
// Future-attention error: the queries of the tokens that came after the captured context (q_next)
// attend to the compressed context and, causally, to their own exact tail (k_next, v_next). The
// metric is the squared error of the attention output over its squared length, summed over all
// queries and heads of a layer, against the same attention over the exact context. It sees what
// errors of single rows do not: which rows matter.
//
// It says nothing about what a model makes of the error; that is measured in a model (package
// bench/quality).
//
// # Errors
//
// Those of the backend, and quant.ErrShape.
package quality
