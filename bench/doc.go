// SPDX-License-Identifier: Apache-2.0

// Package bench holds what measures kvist: bench/quality holds the reference methods and the
// evaluation in a model that engine/model runs. Results, with the commands that made them, are in
// bench/results. Nothing here is linked into a server.
package bench
