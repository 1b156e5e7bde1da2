// SPDX-License-Identifier: Apache-2.0

package model

// Words cuts text into the words of a pre-tokenizer.
func Words(pre, text string, word func(string) error) error {
	p := pretokenizers[pre]
	return p.split(text, word)
}
