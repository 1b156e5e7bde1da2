// SPDX-License-Identifier: Apache-2.0

package tune

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/quant"
)

// maxState bounds a state file. A million evaluations take less.
const maxState = 1 << 28

// stateFile is the JSON of a state. Values are text, because JSON has no infinities.
type stateFile struct {
	Format   string       `json:"format"`
	Identity string       `json:"identity"`
	Values   []stateValue `json:"values"`
}

type stateValue struct {
	Params string `json:"params"`
	Value  string `json:"value"`
}

const stateFormat = "kvist-tune-state/1"

// state keeps the values of a search in a file. A nil state keeps none.
type state struct {
	path   string
	file   stateFile
	values map[string]float64
}

// identity is the hash of everything that determines the values and the path of a search. The
// number of evaluations is not part of it: a larger number continues the same search.
func identity(space Space, obj Objective, o Options) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s\n%d %d %d", space.String(), obj.Identity(),
		o.Base.String(), o.Seed, o.Parents, o.Children))
	return hex.EncodeToString(sum[:])
}

// openState reads the state at path, or starts a new one.
//
// Errors: quant.ErrCorrupt, quant.ErrTooLarge; quant.ErrShape for a state of another search.
func openState(path, identity string) (*state, error) {
	s := &state{path: path, values: map[string]float64{},
		file: stateFile{Format: stateFormat, Identity: identity}}
	f, _, err := atomicfile.OpenRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("kvist/tune: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("kvist/tune: %w", err)
	}
	if len(b) > maxState {
		return nil, fmt.Errorf("kvist/tune: state %s: more than %d bytes: %w", path, maxState,
			quant.ErrTooLarge)
	}
	var have stateFile
	if err := json.Unmarshal(b, &have); err != nil || have.Format != stateFormat {
		return nil, fmt.Errorf("kvist/tune: state %s is not of format %s: %w", path, stateFormat, quant.ErrCorrupt)
	}
	if have.Identity != identity {
		return nil, fmt.Errorf("kvist/tune: state %s is of another search (other settings, texts, rates, "+
			"seed or model): %w", path, quant.ErrShape)
	}
	for _, v := range have.Values {
		x, err := strconv.ParseFloat(v.Value, 64)
		if _, twice := s.values[v.Params]; err != nil || twice || x != x {
			return nil, fmt.Errorf("kvist/tune: state %s: value %.40q of %.80q: %w", path, v.Value, v.Params,
				quant.ErrCorrupt)
		}
		s.values[v.Params] = x
	}
	s.file = have
	return s, nil
}

func (s *state) lookup(params string) (float64, bool) {
	if s == nil {
		return 0, false
	}
	v, ok := s.values[params]
	return v, ok
}

// add keeps a value and rewrites the file.
func (s *state) add(params string, v float64) (err error) {
	if s == nil {
		return nil
	}
	s.values[params] = v
	s.file.Values = append(s.file.Values, stateValue{params, strconv.FormatFloat(v, 'g', -1, 64)})
	b, err := json.MarshalIndent(s.file, "", " ")
	if err != nil {
		return fmt.Errorf("kvist/tune: state: %w", err)
	}
	f, err := atomicfile.Create(s.path, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Abort()) }()
	if _, err := f.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("kvist/tune: state %s: %w", s.path, err)
	}
	return f.Commit()
}
