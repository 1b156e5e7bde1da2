// SPDX-License-Identifier: Apache-2.0

// Command embeddings answers a script that compares indices of embeddings in one run (compare.py). It makes an
// index of BASE.npy and then obeys lines from standard input: "recall MODE" or "time MODE N", where MODE is
// head, single, batch16 or batch64 and N a number of queries. It answers with a number: the recall of ten true
// neighbours, or the seconds of processor time of a query.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"log"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/vectors"
	"github.com/kvist-project/kvist/quant"
)

func main() {
	log.SetFlags(0)
	folder := flag.String("folder", "", "holds base.npy, queries.npy and top10.ivecs")
	bytes := flag.Float64("bytes", 100, "bytes of a vector, all counted")
	sample := flag.Int("sample", 2000, "vectors to calibrate on: the first")
	isa := flag.String("isa", "", "instruction set")
	flag.Parse()
	runtime.GOMAXPROCS(1)
	b, err := open(*folder, *bytes, *sample, *isa)
	if err != nil {
		log.Fatal(err)
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		x, err := b.obey(strings.Fields(in.Text()))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(x)
	}
}

type bench struct {
	index         *vectors.Index
	rows, queries quant.Rows
	truth         [][]uint64
	encode        float64 // seconds of processor time of a vector
	next          int
}

func open(folder string, bytes float64, sample int, isa string) (*bench, error) {
	b := &bench{}
	var err error
	if b.rows, err = rows(folder + "/base.npy"); err != nil {
		return nil, err
	}
	if b.queries, err = rows(folder + "/queries.npy"); err != nil {
		return nil, err
	}
	top, err := os.ReadFile(folder + "/top10.ivecs")
	if err != nil {
		return nil, err
	}
	for ; len(top) >= 44; top = top[44:] {
		var list []uint64
		for i := 4; i < 44; i += 4 {
			list = append(list, uint64(binary.LittleEndian.Uint32(top[i:])))
		}
		b.truth = append(b.truth, list)
	}
	first := quant.Rows{Dim: b.rows.Dim, Data: b.rows.Data[:sample*b.rows.Dim]}
	b.index, err = vectors.Calibrate(first, vectors.Options{Bytes: bytes, Rows: b.rows.Len(), ISA: isa})
	if err != nil {
		return nil, err
	}
	start := processor()
	err = b.index.Add(context.Background(), nil, b.rows)
	b.encode = (processor() - start).Seconds() / float64(b.rows.Len())
	return b, err
}

func rows(path string) (quant.Rows, error) {
	src, err := capture.Open(path, capture.Limits{})
	if err != nil {
		return quant.Rows{}, err
	}
	defer src.Close()
	t := src.ActTensors()[0]
	x := quant.Rows{Dim: t.Dim, Data: make([]float32, t.Rows*t.Dim)}
	return x, t.Tensor.ReadF32(0, 0, t.Rows, x.Data)
}

func (b *bench) obey(words []string) (float64, error) {
	if len(words) == 1 && words[0] == "encode" {
		return b.encode, nil
	}
	if len(words) < 2 {
		return 0, fmt.Errorf("bench/embeddings: %q: %w", words, quant.ErrUnsupported)
	}
	opts := vectors.SearchOptions{Workers: 1, Exhaustive: words[1] != "head"}
	batch := map[string]int{"head": 1, "single": 1, "batch16": 16, "batch64": 64}[words[1]]
	if words[0] == "recall" {
		hits, err := b.index.Search(context.Background(), b.queries, 10, opts)
		return b.recall(hits), err
	}
	n := 0
	if _, err := fmt.Sscan(words[2], &n); err != nil {
		return 0, err
	}
	start := processor()
	for done := 0; done < n; done += batch {
		if b.next+batch > b.queries.Len() {
			b.next = 0
		}
		q := quant.Rows{Dim: b.queries.Dim, Data: b.queries.Data[b.next*b.queries.Dim : (b.next+batch)*b.queries.Dim]}
		if _, err := b.index.Search(context.Background(), q, 10, opts); err != nil {
			return 0, err
		}
		b.next += batch
	}
	return (processor() - start).Seconds() / float64(n), nil
}

func (b *bench) recall(hits [][]vectors.Hit) float64 {
	found := 0
	for q, list := range hits {
		for _, h := range list {
			for _, id := range b.truth[q] {
				if id == h.ID {
					found++
				}
			}
		}
	}
	return float64(found) / float64(10*len(hits))
}

// start is where processor counts from where there is no processor time.
var start = time.Now()
