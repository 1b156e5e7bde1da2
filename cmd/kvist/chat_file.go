// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// A file of /save is a line of text, "kvist-chat 1 CRC32C BYTES", that many bytes of JSON with that checksum, and
// the .kvist file of the rows, which has checksums of its own.
const chatMark = "kvist-chat 1 %08x %d\n"

// mostChatHead bounds the JSON of a file.
const mostChatHead = 64 << 20

// savedChat is the JSON of a file.
type savedChat struct {
	Model    string          `json:"model"`
	Messages []model.Message `json:"messages"`
	Tokens   []int32         `json:"tokens"`
}

// save writes the conversation to a file: what was said, and the rows as they are.
func (c *chat) save(ctx context.Context, name string) (err error) {
	if name == "" {
		return errors.New("/save: want the name of a file")
	}
	if c.id == "" {
		return errors.New("/save: nothing was said yet")
	}
	f, err := atomicfile.Create(name, true)
	if err != nil {
		return outputError(name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Abort())
		}
	}()
	rows, err := atomicfile.NewScratch() // the tokens are known when the rows are written, and stand before them
	if err != nil {
		return err
	}
	defer closing(rows, &err)
	tokens, err := c.r.Save(ctx, lone, c.id, rows)
	if err != nil {
		return err
	}
	head, err := json.Marshal(savedChat{c.model, c.messages, tokens})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(f, chatMark, crc32.Checksum(head, crc32.MakeTable(crc32.Castagnoli)), len(head)); err != nil {
		return err
	}
	if _, err := f.Write(head); err != nil {
		return err
	}
	if _, err := rows.Seek(0, io.SeekStart); err != nil {
		return err
	}
	n, err := copyUntil(ctx, f, rows.File)
	if err != nil {
		return err
	}
	if err := f.Commit(); err != nil {
		return err
	}
	c.a.complain("%s: %s tokens, %s bytes", name, count(int64(len(tokens))), count(n+int64(len(head))))
	return nil
}

// load goes on with a conversation that was saved.
func (c *chat) load(ctx context.Context, name string) (err error) {
	if name == "" {
		return errors.New("/load: want the name of a file")
	}
	f, info, err := openPlain(name)
	if err != nil {
		return err
	}
	defer closing(f, &err)
	saved, at, err := readChat(f)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if saved.Model != c.model {
		return fmt.Errorf("%s: it was said to %s, this is %s: %w", name, saved.Model, c.model, quant.ErrUnsupported)
	}
	before := c.messages
	if c.id != "" { // its memory may be needed
		if err := c.r.Forget(ctx, lone, c.id); err != nil {
			return err
		}
	}
	c.reset()
	id, err := c.r.Load(ctx, lone, saved.Tokens, io.NewSectionReader(f, at, info.Size()-at), info.Size()-at)
	if err != nil {
		c.messages = before // what was said goes on; the rows are computed again
		return fmt.Errorf("%s: %w", name, err)
	}
	c.id, c.messages = id, saved.Messages
	c.a.complain("%s: %s tokens", name, count(int64(len(saved.Tokens))))
	return nil
}

// readChat reads what stands before the rows, and where they begin.
func readChat(f *os.File) (saved savedChat, at int64, err error) {
	line := make([]byte, 64)
	n, err := f.ReadAt(line, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return saved, 0, err
	}
	end := bytes.IndexByte(line[:n], '\n') + 1
	var sum uint32
	var size int64
	if _, err := fmt.Sscanf(string(line[:end]), chatMark, &sum, &size); err != nil || size < 0 || size > mostChatHead {
		return saved, 0, fmt.Errorf("no conversation that /save wrote: %w", quant.ErrCorrupt)
	}
	head, err := io.ReadAll(io.NewSectionReader(f, int64(end), size)) // as much as there is
	if err != nil {
		return saved, 0, err
	}
	if int64(len(head)) != size || crc32.Checksum(head, crc32.MakeTable(crc32.Castagnoli)) != sum {
		return saved, 0, fmt.Errorf("what was said: the checksum is wrong: %w", quant.ErrCorrupt)
	}
	if err := json.Unmarshal(head, &saved); err != nil {
		return saved, 0, fmt.Errorf("what was said: %w: %w", err, quant.ErrCorrupt)
	}
	return saved, int64(end) + size, nil
}
