// SPDX-License-Identifier: Apache-2.0

// Package engine is a serving cache: it holds the K and V of the conversations of an inference server
// within a budget of bytes, for ever. A server appends K and V, asks for attention, forks and rolls back.
// When the budget is used up, the cache lets detail fade where it matters least.
//
// # Concepts
//
// A Cache is opened on a backend.Backend with a budget. A Sequence is one conversation. A Step adds tokens
// to one or many sequences at once: Append takes the K and V of a layer, Attend the queries, Commit keeps
// the tokens, all of them or the first ones that a speculation got right, and Rollback forgets them.
//
// The life of a token:
//
//	window     f16, exact             the last Config.Window tokens and the page that they end in
//	open       the starting coding    pages of 32 tokens that have left the window
//	sorted     what pressure makes    closed segments of Config.Segment tokens: the rows of each head
//	                                  sorted by the attention they get, in blocks of 32
//	dropped    nothing
//
// A sequence is idle when it was said to Rest, or was in none of the last Config.IdleSteps steps. Under pressure
// all of an idle sequence is sorted, its window too; its next step begins a new window.
//
// The first Config.Sinks tokens stay f16. The starting coding is f16 until Config.Exact of the budget is
// used; then it is what the budget affords.
//
// # Pressure
//
// A side (K or V) of a sorted block goes down a ladder: f16, u8, lm4, lm3, lm2, lm1, and at last the block
// is dropped. The cache does first what costs least damage for each byte that it frees. The damage is the
// attention that the block gets from recent queries, times the error that the next coding adds, relative
// to the output of the layer. For that, a few recent queries of every layer are kept. Past queries do not know what
// later ones ask for: some of those are taken to look for one row, whichever, and to miss it the sooner the coarser
// its K is. So K keeps more bits than V, and rows that nobody has read yet keep some.
//
// Pressure works between steps, in Commit and Begin, in batches that are bounded in Commit. Begin takes all
// the memory that its step needs, so a step that has begun does not run out of it.
//
// # Bytes
//
// Every byte counts before it is used: rows, positions, descriptors, kept queries, keys of prefixes, and the
// scratch memory of steps. Rows live in slabs of the backend's memory. Slots of one size are dense in
// their slabs, so that memory which a demotion frees can be used for any other coding. What a backend or a
// store allocates for itself during a call is not in the budget.
//
// # Sharing
//
// Fork shares closed segments and copies the open ones. MatchPrefix finds closed segments by the tokens in
// them, under the salt of those who may share. Shared bytes are charged once.
//
// # Tiers
//
// Park moves an idle sequence to Config.Store, packed as it is, and Resume brings it back without the model.
// Segments that sequences share are named by what is in them and put once; RecallPrefix finds them by their
// tokens. Save and Load do the same with a .kvist file. What comes back is what it was, to the last bit. These
// calls hold the lock of the cache only while they copy: others go on meanwhile.
//
// # Determinism
//
// Whether a query reads a token exact or packed depends on their positions only. Without pressure the
// stored bytes do not depend on how tokens were divided into steps, nor do outputs on a backend whose
// results do not depend on the batch. Under pressure the state is a function of the tokens and queries,
// the seed and the order of calls.
//
// # Errors
//
// Errors are *CallError and name call and sequence; errors.Is finds their category.
//
//	quant.ErrShape        wrong lengths or order of calls; a sequence with a step under way
//	quant.ErrRange        K or V that binary16 cannot hold
//	quant.ErrBudget       Open or Begin: the budget can never hold this
//	quant.ErrFull         nothing is left to give: other sequences hold exact windows, or are pinned
//	quant.ErrUnsupported  dims that the backend cannot code; rows that windowed layers have freed
//	quant.ErrClosed       the cache, the sequence or the step was closed
//	quant.ErrCorrupt      Load, Resume: damage in a file or a store
//	*store.ForeignError   Load, Resume: written for another salt, model, profile, geometry or version
//
// A failed call changes nothing, unless the backend fails in the middle of a change: then the cache is
// unusable, and every call but Close says so.
//
// # Concurrency
//
// All methods may be called from many goroutines. A sequence takes one step at a time, and a Step belongs to
// one goroutine. Appends and attention of different steps run in parallel. Calls that take or free memory
// (Begin, Commit, Fork and so on) exclude each other and wait for attention that is running.
//
// # Below this package
//
// Packages below engine take a backend.Backend as an argument and never import auto or cuda. kvfile and report
// import cpu, for calls that are given no backend.
package engine
