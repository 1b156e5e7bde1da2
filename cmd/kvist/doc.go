// SPDX-License-Identifier: Apache-2.0

// Command kvist compresses KV caches of language models, hidden states and embeddings, and shows
// what was kept and what it cost.
//
// # Verbs
//
//	kvist compress    a capture (safetensors, .npy, .npz, GGUF) to a .kvist file
//	kvist decompress  a .kvist file back to a capture
//	kvist verify      every checksum of a file, and its error against the original
//	kvist inspect     what is in a .kvist file or a capture, with its spectrum
//	kvist report      one HTML page about a file
//	kvist capture     K, V and queries of a model on a text, as a capture
//	kvist eval        what methods of compression do to the predictions of a model
//	kvist doctor      the backends of this machine, and a self-test
//	kvist version     version and build
//	kvist completion  shell completion
//
// All work is done by the packages under engine; the verbs read flags and print. "-" stands for
// standard input or output: input is spooled to a temporary file, output is handed on only when
// it is complete.
//
// # Errors
//
// One line on standard error, "kvist: ...". Exit status: 0 done; 1 failed (a missing file, a full
// disk, a budget that cannot be met, something not supported); 2 wrong usage; 3 the input is damaged,
// or a .kvist file or profile that this build does not read; 130 interrupted; 143 ended by SIGTERM
// or SIGHUP.
//
// # Terminals
//
// Names, metadata and paths may hold what a terminal acts on: escape sequences, other controls,
// changes of direction. All text passes through the writer of internal/visible, which shows them as
// \x1b or \u202e; no verb escapes anything by itself. Files on standard output (-o -) pass as they
// are. Long strings are cut, and it is said how much was cut.
//
// # Concurrency
//
// One verb a process. A signal cancels the work, and nothing is left of an output that is not complete;
// a second one ends the process at once.
package main
