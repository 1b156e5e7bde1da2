// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func sum(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	h := sha256.Sum256(text)
	return hex.EncodeToString(h[:])
}

// The committed PTX comes from the committed sources, with the flags in the manifest.
func TestManifest_Fresh(t *testing.T) {
	m, err := ReadManifest()
	require.NoError(t, err)
	entries, err := os.ReadDir("src")
	require.NoError(t, err)
	require.Len(t, m.Sources, len(entries), "a source was added or removed: run `make ptx`")
	for _, e := range entries {
		require.Equal(t, m.Sources["src/"+e.Name()], sum(t, filepath.Join("src", e.Name())),
			"src/%s changed: run `make ptx`", e.Name())
	}
	made, err := filepath.Glob("ptx/*.ptx")
	require.NoError(t, err)
	require.Len(t, made, len(m.Modules))
	for _, mod := range m.Modules {
		path := filepath.Join("ptx", mod.Name+".ptx")
		require.Equal(t, mod.SHA256, sum(t, path), "%s was edited: run `make ptx`", path)
		ptx, err := PTX(mod.Name)
		require.NoError(t, err)
		require.Contains(t, string(ptx), "\n.version "+m.ISA+"\n")
		require.Contains(t, string(ptx), "\n.target "+mod.Target+"\n")
		c, err := mod.Capability()
		require.NoError(t, err)
		require.GreaterOrEqual(t, c, 75)
		contracts := !strings.Contains(strings.Join(mod.Flags, " "), "--fmad=false")
		exact := mod.Name == "codec" || mod.Name == "surprise"
		require.Equal(t, !exact, contracts, "codec and surprise alone must not contract")
	}
	codec, err := PTX("codec")
	require.NoError(t, err)
	require.NotContains(t, string(codec), "fma.rn.f32", "the codec contracts")
}

var (
	entryLine = regexp.MustCompile(`(?m)^\.visible \.entry (\w+)\(`)
	paramLine = regexp.MustCompile(`(?m)^\s*\.param \.align (\d+) \.b8 (\w+)_param_(\d+)\[(\d+)\]`)
)

// Every entry of the PTX has a row in Entries and vice versa. Its one parameter has the size and
// alignment of the Go struct.
func TestABI_EntriesAndParameters(t *testing.T) {
	m, err := ReadManifest()
	require.NoError(t, err)
	want := map[string]Entry{}
	for _, e := range Entries() {
		want[e.Name] = e
	}
	seen := 0
	for _, mod := range m.Modules {
		ptx, err := PTX(mod.Name)
		require.NoError(t, err)
		for _, match := range entryLine.FindAllStringSubmatch(string(ptx), -1) {
			e, ok := want[match[1]]
			require.True(t, ok, "the PTX has %s, Entries has not", match[1])
			require.Equal(t, mod.Name, e.Module)
			seen++
		}
		params := map[string]int{}
		for _, match := range paramLine.FindAllStringSubmatch(string(ptx), -1) {
			typ := reflect.TypeOf(want[match[2]].Params)
			params[match[2]]++
			require.Equal(t, "0", match[3], match[2])
			require.Equal(t, strconv.Itoa(typ.Align()), match[1], "alignment of %s", match[2])
			require.Equal(t, strconv.Itoa(int(typ.Size())), match[4], "size of %s", match[2])
		}
		for name, n := range params {
			require.Equal(t, 1, n, name)
		}
	}
	require.Equal(t, len(want), seen)
}

var (
	fieldLine   = regexp.MustCompile(`^\s+(uint64_t|int64_t|int32_t|float|uint8_t)\s+([\w\[\], ]+);`)
	structOneLn = regexp.MustCompile(`^struct (\w+) \{$`)
	assertLine  = regexp.MustCompile(`static_assert\((?:sizeof\((\w+)\)|offsetof\((\w+), (\w+)\)) == (\d+)`)
	defineLine  = regexp.MustCompile(`(?m)^#define (TILE_ROWS|SUB_ROWS|CODED_V|PLANES) (\d+)`)
	elements    = regexp.MustCompile(`^(\w+)\[(\d+)\]$`)
	sizes       = map[string]int{"uint64_t": 8, "int64_t": 8, "int32_t": 4, "float": 4, "uint8_t": 1}
)

func goName(c string) string {
	var b strings.Builder
	for _, w := range strings.Split(c, "_") {
		switch w {
		case "lse":
			b.WriteString("LSE")
		case "dtype":
			b.WriteString("DType")
		default:
			b.WriteString(strings.ToUpper(w[:1]) + w[1:])
		}
	}
	return b.String()
}

// Every struct of params.cuh has the same fields, offsets and size in Go, and the numbers that the
// sources assert.
func TestABI_StructsMatchTheSources(t *testing.T) {
	text, err := os.ReadFile("src/params.cuh")
	require.NoError(t, err)
	types := map[string]reflect.Type{}
	for _, v := range []any{CodecJob{}, CodecParams{}, BlockDesc{}, GatherJob{}, GatherRow{}, GatherParams{}, Variant{}, SubTile{}, EntryRange{},
		Unit{}, Piece{},
		AttendParams{}, RelevanceItem{}, RelevanceParams{}, ResidualParams{}} {
		types[reflect.TypeOf(v).Name()] = reflect.TypeOf(v)
	}
	found := map[string]bool{}
	var now reflect.Type
	at := 0
	for _, line := range strings.Split(string(text), "\n") {
		if m := structOneLn.FindStringSubmatch(line); m != nil {
			require.Contains(t, types, m[1], "the sources have struct %s, Go has not", m[1])
			now, at, found[m[1]] = types[m[1]], 0, true
			continue
		}
		if line == "};" && now != nil {
			require.Equal(t, int(now.Size()), (at+int(now.Align())-1)/now.Align()*now.Align(), now.Name())
			now = nil
		}
		if m := assertLine.FindStringSubmatch(line); m != nil {
			n, err := strconv.Atoi(m[4])
			require.NoError(t, err)
			if m[1] != "" {
				require.Equal(t, n, int(types[m[1]].Size()), line)
			} else {
				f, ok := types[m[2]].FieldByName(goName(m[3]))
				require.True(t, ok, line)
				require.Equal(t, n, int(f.Offset), line)
			}
		}
		m := fieldLine.FindStringSubmatch(line)
		if m == nil || now == nil {
			continue
		}
		for _, name := range strings.Split(m[2], ",") {
			name, count := strings.TrimSpace(name), 1
			if e := elements.FindStringSubmatch(name); e != nil {
				name = e[1]
				count, err = strconv.Atoi(e[2])
				require.NoError(t, err)
			}
			size := sizes[m[1]]
			at = (at + size - 1) / size * size
			f, ok := now.FieldByName(goName(name))
			require.True(t, ok, "%s.%s is missing in Go", now.Name(), name)
			require.Equal(t, at, int(f.Offset), "%s.%s", now.Name(), name)
			require.Equal(t, size*count, int(f.Type.Size()), "%s.%s", now.Name(), name)
			at += size * count
		}
	}
	require.Len(t, found, len(types), "Go has structs that the sources have not")
	for _, m := range defineLine.FindAllStringSubmatch(string(text), -1) {
		want := map[string]int{"TILE_ROWS": TileRows, "SUB_ROWS": SubRows, "CODED_V": CodedV, "PLANES": Planes}[m[1]]
		require.Equal(t, strconv.Itoa(want), m[2], m[1])
	}
}

func TestPTX_UnknownModule(t *testing.T) {
	_, err := PTX("nothing")
	require.Error(t, err)
}
