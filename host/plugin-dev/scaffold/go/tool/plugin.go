// @NAME@: a shopping list that the model can write on.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"trainer_plugin/bindings/executor"
	"trainer_plugin/bindings/wit/types"
)

// Tools are those on offer, in the order in which the model sees them.
func Tools(settings string) types.Result[[]executor.Tool, string] {
	return types.Ok[[]executor.Tool, string]([]executor.Tool{
		{
			Name:        "add_item",
			Description: "Puts something on the shopping list.",
			Parameters: `{"type": "object", "properties": {
				"item": {"type": "string", "description": "What to buy."},
				"quantity": {"type": "integer", "description": "How many; 1 if left out."}
			}, "required": ["item"], "additionalProperties": false}`,
			Mutates: true,
		},
		{
			Name:        "list_items",
			Description: "Reads the shopping list.",
			Parameters:  `{"type": "object", "properties": {}, "additionalProperties": false}`,
		},
	})
}

type entry struct {
	Item     string `json:"item"`
	Quantity int64  `json:"quantity"`
}

// Session is one episode: everything that it remembers lies in it.
type Session struct {
	Resource
	items []entry
}

// SessionOpen begins an episode.
func SessionOpen(context executor.Context) types.Result[*Session, string] {
	return types.Ok[*Session, string](&Session{items: []entry{}})
}

// Call executes calls in order: one outcome per call.
func (s *Session) Call(calls []executor.Call) []executor.Outcome {
	outcomes := make([]executor.Outcome, len(calls))
	for i, call := range calls {
		result, err := s.run(call)
		if err != nil {
			// A refusal in words for the model, which can try again.
			outcomes[i] = executor.MakeOutcomeToolError(err.Error())
		} else {
			outcomes[i] = executor.MakeOutcomeOk(toJSON(result))
		}
	}
	return outcomes
}

func (s *Session) run(call executor.Call) (any, error) {
	switch call.Name {
	case "add_item":
		return s.addItem(call.Arguments)
	case "list_items":
		return map[string]any{"items": s.items}, nil
	}
	return nil, errors.New("there is no tool " + call.Name)
}

func (s *Session) addItem(text string) (any, error) {
	var arguments struct {
		Item     any      `json:"item"`
		Quantity *float64 `json:"quantity"`
	}
	if err := json.Unmarshal([]byte(text), &arguments); err != nil {
		return nil, err
	}
	item, ok := arguments.Item.(string)
	if !ok {
		return nil, errors.New("item must be a string")
	}
	quantity := 1.0
	if arguments.Quantity != nil {
		quantity = *arguments.Quantity
	}
	if !(quantity >= 1 && quantity <= 1<<53) {
		return nil, errors.New("quantity must be at least 1")
	}
	s.items = append(s.items, entry{item, int64(quantity)})
	return map[string]any{"items": len(s.items)}, nil
}

// StateDigest is a text by which two episodes can be compared.
func (s *Session) StateDigest() types.Option[string] { return types.Some(toJSON(s.items)) }

// Without the escapes that json.Marshal makes for web pages.
func toJSON(value any) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err)
	}
	return string(bytes.TrimSuffix(out.Bytes(), []byte("\n")))
}
