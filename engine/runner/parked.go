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
	// Published are how many first tokens Options.Store may have been given of it.
	Published int `json:"published,omitempty"`
	// Images are those in the store that other conversations may share; Erased says that the conversation was
	// deleted, and what it left in the store goes next.
	Images []store.Key `json:"images,omitempty"`
	Erased bool        `json:"erased,omitempty"`
	Check  uint32      `json:"crc32c"` // of the JSON of the note with 0 in its place: the store vouches for the rows alone
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
	most  int64 // bytes of the disk, 0: no limit
	cache *engine.Cache
	model string
	notes []*note // the longest parked first
	// erased were deleted by a process that did not come to the end of it.
	erased []*note
	log    *slog.Logger
}

// openShelf opens a folder: "rows" in it is the store, "notes" the notes. What is no note is left alone.
func openShelf(folder, model string, most int64, log *slog.Logger) (*shelf, error) {
	s := &shelf{dir: filepath.Join(folder, "notes"), model: model, log: log}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	disk, err := store.OpenDisk(filepath.Join(folder, "rows"), store.DiskOptions{MaxBytes: most})
	if err != nil {
		return nil, err
	}
	s.disk, s.most = disk, most
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
		switch {
		case n.Model != s.model:
		case n.Erased:
			s.erased = append(s.erased, n)
		default:
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
	n := &note{ID: c.id, Salt: c.salt, Model: s.model, Tokens: c.tokens, Bytes: c.seq.Bytes(), Pinned: c.pinned, Published: c.published,
		Parked: time.Now().UTC().Round(0)}
	key, err := c.seq.Park(ctx, c.salt, n.Parked.Add(parkedFor))
	for tries := parkTries; errors.Is(err, quant.ErrFull); {
		var disk *store.Error // no row that goes in memory makes room there
		if errors.As(err, &disk) {
			if s.most == 0 { // the disk is full of something else
				return err
			}
			if ok, e := s.shed(n.ID); !ok {
				return errors.Join(err, e)
			}
		} else if tries--; tries < 0 {
			return err
		} else if e := c.seq.Demote(parkGives); e != nil { // a full cache may have no memory to move in but what rows give up
			return e
		}
		key, err = c.seq.Park(ctx, c.salt, n.Parked.Add(parkedFor))
	}
	if err != nil {
		return err
	}
	n.Key = key
	if n.Images, err = s.cache.Images(ctx, n.Salt, n.Key); err == nil {
		err = s.write(n)
	}
	if err != nil {
		err = errors.Join(err, s.unpark(c, n))
		s.discard(n)
		return err
	}
	if old := s.take(n.ID); old != nil { // what was parked before
		s.notes = append(s.notes, n) // which keeps what both have
		s.discard(old)
		return s.tidy()
	}
	s.notes = append(s.notes, n)
	return s.tidy()
}

// shed drops the conversation that was parked for longest, but for one that is being parked again.
func (s *shelf) shed(but string) (bool, error) {
	for _, n := range s.notes {
		if n.ID != but {
			s.log.Info("kvist: a parked conversation goes for want of room in the folder", "tokens", len(n.Tokens))
			return true, s.drop(n.ID)
		}
	}
	return false, nil
}

// tidy ends what was begun, and drops the notes that are too many, and those of what the store has no longer.
func (s *shelf) tidy() error {
	for _, n := range s.erased {
		if err := s.finish(n); err != nil {
			s.log.Warn("kvist: a deleted conversation is not erased yet", "id", n.ID, "error", err)
		}
	}
	s.erased = nil
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

// discard removes what the store has of a note that is not in the list, but for what others in it share.
func (s *shelf) discard(n *note) {
	if err := s.erase(n); err != nil {
		s.log.Warn("kvist: discard a parked conversation", "error", err)
	}
}

// erase is discard that tells whether it did so.
func (s *shelf) erase(n *note) error {
	ctx := context.Background()
	keep, all := map[store.Key]bool{}, false
	for _, x := range s.notes {
		if x.Images == nil { // of an older version
			names, err := s.cache.Images(ctx, x.Salt, x.Key)
			if all = all || err != nil; err == nil {
				x.Images = append([]store.Key{}, names...)
			}
		}
		for _, k := range x.Images {
			keep[k] = true
		}
	}
	err := s.cache.Erase(ctx, n.Salt, n.Key, func(k store.Key) bool { return all || keep[k] })
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, quant.ErrCorrupt): // what it names cannot be known, and expires
		return s.disk.Delete(ctx, n.Key)
	}
	return err
}

// drop deletes a parked conversation and all that the store has of it alone. The note says so first: a process
// that ends on the way, or fails, goes on with it when it starts again.
func (s *shelf) drop(id string) error {
	n := s.take(id)
	if n == nil {
		return nil
	}
	n.Erased = true
	return errors.Join(s.write(n), s.finish(n))
}

// finish removes what is left of a conversation that was deleted.
func (s *shelf) finish(n *note) error {
	err := s.erase(n)
	if err == nil {
		err = s.disk.Scrub(context.Background())
	}
	if err != nil {
		return err
	}
	return s.remove(n.ID)
}

// remove removes the file of a note.
func (s *shelf) remove(id string) error {
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
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
	c := newConversation(n.Salt, seq, n.Tokens)
	c.published = min(max(n.Published, 0), len(n.Tokens))
	return c, nil
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
