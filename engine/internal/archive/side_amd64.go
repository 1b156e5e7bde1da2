// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package archive

import "golang.org/x/sys/cpu"

var useAVX = cpu.X86.HasAVX && cpu.X86.HasPOPCNT

// moveSideAVX moves the starts of symbols, cum [sideSyms], towards their targets by 1/2^rate. All are below
// 2^15, so that differences fit words with a sign.
//
//go:noescape
func moveSideAVX(cum *uint16, target *[sideSyms]uint16, rate int)

// findSideAVX returns the last symbol that starts at slot or before it.
//
//go:noescape
func findSideAVX(cum *uint16, slot uint16) (s int)

func (m *sideModel) move(s int, rate int) {
	if useAVX {
		moveSideAVX(&m.cum[0], &sideTargets[s], rate)
		return
	}
	m.moveGeneric(s, rate)
}

func (m *sideModel) find(slot uint16) int {
	if useAVX {
		return findSideAVX(&m.cum[0], slot)
	}
	return m.findGeneric(slot)
}
