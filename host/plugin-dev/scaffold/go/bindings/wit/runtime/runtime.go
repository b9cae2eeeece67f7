// Package runtime gives memory to the component's caller. (The bindings refer to it as witRuntime.)
package runtime

import (
	"runtime"
	"unsafe"
)

// Arguments of the call that is being made: pinned until the bindings have made Go values of them.
var arguments runtime.Pinner

// Allocate gives memory that stays where it is until the pinner lets go. Alignment is at most 8, which words have.
func Allocate(pinner *runtime.Pinner, size, align uintptr) unsafe.Pointer {
	if size == 0 {
		return nil
	}
	if align > 8 {
		panic("an alignment beyond 8")
	}
	memory := unsafe.Pointer(unsafe.SliceData(make([]uint64, (size+7)/8)))
	pinner.Pin(memory)
	return memory
}

// Unpin lets go of the arguments. Values made of them keep what they refer to.
func Unpin() { arguments.Unpin() }

//go:wasmexport cabi_realloc
func realloc(old unsafe.Pointer, oldSize, align, size uintptr) unsafe.Pointer {
	memory := Allocate(&arguments, size, align)
	if old != nil && oldSize > 0 {
		copy(unsafe.Slice((*byte)(memory), size), unsafe.Slice((*byte)(old), oldSize))
	}
	return memory
}
