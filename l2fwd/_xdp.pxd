# Kernel ABI, libc calls and atomics of the data path.  Declarations only, and only the
# members we touch.  Source: linux/if_xdp.h, sys/socket.h, poll.h.
from libc.stdint cimport uint32_t, uint64_t


cdef extern from "linux/if_xdp.h" nogil:
    enum:
        XDP_RING_NEED_WAKEUP

    struct xdp_desc:
        uint64_t addr       # byte offset into the UMEM
        uint32_t len        # bytes of packet data at addr
        uint32_t options    # XDP_PKT_CONTD; 0 for one-buffer packets


cdef enum:                  # newer than the headers of some distributions
    XDP_PKT_CONTD = 1       # the packet goes on in the next descriptor


cdef extern from "sys/socket.h" nogil:
    enum:
        MSG_DONTWAIT
        SOL_SOCKET
        SO_ERROR

    ssize_t sendto(int fd, const void* buf, size_t len, int flags,
                   const void* addr, unsigned int addr_len)
    ssize_t recvfrom(int fd, void* buf, size_t len, int flags, void* addr, void* addr_len)
    int getsockopt(int fd, int level, int name, void* value, unsigned int* length)


cdef extern from "poll.h" nogil:
    enum:
        POLLIN
        POLLOUT

    struct pollfd:
        int fd
        short events
        short revents

    struct timespec:
        long tv_sec
        long tv_nsec

    int ppoll(pollfd* fds, unsigned long count, const timespec* timeout, const void* mask)


cdef extern from * nogil:
    """
    #ifndef L2FWD_DEBUG
    #define L2FWD_DEBUG 0
    #endif
    """
    enum:
        L2FWD_DEBUG             # 1 in builds made with L2FWD_DEBUG=1 in the environment
        RELAXED "__ATOMIC_RELAXED"
        ACQUIRE "__ATOMIC_ACQUIRE"
        RELEASE "__ATOMIC_RELEASE"
        IN_ORDER "__ATOMIC_SEQ_CST"     # for all threads, and all variables stored so

    uint32_t atomic_load "__atomic_load_n"(const uint32_t* ptr, int order)
    uint64_t atomic_load_64 "__atomic_load_n"(const uint64_t* ptr, int order)
    void atomic_store "__atomic_store_n"(uint32_t* ptr, uint32_t value, int order)
    void atomic_store_64 "__atomic_store_n"(uint64_t* ptr, uint64_t value, int order)
    void* atomic_load_ptr "__atomic_load_n"(void** ptr, int order)
    void atomic_store_ptr "__atomic_store_n"(void** ptr, void* value, int order)
    void prefetch "__builtin_prefetch"(const void* address)
    bint unlikely "__builtin_expect"(bint condition, int expected)
