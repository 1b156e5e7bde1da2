// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/store"
)

// Two caches share what they compute through one store: the second one finds what the first has published, bit for bit,
// without the model. They may be two processes on two machines: the store is then one of cmd/kvist/stores, as
// stores.Open(ctx, "redis://host:6379", remote.Options{}), and cmd/kvist/stores/check has a test that runs two.
func ExampleSequence_Publish() {
	ctx, salt := context.Background(), []byte("of those who may share")
	shared := store.NewMemory(store.MemoryOptions{})
	prompt := make([]int32, 700)
	for i := range prompt {
		prompt[i] = int32(i)
	}
	for _, name := range []string{"first", "second"} {
		c, m := openWith(engine.Config{Budget: 8 << 20, Model: "a model", Shared: shared})
		s, err := c.RecallPrefix(ctx, salt, prompt)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(name, "finds", s.Len(), "tokens")
		rest := prompt[s.Len():]
		st, err := c.Begin(ctx, []engine.Row{{Seq: s, Tokens: len(rest), IDs: rest}})
		if err != nil {
			log.Fatal(err)
		}
		for l := range m.geo.Layers {
			k := m.rows(len(rest), m.geo.KVHeads, m.geo.HeadDim)
			if err := st.Append(l, k, k); err != nil { // the queries of a prompt may be left out
				log.Fatal(err)
			}
		}
		if err := st.Commit(len(rest)); err != nil {
			log.Fatal(err)
		}
		if err := s.Publish(ctx, salt, time.Now().Add(24*time.Hour)); err != nil {
			log.Fatal(err)
		}
		if name == "second" { // the conversation is deleted: others find it no more
			if err := c.Unpublish(ctx, salt, prompt, 0); err != nil {
				log.Fatal(err)
			}
			fmt.Println(shared.Held(), "bytes are left")
		}
		if err := c.Close(); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// first finds 0 tokens
	// second finds 512 tokens
	// 0 bytes are left
}
