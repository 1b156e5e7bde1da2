// SPDX-License-Identifier: Apache-2.0

// Package readme puts generated tables into documents, between markers. It measures nothing.
package readme

import (
	"fmt"
	"os"
	"strings"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/quant"
)

// Markers are the lines that a table stands between: the name of the table, and what makes it.
type Markers struct{ Name, Command string }

func (m Markers) begin() string { return fmt.Sprintf("<!-- %s: begin (%s) -->\n", m.Name, m.Command) }
func (m Markers) end() string   { return fmt.Sprintf("<!-- %s: end -->\n", m.Name) }

// Splice puts a table between the markers of a text.
//
// Errors: quant.ErrCorrupt where they are missing.
func (m Markers) Splice(text, table string) (string, error) {
	head, rest, ok := strings.Cut(text, m.begin())
	_, tail, ok2 := strings.Cut(rest, m.end())
	if !ok || !ok2 {
		return "", fmt.Errorf("no markers %q and %q: %w", m.begin(), m.end(), quant.ErrCorrupt)
	}
	return head + m.begin() + table + m.end() + tail, nil
}

// Update puts a table between the markers of a file.
//
// Errors: those of Splice and of the file.
func (m Markers) Update(path, table string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	s, err := m.Splice(string(text), table)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return Write(path, s)
}

// Write replaces a file as a whole.
func Write(path, text string) error {
	f, err := atomicfile.Create(path, true)
	if err != nil {
		return err
	}
	defer f.Abort() // nothing after Commit
	if _, err := f.Write([]byte(text)); err != nil {
		return err
	}
	return f.Commit()
}
