// SPDX-License-Identifier: Apache-2.0

package tune

import (
	"strconv"

	"github.com/kvist-project/kvist/engine/kvfile"
)

// DefaultSpace lists the settings that kvist tune searches: the signals, the form of relevance, and
// the sinks. Grids are coarse; the refinement does the rest. Switching on a signal costs
// signalPrice.
func DefaultSpace() Space {
	def := kvfile.DefaultConfig()
	const signalPrice = 0.01 // one percent of KL
	signal := func(name string) Param {
		return Param{Name: importancePrefix + name, Start: "0", Grid: []string{"0.25", "0.75"},
			Low: 0, High: 1.5, Price: signalPrice}
	}
	return Space{
		{Name: "importance.relevance", Start: "0.5", Grid: []string{"0", "0.25", "0.75", "1"}, Low: 0,
			High: 1.5},
		{Name: "importance.window", Start: "64", Grid: []string{"16", "32", "128"}, Low: 8,
			High: 1024, Log: true, Integer: true},
		{Name: "importance.mix", Start: "0.05", Grid: []string{"0", "0.2", "0.6"}, Low: 0, High: 1},
		{Name: "importance.half-life", Start: "64", Grid: []string{"16", "256"}, Low: 8,
			High: 4096, Log: true},
		{Name: "importance.floor", Start: "0.1", Grid: []string{"0.03", "0.3"}, Low: 0.001, High: 1,
			Log: true},
		{Name: "importance.smooth", Start: "1", Grid: []string{"3", "5"}},
		{Name: "importance.temper", Start: "0", Grid: []string{"0.25", "0.5"}, Low: 0, High: 1,
			Price: signalPrice},
		signal("expected"),
		signal("value-norm"),
		signal("surprise"),
		signal("surprisal"),
		signal("habituation"),
		{Name: "importance.decay", Start: "0", Grid: []string{"0.1", "0.3"}, Low: 0, High: 1,
			Price: signalPrice},
		{Name: "unseen", Start: strconv.FormatFloat(def.Unseen, 'g', -1, 64), Grid: []string{"0", "0.01"},
			Low: 1e-5, High: 0.1, Log: true},
		{Name: "levels", Start: "auto", Grid: []string{"full", "full+chunks"}},
		{Name: "sinks", Start: "4", Grid: []string{"2", "8"}, Low: 0, High: 32, Integer: true},
	}
}
