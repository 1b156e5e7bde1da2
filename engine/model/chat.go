// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// Message is one turn of a conversation. Role is "system", "user" or "assistant".
type Message struct{ Role, Content string }

// ChatFormat is how a model was trained to see a conversation. Templates in files are programs of their
// own; this package knows families of them by their marks and writes those as plain functions.
type ChatFormat string

// The formats.
const (
	ChatML      ChatFormat = "chatml"  // Qwen, SmolLM and many others
	ChatLlama3  ChatFormat = "llama3"  // Llama 3
	ChatGemma   ChatFormat = "gemma"   // Gemma; a system message becomes part of the first turn
	ChatMistral ChatFormat = "mistral" // Mistral from 7B v0.3 on; so does it there
	ChatTekken  ChatFormat = "tekken"  // Mistral Nemo: the same without spaces
	ChatInst    ChatFormat = "inst"    // Mistral 7B v0.1 and v0.2: a space before [/INST] as well
	ChatPhi3    ChatFormat = "phi3"    // Phi-3
	ChatPhi4    ChatFormat = "phi4"    // Phi-4
	ChatGranite ChatFormat = "granite" // Granite 3 and 4
)

// detectChat tells the format of a template by the marks that it writes; "" if it is none of them.
func detectChat(template string) ChatFormat {
	has := func(s string) bool { return strings.Contains(template, s) }
	switch {
	case has("<|im_start|>") && has("<|im_sep|>"):
		return ChatPhi4
	case has("<|im_start|>"):
		return ChatML
	case has("[SYSTEM_PROMPT]") || has("<<SYS>>"):
		return "" // later Mistral, and Llama 2
	case has("[AVAILABLE_TOOLS]") && has(`"[INST]"`):
		return ChatTekken
	case has("[AVAILABLE_TOOLS]"):
		return ChatMistral
	case has("[INST]"):
		return ChatInst
	case has("<|assistant|>") && has("<|end|>"):
		return ChatPhi3
	case has("<start_of_turn>"):
		return ChatGemma
	case has("<|start_header_id|>") && has("<|end_header_id|>"):
		return ChatLlama3
	case has("<|start_of_role|>"):
		return ChatGranite
	}
	return ""
}

// Prompt writes a conversation and the start of the assistant's turn. Encode it with Start and special
// tokens recognised; BOS is not part of it. Content is written as it is: a caller that does not trust
// it must see to it that it names no special tokens.
//
// Errors: ErrUnsupported for a format that is not known; ErrShape for no messages, a role that is not
// known, a system message that is not the first, and where the format needs it, for turns that do not
// alternate.
func (f ChatFormat) Prompt(messages []Message) (string, error) {
	write, ok := chatFormats[f]
	if !ok {
		return "", fmt.Errorf("kvist/model: write prompt: %w: chat format %q; this version knows %s",
			quant.ErrUnsupported, f, chatNames())
	}
	if err := checkMessages(messages); err != nil {
		return "", err
	}
	return write(messages)
}

var chatFormats = map[ChatFormat]func([]Message) (string, error){
	ChatML:      chatTurns("<|im_start|>", "\n", "<|im_end|>\n", false),
	ChatPhi4:    chatTurns("<|im_start|>", "<|im_sep|>", "<|im_end|>", false),
	ChatPhi3:    chatTurns("<|", "|>\n", "<|end|>\n", false),
	ChatLlama3:  chatTurns("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", true),
	ChatGranite: chatTurns("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>\n", false),
	ChatGemma:   chatGemma,
	ChatMistral: chatMistral(" ", ""),
	ChatTekken:  chatMistral("", ""),
	ChatInst:    chatMistral(" ", " "),
}

func chatNames() string {
	names := map[string]bool{}
	for f := range chatFormats {
		names[string(f)] = true
	}
	return sortedKeys(names)
}

func checkMessages(messages []Message) error {
	const op = "write prompt"
	if len(messages) == 0 {
		return shapef(op, "no messages")
	}
	for i, m := range messages {
		switch {
		case m.Role != "system" && m.Role != "user" && m.Role != "assistant":
			return shapef(op, "message %d has role %q, want system, user or assistant", i, m.Role)
		case m.Role == "system" && i > 0:
			return shapef(op, "message %d is of the system, which speaks first", i)
		}
	}
	return nil
}

// chatTurns returns the writer of a format that writes every turn alike: before, role, within, content,
// after.
func chatTurns(before, within, after string, trim bool) func([]Message) (string, error) {
	return func(messages []Message) (string, error) {
		var b strings.Builder
		for _, m := range messages {
			content := m.Content
			if trim {
				content = strings.TrimSpace(content)
			}
			b.WriteString(before + m.Role + within + content + after)
		}
		b.WriteString(before + "assistant" + within)
		return b.String(), nil
	}
}

// alternating returns the system message and the other turns, which must alternate and start and end
// with the user.
func alternating(messages []Message) (system string, turns []Message, err error) {
	if messages[0].Role == "system" {
		system, messages = messages[0].Content, messages[1:]
	}
	want := "user"
	for i, m := range messages {
		if m.Role != want {
			return "", nil, shapef("write prompt", "turn %d is of the %s, want turns of user and assistant in turn", i, m.Role)
		}
		want = map[string]string{"user": "assistant", "assistant": "user"}[want]
	}
	if want == "user" {
		return "", nil, shapef("write prompt", "the last turn is not the user's")
	}
	return system, messages, nil
}

func chatGemma(messages []Message) (string, error) {
	system, turns, err := alternating(messages)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for i, m := range turns {
		role, content := m.Role, strings.TrimSpace(m.Content)
		if role == "assistant" {
			role = "model"
		}
		if i == 0 && system != "" {
			content = strings.TrimSpace(system) + "\n\n" + content
		}
		b.WriteString("<start_of_turn>" + role + "\n" + content + "<end_of_turn>\n")
	}
	b.WriteString("<start_of_turn>model\n")
	return b.String(), nil
}

// chatMistral returns the writer of a format of Mistral, with a string after [INST] and before what the
// assistant says, and one before [/INST].
func chatMistral(space, before string) func([]Message) (string, error) {
	return func(messages []Message) (string, error) {
		system, turns, err := alternating(messages)
		if err != nil {
			return "", err
		}
		if system != "" {
			system += "\n\n"
		}
		var b strings.Builder
		for _, m := range turns {
			if m.Role == "assistant" {
				b.WriteString(space + strings.TrimSpace(m.Content) + "</s>")
				continue
			}
			b.WriteString("[INST]" + space + system + m.Content + before + "[/INST]")
			system = ""
		}
		return b.String(), nil
	}
}
