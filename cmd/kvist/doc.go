// SPDX-License-Identifier: Apache-2.0

// Command kvist compresses KV caches of language models, hidden states and embeddings. It shows what
// was kept and what it cost.
//
// # Verbs
//
//	kvist compress    a capture (safetensors, .npy, .npz, GGUF) to a .kvist file
//	kvist decompress  a .kvist file back to a capture
//	kvist verify      every checksum of a file, and its error against the original
//	kvist inspect     what is in a .kvist file or a capture, with its spectrum
//	kvist report      one HTML page about a file
//	kvist capture     K, V and queries of a model on a text, as a capture
//	kvist eval        how compression methods change the predictions of a model
//	kvist bench       what it costs and gains on this machine
//	kvist chat        talk to a model whose cache keeps a budget
//	kvist serve       the same over HTTP, as OpenAI's API
//	kvist doctor      the backends of this machine, and a self-test
//	kvist version     version and build
//	kvist completion  shell completion
//
// The packages under engine do the work; the verbs read flags and print. "-" means standard input or
// output: input is spooled to a temporary file, and output is passed on only when it is complete.
//
// # Errors
//
// A verb prints one line on standard error, "kvist: ...". Exit status: 0 success; 1 failure (a missing
// file, a full disk, a budget that cannot be met, something unsupported); 2 wrong usage; 3 the input
// is damaged, or is a .kvist file or profile that this build cannot read; 130 interrupted; 143 ended
// by SIGTERM or SIGHUP.
//
// # Terminals
//
// Names, metadata and paths may hold characters that a terminal acts on: escape sequences, other
// control characters, changes of direction. All text passes through the writer of internal/visible,
// which shows them as \x1b or \u202e; verbs do not escape text themselves. Files on standard output
// (-o -) pass unchanged. Long strings are cut, with a note of the length that was cut.
//
// # Concurrency
//
// A process runs one verb. A signal cancels the work, and incomplete outputs are removed. A second
// signal ends the process at once.
package main
