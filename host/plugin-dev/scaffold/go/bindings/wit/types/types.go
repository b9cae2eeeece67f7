// Package types holds the generic types of the contract. (The bindings refer to it as witTypes.)
package types

// The tags of an Option.
const (
	OptionNone uint8 = iota
	OptionSome
)

// Option is a value that may be missing; its zero value is None.
type Option[T any] struct {
	present bool
	value   T
}

// Some is an Option with a value.
func Some[T any](value T) Option[T] { return Option[T]{true, value} }

// None is an Option without one.
func None[T any]() Option[T] { return Option[T]{} }

// Tag is OptionSome or OptionNone.
func (o Option[T]) Tag() uint8 {
	if o.present {
		return OptionSome
	}
	return OptionNone
}

// IsSome says whether there is a value.
func (o Option[T]) IsSome() bool { return o.present }

// IsNone says whether there is none.
func (o Option[T]) IsNone() bool { return !o.present }

// Some is the value. Without one it panics.
func (o Option[T]) Some() T {
	if !o.present {
		panic("Some of an Option that is None")
	}
	return o.value
}

// SomeOr is the value, or what is given.
func (o Option[T]) SomeOr(otherwise T) T {
	if o.present {
		return o.value
	}
	return otherwise
}

// The tags of a Result.
const (
	ResultOk uint8 = iota
	ResultErr
)

// Result is either a value or an error.
type Result[T, E any] struct {
	failed bool
	value  T
	err    E
}

// Ok is the Result of a success.
func Ok[T, E any](value T) Result[T, E] { return Result[T, E]{value: value} }

// Err is the Result of a failure.
func Err[T, E any](err E) Result[T, E] { return Result[T, E]{failed: true, err: err} }

// Tag is ResultOk or ResultErr.
func (r Result[T, E]) Tag() uint8 {
	if r.failed {
		return ResultErr
	}
	return ResultOk
}

// IsOk says whether it is a value.
func (r Result[T, E]) IsOk() bool { return !r.failed }

// IsErr says whether it is an error.
func (r Result[T, E]) IsErr() bool { return r.failed }

// Ok is the value. Of a failure it panics.
func (r Result[T, E]) Ok() T {
	if r.failed {
		panic("Ok of a Result that is an error")
	}
	return r.value
}

// Err is the error. Of a success it panics.
func (r Result[T, E]) Err() E {
	if !r.failed {
		panic("Err of a Result that is none")
	}
	return r.err
}

// Unit is a value that says nothing.
type Unit struct{}

// Tuple2 is a pair.
type Tuple2[A, B any] struct {
	F0 A
	F1 B
}

// Tuple3 is a triple.
type Tuple3[A, B, C any] struct {
	F0 A
	F1 B
	F2 C
}
