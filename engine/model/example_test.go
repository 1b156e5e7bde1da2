// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"fmt"
	"log"

	"github.com/kvist-project/kvist/engine/model"
)

// Ask two questions after one context: the context goes through the model once.
func Example() {
	path, err := model.Find()
	if err != nil {
		log.Fatal(err)
	}
	m, err := model.Open(path, model.Options{})
	if err != nil {
		log.Fatal(err)
	}
	kv, err := m.NewKV(model.KVOptions{})
	if err != nil {
		log.Fatal(err)
	}
	run := func(text string, kv *model.ExactKV) (next int32) {
		tokens, err := m.Tokenizer().Encode(text, false)
		if err != nil {
			log.Fatal(err)
		}
		logits, err := m.Forward(tokens, kv, kv.Len(), model.ForwardOptions{})
		if err != nil {
			log.Fatal(err)
		}
		return model.Argmax(logits)
	}
	run("Anna lives in Oslo. Ben lives in Rome.", kv)
	for _, question := range []string{" Anna lives in", " Ben lives in"} {
		next := run(question, kv.Clone())
		text, err := m.Tokenizer().Decode([]int32{next})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d tokens of context,%s%s\n", kv.Len(), question, text)
	}
}
