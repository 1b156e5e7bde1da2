// SPDX-License-Identifier: Apache-2.0

package resp

import (
	"container/list"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/kvist-project/kvist/engine/store/packed"
	"github.com/kvist-project/kvist/quant"
)

// Event tells what happened to a key, as one line of JSON.
type Event struct {
	Kind   string    `json:"event"` // "stored", "removed", "cleared"
	Key    string    `json:"key,omitempty"`
	Raw    []byte    `json:"key_base64,omitempty"` // in the place of a key that is no UTF-8
	Why    string    `json:"why,omitempty"`        // of "removed": "deleted", "expired", "evicted", "damaged"
	Bytes  int64     `json:"bytes,omitempty"`      // of the value
	Packed int64     `json:"packed,omitempty"`     // what it takes
	At     time.Time `json:"at"`
}

// value is a packed value.
type value struct {
	key     string
	data    []byte // packed
	bytes   int64
	crc     uint32    // of the value, to tell that the same is set again
	expires time.Time // zero: never
}

// entryBytes is what an entry is taken to hold beside key and data.
const entryBytes = 256

func (v *value) held() int64 { return int64(len(v.data)+len(v.key)) + entryBytes }

// values is a map with a limit.
type values struct {
	most   int64
	raw    bool // values are not packed
	now    func() time.Time
	events io.Writer // nil: nobody is told

	mu    sync.Mutex
	at    map[string]*list.Element // of *value
	order *list.List               // the one used last first
	count Counts
}

// Counts are numbers of a server since it began; those of what it holds are those of now.
type Counts struct {
	Keys, Bytes, Packed, Held                int64
	Sets, Same, Gets, Misses                 uint64
	Deleted, Expired, Evicted, Damaged, Full uint64
	Connections, Refused                     uint64
}

func newValues(most int64, raw bool, now func() time.Time, events io.Writer) *values {
	return &values{most: most, raw: raw, now: now, events: events, at: map[string]*list.Element{}, order: list.New()}
}

// tell writes an event. Under the lock, so that events are in order.
func (v *values) tell(e Event, key string) {
	if v.events == nil {
		return
	}
	if e.At = v.now().UTC(); utf8.ValidString(key) {
		e.Key = key
	} else {
		e.Raw = []byte(key)
	}
	if line, err := json.Marshal(e); err == nil {
		_, _ = v.events.Write(append(line, '\n'))
	}
}

// find returns what is under a key, and removes it if it has expired.
func (v *values) find(key string) *value {
	e := v.at[key]
	if e == nil {
		return nil
	}
	x := e.Value.(*value)
	if !x.expires.IsZero() && !x.expires.After(v.now()) {
		v.count.Expired++
		v.drop(e, "expired")
		return nil
	}
	return x
}

func (v *values) drop(e *list.Element, why string) {
	x := v.order.Remove(e).(*value)
	delete(v.at, x.key)
	v.count.Keys--
	v.count.Bytes -= x.bytes
	v.count.Packed -= int64(len(x.data))
	v.count.Held -= x.held()
	v.tell(Event{Kind: "removed", Why: why, Bytes: x.bytes, Packed: int64(len(x.data))}, x.key)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// When a value is set.
const (
	always = iota
	ifAbsent
	ifPresent
)

// set stores a value. ok is false if it was not to be stored as things are.
//
// Errors: quant.ErrTooLarge for more than the limit.
func (v *values) set(key string, data []byte, expires time.Time, when int) (ok bool, err error) {
	x := &value{key: key, bytes: int64(len(data)), crc: crc32.Checksum(data, castagnoli), expires: expires}
	v.mu.Lock()
	old := v.find(key)
	if when == ifAbsent && old != nil || when == ifPresent && old == nil {
		v.mu.Unlock()
		return false, nil
	}
	v.mu.Unlock()
	x.data = v.pack(data, old, x)
	v.mu.Lock()
	defer v.mu.Unlock()
	if x.held() > v.most {
		v.count.Full++
		return false, fmt.Errorf("a value that takes %d bytes, the limit is %d: %w", x.held(), v.most, quant.ErrTooLarge)
	}
	old = v.find(key)
	if when == ifAbsent && old != nil { // another one was faster
		return false, nil
	}
	if old != nil {
		v.order.Remove(v.at[key])
		v.count.Keys--
		v.count.Bytes -= old.bytes
		v.count.Packed -= int64(len(old.data))
		v.count.Held -= old.held()
	}
	for v.count.Held+x.held() > v.most {
		v.count.Evicted++
		v.drop(v.order.Back(), "evicted")
	}
	v.at[key] = v.order.PushFront(x)
	v.count.Keys++
	v.count.Bytes += x.bytes
	v.count.Packed += int64(len(x.data))
	v.count.Held += x.held()
	v.count.Sets++
	v.tell(Event{Kind: "stored", Bytes: x.bytes, Packed: int64(len(x.data))}, key)
	return true, nil
}

// pack returns the packed value: that of old, if it is the same.
func (v *values) pack(data []byte, old, x *value) []byte {
	if old != nil && old.bytes == x.bytes && old.crc == x.crc {
		if have, err := packed.Unpack(old.data, old.bytes); err == nil && string(have) == string(data) {
			v.mu.Lock()
			v.count.Same++
			v.mu.Unlock()
			return old.data
		}
	}
	if v.raw {
		return packed.Raw(data)
	}
	return packed.Pack(data)
}

// get returns a value. nil: there is none.
func (v *values) get(key string) []byte {
	v.mu.Lock()
	v.count.Gets++
	x := v.find(key)
	if x == nil {
		v.count.Misses++
		v.mu.Unlock()
		return nil
	}
	v.order.MoveToFront(v.at[key])
	v.mu.Unlock()
	data, err := packed.Unpack(x.data, x.bytes) // it does not change, also if it goes meanwhile
	if err == nil {
		return data
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.count.Damaged++
	if e := v.at[key]; e != nil && e.Value == x {
		v.drop(e, "damaged")
	}
	return nil
}

// size returns the bytes of a value.
func (v *values) size(key string) (n int64, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if x := v.find(key); x != nil {
		return x.bytes, true
	}
	return 0, false
}

func (v *values) delete(key string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.find(key) == nil {
		return false
	}
	v.count.Deleted++
	v.drop(v.at[key], "deleted")
	return true
}

func (v *values) clear() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.at, v.count.Keys, v.count.Bytes, v.count.Packed, v.count.Held = map[string]*list.Element{}, 0, 0, 0, 0
	v.order.Init()
	v.tell(Event{Kind: "cleared"}, "")
}

func (v *values) counts() Counts {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.count
}
