// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/storetest"
)

// BenchmarkStore puts and gets 1 MiB at a time, which is what a part of a segment takes. p99 is that of single
// calls.
func BenchmarkStore(b *testing.B) {
	const n = 1 << 20
	ctx, c := context.Background(), store.Context{Salt: []byte("s")}
	for _, name := range []string{"memory", "disk-sync-put", "disk-sync-close"} {
		open := func() store.Store {
			if name == "memory" {
				return store.NewMemory(store.MemoryOptions{})
			}
			o := store.DiskOptions{}
			if name == "disk-sync-close" {
				o.Sync = store.SyncClose
			}
			d, err := store.OpenDisk(b.TempDir(), o)
			if err != nil {
				b.Fatal(err)
			}
			return d
		}
		data := append(make([]byte, store.SealBytes), storetest.Bytes(1, n)...)
		run := func(op string, f func(s store.Store, i int) error) {
			b.Run(fmt.Sprintf("op=%s/store=%s", op, name), func(b *testing.B) {
				s := open()
				for i := range 16 {
					if err := s.Put(ctx, storetest.KeyOf(-2-i), data, never); err != nil {
						b.Fatal(err)
					}
				}
				var took []time.Duration
				b.SetBytes(n)
				i := 0
				for b.Loop() {
					begin := time.Now()
					if err := f(s, i); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(begin))
					i++
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
			})
		}
		run("put", func(s store.Store, i int) error { // and away again, so that memory does not run out
			k := storetest.KeyOf(i)
			c.Seal(k, data)
			if err := s.Put(ctx, k, data, never); err != nil {
				return err
			}
			return s.Delete(ctx, k)
		})
		for i := range 16 {
			c.Seal(storetest.KeyOf(-2-i), data)
		}
		run("get", func(s store.Store, i int) error {
			_, err := s.Get(ctx, storetest.KeyOf(-2-i%16))
			return err
		})
	}
}
