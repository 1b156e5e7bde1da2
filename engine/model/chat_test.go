// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"testing"

	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
	"github.com/stretchr/testify/require"
)

var conversation = []model.Message{{Role: "system", Content: "Be brief."}, {Role: "user", Content: "Hi"},
	{Role: "assistant", Content: "Hello!"}, {Role: "user", Content: " Who? "}}

// TestChatFormat_Prompt has the prompts that the templates of the models' authors give, without BOS.
func TestChatFormat_Prompt(t *testing.T) {
	for format, want := range map[model.ChatFormat]string{
		model.ChatML: "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n" +
			"<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n Who? <|im_end|>\n<|im_start|>assistant\n",
		model.ChatPhi4: "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>" +
			"<|im_start|>assistant<|im_sep|>Hello!<|im_end|><|im_start|>user<|im_sep|> Who? <|im_end|>" +
			"<|im_start|>assistant<|im_sep|>",
		model.ChatPhi3: "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n" +
			"<|user|>\n Who? <|end|>\n<|assistant|>\n",
		model.ChatLlama3: "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>" +
			"<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>" +
			"<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>" +
			"<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
		model.ChatGranite: "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n" +
			"<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n" +
			"<|start_of_role|>assistant<|end_of_role|>Hello!<|end_of_text|>\n" +
			"<|start_of_role|>user<|end_of_role|> Who? <|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
		model.ChatGemma: "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n" +
			"<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n",
		model.ChatMistral: "[INST] Be brief.\n\nHi[/INST] Hello!</s>[INST]  Who? [/INST]",
		model.ChatTekken:  "[INST]Be brief.\n\nHi[/INST]Hello!</s>[INST] Who? [/INST]",
		model.ChatInst:    "[INST] Be brief.\n\nHi [/INST] Hello!</s>[INST]  Who?  [/INST]",
	} {
		got, err := format.Prompt(conversation)
		require.NoError(t, err, format)
		require.Equal(t, want, got, format)
	}
}

func TestChatFormat_Refuses(t *testing.T) {
	_, err := model.ChatFormat("vicuna").Prompt(conversation)
	require.ErrorIs(t, err, quant.ErrUnsupported)
	require.ErrorContains(t, err, "vicuna")
	user := model.Message{Role: "user"}
	for _, c := range []struct {
		format   model.ChatFormat
		messages []model.Message
	}{
		{model.ChatML, nil}, {model.ChatML, []model.Message{{Role: "tool"}}},
		{model.ChatML, []model.Message{user, {Role: "system"}}},
		{model.ChatGemma, []model.Message{user, user}}, {model.ChatGemma, []model.Message{{Role: "system"}}},
		{model.ChatMistral, []model.Message{user, {Role: "assistant"}}},
	} {
		_, err := c.format.Prompt(c.messages)
		require.ErrorIs(t, err, quant.ErrShape)
	}
}

func TestNewTokenizer_Chat(t *testing.T) {
	for template, want := range map[string]model.ChatFormat{
		"{{'<|im_start|>' + message['role']}}":              model.ChatML,
		"<|im_start|>user<|im_sep|>":                        model.ChatPhi4,
		"{{ '<|user|>' }} <|assistant|> <|end|>":            model.ChatPhi3,
		"<|start_header_id|>{{ role }}<|end_header_id|>":    model.ChatLlama3,
		"<start_of_turn>model":                              model.ChatGemma,
		"<|start_of_role|>user<|end_of_role|>":              model.ChatGranite,
		"[AVAILABLE_TOOLS] {{ '[INST] ' }}":                 model.ChatMistral,
		`[AVAILABLE_TOOLS] {{ "[INST]" }}`:                  model.ChatTekken,
		"{{ '[INST] ' + message['content'] + ' [/INST]' }}": model.ChatInst,
		"[INST] <<SYS>>":                                    "",
		"[SYSTEM_PROMPT][INST]":                             "",
		"### Instruction:":                                  "",
	} {
		b := &builder{}
		addVocabulary(b, 280)
		b.Set("tokenizer.chat_template", template)
		f, err := read(b.Bytes())
		require.NoError(t, err)
		tok, err := model.NewTokenizer(f)
		require.NoError(t, err)
		require.Equal(t, want, tok.Chat, template)
	}
}
