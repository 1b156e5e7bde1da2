// SPDX-License-Identifier: Apache-2.0

// Package archive codes activations by transform and entropy coder.
package archive
