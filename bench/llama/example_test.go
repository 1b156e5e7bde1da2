// SPDX-License-Identifier: Apache-2.0

package llama_test

import (
	"fmt"
	"log"

	"github.com/kvist-project/kvist/bench/llama"
)

// Ask two questions after one context: the context goes through the model once.
func Example() {
	path, err := llama.FindModel()
	if err != nil {
		log.Fatal(err)
	}
	m, err := llama.Open(path, llama.Options{})
	if err != nil {
		log.Fatal(err)
	}
	kv, err := m.NewKV(llama.KVOptions{})
	if err != nil {
		log.Fatal(err)
	}
	run := func(text string, kv *llama.ExactKV) (next int32) {
		tokens, err := m.Tokenizer().Encode(text, false)
		if err != nil {
			log.Fatal(err)
		}
		logits, err := m.Forward(tokens, kv, kv.Len(), llama.ForwardOptions{})
		if err != nil {
			log.Fatal(err)
		}
		return llama.Argmax(logits)
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
