// SPDX-License-Identifier: Apache-2.0

package profile_test

import (
	"bytes"
	"fmt"
	"log"

	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// A tool makes its section and leaves those of the others alone.
func Example() {
	geo := quant.Geometry{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 8, HeadDimV: 8}
	p, err := profile.New("tiny", geo)
	if err != nil {
		log.Fatal(err)
	}
	p, err = p.With(profile.SectionBasis, profile.Meta{"made-by": "example"},
		profile.Tensor{Name: "k", DType: "F16", Shape: []int64{1, 1, 2, 2},
			Data: []byte{0, 0x3c, 0, 0, 0, 0, 0, 0x3c}})
	if err != nil {
		log.Fatal(err)
	}
	p, err = p.WithParams(profile.Params{"importance": "relevance=0.5"}, nil)
	if err != nil {
		log.Fatal(err)
	}
	var file bytes.Buffer
	if _, err := p.WriteTo(&file); err != nil { // or p.Write(path, force)
		log.Fatal(err)
	}

	q, err := profile.Read("tiny.kvprofile", bytes.NewReader(file.Bytes()), int64(file.Len()),
		profile.Limits{}) // or profile.Open(path, limits)
	if err != nil {
		log.Fatal(err)
	}
	if err := q.Check("tiny", geo); err != nil {
		log.Fatal(err)
	}
	basis, _ := q.Tensor(profile.SectionBasis, "k")
	fmt.Println(q.Sections(), q.ID() == p.ID(), basis.DType, basis.Shape)
	fmt.Println(q.Check("other", geo))
	// Output:
	// [basis params] true F16 [1 1 2 2]
	// kvist/profile: profile c8a41ce266bead8a: it is of model tiny, used with model other (if that is the same model, kvist calibrate --also-named adds its name): shape mismatch
}
