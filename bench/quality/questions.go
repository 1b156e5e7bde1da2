// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/engine/model"
)

// factsPerContext is the number of facts in a context. All of them share one prefill and one
// compression.
const factsPerContext = 8

// listLines is the number of lines in a list; see DESIGN.md.
const listLines = 8

// NewRetrieval builds at least questions questions over contexts of at most tokens tokens made
// from the texts. Two of three contexts hold sentences at evenly spread depths ("The secret code of
// the red fox is 482193."). Every third holds a list of keys and values ("apple: 482193") in the
// first three quarters of the text. The seed determines facts, answers and places.
//
// Errors: quant.ErrShape for no texts or too few tokens; those of the tokenizer.
func NewRetrieval(tok *model.Tokenizer, texts []string, questions, tokens int,
	seed uint64) (*Retrieval, error) {
	const op = "build retrieval"
	if len(texts) == 0 || questions < 1 || tokens < 256 {
		return nil, shapef(op, "%d texts, %d questions, %d tokens, want 1, 1 and 256 or more",
			len(texts), questions, tokens)
	}
	r := &Retrieval{}
	for i := range (questions + factsPerContext - 1) / factsPerContext {
		b := builder{tok: tok, rng: rand.New(rand.NewPCG(seed, uint64(i))), tokens: tokens}
		// A text that is used again starts at another sentence.
		sentences := splitSentences(texts[i%len(texts)])
		if len(sentences) == 0 {
			return nil, shapef(op, "text %d has no sentences", i%len(texts))
		}
		start := i / len(texts) * 7 % len(sentences)
		b.sentences = append(append([]string{}, sentences[start:]...), sentences[:start]...)
		var c RetrievalContext
		var err error
		if i%3 == 2 {
			c, err = b.list()
		} else {
			c, err = b.facts()
		}
		if err != nil {
			return nil, fmt.Errorf("kvist/quality: %s: context %d: %w", op, i, err)
		}
		r.Contexts = append(r.Contexts, c)
	}
	return r, nil
}

// splitSentences splits a text after each full stop before a space. Line breaks become spaces.
func splitSentences(text string) []string {
	var out []string
	text = strings.Join(strings.Fields(text), " ")
	for text != "" {
		i := strings.Index(text, ". ")
		if i < 0 {
			return append(out, text)
		}
		out = append(out, text[:i+1])
		text = text[i+2:]
	}
	return out
}

// fact is a sentence that begins with about and ends with one of the answers or, if digits is set,
// with a number of that many digits.
type fact struct {
	about   string
	answers []string
	digits  int
}

// The facts are worded differently because small models confuse facts that differ only in a name.
// Numbers are long because one wrong digit is a wrong answer. DESIGN.md has the figures.
var (
	facts = []fact{
		{about: "The secret code of the red fox is", digits: 6},
		{about: "The telephone number of Doctor Miller is", digits: 7},
		{about: "The captain of the ship was called", answers: people},
		{about: "The password for the library is", answers: passwords},
		{about: "The train to the mountains leaves from platform", digits: 2},
		{about: "The number of stones in the castle wall is", digits: 5},
		{about: "The favourite food of the giant turtle is", answers: foods},
		{about: "The old professor was born in the city of", answers: cities},
		{about: "The name of the black cat is", answers: people},
		{about: "The meeting of the committee takes place in room", digits: 4},
		{about: "The winner of the chess tournament came from", answers: cities},
		{about: "The combination of the safe in the cellar is", digits: 6},
	}
	people = []string{"Anna", "Peter", "Maria", "Thomas", "Julia", "Robert", "Sarah", "Daniel",
		"Laura", "Martin"}
	cities = []string{"Paris", "London", "Tokyo", "Berlin", "Madrid", "Rome", "Vienna", "Cairo",
		"Dublin", "Oslo"}
	passwords = []string{"kestrel", "lantern", "pumpkin", "cobalt", "walnut", "thunder", "velvet",
		"harbor", "crystal", "meadow"}
	foods = []string{"honey", "rice", "cheese", "corn", "apples", "fish", "bread", "nuts",
		"carrots", "berries"}
	keys = []string{"apple", "river", "window", "garden", "piano", "bridge", "candle", "forest",
		"island", "jacket", "kettle", "ladder", "mirror", "needle", "orange", "pencil", "rocket",
		"saddle", "temple", "violin", "wagon", "yellow", "anchor", "basket"}
)

// builder makes one context.
type builder struct {
	tok       *model.Tokenizer
	rng       *rand.Rand
	sentences []string
	tokens    int
}

// number returns a random number with this many digits.
func (b *builder) number(digits int) string {
	low := 1
	for range digits - 1 {
		low *= 10
	}
	return strconv.Itoa(low + b.rng.IntN(9*low))
}

func (b *builder) answer(f fact) string {
	if f.digits > 0 {
		return " " + b.number(f.digits)
	}
	return " " + f.answers[b.rng.IntN(len(f.answers))]
}

// question sets the tokens of a question. The tokens of the answer are those after the prompt's when
// both are encoded together.
func (b *builder) question(q Question) (Question, error) {
	prompt, err := b.tok.Continue(q.Prompt, false)
	if err != nil {
		return q, err
	}
	all, err := b.tok.Continue(q.Prompt+q.Answer, false)
	if err != nil {
		return q, err
	}
	if len(all) <= len(prompt) {
		return q, shapef("question", "%q adds no token to %q", q.Answer, q.Prompt)
	}
	for i, t := range prompt {
		if all[i] != t {
			return q, shapef("question", "%q and %q share a token", q.Prompt, q.Answer)
		}
	}
	q.PromptTokens, q.AnswerTokens = prompt, all[len(prompt):]
	return q, nil
}

// fit returns as many sentences of the text as fit into the context beside other.
func (b *builder) fit(other []string) ([]string, error) {
	left := b.tokens
	if b.tok.AddBOS {
		left--
	}
	for _, s := range other {
		t, err := b.tok.Encode(" "+s, false)
		if err != nil {
			return nil, err
		}
		left -= len(t)
	}
	var out []string
	for i := 0; ; i++ {
		s := b.sentences[i%len(b.sentences)] // a short text is repeated
		t, err := b.tok.Encode(" "+s, false)
		if err != nil {
			return nil, err
		}
		if left -= len(t); left < 0 {
			break
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, shapef("retrieval context", "no sentence fits into %d tokens", b.tokens)
	}
	return out, nil
}

// facts spreads sentences over the text.
func (b *builder) facts() (RetrievalContext, error) {
	var said []string
	var questions []Question
	for _, i := range b.rng.Perm(len(facts))[:factsPerContext] {
		f := facts[i]
		answer := b.answer(f)
		said = append(said, f.about+answer+".")
		questions = append(questions, Question{Kind: "fact", Prompt: "\n\n" + f.about,
			Answer: answer})
	}
	text, err := b.fit(said)
	if err != nil {
		return RetrievalContext{}, err
	}
	var parts []string
	at := make([]int, len(said)) // index in parts
	next := 0
	for i, s := range text {
		for next < len(said) && i >= len(text)*(2*next+1)/(2*len(said)) {
			at[next] = len(parts)
			parts = append(parts, said[next])
			next++
		}
		parts = append(parts, s)
	}
	for ; next < len(said); next++ {
		at[next] = len(parts)
		parts = append(parts, said[next])
	}
	return b.context(parts, at, questions)
}

// list puts a list of keys and values into the text.
func (b *builder) list() (RetrievalContext, error) {
	order := b.rng.Perm(len(keys))
	lines := []string{"\n\nThis is the list of codes."}
	var questions []Question
	for i := range listLines {
		answer := " " + b.number(6)
		lines = append(lines, "\n"+keys[order[i]]+":"+answer)
		questions = append(questions, Question{Kind: "list",
			Prompt: "\n\nThe list of codes.\n" + keys[order[i]] + ":",
			Answer: answer})
	}
	lines = append(lines, "\n\n")
	text, err := b.fit(lines)
	if err != nil {
		return RetrievalContext{}, err
	}
	cut := b.rng.IntN(len(text)*3/4 + 1)
	var parts []string
	parts = append(parts, text[:cut]...)
	parts = append(parts, strings.Join(lines, ""))
	parts = append(parts, text[cut:]...)
	var asked []Question
	var at []int
	for _, i := range b.rng.Perm(listLines)[:factsPerContext] {
		asked, at = append(asked, questions[i]), append(at, cut)
	}
	return b.context(parts, at, asked)
}

// context joins and encodes the parts. at[i] is the part with the fact of question i.
func (b *builder) context(parts []string, at []int, questions []Question) (RetrievalContext,
	error) {
	var c RetrievalContext
	var err error
	if c.Tokens, err = b.tok.Start(strings.Join(parts, " "), false); err != nil {
		return c, err
	}
	for i, q := range questions {
		if q, err = b.question(q); err != nil {
			return c, err
		}
		var before []int32
		if before, err = b.tok.Encode(strings.Join(parts[:at[i]], " "), false); err != nil {
			return c, err
		}
		q.Depth = float64(len(before)) / float64(len(c.Tokens))
		c.Questions = append(c.Questions, q)
	}
	return c, nil
}
