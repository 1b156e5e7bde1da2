// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// note is what the folder says of a parked conversation: a file "<id>.json" beside the store. It is written when
// all of the conversation is in the store, and removed before any of it is discarded.
type note struct {
	ID     string    `json:"id"`
	Salt   []byte    `json:"salt"`
	Model  string    `json:"model"`
	Tokens []int32   `json:"tokens"`
	Key    store.Key `json:"key"`
	Bytes  int64     `json:"bytes"` // that its rows took in memory
	Parked time.Time `json:"parked"`
	Pinned bool      `json:"pinned,omitempty"`
	Check  uint32    `json:"crc32c"` // of the JSON of the note with 0 in its place: the store vouches for the rows alone
}

// sum returns what Check should be.
func (n note) sum() (uint32, error) {
	n.Check = 0
	b, err := json.Marshal(n)
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)), err
}

// parkedFor is how long a conversation stays parked that nobody goes on with.
const parkedFor = 30 * 24 * time.Hour

// parkTries is how often a conversation gives up parkGives of its bytes, so that there is memory to move it in.
const (
	parkTries = 4
	parkGives = 0.1
)

// mostNotes bounds the conversations in the folder, mostNoteBytes a note.
const (
	mostNotes     = 4096
	mostNoteBytes = 64 << 20
)

// shelf is the folder of parked conversations.
type shelf struct {
	dir   string // of the notes
	disk  *store.Disk
	cache *engine.Cache
	model string
	notes []*note // the longest parked first
	log   *slog.Logger
}

// openShelf opens a folder: "rows" in it is the store, "notes" the notes. What is no note is left alone.
func openShelf(folder, model string, log *slog.Logger) (*shelf, error) {
	s := &shelf{dir: filepath.Join(folder, "notes"), model: model, log: log}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	disk, err := store.OpenDisk(filepath.Join(folder, "rows"), store.DiskOptions{})
	if err != nil {
		return nil, err
	}
	s.disk = disk
	if err := s.read(); err != nil {
		return nil, errors.Join(err, disk.Close())
	}
	return s, nil
}

// read reads the notes of the model.
func (s *shelf) read() error {
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !e.Type().IsRegular() {
			continue
		}
		n, err := readNote(filepath.Join(s.dir, e.Name()))
		if err == nil && n.ID != id {
			err = fmt.Errorf("it is that of conversation %q: %w", n.ID, quant.ErrCorrupt)
		}
		if err != nil {
			s.log.Warn("kvist: a note of a parked conversation is not read", "file", e.Name(), "error", err)
			continue
		}
		if n.Model == s.model {
			s.notes = append(s.notes, n)
		}
	}
	slices.SortFunc(s.notes, func(a, b *note) int { return cmp.Or(a.Parked.Compare(b.Parked), cmp.Compare(a.ID, b.ID)) })
	return nil
}

func readNote(path string) (*note, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it is only read
	n := &note{}
	if err := json.NewDecoder(io.LimitReader(f, mostNoteBytes)).Decode(n); err != nil {
		return nil, err
	}
	sum, err := n.sum()
	if err == nil && sum != n.Check {
		err = fmt.Errorf("the checksum is wrong: %w", quant.ErrCorrupt)
	}
	return n, err
}

// park moves a conversation to the store. It is then no longer in memory.
func (s *shelf) park(c *conversation) error {
	ctx := context.Background()
	n := &note{ID: c.id, Salt: c.salt, Model: s.model, Tokens: c.tokens, Bytes: c.seq.Bytes(), Pinned: c.pinned,
		Parked: time.Now().UTC().Round(0)}
	key, err := c.seq.Park(ctx, c.salt, n.Parked.Add(parkedFor))
	for range parkTries {
		var disk *store.Error // full as well, but no row that goes makes room there
		if !errors.Is(err, quant.ErrFull) || errors.As(err, &disk) {
			break
		}
		// Moving takes memory for a part of the rows, and a full cache may have none but what the rows give up.
		if err := c.seq.Demote(parkGives); err != nil {
			return err
		}
		key, err = c.seq.Park(ctx, c.salt, n.Parked.Add(parkedFor))
	}
	if err != nil {
		return err
	}
	n.Key = key
	if err := s.write(n); err != nil {
		err = errors.Join(err, s.unpark(c, n))
		s.discard(n)
		return err
	}
	if old := s.take(n.ID); old != nil { // what was parked before
		s.discard(old)
	}
	s.notes = append(s.notes, n)
	return s.tidy()
}

// tidy drops the notes that are too many, and those of what the store has no longer.
func (s *shelf) tidy() error {
	for len(s.notes) > mostNotes || len(s.notes) > 0 && time.Since(s.notes[0].Parked) > parkedFor {
		if err := s.drop(s.notes[0].ID); err != nil {
			return err
		}
	}
	return nil
}

// unpark brings a conversation back of which nothing says that it was parked.
func (s *shelf) unpark(c *conversation, n *note) error {
	seq, err := s.cache.Resume(context.Background(), n.Salt, n.Key)
	if err == nil {
		c.seq = seq
		err = seq.Pin(c.pinned)
	}
	c.lost = err != nil
	return err
}

func (s *shelf) path(id string) string { return filepath.Join(s.dir, id+".json") }

func (s *shelf) write(n *note) (err error) {
	if n.Check, err = n.sum(); err != nil {
		return err
	}
	f, err := atomicfile.Create(s.path(n.ID), true)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o600), json.NewEncoder(f).Encode(n)); err != nil {
		return errors.Join(err, f.Abort())
	}
	return f.Commit()
}

// take removes a note from the list and returns it; nil if there is none.
func (s *shelf) take(id string) *note {
	for i, n := range s.notes {
		if n.ID == id {
			s.notes = slices.Delete(s.notes, i, i+1)
			return n
		}
	}
	return nil
}

// discard removes what the store has of a note. What cannot be removed takes room, and nothing else.
func (s *shelf) discard(n *note) {
	if err := s.cache.Discard(context.Background(), n.Salt, n.Key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("kvist: discard a parked conversation", "error", err)
	}
}

// drop forgets a parked conversation.
func (s *shelf) drop(id string) error {
	n := s.take(id)
	if n == nil {
		return nil
	}
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.discard(n)
	return nil
}

// resume brings a conversation back. It stays parked as well, as it was, until it is parked again or dropped: a
// process that ends without notice loses only what was said since. Its id is a new one.
func (s *shelf) resume(n *note) (*conversation, error) {
	seq, err := s.cache.Resume(context.Background(), n.Salt, n.Key)
	if err != nil {
		return nil, err
	}
	if seq.Len() != int64(len(n.Tokens)) {
		return nil, errors.Join(fmt.Errorf("kvist/runner: the note of conversation %s has %d tokens, the store %d: %w", n.ID,
			len(n.Tokens), seq.Len(), quant.ErrCorrupt), seq.Close())
	}
	return newConversation(n.Salt, seq, n.Tokens), nil
}

// longest returns the parked conversation that shares most first tokens with others, and how many.
func (s *shelf) longest(salt []byte, tokens []int32) (best *note, same int) {
	for _, n := range s.notes {
		if k := shared(n.Tokens, tokens); string(n.Salt) == string(salt) && k > same {
			best, same = n, k
		}
	}
	return best, same
}

func (s *shelf) find(salt []byte, id string) *note {
	for _, n := range s.notes {
		if n.ID == id && string(n.Salt) == string(salt) {
			return n
		}
	}
	return nil
}

// shared returns how many first tokens of a conversation a prompt has; one token of the prompt is left to run.
func shared(conversation, prompt []int32) (n int) {
	for most := min(len(conversation), len(prompt)-1); n < most && conversation[n] == prompt[n]; n++ {
	}
	return n
}
