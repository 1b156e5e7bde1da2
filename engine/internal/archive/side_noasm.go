// SPDX-License-Identifier: Apache-2.0

//go:build noasm || !amd64

package archive

func (m *sideModel) move(s int, rate int) { m.moveGeneric(s, rate) }

func (m *sideModel) find(slot uint16) int { return m.findGeneric(slot) }
