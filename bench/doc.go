// SPDX-License-Identifier: Apache-2.0

// Package bench holds what measures kvist: bench/methods has the reference methods, bench/quality
// evaluates methods in a model that engine/model runs, bench/tuning measures in it what kvist tune
// and kvist calibrate decide by. Results, with the commands that made them, are in bench/results.
// Nothing here is linked into a server.
package bench
