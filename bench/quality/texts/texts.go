// SPDX-License-Identifier: Apache-2.0

package texts

import _ "embed" // for the go:embed lines

// The two roles of a text.
const (
	// RoleEval marks texts for reporting results; never fit or choose anything on them.
	RoleEval = "eval"
	// RoleCalib marks texts for calibration and tuning; never report results on them.
	RoleCalib = "calib"
)

// Text is one text of the set.
type Text struct {
	Name string // unique, the file name without ".txt": "eval-narrative"
	Kind string // what it is: "prose", "dialogue", "manual", "code-go", "list" ...
	Role string // RoleEval or RoleCalib
	Body string // UTF-8, lines end in "\n", the last one too
}

// One variable for each file, so that a missing file is an error of the build. Nothing writes to
// them.
var (
	//go:embed eval-narrative.txt
	evalNarrative string
	//go:embed eval-dialogue.txt
	evalDialogue string
	//go:embed eval-manual.txt
	evalManual string
	//go:embed eval-essay.txt
	evalEssay string
	//go:embed eval-news.txt
	evalNews string
	//go:embed eval-list.txt
	evalList string
	//go:embed eval-gosource.txt
	evalGosource string
	//go:embed eval-python.txt
	evalPython string
	//go:embed eval-meeting.txt
	evalMeeting string
	//go:embed eval-encyclopedia.txt
	evalEncyclopedia string
	//go:embed calib-letters.txt
	calibLetters string
	//go:embed calib-recipes.txt
	calibRecipes string
	//go:embed calib-csource.txt
	calibCsource string
	//go:embed calib-faq.txt
	calibFaq string
	//go:embed calib-nature.txt
	calibNature string
)

// All returns every text, the eval texts first, in an order that is the same in every build. The
// slice belongs to the caller. New texts go to the end of their role, so that recorded results
// keep their order.
func All() []Text {
	return []Text{
		{"eval-narrative", "prose", RoleEval, evalNarrative},
		{"eval-dialogue", "dialogue", RoleEval, evalDialogue},
		{"eval-manual", "manual", RoleEval, evalManual},
		{"eval-essay", "essay", RoleEval, evalEssay},
		{"eval-news", "news", RoleEval, evalNews},
		{"eval-list", "list", RoleEval, evalList},
		{"eval-gosource", "code-go", RoleEval, evalGosource},
		{"eval-python", "code-python", RoleEval, evalPython},
		{"eval-meeting", "transcript", RoleEval, evalMeeting},
		{"eval-encyclopedia", "encyclopedia", RoleEval, evalEncyclopedia},
		{"calib-letters", "letters", RoleCalib, calibLetters},
		{"calib-recipes", "recipes", RoleCalib, calibRecipes},
		{"calib-csource", "code-c", RoleCalib, calibCsource},
		{"calib-faq", "faq", RoleCalib, calibFaq},
		{"calib-nature", "nature", RoleCalib, calibNature},
	}
}

// WithRole returns the texts of All whose role is the one given, in the same order; none if the
// role is unknown.
func WithRole(role string) []Text {
	var some []Text
	for _, t := range All() {
		if t.Role == role {
			some = append(some, t)
		}
	}
	return some
}
