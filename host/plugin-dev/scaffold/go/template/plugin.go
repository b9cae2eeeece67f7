// @NAME@: the ChatML template. It knows text messages of any role, and neither tools nor reasoning.
package main

import (
	"errors"
	"fmt"
	"strings"
	"trainer_plugin/bindings/chat"
	"trainer_plugin/bindings/template"
	"trainer_plugin/bindings/wit/types"
)

const (
	start = "<|im_start|>"
	end   = "<|im_end|>"
)

// Configure is called once in each instance, before anything else.
func Configure(settings string) types.Result[types.Unit, string] {
	return types.Ok[types.Unit, string](types.Unit{})
}

// Describe tells what is fixed about the template.
func Describe() template.Description {
	return template.Description{StopTokens: []string{end}, StablePrefixes: true}
}

// RenderPrompts gives what the model reads before it writes: one answer per request.
func RenderPrompts(requests []template.PromptRequest) []types.Result[template.Rendered, string] {
	answers := make([]types.Result[template.Rendered, string], len(requests))
	for i, request := range requests {
		rendered, err := render(request.Conversation, request.AddGenerationPrompt)
		if err != nil {
			answers[i] = types.Err[template.Rendered](err.Error())
		} else {
			answers[i] = types.Ok[template.Rendered, string](rendered)
		}
	}
	return answers
}

// RenderTraining gives what the model learns from: one list of texts per conversation.
func RenderTraining(conversations []chat.Conversation) []types.Result[[]template.Rendered, string] {
	answers := make([]types.Result[[]template.Rendered, string], len(conversations))
	for i, conversation := range conversations {
		rendered, err := render(conversation, false)
		if err != nil {
			answers[i] = types.Err[[]template.Rendered](err.Error())
		} else {
			answers[i] = types.Ok[[]template.Rendered, string]([]template.Rendered{rendered})
		}
	}
	return answers
}

func render(conversation chat.Conversation, openTurn bool) (template.Rendered, error) {
	var segments []template.Segment
	if len(conversation.Tools) > 0 {
		return template.Rendered{}, errors.New("this template knows no tools")
	}
	if len(conversation.Messages) == 0 {
		return template.Rendered{}, errors.New("the conversation has no messages")
	}
	for i, message := range conversation.Messages {
		var err error
		if segments, err = turn(segments, uint32(i), message); err != nil {
			return template.Rendered{}, fmt.Errorf("message %d: %w", i, err)
		}
	}
	if openTurn {
		segments = append(segments,
			template.Segment{Piece: template.MakePieceSpecial(start), Weight: 1},
			template.Segment{Piece: template.MakePieceText("assistant\n"), Weight: 1})
	}
	return template.Rendered{Segments: segments}, nil
}

// A message between its tokens. The model itself writes the assistant's words and the token after them.
func turn(segments []template.Segment, index uint32, message chat.Message) ([]template.Segment, error) {
	if len(message.ToolCalls) > 0 {
		return nil, errors.New("this template knows no tool calls")
	}
	if message.ReasoningContent.IsSome() {
		return nil, errors.New("this template knows no reasoning")
	}
	content := ""
	switch message.Content.Tag() {
	case chat.ContentText:
		content = message.Content.Text()
	case chat.ContentJson:
		return nil, errors.New("this template knows only text as content")
	}
	weight := message.Weight.SomeOr(1)
	written := message.Role == "assistant"
	put := func(piece template.Piece, generated bool, weight float32) {
		segments = append(segments,
			template.Segment{Piece: piece, SourceMessage: types.Some(index), Generated: generated, Weight: weight})
	}
	put(template.MakePieceSpecial(start), false, weight)
	put(template.MakePieceText(message.Role+"\n"), false, weight)
	// The content, cut where its loss weight changes. Spans count bytes.
	words := func(from, to uint32, weight float32) {
		if from < to {
			put(template.MakePieceText(content[from:to]), written, weight)
		}
	}
	done, length := uint32(0), uint32(len(content))
	for _, span := range message.Spans {
		if span.Start < done || span.End < span.Start || length < span.End {
			return nil, errors.New("its spans do not fit its text")
		}
		words(done, span.Start, weight)
		words(span.Start, span.End, span.Weight)
		done = span.End
	}
	words(done, length, weight)
	put(template.MakePieceSpecial(end), written, weight)
	put(template.MakePieceText("\n"), false, weight)
	return segments, nil
}

// Parse reads whole outputs at once.
func Parse(outputs [][]template.Piece) [][]template.OutputPart {
	parts := make([][]template.OutputPart, len(outputs))
	for i, pieces := range outputs {
		parts[i] = read(pieces)
	}
	return parts
}

// OutputParser reads one output while it grows. Nothing has to be held back, since everything is text.
type OutputParser struct {
	Resource
}

// MakeOutputParser begins at the beginning of an assistant's turn.
func MakeOutputParser(inReasoning bool) *OutputParser { return &OutputParser{} }

// Push takes the next pieces.
func (*OutputParser) Push(pieces []template.Piece) []template.OutputPart { return read(pieces) }

// Finish gives what was held back.
func (*OutputParser) Finish() []template.OutputPart { return nil }

// All that the model writes is text, but for the token that ends its turn.
func read(pieces []template.Piece) []template.OutputPart {
	var text strings.Builder
	for _, piece := range pieces {
		if piece.Tag() == template.PieceText {
			text.WriteString(piece.Text())
		} else if token := piece.Special(); token != end {
			text.WriteString(token)
		}
	}
	if text.Len() == 0 {
		return nil
	}
	return []template.OutputPart{template.MakeOutputPartText(text.String())}
}
