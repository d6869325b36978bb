// The part of the oneDNN 3 C interface that the operators call, so that no development package is needed.
//
// Functions, enumerators and argument numbers are fixed within major version 3 (enumerations only grow at
// their end).  Nothing is linked: `load` resolves every symbol in the library the process has loaded already.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace dnnl {
namespace threadpool_interop {
// Virtual functions in the order of oneDNN's own interface.  `wait` came with 3.9; an older library never calls
// it, and none deletes the pool, so the slots after get_flags may differ between versions without harm.
struct threadpool_iface {
    virtual int get_num_threads() const = 0;
    virtual bool get_in_parallel() const = 0;
    virtual void parallel_for(int n, const std::function<void(int, int)> &fn) = 0;
    virtual uint64_t get_flags() const = 0;
    virtual void wait() = 0;
    virtual ~threadpool_iface() = default;
};
}  // namespace threadpool_interop
}  // namespace dnnl

namespace da {
struct Opaque;
using Handle = Opaque *;             // engine, stream, memory, memory descriptor, primitive (descriptor), attribute
using ConstHandle = const Opaque *;
using dim_t = int64_t;

struct Version {
    int major, minor, patch;
    const char *hash;
    unsigned cpu_runtime, gpu_runtime;
};
struct Arg {
    int index;
    Handle memory;
};

enum Enum : int {
    kRuntimeThreadpool = 8,
    kCpu = 1,
    kFloat32 = 3,
    kForwardTraining = 64,
    kConvolutionDirect = 1,
    kScratchpadUser = 1,
    kStreamDefault = 1,
    // format tags
    kAny = 1,
    kA = 2,       // bias
    kNchw = 5,    // abcd; also OIHW
    kGoihw = 6,   // abcde
    kNchw16c = 78,
    kNchw8c = 102,
    // queries
    kQueryImplementation = 8,
    kQuerySource = 129,
    kQueryDiffSource = 130,
    kQueryWeights = 131,
    kQueryDiffWeights = 132,
    kQueryDestination = 133,
    kQueryDiffDestination = 134,
    kQueryScratchpad = 136,
    // execution arguments
    kArgSource = 1,
    kArgDestination = 17,
    kArgWeights = 33,
    kArgBias = 41,
    kArgScratchpad = 80,
    kArgDiffSource = 129,
    kArgDiffDestination = 145,
    kArgDiffWeights = 161,
    kArgDiffBias = 169,
    kIsaAvx512 = 39,  // dnnl_cpu_isa_avx512_core; larger sets have all of its bits
};

#define DA_DNNL_FUNCTIONS(X)                                                                                      \
    X(version, const Version *, (void))                                                                           \
    X(get_effective_cpu_isa, int, (void))                                                                         \
    X(engine_create, int, (Handle *, int kind, size_t))                                                           \
    X(threadpool_interop_stream_create, int, (Handle *, Handle engine, void *pool))                               \
    X(threadpool_interop_set_max_concurrency, int, (int))                                                         \
    X(threadpool_interop_get_max_concurrency, int, (int *))                                                       \
    X(memory_desc_create_with_tag, int, (Handle *, int ndims, const dim_t *, int type, int tag))                  \
    X(memory_desc_clone, int, (Handle *, ConstHandle))                                                            \
    X(memory_desc_destroy, int, (Handle))                                                                         \
    X(memory_desc_equal, int, (ConstHandle, ConstHandle))                                                         \
    X(memory_desc_get_size, size_t, (ConstHandle))                                                                \
    X(memory_create, int, (Handle *, ConstHandle desc, Handle engine, void *data))                                \
    X(memory_destroy, int, (Handle))                                                                              \
    X(primitive_attr_create, int, (Handle *))                                                                     \
    X(primitive_attr_set_scratchpad_mode, int, (Handle, int))                                                     \
    X(primitive_desc_query_md, ConstHandle, (ConstHandle, int what, int index))                                   \
    X(primitive_desc_query, int, (ConstHandle, int what, int index, void *result))                                \
    X(primitive_desc_destroy, int, (Handle))                                                                      \
    X(primitive_create, int, (Handle *, ConstHandle))                                                             \
    X(primitive_execute, int, (ConstHandle, Handle stream, int, const Arg *))                                     \
    X(primitive_destroy, int, (Handle))                                                                           \
    X(reorder_primitive_desc_create, int,                                                                         \
      (Handle *, ConstHandle from, Handle from_engine, ConstHandle to, Handle to_engine, ConstHandle attr))       \
    X(convolution_forward_primitive_desc_create, int,                                                             \
      (Handle *, Handle engine, int prop, int alg, ConstHandle x, ConstHandle w, ConstHandle b, ConstHandle y,    \
       const dim_t *strides, const dim_t *dilates, const dim_t *pad_l, const dim_t *pad_r, ConstHandle attr))     \
    X(convolution_backward_data_primitive_desc_create, int,                                                       \
      (Handle *, Handle engine, int alg, ConstHandle dx, ConstHandle w, ConstHandle dy, const dim_t *strides,     \
       const dim_t *dilates, const dim_t *pad_l, const dim_t *pad_r, ConstHandle hint, ConstHandle attr))         \
    X(convolution_backward_weights_primitive_desc_create, int,                                                    \
      (Handle *, Handle engine, int alg, ConstHandle x, ConstHandle dw, ConstHandle db, ConstHandle dy,           \
       const dim_t *strides, const dim_t *dilates, const dim_t *pad_l, const dim_t *pad_r, ConstHandle hint,      \
       ConstHandle attr))

// One pointer per function above, filled by load().
struct Dnnl {
#define X(name, result, arguments) result(*name) arguments = nullptr;
    DA_DNNL_FUNCTIONS(X)
#undef X
};
extern Dnnl dnnl_;

// Resolves the functions in the library at `path`, which must be loaded already.  Returns an empty string or
// the reason why it cannot be used.
const char *load(const char *path);
}  // namespace da
