"""Another XDP program in front of ours, as a dispatcher would run it, assembled here.

libxdp's dispatcher is not on every machine, and goes with no rules.
"""

import ctypes
import os
import struct
from contextlib import contextmanager

# enum bpf_cmd
MAP_CREATE, MAP_UPDATE_ELEM, PROG_LOAD, LINK_UPDATE = 0, 2, 5, 29
PROG_ARRAY = 3
PROG_TYPE_XDP = 6
ATTACH_TYPE_XDP = 37
TAKES_FRAGMENTS = 1 << 5  # BPF_F_XDP_HAS_FRAGS
# enum bpf_func_id
TAIL_CALL, ADJUST_HEAD, ADJUST_META, ADJUST_TAIL = 12, 44, 54, 65


def bpf(command, attributes):
    """Call bpf(2); return what it returns."""
    attr = ctypes.create_string_buffer(attributes, 128)
    found = ctypes.CDLL(None, use_errno=True).syscall(321, command, attr, 128)
    assert found >= 0, os.strerror(ctypes.get_errno())
    return found


def tail_calls(program_fd):
    """Make a map through which a program is gone on to; return its fd."""
    programs = bpf(MAP_CREATE, struct.pack("=IIII", PROG_ARRAY, 4, 4, 1))
    key, value = ctypes.c_uint32(0), ctypes.c_uint32(program_fd)
    pointers = ctypes.addressof(key), ctypes.addressof(value)
    bpf(MAP_UPDATE_ELEM, struct.pack("=I4xQQQ", programs, *pointers, 0))
    return programs


def prologue(programs, meta_bytes):
    """Return code that takes four bytes off both ends, puts metadata in front, and goes on."""
    code = [(0xBF, 0x16, 0, 0)]  # r6 = r1: ctx
    for helper, delta in ((ADJUST_HEAD, 4), (ADJUST_TAIL, -4), (ADJUST_META, -meta_bytes)):
        code += [(0xBF, 0x61, 0, 0), (0xB7, 2, 0, delta), (0x85, 0, 0, helper)]
        code += [(0x15, 0, 2, 0), (0xB7, 0, 0, 0), (0x95, 0, 0, 0)]  # XDP_ABORTED unless 0
    code += [(0x61, 0x61, 8, 0), (0x61, 0x62, 0, 0)]  # r1 = data_meta, r2 = data
    code += [(0xBF, 0x13, 0, 0), (0x07, 3, 0, meta_bytes), (0x2D, 0x23, meta_bytes // 4, 0)]
    code += [(0x62, 1, offset, 0) for offset in range(0, meta_bytes, 4)]  # zero it
    code += [(0xBF, 0x61, 0, 0), (0x18, 0x12, 0, programs), (0, 0, 0, 0), (0xB7, 3, 0, 0)]
    code += [(0x85, 0, 0, TAIL_CALL), (0xB7, 0, 0, 0), (0x95, 0, 0, 0)]
    return b"".join(struct.pack("<BBhi", *each) for each in code)


def load(code):
    """Load an XDP program; return its fd."""
    text, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    where = ctypes.addressof(text), ctypes.addressof(licence)
    attr = struct.pack("=IIQQIIQ", PROG_TYPE_XDP, len(code) // 8, *where, 0, 0, 0)
    attr += struct.pack("=II16sII", 0, TAKES_FRAGMENTS, b"prologue", 0, ATTACH_TYPE_XDP)
    return bpf(PROG_LOAD, attr)


@contextmanager
def behind_another_program(side, meta_bytes):
    """Have another program run before that of a ``Side``, over the same bpf_link."""
    programs = tail_calls(side.program.fd)
    first = load(prologue(programs, meta_bytes))
    bpf(LINK_UPDATE, struct.pack("=III", side.attachment.fd, first, 0))
    yield
    os.close(first)
    os.close(programs)
