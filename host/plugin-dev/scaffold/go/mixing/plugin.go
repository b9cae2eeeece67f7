// @NAME@: draws from the sources in proportion to their weights, as evenly as can be.
package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"trainer_plugin/bindings/policy"
	"trainer_plugin/bindings/wit/types"
)

// Mixer is a mixing in progress.
type Mixer struct {
	Resource
	weights []float64
	lengths []types.Option[uint64]
	counts  []uint64
}

// MixerOpen begins.
func MixerOpen(setup policy.Setup) types.Result[*Mixer, string] {
	return answer(newMixer(setup, make([]uint64, len(setup.Sources))))
}

// MixerRestore continues from a snapshot.
func MixerRestore(setup policy.Setup, snapshot []uint8) types.Result[*Mixer, string] {
	var counts []uint64
	if err := json.Unmarshal(snapshot, &counts); err != nil {
		return types.Err[*Mixer]("the snapshot is no list of counts")
	}
	return answer(newMixer(setup, counts))
}

func answer(mixer *Mixer, err error) types.Result[*Mixer, string] {
	if err != nil {
		return types.Err[*Mixer](err.Error())
	}
	return types.Ok[*Mixer, string](mixer)
}

func newMixer(setup policy.Setup, counts []uint64) (*Mixer, error) {
	var settings struct {
		Weights map[string]float64 `json:"weights"`
	}
	if err := json.Unmarshal([]byte(setup.Settings), &settings); err != nil {
		return nil, err
	}
	mixer := &Mixer{counts: counts}
	for _, source := range setup.Sources {
		weight, named := settings.Weights[source.Name]
		if !named {
			weight = 1
		}
		delete(settings.Weights, source.Name)
		mixer.weights = append(mixer.weights, weight)
		mixer.lengths = append(mixer.lengths, source.Length)
	}
	// Go's maps have no order, and an error must be the same each time.
	unknown := []string{}
	for name := range settings.Weights {
		unknown = append(unknown, name)
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("`weights` names \"%s\", which is no source", slices.Min(unknown))
	}
	if len(counts) != len(mixer.weights) {
		return nil, fmt.Errorf("the snapshot has %d counts, but the mix has %d sources", len(counts), len(mixer.weights))
	}
	return mixer, nil
}

// EpochLength is how many draws make one pass over the mix, if that is known.
func (m *Mixer) EpochLength() types.Option[uint64] {
	var sum uint64
	for _, length := range m.lengths {
		if length.IsNone() {
			return types.None[uint64]()
		}
		sum += length.Some()
	}
	return types.Some(sum)
}

// Next gives the next n decisions. How they are asked for makes no difference to them.
func (m *Mixer) Next(n uint32) types.Result[[]policy.Draw, string] {
	draws := make([]policy.Draw, n)
	for i := range draws {
		draws[i].Source = m.draw()
	}
	return types.Ok[[]policy.Draw, string](draws)
}

// The source that is furthest behind its share; the first of several.
func (m *Mixer) draw() uint32 {
	var drawn uint64
	var total, furthest float64
	for i, count := range m.counts {
		drawn += count
		total += m.weights[i]
	}
	best := 0
	for i, count := range m.counts {
		behind := m.weights[i]*float64(drawn+1) - float64(count)*total
		if i == 0 || behind > furthest {
			best, furthest = i, behind
		}
	}
	m.counts[best]++
	return uint32(best)
}

// Feedback tells what became of the decisions; this policy does not look at it.
func (m *Mixer) Feedback(feedback policy.Feedback) {}

// Snapshot is the state: all that MixerRestore needs beside the setup.
func (m *Mixer) Snapshot() []uint8 {
	text, err := json.Marshal(m.counts)
	if err != nil {
		panic(err)
	}
	return text
}
