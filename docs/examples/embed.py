"""A FlashHead from Python, with nothing but ctypes: the same as embed.c.

    python3 embed.py FILE.fhead [LIBRARY]       # LIBRARY: libflashhead.so.0, where the loader does not find it
"""
import ctypes as c
import sys

TOP = 5


class Err(c.Structure):  # fh_err
    _fields_ = [("code", c.c_int), ("text", c.c_char * 1000)]


class Info(c.Structure):  # fh_head_info, as far as it is needed
    _fields_ = [("vocab", c.c_uint32), ("hidden", c.c_uint32), ("clusters", c.c_uint32), ("cap", c.c_uint32), ("probes", c.c_uint32)]


class Sampling(c.Structure):  # fh_sampling
    _fields_ = [("temperature", c.c_float), ("top_p", c.c_float), ("min_p", c.c_float), ("top_k", c.c_uint32)]


lib = c.CDLL(sys.argv[2] if len(sys.argv) > 2 else "libflashhead.so.0")
pointer, size = c.c_void_p, c.c_size_t
lib.fh_head_open.argtypes = [c.POINTER(pointer), c.c_char_p, c.POINTER(Err)]
lib.fh_head_get_info.argtypes, lib.fh_head_get_info.restype = [pointer], c.POINTER(Info)
lib.fh_scratch_new.argtypes = [c.POINTER(pointer), pointer, c.c_uint, c.POINTER(Err)]
lib.fh_head_topk.argtypes = [pointer, pointer, pointer, size, pointer, size, pointer, pointer, c.POINTER(Err)]
lib.fh_sample.argtypes = [c.POINTER(Sampling), pointer, pointer, size, c.c_double, c.POINTER(c.c_uint32), c.POINTER(Err)]
lib.fh_scratch_free.argtypes = lib.fh_head_close.argtypes = [pointer]
lib.fh_scratch_free.restype = lib.fh_head_close.restype = None

err = Err()


def check(status):
    if status < 0:
        sys.exit("embed.py: " + err.text.decode())


head, scratch = pointer(), pointer()
check(lib.fh_head_open(head, sys.argv[1].encode(), err))
check(lib.fh_scratch_new(scratch, head, 0, err))
d = lib.fh_head_get_info(head).contents.hidden
state = (c.c_float * d)(*(c.c_float(c.c_float(i * 7 % 13).value / 6).value - 1 for i in range(d)))
ids, logits, following = (c.c_uint32 * TOP)(), (c.c_float * TOP)(), c.c_uint32()
check(lib.fh_head_topk(head, scratch, state, 1, None, TOP, ids, logits, err))
check(lib.fh_sample(Sampling(0.8, 0.95, 0, 0), ids, logits, TOP, 0.5, following, err))
for i in range(TOP):
    print("%d %.9g" % (ids[i], logits[i]))
print("next %d" % following.value)
lib.fh_scratch_free(scratch)
lib.fh_head_close(head)
