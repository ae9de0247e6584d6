# libbpf and libxdp: declarations only, and only what _bpf.pyx calls.  Source: bpf/bpf.h,
# bpf/libbpf.h, xdp/libxdp.h, xdp/xsk.h.
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef enum:                          # newer than the headers of some distributions
    BPF_F_XDP_DEV_BOUND_ONLY = 1 << 6


cdef extern from "bpf/bpf.h" nogil:
    struct bpf_link_create_opts:
        size_t sz
        uint32_t flags

    struct bpf_test_run_opts:
        size_t sz
        const void* data_in
        void* data_out
        uint32_t data_size_in
        uint32_t data_size_out
        const void* ctx_in
        uint32_t ctx_size_in
        uint32_t retval
        int repeat
        uint32_t duration
        uint32_t flags
        uint32_t batch_size

    struct bpf_prog_info:
        uint32_t id
        char name[16]
        uint32_t nr_map_ids
        uint64_t map_ids            # address of uint32_t[nr_map_ids]

    enum:
        BPF_MAP_TYPE_XSKMAP

    struct bpf_map_info:
        uint32_t type
        char name[16]
        uint32_t key_size
        uint32_t value_size

    int bpf_map_get_fd_by_id(uint32_t id)

    struct xdp_link_info "xdp":
        uint32_t ifindex

    struct bpf_link_info:
        uint32_t type
        uint32_t id
        uint32_t prog_id
        xdp_link_info xdp

    enum:
        BPF_XDP
        BPF_LINK_TYPE_XDP

    int bpf_link_create(int program, int target, int attach_type, const bpf_link_create_opts*)
    int bpf_link_detach(int link)
    int bpf_link_get_next_id(uint32_t start, uint32_t* next_id)
    int bpf_link_get_fd_by_id(uint32_t link_id)
    int bpf_prog_get_fd_by_id(uint32_t program_id)
    int bpf_obj_get_info_by_fd(int fd, void* info, uint32_t* length)
    int bpf_obj_pin(int fd, const char* path)
    int bpf_obj_get(const char* path)
    int bpf_map_update_elem(int fd, const void* key, const void* value, uint64_t flags)
    int bpf_map_delete_elem(int fd, const void* key)
    struct bpf_map_batch_opts:
        pass

    int bpf_map_lookup_batch(int fd, void* in_batch, void* out_batch, void* keys, void* values,
                             uint32_t* count, const bpf_map_batch_opts* opts)
    int bpf_map_lookup_elem(int fd, const void* key, void* value)
    int bpf_map_update_batch(int fd, const void* keys, const void* values, uint32_t* count,
                             const bpf_map_batch_opts* opts)
    int bpf_prog_test_run_opts(int program, bpf_test_run_opts* opts)


cdef extern from "bpf/libbpf.h" nogil:
    enum:
        LIBBPF_ERRNO__LIBELF        # the first of libbpf's own error numbers

    struct bpf_object:
        pass
    struct bpf_program:
        pass
    struct bpf_map:
        pass
    struct bpf_xdp_query_opts:
        size_t sz
        uint32_t prog_id
        uint8_t attach_mode

    bpf_object* bpf_object__open_file(const char* path, const void* opts)
    int bpf_object__load(bpf_object*)
    void bpf_object__close(bpf_object*)
    bpf_program* bpf_object__find_program_by_name(const bpf_object*, const char* name)
    bpf_map* bpf_object__find_map_by_name(const bpf_object*, const char* name)
    bpf_map* bpf_object__next_map(const bpf_object*, const bpf_map*)
    bpf_program* bpf_object__next_program(const bpf_object* object, bpf_program* program)
    const char* bpf_program__name(const bpf_program* program)
    int bpf_program__fd(const bpf_program*)
    void bpf_program__set_ifindex(bpf_program*, uint32_t ifindex)
    uint32_t bpf_program__flags(const bpf_program*)
    int bpf_program__set_flags(bpf_program*, uint32_t flags)
    int bpf_map__set_initial_value(bpf_map*, const void* data, size_t size)
    int bpf_map__fd(const bpf_map*)
    int bpf_map__set_ifindex(bpf_map*, uint32_t ifindex)
    int bpf_map__set_max_entries(bpf_map*, uint32_t count)
    uint32_t bpf_map__key_size(const bpf_map*)
    uint32_t bpf_map__value_size(const bpf_map*)
    int bpf_map__reuse_fd(bpf_map*, int fd)
    int bpf_xdp_query(int ifindex, int flags, bpf_xdp_query_opts*)
    int bpf_xdp_detach(int ifindex, uint32_t flags, const void* opts)
    int libbpf_num_possible_cpus()


cdef extern from "xdp/libxdp.h" nogil:
    struct xdp_program:
        pass
    struct xdp_multiprog:
        pass
    enum xdp_attach_mode:
        pass

    xdp_program* xdp_program__from_bpf_obj(bpf_object*, const char* section)
    void xdp_program__close(xdp_program*)
    int xdp_program__attach(xdp_program*, int ifindex, xdp_attach_mode, unsigned int flags)
    int xdp_program__detach(xdp_program*, int ifindex, xdp_attach_mode, unsigned int flags)
    xdp_multiprog* xdp_multiprog__get_from_ifindex(int ifindex)
    void xdp_multiprog__close(xdp_multiprog*)
    bint xdp_multiprog__is_legacy(const xdp_multiprog*)
    long libxdp_get_error(const void*)


cdef extern from "xdp/xsk.h" nogil:
    struct xsk_ring_prod:
        uint32_t size
        uint32_t* producer
        uint32_t* consumer
        void* ring
        uint32_t* flags
    struct xsk_ring_cons:
        uint32_t size
        uint32_t* producer
        uint32_t* consumer
        void* ring
        uint32_t* flags
    struct xsk_umem:
        pass
    struct xsk_socket:
        pass
    struct xsk_umem_config:
        uint32_t fill_size
        uint32_t comp_size
        uint32_t frame_size
        uint32_t frame_headroom
        uint32_t flags
    struct xsk_socket_config:
        uint32_t rx_size
        uint32_t tx_size
        uint32_t libxdp_flags
        uint32_t xdp_flags
        unsigned short bind_flags

    enum:
        XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD

    int xsk_umem__create(xsk_umem**, void* area, uint64_t size, xsk_ring_prod* fill,
                         xsk_ring_cons* completion, const xsk_umem_config*)
    int xsk_umem__delete(xsk_umem*)
    int xsk_umem__fd(const xsk_umem*)
    int xsk_socket__create_shared(
        xsk_socket**, const char* ifname, uint32_t queue_id, xsk_umem*, xsk_ring_cons* rx,
        xsk_ring_prod* tx, xsk_ring_prod* fill, xsk_ring_cons* completion,
        const xsk_socket_config*)
    void xsk_socket__delete(xsk_socket*)
    int xsk_socket__fd(const xsk_socket*)
