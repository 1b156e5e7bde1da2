// SPDX-License-Identifier: Apache-2.0

// Package input holds the rows that compression works on, wherever they come from: K, V and Q of layers, or
// tensors of activations, behind one small interface. It also takes rows as they are into the memory of a
// backend.
package input
