// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// rooms are the packages of engine in their order: a package imports only packages of lines above its own.
// Those of one line know nothing of each other.
var rooms = [][]string{
	{"store/internal/expiry"},
	{"atomicfile", "backend", "internal/archive", "internal/half", "internal/memo", "internal/parallel", "internal/plan",
		"internal/progress", "container", "store", "tensorio"},
	{"backend/args", "store/storetest", "backend/backendtest", "backend/selftest", "auto", "gguf", "internal/input", "profile",
		"store/packed", "store/remote", "vectors"},
	{"gguf/gguftest", "capture", "internal/blocks", "internal/weigh"},
	{"internal/captured", "internal/damage", "llamastate", "model"},
	{"model/modeltest", "internal/ahead", "internal/cold", "internal/segment", "runner"},
	{"report", "archiver"},
	{"kvfile"},
	{"tune"},
}

// memoryRooms know rows in memory and a backend: nothing of captures and profiles, and of files only blocks, which
// loads records.
var memoryRooms = []string{"internal/segment", "internal/weigh", "internal/damage", "internal/plan", "internal/blocks",
	"internal/input", "internal/archive"}

// The table of imports, which TestImports_OneWay holds against the code, follows the order of the rooms.
func TestRooms_Order(t *testing.T) {
	line := map[string]int{}
	for i, names := range rooms {
		for _, name := range names {
			line["engine/"+name] = i
		}
	}
	for room, imports := range allowed {
		if !strings.HasPrefix(room, "engine/") {
			continue
		}
		own, ok := line[room]
		require.True(t, ok, "%s has no line in the order of rooms", room)
		for _, imp := range imports {
			if strings.HasPrefix(imp, "engine/") {
				require.Less(t, line[imp], own, "%s imports %s", room, imp)
			}
		}
	}
	for room := range line {
		require.Contains(t, allowed, room)
	}
	for _, room := range memoryRooms {
		for _, imp := range allowed["engine/"+room] {
			switch imp {
			case "engine/capture", "engine/profile", "engine/internal/captured", "engine/internal/cold":
				t.Errorf("%s imports %s", room, imp)
			case "engine/container":
				require.Equal(t, "internal/blocks", room, imp)
			}
		}
	}
	require.False(t, slices.Contains(allowed["engine/internal/plan"], "engine/backend"), "a plan is arithmetic")
}
