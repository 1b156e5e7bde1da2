// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/kvist-project/kvist/engine/report"
)

// printAttention prints a line for each kind of layer, where layers differ or attend otherwise than plainly.
func printAttention(p *printer, kinds []report.Attention, indent string) {
	for _, a := range kinds {
		p.printf("%s%s\n", indent, attentionText(&a))
	}
}

func attentionText(a *report.Attention) string {
	parts := []string{"see all tokens"}
	if a.Window > 0 {
		parts[0] = fmt.Sprintf("see %s tokens", count(a.Window))
	}
	switch {
	case a.Rope == "none":
		parts = append(parts, "no RoPE")
	case a.Scaled:
		parts = append(parts, fmt.Sprintf("RoPE %s of %d with frequencies of its own", a.Rope, a.RotaryDim))
	default:
		parts = append(parts, fmt.Sprintf("RoPE %s of %d with base %g", a.Rope, a.RotaryDim, a.Theta))
	}
	parts = append(parts, fmt.Sprintf("scale %.6g", a.Scale))
	if a.Softcap > 0 {
		parts = append(parts, fmt.Sprintf("soft cap %g", a.Softcap))
	}
	return "layers " + runs(a.Layers) + ": " + strings.Join(parts, ", ")
}

// runs writes ascending numbers as "0-4, 6-10, 12".
func runs(n []int) string {
	var parts []string
	for i := 0; i < len(n); {
		j := i
		for j+1 < len(n) && n[j+1] == n[j]+1 {
			j++
		}
		if j == i {
			parts = append(parts, fmt.Sprint(n[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", n[i], n[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ", ")
}
