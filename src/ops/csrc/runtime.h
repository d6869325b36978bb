// Threads, buffers and the bounded cache that every operator shares.
#pragma once
#include <cstring>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "dnnl_abi.h"

namespace da {
// Throws with the call and its status when a oneDNN call fails.
void check(int status, const char *what);
#define DA_CHECK(call) ::da::check(::da::dnnl_.call, #call)

Handle engine();
Handle stream();          // of the calling thread
int threads();            // of the pool, the caller included
int block();              // channels per block of the layout the kernels use: 16 with AVX-512, 8 without
void start(int threads);  // once, before anything else runs

// Runs fn(0) … fn(n-1) on the pool and returns when all are done.  What index i computes must not depend on
// which thread runs it: that is what keeps results the same from run to run.
void parallel(int n, const std::function<void(int)> &fn);

// [begin, end) of part `i` of `parts` over `total` items.
inline std::pair<int64_t, int64_t> part(int64_t total, int i, int parts) {
    return {total * i / parts, total * (i + 1) / parts};
}

// Scratch memory, 64-byte aligned, taken from and returned to a pool that keeps it mapped: fresh pages cost
// more than many of the kernels that would write them.
class Buffer {
  public:
    explicit Buffer(size_t bytes);
    ~Buffer();
    Buffer(Buffer &&other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    void *get() const { return data_; }
    float *floats() const { return static_cast<float *>(data_); }

  private:
    void *data_ = nullptr;
    size_t bytes_ = 0;
};

// A primitive with the descriptor it came from.
class Primitive {
  public:
    explicit Primitive(Handle desc);
    ~Primitive();
    Primitive(const Primitive &) = delete;
    Primitive &operator=(const Primitive &) = delete;
    ConstHandle md(int query) const { return dnnl_.primitive_desc_query_md(desc_, query, 0); }
    ConstHandle desc() const { return desc_; }
    const char *implementation() const;
    struct Operand {
        int index;
        ConstHandle md;
        void *data;
    };
    void run(std::initializer_list<Operand> operands) const;

  private:
    Handle desc_ = nullptr, primitive_ = nullptr;
};

// Owns a memory descriptor.
class Layout {
  public:
    Layout(const std::vector<dim_t> &dims, int tag);
    explicit Layout(ConstHandle other);
    ~Layout() { dnnl_.memory_desc_destroy(md_); }
    Layout(const Layout &) = delete;
    Layout &operator=(const Layout &) = delete;
    operator ConstHandle() const { return md_; }

  private:
    Handle md_ = nullptr;
};

inline size_t bytes(ConstHandle md) { return dnnl_.memory_desc_get_size(md); }
inline bool same(ConstHandle a, ConstHandle b) { return dnnl_.memory_desc_equal(a, b) != 0; }
Handle attributes();  // scratchpad supplied by the caller

// Converts between two layouts; keeps its primitive, and knows when there is nothing to do.
class Reorder {
  public:
    Reorder(ConstHandle from, ConstHandle to);
    bool needed() const { return primitive_ != nullptr; }
    void run(const void *from, void *to) const;
    // `data` itself when the layouts agree, else a converted copy in `buffer`.
    void *convert(const void *data, std::unique_ptr<Buffer> &buffer) const;

  private:
    Layout from_, to_;
    std::unique_ptr<Primitive> primitive_;
};

// One entry for each key; the least recently used one is dropped first.  Entries in use stay alive through their
// shared pointer.
template <typename Value>
class Cache {
  public:
    using Key = std::vector<int64_t>;
    explicit Cache(size_t limit) : limit_(limit) {}
    std::shared_ptr<Value> get(const Key &key, const std::function<std::shared_ptr<Value>()> &make) {
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = index_.find(key);
        if (found != index_.end()) {
            order_.splice(order_.begin(), order_, found->second);
            return found->second->second;
        }
        auto value = make();
        order_.emplace_front(key, value);
        index_[key] = order_.begin();
        if (order_.size() > limit_) {
            index_.erase(order_.back().first);
            order_.pop_back();
        }
        return value;
    }

  private:
    size_t limit_;
    std::mutex mutex_;
    std::list<std::pair<Key, std::shared_ptr<Value>>> order_;
    std::map<Key, typename std::list<std::pair<Key, std::shared_ptr<Value>>>::iterator> index_;
};

// Runs an operator's body: returns 0, or prints the reason and returns 1, which MindSpore raises as an error.
int guarded(const char *name, const std::function<void()> &body);
}  // namespace da
