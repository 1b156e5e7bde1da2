// SPDX-License-Identifier: Apache-2.0

package main

// feature is an extension of an instruction set.
type feature struct {
	name string
	has  bool
}

// present lists the names of what is there; "none known" on a processor that kvist has no kernels
// for.
func present(list []feature) []string {
	names := []string{}
	for _, f := range list {
		if f.has {
			names = append(names, f.name)
		}
	}
	if len(names) == 0 {
		return []string{"none known"}
	}
	return names
}
