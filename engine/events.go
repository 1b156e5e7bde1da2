// SPDX-License-Identifier: Apache-2.0

package engine

import "crypto/sha256"

// EventKind is what happened to shared prefixes.
type EventKind string

// The kinds of events.
const (
	Stored  EventKind = "stored"  // these tokens can be found now
	Removed EventKind = "removed" // they cannot any more
	Cleared EventKind = "cleared" // nothing can
)

// Where prefixes are found.
const (
	InMemory = "memory" // MatchPrefix finds them
	InStore  = "store"  // RecallPrefix does, until they expire
)

// Event tells a router or another cache which prefixes are here, as the KV events of other servers do. Every 64
// tokens have a key: an HMAC of them and of all before, under the salt of those who may share.
type Event struct {
	Kind   EventKind
	Where  string
	Parent [sha256.Size]byte   // key of the tokens before; zero if there are none
	Keys   [][sha256.Size]byte // one for each 64 tokens
	Tokens int64               // position behind the last of them
}

// emit tells Config.Events of a node of the index.
func emit(cfg *Config, kind EventKind, n *prefix) {
	if len(n.keys) > 0 {
		emitKeys(cfg, kind, InMemory, n.before, n.keys, n.seg.hi())
	}
}

// emitKeys tells Config.Events of the keys of tokens that end before position end.
func emitKeys(cfg *Config, kind EventKind, where string, parent key, keys []key, end int64) {
	if cfg.Events == nil {
		return
	}
	e := Event{Kind: kind, Where: where, Parent: parent, Tokens: end / prefixTokens * prefixTokens}
	for _, k := range keys {
		e.Keys = append(e.Keys, k)
	}
	cfg.Events(e)
}
