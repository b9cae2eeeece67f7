"""Quantizes f32 values with ggml's own quantizers, without an importance matrix: python3 ggml_peer.py VALUES TYPE ROW OUT

The library is the one inside the package `xllamacpp`, which exports ggml's functions.
"""

import ctypes
import pathlib
import sys

import xllamacpp

values_path, kind, row, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
folder = pathlib.Path(xllamacpp.__file__).parent
library = ctypes.CDLL(str(next(folder.glob("xllamacpp*.so"))))
quantize = library.ggml_quantize_chunk
quantize.restype = ctypes.c_size_t
quantize.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
]
data = pathlib.Path(values_path).read_bytes()
count = len(data) // 4
source = (ctypes.c_float * count).from_buffer_copy(data)
# No type takes more than f32.
target = ctypes.create_string_buffer(len(data))
size = quantize(kind, source, target, 0, count // row, row, None)
pathlib.Path(out).write_bytes(target.raw[:size])
