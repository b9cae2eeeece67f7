// @NAME@: rows with the columns `question` and `answer` become conversations.
package main

import (
	"encoding/json"
	"trainer_plugin/bindings/chat"
	"trainer_plugin/bindings/formatter"
	"trainer_plugin/bindings/wit/types"
)

var settings struct {
	System *string `json:"system"`
}

// Configure is called once in each instance, before anything else. The host has checked the settings against settings.json.
func Configure(text string) types.Result[types.Unit, string] {
	if err := json.Unmarshal([]byte(text), &settings); err != nil {
		return types.Err[types.Unit](err.Error())
	}
	return types.Ok[types.Unit, string](types.Unit{})
}

// Format gives one outcome per row, in order. Each row is a JSON object.
func Format(rows []string) []formatter.Outcome {
	outcomes := make([]formatter.Outcome, len(rows))
	for i, row := range rows {
		outcomes[i] = outcome(row)
	}
	return outcomes
}

func outcome(text string) formatter.Outcome {
	var row map[string]any
	if err := json.Unmarshal([]byte(text), &row); err != nil || row == nil {
		return bad("", "the row is no JSON object")
	}
	question, ok := row["question"].(string)
	if !ok {
		return bad("/question", "a string is needed")
	}
	answer, ok := row["answer"].(string)
	if !ok {
		return bad("/answer", "a string is needed")
	}
	if answer == "" {
		return formatter.MakeOutcomeSkip("no answer")
	}
	var messages []chat.Message
	if settings.System != nil {
		messages = append(messages, message("system", *settings.System))
	}
	messages = append(messages, message("user", question), message("assistant", answer))
	return formatter.MakeOutcomeSample(chat.Conversation{Messages: messages, Weight: 1})
}

func bad(pointer, message string) formatter.Outcome {
	return formatter.MakeOutcomeBad(formatter.BadRow{Pointer: pointer, Message: message})
}

// A message of nothing but text. Without a weight, the recipe decides what is learnt from: as a rule the assistant's words.
func message(role, text string) chat.Message {
	return chat.Message{Role: role, Content: chat.MakeContentText(text)}
}
