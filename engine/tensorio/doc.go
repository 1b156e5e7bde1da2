// SPDX-License-Identifier: Apache-2.0

// Package tensorio converts between gorgonia.org/tensor and the rows of package quant, without a
// copy: a tensor and its rows share memory.
//
// # Concepts
//
// FromDense returns the rows of a tensor. The last dimension is the row, all dimensions before it
// count rows: a tensor [tokens, kv_heads, head_dim] has tokens*kv_heads rows of head_dim values. A
// vector is one row. ToDense makes a tensor of rows.
//
// Rows go into quant.Encode, or into the memory of a backend. To decode into a tensor, pass its rows
// to quant.Decode as the destination.
//
// No other package of kvist imports gorgonia.org/tensor: a program that does not import tensorio
// does not link it.
//
// # What is accepted
//
// Tensors of float32 in row-major order whose values lie one after another in Go's memory. Views,
// transposed tensors, masked tensors, tensors in column-major order, in memory of a device or of
// other element types are refused. To pass one of them, materialize it: t.T() followed by
// t.Transpose(), or t.Materialize() of a view.
//
// # Errors
//
//	quant.ErrUnsupported   *LayoutError: why the tensor has no rows in memory
//	quant.ErrShape         shapes that do not fit, a scalar, no tensor
//
// # Concurrency
//
// The functions are pure. Rows and tensor are one memory: a goroutine that writes one of them must be
// ordered with those that read the other. A tensor must not be given back to Gorgonia's pool
// (tensor.ReturnTensor) while its rows are in use.
package tensorio
