package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"trainer_plugin/bindings/hostlog"
)

// What a plugin needs beside its own code. The file belongs to the project: change it if you like.
//
// The host calls the functions of plugin.go through bindings_exports.go. A panic in them reaches the host as a line of the log, with its
// place, before the call ends in a trap, which costs the row, the sample or the episode. Standard output and standard error go to the log.

// Resource is what the type of a resource begins with: its handle in the host.
type Resource struct {
	pinner runtime.Pinner
	handle int32
}

// OnDrop is called when the host lets go of a resource.
func (*Resource) OnDrop() {}

// Info writes a line to the host's log.
func Info(message string) { hostlog.Write(hostlog.LevelInfo, message) }

// Warn writes a warning to the host's log.
func Warn(message string) { hostlog.Write(hostlog.LevelWarn, message) }

// Deferred in each export.
func reported() {
	cause := recover()
	if cause == nil {
		return
	}
	var callers [32]uintptr
	frames := runtime.CallersFrames(callers[:runtime.Callers(2, callers[:])])
	var places []string
	for {
		frame, more := frames.Next()
		own := strings.HasPrefix(frame.Function, "main.") && !strings.HasPrefix(frame.Function, "main.wasm_export_")
		if own && len(places) < 4 {
			file := frame.File[strings.LastIndexByte(frame.File, '/')+1:]
			places = append(places, fmt.Sprintf("%s:%d in %s", file, frame.Line, strings.TrimPrefix(frame.Function, "main.")))
		}
		if !more {
			break
		}
	}
	hostlog.Write(hostlog.LevelError, strings.ToValidUTF8(fmt.Sprintf("panic: %v (%s)", cause, strings.Join(places, ", ")), "\ufffd"))
	os.Exit(1)
}
