"""Compiles the .cu files beside it to PTX with NVRTC 12.9: python3 regenerate.py /path/to/libnvrtc.so.12

The library is in the wheel nvidia-cuda-nvrtc-cu12. A variant is a file compiled with a define: gemm.SWAP.ptx.
"""

import ctypes
import pathlib
import sys

VARIANTS = {
    "gemm": ["", "NO_WAIT", "NO_BARRIER", "NO_TRAILING", "SWAP", "SHIFT"],
    "faults": [""],
    "functions": [""],
    # Compiled for sm_90a; the variants with a defect are made by the tests, which cut or change lines of the PTX.
    "hopper": ["", "CLUSTER"],
}


def compile(nvrtc, path, defines):
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), path.read_bytes(), path.name.encode(), 0, None, None)
    options = [f"--gpu-architecture=compute_{'90a' if path.stem == 'hopper' else '80'}", "-lineinfo", "--std=c++17", "-default-device"]
    options += [f"-D{d}" for d in defines]
    array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    failed = nvrtc.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if failed:
        sys.exit(log.value.decode())
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, text)
    # The folder it was compiled in is of no interest.
    return text.value.decode().replace(str(pathlib.Path.cwd()) + "/", "")


def main():
    nvrtc = ctypes.CDLL(sys.argv[1])
    here = pathlib.Path(__file__).parent
    for stem, variants in VARIANTS.items():
        source = here / f"{stem}.cu"
        for variant in variants:
            name = f"{stem}.{variant}.ptx" if variant else f"{stem}.ptx"
            (here / name).write_text(compile(nvrtc, source, [variant] if variant else []))


main()
