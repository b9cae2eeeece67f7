// @NAME@: asks the `question` of each row, and looks for what the column `expected` says in the answer.
package main

import (
	"encoding/json"
	"math"
	"strings"
	"trainer_plugin/bindings/chat"
	"trainer_plugin/bindings/metric"
	"trainer_plugin/bindings/wit/types"
)

var settings struct {
	IgnoreCase bool `json:"ignore_case"`
}

// Configure is called once in each instance, before anything else. The host has checked the settings against settings.json.
func Configure(text string) types.Result[types.Unit, string] {
	if err := json.Unmarshal([]byte(text), &settings); err != nil {
		return types.Err[types.Unit](err.Error())
	}
	return types.Ok[types.Unit, string](types.Unit{})
}

// ScoringVersion is to be raised with each change of the scores: reports compare only if it is equal.
func ScoringVersion() string { return "1" }

// Prepare says what to ask of the model: one plan per row, in order.
func Prepare(rows []string) []metric.Plan {
	plans := make([]metric.Plan, len(rows))
	for i, row := range rows {
		plans[i] = plan(row)
	}
	return plans
}

func plan(text string) metric.Plan {
	var row map[string]any
	if err := json.Unmarshal([]byte(text), &row); err != nil || row == nil {
		return bad("", "the row is no JSON object")
	}
	question, ok := row["question"].(string)
	if !ok {
		return bad("/question", "a string is needed")
	}
	if _, ok := row["expected"].(string); !ok {
		return bad("/expected", "a string is needed")
	}
	user := chat.Message{Role: "user", Content: chat.MakeContentText(question)}
	conversation := chat.Conversation{Messages: []chat.Message{user}, Weight: 1}
	return metric.MakePlanAsk(metric.MakeRequestGenerate(metric.Generation{Conversation: conversation, Repeats: 1}))
}

func bad(pointer, message string) metric.Plan {
	return metric.MakePlanBad(types.Tuple2[string, string]{F0: pointer, F1: message})
}

// Score gives the scores of each item, in order: here one.
func Score(items []metric.Item) [][]metric.SampleScore {
	scores := make([][]metric.SampleScore, len(items))
	for i, item := range items {
		scores[i] = []metric.SampleScore{score(item)}
	}
	return scores
}

func score(item metric.Item) metric.SampleScore {
	if item.Response.Tag() == metric.ResponseFailed {
		return unscored(item.Response.Failed())
	}
	if item.Response.Tag() != metric.ResponseAnswers || len(item.Response.Answers()) == 0 {
		return unscored("there is no answer")
	}
	var row struct {
		Expected *string `json:"expected"`
	}
	if err := json.Unmarshal([]byte(item.Row), &row); err != nil || row.Expected == nil {
		return unscored("the row has no string `expected`")
	}
	found := strings.Contains(folded(item.Response.Answers()[0].Text), folded(*row.Expected))
	explanation := `"` + *row.Expected + `" is not in the answer`
	if found {
		explanation = `"` + *row.Expected + `" is in the answer`
	}
	return metric.SampleScore{Name: "contains", Value: metric.MakeValueBoolean(found), Explanation: explanation}
}

func unscored(why string) metric.SampleScore {
	return metric.SampleScore{Name: "contains", Value: metric.MakeValueUnscored(), Explanation: why}
}

func folded(text string) string {
	if !settings.IgnoreCase {
		return text
	}
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r - 'A' + 'a'
		}
		return r
	}, text)
}

// Aggregate sums up the scores of all samples.
func Aggregate(samples [][]metric.SampleScore) types.Result[[]metric.Summary, string] {
	var scored, right float64
	for _, scores := range samples {
		for _, score := range scores {
			if score.Name != "contains" || score.Value.Tag() != metric.ValueBoolean {
				continue
			}
			scored++
			if score.Value.Boolean() {
				right++
			}
		}
	}
	if scored == 0 {
		return types.Ok[[]metric.Summary, string](nil)
	}
	share := right / scored
	return types.Ok[[]metric.Summary, string]([]metric.Summary{{
		Name:           "accuracy",
		Value:          share,
		Stderr:         types.Some(math.Sqrt(share * (1 - share) / scored)),
		HigherIsBetter: types.Some(true),
	}})
}
