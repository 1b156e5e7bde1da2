// SPDX-License-Identifier: Apache-2.0

package capture

// RowsOf returns the rows of the named tensor of an activations file, or the reason why it would have none
// in a file of its own.
func RowsOf(s *Source, name string) (ActTensor, error) {
	for _, a := range s.act {
		if a.Name == name {
			return a, nil
		}
	}
	info, ok := s.Lookup(name)
	if !ok {
		return ActTensor{}, callErrorf("read %s: tensor %q is not in the file", s.f.name, name)
	}
	return ActTensor{}, s.f.formatError(sectionTensor, name, info.Offset, rowsOf(info).reason(true))
}
