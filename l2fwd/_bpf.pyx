"""The only caller of libbpf and libxdp: objects, links, maps, UMEMs and sockets.

Thin: one C object, one class; one C call, one method.  A failing call raises
``KernelError`` with the operation, its target and the errno.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EINVAL, ENODEV, ENOENT, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

from l2fwd._libxdp cimport (
    BPF_F_XDP_DEV_BOUND_ONLY, BPF_LINK_TYPE_XDP, BPF_MAP_TYPE_XSKMAP, BPF_XDP,
    LIBBPF_ERRNO__LIBELF,
    XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD, bpf_link_create, bpf_link_create_opts,
    bpf_link_detach, bpf_link_get_fd_by_id, bpf_link_get_next_id, bpf_link_info, bpf_map,
    bpf_map__fd, bpf_map__key_size, bpf_map__reuse_fd,
    bpf_map__set_ifindex, bpf_map__set_initial_value, bpf_map__set_max_entries,
    bpf_map__value_size, bpf_map_delete_elem,
    bpf_map_get_fd_by_id, bpf_map_info, bpf_map_lookup_batch, bpf_map_lookup_elem,
    bpf_map_update_batch, bpf_map_update_elem, bpf_obj_get, bpf_obj_get_info_by_fd, bpf_obj_pin,
    bpf_object, bpf_object__close, bpf_object__find_map_by_name,
    bpf_object__find_program_by_name, bpf_object__load, bpf_object__next_map,
    bpf_object__next_program, bpf_object__open_file, bpf_prog_get_fd_by_id, bpf_prog_info,
    bpf_prog_test_run_opts, bpf_program, bpf_program__fd, bpf_program__flags, bpf_program__name,
    bpf_program__set_flags, bpf_program__set_ifindex, bpf_test_run_opts, bpf_xdp_detach,
    bpf_xdp_query,
    bpf_xdp_query_opts, libbpf_num_possible_cpus, libxdp_get_error, xdp_attach_mode,
    xdp_multiprog, xdp_multiprog__close, xdp_multiprog__get_from_ifindex,
    xdp_multiprog__is_legacy, xdp_program, xdp_program__attach, xdp_program__close,
    xdp_program__detach, xdp_program__from_bpf_obj, xsk_ring_cons, xsk_ring_prod, xsk_socket,
    xsk_socket__create_shared, xsk_socket__delete, xsk_socket__fd, xsk_socket_config, xsk_umem,
    xsk_umem__create, xsk_umem__delete, xsk_umem__fd, xsk_umem_config,
)
from l2fwd._rings cimport Memory
from l2fwd._xdp cimport getsockopt

import logging
import os
import time

from l2fwd._rings import RingMemory
from l2fwd.errors import ConfigError, kernel_error


cdef extern from "net/if.h" nogil:
    enum:
        IF_NAMESIZE

    char* if_indextoname(unsigned int ifindex, char* name)


cdef extern from * nogil:
    """
    #include <linux/membarrier.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    """
    enum:
        MEMBARRIER_CMD_GLOBAL
        SYS_membarrier
    long syscall(long number, ...)


cdef extern from "linux/magic.h" nogil:
    enum:
        BPF_FS_MAGIC


cdef extern from "sys/vfs.h" nogil:
    struct c_statfs "statfs":
        long f_type

    int statfs(const char* path, c_statfs* info)


cdef extern from "fcntl.h" nogil:
    enum:
        O_CLOEXEC


cdef extern from "sys/mman.h" nogil:
    enum:
        MAP_FIXED
        MAP_POPULATE
        MAP_SHARED
        PROT_READ
        PROT_WRITE

    void* MAP_FAILED
    void* mmap(void* addr, size_t length, int protection, int flags, int fd, long offset)


cdef extern from "sys/socket.h" nogil:
    enum:
        SOCK_CLOEXEC
        SOCK_RAW

    int socket(int family, int kind, int protocol)
    int setsockopt(int fd, int level, int name, const void* value, unsigned int length)


cdef extern from "unistd.h" nogil:
    int dup3(int old, int new, int flags)


cdef extern from "linux/if_xdp.h" nogil:
    enum:
        XDP_MMAP_OFFSETS
        XDP_UMEM_COMPLETION_RING
        XDP_UMEM_FILL_RING
        XDP_UMEM_REG

    const long XDP_UMEM_PGOFF_COMPLETION_RING
    const long XDP_UMEM_PGOFF_FILL_RING

    struct xdp_ring_offset:
        uint64_t desc

    struct xdp_mmap_offsets:
        xdp_ring_offset fr
        xdp_ring_offset cr


cdef struct umem_registration:      # struct xdp_umem_reg; headers may lack its last member
    uint64_t addr
    uint64_t len
    uint32_t chunk_size
    uint32_t headroom
    uint32_t flags
    uint32_t tx_metadata_len


# libbpf and libxdp print through one callback each; both end in log_line below.
cdef extern from * nogil:
    """
    #include <stdarg.h>
    #include <stdio.h>
    #include <bpf/libbpf.h>
    #include <xdp/libxdp.h>

    static void (*l2fwd_log_line)(int level, const char *text);

    static int l2fwd_log(int level, const char *format, va_list arguments)
    {
        char text[1024];

        vsnprintf(text, sizeof(text), format, arguments);
        l2fwd_log_line(level, text);
        return 0;
    }

    static int l2fwd_libbpf_print(enum libbpf_print_level level, const char *format,
                                  va_list arguments)
    {
        return l2fwd_log(level, format, arguments);
    }

    static int l2fwd_libxdp_print(enum libxdp_print_level level, const char *format,
                                  va_list arguments)
    {
        return l2fwd_log(level, format, arguments);
    }

    static void l2fwd_log_to(void (*log_line)(int level, const char *text))
    {
        l2fwd_log_line = log_line;
        libbpf_set_print(l2fwd_libbpf_print);
        libxdp_set_print(l2fwd_libxdp_print);
    }
    """
    void l2fwd_log_to(void (*log_line)(int level, const char* text) noexcept nogil)


cdef enum:
    AF_XDP = 44
    SOL_XDP = 283
    XDP_UMEM_TX_METADATA_LEN = 1 << 2   # since Linux 6.11, and in stable kernels since 6.8
    ITEMS_AT_ONCE = 4096
    MAX_PROGRAM_MAPS = 64
    BPF_F_TEST_XDP_LIVE_FRAMES = 1 << 1

_logger = logging.getLogger("l2fwd.libbpf")


GRACE_SECONDS = 0.1
last_warning = ""


cdef void log_line(int level, const char* text) noexcept with gil:
    global last_warning
    if level == 0:
        last_warning = text.decode(errors="replace").strip()
    # 0 warn, 1 info, 2 debug in both libraries.  Their warnings only repeat, in many lines,
    # what our exception says in one, so all of it is debug to us.
    _logger.debug("%s", text.decode(errors="replace").rstrip())


l2fwd_log_to(<void (*)(int, const char*) noexcept nogil>log_line)


cdef class BpfObject:
    """One BPF object file, opened; loaded by ``load`` or by ``attach_chained``.

    Parameters
    ----------
    path : str
        The object file.
    program : str
        Name of its one XDP program.
    map_sizes : dict[str, int]
        ``max_entries`` by map name.
    shared : BpfObject or None
        A loaded object of the same file, whose maps named in ``shared_maps`` are used here too.
    """

    cdef bpf_object* object
    cdef bpf_program* program
    cdef xdp_program* chained
    cdef readonly str name
    cdef readonly bint is_loaded

    def __cinit__(self, str path, str program, dict map_sizes, BpfObject shared=None,
                  tuple shared_maps=()):
        cdef int error
        self.name = program
        self.object = bpf_object__open_file(path.encode(), NULL)
        if self.object == NULL and errno >= LIBBPF_ERRNO__LIBELF:
            raise ConfigError(f"{path} is no BPF object; compile it with clang -g -target bpf")
        if self.object == NULL:
            raise kernel_error(errno, "open BPF object", path)
        if program:
            self.program = bpf_object__find_program_by_name(self.object, program.encode())
        else:
            self.program = bpf_object__next_program(self.object, NULL)
        if self.program != NULL:
            self.name = bpf_program__name(self.program).decode()
        if self.program == NULL:
            raise kernel_error(ENOENT, "find program", f"{program} in {path}")
        for name, size in map_sizes.items():
            error = bpf_map__set_max_entries(self._map(name), size)
            if error:
                raise kernel_error(-error, "size map", f"{name} to {size}")
        for name in shared_maps:
            error = bpf_map__reuse_fd(self._map(name), shared.map_fd(name))
            if error:
                raise kernel_error(-error, "share map", name)

    def __dealloc__(self):
        self._close()

    def set_constants(self, const unsigned char[:] values):
        """Set the ``const volatile`` variables of the object, before it is loaded."""
        cdef int error = bpf_map__set_initial_value(self._map(".rodata"), &values[0],
                                                    values.shape[0])
        if error:
            raise kernel_error(-error, "set constants of", f"program {self.name}")

    def load(self, int offload_ifindex=0, int bound_ifindex=0):
        """Load programs and maps.

        Parameters
        ----------
        offload_ifindex : int
            Onto this NIC itself.
        bound_ifindex : int
            For this link only, in native mode: then the program may ask its driver.
        """
        cdef bpf_map* each = NULL
        cdef int error
        if bound_ifindex:
            bpf_program__set_ifindex(self.program, bound_ifindex)
            bpf_program__set_flags(self.program,
                                   bpf_program__flags(self.program) | BPF_F_XDP_DEV_BOUND_ONLY)
        if offload_ifindex:
            bpf_program__set_ifindex(self.program, offload_ifindex)
            each = bpf_object__next_map(self.object, NULL)
            while each != NULL:
                bpf_map__set_ifindex(each, offload_ifindex)
                each = bpf_object__next_map(self.object, each)
        error = bpf_object__load(self.object)
        if error:
            raise kernel_error(-error, "load", f"program {self.name}")
        self.is_loaded = True

    def attach_link(self, int ifindex, uint32_t flags, str target):
        """Attach by an unpinned bpf_link; return its fd, whose close detaches."""
        cdef bpf_link_create_opts opts
        cdef int fd
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.flags = flags
        fd = bpf_link_create(bpf_program__fd(self.program), ifindex, BPF_XDP, &opts)
        if fd < 0:
            raise kernel_error(-fd, "attach to", target)
        return fd

    def attach_chained(self, int ifindex, int mode, str target):
        """Load and attach through libxdp; return True if its dispatcher took the program."""
        cdef xdp_multiprog* programs
        cdef bint dispatched
        cdef int error
        if self.chained == NULL:
            self.chained = xdp_program__from_bpf_obj(self.object, NULL)
            error = libxdp_get_error(self.chained)
            if error:
                self.chained = NULL
                raise kernel_error(-error, "load", f"program {self.name}")
        error = xdp_program__attach(self.chained, ifindex, <xdp_attach_mode>mode, 0)
        if error:
            raise kernel_error(-error, "attach to", target)
        self.is_loaded = True
        programs = xdp_multiprog__get_from_ifindex(ifindex)
        if libxdp_get_error(programs):
            return False
        dispatched = not xdp_multiprog__is_legacy(programs)
        xdp_multiprog__close(programs)
        return dispatched

    def detach_chained(self, int ifindex, int mode, str target):
        """Undo ``attach_chained``."""
        cdef int error = xdp_program__detach(self.chained, ifindex, <xdp_attach_mode>mode, 0)
        if error:
            raise kernel_error(-error, "detach from", target)

    def map_fd(self, str name):
        return bpf_map__fd(self._map(name))

    def set_socket(self, str map_name, uint32_t key, int fd):
        """Put socket ``fd`` at ``key`` of an XSKMAP."""
        put_socket(self.map_fd(map_name), key, fd, map_name)

    def update(self, str map_name, const unsigned char[:] keys, const unsigned char[:] values):
        """Set many keys: both arrays hold one after the other, as wide as the map has them."""
        cdef bpf_map* found = self._map(map_name)
        cdef size_t key_size = bpf_map__key_size(found)
        cdef size_t value_size = bpf_map__value_size(found)
        cdef size_t key_bytes = keys.shape[0]
        cdef size_t value_bytes = values.shape[0]
        cdef size_t count = key_bytes // key_size
        cdef size_t i
        cdef int fd = bpf_map__fd(found)
        cdef int error = 0
        if count * key_size != key_bytes or count * value_size != value_bytes:
            raise ConfigError(f"{map_name} has keys of {key_size} and values of {value_size} bytes")
        with nogil:
            for i in range(count):
                if bpf_map_update_elem(fd, &keys[i * key_size], &values[i * value_size], 0) < 0:
                    error = errno
                    break
        if error:
            raise kernel_error(error, "update map", f"{map_name}, entry {i} of {count}")

    def delete(self, str map_name, const unsigned char[:] keys):
        """Delete many keys; those that are not there are fine."""
        cdef bpf_map* found = self._map(map_name)
        cdef size_t key_size = bpf_map__key_size(found)
        cdef size_t i
        cdef int fd = bpf_map__fd(found)
        with nogil:
            for i in range(keys.shape[0] // key_size):
                bpf_map_delete_elem(fd, &keys[i * key_size])

    def items(self, str map_name):
        """Return all keys and all values of a hash: two bytes objects, one after the other.

        What comes or goes meanwhile may be in it or not.
        """
        cdef bpf_map* found = self._map(map_name)
        return map_items(bpf_map__fd(found), bpf_map__key_size(found), bpf_map__value_size(found))

    def clear(self, str map_name, uint32_t key):
        """Delete ``key``; a key that is not there is fine (its socket closed before us)."""
        if bpf_map_delete_elem(self.map_fd(map_name), &key) < 0 and errno != ENOENT:
            raise kernel_error(errno, "delete from map", f"{map_name}[{key}]")

    def per_cpu(self, str map_name, uint32_t key):
        """Return one value of a per-CPU map: bytes, one after the other for each CPU."""
        cdef size_t size = bpf_map__value_size(self._map(map_name))
        cdef object values
        size = (size + 7) // 8 * 8 * libbpf_num_possible_cpus()
        values = PyBytes_FromStringAndSize(NULL, size)
        if bpf_map_lookup_elem(self.map_fd(map_name), &key, <char*>values) < 0:
            raise kernel_error(errno, "read map", f"{map_name}[{key}]")
        return values

    @property
    def fd(self):
        return bpf_program__fd(self.program)

    def close(self):
        """Drop programs and maps; they go with their last user."""
        self._close()

    cdef void _close(self) noexcept:
        if self.chained != NULL:
            xdp_program__close(self.chained)
            self.chained = NULL
        if self.object != NULL:
            bpf_object__close(self.object)
            self.object = NULL
        self.is_loaded = False

    cdef bpf_map* _map(self, str name) except NULL:
        cdef bpf_map* found = NULL
        if self.object != NULL:
            found = bpf_object__find_map_by_name(self.object, name.encode())
        if found == NULL:
            raise kernel_error(ENOENT, "find map", f"{name} of {self.name}")
        return found


def map_items(int fd, size_t key_size, size_t value_size):
    """Return all keys and all values of a hash, as ``BpfObject.items``."""
    cdef uint32_t cursor = 0
    cdef uint32_t count
    cdef int error = 0
    cdef bint is_first = True
    keys, values = [], []
    cdef unsigned char[::1] key_room = bytearray(ITEMS_AT_ONCE * key_size)
    cdef unsigned char[::1] value_room = bytearray(ITEMS_AT_ONCE * value_size)
    while error == 0:
        count = ITEMS_AT_ONCE
        with nogil:
            error = -bpf_map_lookup_batch(fd, NULL if is_first else &cursor, &cursor,
                                          &key_room[0], &value_room[0], &count, NULL)
        if error and error != ENOENT:       # ENOENT: that was the last of them
            raise kernel_error(error, "read map", f"fd {fd}")
        is_first = False
        keys.append(bytes(key_room[:count * key_size]))
        values.append(bytes(value_room[:count * value_size]))
    return b"".join(keys), b"".join(values)


# Called by a worker, through their addresses, without the GIL.

cdef int insert_flows(int fd, const void* keys, const void* values,
                      uint32_t* count) noexcept nogil:
    """Insert ``count`` flows; it tells how many were, and the result is 0 or -errno."""
    return bpf_map_update_batch(fd, keys, values, count, NULL)


cdef int give_to_host(int fd, uint8_t* data, uint32_t length, uint32_t ifindex) noexcept nogil:
    """Have the host stack receive a packet on a link: a live frame that the program passes."""
    cdef bpf_test_run_opts opts
    cdef uint32_t context[6]            # struct xdp_md
    memset(context, 0, sizeof(context))
    context[1] = length                 # data_end
    context[3] = ifindex
    memset(&opts, 0, sizeof(opts))
    opts.sz = sizeof(opts)
    opts.repeat = 1
    opts.flags = BPF_F_TEST_XDP_LIVE_FRAMES
    opts.data_in = data
    opts.data_size_in = length
    opts.ctx_in = context
    opts.ctx_size_in = sizeof(context)
    return bpf_prog_test_run_opts(fd, &opts)


INSERT_FLOWS = <uintptr_t>&insert_flows
GIVE_TO_HOST = <uintptr_t>&give_to_host


cdef int run_program(int program_fd, bpf_test_run_opts* opts, const unsigned char[:] packet,
                     uint32_t ingress_ifindex) except -1:
    cdef uint32_t context[6]            # struct xdp_md
    cdef int error
    memset(context, 0, sizeof(context))
    opts.sz = sizeof(bpf_test_run_opts)
    opts.data_in = &packet[0]
    opts.data_size_in = packet.shape[0]
    if ingress_ifindex:
        context[1] = packet.shape[0]    # data_end
        context[3] = ingress_ifindex
        opts.ctx_in = context
        opts.ctx_size_in = sizeof(context)
    with nogil:
        error = bpf_prog_test_run_opts(program_fd, opts)
    if error:
        raise kernel_error(-error, "run", f"program fd {program_fd}")
    return 0


def test_run(int program_fd, const unsigned char[:] packet, *, int repeat=1, uint32_t flags=0,
             uint32_t ingress_ifindex=0, uint32_t batch_size=0):
    """Run a program on ``packet`` in the kernel (BPF_PROG_TEST_RUN).

    Returns
    -------
    tuple of int
        Verdict, and mean ns per run.  With live frames (``flags`` 2) both are 0.
    """
    cdef bpf_test_run_opts opts
    memset(&opts, 0, sizeof(opts))
    opts.repeat = repeat
    opts.flags = flags
    opts.batch_size = batch_size
    run_program(program_fd, &opts, packet, ingress_ifindex)
    return opts.retval, opts.duration


def run_packet(int program_fd, const unsigned char[:] packet, uint32_t ingress_ifindex):
    """Run a program once; return its verdict, and what has become of the packet."""
    cdef bpf_test_run_opts opts
    room = bytearray(packet.shape[0] + 256)
    cdef unsigned char[:] out = room
    memset(&opts, 0, sizeof(opts))
    opts.repeat = 1
    opts.data_out = &out[0]
    opts.data_size_out = out.shape[0]
    run_program(program_fd, &opts, packet, ingress_ifindex)
    return opts.retval, bytes(room[:opts.data_size_out])


def synchronize():
    """Wait until every program that runs now has ended (synchronize_rcu)."""
    if syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) < 0:
        if errno == EINVAL:             # nohz_full CPUs: the kernel has no such wait then
            time.sleep(GRACE_SECONDS)   # programs run for microseconds, not preempted by threads
            return
        raise kernel_error(errno, "synchronize with", "running programs")


cdef int put_socket(int map_fd, uint32_t key, int fd, str name) except -1:
    """Put a socket into an XSKMAP; a map of another type would take the number, and succeed."""
    cdef bpf_map_info info
    cdef uint32_t length = sizeof(info)
    memset(&info, 0, sizeof(info))
    if (not os.readlink(f"/proc/self/fd/{map_fd}").endswith("bpf-map")
            or bpf_obj_get_info_by_fd(map_fd, &info, &length) < 0
            or info.type != BPF_MAP_TYPE_XSKMAP):
        raise ConfigError(f"{name} is no XSKMAP, which takes AF_XDP sockets")
    if bpf_map_update_elem(map_fd, &key, &fd, 0) < 0:
        raise kernel_error(errno, "update map", f"{name}[{key}]")
    return 0


def set_pinned_socket(str path, uint32_t key, int fd):
    """Put socket ``fd`` at ``key`` of the XSKMAP pinned at ``path``."""
    cdef int map_fd = bpf_obj_get(path.encode())
    if map_fd < 0:
        raise kernel_error(-map_fd, "open map", path)
    try:
        put_socket(map_fd, key, fd, path)
    finally:
        os.close(map_fd)


def xdp_attached(int ifindex):
    """Return (mode, program id) of a link, mode as in IFLA_XDP_ATTACHED; (0, 0) if none.

    Raises
    ------
    KernelError
        ENODEV once the link is gone.
    """
    cdef bpf_xdp_query_opts opts
    cdef char name[IF_NAMESIZE]
    cdef int error
    memset(&opts, 0, sizeof(opts))
    opts.sz = sizeof(opts)
    # Answers "no program" for a link that is not there.
    error = bpf_xdp_query(ifindex, 0, &opts)
    if error:
        raise kernel_error(-error, "query XDP of", f"link {ifindex}")
    if opts.prog_id == 0 and if_indextoname(ifindex, name) == NULL:
        raise kernel_error(ENODEV, "query XDP of", f"link {ifindex}")
    return opts.attach_mode, opts.prog_id


def xdp_detach(int ifindex, uint32_t flags, str target):
    """Remove a program attached over netlink, as libxdp and ``ip link`` do."""
    cdef int error = bpf_xdp_detach(ifindex, flags, NULL)
    if error:
        raise kernel_error(-error, "detach from", target)


def program_name(uint32_t program_id):
    """Return the name of a loaded program; needs CAP_SYS_ADMIN."""
    cdef bpf_prog_info info
    cdef uint32_t length = sizeof(info)
    cdef int fd = bpf_prog_get_fd_by_id(program_id)
    if fd < 0:
        raise kernel_error(-fd, "open program", str(program_id))
    try:
        memset(&info, 0, sizeof(info))
        if bpf_obj_get_info_by_fd(fd, &info, &length) < 0:
            raise kernel_error(errno, "describe program", str(program_id))
        return info.name.decode()
    finally:
        os.close(fd)


def program_map_items(uint32_t program_id, str name):
    """Return all keys and values of a map of a loaded program, as ``BpfObject.items``.

    Needs CAP_SYS_ADMIN.  ENOENT if the program has no map of that name.
    """
    cdef uint32_t ids[MAX_PROGRAM_MAPS]
    cdef bpf_prog_info info
    cdef bpf_map_info found
    cdef uint32_t length = sizeof(info)
    cdef uint32_t i
    cdef int fd = bpf_prog_get_fd_by_id(program_id)
    if fd < 0:
        raise kernel_error(-fd, "open program", str(program_id))
    try:
        memset(&info, 0, sizeof(info))
        info.nr_map_ids, info.map_ids = MAX_PROGRAM_MAPS, <uintptr_t>ids
        if bpf_obj_get_info_by_fd(fd, &info, &length) < 0:
            raise kernel_error(errno, "describe program", str(program_id))
    finally:
        os.close(fd)
    for i in range(min(info.nr_map_ids, <uint32_t>MAX_PROGRAM_MAPS)):
        fd = bpf_map_get_fd_by_id(ids[i])
        if fd < 0:
            raise kernel_error(-fd, "open map", str(ids[i]))
        try:
            memset(&found, 0, sizeof(found))
            length = sizeof(found)
            if bpf_obj_get_info_by_fd(fd, &found, &length) < 0:
                raise kernel_error(errno, "describe map", str(ids[i]))
            if found.name.decode() == name:
                return map_items(fd, found.key_size, found.value_size)
        finally:
            os.close(fd)
    raise kernel_error(ENOENT, "find map", f"{name} of program {program_id}")


cdef bpf_link_info link_info(int fd) except *:
    cdef bpf_link_info info
    cdef uint32_t length = sizeof(info)
    memset(&info, 0, sizeof(info))
    if bpf_obj_get_info_by_fd(fd, &info, &length) < 0:
        raise kernel_error(errno, "describe link", f"fd {fd}")
    return info


def xdp_links():
    """List all XDP bpf_links of this machine: (link id, ifindex, program id)."""
    cdef uint32_t link_id = 0
    cdef bpf_link_info info
    cdef int fd
    found = []
    while bpf_link_get_next_id(link_id, &link_id) == 0:
        fd = bpf_link_get_fd_by_id(link_id)
        if fd < 0:
            continue                    # gone meanwhile
        try:
            info = link_info(fd)
        finally:
            os.close(fd)
        if info.type == BPF_LINK_TYPE_XDP:
            found.append((info.id, info.xdp.ifindex, info.prog_id))
    return found


def detach_link(uint32_t link_id):
    """Detach a bpf_link whoever holds it (BPF_LINK_DETACH)."""
    cdef int fd = bpf_link_get_fd_by_id(link_id)
    cdef int error
    if fd < 0:
        raise kernel_error(-fd, "open link", str(link_id))
    try:
        error = bpf_link_detach(fd)
        if error:
            raise kernel_error(-error, "detach link", str(link_id))
    finally:
        os.close(fd)


def is_bpf_fs(str path):
    """Tell whether ``path`` is there and lies on a BPF file system."""
    cdef c_statfs info
    return statfs(os.fsencode(path), &info) == 0 and info.f_type == BPF_FS_MAGIC


def pin(int fd, str path, str target):
    """Hold a BPF object by a file of a BPF file system, with mode 0600 less the umask."""
    cdef int error = bpf_obj_pin(fd, os.fsencode(path))
    if error:
        raise kernel_error(-error, "pin", target)


def pinned_link(str path):
    """Describe a pinned XDP bpf_link: (link id, ifindex, program id); None if it is none.

    The ifindex is 0 once the link has gone, or the bpf_link was detached.
    """
    cdef int fd = bpf_obj_get(os.fsencode(path))
    cdef bpf_link_info info
    if fd < 0:
        raise kernel_error(-fd, "open pin", path)
    try:
        # The kernel describes a map or a program as readily, in a struct of its own.
        if not os.readlink(f"/proc/self/fd/{fd}").endswith("link"):
            return None
        info = link_info(fd)
    finally:
        os.close(fd)
    return (info.id, info.xdp.ifindex, info.prog_id) if info.type == BPF_LINK_TYPE_XDP else None


cdef class UmemHandle:
    """A UMEM registered with the kernel through libxdp.

    Deleting it fails while a socket uses it, so close the sockets first.  ``memory`` stays
    referenced until then.

    Parameters
    ----------
    memory : Memory
    ring_size : int
        Slots of the fill and completion ring.
    headroom : int
        Bytes.
    flags : int
        XDP_UMEM_UNALIGNED_CHUNK_FLAG, or 0.
    tx_metadata_bytes : int
        Kept before each packet sent, for what is asked of the NIC; a multiple of 8.
    """

    cdef xsk_umem* umem
    cdef xsk_ring_prod fill
    cdef xsk_ring_cons completion
    cdef readonly Memory memory
    cdef readonly uint32_t ring_size
    cdef bint has_socket
    cdef readonly int socket_count
    cdef set bound                      # (ifname, queue id) of the sockets

    def __cinit__(self, Memory memory not None, uint32_t ring_size, uint32_t headroom,
                  uint32_t flags=0, uint32_t tx_metadata_bytes=0):
        cdef xsk_umem_config config
        cdef size_t size = memory.shape[0] * memory.frame_size
        cdef int error
        memset(&config, 0, sizeof(config))
        config.fill_size = config.comp_size = ring_size
        config.frame_size = memory.frame_size
        config.frame_headroom = headroom
        config.flags = flags
        error = xsk_umem__create(
            &self.umem, memory.start, memory.frame_size if tx_metadata_bytes else size,
            &self.fill, &self.completion, &config)
        if error:
            raise kernel_error(-error, "register UMEM", f"of {memory.shape[0]} frames of "
                               f"{memory.frame_size} bytes")
        self.memory = memory
        self.ring_size = ring_size
        self.bound = set()
        if tx_metadata_bytes:
            self._register_again(umem_registration(
                <uintptr_t>memory.start, size, memory.frame_size, headroom,
                flags | XDP_UMEM_TX_METADATA_LEN, tx_metadata_bytes))

    cdef int _register_again(self, umem_registration wanted) except -1:
        """Put a socket with another UMEM behind libxdp's descriptor.

        libxdp before 1.5 cannot ask for TX metadata (docs/adr/0014).  So it made a UMEM of one
        frame; nothing was bound yet, and the new rings lie where the old ones did.
        """
        cdef int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0)
        if fd < 0:
            raise kernel_error(errno, "create AF_XDP socket", "for TX metadata")
        try:
            if setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &wanted, sizeof(wanted)) < 0:
                raise kernel_error(errno, "register UMEM", "with TX metadata")
            self._replace_rings(fd)
            if dup3(fd, xsk_umem__fd(self.umem), O_CLOEXEC) < 0:
                raise kernel_error(errno, "replace", "the descriptor of a UMEM")
        finally:
            os.close(fd)
        return 0

    cdef int _replace_rings(self, int fd) except -1:
        cdef xdp_mmap_offsets offsets
        cdef unsigned int length = sizeof(offsets)
        cdef uint32_t size = self.ring_size
        if setsockopt(fd, SOL_XDP, XDP_UMEM_FILL_RING, &size, sizeof(size)) < 0 or (
                setsockopt(fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &size, sizeof(size)) < 0):
            raise kernel_error(errno, "make rings of", "a UMEM")
        if getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length) < 0:
            raise kernel_error(errno, "read ring offsets of", "a UMEM")
        map_over(self.fill.ring, offsets.fr.desc, size, fd, XDP_UMEM_PGOFF_FILL_RING)
        map_over(self.completion.ring, offsets.cr.desc, size, fd, XDP_UMEM_PGOFF_COMPLETION_RING)
        return 0

    def __dealloc__(self):
        xsk_umem__delete(self.umem)

    def close(self):
        cdef int error = xsk_umem__delete(self.umem)
        if error:
            raise kernel_error(-error, "delete", "UMEM")
        self.umem = NULL


cdef int map_over(void* slots, size_t first_slot, uint32_t size, int fd, long ring) except -1:
    """Map a ring of addresses of socket ``fd`` where another one was mapped."""
    if mmap(<char*>slots - first_slot, first_slot + size * sizeof(uint64_t),
            PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd,
            ring) == MAP_FAILED:
        raise kernel_error(errno, "map ring of", "a UMEM")
    return 0


cdef object producer_memory(const xsk_ring_prod* ring):
    return RingMemory(<uintptr_t>ring.producer, <uintptr_t>ring.consumer,
                      <uintptr_t>ring.flags, <uintptr_t>ring.ring, ring.size)


cdef object consumer_memory(const xsk_ring_cons* ring):
    return RingMemory(<uintptr_t>ring.producer, <uintptr_t>ring.consumer,
                      <uintptr_t>ring.flags, <uintptr_t>ring.ring, ring.size)


cdef class SocketHandle:
    """An AF_XDP socket bound to (link, queue) by libxdp, without libxdp's own program.

    Parameters
    ----------
    umem : UmemHandle
        The first socket of a UMEM binds with ``bind_flags``; the others inherit them.
    ifname : str
    queue_id : int
    bind_flags : int
        XDP_COPY, XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP, XDP_USE_SG.
    """

    cdef xsk_socket* socket
    cdef xsk_ring_prod own_fill
    cdef xsk_ring_cons own_completion
    cdef xsk_ring_cons rx
    cdef xsk_ring_prod tx
    cdef readonly UmemHandle umem
    cdef readonly int fd
    cdef bint is_first
    cdef tuple place

    def __cinit__(self, UmemHandle umem not None, str ifname, uint32_t queue_id,
                  unsigned short bind_flags):
        cdef xsk_socket_config config
        cdef int error
        if umem.has_socket and umem.socket_count == 0:
            # The UMEM's own descriptor was that of its first socket, and is bound for good.
            raise ConfigError("all sockets of this UMEM were closed; make a new one")
        # libxdp would share the rings of such a pair, and has none to give to the second.
        if (ifname, queue_id) in umem.bound:
            raise ConfigError(f"{ifname} queue {queue_id} has a socket of this UMEM already")
        memset(&config, 0, sizeof(config))
        config.rx_size = config.tx_size = umem.ring_size
        config.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD
        config.bind_flags = bind_flags
        # The first socket must use the rings that came with the UMEM: on a failed bind libxdp
        # unmaps any others, and the next try would find nothing.
        self.is_first = not umem.has_socket
        error = xsk_socket__create_shared(
            &self.socket, ifname.encode(), queue_id, umem.umem, &self.rx, &self.tx,
            &umem.fill if self.is_first else &self.own_fill,
            &umem.completion if self.is_first else &self.own_completion, &config)
        if error:
            self.socket = NULL
            raise kernel_error(-error, "bind", f"{ifname} queue {queue_id}")
        umem.has_socket = True
        umem.socket_count += 1
        self.umem = umem
        self.place = (ifname, queue_id)
        umem.bound.add(self.place)
        self.fd = xsk_socket__fd(self.socket)

    def __dealloc__(self):
        self._close()

    def rings(self):
        """Return the four rings' memory by name."""
        umem = self.umem
        return {
            "fill": producer_memory(&umem.fill if self.is_first else &self.own_fill),
            "completion": consumer_memory(
                &umem.completion if self.is_first else &self.own_completion),
            "rx": consumer_memory(&self.rx),
            "tx": producer_memory(&self.tx),
        }

    def get_option(self, int level, int name, unsigned int size):
        """Return what getsockopt gives: as many bytes as the kernel has, at most ``size``."""
        value = PyBytes_FromStringAndSize(NULL, size)
        if getsockopt(self.fd, level, name, <char*>value, &size) < 0:
            raise kernel_error(errno, "read option of", f"AF_XDP socket ({level}, {name})")
        return value[:size]

    def set_option(self, int level, int name, int value):
        if setsockopt(self.fd, level, name, &value, sizeof(value)) < 0:
            raise kernel_error(errno, "set option of", f"AF_XDP socket ({level}, {name})")

    def close(self):
        """Unmap the rings and close the socket; the queue is free some milliseconds later."""
        self._close()

    cdef void _close(self) noexcept:
        if self.socket == NULL:
            return
        xsk_socket__delete(self.socket)
        self.socket = NULL
        self.fd = -1
        self.umem.socket_count -= 1
        self.umem.bound.discard(self.place)
